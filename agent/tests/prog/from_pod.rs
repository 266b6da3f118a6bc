//! `from_pod`: packets that a pod sends.

use aya::maps::ProgramArray;
use podwire_common::abi::{self, ENDPOINT_STACK_ONLY, Flow};
use podwire_common::addr::{Addr, Be16};
use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_POD, Jump};
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC, JUMPS, VXLAN_PORT};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::change::Change;
use podwire_core::model::{Mode, Roleless};
use podwire_core::slice::TableChange;

use crate::fixture::*;
use crate::packets::*;

/// Returns a packet of pod A.
fn from_a(destination: std::net::Ipv4Addr, transport: Transport) -> Packet {
    Packet::new(POD_A, destination, transport).macs(HOST_A_MAC, POD_A_MAC)
}

/// Returns a packet of pod A as node 2 should get it. The kernel has not yet written the next hop's
/// link addresses.
fn in_tunnel(packet: &Packet) -> Vec<u8> {
    let inner = inner(&packet.clone().with(|packet| packet.ttl -= 1));
    Vxlan::new(NODE1, NODE2)
        .with(|outer| {
            outer.traffic_class = packet.traffic_class;
            outer.dont_fragment = packet.dont_fragment;
            outer.source_port = flow_of(packet).tunnel_source_port().get();
        })
        .around(&inner)
}

fn flow_of(packet: &Packet) -> Flow {
    let (source_port, destination_port, protocol) = match packet.transport {
        Transport::Tcp { source, destination, .. } | Transport::Reset { source, destination, .. } => {
            (source, destination, protocol::TCP)
        }
        Transport::Udp { source, destination, .. } => (source, destination, protocol::UDP),
        Transport::UdpLite { source, destination } => (source, destination, protocol::UDP_LITE),
        Transport::Sctp { source, destination } => (source, destination, protocol::SCTP),
        Transport::EchoRequest { identifier } => (identifier, 0, protocol::ICMP),
        Transport::EchoReply { identifier } => (0, identifier, protocol::ICMP),
        Transport::Icmp { .. } => (0, 0, protocol::ICMP),
        Transport::None(protocol) => (0, 0, protocol),
    };
    Flow::new(
        packet.source.into(),
        packet.destination.into(),
        Be16::new(source_port),
        Be16::new(destination_port),
        protocol,
    )
}

#[test]
fn a_pod_of_the_same_node_is_reached_past_the_stack() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.pod_a;
    let table = [
        ("TCP", from_a(POD_B, tcp(40000, 80))),
        ("UDP", from_a(POD_B, udp(40000, 53))),
        (
            "UDP without checksum",
            from_a(POD_B, Transport::Udp { source: 1, destination: 2, checksum: false }),
        ),
        ("echo", from_a(POD_B, Transport::EchoRequest { identifier: 7 })),
        ("a protocol without ports", from_a(POD_B, Transport::None(132))),
        ("IP options", from_a(POD_B, tcp(40000, 80)).with(|packet| packet.options = vec![1; 8])),
        (
            "a first fragment",
            from_a(POD_B, udp(1, 2)).with(|packet| {
                (packet.dont_fragment, packet.fragment) = (false, (0, true));
            }),
        ),
        (
            "a later fragment",
            from_a(POD_B, Transport::None(protocol::UDP)).with(|packet| {
                (packet.dont_fragment, packet.fragment) = (false, (2, false));
            }),
        ),
        ("to itself", from_a(POD_A, tcp(40000, 80))),
    ];
    for (what, packet) in table {
        let (pod, host) =
            if packet.destination == POD_A { (POD_A_MAC, HOST_A_MAC) } else { (POD_B_MAC, HOST_B_MAC) };
        let expect = Expect::Redirect(Path::Local, packet.forwarded(pod, host));
        node.check(what, FROM_POD, link, &packet.build(), expect);
    }
    assert!(node.stack_flows().is_empty(), "direct flows are not recorded");
}

