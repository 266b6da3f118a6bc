use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU64};

use ipnet::IpNet;
use podwire_common::abi;
use podwire_common::addr::{Addr, Be16, Mac};
use podwire_common::flow::protocol;

use super::*;
use crate::model::{Bandwidth, Family, Limit, Mode, NodeLink, Path, PortMapping, Role, Transport};
use crate::slice::{Prefix, Route};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn node(name: &str, pod_network: &str, address: &str) -> Node {
    Node {
        name: name.into(),
        uid: None,
        pod_networks: vec![net(pod_network)],
        internal_addresses: vec![ip(address)],
        cordoned: false,
        vtep_macs: BTreeMap::new(),
    }
}

fn model(mode: Mode) -> Model {
    let mut model = Model::new(mode, None);
    model.vxlan = (mode == Mode::Vxlan).then_some(9);
    model.own = Some(node("node1", "10.244.1.0/24", "10.200.0.1"));
    model.remote.insert("node2".into(), node("node2", "10.244.2.0/24", "10.200.0.2"));
    model.remote.insert("node3".into(), node("node3", "10.244.3.0/24", "10.201.0.3"));
    let addresses = vec![ip("10.200.0.1"), ip("192.0.2.1")];
    model.links.push(NodeLink {
        index: 2,
        name: "eth0".into(),
        mtu: 1500,
        addresses,
        role: Role::Uplink,
        is_bare: false,
    });
    model.paths.insert(ip("10.200.0.2"), Path { device: 2, mtu: 1500, gateway: None });
    let gateway = Some(ip("10.200.0.254"));
    model.paths.insert(ip("10.201.0.3"), Path { device: 2, mtu: 1500, gateway });
    let endpoint = Endpoint::example();
    model.endpoints.insert(endpoint.attachment.clone(), endpoint);
    model
}

fn flags(slice: &Slice, prefix: impl Into<Prefix>) -> u32 {
    slice.tables.nodes[&prefix.into()].flags
}

#[test]
fn limit_of_each_direction_has_its_flag_and_guard() {
    let limit = Some(Limit { rate: NonZeroU64::MIN, burst: None });
    for (bandwidth, flags, guarded) in [
        (Bandwidth::default(), 0, vec![]),
        (Bandwidth { ingress: limit, egress: None }, abi::ENDPOINT_INGRESS_LIMITED, vec![]),
        (Bandwidth { ingress: None, egress: limit }, abi::ENDPOINT_EGRESS_LIMITED, vec![20]),
    ] {
        let mut model = model(Mode::Vxlan);
        model.endpoints.values_mut().for_each(|endpoint| endpoint.bandwidth = bandwidth);
        let slice = desired(&model, Scope::All);
        assert_eq!(slice.tables.endpoints[&ip("10.244.1.2").into()].flags, flags);
        assert_eq!(
            slice.tables.guards.into_keys().collect::<Vec<_>>(),
            guarded,
            "the key is the host side of the pod's veth pair"
        );
    }
}

#[test]
fn remote_nodes_are_reached_through_the_tunnel() {
    let slice = desired(&model(Mode::Vxlan), Scope::All);
    let entry = slice.tables.nodes[&net("10.244.2.0/24").into()];
    assert_eq!(entry.tunnel_endpoint, ip("10.200.0.2").into());
    assert_eq!(entry.source, ip("10.200.0.1").into());
    assert_eq!((entry.uplink, entry.mtu), (2, 1450));
    assert_eq!(entry.flags, abi::NODE_POD_NETWORK | abi::NODE_ON_LINK);
    assert_eq!(flags(&slice, ip("10.200.0.2")), abi::NODE_ADDRESS | abi::NODE_ON_LINK);
    assert_eq!(flags(&slice, net("10.244.3.0/24")), abi::NODE_POD_NETWORK);
    let route = Route::Link { device: 9, gateway: None, source: Some(ip("10.200.0.1")) };
    assert_eq!(slice.routes[&net("10.244.2.0/24")], route);
    assert_eq!(slice.routes[&net("10.244.3.0/24")], route);
    assert_eq!(slice.tables.tunnel_peers.len(), 2);
}

