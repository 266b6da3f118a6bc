//! Services with session affinity: which backend a client's new flows get at `from_pod`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::ops::Range;

use ipnet::IpNet;
use podwire_common::abi;
use podwire_common::addr::Addr;
use podwire_common::flow::protocol;
use podwire_common::names::programs::FROM_POD;
use podwire_common::reason::Drop as Reason;
use podwire_core::model::{Attachment, Mode, PodAddress};
use podwire_core::services::{Answer, Frontend, FrontendKind, Protocol, ServedPort};

use crate::fixture::*;
use crate::kinds::ack;
use crate::packets::*;
use crate::service_kinds::{SERVICE, SERVICE_PORT, port, put};
use crate::services::without_services;

const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
const BACKENDS: [Ipv4Addr; 3] = [POD_B, REMOTE_POD, POD_OF_NODE3];
/// Longer than any test.
const LONG: u32 = 86_400;
/// Flows of one client: a random choice among three is the same each time in one of 10^9 runs.
const FLOWS: u16 = 20;
/// Flows of each of [`clients`].
const FLOWS_OF_EACH: u16 = 3;

/// Makes a flow of a protocol.
type Begins = (fn(u16, u16) -> Transport, u8);
const TCP: Begins = (tcp, protocol::TCP);
const UDP: Begins = (udp, protocol::UDP);

/// Returns a node with one service.
fn fixture(backends: &[Ipv4Addr], seconds: u32) -> Fixture {
    let mut node = without_services(Mode::Vxlan);
    serve(&mut node, backends, seconds);
    node
}

/// Serves with session affinity of so many seconds; 0: without.
fn serve(node: &mut Fixture, backends: &[Ipv4Addr], seconds: u32) {
    put(node, [Protocol::Tcp, Protocol::Udp].map(|protocol| sticky(protocol, backends, seconds)).into());
}

fn sticky(protocol: Protocol, backends: &[Ipv4Addr], seconds: u32) -> ServedPort {
    ServedPort { affinity: NonZeroU32::new(seconds), ..port(protocol, backends, &[]) }
}

/// Sends a packet to an address of the service from a client at pod A's link.
fn send(node: &Fixture, client: Ipv4Addr, to: Ipv4Addr, transport: Transport) {
    let packet = Packet::new(client, to, transport).macs(HOST_A_MAC, POD_A_MAC);
    node.run(FROM_POD, node.pod_a, &packet.build(), 0);
}

/// Begins a flow of a client, and returns its backend.
fn begin(node: &Fixture, client: Ipv4Addr, to: Ipv4Addr, (transport, number): Begins, port: u16) -> Addr {
    send(node, client, to, transport(port, SERVICE_PORT));
    let flow = flow_of(client, to, (port, SERVICE_PORT), number);
    node.loaded.maps.translations.get(&flow, 0).unwrap().destination
}

/// Begins flows of a client from these ports, and returns their backends.
fn all_of(
    node: &Fixture,
    client: Ipv4Addr,
    to: Ipv4Addr,
    begins: Begins,
    ports: Range<u16>,
) -> BTreeSet<Addr> {
    ports.map(|port| begin(node, client, to, begins, port)).collect()
}

/// Returns the only entry of `AFFINITY`.
fn only_entry(node: &Fixture) -> (abi::AffinityKey, abi::Affinity) {
    let mut entries = node.loaded.maps.affinity.iter().map(Result::unwrap);
    let entry = entries.next().unwrap();
    assert!(entries.next().is_none(), "one client has one entry");
    entry
}

/// Makes the only client's last connection as old as the machine.
fn age(node: &mut Fixture) {
    let (key, value) = only_entry(node);
    node.loaded.maps.affinity.insert(key, abi::Affinity { last_begun: 0, ..value }, 0).unwrap();
}

fn is_renewed(node: &Fixture) -> bool {
    only_entry(node).1.last_begun != 0
}

/// Adds clients beside pod A.
fn clients(node: &mut Fixture) -> Vec<Ipv4Addr> {
    let pod = node.model.endpoints.values().find(|pod| pod.addresses().any(|address| address == POD_A));
    let pod = pod.unwrap().clone();
    let addresses: Vec<_> = (100..160).map(|last| Ipv4Addr::new(10, 244, 1, last)).collect();
    for (id, address) in (100..).zip(&addresses) {
        let attachment = Attachment { container_id: format!("pod{id}"), interface: "eth0".into() };
        let pod_addresses = vec![PodAddress { address: (*address).into(), gateway: GATEWAY.into() }];
        let mut client = pod.clone();
        (client.attachment, client.id, client.pod_addresses) = (attachment.clone(), id, pod_addresses);
        node.model.endpoints.insert(attachment, client);
    }
    node.fill();
    addresses
}

#[test]
fn a_client_keeps_its_backend_and_clients_spread() {
    for begins in [TCP, UDP] {
        let mut node = fixture(&BACKENDS, LONG);
        let mut chosen = BTreeSet::new();
        for client in clients(&mut node) {
            let backends = all_of(&node, client, SERVICE, begins, 1000..1000 + FLOWS_OF_EACH);
            assert_eq!(backends.len(), 1, "{client}");
            chosen.extend(backends);
        }
        assert_eq!(chosen, BACKENDS.map(Addr::from).into());
    }
}

