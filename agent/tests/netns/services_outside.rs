//! Services for clients outside the cluster, and NodePorts for clients inside. No rule of the host
//! translates anything here.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podwire_common::names::maps;
use podwire_common::reason::Drop;
use serde_json::{Value, json};
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Lab, Mode, Node, Ns, Pod, connect};

use crate::commands::rows;
use crate::icmp_errors::path_mtu;
use crate::service::service;
use crate::services::{
    ENTRIES, OPEN_ENTRIES, POD_PORT, SERVICE_PORT, hears_refusals, lab, lab_with, object, put_endpoints,
    serves, slice,
};
use crate::sockets::{connect_from, listen, udp, unspecified, wait_until};
use crate::{FAMILIES, world_end};

pub const NODE_PORT: u16 = 30_080;
/// A host of the underlay that is not a node.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 77);

/// External addresses of the services; the second one is the load balancer's.
pub fn external(last: u8) -> [[IpAddr; 2]; 2] {
    [last, last + 100]
        .map(|last| [IpAddr::from([203, 0, 113, last]), format!("2001:db8:203::{last:x}").parse().unwrap()])
}

/// Returns a Service object with addresses of all kinds.
pub fn open(name: &str, last: u8) -> Value {
    let mut object = object(name, service(last));
    let [external, balancer] = external(last);
    object["spec"]["type"] = "LoadBalancer".into();
    object["spec"]["externalIPs"] = json!(external);
    for port in object["spec"]["ports"].as_array_mut().unwrap() {
        port["nodePort"] = (NODE_PORT + u16::from(last)).into();
    }
    let ingress = balancer.map(|address| json!({ "ip": address, "ipMode": "VIP" }));
    object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
    object
}

/// Adds a service with addresses of all kinds, and waits until the programs of both nodes serve it.
fn add(lab: &Lab, last: u8, endpoints: [&[IpAddr]; 2], before: u32) -> u32 {
    let name = format!("web-{last}");
    put_endpoints(lab, &name, last, endpoints, before + ENTRIES);
    lab.api_server().unwrap().put(open(&name, last));
    let entries = before + ENTRIES + 3 * OPEN_ENTRIES;
    for node in [lab.node(0), lab.node(1)] {
        assert!(serves(node, entries), "{}", node.agent_log_tail(20));
    }
    entries
}

/// Leads a host's packets to the services' external addresses to a node.
pub fn lead_to(node: &Node, from: &Ns) {
    let [via, via6] = node.addresses()[..] else { panic!("one family") };
    from.ip(&format!("route add 203.0.113.0/24 via {via}\nroute add 2001:db8:203::/64 via {via6}")).unwrap();
}

/// Returns the addresses and ports at which clients outside reach a service of a node.
pub fn places(node: &Node, last: u8, family: usize) -> [SocketAddr; 3] {
    let [external, balancer] = external(last).map(|addresses| (addresses[family], SERVICE_PORT).into());
    [(node.addresses()[family], NODE_PORT + u16::from(last)).into(), external, balancer]
}

/// Reaches a server: TCP, and UDP whole and in fragments. The client hears the address that it asked,
/// and the server sees this address as the client's.
fn exchange(client: &Ns, server: &Ns, place: SocketAddr, seen_as: IpAddr) {
    let route = Route::translated(place, POD_PORT);
    let exchanges = [
        traffic::tcp_exchange_on(client, server, route, 1 << 20),
        traffic::udp_exchange_on(client, server, route, 100),
        traffic::udp_exchange_on(client, server, route, 4000),
    ];
    for exchange in exchanges {
        let what = format!("{} to {} by {place}", client.name(), server.name());
        let exchange = exchange.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert_eq!(exchange.peer_seen_by_client, place, "{what}");
        assert_eq!(exchange.peer_seen_by_server.ip(), seen_as, "{what}");
    }
}

#[test]
fn clients_outside_learn_how_much_the_tunnel_takes() {
    let lab = lab(Mode::Vxlan);
    let far = lab.node(1).add_pod("far").unwrap();
    let [address, address6] = far.addresses() else { panic!("one family") };
    add(&lab, 0x48, [&[*address], &[*address6]], 0);
    for family in FAMILIES {
        let (world, _) = world_end(&lab, family);
        let place = places(lab.node(0), 0x48, family)[0];
        let asks = udp(world, (unspecified(place.ip()), 0));
        asks.send_to(&[0; 1440], place).unwrap();
        let learnt = || path_mtu(world, place.ip());
        assert_eq!(wait_until(learnt), Some(1450), "{place}");
        let seen_as = lab.node(0).addresses()[family];
        let exchange =
            traffic::udp_exchange_on(world, &far, Route::translated(place, POD_PORT), 1440).unwrap();
        assert_eq!(exchange.peer_seen_by_server.ip(), seen_as);
    }
}

