//! Services without an endpoint for this node's pods: new flows are refused or dropped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use podwire_common::abi;
use podwire_common::names::programs::{FROM_POD, TO_UPLINK};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::{Family, Mode};
use podwire_core::services::{Answer, Backend, Frontend, FrontendKind, Protocol, ServedPort, ServiceName};

use crate::family::{Address, IpPacket};
use crate::fixture::*;
use crate::fixture6::add_ipv6;
use crate::kinds::ack;
use crate::packets::*;

const PORT: u16 = 80;
/// A privileged port, which flows to a service keep.
const CLIENT: u16 = 700;
/// The sequence number of the tests' TCP packets, and the bytes of their payload.
const SEQUENCE: u32 = 1000;
const PAYLOAD: u32 = 8;
const WITH_NETWORKS: u32 = abi::SERVICES_SERVED | abi::SERVICES_HAVE_NETWORKS;

/// Returns a node with pods of both families.
fn node() -> Fixture {
    let mut node = Fixture::with_config(Mode::Vxlan, |config| abi::Config { services: 1, ..*config });
    add_ipv6(&mut node);
    node
}

/// Lets a service of TCP and UDP answer like this. `backends`: all that serve.
fn serve<A: Address>(node: &mut Fixture, inside: Answer, backends: &[A]) {
    let port = NonZeroU16::new(PORT).unwrap();
    let backend = |address: &A| Backend { address: (*address).into(), port, is_local: false };
    let backends: Vec<_> = backends.iter().map(backend).collect();
    let address: IpAddr = A::SERVICE.into();
    let served = |protocol| ServedPort {
        name: String::new(),
        protocol,
        family: Family::of(address),
        affinity: None,
        cluster: backends.clone(),
        local: Vec::new(),
        serving: backends.clone(),
        frontends: vec![Frontend {
            address,
            port,
            kind: FrontendKind::ClusterIp,
            inside,
            outside: None,
            keeps_client_address: false,
            source_ranges: Vec::new(),
        }],
    };
    let name = ServiceName { namespace: "default".into(), name: "web".into() };
    node.model.services.set(&name, Some([Protocol::Tcp, Protocol::Udp].map(served).into()));
    node.fill();
}

/// Returns pod A's packet to the service.
fn request<A: Address>(transport: Transport) -> A::Packet {
    A::Packet::new(A::POD_A, A::SERVICE, transport).on_link(HOST_A_MAC, POD_A_MAC)
}

/// Returns the service's answer to pod A.
fn answer<A: Address>(transport: Transport, payload: &[u8]) -> Vec<u8> {
    let answer = A::Packet::new(A::SERVICE, A::POD_A, transport).on_link(POD_A_MAC, HOST_A_MAC);
    answer.of_program().set(|fields| *fields.payload = payload.to_vec()).build()
}

/// Returns the reset that answers a SYN with so many bytes of data.
fn reset<A: Address>(data: u32) -> Vec<u8> {
    reset_from::<A>(PORT, data)
}

fn reset_from<A: Address>(source: u16, data: u32) -> Vec<u8> {
    let acknowledged = SEQUENCE + 1 + data;
    answer::<A>(Transport::Reset { source, destination: CLIENT, acknowledged }, &[])
}

/// Returns "port unreachable" about a packet. It quotes 28 bytes in IPv4, and at most 64 in IPv6.
fn unreachable<A: Address>(packet: &A::Packet) -> Vec<u8> {
    let (kind, code, most) = A::either((3, 3, 28), (1, 4, 64));
    let quoted = behind_ethernet(&packet.build());
    answer::<A>(Transport::Icmp { kind, code, word: [0; 4] }, &quoted[..quoted.len().min(most)])
}

/// Checks that nothing is remembered of a refused flow.
fn check_nothing_stays<A: Address>(node: &Fixture) {
    assert_eq!(node.translations().len(), 0);
    assert!(A::all_known(&node.loaded.maps).is_empty());
    assert_eq!(node.loaded.maps.stack_flows.iter().count(), 0);
}

