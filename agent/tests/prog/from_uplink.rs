//! `from_uplink`: packets that arrive from the network.

use std::net::Ipv4Addr;

use podwire_common::abi::{self, Flow};
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;
use podwire_common::names::{
    VXLAN_PORT,
    programs::{FROM_UPLINK, TO_UPLINK},
};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::packets::*;

/// Returns the tunnel's outer headers from node 2.
fn tunnel() -> Vxlan {
    Vxlan::new(NODE2, NODE1).with(|outer| (outer.destination_mac, outer.source_mac) = (UPLINK_MAC, NODE2_MAC))
}

fn to_a(source: Ipv4Addr, transport: Transport) -> Packet {
    Packet::new(source, POD_A, transport)
}

fn bare(source: Ipv4Addr, destination: Ipv4Addr, transport: Transport) -> Packet {
    Packet::new(source, destination, transport).macs(UPLINK_MAC, NODE2_MAC)
}

fn flow(packet: &Packet, ports: (u16, u16), protocol: u8) -> Flow {
    Flow::new(
        packet.source.into(),
        packet.destination.into(),
        Be16::new(ports.0),
        Be16::new(ports.1),
        protocol,
    )
}

#[test]
fn a_pod_is_reached_out_of_the_tunnel_past_the_stack() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let table = [
        ("TCP", to_a(REMOTE_POD, tcp(40000, 80))),
        ("UDP", to_a(REMOTE_POD, udp(40000, 53))),
        ("echo", to_a(REMOTE_POD, Transport::EchoRequest { identifier: 7 })),
        ("the node itself", to_a(NODE2, tcp(40000, 80))),
        ("IP options inside", to_a(REMOTE_POD, tcp(1, 2)).with(|packet| packet.options = vec![1; 4])),
        (
            "a first fragment inside",
            to_a(REMOTE_POD, udp(1, 2)).with(|packet| {
                (packet.dont_fragment, packet.fragment) = (false, (0, true));
            }),
        ),
        (
            "a later fragment inside",
            to_a(REMOTE_POD, Transport::None(protocol::UDP)).with(|packet| {
                (packet.dont_fragment, packet.fragment) = (false, (2, false));
            }),
        ),
    ];
    for (what, packet) in table {
        let expect = Expect::Redirect(Path::TunnelIn, packet.forwarded(POD_A_MAC, HOST_A_MAC));
        node.check(what, FROM_UPLINK, link, &tunnel().around(&inner(&packet)), expect);
    }
}

#[test]
fn congestion_marked_on_the_way_reaches_the_pod() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    // Outer, inner and delivered class (RFC 6040). The function's own tests have the whole table.
    for (outer, class, delivered) in
        [(0b11, 0b10, 0b11), (0b11, 0b1011_1001, 0b1011_1011), (0b01, 0b10, 0b01)]
    {
        let packet = to_a(REMOTE_POD, tcp(1, 2)).with(|packet| packet.traffic_class = class);
        let frame = tunnel().with(|tunnel| tunnel.traffic_class = outer).around(&inner(&packet));
        let arrives = packet.with(|packet| packet.traffic_class = delivered);
        let expect = Expect::Redirect(Path::TunnelIn, arrives.forwarded(POD_A_MAC, HOST_A_MAC));
        node.check(&format!("{outer:02b} {class:02b}"), FROM_UPLINK, link, &frame, expect);
    }
}

#[test]
fn what_the_device_does_better_is_left_to_it() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let tcp_packet = to_a(REMOTE_POD, tcp(40000, 80));
    let stack = to_a(REMOTE_POD, tcp(40001, 80));
    node.add_stack_flow(flow(&stack, (40001, 80), protocol::TCP));
    let around = |packet: &Packet| tunnel().around(&inner(packet));
    let table = [
        ("a stack flow", around(&stack)),
        (
            "a later fragment that overtook its first",
            around(&to_a(REMOTE_POD, Transport::None(protocol::UDP)).with(|packet| {
                (packet.dont_fragment, packet.fragment, packet.identification) = (false, (2, false), 0x4321);
            })),
        ),
        ("for this node", around(&Packet::new(REMOTE_POD, NODE1, tcp(40000, 80)))),
        ("for no pod here", around(&Packet::new(REMOTE_POD, [10, 244, 1, 99].into(), tcp(1, 2)))),
        ("TTL 1", around(&tcp_packet.clone().with(|packet| packet.ttl = 1))),
        ("outer IP options", tunnel().with(|outer| outer.options = vec![1; 4]).around(&inner(&tcp_packet))),
        (
            "an outer fragment",
            tunnel()
                .with(|outer| {
                    (outer.dont_fragment, outer.fragment) = (false, (0, true));
                })
                .around(&inner(&tcp_packet)),
        ),
    ];
    for (what, frame) in table {
        node.check(what, FROM_UPLINK, link, &frame, Expect::Pass);
    }
    let segments = around(&to_a(REMOTE_POD, udp(1, 2)).with(|packet| packet.payload = vec![0; 3000]));
    node.check_segments("UDP segments", FROM_UPLINK, link, &segments, 1000, Expect::Pass);
    // A test run cannot set a segment's type. Without one the kernel refuses to shrink the headers.
    let segments = around(&to_a(REMOTE_POD, tcp(1, 2)).with(|packet| packet.payload = vec![0; 3000]));
    node.check_segments("what the kernel does not shrink", FROM_UPLINK, link, &segments, 1000, Expect::Pass);
}

