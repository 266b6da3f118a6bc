//! What the agent knows: the node list, this machine's links and the pods. Plain data, without
//! access to the kernel or the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use podwire_common::addr::Mac;
use podwire_common::names::{VXLAN_OVERHEAD, VXLAN_OVERHEAD_IPV6};

pub use endpoint::{
    Attachment, Bandwidth, Endpoint, Limit, PodAddress, PodName, PortMapping, Transport, format_mac,
    parse_mac,
};

use crate::ipsec::Policy;
use crate::services::ServedServices;

mod endpoint;

/// Everything that determines the desired state of the data path.
#[derive(Clone, Debug)]
pub struct Model {
    /// How pod packets travel between nodes.
    pub mode: Mode,
    /// `--tunnel-family`: the family of the tunnel to nodes with which this node has both.
    pub tunnel_family: Family,
    /// `--mtu`: the pods' MTU in bytes, regardless of the uplinks.
    pub mtu_override: Option<u32>,
    /// ifindex of the VXLAN device; `None` in direct mode.
    pub vxlan: Option<u32>,
    /// This node's entry in the node list. `None` until the agent gets a list with a complete one.
    pub own: Option<Node>,
    /// The zone of this node, if its object has one.
    pub zone: Option<String>,
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
    /// Networks of the services' ClusterIPs, if the agent was told.
    pub service_networks: BTreeSet<IpNet>,
    /// Networks of this node's addresses that have NodePorts. Empty: all addresses have them.
    pub node_port_networks: BTreeSet<IpNet>,
    /// The IPsec policies of the host.
    pub policies: Vec<Policy>,
    /// What this node serves of each Service. Empty with `--services off`.
    pub services: ServedServices,
    /// The configured address of the API server. `None`: a name, or the nodes are from a file.
    pub api_server: Option<SocketAddr>,
}

impl Model {
    /// Creates a model that knows nothing yet.
    pub fn new(mode: Mode, mtu_override: Option<u32>) -> Self {
        Self {
            mode,
            tunnel_family: Family::V4,
            mtu_override,
            vxlan: None,
            own: None,
            zone: None,
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
            service_networks: BTreeSet::new(),
            node_port_networks: BTreeSet::new(),
            policies: Vec::new(),
            services: ServedServices::default(),
            api_server: None,
        }
    }

    /// Returns the pods' MTU in bytes: the override, else what fits. `None` while no uplink is
    /// known.
    pub fn pod_mtu(&self) -> Option<u32> {
        self.fitting_mtu().map(|fitting| self.mtu_override.unwrap_or(fitting))
    }

    /// Returns the largest IP packet of pods, in bytes, that every link towards a node takes
    /// together with the tunnel's headers. It is the largest of the pods' families. `None` while no
    /// uplink is known.
    pub fn fitting_mtu(&self) -> Option<u32> {
        // In a pod with both families, the larger minimum counts for both.
        let pods = self.pod_families().max_by_key(|family| family.least_mtu()).unwrap_or(Family::V4);
        let payload = |tunnel, mtu| self.mode.payload(mtu, tunnel, pods);
        let towards_nodes = self.paths.iter().map(|(to, path)| payload(Family::of(*to), path.mtu));
        let family = self.own.as_ref().map_or(self.tunnel_family, |own| self.tunnel_family_of(own));
        let own = self.uplinks().next().map(|uplink| payload(family, uplink.mtu));
        towards_nodes.chain(own).min()
    }

