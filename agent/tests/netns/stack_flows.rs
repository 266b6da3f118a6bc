//! Flows that go through the host stack, and how they end.

use std::net::{IpAddr, SocketAddr};

use podwire::conntrack::Conntrack;
use podwire_common::abi::Flow;
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;
use podwire_common::reason::Path;
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Lab, Mode, Ns};

use crate::check::Counted;
use crate::service::{drop_invalid, iptables};
use crate::sockets::udp;

const SERVICE: &str = "10.96.0.10:80";
const PORT: u16 = 8080;
const EXCHANGES: usize = 4;

#[test]
fn conntrack_knows_a_translated_connection_by_its_reply() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let (client, server) = (node.add_pod("client").unwrap(), node.add_pod("server").unwrap());
    let to = format!("{}:{PORT}", server.address());
    iptables(
        node,
        &format!("-t nat -A PREROUTING -d 10.96.0.10 -p tcp --dport 80 -j DNAT --to-destination {to}"),
    );
    let route = Route::translated(SERVICE.parse().unwrap(), PORT);
    let exchange = traffic::tcp_exchange_on(&client, &server, route, 1000).unwrap();

    let reply = Flow::new(
        server.address().into(),
        client.address().into(),
        Be16::new(PORT),
        Be16::new(exchange.client.port()),
        protocol::TCP,
    );
    assert!(knows(node, reply), "the entry stays for a while after the connection's end");
    let other = Flow { protocol: protocol::UDP, ..reply };
    assert!(!knows(node, other), "another protocol");
    let other = Flow { source_port: Be16::new(PORT + 1), ..reply };
    assert!(!knows(node, other), "another port");
    node.exec(&["conntrack", "-F"]).unwrap();
    assert!(!knows(node, reply), "forgotten");
}

#[test]
fn conntrack_tells_the_flows_of_both_families() {
    let lab = Lab::builder().agents(false).nodes(1).build().unwrap();
    let host = lab.add_namespace("host").unwrap();
    host.sysctl("net/ipv6/conf/lo/disable_ipv6", "0").unwrap();
    // Only a rule makes the kernel track connections.
    host.exec(&["nft", "add table inet t; add chain inet t c { type filter hook input priority 0; }"])
        .unwrap();
    host.exec(&["nft", "add rule inet t c ct state established accept"]).unwrap();
    for address in ["127.0.0.1", "::1"].map(|address| address.parse::<IpAddr>().unwrap()) {
        let receiver = udp(&host, SocketAddr::new(address, PORT));
        let sender = udp(&host, SocketAddr::new(address, PORT + 1));
        sender.send_to(b"tracked", receiver.local_addr().unwrap()).unwrap();
        let (there, here) = (Be16::new(PORT), Be16::new(PORT + 1));
        let flow = Flow::new(address.into(), address.into(), here, there, protocol::UDP);
        let reply = Flow::new(address.into(), address.into(), there, here, protocol::UDP);
        let listed = host.enter(|| Conntrack::flows().unwrap()).unwrap();
        assert!(listed.contains(&flow) && listed.contains(&reply), "{listed:?}");
        assert!(knows(&host, flow) && knows(&host, reply), "{flow:?}");
        assert!(!knows(&host, Flow { protocol: protocol::TCP, ..flow }), "{flow:?}");
    }
}

#[test]
fn one_socket_reaches_a_backend_by_service_and_directly() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let node = lab.node(0);
        let client = node.add_pod("client").unwrap();
        let (near, far) = (node.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
        for (service, backend) in [("10.96.0.11", &near), ("10.96.0.12", &far)] {
            let to = format!("{}:{PORT}", backend.address());
            iptables(
                node,
                &format!("-t nat -A PREROUTING -d {service} -p udp --dport 53 -j DNAT --to-destination {to}"),
            );
            // Bind the socket before anything is sent: the client sends each datagram once.
            let socket = udp(backend, ("0.0.0.0", PORT));
            let server = std::thread::spawn(move || {
                for _ in 0..EXCHANGES {
                    let mut buffer = [0; 100];
                    let (length, peer) = socket.recv_from(&mut buffer).expect("a question");
                    socket.send_to(&buffer[..length], peer).unwrap();
                }
            });
            let service = SocketAddr::new(service.parse().unwrap(), 53);
            let direct = SocketAddr::new(backend.address(), PORT);
            let answers = exchange(&client, &[service, direct, service, direct]);
            assert_eq!(answers, [service, direct, service, direct], "{mode:?}: who answered");
            server.join().unwrap();
        }
    }
}

#[test]
fn with_a_full_table_pods_take_the_stack_and_lose_nothing() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).agent_arguments(&["--max-stack-flows", "16"]).build().unwrap();
        drop_invalid(&lab);
        let node = lab.node(0);
        let (client, near) = (node.add_pod("client").unwrap(), node.add_pod("near").unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        for (service, backend) in [("10.96.0.11", &near), ("10.96.0.12", &far)] {
            let to = format!("{}:{PORT}", backend.address());
            let rule =
                format!("-t nat -A PREROUTING -d {service} -p tcp --dport 80 -j DNAT --to-destination {to}");
            iptables(node, &rule);
        }
        // This transfer began past the stack. It goes on when its pod has to take the stack.
        let direct = traffic::tcp_stream(&client, &far, far.address(), 9000).unwrap();
        direct.wait_for(1 << 20).unwrap();
        let services = [("10.96.0.11:80", &near), ("10.96.0.12:80", &far)];
        for number in 0..20 {
            for (service, backend) in services {
                let route = Route::translated(service.parse().unwrap(), PORT);
                traffic::tcp_exchange_on(&client, backend, route, 1000)
                    .unwrap_or_else(|error| panic!("{mode:?}: {service}, connection {number}: {error:#}"));
            }
        }
        direct.wait_for(4 << 20).unwrap();
        direct.finish().unwrap();
        let before = Counted::now(&lab);
        assert!(node.traffic().unwrap()[Path::StackFlowsFull.name()] > 0, "{mode:?}: it is counted");
        for server in [&near, &far] {
            let exchange = traffic::tcp_exchange(&client, server, server.address(), 9001, 1 << 20).unwrap();
            assert_eq!(exchange.peer_seen_by_server, exchange.client, "{mode:?}");
            traffic::udp_exchange(&client, server, server.address(), 9001, 1000).unwrap();
        }
        Counted::now(&lab)
            .since(&before)
            .expect(&[(0, Path::ToStack), (0, Path::FromStack)], &[(0, Path::Local)])
            .unwrap_or_else(|error| panic!("{mode:?}: {error:#}"));
    }
}

/// Sends to each destination in turn from one socket, and returns the senders of the answers.
fn exchange(client: &Ns, destinations: &[SocketAddr; EXCHANGES]) -> Vec<SocketAddr> {
    let socket = udp(client, "0.0.0.0:0");
    let ask = |destination| {
        socket.send_to(b"who?", destination).unwrap();
        socket.recv_from(&mut [0; 100]).expect("an answer").1
    };
    destinations.iter().map(ask).collect()
}

fn knows(node: &Ns, flow: Flow) -> bool {
    node.enter(move || Conntrack::open().unwrap().knows(&flow).unwrap()).unwrap()
}
