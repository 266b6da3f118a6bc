//! Services: a pod's packets to a service at `from_pod`, and the answers at `from_pod`,
//! `from_uplink` and `from_overlay`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use podwire_common::abi::{self, KnownFlow, TRANSLATION_SERVICE};
use podwire_common::addr::Addr;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK, TO_POD};
use podwire_common::nat::SERVICE_PORTS;
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;
use podwire_core::services::Protocol;

use crate::fixture::*;
use crate::kinds::ack;
use crate::packets::*;
use crate::service_kinds::{BACKEND, SERVICE, SERVICE_PORT, port, put};

const POD_PORT: u16 = BACKEND;
/// A privileged port, which flows to a service keep.
const CLIENT_PORT: u16 = 700;

/// Returns a node that serves services.
pub fn without_services(mode: Mode) -> Fixture {
    Fixture::with_config(mode, |config| abi::Config { services: 1, ..*config })
}

/// Returns a node with one service, for each protocol.
fn fixture(mode: Mode, backends: &[Ipv4Addr]) -> Fixture {
    let mut fixture = without_services(mode);
    serve(&mut fixture, backends);
    fixture
}

fn serve(fixture: &mut Fixture, backends: &[Ipv4Addr]) {
    serve_beside(fixture, backends, &[]);
}

/// Serves with backends for new flows, and others to which only flows of before go on.
fn serve_beside(fixture: &mut Fixture, backends: &[Ipv4Addr], others: &[Ipv4Addr]) {
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    put(fixture, protocols.map(|protocol| port(protocol, backends, others)).into());
}

fn syn_ack(source: u16, destination: u16) -> Transport {
    Transport::Tcp { source, destination, flags: 0x12 }
}

/// Returns pod A's packet to the service.
fn request(transport: Transport) -> Packet {
    Packet::new(POD_A, SERVICE, transport).macs(HOST_A_MAC, POD_A_MAC)
}

#[test]
fn a_backend_of_this_node_is_reached_and_answers() {
    let mut node = fixture(Mode::Vxlan, &[POD_B]);
    let (link_a, link_b) = (node.pod_a, node.pod_b);
    let packet = request(tcp(CLIENT_PORT, SERVICE_PORT));
    let arrives = Packet { destination: POD_B, transport: tcp(CLIENT_PORT, POD_PORT), ..packet.clone() };
    let expect = || Expect::Redirect(Path::Local, arrives.forwarded(POD_B_MAC, HOST_B_MAC));
    node.check("request", FROM_POD, link_a, &packet.build(), expect());
    node.check("once more", FROM_POD, link_a, &packet.build(), expect());
    let packet = Packet::new(POD_B, POD_A, syn_ack(POD_PORT, CLIENT_PORT)).macs(HOST_B_MAC, POD_B_MAC);
    let arrives = Packet { source: SERVICE, transport: syn_ack(SERVICE_PORT, CLIENT_PORT), ..packet.clone() };
    let expect = Expect::Redirect(Path::Local, arrives.forwarded(POD_A_MAC, HOST_A_MAC));
    node.check("the answer", FROM_POD, link_b, &packet.build(), expect);
    let kinds: Vec<_> = node.translations().values().map(|half| half.kind).collect();
    assert_eq!(kinds, [TRANSLATION_SERVICE; 2]);
}

/// Checks that the answer of [`REMOTE_POD`] reaches pod A in the service's name.
fn check_answer(node: &mut Fixture, mode: Mode) {
    let packet = Packet::new(REMOTE_POD, POD_A, syn_ack(POD_PORT, CLIENT_PORT));
    let arrives = Packet { source: SERVICE, transport: syn_ack(SERVICE_PORT, CLIENT_PORT), ..packet.clone() };
    let tunnel = Vxlan::new(NODE2, NODE1)
        .with(|outer| (outer.destination_mac, outer.source_mac) = (UPLINK_MAC, NODE2_MAC));
    let (frame, path) = match mode {
        Mode::Vxlan => (tunnel.around(&inner(&packet)), Path::TunnelIn),
        Mode::Direct => (packet.clone().macs(UPLINK_MAC, NODE2_MAC).build(), Path::DirectIn),
    };
    let expect = Expect::Redirect(path, arrives.forwarded(POD_A_MAC, HOST_A_MAC));
    let uplink = node.uplink;
    node.check(&format!("{mode:?}, answer"), FROM_UPLINK, uplink, &frame, expect);
}