    /// Returns the smallest MTU, in bytes, of a link that leads to nodes in a tunnel of IPv6 and does
    /// not take packets of IPv6's minimum MTU there. Nobody fragments the outer packets of such a
    /// tunnel. `None`: there is no such link, or pods have no IPv6.
    pub fn underlay_too_small(&self) -> Option<u32> {
        const LEAST: u32 = Family::V6.least_mtu() + VXLAN_OVERHEAD_IPV6;
        if self.mode != Mode::Vxlan || !self.pod_families().any(|family| family == Family::V6) {
            return None;
        }
        let towards_nodes = self.paths.iter().filter(|(to, _)| to.is_ipv6()).map(|(_, path)| path.mtu);
        let own = self.own.as_ref().filter(|own| self.tunnel_family_of(own) == Family::V6);
        let own = own.and_then(|_| self.uplinks().next()).map(|uplink| uplink.mtu);
        towards_nodes.chain(own).min().filter(|mtu| *mtu < LEAST)
    }

    /// Returns the family of the tunnel to nodes that have it, too: the preferred one, if this node
    /// has an InternalIP of it.
    fn tunnel_family_of(&self, own: &Node) -> Family {
        match own.address_of(self.tunnel_family) {
            Some(_) => self.tunnel_family,
            None => Family::of(own.first_address()),
        }
    }

    /// Returns the InternalIPs of this node and of another between which tunnel packets travel: of
    /// the preferred family if both nodes have it, else of the family that both have. `None`: there
    /// is no such family. `inner`: the family of the pods' packets. Flannel has a tunnel of its own
    /// for each.
    pub fn tunnel_between(&self, own: &Node, node: &Node, inner: Family) -> Option<(IpAddr, IpAddr)> {
        let of = |family| Some((own.address_of(family)?, node.address_of(family)?));
        let of_flannel = Some(inner).filter(|family| node.vtep_macs.contains_key(family)).and_then(of);
        of_flannel.or_else(|| of(self.tunnel_family)).or_else(|| Family::ALL.into_iter().find_map(of))
    }

    /// Returns the addresses of another node to which this node needs a path: the tunnel's other
    /// end, or by direct routing the next hop to its pods, of each family of which both have a
    /// podCIDR.
    pub fn next_hops(&self, own: &Node, node: &Node) -> BTreeSet<IpAddr> {
        let has_pods = |family: &Family| [own, node].iter().all(|node| node.pod_network(*family).is_some());
        let families = Family::ALL.into_iter().filter(has_pods);
        let next_hop = |family| match self.mode {
            Mode::Vxlan => self.tunnel_between(own, node, family).map(|(_, there)| there),
            Mode::Direct => node.address_of(family),
        };
        families.filter_map(next_hop).collect()
    }

    /// Returns the address by which this node and the others reach each other: an InternalIP of
    /// this node. If no link has it, returns the first address of its family on an uplink instead:
    /// a cloud may map the InternalIP to it one to one.
    pub fn present_address(&self, internal: IpAddr) -> IpAddr {
        if self.has_address(internal) {
            return internal;
        }
        let family = Family::of(internal);
        self.uplinks().find_map(|uplink| uplink.address_of(family)).unwrap_or(internal)
    }

    /// Returns the source of this node's routes to pods of a family. `None` if no link has an
    /// InternalIP of that family: the kernel refuses such a source, so the route names none and the
    /// kernel chooses. With a tunnel, the tunnel's own address is that choice.
    pub fn route_source(&self, own: &Node, family: Family) -> Option<IpAddr> {
        let internal = own.address_of(family).map(|internal| self.present_address(internal));
        internal
            .filter(|address| self.has_address(*address))
            .or_else(|| own.overlay_address(family).filter(|_| self.vxlan.is_some() && internal.is_none()))
    }

