//! Two or more nodes, an underlay and a world, built for a test or the demonstration.
//!
//! ```no_run
//! use xtask::lab::{Lab, Mode, traffic};
//!
//! let lab = Lab::builder().mode(Mode::Vxlan).build()?;
//! let client = lab.node(0).add_pod("client")?;
//! let server = lab.node(1).add_pod("server")?;
//! let exchange = traffic::tcp_exchange(&client, &server, server.address(), 8080, 1 << 20)?;
//! assert_eq!(exchange.peer_seen_by_server.ip(), client.address());
//! # anyhow::Ok(())
//! ```
//!
//! Every name contains the lab's name. By default, that contains the process id. Everything is
//! removed when the [`Lab`] is dropped, also after a panic and on Ctrl-C. The next lab removes what
//! a killed process left.

pub mod frames;
pub mod reference;
pub mod traffic;
pub mod tun;

mod agent;
mod cleanup;
mod cni;
mod counters;
mod kube_proxy;
mod monitor;
mod node;
mod node_list;
mod ns;
mod pod;
mod process;
mod topology;

use std::io;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

pub use cleanup::remove;
pub use cni::{CniCall, CniOutput};
pub use counters::Counts;
pub use kube_proxy::{KubeProxy, Proxied, renumbered};
pub use monitor::Monitor;
pub use node::Node;
pub use ns::Ns;
pub use pod::Pod;
pub use topology::connect;

use crate::api_server::ApiServer;
use crate::lab::agent::Binaries;
use crate::lab::cleanup::Registration;
use crate::lab::topology::Topology;

/// The address of the API server on every node. Port 6443 would clash with services of tests, which
/// lead there.
const API_SERVER: &str = "127.0.0.1:7443";

/// How pod packets travel between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Inside VXLAN.
    Vxlan,
    /// Unchanged.
    Direct,
}

impl Mode {
    /// Returns the value of the agent's `--mode`.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Vxlan => "vxlan",
            Mode::Direct => "direct",
        }
    }
}

/// Families of addresses in a lab.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone. IPv6 is off everywhere.
    V4,
    /// IPv6 pods alone. Nodes have both families, and the tunnel is IPv4.
    V6,
    /// IPv6 alone: nodes have no IPv4 address.
    V6Only,
    /// Both, IPv4 first.
    #[default]
    Dual,
    /// Both, IPv6 first.
    DualV6First,
}

impl Families {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::V4, Self::V6, Self::V6Only, Self::Dual, Self::DualV6First];

    /// Returns whether the lab has IPv6 at all.
    pub(crate) fn has_ipv6(self) -> bool {
        self != Self::V4
    }

    /// Returns whether nodes have IPv4 addresses.
    pub(crate) fn has_ipv4(self) -> bool {
        self != Self::V6Only
    }

    /// Puts values of both families into the lab's order, and leaves out those that it lacks.
    pub(crate) fn of<T>(self, v4: T, v6: T) -> Vec<T> {
        match self {
            Self::V4 => vec![v4],
            Self::V6 | Self::V6Only => vec![v6],
            Self::Dual => vec![v4, v6],
            Self::DualV6First => vec![v6, v4],
        }
    }
}

/// Returns whether tests should run their longer version, as `cargo xtask soak` asks.
pub fn is_soak() -> bool {
    std::env::var_os("PODWIRE_SOAK").is_some()
}

