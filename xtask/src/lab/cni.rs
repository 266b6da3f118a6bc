//! Calls of the plugin, made as a container runtime makes them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::lab::{Ns, process};

/// The time after which the lab kills a plugin. kubelet gives a sandbox four minutes; the plugin
/// has a much shorter deadline of its own.
const DEADLINE: Duration = Duration::from_secs(60);

/// A call of a plugin. Every field may be changed before [`CniCall::run`].
#[derive(Clone, Debug)]
pub struct CniCall {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// The network configuration on standard input.
    pub config: Value,
    /// Additional environment variables.
    pub environment: Vec<(String, String)>,
    /// The time after which the plugin is killed.
    pub deadline: Duration,
    node: Ns,
    plugin: PathBuf,
}

/// The plugin's answer.
#[derive(Clone, Debug)]
pub struct CniOutput {
    /// Whether the plugin exited with 0.
    pub success: bool,
    /// The JSON on standard output: the result or the error object, or null if there was no output.
    pub answer: Value,
    /// The text on standard error.
    pub stderr: String,
    /// The time from before the plugin's start to after its end. For a chain, the sum over its
    /// plugins.
    pub took: Duration,
}

impl CniCall {
    pub(crate) fn new(
        node: &Ns,
        plugin: &Path,
        socket: &Path,
        command: &str,
        container_id: &str,
        netns: &Path,
        runtime_config: &Value,
    ) -> Self {
        Self {
            command: command.to_owned(),
            container_id: container_id.to_owned(),
            netns: netns.to_owned(),
            interface: "eth0".to_owned(),
            args: format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=lab;K8S_POD_NAME={container_id}"),
            config: json!({
                "cniVersion": "1.0.0",
                "name": "podwire",
                "type": "podwire-cni",
                "socket": socket,
                "capabilities": { "bandwidth": true, "ips": true, "mac": true, "portMappings": true },
                "runtimeConfig": runtime_config,
            }),
            environment: Vec::new(),
            deadline: DEADLINE,
            node: node.clone(),
            plugin: plugin.to_owned(),
        }
    }

    /// Returns the same call with another `CNI_COMMAND`.
    pub fn with_command(&self, command: &str) -> Self {
        Self { command: command.to_owned(), ..self.clone() }
    }

    /// Returns the same call for another plugin, with its network configuration.
    pub fn of_plugin(&self, plugin: &Path, config: Value) -> Self {
        Self { plugin: plugin.to_owned(), config, ..self.clone() }
    }

    /// Returns the path of the plugin's binary.
    pub fn plugin(&self) -> &Path {
        &self.plugin
    }

    /// Runs the plugin on the node.
    ///
    /// # Errors
    /// When the plugin cannot be run, does not end in time, or prints something other than JSON.
    pub fn run(&self) -> Result<CniOutput> {
        let mut command = Command::new(&self.plugin);
        command
            .env_clear()
            .env("CNI_COMMAND", &self.command)
            .env("CNI_CONTAINERID", &self.container_id)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", &self.interface)
            .env("CNI_ARGS", &self.args)
            .env("CNI_PATH", self.plugin.parent().unwrap_or(Path::new("/")))
            // A runtime has a PATH, and other plugins look for iptables in it.
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        let input = serde_json::to_vec(&self.config)?;
        let (output, took) =
            self.node.enter(|| process::timed(&mut command, Some(&input), self.deadline))??;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let answer = if output.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&output.stdout).with_context(|| {
                let printed = String::from_utf8_lossy(&output.stdout);
                format!("{} printed no JSON: {printed}{stderr}", self.command)
            })?
        };
        Ok(CniOutput { success: output.status.success(), answer, stderr, took })
    }
}
