//! IPv6 packets, at every hook that they come to.

use std::net::Ipv6Addr;

use podwire_common::abi;
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK, TO_OVERLAY, TO_POD, TO_UPLINK};
use podwire_common::names::{GATEWAY6, INNER_DESTINATION_MAC, INNER_SOURCE_MAC};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::fixture6::*;
use crate::kinds::{GROUP_MAC, solicitation};
use crate::packets::{Transport, Vxlan, behind_ethernet, tagged, tcp, udp};
use crate::packets6::{Extension, Packet6};

pub fn to(destination: Ipv6Addr, transport: Transport) -> Packet6 {
    Packet6::new(POD, destination, transport).macs(HOST_A_MAC, POD_A_MAC)
}

pub fn delivered(packet: &Packet6) -> Expect {
    Expect::Redirect(Path::Local, packet.forwarded(POD_B_MAC, HOST_B_MAC))
}

/// Returns an ICMPv6 message with this hop limit.
fn message(destination: Ipv6Addr, kind: u8, hop_limit: u8, body: &[u8]) -> Packet6 {
    to(destination, Transport::Icmp { kind, code: 0, word: [0; 4] }).with(|packet| {
        packet.hop_limit = hop_limit;
        packet.payload = body.to_vec();
    })
}

fn behind_options(packet: &Packet6) -> Packet6 {
    let options = Extension::of(protocol::DESTINATION_OPTIONS);
    packet.clone().with(|packet| packet.extensions.push(options))
}

/// Returns the packet with a fragment header in front of its transport.
fn in_a_fragment(packet: &Packet6, has_more: bool) -> Packet6 {
    packet.clone().with(|packet| packet.extensions.push(Extension::fragment(0, has_more, 9)))
}

#[test]
fn packets_reach_a_pod_of_the_same_node() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = node(mode);
        let link = node.pod_a;
        for (what, transport) in [
            ("TCP", tcp(40000, 80)),
            ("UDP", udp(40000, 53)),
            ("echo", Transport::EchoRequest { identifier: 7 }),
            ("its reply", Transport::EchoReply { identifier: 7 }),
            ("a protocol without ports", Transport::None(47)),
            ("no next header", Transport::None(59)),
        ] {
            let packet = to(NEIGHBOUR, transport).with(|packet| packet.traffic_class = 0xb9);
            node.check(what, FROM_POD, link, &packet.build(), delivered(&packet));
        }
        let last = to(NEIGHBOUR, udp(1, 2)).with(|packet| packet.hop_limit = 1).build();
        node.check("the last hop", FROM_POD, link, &last, Expect::Stack(Path::ToStack, last.clone()));
        let own = to(OVERLAY, tcp(40000, 10250)).build();
        node.check("to this node", FROM_POD, link, &own, Expect::Stack(Path::ToStack, own.clone()));
    }
}

#[test]
fn packets_to_another_node_leave_in_the_tunnel() {
    let mut node = node(Mode::Vxlan);
    let link = node.pod_a;
    for (transport, protocol) in [(tcp(40000, 80), protocol::TCP), (udp(40000, 80), protocol::UDP)] {
        let packet = to(REMOTE, transport);
        let flow = abi::Flow::new(POD.into(), REMOTE.into(), Be16::new(40000), Be16::new(80), protocol);
        let inner = packet.forwarded(INNER_DESTINATION_MAC, INNER_SOURCE_MAC);
        let outer = Vxlan::new(NODE1, NODE2)
            .with(|outer| outer.source_port = flow.tunnel_source_port().get())
            .around(&inner);
        let expect = Expect::Redirect(Path::TunnelOut, outer);
        node.check(&format!("protocol {protocol}"), FROM_POD, link, &packet.build(), expect);
    }
}

#[test]
fn too_large_packets_are_answered_with_the_mtu() {
    let mut node = node(Mode::Vxlan);
    let link = node.pod_a;
    let of_length = |length: usize| to(REMOTE, udp(40000, 80)).with(|p| p.payload = vec![7; length - 48]);
    let fits = of_length(1450);
    assert_eq!(node.run(FROM_POD, link, &fits.build(), 0).frame.len(), 14 + 1450 + 50);
    let large = of_length(1451);
    let expect = Expect::Redirect(Path::TooBigAnswered, too_big(1450, &large));
    node.check("one byte more", FROM_POD, link, &large.build(), expect);
}