#[test]
fn a_pod_of_another_node_is_reached_through_the_tunnel() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.pod_a;
    let table = [
        ("TCP", from_a(REMOTE_POD, tcp(40000, 80))),
        ("UDP", from_a(REMOTE_POD, udp(40000, 53))),
        ("echo", from_a(REMOTE_POD, Transport::EchoRequest { identifier: 7 })),
        ("the node's own address", from_a(NODE2, tcp(40000, 6443))),
        ("DSCP and ECN are copied", from_a(REMOTE_POD, tcp(1, 2)).with(|packet| packet.traffic_class = 0xb9)),
        ("congestion seen before", from_a(REMOTE_POD, tcp(1, 2)).with(|packet| packet.traffic_class = 3)),
        ("IP options", from_a(REMOTE_POD, tcp(1, 2)).with(|packet| packet.options = vec![1; 4])),
        ("VXLAN of the pod's own, to a pod", from_a(REMOTE_POD, udp(1, VXLAN_PORT))),
        (
            "as large as the tunnel takes",
            from_a(REMOTE_POD, udp(1, 2)).with(|packet| {
                packet.payload = vec![0x55; 1450 - 28];
            }),
        ),
    ];
    for (what, packet) in table {
        let expect = Expect::Redirect(Path::TunnelOut, in_tunnel(&packet));
        node.check(what, FROM_POD, link, &packet.build(), expect);
    }
}

#[test]
fn a_packet_that_may_be_cut_may_be_cut_on_the_way_as_well() {
    let node = Fixture::new(Mode::Vxlan);
    let packet = from_a(REMOTE_POD, udp(1, 2)).with(|packet| packet.dont_fragment = false);
    let ran = node.run(FROM_POD, node.pod_a, &packet.build(), 0);
    // The outer identification is random, so the test takes it from the output.
    let identification = u16::from_be_bytes([ran.frame[ETHERNET + 4], ran.frame[ETHERNET + 5]]);
    let inner = inner(&packet.clone().with(|packet| packet.ttl -= 1));
    let expected = Vxlan::new(NODE1, NODE2)
        .with(|outer| {
            outer.source_port = flow_of(&packet).tunnel_source_port().get();
            (outer.dont_fragment, outer.identification) = (false, identification);
        })
        .around(&inner);
    assert_eq!(ran.frame, expected);
}

#[test]
fn without_a_tunnel_the_hosts_route_decides() {
    let mut node = Fixture::new(Mode::Direct);
    let link = node.pod_a;
    for destination in [REMOTE_POD, NODE2] {
        let packet = from_a(destination, tcp(40000, 80));
        let expect = Expect::Redirect(Path::DirectOut, packet.forwarded(HOST_A_MAC, POD_A_MAC));
        node.check(&destination.to_string(), FROM_POD, link, &packet.build(), expect);
    }
    let stale = from_a(POD_OF_NODE3, tcp(40000, 80));
    node.check("no route", FROM_POD, link, &stale.build(), Expect::Stack(Path::ToStack, stale.build()));
}

#[test]
fn what_is_not_known_or_is_the_nodes_own_goes_up_the_stack() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.pod_a;
    let table = [
        ("the world", from_a(WORLD, tcp(40000, 443))),
        ("a service", from_a([10, 96, 0, 1].into(), tcp(40000, 443))),
        ("this node", from_a(NODE1, tcp(40000, 10250))),
        ("the gateway", from_a(GATEWAY, Transport::EchoRequest { identifier: 7 })),
        ("no such pod here", from_a([10, 244, 1, 200].into(), tcp(40000, 80))),
        ("TTL 1, to a pod of this node", from_a(POD_B, tcp(40000, 80)).with(|packet| packet.ttl = 1)),
        ("TTL 1, to another node's pod", from_a(REMOTE_POD, tcp(40000, 80)).with(|packet| packet.ttl = 1)),
        ("VXLAN to the world", from_a(WORLD, udp(40000, VXLAN_PORT))),
    ];
    for (what, packet) in table {
        node.check(what, FROM_POD, link, &packet.build(), Expect::Stack(Path::ToStack, packet.build()));
    }
}

#[test]
fn a_flow_that_came_out_of_the_stack_returns_through_it() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = Fixture::new(mode);
        let link = node.pod_a;
        for destination in [POD_B, REMOTE_POD, NODE2] {
            let packet = from_a(destination, tcp(80, 40000));
            node.add_stack_flow(flow_of(&packet));
            let up = Expect::Stack(Path::ToStack, packet.build());
            node.check(&format!("{mode:?} {destination}"), FROM_POD, link, &packet.build(), up);
        }
        // An ICMP error follows the flow that it quotes.
        let received = Packet::new(POD_B, POD_A, tcp(40000, 80));
        let error = from_a(POD_B, Transport::Icmp { kind: 3, code: 3, word: [0; 4] })
            .with(|packet| packet.payload = behind_ethernet(&received.build()));
        node.check(
            "an ICMP error",
            FROM_POD,
            link,
            &error.build(),
            Expect::Stack(Path::ToStack, error.build()),
        );
        let other = Packet::new(POD_B, POD_A, tcp(40001, 80));
        let error = error.with(|packet| packet.payload = behind_ethernet(&other.build()));
        let direct = Expect::Redirect(Path::Local, error.forwarded(POD_B_MAC, HOST_B_MAC));
        node.check("an ICMP error about another flow", FROM_POD, link, &error.build(), direct);
    }
}

