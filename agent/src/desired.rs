//! What the maps and the routing table should hold: a pure function of the model.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use podwire_cni::protocol::Transport;
use podwire_common::abi;
use podwire_common::addr::{Addr, Be16};
use podwire_common::flow::protocol;

use crate::model::{Endpoint, Mode, Model, Node, Path};

/// Contents of the maps that the agent fills, and of its part of the routing table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// `UPLINKS`.
    pub uplinks: BTreeMap<u32, abi::Uplink>,
    /// `TUNNEL_PEERS`.
    pub tunnel_peers: BTreeMap<Addr, u32>,
    /// `VTEPS`.
    pub vteps: BTreeMap<Addr, abi::Vtep>,
    /// `NODES`.
    pub nodes: BTreeMap<Prefix, abi::Node>,
    /// `EGRESS_GUARDS`, without what the programs have written.
    pub guards: BTreeMap<u32, abi::Guard>,
    /// `ENDPOINTS`.
    pub endpoints: BTreeMap<Addr, abi::Endpoint>,
    /// `NON_MASQUERADE`.
    pub non_masquerade: BTreeMap<Prefix, u32>,
    /// `FRONTENDS`.
    pub frontends: BTreeMap<abi::Frontend, abi::Backend>,
    /// Routes of the main table that bear the agent's protocol number.
    pub routes: BTreeMap<Ipv4Net, Route>,
}

/// The key of `NODES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// With every bit after the prefix zero.
    pub address: Addr,
    /// In bits of [`Addr`]: 96 more than an IPv4 prefix length.
    pub bits: u32,
}

impl From<Ipv4Net> for Prefix {
    fn from(network: Ipv4Net) -> Self {
        Self {
            address: network.network().into(),
            bits: Addr::V4_PREFIX_BITS + u32::from(network.prefix_len()),
        }
    }
}

impl From<Ipv4Addr> for Prefix {
    fn from(address: Ipv4Addr) -> Self {
        Ipv4Net::from(address).into()
    }
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To a link.
    Link {
        /// ifindex.
        device: u32,
        /// The next hop; `None`: the destination is on the link (scope link).
        gateway: Option<Ipv4Addr>,
        /// The source that the node's own packets take.
        source: Option<Ipv4Addr>,
    },
    /// Nowhere: the sender is told so.
    Unreachable,
}

/// What the maps and the routing table should hold. Without this node's own entry in the node list only what the
/// endpoints alone decide.
pub fn desired(model: &Model) -> Contents {
    let mut contents = Contents::default();
    for endpoint in model.endpoints.values() {
        contents.guards.extend(endpoint.guard().map(|guard| (endpoint.ifindex, guard)));
        contents.endpoints.insert(endpoint.address.into(), endpoint_entry(endpoint));
        contents.frontends.extend(frontends(endpoint));
    }
    contents.non_masquerade.extend(model.non_masquerade.iter().map(|network| (Prefix::from(*network), 1)));
    let Some(own) = &model.own else {
        return contents;
    };
    add_uplinks(&mut contents, model, own);
    add_own(&mut contents, model, own);
    for node in model.remote.values() {
        add_remote(&mut contents, model, own, node);
    }
    for endpoint in model.endpoints.values() {
        let route = Route::Link { device: endpoint.ifindex, gateway: None, source: Some(own.address) };
        contents.routes.insert(endpoint.address.into(), route);
    }
    contents
}

/// The part of it that is there for these other nodes. None of it depends on a node that is not among them.
pub fn desired_of<'a>(model: &Model, nodes: impl IntoIterator<Item = &'a Node>) -> Contents {
    let mut contents = Contents::default();
    if let Some(own) = &model.own {
        for node in nodes {
            add_remote(&mut contents, model, own, node);
        }
    }
    contents
}