#[test]
fn the_gateway_is_advertised_to_pods_that_ask() {
    let mut node = node(Mode::Vxlan);
    let link = node.pod_a;
    let gateway = Ipv6Addr::from(GATEWAY6);
    let target = [&GATEWAY6[..], &[2, 1], &HOST_A_MAC].concat();
    let answer = Packet6::new(gateway, POD, Transport::Icmp { kind: 136, code: 0, word: [0xe0, 0, 0, 0] })
        .macs(POD_A_MAC, HOST_A_MAC)
        .with(|packet| (packet.hop_limit, packet.payload) = (255, target));
    let asked = solicitation(gateway);
    let unicast = asked.clone().with(|packet| packet.destination = gateway).macs(HOST_A_MAC, POD_A_MAC);
    for (what, asked) in [
        ("by group", asked.clone()),
        ("by address", unicast),
        ("behind options", behind_options(&asked)),
        ("in an atomic fragment", in_a_fragment(&asked, false)),
    ] {
        let expect = Expect::Redirect(Path::ArpAnswered, answer.build());
        node.check(what, FROM_POD, link, &asked.build(), expect);
    }
}

#[test]
fn neighbour_discovery_ends_at_the_link() {
    let mut node = node(Mode::Vxlan);
    let link = node.pod_a;
    let gateway = Ipv6Addr::from(GATEWAY6);
    let bare = solicitation(gateway).with(|packet| packet.payload.truncate(8));
    let report = message(ALL_NODES, 143, 1, &[0; 4])
        .with(|packet| packet.extensions.push(Extension::of(protocol::HOP_BY_HOP)));
    let of_router = message(ALL_NODES, 134, 255, &[0; 8]);
    let redirect = message(NEIGHBOUR, 137, 255, &[0; 32]);
    let for_another = solicitation(NEIGHBOUR);
    for (what, packet, reason) in [
        ("router advertisement", &of_router, Reason::RouterAdvertisement),
        ("redirect", &redirect, Reason::RedirectFromPod),
        ("solicitation of another pod", &for_another, Reason::SolicitationNotForGateway),
    ] {
        for (how, packet) in [
            ("bare", packet.clone()),
            ("behind options", behind_options(packet)),
            ("in an atomic fragment", in_a_fragment(packet, false)),
            ("in a first fragment", in_a_fragment(packet, true)),
        ] {
            node.check(&format!("{what}, {how}"), FROM_POD, link, &packet.build(), Expect::Drop(reason));
        }
    }
    for (what, packet, reason) in [
        (
            "duplicate address detection",
            solicitation(POD).with(|p| p.source = Ipv6Addr::UNSPECIFIED),
            Reason::NeighbourChatter,
        ),
        (
            "from nowhere, for the gateway",
            solicitation(gateway).with(|p| p.source = Ipv6Addr::UNSPECIFIED),
            Reason::NeighbourChatter,
        ),
        ("MLD query", message(ALL_NODES, 130, 1, &[0; 16]), Reason::NeighbourChatter),
        ("MLD 1 done", message(ALL_NODES, 132, 1, &[0; 16]), Reason::NeighbourChatter),
        ("router solicitation", message(ALL_NODES, 133, 255, &[]), Reason::NeighbourChatter),
        ("neighbour advertisement", message(ALL_NODES, 136, 255, &[0; 16]), Reason::NeighbourChatter),
        ("MLD 1 report", message(ALL_NODES, 131, 1, &[0; 16]), Reason::NeighbourChatter),
        ("MLD 2 report", report, Reason::NeighbourChatter),
        ("for the node's address", solicitation(OVERLAY), Reason::SolicitationNotForGateway),
        (
            "through a router",
            solicitation(gateway).with(|p| p.hop_limit = 64),
            Reason::SolicitationNotForGateway,
        ),
        ("without its target", bare, Reason::SolicitationNotForGateway),
        (
            "in another pod's name",
            solicitation(gateway).with(|p| p.source = NEIGHBOUR),
            Reason::SourceNotOwned,
        ),
        ("from a foreign MAC", solicitation(gateway).macs(GROUP_MAC, POD_B_MAC), Reason::SourceMacNotOwned),
    ] {
        node.check(what, FROM_POD, link, &packet.build(), Expect::Drop(reason));
    }
}