#[test]
fn gateway_of_pods_from_an_earlier_pod_cidr_is_this_nodes() {
    let mut moved = model(Mode::Vxlan);
    moved.own = Some(node("node1", "10.244.9.0/24", "10.200.0.1"));
    let slice = desired(&moved, Scope::All);
    let overlay = abi::NODE_LOCAL | abi::NODE_ADDRESS | abi::NODE_OVERLAY;
    assert_eq!(flags(&slice, ip("10.244.1.1")), overlay);
    assert_eq!(flags(&slice, ip("10.244.9.1")), overlay | abi::NODE_NAMED);
    moved.remote.insert("node4".into(), node("node4", "10.244.1.0/24", "10.200.0.4"));
    let nodes = desired(&moved, Scope::All).tables.nodes;
    assert!(!nodes.contains_key(&ip("10.244.1.1").into()), "another node has the podCIDR now");
}

#[test]
fn node_of_flannel_is_sent_to_at_its_device() {
    let mac = Mac { bytes: [6; 6] };
    let mut moving = model(Mode::Vxlan);
    moving.remote.get_mut("node2").unwrap().vtep_macs = [(Family::V4, mac)].into();
    let slice = desired(&moving, Scope::All);
    let vtep = abi::Vtep { mac, reserved: [0; 2] };
    assert_eq!(slice.tables.vteps, BTreeMap::from([(ip("10.200.0.2").into(), vtep)]));
    let both = abi::NODE_VTEP | abi::NODE_ON_LINK;
    assert_eq!(flags(&slice, net("10.244.2.0/24")), abi::NODE_POD_NETWORK | both);
    assert_eq!(flags(&slice, ip("10.200.0.2")), abi::NODE_ADDRESS | both);
    let source = |network| match slice.routes[&net(network)] {
        Route::Link { source, .. } => source,
        Route::Unreachable => None,
    };
    assert_eq!(source("10.244.2.0/24"), Some(ip("10.244.1.1")));
    assert_eq!(source("10.244.3.0/24"), Some(ip("10.200.0.1")), "other nodes' routes keep their source");
    moving.mode = Mode::Direct;
    let slice = desired(&moving, Scope::All);
    assert!(slice.tables.vteps.is_empty(), "there is no tunnel");
    assert_eq!(flags(&slice, ip("10.200.0.2")) & abi::NODE_VTEP, 0);
}

/// Returns [`model`] with a second family on this node and on node 2.
fn dual(mode: Mode) -> Model {
    let mut model = model(mode);
    let node2 = model.remote.get_mut("node2").unwrap();
    for (number, node) in [(1, model.own.as_mut().unwrap()), (2, node2)] {
        node.pod_networks.push(net(&format!("fd00:10:244:{number}::/64")));
        node.internal_addresses.push(ip(&format!("fd00:10:200::{number}")));
    }
    model.links[0].addresses.push(ip("fd00:10:200::1"));
    model.paths.insert(ip("fd00:10:200::2"), Path { device: 2, mtu: 1500, gateway: None });
    model
}