/// Returns whether the kernel has this version or a later one.
///
/// # Panics
/// When the kernel does not say its release.
pub fn is_kernel_since(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// Nodes with running agents, an underlay and a world.
///
/// | namespace | addresses |
/// |---|---|
/// | node N (from 1) | `eth0` 10.200.0.N/24; with a router 10.200.N.1/24. Pods 10.244.N.0/24. Default route to the underlay |
/// | underlay | unless a cable joins the nodes: a bridge with 10.200.0.254/24; with a router 10.200.N.254/24 towards node N |
/// | world | `eth0` 198.51.100.10/24 behind the underlay, which routes between all |
///
/// With IPv6, as by default, the same namespaces also have these addresses: node N
/// fd00:10:200::N/64, with a router fd00:10:200:N::1/64; pods fd00:10:244:N::/64; the underlay
/// fd00:10:200::254, with a router fd00:10:200:N::254; the world 2001:db8::10/64. Without it
/// ([`Builder::families`]), IPv6 is off everywhere.
#[derive(Debug)]
pub struct Lab {
    nodes: Vec<Node>,
    topology: Topology,
    nodes_from: NodesFrom,
    kept: bool,
    registration: Registration,
}

impl Lab {
    /// Returns the builder of a lab. By default the lab has two nodes with both families of
    /// addresses, IPv4 first, in VXLAN mode.
    pub fn builder() -> Builder {
        Builder {
            name: None,
            mode: Mode::Vxlan,
            families: Families::default(),
            nodes: 2,
            underlay_mtu: 1500,
            router: false,
            cable: false,
            docker: false,
            agents: true,
            node_file: false,
            service_file: false,
            agent_arguments: Vec::new(),
            agent_wrapper: Vec::new(),
            binaries: None,
        }
    }

    /// Returns a node, counted from 0: `node(0)` is `node1`.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// Returns all nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns how pod packets travel between nodes.
    pub fn mode(&self) -> Mode {
        self.topology.mode
    }

    /// Returns the namespace that joins the nodes and the world: a bridge or a router.
    pub fn underlay(&self) -> &Ns {
        &self.topology.underlay
    }

    /// Returns a host that is not part of the cluster.
    pub fn world(&self) -> &Ns {
        &self.topology.world
    }

    /// Returns the world's address, 198.51.100.10.
    pub fn world_address(&self) -> IpAddr {
        topology::WORLD
    }

    /// Returns the world's addresses, in the order of the lab's families.
    pub fn world_addresses(&self) -> Vec<IpAddr> {
        self.topology.families.of(topology::WORLD, topology::WORLD6)
    }

    /// Makes an empty namespace with loopback up, for example one for which a pod forwards. It has
    /// IPv6 if the lab has. It is removed with the lab.
    ///
    /// # Errors
    /// When a namespace with this name exists, or when the kernel refuses.
    pub fn add_namespace(&self, name: &str) -> Result<Ns> {
        topology::create(&format!("{}-{name}", self.name()), self.topology.families)
    }

    /// Makes a host on the underlay that is not a node. It has `eth0` and an unused address of
    /// 10.200.0.0/24, and no IPv6: its stack sends no packets of its own.
    ///
    /// # Errors
    /// When the lab has a router or a cable in place of the bridge, or when the kernel refuses.
    pub fn add_host(&self, name: &str, address: IpAddr) -> Result<Ns> {
        let host = Ns::create(&format!("{}-{name}", self.name()))?;
        self.topology.join_bridge(&host, name, address)?;
        Ok(host)
    }

    /// Sets a smaller MTU on the router's path to a node, counted from 0. The router answers a
    /// larger packet that must not be fragmented with an ICMP error.
    ///
    /// # Errors
    /// When the lab has no router.
    pub fn set_path_mtu(&self, node: usize, mtu: u32) -> Result<()> {
        self.topology.set_path_mtu(node, mtu)
    }

    /// Returns the agents' Node list, as `kubectl get nodes -o json` prints it.
    ///
    /// # Errors
    /// When the file cannot be read or decoded.
    pub fn node_list(&self) -> Result<Value> {
        match &self.nodes_from {
            NodesFrom::ApiServer(server) => Ok(server.list()),
            NodesFrom::File(path) => {
                let text =
                    std::fs::read(path).with_context(|| format!("read the Node list {}", path.display()))?;
                Ok(serde_json::from_slice(&text)?)
            }
        }
    }

    /// Replaces the Node list. A file is replaced in one step (rename) and may get any text. The
    /// objects of an API server are replaced one by one.
    ///
    /// # Errors
    /// When the file cannot be written, or when the text for an API server is not JSON.
    pub fn write_node_list(&self, text: &str) -> Result<()> {
        match &self.nodes_from {
            NodesFrom::ApiServer(server) => {
                server.set(&serde_json::from_str(text).context("an API server takes only a JSON list")?);
                Ok(())
            }
            NodesFrom::File(path) => node_list::replace(path, text),
        }
    }

    /// Replaces the file of services ([`Builder::service_file`]).
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_services(&self, text: &str) -> Result<()> {
        node_list::replace(&cleanup::folder(self.name()).join(SERVICES), text)
    }

    /// Returns the API server from which the agents get nodes.
    ///
    /// # Errors
    /// When the agents read a file ([`Builder::node_file`]).
    pub fn api_server(&self) -> Result<&ApiServer> {
        match &self.nodes_from {
            NodesFrom::ApiServer(server) => Ok(server),
            NodesFrom::File(_) => bail!("the agents of this lab read a file"),
        }
    }

    /// Returns a Node list with the lab's nodes, and with this number of other nodes that do not
    /// exist.
    ///
    /// # Errors
    /// When the template of the list cannot be decoded.
    pub fn node_list_with(&self, others: u16) -> Result<String> {
        node_list::render(&self.topology, others)
    }

    /// Returns the lab's name. Every namespace's name starts with it, and the lab's folder on the
    /// BPF filesystem has this name.
    pub fn name(&self) -> &str {
        self.registration.name()
    }

    /// Keeps everything alive after the lab is dropped. [`remove`] removes it later.
    pub fn keep(mut self) {
        self.kept = true;
        for node in &self.nodes {
            node.keep_agent();
        }
        self.registration.keep();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("--- last lines of {}'s agent:\n{}", node.name(), node.agent_log_tail(20));
            }
        }
        for node in &self.nodes {
            if let Err(error) = node.kill_agent() {
                eprintln!("{error:#}");
            }
        }
    }
}