#[test]
fn addresses_and_frames_that_a_pod_may_not_send() {
    let mut node = node(Mode::Vxlan);
    let link = node.pod_a;
    let good = to(NEIGHBOUR, udp(40000, 80));
    let from = |source: Ipv6Addr| good.clone().with(|packet| packet.source = source).build();
    let towards = |destination: Ipv6Addr| to(destination, udp(40000, 80)).build();
    let mapped = POD_A.to_ipv6_mapped();
    let mut wrong_version = good.build();
    wrong_version[14] = 0x45;
    let mut short = good.build();
    short.truncate(14 + 40);
    for (what, frame, reason) in [
        ("from nowhere", from(Ipv6Addr::UNSPECIFIED), Reason::AddressNeverOnWire),
        ("from ::1", from(Ipv6Addr::LOCALHOST), Reason::AddressNeverOnWire),
        ("from a mapped address", from(mapped), Reason::AddressNeverOnWire),
        ("from a group", from(ALL_NODES), Reason::AddressNeverOnWire),
        ("to nowhere", towards(Ipv6Addr::UNSPECIFIED), Reason::AddressNeverOnWire),
        ("to ::1", towards(Ipv6Addr::LOCALHOST), Reason::AddressNeverOnWire),
        ("to a mapped address", towards(mapped), Reason::AddressNeverOnWire),
        ("from a link-local address", from(LINK_LOCAL), Reason::LinkLocalAddress),
        ("to a link-local address", towards(LINK_LOCAL), Reason::LinkLocalAddress),
        ("to a group", towards(ALL_NODES), Reason::Multicast),
        ("another pod's address", from(NEIGHBOUR), Reason::SourceNotOwned),
        ("a remote pod's address", from(REMOTE), Reason::SourceNotOwned),
        ("another's MAC", good.clone().macs(HOST_A_MAC, POD_B_MAC).build(), Reason::SourceMacNotOwned),
        ("a VLAN tag", tagged(&good.build()), Reason::VlanTagged),
        ("version 4 in an IPv6 frame", wrong_version, Reason::BadIpHeader),
        ("the end within the packet", short, Reason::Truncated),
    ] {
        node.check(what, FROM_POD, link, &frame, Expect::Drop(reason));
    }
}

#[test]
fn fragments_follow_their_first() {
    let mut node = node(Mode::Vxlan);
    let link = node.pod_a;
    let fragment = |offset, has_more, id, transport| {
        to(NEIGHBOUR, transport)
            .with(|packet| packet.extensions.push(Extension::fragment(offset, has_more, id)))
    };
    let atomic = fragment(0, false, 1, udp(40000, 80));
    node.check("atomic", FROM_POD, link, &atomic.build(), delivered(&atomic));
    let later = fragment(2, false, 2, Transport::None(protocol::UDP));
    let alone = Expect::Drop(Reason::FragmentWithoutFirst);
    node.check("before its first", FROM_POD, link, &later.build(), alone);
    let first = fragment(0, true, 2, udp(40000, 80));
    node.check("the first", FROM_POD, link, &first.build(), delivered(&first));
    node.check("after its first", FROM_POD, link, &later.build(), delivered(&later));
    let other = fragment(2, false, 3, Transport::None(protocol::UDP)).build();
    node.check("another datagram's", FROM_POD, link, &other, Expect::Drop(Reason::FragmentWithoutFirst));
    // Each fragment names the header with which the first one begins, here in front of UDP.
    let options = Extension::of(protocol::DESTINATION_OPTIONS);
    let first = fragment(0, true, 4, udp(40000, 80)).with(|packet| packet.extensions.push(options));
    let later = fragment(2, false, 4, Transport::None(protocol::DESTINATION_OPTIONS));
    node.check("the first, with options", FROM_POD, link, &first.build(), delivered(&first));
    node.check("a later one of it", FROM_POD, link, &later.build(), delivered(&later));
    // The payload looks like a router advertisement.
    let echo = fragment(0, true, 5, Transport::EchoRequest { identifier: 7 });
    let rest = fragment(2, false, 5, Transport::None(protocol::ICMPV6)).with(|p| p.payload = vec![134; 16]);
    node.check("an echo", FROM_POD, link, &echo.build(), delivered(&echo));
    node.check("the rest of the echo", FROM_POD, link, &rest.build(), delivered(&rest));
    let twice = fragment(0, true, 6, udp(40000, 80))
        .with(|packet| packet.extensions.push(Extension::fragment(0, false, 7)));
    let refused = Expect::Drop(Reason::ExtensionHeaders);
    node.check("two fragment headers", FROM_POD, link, &twice.build(), refused);
}

