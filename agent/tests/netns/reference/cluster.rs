//! Two nodes, their pods and a world, with one of the networks that the test compares. A chain of
//! plugins makes the pods, as a runtime calls them. Podwire's chain has one plugin.

use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use xtask::lab::reference::{self, Join, Masquerade};
use xtask::lab::{CniCall, CniOutput, Lab, Mode, Node, Ns, traffic};

use crate::FAMILIES;
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

/// The nodes, pods and world on which the cases run, with their addresses of one family.
pub struct Cluster {
    /// The pod with the hostPorts.
    pub pod: Place,
    /// A pod on the same node.
    pub near: Place,
    /// A pod on the other node.
    pub far: Place,
    /// The node with the hostPorts.
    pub node: Place,
    /// The other node.
    pub other: Place,
    /// A host outside the cluster.
    pub world: Place,
    /// The place of the family among those of the lab.
    pub family: usize,
    /// The lab of the cluster.
    pub lab: Rc<Lab>,
    network: Network,
    next_port: AtomicU16,
    _behind_closed: Rc<(TcpListener, UdpSocket)>,
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
    /// Returns a cluster with its pods, as seen in each family.
    pub fn of_each_family(network: Network) -> Result<[Self; 2]> {
        let builder = Lab::builder();
        let lab = match network {
            Network::Podwire(mode) => builder.mode(mode).build()?,
            Network::BridgeAndPortmap | Network::Flannel => builder.agents(false).build()?,
        };
        if let Some(masquerade) = network.masquerade() {
            reference::set_up(&lab, JOIN, masquerade)?;
        }
        let mut wanted = vec![(ANYWHERE, PORT, None), (CLOSED, PORT + 1, None)];
        wanted.extend(lab.node(0).addresses().into_iter().map(|address| (HERE, PORT, Some(address))));
        let of_protocols =
            |(host, pod, host_ip)| ["tcp", "udp"].map(|protocol| (host, pod, protocol, host_ip));
        let wanted: Vec<HostPort> = wanted.into_iter().flat_map(of_protocols).collect();
        let pod = |node: usize, name: &str, wanted: &[HostPort]| {
            Made::new(network, lab.node(node), name, wanted).with_context(|| format!("pod {name}"))
        };
        let pods = [pod(0, "pod", &wanted)?, pod(0, "near", &[])?, pod(1, "far", &[])?];
        // `::` stands for the addresses of both families.
        let behind_closed = Rc::new(bound(lab.node(0), (Ipv6Addr::UNSPECIFIED.into(), CLOSED))?);
        let (lab, patience) = (Rc::new(lab), network.patience());
        let of_family = |family: usize| -> Result<Self> {
            let place = |ns: &Ns, addresses: &[IpAddr]| Place::new(ns.clone(), addresses[family], patience);
            let [pod, near, far] = pods.each_ref().map(|pod| place(&pod.ns, &pod.addresses));
            let [node, other] = [0, 1].map(|node| place(lab.node(node), &lab.node(node).addresses()));
            Ok(Self {
                pod: pod?,
                near: near?,
                far: far?,
                node: node?,
                other: other?,
                world: place(lab.world(), &lab.world_addresses())?,
                family,
                lab: Rc::clone(&lab),
                network,
                next_port: AtomicU16::new(21_000),
                _behind_closed: Rc::clone(&behind_closed),
            })
        };
        let [one, other] = FAMILIES.map(of_family);
        Ok([one?, other?])
    }

    /// Adds another pod on the node with the hostPorts.
    pub fn add_pod(&self, name: &str, wanted: &[HostPort]) -> Result<Pod> {
        let name = self.name_of(name);
        let made = Made::new(self.network, self.lab.node(0), &name, wanted);
        let Made { ns, addresses, chain } = made.with_context(|| format!("pod {name}"))?;
        Ok(Pod { place: Place::new(ns, addresses[self.family], self.patience())?, chain })
    }

    /// Adds a pod like [`Self::add_pod`] and deletes it at once. Returns the answer to its ADD,
    /// which may be a refusal.
    pub fn try_pod(&self, name: &str, wanted: &[HostPort]) -> Result<CniOutput> {
        let mut chain = self.network.calls(self.lab.node(0), &self.name_of(name), wanted);
        Ns::create_as_the_kernel_does(&chain[0].container_id)?;
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

    /// Returns the name of a pod in this family. The namespaces of deleted pods last as long as the
    /// lab.
    fn name_of(&self, pod: &str) -> String {
        format!("{pod}-{}", self.family)
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

/// A new pod without servers.
struct Made {
    ns: Ns,
    /// Of each family, in the order of the lab.
    addresses: [IpAddr; 2],
    chain: Vec<CniCall>,
}

impl Made {
    fn new(network: Network, node: &Node, name: &str, wanted: &[HostPort]) -> Result<Self> {
        let mut chain = network.calls(node, name, wanted);
        let ns = Ns::create_as_the_kernel_does(&chain[0].container_id)?;
        let output = reference::add(&mut chain)?;
        ensure!(output.success, "ADD failed: {}\n{}", output.answer, output.stderr);
        let of_family = |family: usize| -> Result<IpAddr> {
            let address = output.answer["ips"][family]["address"].as_str();
            let address = address.and_then(|text| text.split('/').next());
            Ok(address.with_context(|| format!("too few addresses in {}", output.answer))?.parse()?)
        };
        let [one, other] = FAMILIES.map(of_family);
        Ok(Self { ns, addresses: [one?, other?], chain })
    }
}

impl Pod {
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
