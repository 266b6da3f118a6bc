//! `to_overlay`: packets of the host stack to other nodes' pods. A test run's output lacks the
//! tunnel key that the program sets. The tests between namespaces check the bytes that leave.

use std::net::Ipv4Addr;

use podwire_common::abi::Flow;
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;
use podwire_common::names::{VXLAN_DEVICE, programs::TO_OVERLAY};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::packets::*;

fn out(source: Ipv4Addr, destination: Ipv4Addr, transport: Transport) -> Packet {
    Packet::new(source, destination, transport).macs([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 9])
}

#[test]
fn what_is_for_another_node_leaves_and_a_pods_flow_is_recorded() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let quote = behind_ethernet(&Packet::new(REMOTE_POD, NODE1, tcp(1, 2)).build());
    let table = [
        ("this node's TCP", out(NODE1, REMOTE_POD, tcp(40000, 80))),
        ("this node's echo", out(NODE1, REMOTE_POD, Transport::EchoRequest { identifier: 7 })),
        (
            "an ICMP error",
            out(NODE1, REMOTE_POD, Transport::Icmp { kind: 3, code: 3, word: [0; 4] })
                .with(|packet| packet.payload = quote),
        ),
        ("IP options", out(NODE1, REMOTE_POD, tcp(1, 2)).with(|packet| packet.options = vec![1; 4])),
        (
            "a later fragment",
            out(NODE1, REMOTE_POD, Transport::None(protocol::UDP)).with(|packet| {
                (packet.dont_fragment, packet.fragment) = (false, (2, false));
            }),
        ),
    ];
    for (what, packet) in table {
        let leaves = Expect::Stack(Path::StackToTunnel, inner(&packet));
        node.check(what, TO_OVERLAY, link, &packet.build(), leaves);
        assert!(node.stack_flows().is_empty(), "{what}: replies go up the stack anyway");
    }
    let translated = out(POD_A, REMOTE_POD, tcp(40000, 80));
    let leaves = Expect::Stack(Path::StackToTunnel, inner(&translated));
    node.check("a pod's, translated by the host", TO_OVERLAY, link, &translated.build(), leaves);
    let reply = Flow::new(REMOTE_POD.into(), POD_A.into(), Be16::new(80), Be16::new(40000), protocol::TCP);
    assert_eq!(node.stack_flows(), [reply]);
}

#[test]
fn every_reason_to_drop() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let good = out(NODE1, REMOTE_POD, tcp(1, 2)).with(|packet| packet.payload.clear());
    let mut wrong = good.build();
    wrong[ETHERNET] = 0x44;
    let table = [
        ("an address of no node", out(NODE1, WORLD, tcp(1, 2)).build(), Reason::NoNodeForDestination),
        ("this node's pod network", out(NODE1, POD_B, tcp(1, 2)).build(), Reason::NoNodeForDestination),
        ("a VLAN tag", tagged(&good.build()), Reason::NoNodeForDestination),
        ("half a TCP header", good.build()[..ETHERNET + 30].to_vec(), Reason::Truncated),
        ("a header of 16 bytes", wrong, Reason::BadIpHeader),
    ];
    for (what, frame, reason) in table {
        node.check(what, TO_OVERLAY, link, &frame, Expect::Drop(reason));
    }
    let half = &good.build()[..ETHERNET + 10];
    node.check_on_wire("half an IPv4 header", VXLAN_DEVICE, half, Some(Reason::Truncated.name()));
}