#[test]
fn an_endpoint_whose_flows_could_not_be_recorded_uses_the_stack() {
    let mut node = Fixture::new(Mode::Vxlan);
    let entry = abi::Endpoint {
        flags: ENDPOINT_STACK_ONLY,
        ..podwire_core::features::endpoint_entry(
            node.model.endpoints.values().next().unwrap(),
            GATEWAY.into(),
        )
    };
    assert_eq!(entry.ifindex, node.pod_a);
    node.loaded.maps.apply(&TableChange::Endpoints(Change::added(POD_A.into(), entry))).unwrap();
    let packet = from_a(POD_B, tcp(40000, 80));
    let link = node.pod_a;
    node.check("local", FROM_POD, link, &packet.build(), Expect::Stack(Path::ToStack, packet.build()));
}

#[test]
fn what_does_not_fit_the_path_is_answered() {
    for (mode, path_mtu) in [(Mode::Vxlan, 1450), (Mode::Direct, 1500)] {
        let mut node = Fixture::new(mode);
        let link = node.pod_a;
        let packet = from_a(REMOTE_POD, udp(1, 2)).with(|packet| packet.payload = vec![0; path_mtu - 27]);
        let [high, low] = u16::try_from(path_mtu).unwrap().to_be_bytes();
        let answer =
            Packet::new(GATEWAY, POD_A, Transport::Icmp { kind: 3, code: 4, word: [0, 0, high, low] })
                .macs(POD_A_MAC, HOST_A_MAC)
                .with(|answer| {
                    answer.payload = behind_ethernet(&packet.build())[..28].to_vec();
                    (answer.dont_fragment, answer.identification) = (false, 0);
                });
        let expect = Expect::Redirect(Path::TooBigAnswered, answer.build());
        node.check(&format!("{mode:?}"), FROM_POD, link, &packet.build(), expect);
    }
}

#[test]
fn what_does_not_fit_and_may_be_cut_is_left_to_the_kernel() {
    let large = |packet: &mut Packet| {
        packet.payload = vec![0; 1480];
        packet.dont_fragment = false;
    };
    let packet = from_a(REMOTE_POD, udp(1, 2)).with(large);
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.pod_a;
    let to_device =
        Expect::Redirect(Path::TunnelOutDevice, packet.forwarded(INNER_DESTINATION_MAC, INNER_SOURCE_MAC));
    node.check("to the VXLAN device", FROM_POD, link, &packet.build(), to_device);
    let mut node = Fixture::new(Mode::Direct);
    let link = node.pod_a;
    node.check("to the stack", FROM_POD, link, &packet.build(), Expect::Stack(Path::ToStack, packet.build()));
}

#[test]
fn what_the_kernel_refuses_to_encapsulate_goes_to_the_device() {
    // A test run cannot set a segment's type. Without one the kernel refuses to grow the headers.
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.pod_a;
    let packet = from_a(REMOTE_POD, udp(1, 2)).with(|packet| packet.payload = vec![0; 3000]);
    let expect =
        Expect::Redirect(Path::TunnelOutDevice, packet.forwarded(INNER_DESTINATION_MAC, INNER_SOURCE_MAC));
    node.check_segments("a large segment", FROM_POD, link, &packet.build(), 1000, expect);
}

#[test]
fn only_the_gateway_answers_arp() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.pod_a;
    let request = |sender, target| arp(1, POD_A_MAC, sender, [0; 6], target);
    let answer = arp(2, HOST_A_MAC, GATEWAY, POD_A_MAC, POD_A);
    let answered = Expect::Redirect(Path::ArpAnswered, answer);
    node.check("the gateway", FROM_POD, link, &request(POD_A, GATEWAY), answered);
    let refused = Expect::Drop(Reason::ArpNotForGateway);
    node.check("another pod", FROM_POD, link, &request(POD_A, POD_B), refused);
    let reply = arp(2, POD_A_MAC, POD_A, HOST_A_MAC, GATEWAY);
    node.check("a reply", FROM_POD, link, &reply, Expect::Drop(Reason::ArpNotForGateway));
    let foreign = request(POD_B, GATEWAY);
    node.check("another's address", FROM_POD, link, &foreign, Expect::Drop(Reason::SourceNotOwned));
    let mut foreign = request(POD_A, GATEWAY);
    foreign[ETHERNET + 8] ^= 0x40;
    node.check("another's hardware", FROM_POD, link, &foreign, Expect::Drop(Reason::SourceMacNotOwned));
    let short = &request(POD_A, GATEWAY)[..38];
    node.check("truncated", FROM_POD, link, short, Expect::Drop(Reason::Truncated));
}

