//! hostPorts of IPv6: requests, replies and the addresses that lead to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK};
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::{Mode, PortMapping, Transport as Protocol};

use crate::fixture::*;
use crate::fixture6::*;
use crate::packets::{Transport, Vxlan, behind_ethernet, tcp, udp};
use crate::packets6::{Extension, Packet6};

/// A hostPort of pod A without hostIP.
const HOST_PORT: u16 = 9088;
/// A hostPort on node 1's IPv6 address only.
const HOST_PORT_HERE: u16 = 9089;
/// A hostPort on `::`.
const HOST_PORT_ANY6: u16 = 9090;
/// A hostPort on 0.0.0.0.
const HOST_PORT_ANY4: u16 = 9091;
/// A hostPort on an IPv4 address of the node.
const HOST_PORT_V4: u16 = 9092;
const POD_PORT: u16 = 8080;
const CLIENT_PORT: u16 = 40000;

fn fixture(mode: Mode) -> Fixture {
    let mut fixture = node(mode);
    let port = |number| NonZeroU16::new(number).unwrap();
    let pod = fixture
        .model
        .endpoints
        .values_mut()
        .find(|endpoint| endpoint.addresses().any(|address| address == POD))
        .unwrap();
    let addresses: [(Option<IpAddr>, u16); 5] = [
        (None, HOST_PORT),
        (Some(NODE1_6.into()), HOST_PORT_HERE),
        (Some(Ipv6Addr::UNSPECIFIED.into()), HOST_PORT_ANY6),
        (Some(Ipv4Addr::UNSPECIFIED.into()), HOST_PORT_ANY4),
        (Some(NODE1.into()), HOST_PORT_V4),
    ];
    pod.port_mappings = addresses
        .into_iter()
        .flat_map(|(host_address, number)| {
            [Protocol::Tcp, Protocol::Udp].map(|protocol| PortMapping {
                host_address,
                host_port: port(number),
                container_port: port(POD_PORT),
                protocol,
            })
        })
        .collect();
    fixture.fill();
    fixture
}

fn request(client: Ipv6Addr, transport: Transport) -> Packet6 {
    Packet6::new(client, NODE1_6, transport).macs(UPLINK_MAC, NODE2_MAC)
}

fn reply(client: Ipv6Addr, transport: Transport) -> Packet6 {
    Packet6::new(POD, client, transport).macs(HOST_A_MAC, POD_A_MAC)
}

fn syn_ack(source: u16, destination: u16) -> Transport {
    Transport::Tcp { source, destination, flags: 0x12 }
}

type Ports = fn(u16, u16) -> Transport;

#[test]
fn a_request_reaches_the_pod_and_its_reply_the_client() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        for host_port in [HOST_PORT, HOST_PORT_HERE, HOST_PORT_ANY6] {
            for (what, asked, answer) in [("TCP", tcp as Ports, syn_ack as Ports), ("UDP", udp, udp)] {
                let what = format!("{mode:?}, {what}, {host_port}");
                let mut node = fixture(mode);
                let (link, pod_link) = (node.uplink, node.pod_a);
                route_ipv6(&node);
                let packet = request(STRANGER6, asked(CLIENT_PORT, host_port));
                // The client takes the node for the pod, so the hop limit stays.
                let arrives =
                    Packet6 { destination: POD, transport: asked(CLIENT_PORT, POD_PORT), ..packet.clone() };
                let arrives = arrives.macs(POD_A_MAC, HOST_A_MAC).build();
                for _ in 0..2 {
                    let expect = Expect::Redirect(Path::HostPortIn, arrives.clone());
                    node.check(&what, FROM_UPLINK, link, &packet.build(), expect);
                }
                let answered = reply(STRANGER6, answer(POD_PORT, CLIENT_PORT));
                let expected = Packet6 {
                    source: NODE1_6,
                    transport: answer(host_port, CLIENT_PORT),
                    ..answered.clone()
                };
                let expect = Expect::Redirect(Path::HostPortOut, expected.forwarded(HOST_A_MAC, POD_A_MAC));
                node.check(&what, FROM_POD, pod_link, &answered.build(), expect);
            }
        }
        let mut node = fixture(mode);
        let (link, pod_link) = (node.uplink, node.pod_a);
        node.run(FROM_UPLINK, link, &request(WORLD6, udp(CLIENT_PORT, HOST_PORT)).build(), 0);
        let answer = reply(WORLD6, udp(POD_PORT, CLIENT_PORT)).build();
        node.check("no route", FROM_POD, pod_link, &answer, Expect::Drop(Reason::NoRouteBack));
    }
}