#[test]
fn what_is_not_ours_passes_untouched() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = Fixture::new(mode);
        let link = node.uplink;
        let ssh = bare(STRANGER, NODE1, tcp(40000, 22)).build();
        let elsewhere = Vxlan::new(STRANGER, WORLD).around(&inner(&to_a(REMOTE_POD, tcp(1, 2))));
        let table = [
            ("the host's own", ssh.clone()),
            ("another node's to this one", bare(NODE2, NODE1, tcp(40000, 22)).build()),
            (
                "for another link address",
                bare(REMOTE_POD, POD_A, tcp(1, 2)).macs(STRANGER_MAC, NODE2_MAC).build(),
            ),
            ("from the world to a pod's own address", bare(WORLD, POD_A, tcp(40000, 80)).build()),
            ("others' VXLAN that only passes through", elsewhere),
            ("a VLAN tag", tagged(&ssh)),
            ("ARP", arp(1, NODE2_MAC, NODE2, [0; 6], NODE1)),
            ("half a TCP header", ssh[..ETHERNET + 30].to_vec()),
            ("IP options", bare(STRANGER, NODE1, tcp(1, 22)).with(|p| p.options = vec![1; 4]).build()),
            (
                "a fragment",
                bare(STRANGER, NODE1, udp(1, 22))
                    .with(|p| {
                        (p.dont_fragment, p.fragment) = (false, (2, false));
                    })
                    .build(),
            ),
        ];
        for (what, frame) in table {
            node.check(&format!("{mode:?}: {what}"), FROM_UPLINK, link, &frame, Expect::Pass);
        }
        node.check_on_wire("half an IPv4 header", "up0-p", &ssh[..ETHERNET + 10], None);
    }
}

#[test]
fn every_reason_to_drop_out_of_the_tunnel() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let good = to_a(REMOTE_POD, tcp(40000, 80)).with(|packet| packet.payload.clear());
    let frame = inner(&good);
    let mut arp_inside = frame.clone();
    arp_inside[12..14].copy_from_slice(&[8, 6]);
    let mut wrong = frame.clone();
    wrong[ETHERNET] = 0x44;
    let with_inner = |source| tunnel().around(&inner(&to_a(source, tcp(1, 2))));
    let table = [
        (
            "no node's address",
            tunnel().with(|t| t.source = STRANGER).around(&frame),
            Reason::TunnelPeerUnknown,
        ),
        ("this node's own", tunnel().with(|t| t.source = NODE1).around(&frame), Reason::TunnelPeerUnknown),
        ("another network", tunnel().with(|t| t.vni = 2).around(&frame), Reason::TunnelVniUnknown),
        (
            "flags that are not VXLAN's",
            tunnel().with(|t| t.flags = 0).around(&frame),
            Reason::TunnelVniUnknown,
        ),
        ("another node's pod", with_inner(POD_OF_NODE3), Reason::InnerSourceNotOwned),
        ("another node", with_inner(NODE3), Reason::InnerSourceNotOwned),
        ("a pod of this node", with_inner(POD_B), Reason::InnerSourceNotOwned),
        ("the world", with_inner(WORLD), Reason::InnerSourceNotOwned),
        ("ARP inside", tunnel().around(&arp_inside), Reason::InnerProtocolUnknown),
        ("a VLAN tag inside", tunnel().around(&tagged(&frame)), Reason::InnerProtocolUnknown),
        ("an inner header of 16 bytes", tunnel().around(&wrong), Reason::BadIpHeader),
        (
            "half a VXLAN header",
            bare(NODE2, NODE1, udp(50000, VXLAN_PORT))
                .with(|packet| {
                    packet.payload.truncate(4);
                })
                .build(),
            Reason::Truncated,
        ),
        ("half an inner frame", tunnel().around(&frame[..10]), Reason::Truncated),
        ("half an inner IPv4 header", tunnel().around(&frame[..ETHERNET + 10]), Reason::Truncated),
        ("half an inner TCP header", tunnel().around(&frame[..ETHERNET + 30]), Reason::Truncated),
        (
            "congestion marked on a packet without ECN",
            tunnel().with(|t| t.traffic_class = 3).around(&frame),
            Reason::EcnNotCapable,
        ),
    ];
    for (what, frame, reason) in table {
        node.check(what, FROM_UPLINK, link, &frame, Expect::Drop(reason));
    }
}

