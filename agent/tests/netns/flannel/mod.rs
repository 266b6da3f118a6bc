//! A cluster in the middle of its migration. `node1` is ours. `node2` is still flannel's: it has a
//! kernel VXLAN device for each family, a bridge and the reference plugins, set up as flannel does
//! it.

mod leftovers;
mod paths;
mod stale;

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

use anyhow::{Context as _, Result, ensure};
use podwire_core::model::Family;
use serde_json::{Value, json};
use xtask::lab::reference::{self, Join, Masquerade};
use xtask::lab::{Builder, Lab, Node, Ns, Pod, traffic};

use crate::host_ports::mappings;

/// Link addresses of a node's two devices, with IPv4 and with IPv6 outside.
type Macs = [[u8; 6]; 2];

/// The link addresses that flannel's devices on `node1` had before the node was ours. Their
/// annotations stay.
const OLD_MACS: Macs = [[0x6a, 0x0f, 0x33, 0xb2, 0x71, 0x5c], [0x6a, 0x0f, 0x33, 0xb2, 0x71, 0x6c]];
/// The pod's own port, behind the hostPorts.
const PORT: u16 = 8080;
/// The hostPort of each of the two pods.
const HOST_PORT: u16 = 9088;

/// A namespace, and its address of a family.
type End<'a> = (&'a Ns, IpAddr);

/// The two nodes, and a pod with hostPorts on each.
struct Scene {
    /// The pod of our node.
    pod: Pod,
    /// The pod of flannel's node.
    far: FlannelPod,
    lab: Lab,
}

/// A pod that the reference plugins have made.
struct FlannelPod {
    ns: Ns,
    /// One of each family, IPv4 first.
    addresses: Vec<IpAddr>,
}

impl Deref for FlannelPod {
    type Target = Ns;

    fn deref(&self) -> &Ns {
        &self.ns
    }
}

impl Scene {
    fn new(builder: Builder) -> Self {
        Self::try_new(builder).unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn try_new(builder: Builder) -> Result<Self> {
        let lab = builder.agents(false).build()?;
        let (ours, flannels) = (lab.node(0), lab.node(1));
        reference::set_up_node(flannels, Join::Vxlan, Masquerade::Iptables)?;
        reference::add_peer(flannels, ours, &OLD_MACS)?;
        announce(&lab, [Some(OLD_MACS), Some(macs(flannels))])?;
        ours.start_agent()?;
        let wanted = mappings(&[(HOST_PORT, PORT, "tcp", None), (HOST_PORT, PORT, "udp", None)]);
        Ok(Self {
            pod: ours.add_pod_with("pod", &wanted)?,
            far: add_pod(flannels, "far", Join::Vxlan, &wanted)?,
            lab,
        })
    }

    /// Returns our pod with its address of a family (0: IPv4).
    fn pod(&self, family: usize) -> End<'_> {
        (&self.pod, self.pod.addresses()[family])
    }

    /// Returns flannel's pod with its address of a family (0: IPv4).
    fn far(&self, family: usize) -> End<'_> {
        (&self.far, self.far.addresses[family])
    }

    fn ours(&self) -> &Node {
        self.lab.node(0)
    }

    fn flannels(&self) -> &Node {
        self.lab.node(1)
    }

    /// Returns the sources, one of each family, of packets that flannel's node itself sends to
    /// pods.
    fn flannels_devices(&self) -> [IpAddr; 2] {
        ["10.244.2.0", "fd00:10:244:2::"].map(|address| address.parse().unwrap())
    }
}

/// Returns the link addresses of flannel's devices on a node.
fn macs(node: &Node) -> Macs {
    reference::macs(node).unwrap().try_into().unwrap()
}

/// Writes flannel's annotations for each node into the Node list; `None`: no annotation.
fn announce(lab: &Lab, macs: [Option<Macs>; 2]) -> Result<()> {
    let mut list = lab.node_list()?;
    for (index, macs) in macs.into_iter().enumerate() {
        let annotations =
            macs.map_or_else(|| json!({}), |macs| reference::annotations(lab.node(index), &macs));
        list["items"][index]["metadata"]["annotations"] = annotations;
    }
    lab.write_node_list(&list.to_string())
}

fn add_pod(node: &Node, name: &str, join: Join, runtime_config: &Value) -> Result<FlannelPod> {
    let mut calls = reference::calls(node, name, join, Masquerade::Iptables, runtime_config);
    let ns = Ns::create(&calls[0].container_id)?;
    let output = reference::add(&mut calls)?;
    ensure!(output.success, "ADD failed: {}\n{}", output.answer, output.stderr);
    let ips = output.answer["ips"].as_array().with_context(|| format!("no ips in {}", output.answer))?;
    let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
    let addresses: Option<Vec<IpAddr>> = ips.iter().map(address).collect();
    Ok(FlannelPod { addresses: addresses.with_context(|| output.answer.to_string())?, ns })
}

/// Returns whether a ping is answered within a second.
fn answers(from: &Ns, to: IpAddr) -> bool {
    from.output(&["ping", "-n", "-c1", "-W1", &to.to_string()]).unwrap().status.success()
}

/// Checks that a namespace reaches a node, and with which source the node sees it. The datagram
/// server is bound to the node's address. Otherwise the kernel would take the answer's source from
/// the route. Flannel's routes have another source, and so have our routes to a node that was
/// flannel's. The family is that of the source.
fn reach_node(from: &Ns, seen_as: IpAddr, node: &Node) -> Result<()> {
    let address = Family::of(seen_as).first_of(node.addresses()).context("the node lacks the family")?;
    let destination = SocketAddr::new(address, PORT);
    let route = traffic::Route { destination, listen: destination };
    let stream = traffic::tcp_exchange_on(from, node, route, 1 << 20).context("TCP")?;
    let datagram = traffic::udp_exchange_on(from, node, route, 60_000).context("UDP")?;
    traffic::ping(from, address, 20_000)?;
    for exchange in [stream, datagram] {
        let seen = exchange.peer_seen_by_server.ip();
        ensure!(seen == seen_as, "it is seen as {seen}");
    }
    Ok(())
}

/// Asks a hostPort by TCP and UDP. Returns the clients' addresses that the pod behind it saw.
fn ask_host_port(from: &Ns, to: &Ns, address: IpAddr) -> Result<[IpAddr; 2]> {
    let route = traffic::Route::translated(SocketAddr::new(address, HOST_PORT), PORT);
    let stream = traffic::tcp_exchange_on(from, to, route, 1 << 20).context("TCP")?;
    let datagram = traffic::udp_exchange_on(from, to, route, 4000).context("UDP")?;
    Ok([stream, datagram].map(|exchange| exchange.peer_seen_by_server.ip()))
}
