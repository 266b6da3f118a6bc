//! Services that the programs serve: a pod's flow to a ClusterIP goes to a pod, past the host stack
//! in both directions. No rule of the host translates anything here.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podwire_common::names::maps;
use podwire_common::reason::Path::{DirectIn, DirectOut, Local, ToStack, TunnelIn, TunnelOut, TunnelToStack};
use serde_json::{Value, json};
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Lab, Mode, Node, Ns, Pod};

use crate::check::Counted;
use crate::commands::rows;
use crate::service::service;
use crate::sockets::{UdpSocket, connect_from, udp, unspecified, wait_until};
use crate::sweep::metric;

pub const SERVICE_PORT: u16 = 80;
pub const POD_PORT: u16 = 8080;

/// Entries of `SERVICES` for each service: two families and two protocols.
pub const ENTRIES: u32 = 4;

/// Entries of `SERVICES` for each external address and NodePort: also for clients outside.
pub const OPEN_ENTRIES: u32 = 2 * ENTRIES;

/// Returns a Service object with a port for TCP and for UDP, and a ClusterIP of each family.
pub fn object(name: &str, addresses: [IpAddr; 2]) -> Value {
    json!({
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ports": [
                { "name": "tcp", "port": SERVICE_PORT, "protocol": "TCP", "targetPort": POD_PORT },
                { "name": "udp", "port": SERVICE_PORT, "protocol": "UDP", "targetPort": POD_PORT },
            ],
        },
    })
}

/// Returns a service's EndpointSlice of a family, with these endpoints.
pub fn slice(name: &str, endpoints: &[IpAddr], family: usize) -> Value {
    let kind = ["IPv4", "IPv6"][family];
    let endpoint = |address: &IpAddr| json!({ "addresses": [address], "conditions": { "ready": true } });
    json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": format!("{name}-{}", kind.to_lowercase()),
            "namespace": "default",
            "labels": { "kubernetes.io/service-name": name },
        },
        "addressType": kind,
        "ports": [
            { "name": "tcp", "port": POD_PORT, "protocol": "TCP" },
            { "name": "udp", "port": POD_PORT, "protocol": "UDP" },
        ],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// Puts a service of pods and its slices, and waits until the programs of both nodes serve so many
/// addresses of services.
pub fn put(lab: &Lab, name: &str, last: u8, pods: &[&Pod], entries: u32) {
    let endpoints = |family: usize| pods.iter().map(move |pod| pod.addresses()[family]).collect::<Vec<_>>();
    put_endpoints(lab, name, last, [&endpoints(0), &endpoints(1)], entries);
}

/// Does the same for any endpoints.
pub fn put_endpoints(lab: &Lab, name: &str, last: u8, endpoints: [&[IpAddr]; 2], entries: u32) {
    put_object(lab, name, object(name, service(last)), endpoints, entries);
}

/// Does the same for any Service object with this name.
pub fn put_object(lab: &Lab, name: &str, object: Value, endpoints: [&[IpAddr]; 2], entries: u32) {
    let api = lab.api_server().unwrap();
    api.put(object);
    (0..2).for_each(|family| api.put(slice(name, endpoints[family], family)));
    for node in [lab.node(0), lab.node(1)] {
        assert!(serves(node, entries), "{}", node.agent_log_tail(20));
        // The number of entries stays when only endpoints change.
        let wanted: BTreeSet<_> = endpoints.concat().iter().map(ToString::to_string).collect();
        let shown = || -> BTreeSet<_> {
            let rows = rows(node, &["services", "--service", name]);
            let backends = rows.iter().flat_map(|row| row["backends"].as_array().unwrap());
            backends.map(|backend| backend["address"].as_str().unwrap().to_owned()).collect()
        };
        assert!(wait_until(|| (shown() == wanted).then_some(())).is_some(), "{}", node.agent_log_tail(20));
    }
}

/// Waits until a node's programs serve so many addresses of services. Returns whether they do.
pub fn serves(node: &Node, entries: u32) -> bool {
    let served = || metric(node, "podwire_table_entries{table=\"SERVICES\"}");
    wait_until(|| (served() == entries.to_string()).then_some(())).is_some()
}

pub fn lab(mode: Mode) -> Lab {
    lab_with(mode, &[])
}

/// Returns a lab with services, and with more arguments for the agents.
pub fn lab_with(mode: Mode, arguments: &[&str]) -> Lab {
    let builder = Lab::builder().mode(mode).agent_arguments(&["--services", "on"]);
    builder.agent_arguments(arguments).build().unwrap()
}

pub fn route(address: IpAddr) -> Route {
    Route::translated(SocketAddr::new(address, SERVICE_PORT), POD_PORT)
}