#[test]
fn every_reason_to_drop() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.pod_a;
    let good = from_a(POD_B, tcp(40000, 80));
    let vxlan = |destination| from_a(destination, udp(40000, VXLAN_PORT)).build();
    let mut wrong_version = good.build();
    wrong_version[ETHERNET] = 0x65;
    let mut short_header = good.build();
    short_header[ETHERNET] = 0x44;
    let mut short_total = good.build();
    short_total[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&19u16.to_be_bytes());
    let ethertype = |number: u16| [&good.build()[..12], &number.to_be_bytes(), &good.build()[14..]].concat();
    let table = [
        ("another pod's address", good.clone().with(|p| p.source = POD_B).build(), Reason::SourceNotOwned),
        ("the node's address", good.clone().with(|p| p.source = NODE1).build(), Reason::SourceNotOwned),
        ("the world's address", good.clone().with(|p| p.source = WORLD).build(), Reason::SourceNotOwned),
        ("another's MAC", good.clone().macs(HOST_A_MAC, POD_B_MAC).build(), Reason::SourceMacNotOwned),
        ("a VLAN tag", tagged(&good.build()), Reason::VlanTagged),
        ("a service tag", ethertype(0x88a8), Reason::VlanTagged),
        ("IPv6 that is none", ethertype(0x86dd), Reason::SourceNotOwned),
        ("neither IP nor ARP", ethertype(0x88cc), Reason::EthertypeUnknown),
        (
            "a multicast address",
            good.clone().with(|p| p.destination = [224, 0, 0, 251].into()).build(),
            Reason::Multicast,
        ),
        ("a multicast MAC", good.clone().macs([1, 0, 0x5e, 0, 0, 1], POD_A_MAC).build(), Reason::Multicast),
        (
            "the broadcast address",
            good.clone().with(|p| p.destination = [255; 4].into()).build(),
            Reason::Broadcast,
        ),
        ("the broadcast MAC", good.clone().macs([255; 6], POD_A_MAC).build(), Reason::Broadcast),
        ("VXLAN to a node", vxlan(NODE2), Reason::VxlanFromPod),
        ("VXLAN to this node", vxlan(NODE1), Reason::VxlanFromPod),
        ("VXLAN to the gateway", vxlan(GATEWAY), Reason::VxlanFromPod),
        ("IP version 6 in an IPv4 frame", wrong_version, Reason::BadIpHeader),
        ("a header of 16 bytes", short_header, Reason::BadIpHeader),
        ("a packet shorter than its header", short_total, Reason::BadIpHeader),
        (
            "a later fragment without its first",
            from_a(POD_B, Transport::None(protocol::UDP))
                .with(|p| {
                    (p.dont_fragment, p.fragment, p.identification) = (false, (2, false), 0x4321);
                })
                .build(),
            Reason::FragmentWithoutFirst,
        ),
    ];
    for (what, frame, reason) in table {
        node.check(what, FROM_POD, link, &frame, Expect::Drop(reason));
    }
}

#[test]
fn a_frame_that_ends_within_a_header_is_dropped() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.pod_a;
    let quote = behind_ethernet(&Packet::new(POD_B, POD_A, tcp(1, 2)).build());
    let error = from_a(POD_B, Transport::Icmp { kind: 3, code: 3, word: [0; 4] });
    let bare = |transport| from_a(POD_B, transport).with(|packet| packet.payload.clear()).build();
    let table = [
        ("half a TCP header", bare(tcp(1, 2))[..ETHERNET + 20 + 10].to_vec()),
        ("half a UDP header", bare(udp(1, 2))[..ETHERNET + 20 + 4].to_vec()),
        ("half an ICMP header", bare(Transport::EchoRequest { identifier: 1 })[..ETHERNET + 20 + 4].to_vec()),
        (
            "an error with half a quoted header",
            error.clone().with(|p| p.payload = quote[..10].to_vec()).build(),
        ),
        ("an error without quoted ports", error.with(|p| p.payload = quote[..24].to_vec()).build()),
    ];
    for (what, frame) in table {
        node.check(what, FROM_POD, link, &frame, Expect::Drop(Reason::Truncated));
    }
    let half = &bare(tcp(1, 2))[..ETHERNET + 10];
    node.check_on_wire("half an IPv4 header", "pwa-p", half, Some(Reason::Truncated.name()));
}