#[test]
fn both_families_travel_in_one_tunnel_unless_flannel_has_two() {
    let mut model = dual(Mode::Vxlan);
    let ends = |model: &Model, network| {
        let slice = desired(model, Scope::All);
        let entry = slice.tables.nodes[&net(network).into()];
        (IpAddr::from(entry.source), IpAddr::from(entry.tunnel_endpoint), entry.mtu, entry.flags)
    };
    let [v4, v6] = ["10.244.2.0/24", "fd00:10:244:2::/64"];
    let flags = abi::NODE_POD_NETWORK | abi::NODE_ON_LINK;
    for network in [v4, v6] {
        assert_eq!(ends(&model, network), (ip("10.200.0.1"), ip("10.200.0.2"), 1450, flags));
    }
    let macs = [5, 6].map(|last| Mac { bytes: [last; 6] });
    let node2 = model.remote.get_mut("node2").unwrap();
    node2.vtep_macs = [(Family::V4, macs[0]), (Family::V6, macs[1])].into();
    let flags = flags | abi::NODE_VTEP;
    assert_eq!(ends(&model, v4), (ip("10.200.0.1"), ip("10.200.0.2"), 1450, flags));
    let ipv6 = (ip("fd00:10:200::1"), ip("fd00:10:200::2"), 1430, flags | abi::NODE_TUNNEL_IPV6);
    assert_eq!(ends(&model, v6), ipv6);
    let slice = desired(&model, Scope::All);
    let of = |address: &str| slice.tables.vteps[&ip(address).into()].mac;
    assert_eq!([of("10.200.0.2"), of("fd00:10:200::2")], macs);
    assert_eq!(slice.tables.tunnel_peers.len(), 3, "both addresses of node 2, and node 3");
    let source = |network| match slice.routes[&net(network)] {
        Route::Link { source, .. } => source,
        Route::Unreachable => None,
    };
    let overlay = ["10.244.1.1", "fd00:10:244:1::1"].map(|address| Some(ip(address)));
    assert_eq!([source(v4), source(v6)], overlay);
}

#[test]
fn each_family_is_routed_by_the_internal_address_of_it() {
    let slice = desired(&dual(Mode::Direct), Scope::All);
    for (network, gateway, source) in [
        ("10.244.2.0/24", "10.200.0.2", "10.200.0.1"),
        ("fd00:10:244:2::/64", "fd00:10:200::2", "fd00:10:200::1"),
    ] {
        let route = Route::Link { device: 2, gateway: Some(ip(gateway)), source: Some(ip(source)) };
        assert_eq!(slice.routes[&net(network)], route);
    }
}

#[test]
fn without_a_tunnel_only_nodes_on_the_link_get_a_route() {
    let slice = desired(&model(Mode::Direct), Scope::All);
    let gateway = Some(ip("10.200.0.2"));
    let route = Route::Link { device: 2, gateway, source: Some(ip("10.200.0.1")) };
    assert_eq!(slice.routes[&net("10.244.2.0/24")], route);
    assert!(!slice.routes.contains_key(&net("10.244.3.0/24")));
    assert_eq!(slice.tables.nodes[&net("10.244.3.0/24").into()].mtu, 1500);
}

#[test]
fn this_nodes_own_addresses_are_local() {
    let mut model = model(Mode::Vxlan);
    let own = model.own.as_mut().unwrap();
    own.internal_addresses.extend(["192.0.2.1", "192.0.2.99"].map(ip));
    model.links[0].addresses.push(ip("192.0.2.100"));
    let slice = desired(&model, Scope::All);
    const OWN: u32 = abi::NODE_ADDRESS | abi::NODE_LOCAL;
    for named in ["10.200.0.1", "192.0.2.1"] {
        assert_eq!(flags(&slice, ip(named)), OWN | abi::NODE_NAMED, "{named}");
    }
    assert_eq!(flags(&slice, ip("192.0.2.100")), OWN, "an address that no Node object names");
    assert!(!slice.tables.nodes.contains_key(&ip("192.0.2.99").into()), "an address that the node lacks");
    let overlay = OWN | abi::NODE_OVERLAY | abi::NODE_NAMED;
    assert_eq!(flags(&slice, ip("10.244.1.1")), overlay);
    let network = net("10.244.1.0/24");
    assert_eq!(flags(&slice, network), abi::NODE_POD_NETWORK | abi::NODE_LOCAL);
    assert_eq!(slice.routes[&network], Route::Unreachable);
    assert_eq!(slice.tables.links[&2].ipv4, ip("10.200.0.1").into());
    assert_eq!(slice.tables.links[&2].tunnel_address, ip("10.200.0.1").into());
    assert_eq!(slice.tables.links[&9].ipv4, ip("10.244.1.1").into(), "the VXLAN device's");
    assert_eq!(slice.tables.links[&9].tunnel_address, Addr::UNSPECIFIED);
}

