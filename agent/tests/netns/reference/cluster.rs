//! Two nodes, their pods and a world, with one of the networks that the test compares. A chain of
//! plugins makes the pods, as a runtime calls them. Podwire's chain has one plugin.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::ops::Deref;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use xtask::lab::reference::{self, Join, Masquerade};
use xtask::lab::{CniCall, CniOutput, Lab, Mode, Node, Ns, traffic};

use crate::host_ports::mappings;
use crate::sockets::UdpSocket;

/// The port on which all servers listen.
pub const PORT: u16 = 8080;
/// A hostPort of the pod on every address of its node.
pub const ANYWHERE: u16 = 9088;
/// A hostPort of the pod on the node's InternalIP.
pub const HERE: u16 = 9089;
/// A hostPort with a port of the pod behind it on which no socket listens. The node has a listener
/// on this port itself. So a client that gets a refusal has reached the pod.
pub const CLOSED: u16 = 9090;
/// The way in which the nodes' bridges are joined.
const JOIN: Join = Join::Routes;

/// The plugins that make the pods and carry their packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The reference plugins, with `bridge`'s own masquerading (`ipMasq`).
    BridgeAndPortmap,
    /// The reference plugins, with flannel's rules instead.
    Flannel,
    /// Podwire.
    Podwire(Mode),
}

impl Network {
    /// Returns a column's heading.
    pub fn name(self) -> &'static str {
        match self {
            Network::BridgeAndPortmap => "bridge + portmap",
            Network::Flannel => "with flannel's rules",
            Network::Podwire(Mode::Vxlan) => "podwire, VXLAN",
            Network::Podwire(Mode::Direct) => "podwire, direct",
        }
    }

    fn masquerade(self) -> Option<Masquerade> {
        match self {
            Network::BridgeAndPortmap => Some(Masquerade::Bridge),
            Network::Flannel => Some(Masquerade::Iptables),
            Network::Podwire(_) => None,
        }
    }

    /// Returns the calls that add a pod, in order.
    fn calls(self, node: &Node, name: &str, wanted: &[HostPort]) -> Vec<CniCall> {
        let runtime_config = mappings(wanted);
        match self.masquerade() {
            None => vec![node.cni_call("ADD", name, &runtime_config)],
            Some(masquerade) => reference::calls(node, name, JOIN, masquerade, &runtime_config),
        }
    }

    /// Returns the longest time that any end waits. It is short for the reference plugins, which
    /// are expected to fail cases. A SYN's first repetition (after a second) still has time.
    fn patience(self) -> Duration {
        match self {
            Network::BridgeAndPortmap | Network::Flannel => Duration::from_millis(1500),
            Network::Podwire(_) => Duration::from_secs(10),
        }
    }
}

/// The nodes, pods and world on which the cases run.
pub struct Cluster {
    /// The pod with the hostPorts.
    pub pod: Pod,
    /// A pod on the same node.
    pub near: Pod,
    /// A pod on the other node.
    pub far: Pod,
    /// The node with the hostPorts.
    pub node: Place,
    /// The other node.
    pub other: Place,
    /// A host outside the cluster.
    pub world: Place,
    /// The lab of the cluster.
    pub lab: Lab,
    network: Network,
    next_port: AtomicU16,
    _behind_closed: (TcpListener, UdpSocket),
}

/// A namespace with a server for each protocol, bound as long as the cluster exists.
pub struct Place {
    /// The namespace.
    pub ns: Ns,
    /// Its own address.
    pub address: IpAddr,
    /// The TCP server, at [`PORT`].
    pub tcp: TcpListener,
    /// The UDP server, at [`PORT`].
    pub udp: UdpSocket,
}

/// A pod, and the calls that made it.
pub struct Pod {
    place: Place,
    chain: Vec<CniCall>,
}