#[test]
fn the_recorded_flow_is_that_of_the_packet_and_no_other() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.pod_a;
    let recorded = from_a(POD_B, tcp(80, 40000));
    node.add_stack_flow(flow_of(&recorded));
    for (what, packet) in [
        ("another port", from_a(POD_B, tcp(80, 40001))),
        ("another protocol", from_a(POD_B, udp(80, 40000))),
        ("the other direction's ports", from_a(POD_B, tcp(40000, 80))),
    ] {
        let direct = Expect::Redirect(Path::Local, packet.forwarded(POD_B_MAC, HOST_B_MAC));
        node.check(what, FROM_POD, link, &packet.build(), direct);
    }
    assert_eq!(Addr::from(POD_A), flow_of(&recorded).source);
}

#[test]
fn direct_flow_from_a_service_flows_port_takes_the_stack_too() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.pod_a;
    let tcp_flags = |flags| from_a(POD_B, Transport::Tcp { source: 40000, destination: 80, flags });
    let (first, later) = (tcp_flags(0x02), tcp_flags(0x10));
    for flow in [flow_of(&first).reversed(), flow_of(&from_a(POD_B, udp(40000, 53))).reversed()] {
        node.add_stack_flow(flow);
    }
    let direct = Expect::Redirect(Path::Local, later.forwarded(POD_B_MAC, HOST_B_MAC));
    node.check("of a connection from before", FROM_POD, link, &later.build(), direct);
    for (what, packet) in [
        ("the first of a connection", first),
        ("the rest of it", later),
        ("a datagram", from_a(POD_B, udp(40000, 53))),
    ] {
        node.check(what, FROM_POD, link, &packet.build(), Expect::Stack(Path::ToStack, packet.build()));
    }
}

#[test]
fn first_packet_towards_a_link_without_programs_is_dropped() {
    let mut node = Fixture::new(Mode::Vxlan);
    let (pod, uplink) = (node.pod_a, node.uplink);
    node.namespace.ip("route add default via 10.200.0.2 dev up0");
    let packet = from_a(WORLD, udp(40000, 53)).build();
    let to_stack = || Expect::Stack(Path::ToStack, packet.clone());
    node.check("an uplink", FROM_POD, pod, &packet, to_stack());
    node.model.without_programs.insert(uplink);
    node.fill();
    node.check("not attached", FROM_POD, pod, &packet, Expect::Drop(Reason::LinkWithoutPrograms));
    let error = from_a(WORLD, Transport::Icmp { kind: 3, code: 3, word: [0; 4] });
    let quoted = behind_ethernet(&Packet::new(WORLD, POD_A, udp(53, 40000)).build());
    let error = error.with(|packet| packet.payload = quoted).build();
    node.check("an error begins nothing", FROM_POD, pod, &error, Expect::Stack(Path::ToStack, error.clone()));
    // A service's address may have a route to a dummy: the service's rules then send the packet
    // elsewhere.
    node.model.links.clear();
    node.model.links_without_role.insert(uplink, Roleless { mtu: 1500, is_sink: true });
    node.fill();
    node.check("a dummy", FROM_POD, pod, &packet, to_stack());
    node.model.links_without_role.insert(uplink, Roleless { mtu: 1500, is_sink: false });
    node.fill();
    node.check("a tunnel of others", FROM_POD, pod, &packet, Expect::Drop(Reason::LinkWithoutPrograms));
    node.model.non_masquerade.insert("198.51.100.0/24".parse().unwrap());
    node.fill();
    node.check("an excluded network", FROM_POD, pod, &packet, to_stack());
    node.model.non_masquerade.clear();
    node.model.links_without_role.clear();
    node.fill();
    node.check("a link that is not known", FROM_POD, pod, &packet, Expect::Drop(Reason::LinkWithoutPrograms));
}

#[test]
fn packet_whose_program_is_missing_is_dropped_and_counted() {
    let mut node = Fixture::new(Mode::Vxlan);
    node.loaded.keep();
    let mut array = ProgramArray::try_from(node.loaded.ebpf.map_mut(JUMPS).unwrap()).unwrap();
    array.clear_index(&(Jump::FromPodNew as u32)).unwrap();
    let packet = from_a(POD_B, tcp(40000, 80)).build();
    node.check("a first packet", FROM_POD, node.pod_a, &packet, Expect::Drop(Reason::ProgramMissing));
}
