//! A cluster in the middle of its migration. `node1` is ours. `node2` is still flannel's: it has a
//! kernel VXLAN device, a bridge and the reference plugins, set up as flannel does it.

mod leftovers;
mod paths;
mod stale;

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::reference::{self, Join, Masquerade};
use xtask::lab::{Builder, Lab, Node, Ns, Pod, traffic};

use crate::host_ports::mappings;

/// The link address that flannel's device on `node1` had before the node was ours. Its annotation
/// stays.
const OLD_MAC: [u8; 6] = [0x6a, 0x0f, 0x33, 0xb2, 0x71, 0x5c];
/// The pod's own port, behind the hostPorts.
const PORT: u16 = 8080;
/// The hostPort of each of the two pods.
const HOST_PORT: u16 = 9088;

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
    address: IpAddr,
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
        reference::add_peer(flannels, ours, OLD_MAC)?;
        announce(&lab, [Some(OLD_MAC), Some(flannels.mac(reference::VXLAN)?)])?;
        ours.start_agent()?;
        let wanted = mappings(&[(HOST_PORT, PORT, "tcp", None), (HOST_PORT, PORT, "udp", None)]);
        Ok(Self { pod: ours.add_pod_with("pod", &wanted)?, far: add_pod(flannels, "far", &wanted)?, lab })
    }

    fn ours(&self) -> &Node {
        self.lab.node(0)
    }

    fn flannels(&self) -> &Node {
        self.lab.node(1)
    }

    /// Returns the source of packets that flannel's node itself sends to pods.
    fn flannels_device(&self) -> IpAddr {
        "10.244.2.0".parse().unwrap()
    }
}

/// Writes flannel's annotations for each node into the Node list; `None`: no annotation.
fn announce(lab: &Lab, macs: [Option<[u8; 6]>; 2]) -> Result<()> {
    let mut list = lab.node_list()?;
    for (index, mac) in macs.into_iter().enumerate() {
        let annotations = mac.map_or_else(|| json!({}), |mac| reference::annotations(lab.node(index), mac));
        list["items"][index]["metadata"]["annotations"] = annotations;
    }
    lab.write_node_list(&list.to_string())
}

fn add_pod(node: &Node, name: &str, runtime_config: &Value) -> Result<FlannelPod> {
    let mut calls = reference::calls(node, name, Join::Vxlan, Masquerade::Iptables, runtime_config);
    let ns = Ns::create(&calls[0].container_id)?;
    let output = reference::add(&mut calls)?;
    ensure!(output.success, "ADD failed: {}\n{}", output.answer, output.stderr);
    let address = output.answer["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
    let address = address.with_context(|| format!("no address in {}", output.answer))?.parse()?;
    Ok(FlannelPod { ns, address })
}

/// Returns whether a ping is answered within a second.
fn answers(from: &Ns, to: IpAddr) -> bool {
    from.output(&["ping", "-n", "-c1", "-W1", &to.to_string()]).unwrap().status.success()
}

/// Checks that a namespace reaches a node, and with which source the node sees it. The datagram
/// server is bound to the node's address. Otherwise the kernel would take the answer's source from
/// the route. Flannel's routes have another source, and so have our routes to a node that was
/// flannel's.
fn reach_node(from: &Ns, seen_as: IpAddr, node: &Node) -> Result<()> {
    let destination = SocketAddr::new(node.address(), PORT);
    let route = traffic::Route { destination, listen: destination };
    let stream = traffic::tcp_exchange_on(from, node, route, 1 << 20).context("TCP")?;
    let datagram = traffic::udp_exchange_on(from, node, route, 60_000).context("UDP")?;
    traffic::ping(from, node.address(), 20_000)?;
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