/// The node's port, the pod's port, the protocol, the hostIP.
pub type HostPort = (u16, u16, &'static str, Option<IpAddr>);

impl Cluster {
    /// Returns a cluster with its pods.
    pub fn new(network: Network) -> Result<Self> {
        let builder = Lab::builder();
        let lab = match network {
            Network::Podwire(mode) => builder.mode(mode).build()?,
            Network::BridgeAndPortmap | Network::Flannel => builder.agents(false).build()?,
        };
        if let Some(masquerade) = network.masquerade() {
            reference::set_up(&lab, JOIN, masquerade)?;
        }
        let address = lab.node(0).address();
        let wanted = [
            (ANYWHERE, PORT, "tcp", None),
            (ANYWHERE, PORT, "udp", None),
            (HERE, PORT, "tcp", Some(address)),
            (HERE, PORT, "udp", Some(address)),
            (CLOSED, PORT + 1, "tcp", None),
            (CLOSED, PORT + 1, "udp", None),
        ];
        let patience = network.patience();
        let pod = |node: usize, name: &str, wanted: &[HostPort]| {
            Pod::add(network, lab.node(node), name, wanted).with_context(|| format!("pod {name}"))
        };
        let place = |ns: &Ns, address| Place::new(ns.clone(), address, patience);
        Ok(Self {
            pod: pod(0, "pod", &wanted)?,
            near: pod(0, "near", &[])?,
            far: pod(1, "far", &[])?,
            node: place(lab.node(0), address)?,
            other: place(lab.node(1), lab.node(1).address())?,
            world: place(lab.world(), lab.world_address())?,
            _behind_closed: bound(lab.node(0), (Ipv4Addr::UNSPECIFIED.into(), CLOSED))?,
            network,
            next_port: AtomicU16::new(21_000),
            lab,
        })
    }

    /// Adds another pod on the node with the hostPorts.
    pub fn add_pod(&self, name: &str, wanted: &[HostPort]) -> Result<Pod> {
        Pod::add(self.network, self.lab.node(0), name, wanted).with_context(|| format!("pod {name}"))
    }

    /// Adds a pod like [`Self::add_pod`] and deletes it at once. Returns the answer to its ADD,
    /// which may be a refusal.
    pub fn try_pod(&self, name: &str, wanted: &[HostPort]) -> Result<CniOutput> {
        let mut chain = self.network.calls(self.lab.node(0), name, wanted);
        Ns::create(&chain[0].container_id)?;
        let answer = reference::add(&mut chain)?;
        reference::delete(&chain)?;
        Ok(answer)
    }

    /// Returns the longest time that any end waits.
    pub fn patience(&self) -> Duration {
        self.network.patience()
    }

    /// Returns a port that no case has had, and that the kernel gives to no other socket by chance.
    pub fn unused_port(&self) -> u16 {
        self.next_port.fetch_add(1, Ordering::Relaxed)
    }
}

impl Place {
    fn new(ns: Ns, address: IpAddr, patience: Duration) -> Result<Self> {
        // A UDP server that is bound to all addresses would answer from the one that the kernel
        // prefers.
        let (tcp, udp) = bound(&ns, (address, PORT))?;
        // This is also the limit of `accept` (socket(7)).
        set_socket_timeout(&tcp, Timeout::Recv, Some(patience))?;
        udp.set_read_timeout(Some(patience))?;
        Ok(Self { ns, address, tcp, udp })
    }

    /// Returns whether an address is its own: only then it can be bound.
    pub fn has(&self, address: IpAddr) -> Result<bool> {
        Ok(self.ns.enter(|| UdpSocket::bind((address, 0)))?.is_ok())
    }
}

impl Pod {
    fn add(network: Network, node: &Node, name: &str, wanted: &[HostPort]) -> Result<Self> {
        let mut chain = network.calls(node, name, wanted);
        let ns = Ns::create(&chain[0].container_id)?;
        let output = reference::add(&mut chain)?;
        ensure!(output.success, "ADD failed: {}\n{}", output.answer, output.stderr);
        let address = output.answer["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
        let address = address.with_context(|| format!("no address in {}", output.answer))?.parse()?;
        Ok(Self { place: Place::new(ns, address, network.patience())?, chain })
    }

    /// Deletes the pod as a runtime does. Its namespace goes with the lab.
    pub fn delete(self) -> Result<()> {
        reference::delete(&self.chain)
    }
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// Binds a server for each protocol.
fn bound(ns: &Ns, to: (IpAddr, u16)) -> Result<(TcpListener, UdpSocket)> {
    let bind = || Ok((TcpListener::bind(to)?, UdpSocket::bind(to)?));
    ns.enter(|| traffic::bound(bind))?.with_context(|| format!("listen at {to:?} in {}", ns.name()))
}
