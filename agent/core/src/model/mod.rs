//! What the agent knows: the node list, this machine's links and the pods. Plain data, without
//! access to the kernel or the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podwire_common::addr::Mac;
use podwire_common::names::VXLAN_OVERHEAD;

pub use endpoint::{
    Attachment, Bandwidth, Endpoint, Limit, PodName, PortMapping, Transport, format_mac, parse_mac,
};

use crate::ipsec::Policy;

mod endpoint;

/// Everything that determines the desired state of the data path.
#[derive(Clone, Debug)]
pub struct Model {
    /// How pod packets travel between nodes.
    pub mode: Mode,
    /// `--mtu`: the pods' MTU in bytes, regardless of the uplinks.
    pub mtu_override: Option<u32>,
    /// ifindex of the VXLAN device; `None` in direct mode.
    pub vxlan: Option<u32>,
    /// This node's entry in the node list. `None` until the agent gets a list with a complete one.
    pub own: Option<Node>,
    /// The other nodes, by name.
    pub remote: BTreeMap<String, Node>,
    /// This node's links with a role, uplinks first. The first link has the node's InternalIP if
    /// any uplink has it.
    pub links: Vec<NodeLink>,
    /// Links with a role on which the programs are TC filters, because the kernel has no TCX:
    /// ifindex → name.
    pub filtered_links: BTreeMap<u32, String>,
    /// Links with a role that have no programs yet, or cannot have them, by ifindex.
    pub without_programs: BTreeSet<u32>,
    /// Links without a role to which a route may lead, by ifindex.
    pub links_without_role: BTreeMap<u32, Roleless>,
    /// This node's global addresses on all links, also on those without a role
    /// ([`Host::own_addresses`](crate::host::Host::own_addresses)).
    pub other_addresses: BTreeSet<IpAddr>,
    /// The path to each remote node's InternalIP. A node without an entry is not reachable now.
    pub paths: BTreeMap<IpAddr, Path>,
    /// The pods of this node.
    pub endpoints: BTreeMap<Attachment, Endpoint>,
    /// Attachments of endpoints for which the agent found no device.
    pub without_device: BTreeSet<Attachment>,
    /// Networks to which pods keep their own addresses.
    pub non_masquerade: BTreeSet<IpNet>,
    /// The IPsec policies of the host.
    pub policies: Vec<Policy>,
}

impl Model {
    /// Creates a model that knows nothing yet.
    pub fn new(mode: Mode, mtu_override: Option<u32>) -> Self {
        Self {
            mode,
            mtu_override,
            vxlan: None,
            own: None,
            remote: BTreeMap::new(),
            links: Vec::new(),
            filtered_links: BTreeMap::new(),
            without_programs: BTreeSet::new(),
            links_without_role: BTreeMap::new(),
            other_addresses: BTreeSet::new(),
            paths: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            without_device: BTreeSet::new(),
            non_masquerade: BTreeSet::new(),
            policies: Vec::new(),
        }
    }

    /// Returns the pods' MTU in bytes: the override, else what fits. `None` while no uplink is
    /// known.
    pub fn pod_mtu(&self) -> Option<u32> {
        self.fitting_mtu().map(|fitting| self.mtu_override.unwrap_or(fitting))
    }

    /// Returns the largest IP packet, in bytes, that fits every link towards a node, together with
    /// the tunnel's headers. `None` while no uplink is known.
    pub fn fitting_mtu(&self) -> Option<u32> {
        let towards_nodes = self.paths.values().map(|path| path.mtu).min();
        let own = self.uplinks().next().map(|uplink| uplink.mtu);
        towards_nodes.into_iter().chain(own).min().map(|underlay| self.mode.payload(underlay))
    }

    /// Returns the address by which this node and the others reach each other: the InternalIP of
    /// `own`. If no link has it, returns the first address of an uplink instead: a cloud may map
    /// the InternalIP to it one to one.
    pub fn underlay_address(&self, own: &Node) -> IpAddr {
        if self.has_address(own.address) {
            return own.address;
        }
        let of_uplinks = self.uplinks().find_map(|uplink| uplink.addresses.first().copied());
        of_uplinks.unwrap_or(own.address)
    }

    /// Returns the source of this node's routes to pods. `None` if no link has the address: the
    /// kernel refuses such a source, so the route names none and the kernel chooses.
    pub fn route_source(&self, own: &Node) -> Option<IpAddr> {
        Some(self.underlay_address(own)).filter(|address| self.has_address(*address))
    }