/// An endpoint's entry in `ENDPOINTS`.
pub fn endpoint_entry(endpoint: &Endpoint) -> abi::Endpoint {
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    abi::Endpoint {
        ifindex: endpoint.ifindex,
        id: endpoint.id,
        flags: flag(!endpoint.port_mappings.is_empty(), abi::ENDPOINT_HAS_HOST_PORTS)
            | flag(endpoint.bandwidth.ingress.is_some(), abi::ENDPOINT_INGRESS_LIMITED)
            | flag(endpoint.bandwidth.egress.is_some(), abi::ENDPOINT_EGRESS_LIMITED),
        mtu: endpoint.mtu,
        pod_mac: endpoint.pod_mac,
        host_mac: endpoint.host_mac,
        gateway: endpoint.gateway.into(),
    }
}

/// An endpoint's entries in `FRONTENDS`.
pub fn frontends(endpoint: &Endpoint) -> impl Iterator<Item = (abi::Frontend, abi::Backend)> {
    endpoint.port_mappings.iter().map(|mapping| {
        let frontend = abi::Frontend {
            address: mapping.host_address.map_or(Addr::UNSPECIFIED, Addr::from),
            port: Be16::new(mapping.host_port.get()),
            protocol: match mapping.protocol {
                Transport::Tcp => protocol::TCP,
                Transport::Udp => protocol::UDP,
            },
            reserved: 0,
        };
        let port = Be16::new(mapping.container_port.get());
        (frontend, abi::Backend { address: endpoint.address.into(), port, reserved: [0; 2] })
    })
}

fn add_uplinks(contents: &mut Contents, model: &Model, own: &Node) {
    for uplink in &model.uplinks {
        let ipv4 = uplink.addresses.first().map_or(Addr::UNSPECIFIED, |address| (*address).into());
        let entry = abi::Uplink { ipv4, tunnel_address: own.address.into(), mtu: uplink.mtu, reserved: 0 };
        contents.uplinks.insert(uplink.index, entry);
    }
}

fn add_own(contents: &mut Contents, model: &Model, own: &Node) {
    let entry = |flags| abi::Node {
        tunnel_endpoint: own.address.into(),
        source: own.address.into(),
        uplink: 0,
        mtu: model.pod_mtu().unwrap_or_default(),
        node_id: own.id(),
        flags: flags | abi::NODE_LOCAL,
    };
    contents.nodes.insert(own.pod_network.into(), entry(abi::NODE_POD_NETWORK));
    let uplink_addresses = model.uplinks.iter().flat_map(|uplink| &uplink.addresses);
    let others = model.other_addresses.iter().filter(|address| !is_of_cluster(model, own, **address));
    for address in uplink_addresses.chain(others).copied().chain([own.address]) {
        contents.nodes.insert(address.into(), entry(abi::NODE_ADDRESS));
    }
    let overlay = entry(abi::NODE_ADDRESS | abi::NODE_OVERLAY);
    contents.nodes.insert(own.overlay_address().into(), overlay);
    // A dead pod's address must not follow the default route into the world.
    contents.routes.insert(own.pod_network, Route::Unreachable);
}

/// Whether an address is another node's or a pod's, whoever else bears it: what a bridge of an earlier network left, for example.
fn is_of_cluster(model: &Model, own: &Node, address: Ipv4Addr) -> bool {
    let is_of = |node: &Node| node.address == address || node.pod_network.contains(&address);
    own.pod_network.contains(&address) || model.remote.values().any(is_of)
}

