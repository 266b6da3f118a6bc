//! Two or more nodes, an underlay and a world, as a test or the demonstration asks for them.
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
//! Everything is named after the lab and the process that made it, and removed when the [`Lab`] is dropped: after a
//! panic and on Ctrl-C too. What a killed process left is removed by the next lab.

pub mod frames;
pub mod reference;
pub mod traffic;
pub mod tun;

mod agent;
mod cleanup;
mod cni;
mod counters;
mod kube_proxy;
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
pub use kube_proxy::KubeProxy;
pub use node::Node;
pub use ns::Ns;
pub use pod::Pod;
pub use topology::connect;

use crate::api_server::ApiServer;
use crate::lab::agent::Binaries;
use crate::lab::cleanup::Registration;
use crate::lab::topology::Topology;

/// Where every node finds the API server. Not port 6443: services of tests lead there.
const API_SERVER: &str = "127.0.0.1:7443";

/// How pod packets travel between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Inside VXLAN.
    Vxlan,
    /// As they are.
    Direct,
}

impl Mode {
    /// As the agent's `--mode` has it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Vxlan => "vxlan",
            Mode::Direct => "direct",
        }
    }
}

/// Whether a test that has a longer version should run it: `cargo xtask soak` asks for it.
pub fn is_soak() -> bool {
    std::env::var_os("PODWIRE_SOAK").is_some()
}

/// Nodes with running agents, an underlay and a world.
///
/// | namespace | addresses |
/// |---|---|
/// | node N (from 1) | `eth0` 10.200.0.N/24; with a router 10.200.N.1/24. Pods 10.244.N.0/24. Default route to the underlay |
/// | underlay | unless a cable joins the nodes: a bridge with 10.200.0.254/24; with a router 10.200.N.254/24 towards node N |
/// | world | `eth0` 198.51.100.10/24 behind the underlay, which routes between all |
///
/// IPv6 is off everywhere, so that no neighbour discovery of the kernel's shows in counters.
#[derive(Debug)]
pub struct Lab {
    nodes: Vec<Node>,
    topology: Topology,
    nodes_from: NodesFrom,
    kept: bool,
    registration: Registration,
}

impl Lab {
    /// A lab of two nodes in VXLAN mode, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            name: None,
            mode: Mode::Vxlan,
            nodes: 2,
            underlay_mtu: 1500,
            router: false,
            cable: false,
            docker: false,
            agents: true,
            node_file: false,
            agent_arguments: Vec::new(),
            agent_wrapper: Vec::new(),
            binaries: None,
        }
    }

    /// A node, from 0: `node(0)` is `node1`.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What joins the nodes and the world: a bridge or a router.
    pub fn underlay(&self) -> &Ns {
        &self.topology.underlay
    }

    /// A host that knows nothing of the cluster.
    pub fn world(&self) -> &Ns {
        &self.topology.world
    }

    /// 198.51.100.10.
    pub fn world_address(&self) -> IpAddr {
        topology::WORLD
    }

    /// An empty namespace, loopback up, removed with the lab: what a pod forwards for, for example.
    ///
    /// # Errors
    /// When a namespace of that name exists, or the kernel refuses.
    pub fn add_namespace(&self, name: &str) -> Result<Ns> {
        Ns::create(&format!("{}-{name}", self.name()))
    }

    /// A host on the underlay that is no node, with `eth0` and an address of 10.200.0.0/24 (none of the nodes').
    ///
    /// # Errors
    /// When the lab has a router in place of the bridge, or the kernel refuses.
    pub fn add_host(&self, name: &str, address: IpAddr) -> Result<Ns> {
        let host = self.add_namespace(name)?;
        self.topology.join_bridge(&host, name, address)?;
        Ok(host)
    }

    /// Makes the router's path towards a node (from 0) smaller: it answers what is larger and may not be fragmented
    /// with ICMP.
    ///
    /// # Errors
    /// When the lab has no router.
    pub fn set_path_mtu(&self, node: usize, mtu: u32) -> Result<()> {
        self.topology.set_path_mtu(node, mtu)
    }

    /// The Node list that the agents have, as `kubectl get nodes -o json` prints it.
    ///
    /// # Errors
    /// When the file cannot be read.
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

    /// Replaces the Node list: a file at once (rename), whatever the text is; at the API server object by object.
    ///
    /// # Errors
    /// When the file cannot be written, or what an API server is to have is no list.
    pub fn write_node_list(&self, text: &str) -> Result<()> {
        match &self.nodes_from {
            NodesFrom::ApiServer(server) => {
                server.set(&serde_json::from_str(text).context("an API server has lists only")?);
                Ok(())
            }
            NodesFrom::File(path) => node_list::replace(path, text),
        }
    }

    /// What the agents ask for nodes.
    ///
    /// # Errors
    /// When they read a file ([`Builder::node_file`]).
    pub fn api_server(&self) -> Result<&ApiServer> {
        match &self.nodes_from {
            NodesFrom::ApiServer(server) => Ok(server),
            NodesFrom::File(_) => bail!("the agents of this lab read a file"),
        }
    }

    /// A Node list of the lab's nodes and of so many others, which are nowhere.
    ///
    /// # Errors
    /// When the list that it is made of does not decode.
    pub fn node_list_with(&self, others: u16) -> Result<String> {
        node_list::render(&self.topology, others)
    }

    /// The lab's name: the first part of every namespace's, and the name of its folder on the BPF filesystem.
    pub fn name(&self) -> &str {
        self.registration.name()
    }

    /// Lets everything live on when the lab is dropped; [`remove`] takes it away.
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

