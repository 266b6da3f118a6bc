//! Services for clients outside: what an invented client must not do.

use std::net::Ipv4Addr;

use podwire_common::abi::{self, TRANSLATION_OUTSIDE, TRANSLATION_RELAY};
use podwire_common::addr::Addr;
use podwire_common::names::VXLAN_PORT;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK};
use podwire_common::reason::{Drop, Path};
use podwire_core::model::Mode;
use podwire_core::services::{Answer, FrontendKind, Protocol};

use crate::fixture::*;
use crate::kinds::CLIENT;
use crate::packets::*;
use crate::service_kinds::{BACKEND, SERVED, SERVICE, SERVICE_PORT, port, put};
use crate::services::without_services;

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
        node.run(FROM_UPLINK, uplink, &request(flags(CLIENT, SERVICE_PORT, of_flags)), 0);
        chosen(node)
    };
    let answer = |node: &Fixture, of_flags| {
        let (pod, macs, link) = match chosen(node) == POD_A.into() {
            true => (POD_A, (HOST_A_MAC, POD_A_MAC), node.pod_a),
            false => (POD_B, (HOST_B_MAC, POD_B_MAC), node.pod_b),
        };
        let packet = Packet::new(pod, STRANGER, flags(BACKEND, CLIENT, of_flags)).macs(macs.0, macs.1);
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
    let (uplink, packet) = (node.uplink, request(udp(CLIENT, SERVICE_PORT)));
    node.check("to the tunnel's port", FROM_UPLINK, uplink, &packet, Expect::Drop(Drop::VxlanFromPod));
    let kinds: Vec<_> = node.translations().values().map(|half| half.kind).collect();
    assert_eq!(kinds, [TRANSLATION_RELAY; 2]);
}

#[test]
fn a_relayed_answer_comes_out_of_the_tunnel_and_goes_on() {
    let mut node = fixture(Mode::Vxlan, &[REMOTE_POD]);
    let uplink = node.uplink;
    node.run(FROM_UPLINK, uplink, &request(tcp(CLIENT, SERVICE_PORT)), 0);
    let answer = Packet::new(REMOTE_POD, NODE1, tcp(BACKEND, SERVED)).with(|answer| answer.traffic_class = 1);
    // A router on the way through the tunnel has seen congestion.
    let tunnel = Vxlan::new(NODE2, NODE1).with(|outer| {
        (outer.destination_mac, outer.source_mac) = (UPLINK_MAC, NODE2_MAC);
        outer.traffic_class = 3;
    });
    let leaves = Packet {
        source: SERVICE,
        destination: STRANGER,
        transport: tcp(SERVICE_PORT, CLIENT),
        traffic_class: 3,
        ..answer.clone()
    };
    let expect = Expect::Redirect(Path::RelayIn, leaves.forwarded(UPLINK_MAC, NODE2_MAC));
    node.check("the answer", FROM_UPLINK, uplink, &tunnel.around(&inner(&answer)), expect);
    let others = [
        ("at the end of its life", answer.clone().with(|answer| answer.ttl = 1)),
        ("of no flow", Packet::new(REMOTE_POD, NODE1, tcp(BACKEND, SERVED + 1))),
        ("a fragment", answer.clone().with(|answer| answer.fragment = (0, true))),
    ];
    for (what, packet) in others {
        node.check(what, FROM_UPLINK, uplink, &tunnel.around(&inner(&packet)), Expect::Pass);
    }
}

#[test]
fn a_source_is_checked_for_connections_that_began_elsewhere() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let checked = |config: &abi::Config| abi::Config {
            services: 1,
            link_addresses: abi::LINK_ADDRESSES_CHECKED,
            ..*config
        };
        let mut node = match mode {
            Mode::Vxlan => without_services(mode),
            Mode::Direct => Fixture::with_config(mode, checked),
        };
        serve(&mut node, &[POD_A]);
        let uplink = node.uplink;
        let of = |client, of_flags, mac| {
            let transport = flags(CLIENT, SERVICE_PORT, of_flags);
            Packet::new(client, SERVICE, transport).macs(UPLINK_MAC, mac).build()
        };
        match mode {
            Mode::Vxlan => {
                // As if the connection had begun in the tunnel.
                node.run(FROM_UPLINK, uplink, &of(STRANGER, 0x02, NODE2_MAC), 0);
                let halves = node.translations();
                let (flow, half) = halves.into_iter().find(|(_, half)| half.reply == 0).unwrap();
                let flow = abi::Flow { source: REMOTE_POD.into(), ..flow };
                let ifindex = node.model.vxlan.unwrap();
                let half = abi::Translation { source: REMOTE_POD.into(), ifindex, ..half };
                node.loaded.maps.translations.insert(flow, half, 0).unwrap();
            }
            Mode::Direct => {
                node.run(FROM_UPLINK, uplink, &of(REMOTE_POD, 0x02, NODE2_MAC), 0);
                assert_eq!(node.translations().len(), 2);
            }
        }
        let later = of(REMOTE_POD, 0x10, STRANGER_MAC);
        node.check("later", FROM_UPLINK, uplink, &later, Expect::Drop(Drop::PodSourceNotFromNode));
    }
}