#[test]
fn a_pod_networks_source_never_arrives_bare_beside_the_tunnel() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    for source in [REMOTE_POD, POD_OF_NODE3, POD_B] {
        let frame = bare(source, POD_A, tcp(1, 2)).build();
        node.check(
            &source.to_string(),
            FROM_UPLINK,
            link,
            &frame,
            Expect::Drop(Reason::PodSourceNotFromNode),
        );
        let cut = bare(source, NODE1, tcp(1, 2)).with(|packet| packet.payload.clear()).build();
        let cut = &cut[..ETHERNET + 30];
        node.check("cut short", FROM_UPLINK, link, cut, Expect::Drop(Reason::PodSourceNotFromNode));
    }
    let own = bare(NODE1, POD_A, tcp(1, 2)).build();
    node.check("this node's own", FROM_UPLINK, link, &own, Expect::Drop(Reason::PodSourceNotFromNode));
    // The kernel removes a tag of VLAN 0 and handles the frame behind it.
    let priority = |frame: &[u8]| [&frame[..12], &[0x81, 0, 0, 0], &frame[12..]].concat();
    let frame = bare(REMOTE_POD, POD_A, tcp(1, 2)).build();
    let reason = Reason::PodSourceNotFromNode.name();
    node.check_on_wire("a priority tag", "up0-p", &priority(&frame), Some(reason));
    let reason = Reason::VlanTagged.name();
    node.check_on_wire("two priority tags", "up0-p", &priority(&priority(&frame)), Some(reason));
    node.check_on_wire("another VLAN's", "up0-p", &tagged(&frame), None);
}

#[test]
fn without_a_tunnel_a_pod_is_reached_as_locally() {
    let mut node = Fixture::new(Mode::Direct);
    let link = node.uplink;
    for source in [REMOTE_POD, NODE2] {
        let packet = bare(source, POD_A, tcp(40000, 80));
        let expect = Expect::Redirect(Path::DirectIn, packet.forwarded(POD_A_MAC, HOST_A_MAC));
        node.check(&source.to_string(), FROM_UPLINK, link, &packet.build(), expect);
    }
    let stack = bare(REMOTE_POD, POD_A, tcp(40001, 80));
    node.add_stack_flow(flow(&stack, (40001, 80), protocol::TCP));
    node.check("a stack flow", FROM_UPLINK, link, &stack.build(), Expect::Pass);
    let last = bare(REMOTE_POD, POD_A, tcp(40000, 80)).with(|packet| packet.ttl = 1);
    node.check("TTL 1", FROM_UPLINK, link, &last.build(), Expect::Pass);
}

#[test]
fn what_a_router_says_about_a_direct_flow_goes_past_the_stack() {
    let about = |sent: &Packet| {
        let needed = Transport::Icmp { kind: 3, code: 4, word: [0, 0, 0x05, 0x00] };
        let quote = sent.build()[ETHERNET..ETHERNET + 28].to_vec();
        bare(STRANGER, POD_A, needed).with(|packet| packet.payload = quote)
    };
    let mut node = Fixture::new(Mode::Direct);
    let link = node.uplink;
    for destination in [REMOTE_POD, NODE2] {
        let error = about(&Packet::new(POD_A, destination, tcp(40000, 80)));
        let expect = Expect::Redirect(Path::DirectIn, error.forwarded(POD_A_MAC, HOST_A_MAC));
        node.check(&destination.to_string(), FROM_UPLINK, link, &error.build(), expect);
    }
    let stack = to_a(REMOTE_POD, tcp(80, 40001));
    node.add_stack_flow(flow(&stack, (80, 40001), protocol::TCP));
    let table = [
        ("about a stack flow", Packet::new(POD_A, REMOTE_POD, tcp(40001, 80))),
        ("about a flow to the world", Packet::new(POD_A, WORLD, tcp(40000, 80))),
        ("about another pod's flow", Packet::new(POD_B, REMOTE_POD, tcp(40000, 80))),
    ];
    for (what, sent) in &table {
        node.check(what, FROM_UPLINK, link, &about(sent).build(), Expect::Pass);
    }
    let mut node = Fixture::new(Mode::Vxlan);
    let error = about(&Packet::new(POD_A, REMOTE_POD, tcp(40000, 80)));
    let link = node.uplink;
    node.check("beside the tunnel", FROM_UPLINK, link, &error.build(), Expect::Pass);
}

