//! IPv6 packets in the tunnel, over IPv4 and over IPv6.

use std::net::Ipv6Addr;

use podwire_common::abi;
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK, TO_UPLINK};
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC, VNI, VXLAN_OVERHEAD_IPV6, VXLAN_PORT};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::{Family, Mode, Path as Way};

use crate::fixture::*;
use crate::fixture6::*;
use crate::ipv6::{to, too_big};
use crate::kinds::ack;
use crate::packets::{Packet, Vxlan, inner, udp};
use crate::packets6::{Extension, Packet6, over_ipv6};

/// Returns a node whose tunnel to node 2 goes over IPv6.
pub fn node_over_ipv6() -> Fixture {
    let mut node = node(Mode::Vxlan);
    node.model.tunnel_family = Family::V6;
    node.model.own.as_mut().unwrap().internal_addresses.push(NODE1_6.into());
    node.model.remote.get_mut("node2").unwrap().internal_addresses.push(NODE2_6.into());
    node.model.paths.insert(NODE2_6.into(), Way { device: node.uplink, mtu: 1500, gateway: None });
    node.fill();
    forward("up0");
    add_addresses(&node);
    node
}

/// Returns what node 1 sends to node 2 around an inner frame. `flow`: the inner packet's.
fn sent_to_node2(flow: &abi::Flow, class: u8, frame: &[u8]) -> Vec<u8> {
    let port = flow.tunnel_source_port();
    let outer = over_ipv6(NODE1_6, NODE2_6, port.get(), frame).with(|outer| outer.traffic_class = class);
    let mut frame = outer.build();
    // The flow label.
    frame[16..18].copy_from_slice(&port.bytes);
    frame
}

/// Returns what node 2 sends to node 1 around an inner frame.
pub fn in_tunnel_to_node1(frame: &[u8]) -> Packet6 {
    over_ipv6(NODE2_6, NODE1_6, 50000, frame).macs(UPLINK_MAC, NODE2_MAC)
}

fn flow(protocol: u8) -> abi::Flow {
    abi::Flow::new(POD.into(), REMOTE.into(), Be16::new(40000), Be16::new(80), protocol)
}

#[test]
fn packets_to_another_node_leave_in_a_tunnel_of_ipv6() {
    let mut node = node_over_ipv6();
    let link = node.pod_a;
    for (transport, protocol) in [(ack(40000, 80), protocol::TCP), (udp(40000, 80), protocol::UDP)] {
        let packet = to(REMOTE, transport).with(|packet| packet.traffic_class = 0xb9);
        let inner = packet.forwarded(INNER_DESTINATION_MAC, INNER_SOURCE_MAC);
        let outer = sent_to_node2(&flow(protocol), 0xb9, &inner);
        // The second packet follows the known flow.
        for what in ["judged", "known"] {
            let expect = Expect::Redirect(Path::TunnelOut, outer.clone());
            node.check(&format!("protocol {protocol}, {what}"), FROM_POD, link, &packet.build(), expect);
        }
        let known = node.loaded.maps.flows6.get(&flow(protocol), 0).expect("it is learnt");
        assert_eq!((known.leaves, known.mtu), (abi::LEAVES_IN_TUNNEL6, 1500 - VXLAN_OVERHEAD_IPV6));
    }
    let of_stack = Packet6::new(POD, REMOTE, udp(40000, 80)).macs(NODE2_MAC, UPLINK_MAC);
    let inner = of_stack.clone().macs(INNER_DESTINATION_MAC, INNER_SOURCE_MAC).build();
    let expect = Expect::Redirect(Path::StackEncapsulated, sent_to_node2(&flow(protocol::UDP), 0, &inner));
    let link = node.uplink;
    node.check("of the host stack", TO_UPLINK, link, &of_stack.build(), expect);
}

#[test]
fn too_large_packets_for_a_tunnel_of_ipv6_are_answered() {
    let mut node = node_over_ipv6();
    let link = node.pod_a;
    let of_length = |length: usize| to(REMOTE, udp(40000, 80)).with(|p| p.payload = vec![7; length - 48]);
    let fits = of_length(1430);
    for what in ["judged", "known"] {
        assert_eq!(node.run(FROM_POD, link, &fits.build(), 0).frame.len(), 14 + 1430 + 70, "{what}");
    }
    let large = of_length(1431);
    let expect = Expect::Redirect(Path::TooBigAnswered, too_big(1430, &large));
    node.check("one byte more", FROM_POD, link, &large.build(), expect);
}

