//! hostPorts: requests at `from_uplink` and `from_pod`, replies at `from_pod`, and ICMP errors
//! about them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use podwire_common::abi::{Flow, TRANSLATION_HOST_PORT, Translation};
use podwire_common::addr::{Addr, Be16};
use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK, TO_UPLINK};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;
use podwire_core::model::{PortMapping, Transport as Protocol};

use crate::fixture::*;
use crate::packets::*;

/// A hostPort of pod A on every address of the node, with [`POD_PORT`] behind it.
const HOST_PORT: u16 = 9088;
/// A hostPort on node 1's InternalIP only.
const HOST_PORT_HERE: u16 = 9089;
/// A hostPort for the node's own processes only.
const HOST_PORT_LOOPBACK: u16 = 9090;
/// A hostPort on an address that the node does not have.
const HOST_PORT_ELSEWHERE: u16 = 9091;
const POD_PORT: u16 = 8080;
const CLIENT_PORT: u16 = 40000;
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

fn fixture(mode: Mode) -> Fixture {
    let mut fixture = Fixture::new(mode);
    let port = |number| NonZeroU16::new(number).unwrap();
    let mapping = |host_address, host_port, protocol| PortMapping {
        host_address,
        host_port: port(host_port),
        container_port: port(POD_PORT),
        protocol,
    };
    let addresses = [
        (None, HOST_PORT),
        (Some(NODE1), HOST_PORT_HERE),
        (Some(Ipv4Addr::LOCALHOST), HOST_PORT_LOOPBACK),
        (Some(ELSEWHERE), HOST_PORT_ELSEWHERE),
    ];
    let pod = fixture
        .model
        .endpoints
        .values_mut()
        .find(|endpoint| endpoint.addresses().any(|address| address == POD_A))
        .unwrap();
    pod.port_mappings = addresses
        .iter()
        .flat_map(|(address, number)| {
            [Protocol::Tcp, Protocol::Udp].map(|p| mapping(address.map(Into::into), *number, p))
        })
        .collect();
    fixture.fill();
    fixture
}

/// Returns a request of a client on the link to this node.
fn request(client: Ipv4Addr, destination: Ipv4Addr, transport: Transport) -> Packet {
    Packet::new(client, destination, transport).macs(UPLINK_MAC, NODE2_MAC)
}

/// Returns pod A's reply as pod A sends it.
fn reply(client: Ipv4Addr, transport: Transport) -> Packet {
    Packet::new(POD_A, client, transport).macs(HOST_A_MAC, POD_A_MAC)
}

fn syn_ack(source: u16, destination: u16) -> Transport {
    Transport::Tcp { source, destination, flags: 0x12 }
}

fn end(address: Ipv4Addr, port: u16) -> (Addr, Be16) {
    (address.into(), Be16::new(port))
}

type End = (Addr, Be16);

fn flow(from: End, to: End, protocol: u8) -> Flow {
    Flow::new(from.0, to.0, from.1, to.1, protocol)
}

/// Returns all translations, without their times.
fn translations(fixture: &Fixture) -> BTreeMap<Flow, Translation> {
    let timeless = |(flow, half)| (flow, Translation { last_seen: 0, ..half });
    fixture.translations().into_iter().map(timeless).collect()
}

fn half(from: End, to: End, ifindex: u32, reply: u8, hairpin: u8) -> Translation {
    Translation {
        last_seen: 0,
        source: from.0,
        destination: to.0,
        source_port: from.1,
        destination_port: to.1,
        ifindex,
        asked: 0,
        kind: TRANSLATION_HOST_PORT,
        reply,
        state: 0,
        hairpin,
        past_stack: 0,
        is_long: 0,
        service: 0,
        list: 0,
    }
}

