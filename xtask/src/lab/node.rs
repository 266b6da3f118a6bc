//! A node: a namespace with an uplink, a podCIDR and an agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
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
use crate::lab::{Builder, CniCall, Families, Monitor, Ns, cleanup};

/// A node. It dereferences to its network namespace, so it is accepted where an [`Ns`] is expected.
#[derive(Debug)]
pub struct Node {
    lab: String,
    place: NodePlace,
    families: Families,
    binaries: Binaries,
    /// The binary that replaces the agent of [`Self::binaries`].
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
            families: wanted.families,
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

    /// Returns the node's name in the Node list.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// Returns the node's InternalIP.
    pub fn address(&self) -> IpAddr {
        self.place.address.into()
    }

    /// Returns the node's InternalIPs, in the order of its podCIDRs.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.families.of(self.place.address.into(), self.place.address6.into())
    }

    /// Returns the pods' gateway: the first address of the podCIDR.
    pub fn gateway(&self) -> IpAddr {
        let number = self.place.name.trim_start_matches("node").parse().unwrap_or_default();
        Ipv4Addr::new(10, 244, number, 1).into()
    }

    /// Returns the node's addresses among its pods, the first of each podCIDR, in the order of its
    /// podCIDRs.
    pub fn overlay_addresses(&self) -> Vec<IpAddr> {
        let number = self.place.name.trim_start_matches("node").parse().unwrap_or_default();
        self.families.of(self.gateway(), Ipv6Addr::new(0xfd00, 0x10, 0x244, number, 0, 0, 0, 1).into())
    }

    /// Returns the podCIDR.
    pub fn pod_cidr(&self) -> &str {
        &self.place.pod_cidr
    }

    /// Returns the podCIDRs, in the order of [`Node::addresses`].
    pub fn pod_cidrs(&self) -> Vec<&str> {
        self.families.of(&self.place.pod_cidr, &self.place.pod_cidr6)
    }

    /// Returns the name of the link to the underlay.
    pub fn uplink(&self) -> &'static str {
        UPLINK
    }

    /// Returns the folder in which the agent keeps endpoints.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Returns the folder in which the runtime would look for network configurations.
    pub fn cni_conf_dir(&self) -> &Path {
        &self.cni_conf_dir
    }

    /// Returns the folder in which the reference plugins store what they have assigned. Each plugin
    /// has its own subfolder.
    pub fn cni_state_dir(&self) -> &Path {
        &self.cni_state_dir
    }

    /// Returns the folder of the agent's pins.
    pub fn bpf_dir(&self) -> &Path {
        &self.bpf_dir
    }

    /// Returns the path of the agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// Makes a namespace, and lets the plugin make it a pod with the interface `eth0`.
    ///
    /// # Errors
    /// When the plugin fails, with the error that it printed.
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        self.add_pod_with(name, &serde_json::json!({}))
    }

    /// Adds a pod as [`Node::add_pod`] does, with a `runtimeConfig`
    /// (`{"ips": ["10.244.1.77/24"]}`).
    ///
    /// # Errors
    /// When the plugin fails, with the error that it printed.
    pub fn add_pod_with(&self, name: &str, runtime_config: &Value) -> Result<Pod> {
        let namespace = self.pod_namespace(name);
        match self.families.has_ipv6() {
            true => Ns::create_as_the_kernel_does(&namespace)?,
            false => Ns::create(&namespace)?,
        };
        self.add_pod_again(name, runtime_config)
    }

    /// Adds a pod as [`Node::add_pod_with`] does, in the namespace that an earlier attempt left.
    ///
    /// # Errors
    /// When there is no such namespace, and those of [`Node::add_pod`].
    pub fn add_pod_again(&self, name: &str, runtime_config: &Value) -> Result<Pod> {
        let ns = Ns::open(&self.pod_namespace(name))?;
        Pod::add(ns, self.cni_call("ADD", name, runtime_config))
    }

    /// Returns a call of the plugin (`ADD`, `DEL`, `CHECK`) on this node, for the pod with this
    /// name. The pod need not exist.
    pub fn cni_call(&self, command: &str, pod: &str, runtime_config: &Value) -> CniCall {
        let namespace = self.pod_namespace(pod);
        let netns = Path::new("/run/netns").join(&namespace);
        CniCall::new(self, &self.binaries.plugin, &self.socket(), command, &namespace, &netns, runtime_config)
    }

    /// Sets the binary of the node's next agents; `None` selects the lab's own again.
    pub fn use_agent(&self, agent: Option<&Path>) {
        *self.other_agent.lock().unwrap_or_else(PoisonError::into_inner) = agent.map(Path::to_owned);
    }

    /// Starts the agent and waits until it serves.
    ///
    /// # Errors
    /// When the agent ends or is not ready in time, with the end of its log.
    pub fn start_agent(&self) -> Result<()> {
        self.spawn_agent()?;
        self.wait_ready()
    }

    /// Starts the agent with additional environment variables, and waits until it serves.
    ///
    /// # Errors
    /// Those of [`Node::start_agent`].
    pub fn start_agent_with(&self, environment: &[(&str, &str)]) -> Result<()> {
        self.spawn_agent_with(environment)?;
        self.wait_ready()
    }

    /// Runs another agent with the same arguments beside the first, and waits for its end.
    ///
    /// # Errors
    /// When the agent cannot be run or does not end in time.
    pub fn run_second_agent(&self) -> Result<ExitStatus> {
        self.run_second_agent_in(self, &[])
    }

    /// Runs another agent as [`Node::run_second_agent`] does, in another namespace and with other
    /// values for some options. It writes to the first agent's log.
    ///
    /// # Errors
    /// Those of [`Node::run_second_agent`].
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

    /// Waits until an agent that ends by itself has ended.
    ///
    /// # Errors
    /// When it does not end within 60 seconds.
    pub fn wait_for_agent_end(&self) -> Result<()> {
        let Some(agent) = self.agent().take() else { return Ok(()) };
        agent.wait_end().with_context(|| format!("wait for the end of {}'s agent", self.name()))?;
        Ok(())
    }

    /// Kills the agent with SIGKILL. It is no error if there is no agent.
    ///
    /// # Errors
    /// When the agent cannot be killed.
    pub fn kill_agent(&self) -> Result<()> {
        let Some(agent) = self.agent().take() else { return Ok(()) };
        agent.kill().with_context(|| format!("kill the agent of {}", self.name()))
    }

    /// Ends the agent with SIGTERM, and waits until it has ended.
    ///
    /// # Errors
    /// When the agent does not end in time, or does not exit with 0.
    pub fn stop_agent(&self) -> Result<()> {
        let Some(agent) = self.agent().take() else { return Ok(()) };
        agent
            .stop()
            .with_context(|| format!("stop the agent of {}\n{}", self.name(), self.agent_log_tail(20)))
    }

    /// Kills the agent with SIGKILL, then starts a new one and waits until it serves.
    ///
    /// # Errors
    /// Those of [`Node::start_agent`].
    pub fn restart_agent(&self) -> Result<()> {
        self.kill_agent()?;
        self.start_agent()
    }

    /// Runs `podwire uninstall` with the agent's folders. Any exit status is accepted.
    ///
    /// # Errors
    /// When the command cannot be run or takes too long.
    pub fn uninstall(&self) -> Result<Output> {
        self.uninstall_with(&[])
    }

    /// Runs [`Node::uninstall`] with additional arguments.
    ///
    /// # Errors
    /// Those of [`Node::uninstall`].
    pub fn uninstall_with(&self, arguments: &[&str]) -> Result<Output> {
        self.uninstall_in(self, arguments)
    }

    /// Runs [`Node::uninstall_with`] in another namespace.
    ///
    /// # Errors
    /// Those of [`Node::uninstall`].
    pub fn uninstall_in(&self, ns: &Ns, arguments: &[&str]) -> Result<Output> {
        let [run, state, bpf, conf] = [&self.run_dir, &self.state_dir, &self.bpf_dir, &self.cni_conf_dir]
            .map(|folder| folder.to_string_lossy());
        let folders = ["--run-dir", &run, "--state-dir", &state, "--bpf-dir", &bpf, "--cni-conf-dir", &conf];
        self.podwire_in(ns, &[&["uninstall"], &folders[..], arguments].concat())
    }

    /// Returns the folder of the agent's sockets.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Runs `podwire` on the node, with the wrapper of its agent, for a minute at most. Any exit
    /// status is accepted.
    ///
    /// # Errors
    /// When the command cannot be run or takes too long.
    pub fn podwire(&self, arguments: &[&str]) -> Result<Output> {
        self.podwire_in(self, arguments)
    }

    /// Does the same with a command that shows what this node's agent does.
    ///
    /// # Errors
    /// Those of [`Self::podwire`].
    pub fn show(&self, arguments: &[&str]) -> Result<Output> {
        let folders = [&self.run_dir, &self.state_dir, &self.bpf_dir].map(|folder| folder.to_string_lossy());
        let [run, state, bpf] = &folders;
        let folders = ["--run-dir", run, "--state-dir", state, "--bpf-dir", bpf];
        self.podwire(&[arguments, &folders].concat())
    }

    /// Starts `podwire monitor` on the node.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn monitor(&self, arguments: &[&str]) -> Result<Monitor> {
        let mut command = Command::new(&self.binaries.agent);
        command.args(["monitor", "--run-dir"]).arg(&self.run_dir).args(arguments);
        Monitor::start(self, command)
    }

    fn podwire_in(&self, ns: &Ns, arguments: &[&str]) -> Result<Output> {
        let binary = self.binaries.agent.to_string_lossy();
        let wrapper = self.wrapper.iter().map(String::as_str);
        ns.output(&wrapper.chain([&*binary]).chain(arguments.iter().copied()).collect::<Vec<_>>())
    }

    /// Returns the agent's process id while the agent runs.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent().as_ref().map(Agent::pid)
    }

    /// Returns everything that the node's agents have logged.
    pub fn agent_log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Returns the last lines of [`Node::agent_log`].
    pub fn agent_log_tail(&self, lines: usize) -> String {
        let log = self.agent_log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Returns the content of a pinned map, as `bpftool -j map dump` prints it.
    ///
    /// # Errors
    /// When there is no map with this name.
    pub fn map_dump(&self, map: &str) -> Result<Value> {
        counters::dump(&self.bpf_dir.join(map))
    }

    /// Returns the packets dropped so far, by [`Drop::name`]. Reasons that never occurred are left
    /// out.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn drops(&self) -> Result<BTreeMap<&'static str, u64>> {
        Ok(packets(&self.drop_counts()?))
    }

    /// Returns the same as [`Node::drops`], with bytes.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn drop_counts(&self) -> Result<BTreeMap<&'static str, Counts>> {
        let reasons = Drop::ALL.iter().map(|reason| (*reason as u32, reason.name()));
        counters::read(&self.bpf_dir.join(maps::DROPS), reasons)
    }

    /// Returns the packets seen so far, by [`TrafficPath::name`]. Paths without packets are left
    /// out.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn traffic(&self) -> Result<BTreeMap<&'static str, u64>> {
        Ok(packets(&self.traffic_counts()?))
    }

    /// Returns the same as [`Node::traffic`], with bytes.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn traffic_counts(&self) -> Result<BTreeMap<&'static str, Counts>> {
        let paths = TrafficPath::ALL.iter().map(|path| (*path as u32, path.name()));
        counters::read(&self.bpf_dir.join(maps::TRAFFIC), paths)
    }

    /// Returns the calls of a helper by the programs that the agent has loaded. The agent must have
    /// loaded the object that counts them.
    ///
    /// # Errors
    /// When the uplink's program has no such counts.
    pub fn helper_calls(&self, helper: Helper) -> Result<u64> {
        let link = self.bpf_dir.join("links").join(format!("{}-{}", programs::FROM_UPLINK, self.uplink()));
        counters::helper_calls(&link, helper)
    }

    /// Starts the agent without waiting until it serves.
    ///
    /// # Errors
    /// When the agent cannot be started.
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
    /// Those of [`Node::start_agent`].
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

    /// Returns the command line that starts the agent.
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