#[test]
fn a_pod_sends_errors_only_about_packets_that_it_received() {
    let mut node = node(Mode::Vxlan);
    let link = node.pod_a;
    let quoted = |from, to, extensions: &[u8]| {
        Packet6::new(from, to, udp(40000, 80))
            .with(|packet| packet.extensions = extensions.iter().map(|kind| Extension::of(*kind)).collect())
    };
    let error = |quoted: Packet6| {
        to(NEIGHBOUR, Transport::Icmp { kind: 1, code: 4, word: [0; 4] })
            .with(|packet| packet.payload = behind_ethernet(&quoted.build()))
    };
    for (what, quoted) in [
        ("what it received", quoted(NEIGHBOUR, POD, &[])),
        ("with options", quoted(NEIGHBOUR, POD, &[protocol::DESTINATION_OPTIONS; 2])),
    ] {
        let error = error(quoted);
        node.check(what, FROM_POD, link, &error.build(), delivered(&error));
    }
    for (what, quoted) in [
        ("what another received", quoted(NEIGHBOUR, REMOTE, &[])),
        ("what its receiver did not send", quoted(REMOTE, POD, &[])),
    ] {
        let refused = Expect::Drop(Reason::IcmpErrorNotOwned);
        node.check(what, FROM_POD, link, &error(quoted).build(), refused);
    }
    let cut = error(quoted(NEIGHBOUR, POD, &[])).with(|packet| packet.payload.truncate(30)).build();
    node.check("half a quote", FROM_POD, link, &cut, Expect::Drop(Reason::Truncated));
}

#[test]
fn no_error_names_less_than_the_least_mtu() {
    let mut node = node(Mode::Vxlan);
    let link = node.pod_a;
    for path in node.model.paths.values_mut() {
        path.mtu = 1300;
    }
    node.fill();
    node.namespace.ip("link set up0 mtu 1300");
    // The VXLAN device sends such packets in outer fragments.
    let of_length = |length: usize| to(REMOTE, udp(40000, 80)).with(|p| p.payload = vec![7; length - 48]);
    let packet = of_length(1280);
    let inner = packet.forwarded(INNER_DESTINATION_MAC, INNER_SOURCE_MAC);
    let expect = Expect::Redirect(Path::TunnelOutDevice, inner);
    node.check("larger than the path, of 1280 bytes", FROM_POD, link, &packet.build(), expect);
    let large = of_length(1281);
    let expect = Expect::Redirect(Path::TooBigAnswered, too_big(1280, &large));
    node.check("one byte more", FROM_POD, link, &large.build(), expect);
    // An error about a fragment would lose its datagram.
    let fragment = large.with(|packet| packet.extensions = vec![Extension::fragment(0, true, 7)]);
    let inner = fragment.forwarded(INNER_DESTINATION_MAC, INNER_SOURCE_MAC);
    let expect = Expect::Redirect(Path::TunnelOutDevice, inner);
    node.check("a fragment", FROM_POD, link, &fragment.build(), expect);
}

/// Returns the error that a pod gets about its packet.
pub fn too_big(mtu: u32, packet: &Packet6) -> Vec<u8> {
    /// Bytes of the packet that the error quotes.
    const QUOTE: usize = 64;
    Packet6::new(OVERLAY, POD, Transport::Icmp { kind: 2, code: 0, word: mtu.to_be_bytes() })
        .macs(POD_A_MAC, HOST_A_MAC)
        .with(|error| error.payload = behind_ethernet(&packet.build())[..QUOTE].to_vec())
        .build()
}