#[test]
fn a_request_reaches_the_pod_and_both_halves_are_there() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        for (what, number, sent, arrives) in [
            ("TCP", protocol::TCP, tcp(CLIENT_PORT, HOST_PORT), tcp(CLIENT_PORT, POD_PORT)),
            ("UDP", protocol::UDP, udp(CLIENT_PORT, HOST_PORT), udp(CLIENT_PORT, POD_PORT)),
            (
                "UDP without checksum",
                protocol::UDP,
                Transport::Udp { source: CLIENT_PORT, destination: HOST_PORT, checksum: false },
                Transport::Udp { source: CLIENT_PORT, destination: POD_PORT, checksum: false },
            ),
        ] {
            let mut node = fixture(mode);
            let link = node.uplink;
            let packet = request(STRANGER, NODE1, sent);
            // The client takes the node for the pod, without a router between them. So the program
            // keeps the TTL.
            let expected = Packet { destination: POD_A, transport: arrives, ..packet.clone() };
            let expected = expected.macs(POD_A_MAC, HOST_A_MAC).build();
            let expect = || Expect::Redirect(Path::HostPortIn, expected.clone());
            node.check(what, FROM_UPLINK, link, &packet.build(), expect());
            let (client, host) = (end(STRANGER, CLIENT_PORT), end(NODE1, HOST_PORT));
            let pod = end(POD_A, POD_PORT);
            let pair = BTreeMap::from([
                (flow(client, host, number), half(client, pod, link, 0, 0)),
                (flow(pod, client, number), half(host, client, link, 1, 0)),
            ]);
            assert_eq!(translations(&node), pair, "{what}");
            node.check("once more", FROM_UPLINK, link, &packet.build(), expect());
            assert_eq!(translations(&node), pair, "{what}, once more");
        }
    }
}

#[test]
fn a_reply_leaves_in_the_hosts_name_the_way_its_request_came() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        // One client is a process of another node: its packets come and go bare.
        for client in [STRANGER, NODE2] {
            for (what, host_port, asked, answer, leaves) in [
                (
                    "TCP",
                    HOST_PORT,
                    tcp as fn(u16, u16) -> Transport,
                    syn_ack as fn(u16, u16) -> _,
                    syn_ack as _,
                ),
                ("UDP", HOST_PORT_HERE, udp, udp, udp as fn(u16, u16) -> Transport),
            ] {
                let mut node = fixture(mode);
                let (link, pod_link) = (node.uplink, node.pod_a);
                let packet = request(client, NODE1, asked(CLIENT_PORT, host_port));
                node.run(FROM_UPLINK, link, &packet.build(), 0);
                let answer = reply(client, answer(POD_PORT, CLIENT_PORT));
                let expected =
                    Packet { source: NODE1, transport: leaves(host_port, CLIENT_PORT), ..answer.clone() };
                let expected = expected.forwarded(HOST_A_MAC, POD_A_MAC);
                let expect = Expect::Redirect(Path::HostPortOut, expected);
                node.check(&format!("{mode:?}: {what}"), FROM_POD, pod_link, &answer.build(), expect);
                let last = answer.clone().with(|packet| packet.ttl = 1);
                let expect = Expect::Stack(Path::ToStack, last.build());
                node.check("TTL 1", FROM_POD, pod_link, &last.build(), expect);
            }
        }
        let mut node = fixture(mode);
        let (link, pod_link) = (node.uplink, node.pod_a);
        node.run(FROM_UPLINK, link, &request(WORLD, NODE1, udp(CLIENT_PORT, HOST_PORT)).build(), 0);
        let answer = reply(WORLD, udp(POD_PORT, CLIENT_PORT)).build();
        node.check("no route", FROM_POD, pod_link, &answer, Expect::Drop(Reason::NoRouteBack));
    }
}

#[test]
fn an_error_about_a_reply_reaches_the_pod_in_its_own_terms() {
    for (what, asked, answer, leaves) in [
        ("TCP", tcp as fn(u16, u16) -> Transport, syn_ack as fn(u16, u16) -> _, syn_ack as fn(u16, u16) -> _),
        ("UDP", udp, udp, udp),
    ] {
        // The error quotes the whole packet, or no more of it than RFC 792 requires.
        for quoted in [usize::MAX, 28] {
            let mut node = fixture(Mode::Vxlan);
            let link = node.uplink;
            node.run(FROM_UPLINK, link, &request(STRANGER, NODE1, asked(CLIENT_PORT, HOST_PORT)).build(), 0);
            let quote = |source, transport| {
                let packet = behind_ethernet(&Packet::new(source, STRANGER, transport).build());
                packet[..packet.len().min(quoted)].to_vec()
            };
            let too_big = Transport::Icmp { kind: 3, code: 4, word: [0, 0, 5, 20] };
            let error = request(NODE2, NODE1, too_big)
                .with(|packet| packet.payload = quote(NODE1, leaves(HOST_PORT, CLIENT_PORT)));
            let expected = Packet {
                destination: POD_A,
                payload: quote(POD_A, answer(POD_PORT, CLIENT_PORT)),
                ..error.clone()
            };
            let expected = expected.macs(POD_A_MAC, HOST_A_MAC).build();
            let expect = Expect::Redirect(Path::HostPortIn, expected);
            node.check(&format!("{what}, {quoted} bytes"), FROM_UPLINK, link, &error.build(), expect);
        }
    }
}