#[test]
fn node_ports_are_only_at_addresses_of_the_given_networks() {
    let mut model = model(Mode::Vxlan);
    model.links[0].addresses.push(ip("192.0.2.100"));
    let without = |model: &Model| {
        let slice = desired(model, Scope::All);
        ["10.200.0.1", "192.0.2.100"]
            .map(|address| flags(&slice, ip(address)) & abi::NODE_WITHOUT_NODE_PORTS != 0)
    };
    assert_eq!(without(&model), [false, false]);
    model.node_port_networks = [net("10.200.0.0/24"), net("fd00::/8")].into();
    assert_eq!(without(&model), [false, true]);
}

#[test]
fn links_have_addresses_of_each_family() {
    let mut model = model(Mode::Vxlan);
    model.own.as_mut().unwrap().pod_networks = vec![net("fd00:10:244:1::/64")];
    let addresses = ["fd00:10:200::1", "10.200.0.1", "fd00:10:200::2", "10.200.0.2"];
    model.links[0].addresses = addresses.map(ip).into();
    let tables = desired(&model, Scope::All).tables;
    assert_eq!((tables.links[&2].ipv4, tables.links[&9].ipv4), (ip("10.200.0.1").into(), Addr::UNSPECIFIED));
    let link6 = |source: &str, tunnel: &str| abi::Link6 {
        source: ip(source).into(),
        tunnel_address: ip(tunnel).into(),
    };
    let expected = [(2, link6("fd00:10:200::1", "::")), (9, link6("fd00:10:244:1::1", "::"))];
    assert_eq!(tables.links6, BTreeMap::from(expected));
    model.own.as_mut().unwrap().internal_addresses.push(ip("fd00:10:200::2"));
    let tables = desired(&model, Scope::All).tables;
    assert_eq!(tables.links6[&2], link6("fd00:10:200::1", "fd00:10:200::2"));
    model.without_programs.insert(2);
    assert!(!desired(&model, Scope::All).tables.links6.contains_key(&2), "no packet leaves by it");
}

#[test]
fn an_absent_internal_address_is_replaced_by_the_uplinks() {
    let mut model = model(Mode::Vxlan);
    model.links[0].addresses = vec![ip("10.200.0.51"), ip("192.0.2.1")];
    let slice = desired(&model, Scope::All);
    assert!(!slice.tables.nodes.contains_key(&ip("10.200.0.1").into()));
    assert_eq!(flags(&slice, ip("10.200.0.51")), abi::NODE_ADDRESS | abi::NODE_LOCAL);
    assert_eq!(slice.tables.links[&2].tunnel_address, ip("10.200.0.51").into());
    assert_eq!(slice.tables.nodes[&net("10.244.2.0/24").into()].source, ip("10.200.0.51").into());
    let source = Some(ip("10.200.0.51"));
    assert_eq!(slice.routes[&net("10.244.2.0/24")], Route::Link { device: 9, gateway: None, source });
    // Without any address on an uplink, the kernel chooses the source.
    model.links[0].addresses.clear();
    let slice = desired(&model, Scope::All);
    assert_eq!(slice.routes[&net("10.244.2.0/24")], Route::Link { device: 9, gateway: None, source: None });
    // An address on another link, the loopback device for example, is an address of the node.
    model.other_addresses.insert(ip("10.200.0.1"));
    let slice = desired(&model, Scope::All);
    assert_eq!(slice.tables.links[&2].tunnel_address, ip("10.200.0.1").into());
}

#[test]
fn all_internal_addresses_of_a_node_are_its_own() {
    let mut model = model(Mode::Vxlan);
    let node2 = model.remote.get_mut("node2").unwrap();
    node2.internal_addresses.push(ip("192.0.2.2"));
    let slice = desired(&model, Scope::All);
    assert_eq!(slice.tables.nodes[&ip("192.0.2.2").into()], slice.tables.nodes[&ip("10.200.0.2").into()]);
}