#[test]
fn without_affinity_nothing_is_remembered() {
    let node = fixture(&BACKENDS, 0);
    assert!(all_of(&node, POD_A, SERVICE, TCP, 1000..1000 + FLOWS).len() > 1);
    assert_eq!(node.loaded.maps.affinity.iter().count(), 0);
    assert_eq!(node.loaded.maps.positions.iter().count(), 0);
}

#[test]
fn a_client_chooses_again_when_its_time_is_over() {
    let mut node = fixture(&BACKENDS, 1);
    let mut chosen = BTreeSet::new();
    for port in 1000..1000 + 2 * FLOWS {
        chosen.insert(begin(&node, POD_A, SERVICE, TCP, port));
        age(&mut node);
    }
    assert_eq!(chosen.len(), BACKENDS.len(), "{chosen:?}");
    // The same entry is recent enough for a longer time.
    let kept = only_entry(&node).1.address;
    serve(&mut node, &BACKENDS, u32::MAX);
    for port in 2000..2000 + FLOWS {
        assert_eq!(begin(&node, POD_A, SERVICE, TCP, port), kept);
        age(&mut node);
    }
}

#[test]
fn only_a_new_flow_renews_the_time() {
    for (begins, again) in [(TCP, ack as fn(u16, u16) -> Transport), (UDP, udp)] {
        let mut node = fixture(&BACKENDS, u32::MAX);
        begin(&node, POD_A, SERVICE, begins, 1000);
        assert!(is_renewed(&node));
        age(&mut node);
        begin(&node, POD_A, SERVICE, begins, 1000);
        assert!(!is_renewed(&node), "the first packet once more");
        for _ in 0..4 {
            send(&node, POD_A, SERVICE, again(1000, SERVICE_PORT));
        }
        assert!(!is_renewed(&node), "later packets");
        begin(&node, POD_A, SERVICE, begins, 1001);
        assert!(is_renewed(&node), "another flow");
    }
}

#[test]
fn only_clients_of_a_backend_that_left_choose_again() {
    let mut node = fixture(&BACKENDS, LONG);
    let clients = clients(&mut node);
    let ask = |node: &Fixture, port: u16| -> Vec<Addr> {
        clients.iter().map(|client| begin(node, *client, SERVICE, TCP, port)).collect()
    };
    let before = ask(&node, 1000);
    serve(&mut node, &BACKENDS[1..], LONG);
    let after = ask(&node, 1001);
    for (before, after) in before.iter().zip(&after) {
        assert!(*after != POD_B.into() && (before == after || *before == POD_B.into()));
    }
    assert_ne!(before, after);
    assert_eq!(ask(&node, 1002), after);
    serve(&mut node, &BACKENDS, LONG);
    assert_eq!(ask(&node, 1003), after, "the backend is back");
}

#[test]
fn a_client_has_one_backend_at_all_addresses_of_a_port() {
    let mut node = without_services(Mode::Vxlan);
    // `internalTrafficPolicy: Local` holds only for the ClusterIP.
    let served = |protocol, is_local| {
        let mut served = sticky(protocol, &BACKENDS, LONG);
        let cluster_ip = served.frontends[0].clone();
        let external = Frontend { address: EXTERNAL.into(), kind: FrontendKind::ExternalIp, ..cluster_ip };
        served.frontends.push(external);
        if is_local {
            served.frontends[0].inside = Answer::Local;
            served.local = served.cluster.iter().filter(|to| to.address == POD_B).copied().collect();
            assert_eq!(served.local.len(), 1);
        }
        served
    };
    put(&mut node, vec![served(Protocol::Tcp, false), served(Protocol::Udp, false)]);
    for begins in [TCP, UDP] {
        let at_cluster_ip = all_of(&node, POD_A, SERVICE, begins, 1000..1000 + FLOWS);
        assert_eq!(all_of(&node, POD_A, EXTERNAL, begins, 2000..2000 + FLOWS), at_cluster_ip);
        assert_eq!(at_cluster_ip.len(), 1);
    }
    put(&mut node, vec![served(Protocol::Tcp, true)]);
    let local = POD_B.into();
    for client in clients(&mut node) {
        // Perhaps another backend, which the ClusterIP does not have.
        begin(&node, client, EXTERNAL, TCP, 3000);
        assert_eq!(begin(&node, client, SERVICE, TCP, 3001), local);
        // Both have this one.
        assert_eq!(all_of(&node, client, EXTERNAL, TCP, 4000..4000 + FLOWS_OF_EACH), [local].into());
    }
}

#[test]
fn clients_outside_the_source_ranges_get_no_entry() {
    let mut node = without_services(Mode::Vxlan);
    let mut served = sticky(Protocol::Tcp, &BACKENDS, LONG);
    served.frontends[0].kind = FrontendKind::LoadBalancer;
    served.frontends[0].source_ranges = vec![IpNet::new(POD_B.into(), 32).unwrap()];
    put(&mut node, vec![served]);
    let packet = Packet::new(POD_A, SERVICE, tcp(1000, SERVICE_PORT)).macs(HOST_A_MAC, POD_A_MAC);
    let link = node.pod_a;
    node.check("excluded", FROM_POD, link, &packet.build(), Expect::Drop(Reason::SourceRange));
    assert_eq!(node.loaded.maps.affinity.iter().count(), 0);
}