#[test]
fn a_pod_reaches_itself_and_sees_its_gateway() {
    for (number, asked, answer) in [
        (protocol::TCP, tcp as fn(u16, u16) -> Transport, syn_ack as fn(u16, u16) -> Transport),
        (protocol::UDP, udp, udp),
    ] {
        let mut node = fixture(Mode::Vxlan);
        let link = node.pod_a;
        let packet = reply(NODE1, asked(CLIENT_PORT, HOST_PORT));
        let arrives = Packet {
            source: GATEWAY,
            destination: POD_A,
            transport: asked(CLIENT_PORT, POD_PORT),
            ..packet.clone()
        };
        let expect = Expect::Redirect(Path::Hairpin, arrives.macs(POD_A_MAC, HOST_A_MAC).build());
        node.check("request", FROM_POD, link, &packet.build(), expect);
        let (client, seen) = (end(POD_A, CLIENT_PORT), end(GATEWAY, CLIENT_PORT));
        let (host, pod) = (end(NODE1, HOST_PORT), end(POD_A, POD_PORT));
        let pair = BTreeMap::from([
            (flow(client, host, number), half(seen, pod, link, 0, 1)),
            (flow(pod, seen, number), half(host, client, link, 1, 1)),
        ]);
        assert_eq!(translations(&node), pair);
        let packet = reply(GATEWAY, answer(POD_PORT, CLIENT_PORT));
        let arrives = Packet {
            source: NODE1,
            destination: POD_A,
            transport: answer(HOST_PORT, CLIENT_PORT),
            ..packet.clone()
        };
        let expect = Expect::Redirect(Path::Hairpin, arrives.macs(POD_A_MAC, HOST_A_MAC).build());
        node.check("reply", FROM_POD, link, &packet.build(), expect);
    }
}

#[test]
fn a_pod_of_the_node_reaches_another_and_is_seen_as_itself() {
    let mut node = fixture(Mode::Vxlan);
    let (link_a, link_b) = (node.pod_a, node.pod_b);
    let packet = Packet::new(POD_B, NODE1, udp(CLIENT_PORT, HOST_PORT)).macs(HOST_B_MAC, POD_B_MAC);
    let arrives = Packet { destination: POD_A, transport: udp(CLIENT_PORT, POD_PORT), ..packet.clone() };
    let expect = Expect::Redirect(Path::HostPortIn, arrives.macs(POD_A_MAC, HOST_A_MAC).build());
    node.check("request", FROM_POD, link_b, &packet.build(), expect);
    let packet = reply(POD_B, udp(POD_PORT, CLIENT_PORT));
    let arrives = Packet { source: NODE1, transport: udp(HOST_PORT, CLIENT_PORT), ..packet.clone() };
    let expect = Expect::Redirect(Path::HostPortOut, arrives.macs(POD_B_MAC, HOST_B_MAC).build());
    node.check("reply", FROM_POD, link_a, &packet.build(), expect);
    // A flow that pod A begins by itself is not translated.
    let packet = reply(POD_B, udp(POD_PORT, CLIENT_PORT + 1));
    let expect = Expect::Redirect(Path::Local, packet.forwarded(POD_B_MAC, HOST_B_MAC));
    node.check("no reply", FROM_POD, link_a, &packet.build(), expect);
}

#[test]
fn an_error_bears_the_hosts_name_only_towards_the_flows_client() {
    let mut node = fixture(Mode::Vxlan);
    let (link, pod_link) = (node.uplink, node.pod_a);
    node.run(FROM_UPLINK, link, &request(STRANGER, NODE1, udp(CLIENT_PORT, HOST_PORT)).build(), 0);
    let quote = Packet::new(STRANGER, POD_A, udp(CLIENT_PORT, POD_PORT));
    let unreachable = Transport::Icmp { kind: 3, code: 3, word: [0; 4] };
    let error = reply(POD_B, unreachable).with(|packet| packet.payload = behind_ethernet(&quote.build()));
    for destination in [POD_B, REMOTE_POD, WORLD] {
        let error = Packet { destination, ..error.clone() };
        let expect = Expect::Drop(Reason::IcmpErrorNotOwned);
        node.check(&destination.to_string(), FROM_POD, pod_link, &error.build(), expect);
    }
}