    /// Returns whether one of this node's links has an address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        let mut of_links = self.links.iter().flat_map(|link| &link.addresses);
        of_links.any(|of_link| *of_link == address) || self.other_addresses.contains(&address)
    }

    /// Returns the links that lead to the other nodes or to the world.
    pub fn uplinks(&self) -> impl Iterator<Item = &NodeLink> {
        self.links.iter().filter(|link| link.role == Role::Uplink)
    }

    /// Returns whether a link is an uplink.
    pub fn is_uplink(&self, index: u32) -> bool {
        self.uplinks().any(|uplink| uplink.index == index)
    }

    /// Returns the endpoint of an attachment. If the endpoint has lost its file, this finds it by
    /// the name of its device, which is derived from the attachment.
    pub fn endpoint_of(&self, attachment: &Attachment) -> Option<&Endpoint> {
        let by_device = || {
            let device = attachment.host_interface();
            self.endpoints.values().find(|endpoint| endpoint.host_interface == device)
        };
        self.endpoints.get(attachment).or_else(by_device)
    }

    /// Returns the endpoints with an address outside the node's current podCIDR.
    pub fn outside_pod_network(&self) -> impl Iterator<Item = &Endpoint> {
        let network = self.own.as_ref().map(|node| node.pod_network);
        self.endpoints
            .values()
            .filter(move |endpoint| network.is_some_and(|network| !network.contains(&endpoint.address)))
    }
}

/// How pod packets travel between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Inside VXLAN.
    Vxlan,
    /// Without encapsulation: the network between the nodes routes pod addresses.
    Direct,
}

impl Mode {
    /// Returns the largest IP packet, in bytes, that fits a link with an MTU of `mtu` bytes.
    pub fn payload(self, mtu: u32) -> u32 {
        match self {
            Self::Vxlan => mtu.saturating_sub(VXLAN_OVERHEAD),
            Self::Direct => mtu,
        }
    }
}

/// A node with a complete entry in the node list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`, if the source has one.
    pub uid: Option<String>,
    /// Its IPv4 podCIDR.
    pub pod_network: IpNet,
    /// Its first IPv4 InternalIP.
    pub address: IpAddr,
    /// Its other IPv4 InternalIPs.
    pub other_addresses: Vec<IpAddr>,
    /// Whether the node is cordoned: it takes no new pods, but its pods keep their network.
    pub cordoned: bool,
    /// The only link address for which the node accepts tunnelled frames, according to flannel.
    /// `None`: it accepts any.
    pub vtep_mac: Option<Mac>,
}

impl Node {
    /// Returns a number for display: 32-bit FNV-1a of the name, so that every node computes the
    /// same.
    pub fn id(&self) -> u32 {
        self.name
            .bytes()
            .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }

    /// Returns whether the two entries contradict each other: the podCIDRs overlap, or the
    /// addresses are the same.
    pub fn contradicts(&self, other: &Self) -> bool {
        let (one, two) = (self.pod_network, other.pod_network);
        self.address == other.address || one.contains(&two.network()) || two.contains(&one.network())
    }

    /// Returns all IPv4 InternalIPs of the node.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [self.address].into_iter().chain(self.other_addresses.iter().copied())
    }

    /// Returns the first address of the podCIDR: the pods' gateway and the node's overlay address.
    pub fn overlay_address(&self) -> IpAddr {
        overlay_address(self.pod_network)
    }
}

/// Returns the first address of a podCIDR after the network's own.
pub fn overlay_address(pod_network: IpNet) -> IpAddr {
    match pod_network.network() {
        IpAddr::V4(network) => Ipv4Addr::from(u32::from(network).saturating_add(1)).into(),
        IpAddr::V6(network) => Ipv6Addr::from(u128::from(network).saturating_add(1)).into(),
    }
}

/// Purpose of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Leads to the other nodes or to the world.
    Uplink,
    /// Leads to other hosts.
    Side,
    /// Leads to containers or machines of this host.
    Inner,
}

/// A link without a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roleless {
    /// MTU: bytes of an IP packet.
    pub mtu: u32,
    /// Whether the link discards every packet: a dummy.
    pub is_sink: bool,
}

/// A link of this node with a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLink {
    /// ifindex.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU: bytes of an IP packet.
    pub mtu: u32,
    /// Its global addresses. The first one is the source of translated packets.
    pub addresses: Vec<IpAddr>,
    /// Purpose of the link.
    pub role: Role,
    /// Whether its packets have no link header.
    pub is_bare: bool,
}

/// How the kernel routes to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// ifindex of the link by which packets leave.
    pub device: u32,
    /// That link's MTU in bytes.
    pub mtu: u32,
    /// The router. `None`: the address is on the link itself.
    pub gateway: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_mtu_follows_the_smallest_link_towards_a_node() {
        let mut model = Model::new(Mode::Vxlan, None);
        assert_eq!(model.pod_mtu(), None);
        model.links.push(NodeLink {
            index: 2,
            name: "eth0".into(),
            mtu: 1500,
            addresses: Vec::new(),
            role: Role::Uplink,
            is_bare: false,
        });
        assert_eq!(model.pod_mtu(), Some(1450));
        let path = Path { device: 3, mtu: 1400, gateway: None };
        model.paths.insert(IpAddr::from([10, 200, 0, 2]), path);
        assert_eq!(model.pod_mtu(), Some(1350));
        model.mode = Mode::Direct;
        assert_eq!(model.pod_mtu(), Some(1400));
        model.mtu_override = Some(1280);
        assert_eq!(model.pod_mtu(), Some(1280));
    }
}