/// The source of the agents' nodes.
#[derive(Debug)]
enum NodesFrom {
    /// Served to each node on its own loopback, so that this traffic needs no link of the lab.
    ApiServer(ApiServer),
    File(PathBuf),
}

impl NodesFrom {
    /// Makes the source reachable from the nodes, and returns the agents' arguments for it.
    fn open(&self, topology: &Topology) -> Result<[String; 2]> {
        match self {
            Self::File(path) => Ok(["--nodes".into(), path.to_string_lossy().into_owned()]),
            Self::ApiServer(server) => {
                for place in &topology.nodes {
                    let ns = place.ns.clone();
                    let bind =
                        move || ns.enter(|| TcpListener::bind(API_SERVER)).map_err(io::Error::other)?;
                    server.listen(bind, None)?;
                }
                Ok(["--api-server".into(), format!("http://{API_SERVER}")])
            }
        }
    }
}

/// The wanted properties of a lab. Made by [`Lab::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    name: Option<String>,
    mode: Mode,
    families: Families,
    nodes: usize,
    underlay_mtu: u32,
    router: bool,
    cable: bool,
    docker: bool,
    agents: bool,
    node_file: bool,
    service_file: bool,
    agent_arguments: Vec<String>,
    agent_wrapper: Vec<String>,
    binaries: Option<PathBuf>,
}

/// The file of services in the lab's folder.
const SERVICES: &str = "services.json";

impl Builder {
    /// Sets the lab's name, for a lab that outlives its process. By default the name has the
    /// process id.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Sets how pod packets travel between nodes.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the families of addresses that nodes, pods and the world have.
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// Sets the number of nodes; 2 by default.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Sets the MTU of every underlay link, bytes.
    pub fn underlay_mtu(mut self, mtu: u32) -> Self {
        self.underlay_mtu = mtu;
        self
    }

    /// Puts a router in place of the bridge: no two nodes share a link, and [`Lab::set_path_mtu`]
    /// works.
    pub fn router(mut self, router: bool) -> Self {
        self.router = router;
        self
    }