#[test]
fn what_is_for_no_host_port_is_the_hosts() {
    let mut node = fixture(Mode::Vxlan);
    let link = node.uplink;
    let table = [
        ("another port", request(STRANGER, NODE1, tcp(CLIENT_PORT, HOST_PORT + 100))),
        ("the middle of a connection", request(STRANGER, NODE1, syn_ack(CLIENT_PORT, HOST_PORT))),
        ("an address elsewhere", request(STRANGER, ELSEWHERE, udp(CLIENT_PORT, HOST_PORT))),
        ("a hostIP that the node lacks", request(STRANGER, ELSEWHERE, udp(CLIENT_PORT, HOST_PORT_ELSEWHERE))),
        ("another hostIP", request(STRANGER, GATEWAY, udp(CLIENT_PORT, HOST_PORT_HERE))),
        ("loopback's port", request(STRANGER, NODE1, udp(CLIENT_PORT, HOST_PORT_LOOPBACK))),
        ("from the node's own address", request(NODE1, NODE1, udp(CLIENT_PORT, HOST_PORT))),
        ("from the gateway's address", request(GATEWAY, NODE1, udp(CLIENT_PORT, HOST_PORT))),
    ];
    for (what, packet) in table {
        node.check(what, FROM_UPLINK, link, &packet.build(), Expect::Pass);
    }
    let loopback = request(STRANGER, Ipv4Addr::LOCALHOST, udp(CLIENT_PORT, HOST_PORT_LOOPBACK)).build();
    node.check("loopback", FROM_UPLINK, link, &loopback, Expect::Drop(Reason::LoopbackAddress));
    assert_eq!(translations(&node), BTreeMap::new());
    node.model.other_addresses.insert(ELSEWHERE.into());
    node.fill();
    for (client_port, port) in [(CLIENT_PORT, HOST_PORT), (CLIENT_PORT + 1, HOST_PORT_ELSEWHERE)] {
        let packet = request(STRANGER, ELSEWHERE, udp(client_port, port));
        let arrives = Packet { destination: POD_A, transport: udp(client_port, POD_PORT), ..packet.clone() };
        let arrives = arrives.macs(POD_A_MAC, HOST_A_MAC);
        let expect = Expect::Redirect(Path::HostPortIn, arrives.build());
        let what = format!("an address that the node got later, port {port}");
        node.check(&what, FROM_UPLINK, link, &packet.build(), expect);
    }
}

#[test]
fn a_flow_to_a_pod_that_is_gone_is_dropped() {
    let mut node = fixture(Mode::Vxlan);
    let link = node.uplink;
    let packet = request(STRANGER, NODE1, udp(CLIENT_PORT, HOST_PORT)).build();
    node.run(FROM_UPLINK, link, &packet, 0);
    node.model.endpoints.retain(|_, endpoint| endpoint.addresses().all(|address| address != POD_A));
    node.fill();
    node.check("its flow is still there", FROM_UPLINK, link, &packet, Expect::Drop(Reason::BackendGone));
    node.loaded.maps.forget_pods(&BTreeSet::from([POD_A.into()])).unwrap();
    node.check("forgotten", FROM_UPLINK, link, &packet, Expect::Pass);
}

#[test]
fn a_host_port_is_no_source_port_for_anybody_elses_flow() {
    for (what, number, is_kept) in [
        ("on every address", HOST_PORT, true),
        ("on this address", HOST_PORT_HERE, true),
        ("on another address", HOST_PORT_ELSEWHERE, false),
    ] {
        for transport in [tcp(number, 443), udp(number, 53)] {
            let node = fixture(Mode::Vxlan);
            let out = Packet::new(POD_B, WORLD, transport).macs(STRANGER_MAC, UPLINK_MAC);
            let ran = node.run(TO_UPLINK, node.uplink, &out.build(), 0);
            let port = u16::from_be_bytes([ran.frame[ETHERNET + 20], ran.frame[ETHERNET + 21]]);
            assert_eq!(port != number, is_kept, "{what}: {port}");
        }
    }
}