#[test]
fn packets_of_a_tunnel_of_ipv6_reach_a_pod_or_the_device() {
    let mut node = node_over_ipv6();
    let link = node.uplink;
    let framed = |packet: Packet6| packet.macs(INNER_DESTINATION_MAC, INNER_SOURCE_MAC).build();
    let tunnel = in_tunnel_to_node1;
    for transport in [ack(40000, 80), udp(40000, 80)] {
        let packet = Packet6::new(REMOTE, POD, transport);
        let expect = packet.forwarded(POD_A_MAC, HOST_A_MAC);
        for what in ["judged", "known"] {
            let frame = tunnel(&framed(packet.clone())).build();
            node.check(what, FROM_UPLINK, link, &frame, Expect::Redirect(Path::TunnelIn, expect.clone()));
        }
    }
    let good = framed(Packet6::new(REMOTE, POD, udp(40000, 80)));
    let of_node = framed(Packet6::new(REMOTE, OVERLAY, udp(40000, 80)));
    let options = Extension::of(protocol::DESTINATION_OPTIONS);
    for (what, packet) in [
        ("IPv4", tunnel(&inner(&Packet::new(REMOTE_POD, POD_A, udp(40000, 80))))),
        ("to the node", tunnel(&of_node)),
        ("to no address", tunnel(&good).with(|packet| packet.destination = Ipv6Addr::UNSPECIFIED)),
        ("an extension header", tunnel(&good).with(|packet| packet.extensions.push(options))),
    ] {
        node.check(what, FROM_UPLINK, link, &packet.build(), Expect::Pass);
    }
    let stranger = tunnel(&good).with(|packet| packet.source = WORLD6);
    let mut other_network = tunnel(&good);
    other_network.payload[6] ^= 1;
    let congested = tunnel(&good).with(|packet| packet.traffic_class = 3);
    for (what, packet, reason) in [
        ("from a stranger", stranger, Reason::TunnelPeerUnknown),
        ("another network", other_network, Reason::TunnelVniUnknown),
        ("congestion that the sender does not know", congested, Reason::EcnNotCapable),
        ("IPv4 from a stranger", from_stranger(), Reason::TunnelPeerUnknown),
    ] {
        node.check(what, FROM_UPLINK, link, &packet.build(), Expect::Drop(reason));
    }
}

/// With one header, the uplink's program refuses a stranger. It cannot walk along seven: the kernel
/// can, and `from_overlay` refuses the packet by its tunnel key.
#[test]
fn extension_headers_hide_no_stranger_in_a_tunnel_of_ipv6() {
    let mut node = node_over_ipv6();
    let link = node.uplink;
    let behind = |packet: &Packet6, headers| {
        let options = Extension::of(protocol::DESTINATION_OPTIONS);
        let packet = packet.clone().with(|packet| {
            packet.extensions = vec![options; headers];
            // The device requires the checksum.
            packet.transport = udp(50000, VXLAN_PORT);
        });
        packet.build()
    };
    let good = Packet6::new(REMOTE, POD, udp(40000, 80)).macs(INNER_DESTINATION_MAC, INNER_SOURCE_MAC);
    let good = in_tunnel_to_node1(&good.build());
    let mut other_network = good.clone();
    other_network.payload[6] ^= 1;
    for (what, packet, counted) in [
        ("a node's", good, Path::TunnelInDevice.name()),
        ("a stranger's", from_stranger(), Reason::TunnelPeerUnknown.name()),
        ("another network's", other_network, Reason::TunnelVniUnknown.name()),
    ] {
        node.check("not walked along", FROM_UPLINK, link, &behind(&packet, 7), Expect::Pass);
        for headers in [1, 7] {
            let what = format!("{what}, behind {headers}");
            node.check_on_wire(&what, "up0-p", &behind(&packet, headers), Some(counted));
        }
    }
}

#[test]
fn no_pod_sends_tunnel_packets_over_ipv6_to_a_node() {
    let mut node = node_over_ipv6();
    let link = node.pod_a;
    let frame = inner(&Packet::new(REMOTE_POD, POD_A, udp(40000, 80)));
    for (what, destination) in [("another node", NODE2_6), ("this node", NODE1_6)] {
        let packet = over_ipv6(POD, destination, 50000, &frame).macs(HOST_A_MAC, POD_A_MAC);
        let options = Extension::of(protocol::DESTINATION_OPTIONS);
        let fragment = Extension::fragment(0, true, 7);
        for extensions in [vec![], vec![options.clone()], vec![options, fragment]] {
            let what = format!("to {what}, {} headers", extensions.len());
            let packet = packet.clone().with(|packet| packet.extensions = extensions);
            let refused = Expect::Drop(Reason::VxlanFromPod);
            node.check(&what, FROM_POD, link, &packet.build(), refused);
        }
    }
}