#[test]
fn a_relayed_backend_learns_the_mtu_towards_the_client() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = lab(mode);
        let far = lab.node(1).add_pod("far").unwrap();
        let [address, address6] = far.addresses() else { panic!("one family") };
        add(&lab, 0x4e, [&[*address], &[*address6]], 0);
        lab.underlay().ip("link set world mtu 1300\n").unwrap();
        for family in FAMILIES {
            let route = Route::translated(places(lab.node(0), 0x4e, family)[0], POD_PORT);
            let (world, _) = world_end(&lab, family);
            traffic::tcp_exchange_on(world, &far, route, 1 << 20).unwrap();
            let learnt = path_mtu(&far, lab.node(0).addresses()[family]);
            assert_eq!(learnt, Some(1300), "{mode:?}, {}", route.destination);
        }
    }
}

#[test]
fn with_the_policy_local_clients_reach_only_backends_here() {
    let lab = lab(Mode::Vxlan);
    let [node, other] = [lab.node(0), lab.node(1)];
    let (near, far) = (node.add_pod("near").unwrap(), other.add_pod("far").unwrap());
    let client = node.add_pod("client").unwrap();
    let api = lab.api_server().unwrap();
    let mut object = open("web", 0x49);
    object["spec"]["externalTrafficPolicy"] = "Local".into();
    api.put(object);
    for family in FAMILIES {
        let mut slice = slice("web", &[near.addresses()[family], far.addresses()[family]], family);
        slice["endpoints"][0]["nodeName"] = node.name().into();
        slice["endpoints"][1]["nodeName"] = other.name().into();
        api.put(slice);
    }
    assert!(serves(node, ENTRIES + 3 * OPEN_ENTRIES), "{}", node.agent_log_tail(20));
    let listening = [&near, &far].map(|pod| (pod.name(), listen(pod, (Ipv6Addr::UNSPECIFIED, POD_PORT))));
    listening.iter().for_each(|(_, listener)| listener.set_nonblocking(true).unwrap());
    // Returns the name of the backend, the client as the backend sees it, and the client itself.
    let reached = |from: &Ns, place: SocketAddr| {
        // Before the agent knows the endpoints, the service refuses.
        let connects = || connect_from(from, (unspecified(place.ip()), 0), place).ok();
        let connection = wait_until(connects).unwrap();
        let accepted = || listening.iter().find_map(|(name, of)| Some((*name, of.accept().ok()?.1)));
        let (name, peer) = wait_until(accepted).unwrap();
        (name, SocketAddr::new(peer.ip().to_canonical(), peer.port()), connection.local_addr().unwrap())
    };
    for family in FAMILIES {
        let (world, _) = world_end(&lab, family);
        let place = places(node, 0x49, family)[0];
        for _ in 0..20 {
            let (name, seen, client) = reached(world, place);
            assert_eq!((name, seen), (near.name(), client), "{place}");
        }
        // For a pod of the node, the policy does not hold.
        let names: BTreeSet<_> = (0..40).map(|_| reached(&client, place).0).collect();
        assert_eq!(names, BTreeSet::from([near.name(), far.name()]), "{place}");
    }
}

#[test]
fn a_backend_outside_learns_how_much_pods_take() {
    let lab = lab(Mode::Vxlan);
    let client = lab.node(0).add_pod("client").unwrap();
    let [address, address6] = lab.world_addresses()[..] else { panic!("one family") };
    add(&lab, 0x4c, [&[address], &[address6]], 0);
    let (to, seen_as) = ((service(0x4c)[1], SERVICE_PORT), lab.node(0).addresses()[1]);
    let [asks, answers] =
        [(&*client, 0), (lab.world(), POD_PORT)].map(|(ns, port)| udp(ns, (Ipv6Addr::UNSPECIFIED, port)));
    asks.send_to(&[0; 8], to).unwrap();
    let (_, from) = answers.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(from.ip(), seen_as);
    // Nobody cuts packets of IPv6 on the way to the smaller links of pods, so the first large answer
    // is lost.
    answers.send_to(&[0; 1500], from).unwrap();
    let learnt = || path_mtu(lab.world(), seen_as);
    assert_eq!(wait_until(learnt), Some(1450));
    answers.send_to(&[0; 1500], from).unwrap();
    assert_eq!(asks.recv(&mut [0; 1500]).unwrap(), 1500);
}