/// Reaches a server by its service: TCP, and UDP whole and in fragments. The client hears the service,
/// and the server sees the client's own address.
fn exchange(client: &Ns, server: &Ns, address: IpAddr) {
    let exchanges = [
        traffic::tcp_exchange_on(client, server, route(address), 1 << 20),
        traffic::udp_exchange_on(client, server, route(address), 100),
        traffic::udp_exchange_on(client, server, route(address), 4000),
    ];
    for exchange in exchanges {
        let exchange = exchange.unwrap_or_else(|error| panic!("{} to {address}: {error:#}", client.name()));
        assert_eq!(exchange.peer_seen_by_client.ip(), address);
        assert_eq!(exchange.peer_seen_by_server.ip(), exchange.client.ip(), "{address}");
    }
}

/// Asserts that a client's sockets understand that nobody listens behind a service.
pub fn hears_refusals(client: &Ns, place: SocketAddr) {
    let what = format!("{} to {place}", client.name());
    let refused = connect_from(client, (unspecified(place.ip()), 0), place);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{what}");
    let datagram = udp(client, (unspecified(place.ip()), 0));
    datagram.connect(place).unwrap();
    datagram.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    // The kernel of the backend may send no error, to keep to its limit.
    let refused = || {
        datagram.send(b"question").ok()?;
        datagram
            .recv(&mut [0; 8])
            .err()
            .map(|error| error.kind())
            .filter(|kind| *kind != ErrorKind::WouldBlock)
    };
    assert_eq!(wait_until(refused), Some(ErrorKind::ConnectionRefused), "{what}");
}