    /// Returns whether one of this node's links has an address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        let mut of_links = self.links.iter().flat_map(|link| &link.addresses);
        of_links.any(|of_link| *of_link == address) || self.other_addresses.contains(&address)
    }

    /// Returns whether the programs serve NodePorts at an address of this node.
    pub fn has_node_ports(&self, address: IpAddr) -> bool {
        let networks = &self.node_port_networks;
        networks.is_empty() || networks.iter().any(|network| network.contains(&address))
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

    /// Returns the endpoints with an address outside the node's current podCIDRs.
    pub fn outside_pod_networks(&self) -> impl Iterator<Item = &Endpoint> {
        let is_outside = |endpoint: &&Endpoint| {
            let own = self.own.as_ref();
            own.is_some_and(|own| !endpoint.addresses().all(|address| own.has_pod(address)))
        };
        self.endpoints.values().filter(is_outside)
    }

    /// Returns the families of addresses that pods of this node get, in the order of the Node
    /// object.
    pub fn pod_families(&self) -> impl Iterator<Item = Family> {
        self.own.iter().flat_map(|own| &own.pod_networks).map(|network| Family::of(network.addr()))
    }

    /// Returns whether pods of this node get addresses of a family, or have them from a podCIDR
    /// that the node had.
    pub fn has_pods_of(&self, family: Family) -> bool {
        self.pod_families().any(|of_pods| of_pods == family)
            || self.endpoints.values().any(|endpoint| endpoint.address_of(family).is_some())
    }
}

/// Family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 (RFC 791).
    V4,
    /// IPv6 (RFC 8200).
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Returns the first of some addresses that is of this family.
    pub fn first_of(self, addresses: impl IntoIterator<Item = IpAddr>) -> Option<IpAddr> {
        addresses.into_iter().find(|address| Self::of(*address) == self)
    }

    /// Returns the smallest MTU that the kernel accepts on a link with addresses of this family,
    /// bytes: `IPV4_MIN_MTU`; RFC 8200 section 5.
    pub const fn least_mtu(self) -> u32 {
        match self {
            Self::V4 => 68,
            Self::V6 => 1280,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
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
    /// Returns the largest IP packet, in bytes, that a link with an MTU of `mtu` bytes takes.
    /// `tunnel`: the family of the tunnel. `pods`: the family of the packet. In a tunnel over a
    /// smaller link, the VXLAN device sends packets of IPv6's minimum MTU in outer fragments, if the
    /// tunnel is one of IPv4; see [`Model::underlay_too_small`].
    pub fn payload(self, mtu: u32, tunnel: Family, pods: Family) -> u32 {
        let overhead = match (self, tunnel) {
            (Self::Direct, _) => return mtu,
            (Self::Vxlan, Family::V4) => VXLAN_OVERHEAD,
            (Self::Vxlan, Family::V6) => VXLAN_OVERHEAD_IPV6,
        };
        mtu.saturating_sub(overhead).max(pods.least_mtu())
    }
}

/// A node with a complete entry in the node list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`, if the source has one.
    pub uid: Option<String>,
    /// Its podCIDRs in the order of the Node object: one or two, and at most one of each family.
    pub pod_networks: Vec<IpNet>,
    /// Its InternalIPs, of either family, in the order of the Node object: at least one.
    pub internal_addresses: Vec<IpAddr>,
    /// Whether the node is cordoned: it takes no new pods, but its pods keep their network.
    pub cordoned: bool,
    /// The link addresses of flannel's VXLAN devices on the node, by the tunnel's family. Such a
    /// device takes only frames to its own address. Empty: the node does not run flannel.
    pub vtep_macs: BTreeMap<Family, Mac>,
}

impl Node {
    /// Returns a number for display: 32-bit FNV-1a of the name, so that every node computes the
    /// same.
    pub fn id(&self) -> u32 {
        self.name
            .bytes()
            .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }

    /// Returns whether the two entries contradict each other: podCIDRs overlap, or the first
    /// addresses of a family are the same.
    pub fn contradicts(&self, other: &Self) -> bool {
        let overlap = |one: &IpNet, two: &IpNet| one.contains(two) || two.contains(one);
        self.first_addresses().any(|one| other.first_addresses().any(|two| one == two))
            || self.pod_networks.iter().any(|one| other.pod_networks.iter().any(|two| overlap(one, two)))
    }