#[test]
fn addresses_of_other_links_are_own_unless_of_the_cluster() {
    let mut model = model(Mode::Vxlan);
    let strange = ["10.244.1.9", "10.244.2.1", "10.200.0.2"].map(ip);
    model.other_addresses = strange.into_iter().chain([ip("172.17.0.1")]).collect();
    let slice = desired(&model, Scope::All);
    assert_eq!(flags(&slice, ip("172.17.0.1")), abi::NODE_ADDRESS | abi::NODE_LOCAL);
    assert_eq!(flags(&slice, ip("10.200.0.2")) & abi::NODE_LOCAL, 0);
    for address in ["10.244.1.9", "10.244.2.1"] {
        assert!(!slice.tables.nodes.contains_key(&ip(address).into()), "{address}");
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
    let slice = desired(&model, Scope::All);
    assert_eq!(slice.tables.endpoints[&ip("10.244.1.2").into()].flags, abi::ENDPOINT_HAS_HOST_PORTS);
    let frontend = |address, protocol| abi::Frontend { address, port: Be16::new(9088), protocol, clients: 0 };
    let backend = abi::Backend { address: ip("10.244.1.2").into(), port: Be16::new(8080), reserved: [0; 2] };
    let expected = BTreeMap::from([
        (frontend(ip("0.0.0.0").into(), protocol::TCP), backend),
        (frontend(ip("10.200.0.1").into(), protocol::UDP), backend),
    ]);
    assert_eq!(slice.tables.frontends, expected);
}

#[test]
fn a_host_port_leads_to_addresses_of_its_family() {
    let mut model = model(Mode::Vxlan);
    let endpoint = model.endpoints.values_mut().next().unwrap();
    let port = |number| NonZeroU16::new(number).unwrap();
    endpoint.port_mappings = [None, Some("::"), Some("0.0.0.0"), Some("10.200.0.1"), Some("fd00:10:200::1")]
        .into_iter()
        .zip(9000..)
        .map(|(address, number)| PortMapping {
            host_address: address.map(ip),
            host_port: port(number),
            container_port: port(8080),
            protocol: Transport::Tcp,
        })
        .collect();
    for (address, expected) in [
        ("10.244.1.2", [("0.0.0.0", 9000), ("0.0.0.0", 9002), ("10.200.0.1", 9003)]),
        ("fd00:10:244:1::2", [("::", 9000), ("::", 9001), ("fd00:10:200::1", 9004)]),
    ] {
        endpoint.pod_addresses[0].address = ip(address);
        let found = frontends(endpoint).map(|(key, backend)| {
            assert_eq!(backend.address, ip(address).into());
            (key.address, key.port.get())
        });
        let found: Vec<(Addr, u16)> = found.collect();
        assert_eq!(found, expected.map(|(address, port)| (ip(address).into(), port)));
    }
}

#[test]
fn pod_has_an_entry_and_a_route_from_the_nodes_address() {
    let slice = desired(&model(Mode::Vxlan), Scope::All);
    assert_eq!(slice.tables.endpoints[&ip("10.244.1.2").into()].ifindex, 20);
    let route = Route::Link { device: 20, gateway: None, source: Some(ip("10.200.0.1")) };
    assert_eq!(slice.routes[&ip("10.244.1.2").into()], route);
}

#[test]
fn a_node_that_cannot_be_reached_is_still_known() {
    let mut model = model(Mode::Vxlan);
    model.paths.remove(&ip("10.200.0.2"));
    let slice = desired(&model, Scope::All);
    assert_eq!(flags(&slice, net("10.244.2.0/24")), abi::NODE_POD_NETWORK);
    assert!(slice.tables.tunnel_peers.contains_key(&ip("10.200.0.2").into()));
}

#[test]
fn before_this_node_is_known_only_the_endpoints_are_wanted() {
    let mut model = model(Mode::Vxlan);
    model.own = None;
    let slice = desired(&model, Scope::All);
    assert_eq!(slice.tables.endpoints.len(), 1);
    assert!(slice.tables.nodes.is_empty() && slice.routes.is_empty() && slice.tables.links.is_empty());
}