#[test]
fn hosts_beside_the_node_and_containers_reach_backends_outside() {
    let builder = Lab::builder().docker(true).agent_arguments(&["--services", "on"]);
    let lab = builder.build().unwrap();
    let node = lab.node(0);
    let host = lab.add_host("host", HOST.into()).unwrap();
    let container = lab.add_namespace("container").unwrap();
    connect(node, "container", &container, "eth0").unwrap();
    node.ip("link set dev container master docker0").unwrap();
    container.ip("address add 172.17.0.2/16 dev eth0\nroute add default via 172.17.0.1").unwrap();
    let [address, address6] = lab.world_addresses()[..] else { panic!("one family") };
    add(&lab, 0x4f, [&[address], &[address6]], 0);
    let [node_port, external, _] = places(node, 0x4f, 0);
    exchange(&host, lab.world(), node_port, node.address());
    for place in [node_port, external] {
        exchange(&container, lab.world(), place, node.address());
    }
}

#[test]
fn only_clients_in_the_source_ranges_reach_a_balancers_address() {
    let lab = lab(Mode::Vxlan);
    let node = lab.node(0);
    let (near, client) = (node.add_pod("near").unwrap(), node.add_pod("client").unwrap());
    lead_to(node, lab.underlay());
    let [address, address6] = near.addresses() else { panic!("one family") };
    add(&lab, 0x4b, [&[*address], &[*address6]], 0);
    let allow = |ranges: &[String]| {
        let before = node.map_dump(maps::SERVICES).unwrap();
        let mut object = open("web-75", 0x4b);
        object["spec"]["loadBalancerSourceRanges"] = json!(ranges);
        lab.api_server().unwrap().put(object);
        let differs = || (node.map_dump(maps::SERVICES).unwrap() != before).then_some(());
        assert!(wait_until(differs).is_some(), "{}", node.agent_log_tail(20));
        // The agent answers after it has written all of the change.
        rows(node, &["services"]);
    };
    let dropped = || node.drops().unwrap().get(Drop::SourceRange.name()).copied().unwrap_or_default();
    let check = |ns: &Ns, is_admitted: bool| {
        for family in FAMILIES {
            let [_, external, balancer] = places(node, 0x4b, family);
            let own = if ns.name() == client.name() {
                client.addresses()[family]
            } else {
                world_end(&lab, family).1
            };
            // Other addresses of the service are for everyone.
            exchange(ns, &near, external, own);
            if is_admitted {
                exchange(ns, &near, balancer, own);
                continue;
            }
            let before = dropped();
            let asks = udp(ns, (unspecified(own), 0));
            asks.send_to(b"question", balancer).unwrap();
            assert!(wait_until(|| (dropped() > before).then_some(())).is_some(), "{} {balancer}", ns.name());
        }
    };
    let text = |ranges: [&str; 3]| ranges.map(str::to_owned);
    let pods: Vec<_> = client.addresses().iter().map(ToString::to_string).collect();
    let of_pod = [format!("{}/32", pods[0]), format!("{}/128", pods[1]), "192.0.2.0/24".to_owned()];
    let of_world = text(["192.0.2.0/24", "198.51.100.8/29", "2001:db8::/120"]);
    allow(&of_pod);
    check(lab.world(), false);
    check(&client, true);
    allow(&of_world);
    check(&client, false);
    check(lab.world(), true);
    allow(&text(["192.0.2.0/24", "198.51.100.0/29", "2001:db8:1::/48"]));
    check(lab.world(), false);
}