#[test]
fn a_backend_of_another_node_is_reached_and_answers() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = fixture(mode, &[REMOTE_POD]);
        let pod = node.pod_a;
        let packet = request(tcp(CLIENT_PORT, SERVICE_PORT));
        let leaves =
            Packet { destination: REMOTE_POD, transport: tcp(CLIENT_PORT, POD_PORT), ..packet.clone() };
        // What leaves is what a pod's packet to the backend itself would be.
        let mut ran = node.run(FROM_POD, pod, &packet.build(), 0);
        let without = Fixture::new(mode);
        let mut direct = without.run(FROM_POD, without.pod_a, &leaves.build(), 0);
        if mode == Mode::Vxlan {
            // The outer source port follows from the pod's own flow: each has another.
            for ran in [&mut ran, &mut direct] {
                ran.frame[ETHERNET + 20..][..2].fill(0);
            }
        }
        assert_eq!((ran.code, hex(&ran.frame)), (direct.code, hex(&direct.frame)), "{mode:?}");
        check_answer(&mut node, mode);
    }
}

#[test]
fn a_known_flows_packets_are_sent_as_the_stages_send_them() {
    for (what, backend, entries) in [("here", POD_B, 2), ("there", REMOTE_POD, 1)] {
        let node = fixture(Mode::Vxlan, &[backend]);
        let (link_a, link_b) = (node.pod_a, node.pod_b);
        node.run(FROM_POD, link_a, &request(tcp(CLIENT_PORT, SERVICE_PORT)).build(), 0);
        let asked = request(ack(CLIENT_PORT, SERVICE_PORT)).build();
        let answer =
            Packet::new(POD_B, POD_A, ack(POD_PORT, CLIENT_PORT)).macs(HOST_B_MAC, POD_B_MAC).build();
        let send = || {
            let asked = node.run(FROM_POD, link_a, &asked, 0);
            let answer = node.run(FROM_POD, link_b, &answer, 0);
            [(asked.code, hex(&asked.frame)), (answer.code, hex(&answer.frame))]
        };
        // The programs learn a flow from its second packet in the middle of a connection.
        let judged = send();
        let is_of_service = |known: &KnownFlow| {
            let flags = abi::FLOW_REWRITES_SOURCE | abi::FLOW_REWRITES_DESTINATION;
            known.flags & flags == flags
        };
        let known = || {
            node.loaded.maps.flows.iter().filter(|entry| is_of_service(&entry.as_ref().unwrap().1)).count()
        };
        assert_eq!(known(), 0, "{what}");
        for _ in 0..3 {
            assert_eq!(send(), judged, "{what}");
        }
        assert_eq!(known(), entries, "{what}");
    }
}

#[test]
fn a_pod_that_reaches_itself_sees_its_gateway() {
    let mut node = fixture(Mode::Vxlan, &[POD_A]);
    let link = node.pod_a;
    let packet = request(tcp(CLIENT_PORT, SERVICE_PORT));
    let arrives = Packet {
        source: GATEWAY,
        destination: POD_A,
        transport: tcp(CLIENT_PORT, POD_PORT),
        ..packet.clone()
    };
    let expect = Expect::Redirect(Path::Hairpin, arrives.forwarded(POD_A_MAC, HOST_A_MAC));
    node.check("request", FROM_POD, link, &packet.build(), expect);
    let packet = Packet::new(POD_A, GATEWAY, syn_ack(POD_PORT, CLIENT_PORT)).macs(HOST_A_MAC, POD_A_MAC);
    let arrives = Packet {
        source: SERVICE,
        destination: POD_A,
        transport: syn_ack(SERVICE_PORT, CLIENT_PORT),
        ..packet.clone()
    };
    let expect = Expect::Redirect(Path::Hairpin, arrives.forwarded(POD_A_MAC, HOST_A_MAC));
    node.check("the answer", FROM_POD, link, &packet.build(), expect);
}

#[test]
fn a_process_of_this_node_is_reached_and_answers() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = fixture(mode, &[NODE1]);
        let link = node.pod_a;
        let packet = request(tcp(CLIENT_PORT, SERVICE_PORT));
        let arrives = Packet { destination: NODE1, transport: tcp(CLIENT_PORT, POD_PORT), ..packet.clone() };
        let expect = || Expect::Stack(Path::ToStack, arrives.build());
        node.check("request", FROM_POD, link, &packet.build(), expect());
        node.check("once more", FROM_POD, link, &packet.build(), expect());
        let packet = Packet::new(NODE1, POD_A, syn_ack(POD_PORT, CLIENT_PORT));
        let arrives =
            Packet { source: SERVICE, transport: syn_ack(SERVICE_PORT, CLIENT_PORT), ..packet.clone() };
        let arrives = arrives.macs(POD_A_MAC, HOST_A_MAC).build();
        node.check("the answer", TO_POD, link, &packet.build(), Expect::Stack(Path::FromStack, arrives));
        assert_eq!(node.loaded.maps.stack_flows.iter().count(), 0, "no flow to the node itself");
    }
}