    /// Returns all InternalIPs of the node.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.internal_addresses.iter().copied()
    }

    /// Returns the first InternalIP.
    pub fn first_address(&self) -> IpAddr {
        self.addresses().next().unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    /// Returns the first InternalIP of a family.
    pub fn address_of(&self, family: Family) -> Option<IpAddr> {
        family.first_of(self.addresses())
    }

    /// Returns the first InternalIP of each family: those by which other nodes know it.
    pub fn first_addresses(&self) -> impl Iterator<Item = IpAddr> {
        Family::ALL.into_iter().filter_map(|family| self.address_of(family))
    }

    /// Returns whether an address is in a podCIDR of the node.
    pub fn has_pod(&self, address: IpAddr) -> bool {
        self.pod_networks.iter().any(|network| network.contains(&address))
    }

    /// Returns the podCIDR of a family.
    pub fn pod_network(&self, family: Family) -> Option<IpNet> {
        self.pod_networks.iter().copied().find(|network| Family::of(network.addr()) == family)
    }

    /// Returns the first address of each podCIDR: the node's overlay addresses. The one of IPv4 is
    /// also its pods' gateway.
    pub fn overlay_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.pod_networks.iter().map(|network| overlay_address(*network))
    }

    /// Returns the overlay address of a family.
    pub fn overlay_address(&self, family: Family) -> Option<IpAddr> {
        self.pod_network(family).map(overlay_address)
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
    /// Its global addresses, without those that may not be a source for long (temporary and
    /// deprecated ones). The first of each family is the source of translated packets.
    pub addresses: Vec<IpAddr>,
    /// Purpose of the link.
    pub role: Role,
    /// Whether its packets have no link header.
    pub is_bare: bool,
}