#[test]
fn pods_reach_backends_past_the_host_stack() {
    for (mode, out, back) in [(Mode::Vxlan, TunnelOut, TunnelIn), (Mode::Direct, DirectOut, DirectIn)] {
        let lab = lab(mode);
        let client = lab.node(0).add_pod("client").unwrap();
        let (near, far) = (lab.node(0).add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
        put(&lab, "near", 0x30, &[&near], ENTRIES);
        put(&lab, "far", 0x31, &[&far], 2 * ENTRIES);
        for (last, server, takes) in
            [(0x30, &near, &[(0, Local)][..]), (0x31, &far, &[(0, out), (0, back), (1, out), (1, back)])]
        {
            for address in service(last) {
                let before = Counted::quiet(&lab);
                exchange(&client, server, address);
                let grown = Counted::quiet(&lab).since(&before);
                grown.expect(takes, &[(0, ToStack), (1, ToStack), (1, TunnelToStack)]).unwrap();
            }
        }
    }
}

#[test]
fn pods_reach_external_addresses() {
    let lab = lab(Mode::Vxlan);
    let api = lab.api_server().unwrap();
    let client = lab.node(0).add_pod("client").unwrap();
    let (first, second) = (lab.node(1).add_pod("first").unwrap(), lab.node(0).add_pod("second").unwrap());
    let external: [IpAddr; 2] = ["198.51.100.20".parse().unwrap(), "2001:db8::20".parse().unwrap()];
    let balancer: [IpAddr; 2] = ["198.51.100.21".parse().unwrap(), "2001:db8::21".parse().unwrap()];
    let with_addresses = |name: &str, last: u8| {
        let mut object = object(name, service(last));
        object["spec"]["type"] = "LoadBalancer".into();
        object["spec"]["externalIPs"] = json!(external);
        let ingress = balancer.map(|address| json!({ "ip": address, "ipMode": "VIP" }));
        object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        object
    };
    put(&lab, "first", 0x38, &[&first], ENTRIES);
    api.put(with_addresses("first", 0x38));
    assert!(serves(lab.node(0), ENTRIES + 2 * OPEN_ENTRIES), "{}", lab.node(0).agent_log_tail(20));
    // Another service wants the same addresses.
    put(&lab, "second", 0x39, &[&second], 2 * ENTRIES + 2 * OPEN_ENTRIES);
    api.put(with_addresses("second", 0x39));
    let reaches = |server: &Pod| {
        for address in [external, balancer].concat() {
            let before = Counted::quiet(&lab);
            exchange(&client, server, address);
            Counted::quiet(&lab).since(&before).expect(&[], &[(0, ToStack), (1, ToStack)]).unwrap();
        }
    };
    reaches(&first);
    let node = lab.node(0);
    let before = node.map_dump(maps::SERVICES).unwrap();
    api.delete_like(&object("first", service(0x38)));
    let differs = || node.map_dump(maps::SERVICES).unwrap() != before;
    assert!(wait_until(|| (differs() && serves(node, ENTRIES + 2 * OPEN_ENTRIES)).then_some(())).is_some());
    reaches(&second);
}

#[test]
fn connections_outlive_changes_and_an_agents_restart() {
    let lab = lab(Mode::Vxlan);
    let client = lab.node(0).add_pod("client").unwrap();
    let (first, second) = (lab.node(1).add_pod("first").unwrap(), lab.node(0).add_pod("second").unwrap());
    for address in service(0x33) {
        put(&lab, "web", 0x33, &[&first], ENTRIES);
        let stream = traffic::tcp_stream_on(&client, &first, route(address)).unwrap();
        put(&lab, "web", 0x33, &[&second], ENTRIES);
        let connects = || traffic::tcp_exchange_on(&client, &second, route(address), 1 << 16).ok();
        assert!(wait_until(connects).is_some(), "{}", lab.node(0).agent_log_tail(20));
        stream.wait_for(1 << 16).unwrap();
        lab.node(0).kill_agent().unwrap();
        stream.wait_for(1 << 16).unwrap();
        connects().unwrap();
        lab.node(0).start_agent().unwrap();
        connects().unwrap();
        stream.wait_for(1 << 16).unwrap();
        stream.finish().unwrap();
    }
}

#[test]
fn datagrams_go_to_another_backend_when_theirs_is_gone() {
    let lab = lab(Mode::Vxlan);
    let client = lab.node(0).add_pod("client").unwrap();
    let (first, second) = (lab.node(1).add_pod("first").unwrap(), lab.node(0).add_pod("second").unwrap());
    for address in service(0x35) {
        let [asks, here, there] = [(&client, 0), (&second, POD_PORT), (&first, POD_PORT)]
            .map(|(pod, port)| udp(pod, (unspecified(address), port)));
        asks.connect((address, SERVICE_PORT)).unwrap();
        let exchange = |with: &UdpSocket| {
            let mut buffer = [0; 8];
            asks.send(b"question").unwrap();
            let (_, from) = with.recv_from(&mut buffer).unwrap();
            with.send_to(b"answer", from).unwrap();
            asks.recv(&mut buffer).unwrap();
            from
        };
        put(&lab, "dns", 0x35, &[&first], ENTRIES);
        // From the third one on, the programs know the flow.
        for _ in 0..4 {
            exchange(&there);
        }
        put(&lab, "dns", 0x35, &[&second], ENTRIES);
        // The answer comes from the service: the socket is connected.
        exchange(&here);
        assert_eq!(exchange(&here).ip(), client.addresses()[usize::from(address.is_ipv6())]);
    }
}

#[test]
fn what_only_kube_proxy_can_serve_is_left_to_it() {
    let lab = lab(Mode::Vxlan);
    let pod = lab.node(0).add_pod("pod").unwrap();
    let api = lab.api_server().unwrap();
    put(&lab, "web", 0x34, &[&pod], ENTRIES);
    let web = object("web", service(0x34));
    let mut of_sctp = web.clone();
    of_sctp["spec"]["ports"] = json!([{ "name": "signal", "port": SERVICE_PORT, "protocol": "SCTP" }]);
    for (what, is_served, object) in [("SCTP", 0, of_sctp), ("TCP and UDP again", ENTRIES, web.clone())] {
        api.put(object);
        assert!(serves(lab.node(0), is_served), "{what}\n{}", lab.node(0).agent_log_tail(20));
    }
    api.delete_like(&object("web", service(0x34)));
    assert!(serves(lab.node(0), 0), "the service is gone");
    for table in ["BACKENDS", "SERVING"] {
        assert_eq!(metric(lab.node(0), &format!("podwire_table_entries{{table=\"{table}\"}}")), "0");
    }
}

#[test]
fn an_external_address_may_become_a_pods() {
    let lab = lab(Mode::Vxlan);
    let api = lab.api_server().unwrap();
    let [pod, other] = ["pod", "other"].map(|name| lab.node(0).add_pod(name).unwrap());
    let [of_pod, of_other] = [&pod, &other].map(|pod| [&pod.addresses()[..1], &pod.addresses()[1..]]);
    let mut web = object("web", service(0x34));
    web["spec"]["externalIPs"] = json!(["10.244.99.5"]);
    put_object(&lab, "web", web.clone(), of_pod, ENTRIES + OPEN_ENTRIES / 2);
    put_object(&lab, "web", web.clone(), of_other, ENTRIES + OPEN_ENTRIES / 2);
    let mut node = lab.node_list().unwrap()["items"][1].clone();
    node["metadata"]["name"] = json!("node99");
    node["spec"] = json!({ "podCIDR": "10.244.99.0/24", "podCIDRs": ["10.244.99.0/24"] });
    node["status"]["addresses"] = json!([{ "type": "InternalIP", "address": "10.200.0.99" }]);
    api.put(node);
    assert!(serves(lab.node(0), ENTRIES), "{}", lab.node(0).agent_log_tail(20));
    // The agent decides the next change of the service by the nodes that there are now.
    put_object(&lab, "web", web, of_pod, ENTRIES);
    // The metric counts only what the agent means to add.
    let served = lab.node(0).map_dump(maps::SERVICES).unwrap();
    assert_eq!(served.as_array().unwrap().len(), ENTRIES as usize, "{served}");
}