#[test]
fn clients_outside_are_refused_without_an_endpoint() {
    let lab = lab(Mode::Vxlan);
    let [node, other] = [lab.node(0), lab.node(1)];
    let far = other.add_pod("far").unwrap();
    lead_to(node, lab.underlay());
    let entries = add(&lab, 0x4d, [&[], &[]], 0);
    let dropped = |reason: Drop| node.drops().unwrap().get(reason.name()).copied().unwrap_or_default();
    for family in FAMILIES {
        let (world, _) = world_end(&lab, family);
        for place in places(node, 0x4d, family) {
            let before = dropped(Drop::NoBackend);
            hears_refusals(world, place);
            assert_eq!(dropped(Drop::NoBackend) - before, 2, "{place}: a SYN and a datagram");
        }
        hears_refusals(other, places(node, 0x4d, family)[0]);
    }
    // Only another node has one.
    let api = lab.api_server().unwrap();
    let mut object = open("web-77", 0x4d);
    object["spec"]["externalTrafficPolicy"] = "Local".into();
    api.put(object);
    for family in FAMILIES {
        let mut slice = slice("web-77", &[far.addresses()[family]], family);
        slice["endpoints"][0]["nodeName"] = other.name().into();
        api.put(slice);
    }
    assert!(serves(node, entries));
    for family in FAMILIES {
        let (world, _) = world_end(&lab, family);
        let place = places(node, 0x4d, family)[0];
        let before = dropped(Drop::NoLocalBackend);
        let is_dropped = || {
            // Each time another flow: one that begins before the policy changes goes on.
            let asks = udp(world, (unspecified(place.ip()), 0));
            asks.send_to(b"question", place).unwrap();
            (dropped(Drop::NoLocalBackend) > before).then_some(())
        };
        assert!(wait_until(is_dropped).is_some(), "{place}");
    }
}

#[test]
fn connections_of_clients_outside_outlive_changes_and_restarts() {
    let lab = lab(Mode::Vxlan);
    let node = lab.node(0);
    let (near, far) = (node.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
    let addresses = |pod: &Pod| [pod.addresses()[0], pod.addresses()[1]];
    let lead = |pod: &Pod| {
        let [address, address6] = addresses(pod);
        put_endpoints(&lab, "web-74", 0x4a, [&[address], &[address6]], ENTRIES);
        lab.api_server().unwrap().put(open("web-74", 0x4a));
        assert!(serves(node, ENTRIES + 3 * OPEN_ENTRIES), "{}", node.agent_log_tail(20));
    };
    for family in FAMILIES {
        let (world, _) = world_end(&lab, family);
        let route = Route::translated(places(node, 0x4a, family)[0], POD_PORT);
        for (first, second) in [(&far, &near), (&near, &far)] {
            lead(first);
            let connects = |to: &Pod| {
                let reached = || traffic::tcp_exchange_on(world, to, route, 1 << 16).ok();
                assert!(wait_until(reached).is_some(), "{}", node.agent_log_tail(20));
            };
            connects(first);
            let stream = traffic::tcp_stream_on(world, first, route).unwrap();
            let asks = udp(world, (unspecified(route.destination.ip()), 0));
            asks.connect(route.destination).unwrap();
            let ask = |server: &Pod| {
                let answers = udp(server, (unspecified(route.destination.ip()), POD_PORT));
                let mut buffer = [0; 8];
                asks.send(b"question").unwrap();
                let (_, from) = answers.recv_from(&mut buffer).unwrap();
                answers.send_to(b"answer", from).unwrap();
                asks.recv(&mut buffer).unwrap();
            };
            ask(first);
            lead(second);
            connects(second);
            stream.wait_for(1 << 16).unwrap();
            ask(second);
            node.kill_agent().unwrap();
            stream.wait_for(1 << 16).unwrap();
            connects(second);
            node.start_agent().unwrap();
            connects(second);
            stream.wait_for(1 << 16).unwrap();
            stream.finish().unwrap();
        }
    }
}

/// Returns whether a client reaches a server. Otherwise the node itself answers that nobody listens.
fn is_reached(client: &Ns, server: &Ns, place: SocketAddr) -> bool {
    let _listener = listen(server, (unspecified(place.ip()), POD_PORT));
    connect_from(client, (unspecified(place.ip()), 0), place).is_ok()
}

#[test]
fn node_ports_are_only_at_the_addresses_of_the_option() {
    let networks = ["--node-port-addresses", "10.200.0.0/24,fd00:10:244::/48"];
    let lab = lab_with(Mode::Vxlan, &networks);
    let node = lab.node(0);
    let (near, client) = (node.add_pod("near").unwrap(), node.add_pod("client").unwrap());
    let [address, address6] = near.addresses() else { panic!("one family") };
    add(&lab, 0x40, [&[*address], &[*address6]], 0);
    for (family, [internal, overlay]) in [[true, false], [false, true]].into_iter().enumerate() {
        let (world, _) = world_end(&lab, family);
        let [place, _, _] = places(node, 0x40, family);
        let gateway = SocketAddr::new(node.overlay_addresses()[family], place.port());
        for from in [world, &client, node] {
            assert_eq!(is_reached(from, &near, place), internal, "{} to {place}", from.name());
        }
        for from in [&*client, node] {
            assert_eq!(is_reached(from, &near, gateway), overlay, "{} to {gateway}", from.name());
        }
    }
}
