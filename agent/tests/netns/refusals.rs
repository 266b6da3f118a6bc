//! Services without an endpoint: pods and the node's own processes learn at once that nothing
//! answers. No rule of the host refuses anything here.

use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use podwire_common::names::maps;
use podwire_common::reason::Drop::{
    self, NoBackend, NoLocalBackend, ServiceAddressUnknown, ServicePortUnknown,
};
use podwire_common::reason::Path::CallRefused;
use serde_json::Value;
use xtask::lab::traffic;
use xtask::lab::{Lab, Mode, Node, Ns, Pod};

use crate::check::drops;
use crate::commands::{rows, text};
use crate::forwarding_pod::{BEHIND, INSIDE, forwarding_pod};
use crate::host_processes::{LOOPBACKS, answered, connect};
use crate::service::service;
use crate::services::{
    ENTRIES, POD_PORT, SERVICE_PORT, lab, lab_with, object, put, put_endpoints, route, serves, slice,
};
use crate::sockets::{UdpSocket, connect_from, listen, udp, unspecified, wait_until};

/// Last byte of the addresses of the service.
const WEB: u8 = 0x50;
/// A client's own port.
const CLIENT_PORT: u16 = 21_000;

fn dropped(node: &Node, reason: Drop) -> u64 {
    drops(node).get(reason.name()).copied().unwrap_or(0)
}

fn refused_calls(node: &Node) -> u64 {
    node.traffic().unwrap().get(CallRefused.name()).copied().unwrap_or(0)
}

fn destination(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, SERVICE_PORT)
}

/// Returns a client's socket of the family of an address.
fn socket(client: &Ns, address: IpAddr) -> UdpSocket {
    udp(client, (unspecified(address), 0))
}

/// Checks that a client's connection is refused by its first packet.
fn check_connection_refused(node: &Node, client: &Ns, address: IpAddr) {
    let count = || dropped(node, NoBackend);
    let before = count();
    let refused = connect_from(client, (unspecified(address), CLIENT_PORT), destination(address));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
    // If the kernel had not understood, it would have sent the SYN again.
    assert_eq!(count() - before, 1, "{address}");
}

/// Checks that a client's new flows are refused, each by its first packet.
fn check_refused(node: &Node, client: &Ns, address: IpAddr) {
    check_connection_refused(node, client, address);
    let (client, count) = (socket(client, address), || dropped(node, NoBackend));
    client.connect(destination(address)).unwrap();
    // The second datagram is larger than the link: the error answers its first fragment.
    for (length, packets) in [(100, 1), (4000, 3)] {
        let before = count();
        client.send(&vec![7; length]).unwrap();
        let refused = client.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address}, {length} bytes");
        assert!(wait_until(|| (count() - before == packets).then_some(())).is_some(), "{length} bytes");
    }
}

/// Connects from the port of the refused connection, and exchanges datagrams.
fn check_served(client: &Ns, server: &Ns, address: IpAddr) {
    for exchange in [
        traffic::tcp_exchange_on(client, server, route(address), 1 << 16),
        traffic::udp_exchange_on(client, server, route(address), 100),
    ] {
        assert_eq!(exchange.unwrap().peer_seen_by_client, destination(address));
    }
    let _listener = listen(server, (unspecified(address), POD_PORT));
    connect_from(client, (unspecified(address), CLIENT_PORT), destination(address)).unwrap();
}

#[test]
fn pods_are_refused_at_once_until_a_backend_comes() {
    let lab = lab(Mode::Vxlan);
    let node = lab.node(0);
    let client = node.add_pod("client").unwrap();
    for server in [node.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap()] {
        put_endpoints(&lab, "web", WEB, [&[], &[]], ENTRIES);
        for address in service(WEB) {
            check_refused(node, &client, address);
        }
        put(&lab, "web", WEB, &[&server], ENTRIES);
        for address in service(WEB) {
            check_served(&client, &server, address);
        }
    }
    put_endpoints(&lab, "web", WEB, [&[], &[]], ENTRIES);
    for address in service(WEB) {
        check_refused(node, &client, address);
    }
}