fn add_remote(contents: &mut Contents, model: &Model, own: &Node, node: &Node) {
    contents.tunnel_peers.insert(node.address.into(), node.id());
    // A node that cannot be reached now keeps its entries, by the first uplink: what it sends is still its own, and
    // what is for it must not be taken for the world's.
    let fallback = model.uplinks.first().map(|uplink| Path {
        device: uplink.index,
        mtu: uplink.mtu,
        gateway: Some(Ipv4Addr::UNSPECIFIED),
    });
    let Some(path) = model.paths.get(&node.address).copied().or(fallback) else {
        return;
    };
    let on_link = if path.gateway.is_none() { abi::NODE_ON_LINK } else { 0 };
    let vtep = node.vtep_mac.filter(|_| model.mode == Mode::Vxlan);
    contents.vteps.extend(vtep.map(|mac| (node.address.into(), abi::Vtep { mac, reserved: [0; 2] })));
    let of_vtep = if vtep.is_some() { abi::NODE_VTEP } else { 0 };
    let entry = |flags| abi::Node {
        tunnel_endpoint: node.address.into(),
        source: own.address.into(),
        uplink: path.device,
        mtu: model.mode.payload(path.mtu),
        node_id: node.id(),
        flags: flags | on_link | of_vtep,
    };
    contents.nodes.insert(node.pod_network.into(), entry(abi::NODE_POD_NETWORK));
    contents.nodes.insert(node.address.into(), entry(abi::NODE_ADDRESS));

    // A node without our programs answers by its own routes: to our address past the tunnel, where a pod's address is refused.
    let source = if vtep.is_some() { own.overlay_address() } else { own.address };
    let source = Some(source);
    let route = match (model.mode, model.vxlan) {
        (Mode::Vxlan, Some(device)) => Some(Route::Link { device, gateway: None, source }),
        // Behind a router the host's own routes must know the way: only they can name that router's routes to pods.
        (Mode::Direct, _) if path.gateway.is_none() => {
            Some(Route::Link { device: path.device, gateway: Some(node.address), source })
        }
        _ => None,
    };
    if let Some(route) = route {
        contents.routes.insert(node.pod_network, route);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Uplink;
    use podwire_cni::protocol::{Bandwidth, Limit, PortMapping};
    use podwire_common::addr::Mac;
    use std::num::{NonZeroU16, NonZeroU64};

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn node(name: &str, pod_network: &str, address: &str) -> Node {
        Node {
            name: name.into(),
            uid: None,
            pod_network: net(pod_network),
            address: ip(address),
            cordoned: false,
            vtep_mac: None,
        }
    }

    fn model(mode: Mode) -> Model {
        let mut model = Model::new(mode, None);
        model.vxlan = (mode == Mode::Vxlan).then_some(9);
        model.own = Some(node("node1", "10.244.1.0/24", "10.200.0.1"));
        model.remote.insert("node2".into(), node("node2", "10.244.2.0/24", "10.200.0.2"));
        model.remote.insert("node3".into(), node("node3", "10.244.3.0/24", "10.201.0.3"));
        let addresses = vec![ip("10.200.0.1"), ip("192.0.2.1")];
        model.uplinks.push(Uplink { index: 2, name: "eth0".into(), mtu: 1500, addresses });
        model.paths.insert(ip("10.200.0.2"), Path { device: 2, mtu: 1500, gateway: None });
        let gateway = Some(ip("10.200.0.254"));
        model.paths.insert(ip("10.201.0.3"), Path { device: 2, mtu: 1500, gateway });
        let endpoint = Endpoint::example();
        model.endpoints.insert(endpoint.attachment.clone(), endpoint);
        model
    }

    fn flags(contents: &Contents, prefix: impl Into<Prefix>) -> u32 {
        contents.nodes[&prefix.into()].flags
    }

    #[test]
    fn each_limited_direction_has_its_flag_and_sending_its_guard() {
        let limit = Some(Limit { rate: NonZeroU64::MIN, burst: None });
        for (bandwidth, flags, guarded) in [
            (Bandwidth::default(), 0, vec![]),
            (Bandwidth { ingress: limit, egress: None }, abi::ENDPOINT_INGRESS_LIMITED, vec![]),
            (Bandwidth { ingress: None, egress: limit }, abi::ENDPOINT_EGRESS_LIMITED, vec![20]),
        ] {
            let mut model = model(Mode::Vxlan);
            model.endpoints.values_mut().for_each(|endpoint| endpoint.bandwidth = bandwidth);
            let contents = desired(&model);
            assert_eq!(contents.endpoints[&ip("10.244.1.2").into()].flags, flags);
            assert_eq!(
                contents.guards.into_keys().collect::<Vec<_>>(),
                guarded,
                "by the link that it sends by"
            );
        }
    }

    #[test]
    fn remote_nodes_are_reached_through_the_tunnel() {
        let contents = desired(&model(Mode::Vxlan));
        let entry = contents.nodes[&net("10.244.2.0/24").into()];
        assert_eq!(entry.tunnel_endpoint, ip("10.200.0.2").into());
        assert_eq!(entry.source, ip("10.200.0.1").into());
        assert_eq!((entry.uplink, entry.mtu), (2, 1450));
        assert_eq!(entry.flags, abi::NODE_POD_NETWORK | abi::NODE_ON_LINK);
        assert_eq!(flags(&contents, ip("10.200.0.2")), abi::NODE_ADDRESS | abi::NODE_ON_LINK);
        assert_eq!(flags(&contents, net("10.244.3.0/24")), abi::NODE_POD_NETWORK);
        let route = Route::Link { device: 9, gateway: None, source: Some(ip("10.200.0.1")) };
        assert_eq!(contents.routes[&net("10.244.2.0/24")], route);
        assert_eq!(contents.routes[&net("10.244.3.0/24")], route);
        assert_eq!(contents.tunnel_peers.len(), 2);
    }

    #[test]
    fn flannel_node_is_sent_to_at_its_devices_link_address() {
        let mac = Mac { bytes: [6; 6] };
        let mut moving = model(Mode::Vxlan);
        moving.remote.get_mut("node2").unwrap().vtep_mac = Some(mac);
        let contents = desired(&moving);
        let vtep = abi::Vtep { mac, reserved: [0; 2] };
        assert_eq!(contents.vteps, BTreeMap::from([(ip("10.200.0.2").into(), vtep)]));
        let both = abi::NODE_VTEP | abi::NODE_ON_LINK;
        assert_eq!(flags(&contents, net("10.244.2.0/24")), abi::NODE_POD_NETWORK | both);
        assert_eq!(flags(&contents, ip("10.200.0.2")), abi::NODE_ADDRESS | both);
        let source = |network| match contents.routes[&net(network)] {
            Route::Link { source, .. } => source,
            Route::Unreachable => None,
        };
        assert_eq!(source("10.244.2.0/24"), Some(ip("10.244.1.1")));
        assert_eq!(source("10.244.3.0/24"), Some(ip("10.200.0.1")), "the others are as ever");
        moving.mode = Mode::Direct;
        let contents = desired(&moving);
        assert!(contents.vteps.is_empty(), "there is no tunnel");
        assert_eq!(flags(&contents, ip("10.200.0.2")) & abi::NODE_VTEP, 0);
    }

    #[test]
    fn without_a_tunnel_only_nodes_on_the_link_get_a_route() {
        let contents = desired(&model(Mode::Direct));
        let gateway = Some(ip("10.200.0.2"));
        let route = Route::Link { device: 2, gateway, source: Some(ip("10.200.0.1")) };
        assert_eq!(contents.routes[&net("10.244.2.0/24")], route);
        assert!(!contents.routes.contains_key(&net("10.244.3.0/24")));
        assert_eq!(contents.nodes[&net("10.244.3.0/24").into()].mtu, 1500);
    }

    #[test]
    fn this_nodes_own_addresses_are_local() {
        let contents = desired(&model(Mode::Vxlan));
        for address in ["10.200.0.1", "192.0.2.1"] {
            assert_eq!(flags(&contents, ip(address)), abi::NODE_ADDRESS | abi::NODE_LOCAL, "{address}");
        }
        let overlay = abi::NODE_ADDRESS | abi::NODE_LOCAL | abi::NODE_OVERLAY;
        assert_eq!(flags(&contents, ip("10.244.1.1")), overlay);
        let network = net("10.244.1.0/24");
        assert_eq!(flags(&contents, network), abi::NODE_POD_NETWORK | abi::NODE_LOCAL);
        assert_eq!(contents.routes[&network], Route::Unreachable);
        assert_eq!(contents.uplinks[&2].ipv4, ip("10.200.0.1").into());
        assert_eq!(contents.uplinks[&2].tunnel_address, ip("10.200.0.1").into());
    }

    #[test]
    fn other_links_addresses_are_ours_unless_the_cluster_has_them() {
        let mut model = model(Mode::Vxlan);
        let strange = ["10.244.1.9", "10.244.2.1", "10.200.0.2"].map(ip);
        model.other_addresses = strange.into_iter().chain([ip("172.17.0.1")]).collect();
        let contents = desired(&model);
        assert_eq!(flags(&contents, ip("172.17.0.1")), abi::NODE_ADDRESS | abi::NODE_LOCAL);
        assert_eq!(flags(&contents, ip("10.200.0.2")) & abi::NODE_LOCAL, 0);
        for address in ["10.244.1.9", "10.244.2.1"] {
            assert!(!contents.nodes.contains_key(&ip(address).into()), "{address}");
        }
    }

    #[test]
    fn a_host_port_is_a_frontend_and_marks_its_endpoint() {
        let mut model = model(Mode::Vxlan);
        let port = |number| NonZeroU16::new(number).unwrap();
        let mapping = |host_address, protocol| PortMapping {
            host_address,
            host_port: port(9088),
            container_port: port(8080),
            protocol,
        };
        model.endpoints.values_mut().next().unwrap().port_mappings =
            vec![mapping(None, Transport::Tcp), mapping(Some(ip("10.200.0.1")), Transport::Udp)];
        let contents = desired(&model);
        assert_eq!(contents.endpoints[&ip("10.244.1.2").into()].flags, abi::ENDPOINT_HAS_HOST_PORTS);
        let frontend =
            |address, protocol| abi::Frontend { address, port: Be16::new(9088), protocol, reserved: 0 };
        let backend =
            abi::Backend { address: ip("10.244.1.2").into(), port: Be16::new(8080), reserved: [0; 2] };
        let expected = BTreeMap::from([
            (frontend(Addr::UNSPECIFIED, protocol::TCP), backend),
            (frontend(ip("10.200.0.1").into(), protocol::UDP), backend),
        ]);
        assert_eq!(contents.frontends, expected);
    }

    #[test]
    fn pod_has_an_entry_and_a_route_with_the_nodes_address() {
        let contents = desired(&model(Mode::Vxlan));
        assert_eq!(contents.endpoints[&ip("10.244.1.2").into()].ifindex, 20);
        let route = Route::Link { device: 20, gateway: None, source: Some(ip("10.200.0.1")) };
        assert_eq!(contents.routes[&ip("10.244.1.2").into()], route);
    }

    #[test]
    fn a_node_that_cannot_be_reached_is_still_known() {
        let mut model = model(Mode::Vxlan);
        model.paths.remove(&ip("10.200.0.2"));
        let contents = desired(&model);
        assert_eq!(flags(&contents, net("10.244.2.0/24")), abi::NODE_POD_NETWORK);
        assert!(contents.tunnel_peers.contains_key(&ip("10.200.0.2").into()));
    }

    #[test]
    fn before_this_node_is_known_only_the_endpoints_are_wanted() {
        let mut model = model(Mode::Vxlan);
        model.own = None;
        let contents = desired(&model);
        assert_eq!(contents.endpoints.len(), 1);
        assert!(contents.nodes.is_empty() && contents.routes.is_empty() && contents.uplinks.is_empty());
    }
}