#[test]
fn packets_of_the_stack_reach_a_pod_and_their_flow_is_recorded() {
    for (what, source, transport, reply, protocol) in [
        ("another pod", NEIGHBOUR, tcp(40000, 80), (80, 40000), protocol::TCP),
        ("a remote pod", REMOTE, udp(40000, 53), (53, 40000), protocol::UDP),
        ("an echo", NEIGHBOUR, Transport::EchoRequest { identifier: 7 }, (0, 7), protocol::ICMPV6),
    ] {
        let mut node = node(Mode::Vxlan);
        let packet = Packet6::new(source, POD, transport).macs(HOST_A_MAC, HOST_A_MAC);
        let delivered = packet.clone().macs(POD_A_MAC, HOST_A_MAC).build();
        let link = node.pod_a;
        node.check(what, TO_POD, link, &packet.build(), Expect::Stack(Path::FromStack, delivered));
        let flow =
            abi::Flow::new(POD.into(), source.into(), Be16::new(reply.0), Be16::new(reply.1), protocol);
        assert_eq!(node.stack_flows(), [flow], "{what}");
        // From now on the pod's answer takes the stack too.
        assert!(answer_takes_the_stack(&mut node, source, reply, protocol), "{what}");
    }
    let mut node = node(Mode::Vxlan);
    let link = node.pod_a;
    let for_another = Packet6::new(REMOTE, NEIGHBOUR, udp(1, 2)).build();
    node.check("another pod's", TO_POD, link, &for_another, Expect::Pass);
}

fn answer_takes_the_stack(node: &mut Fixture, to_pod: Ipv6Addr, ports: (u16, u16), protocol: u8) -> bool {
    let transport = match protocol {
        protocol::TCP => Transport::Tcp { source: ports.0, destination: ports.1, flags: 0x12 },
        protocol::ICMPV6 => Transport::EchoReply { identifier: ports.1 },
        _ => udp(ports.0, ports.1),
    };
    let answer = to(to_pod, transport).build();
    let before = node.counters();
    node.run(FROM_POD, node.pod_a, &answer, 0);
    node.counters().get(Path::ToStack.name()) != before.get(Path::ToStack.name())
}

#[test]
fn packets_of_the_stack_leave_in_the_device() {
    let mut node = node(Mode::Vxlan);
    let link = node.uplink;
    for (what, source) in [("this node's", OVERLAY), ("a pod's", POD)] {
        let packet = Packet6::new(source, REMOTE, tcp(40000, 80));
        let leaves = packet.clone().macs(INNER_DESTINATION_MAC, INNER_SOURCE_MAC).build();
        node.check(what, TO_OVERLAY, link, &packet.build(), Expect::Stack(Path::StackToTunnel, leaves));
    }
    for (what, source, destination, reason) in [
        ("to the world", OVERLAY, WORLD6, Reason::NoNodeForDestination),
        ("to this node", OVERLAY, POD, Reason::NoNodeForDestination),
    ] {
        let packet = Packet6::new(source, destination, tcp(40000, 80)).build();
        node.check(what, TO_OVERLAY, link, &packet, Expect::Drop(reason));
    }
}

#[test]
fn no_pods_packet_leaves_bare() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = node(mode);
        let link = node.uplink;
        let from = |source, destination| {
            Packet6::new(source, destination, tcp(40000, 80)).macs(NODE2_MAC, UPLINK_MAC)
        };
        node.check("the node's own", TO_UPLINK, link, &from(WORLD6, REMOTE).build(), Expect::Pass);
        let gone = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 9);
        let unknown = Expect::Drop(Reason::PodSourceUnknown);
        node.check("a pod's that is gone", TO_UPLINK, link, &from(gone, WORLD6).build(), unknown);
        let expect = match mode {
            Mode::Vxlan => Expect::Drop(Reason::PodSourceUnknown),
            Mode::Direct => Expect::Pass,
        };
        node.check("another node's pod", TO_UPLINK, link, &from(REMOTE, WORLD6).build(), expect);
        for destination in [gone, OVERLAY, NODE1_6] {
            let refused = Expect::Drop(Reason::NoNodeForDestination);
            node.check("to this node", TO_UPLINK, link, &from(POD, destination).build(), refused);
        }
        let to_pod = from(POD, REMOTE);
        let expect = match mode {
            Mode::Vxlan => Expect::Redirect(Path::StackEncapsulated, in_tunnel(&to_pod)),
            Mode::Direct => Expect::Pass,
        };
        node.check("to a remote pod", TO_UPLINK, link, &to_pod.build(), expect);
        let reply = abi::Flow::new(REMOTE.into(), POD.into(), Be16::new(80), Be16::new(40000), protocol::TCP);
        assert_eq!(node.stack_flows(), [reply], "the answer must find conntrack");
        let answer = from(OVERLAY, REMOTE);
        let expect = match mode {
            Mode::Vxlan => Expect::Redirect(Path::StackEncapsulated, in_tunnel(&answer)),
            Mode::Direct => Expect::Pass,
        };
        node.check("the overlay address's answer", TO_UPLINK, link, &answer.build(), expect);
    }
}

