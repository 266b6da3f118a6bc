//! Services for clients outside: what an invented client must not do.

use std::net::Ipv4Addr;

use podwire_common::abi::{TRANSLATION_OUTSIDE, TRANSLATION_RELAY};
use podwire_common::addr::Addr;
use podwire_common::names::VXLAN_PORT;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK};
use podwire_common::reason::Drop;
use podwire_core::model::Mode;
use podwire_core::services::{Answer, FrontendKind, Protocol};

use crate::fixture::*;
use crate::packets::*;
use crate::service_kinds::{SERVICE, SERVICE_PORT, port, put};
use crate::services::without_services;

const POD_PORT: u16 = 8080;
const CLIENT_PORT: u16 = 40_000;

/// Returns a node that serves an external address to clients outside.
fn fixture(mode: Mode, backends: &[Ipv4Addr]) -> Fixture {
    let mut fixture = without_services(mode);
    serve(&mut fixture, backends);
    fixture
}

fn serve(fixture: &mut Fixture, backends: &[Ipv4Addr]) {
    let open = |protocol| {
        let mut port = port(protocol, backends, &[]);
        port.frontends[0].kind = FrontendKind::ExternalIp;
        port.frontends[0].outside = Some(Answer::Cluster);
        port
    };
    put(fixture, [Protocol::Tcp, Protocol::Udp].map(open).into());
}

/// Returns a client's packet to the service.
fn request(transport: Transport) -> Vec<u8> {
    Packet::new(STRANGER, SERVICE, transport).macs(UPLINK_MAC, NODE2_MAC).build()
}

fn flags(source: u16, destination: u16, flags: u8) -> Transport {
    Transport::Tcp { source, destination, flags }
}

/// Returns the backend of the only flow.
fn chosen(node: &Fixture) -> Addr {
    let halves = node.translations();
    let mut begun = halves.values().filter(|half| half.reply == 0);
    let half = begun.next().unwrap();
    assert!(begun.next().is_none() && half.kind == TRANSLATION_OUTSIDE);
    half.destination
}

#[test]
fn a_syn_of_anybody_moves_no_connection() {
    let mut node = fixture(Mode::Vxlan, &[POD_A, POD_B]);
    let uplink = node.uplink;
    let ask = |node: &Fixture, of_flags| {
        node.run(FROM_UPLINK, uplink, &request(flags(CLIENT_PORT, SERVICE_PORT, of_flags)), 0);
        chosen(node)
    };
    let answer = |node: &Fixture, of_flags| {
        let (pod, macs, link) = match chosen(node) == POD_A.into() {
            true => (POD_A, (HOST_A_MAC, POD_A_MAC), node.pod_a),
            false => (POD_B, (HOST_B_MAC, POD_B_MAC), node.pod_b),
        };
        let packet = Packet::new(pod, STRANGER, flags(POD_PORT, CLIENT_PORT, of_flags)).macs(macs.0, macs.1);
        node.run(FROM_POD, link, &packet.build(), 0);
    };
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    const RST: u8 = 0x04;
    let backend = ask(&node, SYN);
    for _ in 0..20 {
        assert_eq!(ask(&node, SYN), backend, "sent again before the answer");
    }
    answer(&node, SYN | ACK);
    for _ in 0..20 {
        assert_eq!(ask(&node, SYN), backend, "sent again while the answer is under way");
    }
    ask(&node, ACK);
    for _ in 0..20 {
        assert_eq!(ask(&node, SYN), backend, "somebody else's");
    }
    assert_eq!(ask(&node, RST), backend);
    assert_eq!(ask(&node, SYN), backend, "somebody else's, after a reset of the same");
    answer(&node, ACK);
    ask(&node, ACK);
    let other = if backend == POD_A.into() { POD_B } else { POD_A };
    serve(&mut node, &[other]);
    assert_eq!(ask(&node, SYN), backend, "the service has other backends");
    answer(&node, RST);
    assert_eq!(ask(&node, SYN), other.into(), "the connection is over");
}

#[test]
fn nothing_is_relayed_into_another_nodes_tunnel() {
    let mut node = without_services(Mode::Vxlan);
    let mut port = port(Protocol::Udp, &[NODE2], &[]);
    port.frontends[0].kind = FrontendKind::ExternalIp;
    port.frontends[0].outside = Some(Answer::Cluster);
    port.cluster[0].port = VXLAN_PORT.try_into().unwrap();
    put(&mut node, vec![port]);
    let (uplink, packet) = (node.uplink, request(udp(CLIENT_PORT, SERVICE_PORT)));
    node.check("to the tunnel's port", FROM_UPLINK, uplink, &packet, Expect::Drop(Drop::VxlanFromPod));
    let kinds: Vec<_> = node.translations().values().map(|half| half.kind).collect();
    assert_eq!(kinds, [TRANSLATION_RELAY; 2]);
}
