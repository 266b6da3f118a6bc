//! A node: a namespace with an uplink, a podCIDR and an agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use podwire_common::helper::Helper;
use podwire_common::names::{maps, programs};
use podwire_common::reason::{Drop, Path as TrafficPath};
use serde_json::Value;

use crate::lab::agent::{Agent, Binaries};
use crate::lab::counters::{self, Counts};
use crate::lab::pod::Pod;
use crate::lab::topology::{NodePlace, UPLINK};
use crate::lab::{Builder, CniCall, Ns, cleanup};

/// A node. It is its network namespace, too: whatever takes an [`Ns`] takes a node.
#[derive(Debug)]
pub struct Node {
    lab: String,
    place: NodePlace,
    binaries: Binaries,
    /// In place of the agent among [`Self::binaries`].
    other_agent: Mutex<Option<PathBuf>>,
    arguments: Vec<String>,
    wrapper: Vec<String>,
    run_dir: PathBuf,
    bpf_dir: PathBuf,
    state_dir: PathBuf,
    cni_conf_dir: PathBuf,
    cni_state_dir: PathBuf,
    agent: Mutex<Option<Agent>>,
}

impl Node {
    pub(crate) fn new(
        lab: &str,
        place: &NodePlace,
        nodes_from: &[String; 2],
        binaries: &Binaries,
        wanted: &Builder,
    ) -> Result<Self> {
        let folder = cleanup::folder(lab).join(&place.name);
        let (run_dir, state_dir) = (folder.join("run"), folder.join("state"));
        let (cni_conf_dir, cni_state_dir) = (folder.join("net.d"), folder.join("cni"));
        for folder in [&run_dir, &state_dir, &cni_conf_dir, &cni_state_dir] {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let bpf_dir = cleanup::bpf_folder(lab).join(&place.name);
        let mut arguments = vec!["agent".to_owned()];
        for (option, value) in [
            ("--node-name", place.name.as_str()),
            (&nodes_from[0], &nodes_from[1]),
            ("--mode", wanted.mode.name()),
            ("--run-dir", &run_dir.to_string_lossy()),
            ("--state-dir", &state_dir.to_string_lossy()),
            ("--bpf-dir", &bpf_dir.to_string_lossy()),
            ("--cni-conf-dir", &cni_conf_dir.to_string_lossy()),
            ("--cni-state-dir", &cni_state_dir.to_string_lossy()),
        ] {
            arguments.extend([option.to_owned(), value.to_owned()]);
        }
        arguments.extend_from_slice(&wanted.agent_arguments);
        Ok(Self {
            lab: lab.to_owned(),
            place: place.clone(),
            binaries: binaries.clone(),
            other_agent: Mutex::new(None),
            arguments,
            wrapper: wanted.agent_wrapper.clone(),
            run_dir,
            bpf_dir,
            state_dir,
            cni_conf_dir,
            cni_state_dir,
            agent: Mutex::new(None),
        })
    }

    /// Its name in the Node list.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// Its InternalIP.
    pub fn address(&self) -> IpAddr {
        self.place.address.into()
    }

    /// The pods' gateway: the first address of its podCIDR.
    pub fn gateway(&self) -> IpAddr {
        let number = self.place.name.trim_start_matches("node").parse().unwrap_or_default();
        Ipv4Addr::new(10, 244, number, 1).into()
    }

    /// Its podCIDR.
    pub fn pod_cidr(&self) -> &str {
        &self.place.pod_cidr
    }

    /// The link to the underlay.
    pub fn uplink(&self) -> &'static str {
        UPLINK
    }

    /// Where the agent keeps endpoints.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Where the runtime would look for network configurations.
    pub fn cni_conf_dir(&self) -> &Path {
        &self.cni_conf_dir
    }

    /// Where the reference plugins remember what they have given to whom, a folder for each of them.
    pub fn cni_state_dir(&self) -> &Path {
        &self.cni_state_dir
    }

    /// Where the agent's pins are.
    pub fn bpf_dir(&self) -> &Path {
        &self.bpf_dir
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// Makes a namespace and has the plugin make it a pod, with interface `eth0`.
    ///
    /// # Errors
    /// When the plugin fails; with the error that it printed.
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        self.add_pod_with(name, &serde_json::json!({}))
    }

    /// The same with a `runtimeConfig` (`{"ips": ["10.244.1.77/24"]}`).
    ///
    /// # Errors
    /// When the plugin fails; with the error that it printed.
    pub fn add_pod_with(&self, name: &str, runtime_config: &Value) -> Result<Pod> {
        Ns::create(&self.pod_namespace(name))?;
        self.add_pod_again(name, runtime_config)
    }