fn from_stranger() -> Packet6 {
    let frame = inner(&Packet::new(REMOTE_POD, POD_A, udp(40000, 80)));
    over_ipv6(WORLD6, NODE1_6, 50000, &frame).macs(UPLINK_MAC, NODE2_MAC)
}

#[test]
fn tunnel_packets_reach_a_pod_or_the_device() {
    let mut node = node(Mode::Vxlan);
    let link = node.uplink;
    let macs = |outer: &mut Vxlan| (outer.destination_mac, outer.source_mac) = (UPLINK_MAC, NODE2_MAC);
    let tunnel = |source| Vxlan::new(source, NODE1).with(macs);
    let inner = |source, destination| {
        let packet = Packet6::new(source, destination, udp(40000, 80));
        packet.macs(INNER_DESTINATION_MAC, INNER_SOURCE_MAC).build()
    };
    let good = inner(REMOTE, POD);
    let arrives = Packet6::new(REMOTE, POD, udp(40000, 80)).forwarded(POD_A_MAC, HOST_A_MAC);
    let to_pod =
        if takes_off_other_families() { Expect::Redirect(Path::TunnelIn, arrives) } else { Expect::Pass };
    node.check("from a node", FROM_UPLINK, link, &tunnel(NODE2).around(&good), to_pod);
    let own = tunnel(NODE2).around(&inner(REMOTE, OVERLAY));
    node.check("to the node", FROM_UPLINK, link, &own, Expect::Pass);
    let stranger = tunnel(STRANGER).around(&good);
    node.check("from a stranger", FROM_UPLINK, link, &stranger, Expect::Drop(Reason::TunnelPeerUnknown));
    let wrong = tunnel(NODE2).with(|outer| outer.vni = VNI + 1).around(&good);
    node.check("another network", FROM_UPLINK, link, &wrong, Expect::Drop(Reason::TunnelVniUnknown));
    let mapped = |address: std::net::Ipv4Addr| address.to_ipv6_mapped();
    let refused = [
        ("from this node's pod", inner(NEIGHBOUR, POD), Reason::InnerSourceNotOwned),
        ("from the world", inner(WORLD6, POD), Reason::InnerSourceNotOwned),
        ("from a mapped address", inner(mapped(REMOTE_POD), POD), Reason::InnerSourceNotOwned),
        ("to a mapped address", inner(REMOTE, mapped(POD_A)), Reason::AddressNeverOnWire),
        ("to a link-local address", inner(REMOTE, LINK_LOCAL), Reason::LinkLocalAddress),
        ("from nowhere", inner(Ipv6Addr::UNSPECIFIED, POD), Reason::InnerSourceNotOwned),
        ("from ::1", inner(Ipv6Addr::LOCALHOST, POD), Reason::InnerSourceNotOwned),
        ("from a group", inner(ALL_NODES, POD), Reason::InnerSourceNotOwned),
        ("to nowhere", inner(REMOTE, Ipv6Addr::UNSPECIFIED), Reason::AddressNeverOnWire),
        ("to ::1", inner(REMOTE, Ipv6Addr::LOCALHOST), Reason::AddressNeverOnWire),
    ];
    for (what, frame, reason) in &refused {
        let frame = tunnel(NODE2).around(frame);
        node.check(what, FROM_UPLINK, link, &frame, Expect::Drop(*reason));
    }
    // The device takes a packet with outer IP options, and `from_overlay6` checks the rest.
    let options = |outer: &mut Vxlan| outer.options = vec![1; 4];
    for (what, frame, counted) in [
        ("to a pod", good, Path::TunnelInDevice.name()),
        ("to the node", inner(REMOTE, OVERLAY), Path::TunnelToStack.name()),
    ] {
        let frame = tunnel(NODE2).with(options).around(&frame);
        node.check_on_wire(what, "up0-p", &frame, Some(counted));
    }
    for (what, frame, reason) in refused {
        let frame = tunnel(NODE2).with(options).around(&frame);
        node.check_on_wire(what, "up0-p", &frame, Some(reason.name()));
    }
}