/// The host's SYN has no checksum yet when the programs answer it, and the answer neither. Behind the
/// pod, the kernel completes the answer's.
#[test]
fn hosts_behind_a_pod_are_refused_at_once() {
    let lab = lab(Mode::Vxlan);
    let gateway = forwarding_pod(lab.node(0));
    let behind = lab.add_namespace("behind").unwrap();
    xtask::lab::connect(&gateway, "inside", &behind, "eth0").unwrap();
    gateway.exec(&["ethtool", "-K", "inside", "tx", "off"]).unwrap();
    put_endpoints(&lab, "web", WEB, [&[], &[]], ENTRIES);
    for (family, address) in service(WEB).into_iter().enumerate() {
        let length = [24, 64][family];
        gateway.add_address("inside", INSIDE[family], length).unwrap();
        behind.add_address("eth0", BEHIND[family], length).unwrap();
        behind.ip(&format!("route add default via {}\n", INSIDE[family])).unwrap();
        for tx in ["on", "off"] {
            behind.exec(&["ethtool", "-K", "eth0", "tx", tx]).unwrap();
            check_connection_refused(lab.node(0), &behind, address);
        }
    }
}

#[test]
fn flows_of_before_go_on_when_the_last_backend_goes() {
    let lab = lab(Mode::Vxlan);
    let (client, server) = (lab.node(0).add_pod("client").unwrap(), lab.node(1).add_pod("server").unwrap());
    for address in service(WEB) {
        put(&lab, "web", WEB, &[&server], ENTRIES);
        let stream = traffic::tcp_stream_on(&client, &server, route(address)).unwrap();
        let [asks, answers] =
            [(&client, 0), (&server, POD_PORT)].map(|(pod, port)| udp(pod, (unspecified(address), port)));
        asks.connect(destination(address)).unwrap();
        let exchange = || {
            asks.send(b"question").unwrap();
            assert_eq!(answered(&asks, &answers), destination(address));
        };
        exchange();
        put_endpoints(&lab, "web", WEB, [&[], &[]], ENTRIES);
        for _ in 0..4 {
            exchange();
        }
        stream.wait_for(1 << 16).unwrap();
        check_refused(lab.node(0), &client, address);
        stream.finish().unwrap();
    }
}

/// Puts a service whose policy is `Local`, with a pod of the second node.
fn put_local(lab: &Lab, server: &Pod) {
    let api = lab.api_server().unwrap();
    put(lab, "web", WEB, &[server], ENTRIES);
    let mut web = object("web", service(WEB));
    web["spec"]["internalTrafficPolicy"] = "Local".into();
    for family in 0..2 {
        let mut slice = slice("web", &[server.addresses()[family]], family);
        slice["endpoints"][0]["nodeName"] = lab.node(1).name().into();
        api.put(slice);
    }
    api.put(web);
    let answers = |node: &Node, wanted: &Value| {
        let rows = || rows(node, &["services", "--service", "web"]);
        wait_until(|| rows().iter().all(|row| row["answer"] == *wanted).then_some(())).is_some()
    };
    assert!(answers(lab.node(0), &"dropped".into()), "{}", lab.node(0).agent_log_tail(20));
    assert!(serves(lab.node(0), ENTRIES) && answers(lab.node(1), &Value::Null));
}

#[test]
fn without_a_local_endpoint_packets_are_dropped() {
    let lab = lab(Mode::Vxlan);
    let node = lab.node(0);
    let [client, server] =
        [(node, "client"), (lab.node(1), "server")].map(|(node, name)| node.add_pod(name).unwrap());
    let near = lab.node(1).add_pod("near").unwrap();
    put_local(&lab, &server);
    let count = || dropped(node, NoLocalBackend);
    for address in service(WEB) {
        let before = count();
        let brief = Duration::from_millis(100);
        let lost = client.enter(|| TcpStream::connect_timeout(&destination(address), brief)).unwrap();
        assert_eq!(lost.unwrap_err().kind(), ErrorKind::TimedOut, "{address}");
        assert!(count() > before, "{address}");
        let (asks, before) = (socket(&client, address), count());
        asks.connect(destination(address)).unwrap();
        asks.send(b"question").unwrap();
        assert!(wait_until(|| (count() > before).then_some(())).is_some(), "{address}");
        asks.set_nonblocking(true).unwrap();
        assert_eq!(asks.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock, "{address}");
        let refused = connect(node, destination(address)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::HostUnreachable, "{address}");
        // On the pod's own node, it answers.
        check_served(&near, &server, address);
        check_served(lab.node(1), &server, address);
    }
}