#[test]
fn what_is_for_no_host_port_is_the_hosts() {
    let mut node = fixture(Mode::Vxlan);
    let link = node.uplink;
    let authenticated = request(STRANGER6, udp(CLIENT_PORT, HOST_PORT))
        .with(|packet| packet.extensions.push(Extension::of(protocol::AH)));
    for (what, packet) in [
        ("another port", request(STRANGER6, tcp(CLIENT_PORT, HOST_PORT + 100))),
        ("the middle of a connection", request(STRANGER6, syn_ack(CLIENT_PORT, HOST_PORT))),
        ("0.0.0.0's port", request(STRANGER6, udp(CLIENT_PORT, HOST_PORT_ANY4))),
        ("an IPv4 address's port", request(STRANGER6, udp(CLIENT_PORT, HOST_PORT_V4))),
        (
            "another address",
            request(STRANGER6, udp(CLIENT_PORT, HOST_PORT)).with(|packet| packet.destination = NODE2_6),
        ),
        (
            "another hostIP",
            request(STRANGER6, udp(CLIENT_PORT, HOST_PORT_HERE)).with(|packet| packet.destination = OVERLAY),
        ),
        ("AH in front of UDP", authenticated),
        ("a client that the pod cannot answer", request(LINK_LOCAL, udp(CLIENT_PORT, HOST_PORT))),
        ("the node's own address", request(NODE1_6, udp(CLIENT_PORT, HOST_PORT))),
    ] {
        node.check(what, FROM_UPLINK, link, &packet.build(), Expect::Pass);
    }
    assert!(node.translations().is_empty());
    // The pod has no IPv4 address, so no IPv4 address of the node leads to it.
    for port in [HOST_PORT, HOST_PORT_ANY4, HOST_PORT_ANY6, HOST_PORT_V4] {
        let packet = crate::packets::Packet::new(STRANGER, NODE1, udp(CLIENT_PORT, port));
        let frame = packet.macs(UPLINK_MAC, NODE2_MAC).build();
        node.check(&format!("IPv4, {port}"), FROM_UPLINK, link, &frame, Expect::Pass);
    }
}

#[test]
fn an_error_about_a_reply_reaches_the_pod_in_its_own_terms() {
    for (what, asked, answer) in [("TCP", tcp as Ports, syn_ack as Ports), ("UDP", udp, udp)] {
        let mut node = fixture(Mode::Vxlan);
        let link = node.uplink;
        node.run(FROM_UPLINK, link, &request(STRANGER6, asked(CLIENT_PORT, HOST_PORT)).build(), 0);
        let quote = |source, transport| behind_ethernet(&Packet6::new(source, STRANGER6, transport).build());
        let too_big = Transport::Icmp { kind: 2, code: 0, word: 1280_u32.to_be_bytes() };
        let error = request(NODE2_6, too_big)
            .with(|packet| packet.payload = quote(NODE1_6, answer(HOST_PORT, CLIENT_PORT)));
        let expected =
            Packet6 { destination: POD, payload: quote(POD, answer(POD_PORT, CLIENT_PORT)), ..error.clone() };
        let expect = Expect::Redirect(Path::HostPortIn, expected.macs(POD_A_MAC, HOST_A_MAC).build());
        node.check(what, FROM_UPLINK, link, &error.build(), expect);
    }
}