    /// The same in the namespace that an earlier attempt has left.
    ///
    /// # Errors
    /// As [`Node::add_pod`].
    pub fn add_pod_again(&self, name: &str, runtime_config: &Value) -> Result<Pod> {
        let ns = Ns::open(&self.pod_namespace(name))?;
        Pod::add(ns, self.cni_call("ADD", name, runtime_config))
    }

    /// A call of the plugin on this node for the pod of that name (`ADD`, `DEL`, `CHECK`), whether or not there is one.
    pub fn cni_call(&self, command: &str, pod: &str, runtime_config: &Value) -> CniCall {
        let namespace = self.pod_namespace(pod);
        let netns = Path::new("/run/netns").join(&namespace);
        CniCall::new(self, &self.binaries.plugin, &self.socket(), command, &namespace, &netns, runtime_config)
    }

    /// Has its next agents be of another build; `None`: of the lab's own again.
    pub fn use_agent(&self, agent: Option<&Path>) {
        *self.other_agent.lock().unwrap_or_else(PoisonError::into_inner) = agent.map(Path::to_owned);
    }

    /// Starts the agent and waits until it serves.
    ///
    /// # Errors
    /// When it ends or is not ready in time; with the end of its log.
    pub fn start_agent(&self) -> Result<()> {
        self.spawn_agent()?;
        self.wait_ready()
    }

    /// The same with variables in its environment.
    ///
    /// # Errors
    /// As [`Node::start_agent`].
    pub fn start_agent_with(&self, environment: &[(&str, &str)]) -> Result<()> {
        self.spawn_agent_with(environment)?;
        self.wait_ready()
    }

    /// Runs another agent with the same arguments beside the first, until it ends.
    ///
    /// # Errors
    /// When it cannot be run, or does not end in time.
    pub fn run_second_agent(&self) -> Result<ExitStatus> {
        self.run_second_agent_in(self, &[])
    }

    /// The same in another namespace, with other values of these options. Its log is the first one's.
    ///
    /// # Errors
    /// As [`Node::run_second_agent`].
    pub fn run_second_agent_in(&self, ns: &Ns, options: &[(&str, &str)]) -> Result<ExitStatus> {
        let mut command = self.agent_command();
        for (option, value) in options {
            match command.iter().position(|argument| argument == option) {
                Some(place) => command[place + 1] = (*value).to_owned(),
                None => command.extend([(*option).to_owned(), (*value).to_owned()]),
            }
        }
        let agent = Agent::spawn(ns, &command, &[], &self.log_path())?;
        agent.wait_end().with_context(|| format!("wait for the end of {}'s second agent", self.name()))
    }

    /// Waits for the end of an agent that ends by itself.
    ///
    /// # Errors
    /// When it does not within ten seconds.
    pub fn wait_for_agent_end(&self) -> Result<()> {
        let Some(agent) = self.agent().take() else { return Ok(()) };
        agent.wait_end().with_context(|| format!("wait for the end of {}'s agent", self.name()))?;
        Ok(())
    }

    /// SIGKILL. No agent is no error.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill_agent(&self) -> Result<()> {
        let Some(agent) = self.agent().take() else { return Ok(()) };
        agent.kill().with_context(|| format!("kill the agent of {}", self.name()))
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time, or not with success.
    pub fn stop_agent(&self) -> Result<()> {
        let Some(agent) = self.agent().take() else { return Ok(()) };
        agent
            .stop()
            .with_context(|| format!("stop the agent of {}\n{}", self.name(), self.agent_log_tail(20)))
    }

    /// SIGKILL, and a new one that serves.
    ///
    /// # Errors
    /// As [`Node::start_agent`].
    pub fn restart_agent(&self) -> Result<()> {
        self.kill_agent()?;
        self.start_agent()
    }

    /// Runs `podwire uninstall` with the agent's folders, whatever its exit status.
    ///
    /// # Errors
    /// When it cannot be run or takes too long.
    pub fn uninstall(&self) -> Result<Output> {
        self.uninstall_with(&[])
    }

    /// The same with more arguments.
    ///
    /// # Errors
    /// As [`Node::uninstall`].
    pub fn uninstall_with(&self, arguments: &[&str]) -> Result<Output> {
        self.uninstall_in(self, arguments)
    }

    /// The same in another namespace.
    ///
    /// # Errors
    /// As [`Node::uninstall`].
    pub fn uninstall_in(&self, ns: &Ns, arguments: &[&str]) -> Result<Output> {
        let [run, state, bpf, conf] = [&self.run_dir, &self.state_dir, &self.bpf_dir, &self.cni_conf_dir]
            .map(|folder| folder.to_string_lossy());
        let folders = ["--run-dir", &run, "--state-dir", &state, "--bpf-dir", &bpf, "--cni-conf-dir", &conf];
        self.podwire_in(ns, &[&["uninstall"], &folders[..], arguments].concat())
    }