fn check_refused<A: Address>() {
    let mut node = node();
    let link = node.pod_a;
    serve::<A>(&mut node, Answer::Refused, &[]);
    let refused = |answer| Expect::Answer(Reason::NoBackend, answer);
    let syn = request::<A>(tcp(CLIENT, PORT));
    node.check("SYN with data", FROM_POD, link, &syn.build(), refused(reset::<A>(PAYLOAD)));
    let syn = syn.set(|fields| fields.payload.clear());
    for what in ["SYN", "SYN again"] {
        node.check(what, FROM_POD, link, &syn.build(), refused(reset::<A>(0)));
    }
    for length in [0, 1, 8, 15, 16, 17, 1000] {
        let datagram = request::<A>(udp(CLIENT, PORT)).set(|fields| *fields.payload = vec![7; length]);
        let expect = refused(unreachable::<A>(&datagram));
        node.check(&format!("{length} bytes"), FROM_POD, link, &datagram.build(), expect);
    }
    check_nothing_stays::<A>(&node);
    // A backend comes.
    serve(&mut node, Answer::Cluster, &[A::POD_B]);
    for transport in [tcp(CLIENT, PORT), udp(CLIENT, PORT)] {
        let asked = request::<A>(transport);
        let arrives = asked.clone().on_link(POD_B_MAC, HOST_B_MAC).set(|fields| {
            *fields.destination = A::POD_B;
            *fields.ttl -= 1;
        });
        let expect = Expect::Redirect(Path::Local, arrives.build());
        node.check("served", FROM_POD, link, &asked.build(), expect);
    }
}

#[test]
fn without_an_endpoint_a_new_flow_is_refused() {
    check_refused::<Ipv4Addr>();
    check_refused::<Ipv6Addr>();
}

fn check_fragments<A: Address>() {
    let mut node = node();
    let link = node.pod_a;
    serve::<A>(&mut node, Answer::Refused, &[]);
    let [first, last] = request::<A>(udp(CLIENT, PORT)).fragments();
    let expect = Expect::Answer(Reason::NoBackend, unreachable::<A>(&first));
    node.check("first fragment", FROM_POD, link, &first.build(), expect);
    node.check("last fragment", FROM_POD, link, &last.build(), Expect::Drop(Reason::NoBackend));
    for transport in [tcp(CLIENT, PORT), udp(CLIENT, PORT)] {
        let is_tcp = matches!(transport, Transport::Tcp { .. });
        let packet = request::<A>(transport);
        for (what, odd) in packet.odd((CLIENT, PORT)) {
            // In IPv6 the quote of an error has room for an extension header.
            let is_answered = !is_tcp && (!what.contains("IP options"));
            let expect = match is_answered {
                true => Expect::Answer(Reason::NoBackend, unreachable::<A>(&odd)),
                false => Expect::Drop(Reason::NoBackend),
            };
            node.check(what, FROM_POD, link, &odd.build(), expect);
        }
    }
    check_nothing_stays::<A>(&node);
}

#[test]
fn a_refused_packet_that_cannot_be_answered_is_dropped() {
    check_fragments::<Ipv4Addr>();
    check_fragments::<Ipv6Addr>();
}

fn check_dropped<A: Address>() {
    let mut node = node();
    let link = node.pod_a;
    serve(&mut node, Answer::Dropped, &[A::REMOTE_POD]);
    for transport in [tcp(CLIENT, PORT), udp(CLIENT, PORT)] {
        let packet = request::<A>(transport).build();
        node.check("dropped", FROM_POD, link, &packet, Expect::Drop(Reason::NoLocalBackend));
    }
    check_nothing_stays::<A>(&node);
}

#[test]
fn without_a_local_endpoint_a_new_flow_is_dropped() {
    check_dropped::<Ipv4Addr>();
    check_dropped::<Ipv6Addr>();
}

fn check_flows_go_on<A: Address>() {
    let mut node = node();
    let link = node.pod_a;
    serve(&mut node, Answer::Cluster, &[A::POD_B]);
    let arrives = |packet: &A::Packet| {
        let arrives = packet.clone().on_link(POD_B_MAC, HOST_B_MAC).set(|fields| {
            *fields.destination = A::POD_B;
            *fields.ttl -= 1;
        });
        Expect::Redirect(Path::Local, arrives.build())
    };
    let [syn, later, datagram] = [tcp(CLIENT, PORT), ack(CLIENT, PORT), udp(CLIENT, PORT)].map(request::<A>);
    for packet in [&syn, &later, &datagram] {
        node.check("begun", FROM_POD, link, &packet.build(), arrives(packet));
    }
    serve::<A>(&mut node, Answer::Refused, &[]);
    for _ in 0..4 {
        for packet in [&later, &datagram] {
            node.check("goes on", FROM_POD, link, &packet.build(), arrives(packet));
        }
    }
    let expect = Expect::Answer(Reason::NoBackend, reset::<A>(PAYLOAD));
    node.check("another connection", FROM_POD, link, &syn.build(), expect);
    let other = request::<A>(udp(CLIENT + 1, PORT));
    let expect = Expect::Answer(Reason::NoBackend, unreachable::<A>(&other));
    node.check("another flow", FROM_POD, link, &other.build(), expect);
    // The pod no longer serves, but others do, on other nodes.
    serve(&mut node, Answer::Dropped, &[A::REMOTE_POD]);
    node.check("a flow ends", FROM_POD, link, &datagram.build(), Expect::Drop(Reason::NoLocalBackend));
    serve(&mut node, Answer::Cluster, &[A::POD_B]);
    for packet in [&syn, &datagram, &other] {
        node.check("served again", FROM_POD, link, &packet.build(), arrives(packet));
    }
}