#[test]
fn a_flow_leaves_the_pods_ephemeral_ports() {
    let node = fixture(Mode::Vxlan, &[POD_B]);
    let link = node.pod_a;
    for port in (1024..65000).step_by(997) {
        node.run(FROM_POD, link, &request(tcp(port, SERVICE_PORT)).build(), 0);
    }
    let flows = node.translations();
    let chosen: Vec<_> = flows.values().filter(|half| half.reply == 0).map(|half| half.source_port).collect();
    assert_eq!(chosen.len(), (1024..65000).step_by(997).len());
    let (first, last) = SERVICE_PORTS;
    assert!(chosen.iter().all(|port| (first..=last).contains(&port.get())), "{chosen:?}");
}

#[test]
fn connections_spread_evenly_and_keep_their_backend() {
    let backends = [POD_B, REMOTE_POD, POD_OF_NODE3];
    let mut node = fixture(Mode::Vxlan, &backends);
    let link = node.pod_a;
    const FLOWS: u16 = 3000;
    let send = |node: &mut Fixture, transport: fn(u16, u16) -> Transport| {
        (0..FLOWS).for_each(|port| {
            node.run(FROM_POD, link, &request(transport(20_000 + port, SERVICE_PORT)).build(), 0);
        });
    };
    send(&mut node, tcp);
    let chosen = |node: &Fixture| -> BTreeMap<_, _> {
        let flows = node.translations().into_iter().filter(|(_, half)| half.reply == 0);
        flows.map(|(flow, half)| (flow, half.destination)).collect()
    };
    let before = chosen(&node);
    for backend in backends {
        let count = before.values().filter(|to| **to == backend.into()).count();
        // Six standard deviations around the mean of a fair choice.
        assert!((845..=1155).contains(&count), "{backend}: {count} of {FLOWS}");
    }
    serve(&mut node, &[POD_B]);
    send(&mut node, ack);
    assert_eq!(chosen(&node), before);
}

#[test]
fn what_is_for_no_service_is_the_hosts() {
    let sctp = || Transport::Sctp { source: CLIENT_PORT, destination: SERVICE_PORT };
    let table = [
        ("another port", 1, vec![POD_B], request(tcp(CLIENT_PORT, SERVICE_PORT + 1))),
        ("the middle of a connection", 1, vec![POD_B], request(syn_ack(CLIENT_PORT, SERVICE_PORT))),
        ("another port of UDP", 1, vec![POD_B], request(udp(CLIENT_PORT, SERVICE_PORT + 1))),
        ("SCTP", 1, vec![POD_B], request(sctp())),
        ("the middle of a connection without backends", 1, vec![], request(ack(CLIENT_PORT, SERVICE_PORT))),
        ("SCTP without backends", 1, vec![], request(sctp())),
        ("switched off", 0, vec![POD_B], request(tcp(CLIENT_PORT, SERVICE_PORT))),
    ];
    for (what, services, backends, packet) in table {
        let mut node = Fixture::with_config(Mode::Vxlan, |config| abi::Config { services, ..*config });
        serve(&mut node, &backends);
        let link = node.pod_a;
        let expect = Expect::Stack(Path::ToStack, packet.build());
        node.check(what, FROM_POD, link, &packet.build(), expect);
        assert_eq!(node.translations().len(), 0, "{what}");
    }
}

#[test]
fn answers_go_to_the_client_while_its_own_flows_take_the_stack() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = fixture(mode, &[REMOTE_POD]);
        let pod = node.pod_a;
        node.run(FROM_POD, pod, &request(tcp(CLIENT_PORT, SERVICE_PORT)).build(), 0);
        let client = Addr::from(POD_A);
        let entry = node.loaded.maps.endpoints.get(&client, 0).unwrap();
        let stack_only = abi::Endpoint { flags: entry.flags | abi::ENDPOINT_STACK_ONLY, ..entry };
        node.loaded.maps.endpoints.insert(client, stack_only, 0).unwrap();
        check_answer(&mut node, mode);
    }
}