    /// Runs `podwire` on the node as its agent is started, for a minute at most, whatever its exit status.
    ///
    /// # Errors
    /// When it cannot be run or takes too long.
    pub fn podwire(&self, arguments: &[&str]) -> Result<Output> {
        self.podwire_in(self, arguments)
    }

    fn podwire_in(&self, ns: &Ns, arguments: &[&str]) -> Result<Output> {
        let binary = self.binaries.agent.to_string_lossy();
        let wrapper = self.wrapper.iter().map(String::as_str);
        ns.output(&wrapper.chain([&*binary]).chain(arguments.iter().copied()).collect::<Vec<_>>())
    }

    /// The agent's process id, while it runs.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent().as_ref().map(Agent::pid)
    }

    /// All that its agents have logged.
    pub fn agent_log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The last lines of [`Node::agent_log`].
    pub fn agent_log_tail(&self, lines: usize) -> String {
        let log = self.agent_log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// A pinned map, as `bpftool -j map dump` prints it.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn map_dump(&self, map: &str) -> Result<Value> {
        counters::dump(&self.bpf_dir.join(map))
    }

    /// Packets dropped so far, by [`Drop::name`]; reasons that never occurred are not there.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn drops(&self) -> Result<BTreeMap<&'static str, u64>> {
        Ok(packets(&self.drop_counts()?))
    }

    /// As [`Node::drops`], with bytes.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn drop_counts(&self) -> Result<BTreeMap<&'static str, Counts>> {
        let reasons = Drop::ALL.iter().map(|reason| (*reason as u32, reason.name()));
        counters::read(&self.bpf_dir.join(maps::DROPS), reasons)
    }

    /// Packets seen so far, by [`TrafficPath::name`]; paths that none took are not there.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn traffic(&self) -> Result<BTreeMap<&'static str, u64>> {
        Ok(packets(&self.traffic_counts()?))
    }

    /// As [`Node::traffic`], with bytes.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn traffic_counts(&self) -> Result<BTreeMap<&'static str, Counts>> {
        let paths = TrafficPath::ALL.iter().map(|path| (*path as u32, path.name()));
        counters::read(&self.bpf_dir.join(maps::TRAFFIC), paths)
    }

    /// Calls of a helper by the programs that the agent has loaded, which are the build that counts them.
    ///
    /// # Errors
    /// When the programs of the uplink have no such counts.
    pub fn helper_calls(&self, helper: Helper) -> Result<u64> {
        let link = self.bpf_dir.join("links").join(format!("{}-{}", programs::FROM_UPLINK, self.uplink()));
        counters::helper_calls(&link, helper)
    }

    /// Starts the agent and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_agent(&self) -> Result<()> {
        self.spawn_agent_with(&[])
    }

    fn spawn_agent_with(&self, environment: &[(&str, &str)]) -> Result<()> {
        let agent = Agent::spawn(self, &self.agent_command(), environment, &self.log_path())?;
        *self.agent() = Some(agent);
        Ok(())
    }

    /// Waits until the agent that was started serves.
    ///
    /// # Errors
    /// As [`Node::start_agent`].
    pub fn wait_ready(&self) -> Result<()> {
        let mut agent = self.agent();
        let agent = agent.as_mut().context("no agent was started");
        let outcome = agent.and_then(|agent| agent.wait_ready(self, &self.socket()));
        outcome.with_context(|| {
            format!("wait for the agent of {}; its log ends\n{}", self.name(), self.agent_log_tail(20))
        })
    }

    pub(crate) fn keep_agent(&self) {
        if let Some(agent) = self.agent().take() {
            agent.keep();
        }
    }

    /// What starts the agent: program and arguments.
    fn agent_command(&self) -> Vec<String> {
        let other = self.other_agent.lock().unwrap_or_else(PoisonError::into_inner);
        let binary = other.as_ref().unwrap_or(&self.binaries.agent).to_string_lossy().into_owned();
        self.wrapper.iter().cloned().chain([binary]).chain(self.arguments.iter().cloned()).collect()
    }

    fn agent(&self) -> MutexGuard<'_, Option<Agent>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_path(&self) -> PathBuf {
        self.run_dir.join("agent.log")
    }

    fn pod_namespace(&self, pod: &str) -> String {
        format!("{}-{}-{pod}", self.lab, self.name())
    }
}

impl Deref for Node {
    type Target = Ns;

    fn deref(&self) -> &Ns {
        &self.place.ns
    }
}

fn packets(counts: &BTreeMap<&'static str, Counts>) -> BTreeMap<&'static str, u64> {
    counts.iter().map(|(name, counts)| (*name, counts.packets)).collect()
}