#[test]
fn processes_are_refused_at_once_until_a_backend_comes() {
    let lab = lab(Mode::Vxlan);
    let node = lab.node(0);
    let server = lab.node(1).add_pod("server").unwrap();
    let mapped = |address: IpAddr| {
        let IpAddr::V4(v4) = address else { panic!("{address}") };
        destination(v4.to_ipv6_mapped().into())
    };
    for (family, address) in service(WEB).into_iter().enumerate() {
        put_endpoints(&lab, "web", WEB, [&[], &[]], ENTRIES);
        let client = socket(node, address);
        let mut asked = vec![(client, destination(address))];
        if family == 0 {
            asked.push((udp(node, (Ipv6Addr::UNSPECIFIED, 0)), mapped(address)));
        }
        for (client, to) in &asked {
            let before = refused_calls(node);
            for refused in [
                connect(node, *to).map(drop_value),
                client.send_to(b"question", to).map(drop_value),
                client.connect(to),
            ] {
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
            }
            assert_eq!(refused_calls(node) - before, 3, "{to}");
        }
        let redirected = node.map_dump(maps::REDIRECTED_SOCKETS).unwrap();
        assert!(redirected.as_array().unwrap().is_empty(), "{redirected}");
        // Only calls are refused: no packet has left.
        assert_eq!(dropped(node, NoBackend), 0);
        put(&lab, "web", WEB, &[&server], ENTRIES);
        check_served(node, &server, address);
        let answers = udp(&server, (unspecified(LOOPBACKS[family]), POD_PORT));
        for (client, to) in &asked {
            client.send_to(b"question", to).unwrap();
            assert_eq!(answered(client, &answers), *to);
        }
    }
}

fn drop_value<T>(_: T) {}

#[test]
fn addresses_and_ports_that_no_service_has_are_refused() {
    const OTHER: u16 = SERVICE_PORT + 1;
    let lab = lab_with(Mode::Vxlan, &["--service-networks", "10.96.0.0/24,fd00:10:96::/112"]);
    let node = lab.node(0);
    let (client, server) = (node.add_pod("client").unwrap(), lab.node(1).add_pod("server").unwrap());
    // Each ClusterIP has an entry for the ports that it lacks.
    put(&lab, "web", WEB, &[&server], ENTRIES + 2);
    let count = |reason| dropped(node, reason);
    for (address, unused) in service(WEB).into_iter().zip(service(WEB + 1)) {
        let connect_to = |port| connect_from(&client, (unspecified(address), 0), (address, port));
        let is_refused =
            || connect_to(OTHER).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        assert!(wait_until(|| is_refused().then_some(())).is_some(), "{}", node.agent_log_tail(20));
        let before = count(ServicePortUnknown);
        assert!(is_refused());
        assert_eq!(count(ServicePortUnknown) - before, 1, "{address}");
        let asks = socket(&client, address);
        asks.connect((address, OTHER)).unwrap();
        asks.send(b"question").unwrap();
        assert_eq!(asks.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
        let before = count(ServiceAddressUnknown);
        asks.send_to(b"question", destination(unused)).unwrap();
        let is_dropped = || (count(ServiceAddressUnknown) - before == 1).then_some(());
        assert!(wait_until(is_dropped).is_some(), "{unused}");
        for (to, kind) in [
            (SocketAddr::new(address, OTHER), ErrorKind::ConnectionRefused),
            (destination(unused), ErrorKind::HostUnreachable),
        ] {
            let before = refused_calls(node);
            assert_eq!(connect(node, to).unwrap_err().kind(), kind, "{to}");
            assert_eq!(socket(node, address).send_to(b"question", to).unwrap_err().kind(), kind, "{to}");
            assert_eq!(refused_calls(node) - before, 2, "{to}");
        }
        check_served(&client, &server, address);
        check_served(node, &server, address);
        // A connection that has lost its translation does not leave for the world.
        let _listener = listen(&server, (unspecified(address), POD_PORT));
        let mut stream = connect_from(&client, (unspecified(address), 0), destination(address)).unwrap();
        let port = stream.local_addr().unwrap().port().to_string();
        let of_stream = ["--address", &address.to_string(), "--port", &port, "--protocol", "tcp"];
        text(node, &[&["flows", "--delete"][..], &of_stream].concat());
        let before = count(ServiceAddressUnknown);
        stream.write_all(b"question").unwrap();
        let is_dropped = || (count(ServiceAddressUnknown) > before).then_some(());
        assert!(wait_until(is_dropped).is_some(), "{address}");
    }
    let shown = rows(node, &["services"]);
    assert!(shown.iter().all(|row| row["port"] == SERVICE_PORT), "{shown:?}");
    // An agent that knows no services leaves all addresses to kube-proxy.
    lab.api_server().unwrap().delete_like(&object("web", service(WEB)));
    for address in service(WEB + 1) {
        let is_left = || {
            let before = refused_calls(node);
            let _ = socket(node, address).send_to(b"question", destination(address));
            (refused_calls(node) == before).then_some(())
        };
        assert!(wait_until(is_left).is_some(), "{}", node.agent_log_tail(20));
    }
}