#[test]
fn flows_of_before_go_on_without_an_endpoint() {
    check_flows_go_on::<Ipv4Addr>();
    check_flows_go_on::<Ipv6Addr>();
}

/// Returns a node that knows the network of the services' addresses, with one service.
fn node_with_network<A: Address>(flags: u32) -> Fixture {
    let mut node = Fixture::with_config(Mode::Vxlan, |config| abi::Config { services: flags, ..*config });
    add_ipv6(&mut node);
    let network = A::either("10.96.0.0/24", "fd00:10:96::/112").parse().unwrap();
    node.model.service_networks.insert(network);
    serve(&mut node, Answer::Cluster, &[A::POD_B]);
    node
}

fn check_network<A: Address>() {
    const OTHER: u16 = PORT + 1;
    let mut node = node_with_network::<A>(WITH_NETWORKS);
    let link = node.pod_a;
    let [syn, later, datagram] =
        [tcp(CLIENT, OTHER), ack(CLIENT, OTHER), udp(CLIENT, OTHER)].map(request::<A>);
    let echo = request::<A>(Transport::EchoRequest { identifier: 7 });
    let of_service = request::<A>(ack(CLIENT, PORT));
    let to = |address: A, packet: &A::Packet| packet.clone().set(|fields| *fields.destination = address);
    let stack = |packet: &A::Packet| Expect::Stack(Path::ToStack, packet.build());
    let unknown = Reason::ServicePortUnknown;
    let nobodys = [&syn, &later, &datagram, &echo].map(|packet| to(A::UNUSED, packet));
    let outside = to(A::WORLD, &syn);
    for (what, packet, expect) in [
        ("SYN", &syn, Expect::Answer(unknown, reset_from::<A>(OTHER, PAYLOAD))),
        ("a connection", &later, Expect::Drop(unknown)),
        ("a datagram", &datagram, Expect::Answer(unknown, unreachable::<A>(&datagram))),
        ("an echo", &echo, Expect::Drop(unknown)),
        ("a connection from before the option", &of_service, stack(&of_service)),
        ("nobody's address, SYN", &nobodys[0], Expect::Drop(Reason::ServiceAddressUnknown)),
        ("nobody's address, a connection", &nobodys[1], Expect::Drop(Reason::ServiceAddressUnknown)),
        ("nobody's address, a datagram", &nobodys[2], Expect::Drop(Reason::ServiceAddressUnknown)),
        ("nobody's address, an echo", &nobodys[3], Expect::Drop(Reason::ServiceAddressUnknown)),
        ("the world", &outside, stack(&outside)),
    ] {
        node.check(what, FROM_POD, link, &packet.build(), expect);
    }
    // No rule of the host knows the connection either, and the stack sends it to the world.
    let lost = Expect::Drop(Reason::ServiceAddressUnknown);
    node.check("a connection that nobody knows", TO_UPLINK, node.uplink, &of_service.build(), lost);
    check_nothing_stays::<A>(&node);
    // kube-proxy serves another port of the service.
    let name = ServiceName { namespace: "default".into(), name: "web".into() };
    let (_, ports) = node.model.services.get_key_value(&name).unwrap();
    let sctp = ServedPort { protocol: Protocol::Sctp, ..ports[0].clone() };
    let ports = ports.iter().cloned().chain([sctp]).collect();
    node.model.services.set(&name, Some(ports));
    node.fill();
    for packet in [&syn, &datagram, &echo] {
        node.check("perhaps kube-proxy's", FROM_POD, link, &packet.build(), stack(packet));
    }
    let expect = Expect::Drop(Reason::ServiceAddressUnknown);
    node.check("nobody's address", FROM_POD, link, &nobodys[0].build(), expect);
    node.model.services.set(&name, None);
    node.fill();
    node.check("no services are known", FROM_POD, link, &nobodys[0].build(), stack(&nobodys[0]));
    let mut node = node_with_network::<A>(abi::SERVICES_SERVED);
    let link = node.pod_a;
    node.check("without the option", FROM_POD, link, &nobodys[0].build(), stack(&nobodys[0]));
}

#[test]
fn addresses_and_ports_that_no_service_has_are_refused() {
    check_network::<Ipv4Addr>();
    check_network::<Ipv6Addr>();
}