impl NodeLink {
    /// Returns the first address of a family.
    pub fn address_of(&self, family: Family) -> Option<IpAddr> {
        family.first_of(self.addresses.iter().copied())
    }
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
        model.links.push(uplink());
        assert_eq!(model.pod_mtu(), Some(1450));
        let path = Path { device: 3, mtu: 1400, gateway: None };
        model.paths.insert(IpAddr::from([10, 200, 0, 2]), path);
        assert_eq!(model.pod_mtu(), Some(1350));
        model.mode = Mode::Direct;
        assert_eq!(model.pod_mtu(), Some(1400));
        model.mtu_override = Some(1280);
        assert_eq!(model.pod_mtu(), Some(1280));
    }

    fn uplink() -> NodeLink {
        NodeLink {
            index: 2,
            name: "eth0".into(),
            mtu: 1500,
            addresses: Vec::new(),
            role: Role::Uplink,
            is_bare: false,
        }
    }

    fn node(addresses: &[&str]) -> Node {
        Node {
            name: "node".into(),
            uid: None,
            pod_networks: vec!["10.244.1.0/24".parse().unwrap()],
            internal_addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            cordoned: false,
            vtep_macs: BTreeMap::new(),
        }
    }

    #[test]
    fn tunnel_has_a_family_that_both_nodes_have() {
        let mut model = Model::new(Mode::Vxlan, None);
        let nodes = [&["10.200.0.1"][..], &["fd00::1"], &["fd00::2", "10.200.0.2"]].map(node);
        let [v4, v6, both] = &nodes;
        let mut ends = |one, other, preferred| {
            model.tunnel_family = preferred;
            let ends = model.tunnel_between(one, other, Family::V6);
            ends.map(|(here, there)| format!("{here} {there}")).unwrap_or_default()
        };
        for preferred in Family::ALL {
            assert_eq!(ends(v4, both, preferred), "10.200.0.1 10.200.0.2");
            assert_eq!(ends(both, v6, preferred), "fd00::2 fd00::1");
            assert_eq!(ends(v4, v6, preferred), "");
        }
        assert_eq!(ends(both, both, Family::V4), "10.200.0.2 10.200.0.2");
        assert_eq!(ends(both, both, Family::V6), "fd00::2 fd00::2");
        let mac = Mac { bytes: [6; 6] };
        let flannels = Node { vtep_macs: [(Family::V4, mac), (Family::V6, mac)].into(), ..both.clone() };
        assert_eq!(ends(both, &flannels, Family::V4), "fd00::2 fd00::2", "its tunnel of IPv6 packets");
    }

    #[test]
    fn only_families_in_which_both_nodes_have_pods_need_a_path() {
        let networks = ["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()];
        let both = Node { pod_networks: networks.to_vec(), ..node(&["10.200.0.1", "fd00::1"]) };
        let only6 = Node { pod_networks: networks[1..].to_vec(), ..node(&["fd00::2"]) };
        let mut model = Model::new(Mode::Direct, None);
        for mode in [Mode::Direct, Mode::Vxlan] {
            model.mode = mode;
            assert_eq!(model.next_hops(&only6, &both), ["fd00::1".parse().unwrap()].into(), "{mode:?}");
            assert_eq!(model.next_hops(&both, &only6), ["fd00::2".parse().unwrap()].into(), "{mode:?}");
        }
        model.mode = Mode::Direct;
        assert_eq!(model.next_hops(&both, &both).len(), 2);
    }

    #[test]
    fn headers_of_the_tunnel_count_by_its_family() {
        let mut model = Model::new(Mode::Vxlan, None);
        model.links.push(uplink());
        model.own = Some(node(&["fd00::1"]));
        assert_eq!(model.pod_mtu(), Some(1430));
        model.own = Some(node(&["fd00::1", "10.200.0.1"]));
        assert_eq!(model.pod_mtu(), Some(1450));
        let path = Path { device: 2, mtu: 1500, gateway: None };
        model.paths.insert("fd00::2".parse().unwrap(), path);
        assert_eq!(model.pod_mtu(), Some(1430), "a node without IPv4");
    }

    #[test]
    fn a_small_underlay_leaves_ipv6_its_minimum() {
        let [v4, v6] = [Family::V4, Family::V6];
        for (underlay, family, payload) in
            [(1500, v6, 1450), (1330, v6, 1280), (1329, v6, 1280), (600, v6, 1280), (1329, v4, 1279)]
        {
            assert_eq!(Mode::Vxlan.payload(underlay, Family::V4, family), payload, "{underlay} {family}");
        }
        assert_eq!(Mode::Direct.payload(1300, v6, v6), 1300);
    }

    #[test]
    fn an_underlay_is_too_small_for_ipv6_in_a_tunnel_of_ipv6() {
        let mut model = Model::new(Mode::Vxlan, None);
        model.links.push(NodeLink { mtu: 1349, ..uplink() });
        assert_eq!(model.underlay_too_small(), None, "this node is not known");
        model.own = Some(node(&["fd00::1"]));
        assert_eq!(model.underlay_too_small(), None, "pods have no IPv6");
        let both = Node {
            pod_networks: vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
            ..node(&["10.200.0.1", "fd00::1"])
        };
        model.own = Some(both);
        assert_eq!(model.underlay_too_small(), None, "the tunnel is one of IPv4");
        model.tunnel_family = Family::V6;
        assert_eq!(model.underlay_too_small(), Some(1349));
        model.links[0].mtu = 1350;
        assert_eq!(model.underlay_too_small(), None);
        let path = Path { device: 3, mtu: 1300, gateway: None };
        model.paths.insert(IpAddr::from([10, 200, 0, 2]), path);
        assert_eq!(model.underlay_too_small(), None, "a tunnel of IPv4 leads to that node");
        model.paths.insert("fd00::2".parse().unwrap(), path);
        assert_eq!(model.underlay_too_small(), Some(1300));
        model.mode = Mode::Direct;
        assert_eq!(model.underlay_too_small(), None);
    }
}