/// Where agents have their nodes from.
#[derive(Debug)]
enum NodesFrom {
    /// Served to each node on its own loopback, so that no link of the lab is needed for it.
    ApiServer(ApiServer),
    File(PathBuf),
}

impl NodesFrom {
    /// Makes it reachable from the nodes. Gives the agents' arguments for it.
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

/// What a lab is to be. Made by [`Lab::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    name: Option<String>,
    mode: Mode,
    nodes: usize,
    underlay_mtu: u32,
    router: bool,
    cable: bool,
    docker: bool,
    agents: bool,
    node_file: bool,
    agent_arguments: Vec<String>,
    agent_wrapper: Vec<String>,
    binaries: Option<PathBuf>,
}

impl Builder {
    /// A name of its own in place of one made of the process id: for a lab that outlives its process.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// How pod packets travel between nodes.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// How many nodes; 2 unless told otherwise.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// MTU of every underlay link, bytes.
    pub fn underlay_mtu(mut self, mtu: u32) -> Self {
        self.underlay_mtu = mtu;
        self
    }

    /// A router in place of the bridge: no two nodes are on one link, and [`Lab::set_path_mtu`] works.
    pub fn router(mut self, router: bool) -> Self {
        self.router = router;
        self
    }

    /// A cable in place of the bridge: the node's uplink is one end of a veth pair, the other node's the other end, or with one
    /// node the world's. So nothing but the ends' own work is on the way, which is what a measurement wants.
    pub fn cable(mut self, cable: bool) -> Self {
        self.cable = cable;
        self
    }

    /// Nodes that had Docker before they had a network: the bridge `docker0`, 172.17.0.1/16, comes before the uplink in
    /// the kernel's list of devices. That is where masquerading looks for an address when the device that a packet
    /// leaves by has none.
    pub fn docker(mut self, docker: bool) -> Self {
        self.docker = docker;
        self
    }

    /// Without agents nothing but the namespaces, links and folders is made; [`Node::start_agent`] starts one later.
    pub fn agents(mut self, agents: bool) -> Self {
        self.agents = agents;
        self
    }

    /// A file of Node objects in place of an API server: for a lab that outlives its process, and for what only files do.
    pub fn node_file(mut self) -> Self {
        self.node_file = true;
        self
    }

    /// More arguments for every agent.
    pub fn agent_arguments(mut self, arguments: &[&str]) -> Self {
        self.agent_arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// A command that ends in executing what its last arguments say, in its own place: every agent and uninstall is started by it. `setpriv` and
    /// `unshare` are such.
    pub fn agent_wrapper(mut self, command: &[&str]) -> Self {
        self.agent_wrapper = command.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    /// The folder with `podwire` and `podwire-cni`. Otherwise `PODWIRE_BIN_DIR`, then the folder that the running
    /// executable was built into.
    pub fn binaries(mut self, folder: &Path) -> Self {
        self.binaries = Some(folder.to_owned());
        self
    }

    /// Makes it, and waits until the agents serve.
    ///
    /// # Errors
    /// When not root, when a binary is missing, when the kernel refuses, or when an agent is not ready in time (with
    /// the end of its log). Whatever was made by then is removed.
    pub fn build(self) -> Result<Lab> {
        ensure!(rustix::process::geteuid().is_root(), "the lab makes network namespaces: run it as root");
        let binaries = Binaries::find(self.binaries.as_deref())?;
        if self.agents {
            binaries.check()?;
        }
        // From here on a failure drops the registration, which removes what there is.
        let registration = Registration::new(self.name.clone().unwrap_or_else(unique_name))?;
        let folder = cleanup::folder(registration.name());
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
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

/// `pwlab<pid>x<number>`: several labs may be there at once, of one process or of many.
fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}{}x{}", cleanup::PREFIX, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