#[test]
fn without_a_tunnel_a_pods_source_comes_from_its_node_only() {
    let good = bare(REMOTE_POD, POD_A, tcp(1, 2));
    let refused = || Expect::Drop(Reason::PodSourceNotFromNode);
    // A node may send from several link addresses.
    let neighbour = good.clone().macs(UPLINK_MAC, STRANGER_MAC);
    let mut node = Fixture::new(Mode::Direct);
    let admitted = Expect::Redirect(Path::DirectIn, neighbour.forwarded(POD_A_MAC, HOST_A_MAC));
    node.check("another neighbour", FROM_UPLINK, node.uplink, &neighbour.build(), admitted);
    let mut node = Fixture::with_config(Mode::Direct, |config| abi::Config {
        link_addresses: abi::LINK_ADDRESSES_CHECKED,
        ..*config
    });
    let (link, other_link) = (node.uplink, node.pod_b);
    node.check("another neighbour, checked", FROM_UPLINK, link, &neighbour.build(), refused());
    let theirs = Expect::Redirect(Path::DirectIn, good.forwarded(POD_A_MAC, HOST_A_MAC));
    node.check("the node itself, checked", FROM_UPLINK, link, &good.build(), theirs);
    let elsewhere = good.clone().macs(HOST_B_MAC, NODE2_MAC);
    node.check("another link", FROM_UPLINK, other_link, &elsewhere.build(), refused());
    for own in [NODE1, GATEWAY] {
        let own = bare(own, POD_A, tcp(1, 2));
        node.check("this node's own address", FROM_UPLINK, link, &own.build(), refused());
    }
    let own = bare(POD_B, POD_A, tcp(1, 2));
    node.check("this node's own pod", FROM_UPLINK, link, &own.build(), refused());
    let orphan = bare(REMOTE_POD, POD_A, Transport::None(protocol::UDP)).with(|packet| {
        (packet.dont_fragment, packet.fragment) = (false, (2, false));
    });
    let expect = Expect::Drop(Reason::FragmentWithoutFirst);
    node.check("a later fragment without its first", FROM_UPLINK, link, &orphan.build(), expect);
}

#[test]
fn another_nodes_pod_sends_no_error_about_the_nodes() {
    let mut node = Fixture::new(Mode::Direct);
    let link = node.uplink;
    for destination in [NODE1, POD_A] {
        let error = about_the_tunnel(REMOTE_POD, destination).macs(UPLINK_MAC, NODE2_MAC).build();
        let expect = Expect::Drop(Reason::IcmpErrorNotOwned);
        node.check(&destination.to_string(), FROM_UPLINK, link, &error, expect);
    }
    let error = about_the_tunnel(NODE2, NODE1).macs(UPLINK_MAC, NODE2_MAC).build();
    node.check("the node itself", FROM_UPLINK, link, &error, Expect::Pass);
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let error = tunnel().around(&inner(&about_the_tunnel(REMOTE_POD, POD_A)));
    let expect = Expect::Drop(Reason::IcmpErrorNotOwned);
    node.check("inside the tunnel", FROM_UPLINK, link, &error, expect);
}

#[test]
fn a_reply_from_the_world_is_translated_back() {
    for (what, request, reply, back) in [
        ("TCP", tcp(40000, 443), tcp(443, 40000), tcp(443, 40000)),
        ("UDP", udp(40000, 53), udp(53, 40000), udp(53, 40000)),
        (
            "UDP without checksum",
            Transport::Udp { source: 5000, destination: 53, checksum: false },
            Transport::Udp { source: 53, destination: 5000, checksum: false },
            Transport::Udp { source: 53, destination: 5000, checksum: false },
        ),
        (
            "echo",
            Transport::EchoRequest { identifier: 7 },
            Transport::EchoReply { identifier: 7 },
            Transport::EchoReply { identifier: 7 },
        ),
    ] {
        let mut node = Fixture::new(Mode::Vxlan);
        let link = node.uplink;
        let out = Packet::new(POD_A, WORLD, request).macs(STRANGER_MAC, UPLINK_MAC);
        node.run(TO_UPLINK, link, &out.build(), 0);
        let reply = bare(WORLD, NODE1, reply);
        let expected = Packet { destination: POD_A, transport: back, ..reply.clone() };
        let expect = Expect::Stack(Path::SnatIn, expected.build());
        node.check(what, FROM_UPLINK, link, &reply.build(), expect);
        let unrelated = Packet { source: STRANGER, ..reply };
        node.check("from a stranger", FROM_UPLINK, link, &unrelated.build(), Expect::Pass);
    }
}