#[test]
fn a_flow_whose_backend_is_gone_is_dropped() {
    let mut node = fixture(Mode::Vxlan, &[POD_B]);
    let link = node.pod_a;
    let packet = request(tcp(CLIENT_PORT, SERVICE_PORT)).build();
    node.run(FROM_POD, link, &packet, 0);
    node.model.endpoints.retain(|_, endpoint| endpoint.addresses().all(|address| address != POD_B));
    node.fill();
    node.check("its flow is still there", FROM_POD, link, &packet, Expect::Drop(Reason::BackendGone));
}

/// Returns the backend of the only flow.
fn chosen(node: &Fixture) -> Addr {
    let flows = node.translations();
    let mut requests = flows.values().filter(|half| half.reply == 0);
    let backend = requests.next().unwrap().destination;
    assert!(requests.next().is_none(), "one flow has one backend");
    backend
}

#[test]
fn a_syn_has_the_choice_again_after_an_answer_or_a_change() {
    let mut node = fixture(Mode::Vxlan, &[POD_B, REMOTE_POD]);
    let (link_a, link_b) = (node.pod_a, node.pod_b);
    let asked = request(tcp(CLIENT_PORT, SERVICE_PORT)).build();
    node.run(FROM_POD, link_a, &asked, 0);
    let first = chosen(&node);
    for _ in 0..20 {
        node.run(FROM_POD, link_a, &asked, 0);
        assert_eq!(chosen(&node), first, "an unanswered SYN that is sent again keeps its backend");
    }
    serve(&mut node, &[POD_B]);
    node.run(FROM_POD, link_a, &asked, 0);
    assert_eq!(chosen(&node), POD_B.into(), "the service has other backends");
    let answer = Packet::new(POD_B, POD_A, syn_ack(POD_PORT, CLIENT_PORT)).macs(HOST_B_MAC, POD_B_MAC);
    node.run(FROM_POD, link_b, &answer.build(), 0);
    serve(&mut node, &[REMOTE_POD]);
    node.run(FROM_POD, link_a, &request(ack(CLIENT_PORT, SERVICE_PORT)).build(), 0);
    assert_eq!(chosen(&node), POD_B.into(), "a connection keeps its backend");
    node.run(FROM_POD, link_a, &asked, 0);
    assert_eq!(chosen(&node), REMOTE_POD.into(), "another connection");
}

#[test]
fn datagrams_keep_a_backend_while_it_serves() {
    for (what, backend, other, later) in
        [("here", POD_B, REMOTE_POD, POD_OF_NODE3), ("there", REMOTE_POD, POD_B, POD_B)]
    {
        let mut node = fixture(Mode::Vxlan, &[backend]);
        let link = node.pod_a;
        let asked = request(udp(CLIENT_PORT, SERVICE_PORT)).build();
        let send = |node: &Fixture| {
            // From the third datagram on, the programs know the flow.
            for _ in 0..4 {
                node.run(FROM_POD, link, &asked, 0);
            }
            chosen(node)
        };
        assert_eq!(send(&node), backend.into(), "{what}");
        serve_beside(&mut node, &[other], &[backend]);
        assert_eq!(send(&node), backend.into(), "{what}: it has no new flows, but still serves");
        serve_beside(&mut node, &[other], &[later]);
        assert_eq!(send(&node), other.into(), "{what}: it serves no longer");
        // As with kube-proxy: only an endpoint that serves takes a flow over.
        serve(&mut node, &[]);
        assert_eq!(send(&node), other.into(), "{what}: nothing serves");
        serve(&mut node, &[backend]);
        assert_eq!(send(&node), backend.into(), "{what}: it serves again");
    }
}

#[test]
fn a_known_datagram_flow_ends_with_its_backend() {
    let mut node = fixture(Mode::Vxlan, &[POD_B]);
    let link = node.pod_a;
    let asked = request(udp(CLIENT_PORT, SERVICE_PORT));
    let arrives = Packet { destination: POD_B, transport: udp(CLIENT_PORT, POD_PORT), ..asked.clone() };
    for _ in 0..4 {
        let expect = Expect::Redirect(Path::Local, arrives.forwarded(POD_B_MAC, HOST_B_MAC));
        node.check("served", FROM_POD, link, &asked.build(), expect);
    }
    assert_eq!(node.loaded.maps.flows.iter().count(), 1, "the flow is known");
    // The pod itself is still there.
    serve(&mut node, &[REMOTE_POD]);
    let ran = node.run(FROM_POD, link, &asked.build(), 0);
    assert_ne!(hex(&ran.frame), hex(&arrives.forwarded(POD_B_MAC, HOST_B_MAC)));
    assert_eq!(chosen(&node), REMOTE_POD.into());
}