    /// Puts a cable in place of the bridge: a veth pair joins the uplinks of the two nodes, or with
    /// one node the node's uplink and the world. So a measurement includes only the work of the two
    /// ends.
    pub fn cable(mut self, cable: bool) -> Self {
        self.cable = cable;
        self
    }

    /// Gives the nodes Docker's bridge `docker0` (172.17.0.1/16) before their uplink. So `docker0`
    /// comes first in the kernel's list of devices. In this list, masquerading searches for an
    /// address when the device by which a packet leaves has none.
    pub fn docker(mut self, docker: bool) -> Self {
        self.docker = docker;
        self
    }

    /// Sets whether agents are started. Without them the lab makes namespaces, links and folders
    /// only; [`Node::start_agent`] starts an agent later.
    pub fn agents(mut self, agents: bool) -> Self {
        self.agents = agents;
        self
    }

    /// Uses a file of Node objects in place of an API server: for a lab that outlives its process,
    /// and for behaviour that only a file has.
    pub fn node_file(mut self) -> Self {
        self.node_file = true;
        self
    }

    /// Lets the agents serve services from a file ([`Lab::write_services`]). At first it has none.
    pub fn service_file(mut self) -> Self {
        self.service_file = true;
        self
    }

    /// Adds arguments for every agent.
    pub fn agent_arguments(mut self, arguments: &[&str]) -> Self {
        self.agent_arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Sets a command that starts every agent and every uninstall, for example `setpriv` or
    /// `unshare`. It must replace its own process with the command in its last arguments.
    pub fn agent_wrapper(mut self, command: &[&str]) -> Self {
        self.agent_wrapper = command.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    /// Sets the folder with `podwire` and `podwire-cni`. By default it is `PODWIRE_BIN_DIR`; if
    /// that is not set, the folder into which the running executable was built.
    pub fn binaries(mut self, folder: &Path) -> Self {
        self.binaries = Some(folder.to_owned());
        self
    }

    /// Makes the lab, and waits until the agents serve.
    ///
    /// # Errors
    /// When the user is not root, when a binary is missing, when the kernel refuses, or when an
    /// agent is not ready in time (with the end of its log). Everything made so far is removed.
    pub fn build(mut self) -> Result<Lab> {
        ensure!(rustix::process::geteuid().is_root(), "the lab makes network namespaces: run it as root");
        let binaries = Binaries::find(self.binaries.as_deref())?;
        if self.agents {
            binaries.check()?;
        }
        // From here on, a failure drops the registration, and that removes everything made so far.
        let registration = Registration::new(self.name.clone().unwrap_or_else(unique_name))?;
        let folder = cleanup::folder(registration.name());
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        if self.service_file {
            let file = folder.join(SERVICES);
            std::fs::write(&file, "{\"kind\": \"List\", \"items\": []}")
                .with_context(|| format!("write {}", file.display()))?;
            let arguments = ["--services".into(), "on".into(), "--services-file".into()];
            self.agent_arguments.extend(arguments);
            self.agent_arguments.push(file.to_string_lossy().into_owned());
        }
        let nodes_from = match self.node_file {
            true => NodesFrom::File(folder.join("nodes.json")),
            false => NodesFrom::ApiServer(ApiServer::new()?),
        };
        let mut lab = Lab {
            topology: Topology::build(registration.name(), &self)?,
            nodes_from,
            nodes: Vec::new(),
            kept: false,
            registration,
        };
        lab.write_node_list(&node_list::render(&lab.topology, 0)?)?;
        let source = lab.nodes_from.open(&lab.topology)?;
        for index in 0..self.nodes {
            let node = Node::new(lab.name(), &lab.topology.nodes[index], &source, &binaries, &self)?;
            lab.nodes.push(node);
        }
        if self.agents {
            for node in &lab.nodes {
                node.spawn_agent()?;
            }
            for node in &lab.nodes {
                node.wait_ready()?;
            }
        }
        Ok(lab)
    }
}

/// Returns `pwlab<pid>x<number>`, so that one or many processes can have several labs at once.
fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}{}x{}", cleanup::PREFIX, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
