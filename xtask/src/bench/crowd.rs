//! A cluster of the largest supported size: the nodes of its list, the pods of one node, and their
//! flows.

use std::io::{IoSlice, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg};
use xtask::lab::{Families, Lab, Node, Ns, Pod};

use crate::bench::site::{self, Place, Programs, Way};

/// Nodes of the cluster.
pub(crate) const NODES: u16 = 5000;
/// Pods of the first node. Its podCIDR has room for three more.
pub(crate) const PODS: usize = 250;
/// Flows to the world, from the last of these pods.
const FLOWS: usize = 100_000;
/// Table entries of the flows: one for each direction of a flow.
const FLOW_ENTRIES: usize = 2 * FLOWS;
/// Twice the default size of the table. In a table of the default size, the unanswered flows would
/// fill three quarters, and then the agent ends such flows sooner.
pub(crate) const WAY: Way<'_> = Way { arguments: &["--max-translations", "524288"], ..Way::VXLAN };
/// Ports of the world to which each of the pod's sockets sends.
const FLOWS_OF_A_SOCKET: u16 = 25_000;
/// The first of these ports. It is above the VXLAN port: in VXLAN mode, the programs drop what a
/// pod sends to that port of the world.
const FIRST_PORT: u16 = 10_000;
/// Datagrams in one system call.
const BATCH: usize = 50;
/// A host in the world. The second node drops the packets for it.
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 254);
/// The longest wait for the agent, which counts the entries of its tables every ten seconds.
const COUNTED: Duration = Duration::from_secs(25);
/// The longest time that agents may take to apply a Node list.
const APPLIED: Duration = Duration::from_secs(60);
const METRICS: &str = "127.0.0.1:9790";

/// A large cluster in which two nodes are real. The first has [`PODS`] pods, the second has one.
pub(crate) struct Crowd {
    /// Pods of the first node. The last one sends the flows.
    pub(crate) pods: Vec<Pod>,
    /// A pod of the second node.
    pub(crate) elsewhere: Pod,
    pub(crate) lab: Lab,
    sockets: Vec<UdpSocket>,
}

impl Crowd {
    /// Makes everything except the flows.
    pub(crate) fn assemble(programs: &Programs) -> Result<Self> {
        let lab = site::podwire(programs, WAY, Place::CrossNode, Families::V4)?;
        lab.write_node_list(&lab.node_list_with(NODES - 2)?)?;
        lab.nodes().iter().try_for_each(|node| wait_for(node, "podwire_nodes", NODES.into(), APPLIED))?;
        let pods: Result<Vec<Pod>> =
            (0..PODS).map(|number| lab.node(0).add_pod(&format!("pod{number}"))).collect();
        let (pods, elsewhere) = (pods?, lab.node(1).add_pod("elsewhere")?);
        drop_the_worlds_packets(&lab)?;
        let sockets = FLOWS / usize::from(FLOWS_OF_A_SOCKET);
        let client = &pods[PODS - 1];
        let sockets: Result<Vec<UdpSocket>> = (0..sockets).map(|_| socket(client)).collect();
        Ok(Self { sockets: sockets?, pods, elsewhere, lab })
    }

    /// Returns the node with the pods.
    pub(crate) fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// Sends a datagram of every flow. Nothing answers, so the agent removes a flow after
    /// 30 seconds.
    pub(crate) fn refresh_flows(&self) -> Result<()> {
        self.sockets
            .iter()
            .try_for_each(|socket| send_to_all(socket).context("send a datagram of every flow"))
    }

    /// Waits until the agent has counted all flows. Fails if there are too few.
    pub(crate) fn check_flows(&self) -> Result<()> {
        wait_for(self.node(), "podwire_translations", FLOW_ENTRIES, COUNTED)
    }
}

/// Waits until a gauge of a node's agent has reached a value.
fn wait_for(node: &Node, gauge: &str, value: usize, patience: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let now = read_gauge(node, gauge)?;
        if now >= value {
            return Ok(());
        }
        ensure!(start.elapsed() < patience, "{}: {gauge} is {now} and not {value}", node.name());
        std::thread::sleep(Duration::from_millis(200));
    }
}

pub(crate) fn read_gauge(node: &Node, gauge: &str) -> Result<usize> {
    let ask = || -> Result<String> {
        let mut stream = TcpStream::connect(METRICS)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: podwire\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = node.enter(ask)?.with_context(|| format!("ask {}'s agent for metrics", node.name()))?;
    let value = text.lines().find_map(|line| line.strip_prefix(gauge)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no {gauge} in {text}"))?.trim().parse()?)
}

/// Makes the second node the first node's router to the world. The second node drops the packets to
/// the world.
fn drop_the_worlds_packets(lab: &Lab) -> Result<()> {
    let (node, other) = (lab.node(0), lab.node(1));
    let mac = other.mac(other.uplink())?.map(|byte| format!("{byte:02x}")).join(":");
    node.ip(&format!("neighbour add {ROUTER} lladdr {mac} dev {} nud permanent\n", node.uplink()))?;
    other.ip(&format!("route add blackhole {WORLD}/32\n"))
}

fn socket(pod: &Ns) -> Result<UdpSocket> {
    Ok(pod.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??)
}

fn send_to_all(socket: &UdpSocket) -> Result<()> {
    let payload = [0];
    let datagrams = [[IoSlice::new(&payload)]; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    for batch in 0..FLOWS_OF_A_SOCKET / BATCH as u16 {
        let mut sent = 0;
        while sent < BATCH {
            let first = FIRST_PORT + batch * BATCH as u16;
            let address = |index| SockaddrIn::from(SocketAddrV4::new(WORLD, first + index as u16));
            let addresses: Vec<_> = (sent..BATCH).map(|index| Some(address(index))).collect();
            let results = sendmmsg(
                socket.as_raw_fd(),
                &mut headers,
                &datagrams[sent..],
                &addresses,
                [],
                MsgFlags::empty(),
            )?;
            sent += results.count();
        }
    }
    Ok(())
}