/// Returns the frame of a packet to node 2 that a program has encapsulated. The hop limit stays.
fn in_tunnel(packet: &Packet6) -> Vec<u8> {
    let (source, destination) = (packet.source.into(), packet.destination.into());
    let flow = abi::Flow::new(source, destination, Be16::new(40000), Be16::new(80), protocol::TCP);
    let inner = packet.clone().macs(INNER_DESTINATION_MAC, INNER_SOURCE_MAC).build();
    Vxlan::new(NODE1, NODE2).with(|outer| outer.source_port = flow.tunnel_source_port().get()).around(&inner)
}

#[test]
fn by_direct_routing_the_hosts_route_decides() {
    let mut node = node(Mode::Direct);
    let link = node.pod_a;
    let packet = to(REMOTE, udp(40000, 80));
    let stack = Expect::Stack(Path::ToStack, packet.build());
    node.check("without a route", FROM_POD, link, &packet.build(), stack);
    route_ipv6(&node);
    let expect = Expect::Redirect(Path::DirectOut, packet.forwarded(HOST_A_MAC, POD_A_MAC));
    node.check("by the route", FROM_POD, link, &packet.build(), expect);
    let large = packet.with(|packet| packet.payload = vec![7; 1401 - 48]);
    let expect = Expect::Redirect(Path::TooBigAnswered, too_big(1400, &large));
    node.check("larger than the route's MTU", FROM_POD, link, &large.build(), expect);
}

#[test]
fn a_pods_source_comes_from_its_node_only() {
    let bare =
        |source, destination| Packet6::new(source, destination, udp(40000, 80)).macs(UPLINK_MAC, NODE2_MAC);
    let spoofed = || Expect::Drop(Reason::PodSourceNotFromNode);
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = node(mode);
        let link = node.uplink;
        let good = bare(REMOTE, POD);
        let expect = match mode {
            Mode::Vxlan => spoofed(),
            Mode::Direct => Expect::Redirect(Path::DirectIn, good.forwarded(POD_A_MAC, HOST_A_MAC)),
        };
        node.check("a remote pod's", FROM_UPLINK, link, &good.build(), expect);
        for (what, source) in [("a pod's of this node", NEIGHBOUR), ("this node's own", OVERLAY)] {
            node.check(what, FROM_UPLINK, link, &bare(source, POD).build(), spoofed());
        }
        let cut = &bare(NEIGHBOUR, POD).build()[..14 + 44];
        node.check("cut short", FROM_UPLINK, link, cut, spoofed());
        let group = bare(NEIGHBOUR, ALL_NODES).macs(GROUP_MAC, NODE2_MAC).build();
        node.check("to a group", FROM_UPLINK, link, &group, spoofed());
        for (what, source, destination) in [
            ("from the world", WORLD6, POD),
            ("to the node", WORLD6, OVERLAY),
            ("between others", WORLD6, LINK_LOCAL),
        ] {
            node.check(what, FROM_UPLINK, link, &bare(source, destination).build(), Expect::Pass);
        }
        let last = bare(REMOTE, POD).with(|packet| packet.hop_limit = 1).build();
        let expect = if mode == Mode::Direct { Expect::Pass } else { spoofed() };
        node.check("the last hop", FROM_UPLINK, link, &last, expect);
    }
}