#[test]
fn a_pod_reaches_itself_and_its_neighbour() {
    let mut node = fixture(Mode::Vxlan);
    let (link_a, link_b) = (node.pod_a, node.pod_b);
    let packet = reply(NODE1_6, udp(CLIENT_PORT, HOST_PORT));
    let arrives = Packet6 {
        source: OVERLAY,
        destination: POD,
        transport: udp(CLIENT_PORT, POD_PORT),
        ..packet.clone()
    };
    let expect = Expect::Redirect(Path::Hairpin, arrives.macs(POD_A_MAC, HOST_A_MAC).build());
    node.check("itself", FROM_POD, link_a, &packet.build(), expect);
    let packet = reply(OVERLAY, udp(POD_PORT, CLIENT_PORT));
    let arrives = Packet6 {
        source: NODE1_6,
        destination: POD,
        transport: udp(HOST_PORT, CLIENT_PORT),
        ..packet.clone()
    };
    let expect = Expect::Redirect(Path::Hairpin, arrives.macs(POD_A_MAC, HOST_A_MAC).build());
    node.check("its own answer", FROM_POD, link_a, &packet.build(), expect);
    let packet = Packet6::new(NEIGHBOUR, NODE1_6, udp(CLIENT_PORT, HOST_PORT)).macs(HOST_B_MAC, POD_B_MAC);
    let arrives = Packet6 { destination: POD, transport: udp(CLIENT_PORT, POD_PORT), ..packet.clone() };
    let expect = Expect::Redirect(Path::HostPortIn, arrives.macs(POD_A_MAC, HOST_A_MAC).build());
    node.check("its neighbour", FROM_POD, link_b, &packet.build(), expect);
    let packet = reply(NEIGHBOUR, udp(POD_PORT, CLIENT_PORT));
    let arrives = Packet6 { source: NODE1_6, transport: udp(HOST_PORT, CLIENT_PORT), ..packet.clone() };
    let expect = Expect::Redirect(Path::HostPortOut, arrives.macs(POD_B_MAC, HOST_B_MAC).build());
    node.check("the answer", FROM_POD, link_a, &packet.build(), expect);
}

#[test]
fn a_pod_of_another_node_reaches_it_through_the_tunnel() {
    let mut node = fixture(Mode::Vxlan);
    let link = node.pod_a;
    let inner = Packet6::new(REMOTE, NODE1_6, udp(CLIENT_PORT, HOST_PORT));
    let tunnel = Vxlan::new(NODE2, NODE1)
        .with(|outer| (outer.destination_mac, outer.source_mac) = (UPLINK_MAC, NODE2_MAC))
        .around(&inner.macs(INNER_DESTINATION_MAC, INNER_SOURCE_MAC).build());
    node.check_on_wire("the request", "up0-p", &tunnel, Some(Path::HostPortIn.name()));
    // In a test run, the request did not come by the tunnel's link.
    for (flow, half) in node.translations() {
        let half = podwire_common::abi::Translation { ifindex: 77, ..half };
        node.loaded.maps.translations.insert(flow, half, 0).unwrap();
    }
    let packet = reply(REMOTE, udp(POD_PORT, CLIENT_PORT));
    let flow = podwire_common::abi::Flow::new(
        POD.into(),
        REMOTE.into(),
        podwire_common::addr::Be16::new(POD_PORT),
        podwire_common::addr::Be16::new(CLIENT_PORT),
        protocol::UDP,
    );
    let answer = Packet6 { source: NODE1_6, transport: udp(HOST_PORT, CLIENT_PORT), ..packet.clone() };
    let outer = Vxlan::new(NODE1, NODE2)
        .with(|outer| outer.source_port = flow.tunnel_source_port().get())
        .around(&answer.forwarded(INNER_DESTINATION_MAC, INNER_SOURCE_MAC));
    node.check("the reply", FROM_POD, link, &packet.build(), Expect::Redirect(Path::HostPortOut, outer));
}
