//! A change ends the known flows that it makes wrong, and no others.

use std::borrow::Borrow as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use aya::maps::{Array, MapData};
use podwire_common::abi::{self, Flow};
use podwire_common::addr::{Addr, Be16, Mac};
use podwire_common::flow::{FlowAddr as _, protocol};
use podwire_common::helper::{LEARNING, MOMENTS, Moment};
use podwire_common::names::VXLAN_PORT;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK};
use podwire_core::change::Change;
use podwire_core::features::{Scope, desired};
use podwire_core::model::{Family, Mode};
use podwire_core::slice::{Prefix, TableChange};

use crate::counting;
use crate::family::{Address, IpPacket, Known};
use crate::fixture::*;
use crate::fixture6::{NODE1_6, NODE2_6, dual};
use crate::kinds::{CLIENT, SERVER, ack, arriving, from_a};
use crate::packets::*;
use crate::packets6::Packet6;
use crate::trial::{ATTEMPTS, Kind, OURS, Seen, Trial, falsify};

/// The flows of [`Trial`] that a change concerns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Concerns {
    Nobody,
    Everybody,
    Neighbours,
    OfNode2,
    OfWorld,
    OfService,
}

impl Concerns {
    fn includes<A: Address>(self, trial: &Trial<A>) -> bool {
        let kind = trial.way.kind;
        let is_local = matches!(kind, Kind::Local | Kind::ServiceLocal);
        let is_world = matches!(kind, Kind::WorldOut | Kind::WorldIn);
        match self {
            // Nothing ends a TCP connection but its own packets.
            Self::OfService => kind.is_served() && !trial.is_tcp(),
            Self::Nobody => false,
            Self::Everybody => true,
            Self::Neighbours => is_local,
            Self::OfWorld => is_world,
            Self::OfNode2 => !is_local && !is_world,
        }
    }
}

#[test]
fn a_change_ends_the_known_flows_that_it_concerns() {
    Trial::<Ipv4Addr>::each(check_changes);
    Trial::<Ipv6Addr>::each(check_changes);
}

fn check_changes<A: Address>(trial: &mut Trial<A>) {
    let changes = changes::<A>(&trial.node).into_iter().chain(changes_of_services(&trial.node));
    for (what, changes, concerns) in changes {
        let what = format!("{}: {what}", trial.what());
        let is_concerned = concerns.includes(trial);
        // A known flow may expire at the same moment.
        let attempts = if is_concerned { 1 } else { ATTEMPTS };
        let is_followed = (0..attempts).any(|_| is_followed_after(trial, &changes, &what));
        assert_eq!(is_followed, !is_concerned, "{what}: whether the packet follows the known flow");
    }
}

/// Applies changes after a program has learnt the flow. Returns whether the next packet still
/// follows the learnt entry. If it does not, asserts that the tables decide as they are now.
fn is_followed_after<A: Address>(trial: &mut Trial<A>, changes: &[TableChange], what: &str) -> bool {
    let plain = trial.sent(&trial.plain);
    let misled = trial.mislead();
    for change in changes {
        trial.node.loaded.maps.apply(change).unwrap();
    }
    let seen = trial.see(&plain);
    if seen != misled {
        assert_eq!(seen, trial.judged(&plain), "{what}");
    }
    // Restore the tables.
    trial.node.fill();
    seen == misled
}

/// Returns changes of the agent's tables.
fn changes<A: Address>(node: &Fixture) -> Vec<(&'static str, Vec<TableChange>, Concerns)> {
    let now = desired(&node.model, Scope::All).tables;
    macro_rules! change {
        ($table:ident $field:ident, $key:expr, $value:expr) => {{
            let key = $key;
            let before = now.$field.get(&key).copied();
            TableChange::$table(Change { key, before, now: Some($value) })
        }};
    }
    macro_rules! remove {
        ($table:ident $field:ident, $key:expr) => {{
            let key = $key;
            TableChange::$table(Change { key, before: now.$field.get(&key).copied(), now: None })
        }};
    }
    let (a, b) = (now.endpoints[&A::POD_A.into()], now.endpoints[&A::POD_B.into()]);
    let new = abi::Endpoint { ifindex: 99, id: 99, ..a };
    let prefix = |v4: &str, v6: &str| Prefix::from(A::either(v4, v6).parse::<ipnet::IpNet>().unwrap());
    let (network2, network3) =
        (prefix("10.244.2.0/24", "fd00:10:244:2::/64"), prefix("10.244.3.0/24", "fd00:10:244:3::/64"));
    let (node2, node3) = (now.nodes[&network2], now.nodes[&network3]);
    let (address2, address3) = (node2.tunnel_endpoint, node3.tunnel_endpoint);
    let address4 = Addr::from_v4([10, 200, 0, 4]);
    let new_pod =
        A::either(Addr::from_v4([10, 244, 1, 9]), "fd00:10:244:1::9".parse::<Ipv6Addr>().unwrap().into());
    let set = |prefix, node: abi::Node| change!(Nodes nodes, prefix, node);
    let remove = |prefix| remove!(Nodes nodes, prefix);
    let set_network = |v4: &str, v6: &str| change!(Networks networks, prefix(v4, v6), 1);
    let uplink = now.links[&node.uplink];
    let vtep = abi::Vtep { mac: Mac { bytes: [2; 6] }, reserved: [0; 2] };
    let frontend = abi::Frontend { address: A::NODE1.into(), port: Be16::new(80), protocol: 6, clients: 0 };
    let backend = abi::Backend { address: A::POD_B.into(), port: Be16::new(80), reserved: [0; 2] };
    let guard = abi::Guard { paid: 0, cost: 1, credit: 1 };
    vec![
        ("a pod's entry", vec![change!(Endpoints endpoints, A::POD_A.into(), a)], Concerns::Everybody),
        ("a pod is gone", vec![remove!(Endpoints endpoints, A::POD_A.into())], Concerns::Everybody),
        ("another pod's entry", vec![change!(Endpoints endpoints, A::POD_B.into(), b)], Concerns::Neighbours),
        ("another pod is gone", vec![remove!(Endpoints endpoints, A::POD_B.into())], Concerns::Neighbours),
        ("a new pod", vec![change!(Endpoints endpoints, new_pod, new)], Concerns::Nobody),
        (
            "a pod with the far address",
            vec![change!(Endpoints endpoints, A::REMOTE_POD.into(), new)],
            Concerns::OfNode2,
        ),
        ("a node's entry", vec![set(network2, node2)], Concerns::OfNode2),
        ("a node is gone", vec![remove(network2)], Concerns::OfNode2),
        ("another node has its prefix", vec![set(network2, node3)], Concerns::OfNode2),
        (
            "another node has a part of its prefix",
            vec![set(prefix("10.244.2.0/30", "fd00:10:244:2::/126"), node3)],
            Concerns::OfNode2,
        ),
        ("another node is gone", vec![remove(network3)], Concerns::Nobody),
        (
            "another node's address is gone",
            vec![remove(prefix("10.200.0.3/32", "fd00:10:200::3/128"))],
            Concerns::Nobody,
        ),
        (
            "a new node",
            vec![
                change!(TunnelPeers tunnel_peers, address4, 4),
                set(prefix("10.244.4.0/24", "fd00:10:244:4::/64"), node3),
                set(prefix("10.200.0.4/32", "fd00:10:200::4/128"), node3),
            ],
            Concerns::Nobody,
        ),
        (
            "a new node has the far address",
            vec![set(prefix("198.51.100.0/25", "2001:db8::/96"), node3)],
            Concerns::OfWorld,
        ),
        (
            "a new node has nearly all addresses",
            vec![set(prefix("10.0.0.0/8", "fd00::/16"), node3)],
            Concerns::Everybody,
        ),
        ("a node's VTEP", vec![change!(Vteps vteps, address2, vtep)], Concerns::OfNode2),
        ("a node's VTEP is gone", vec![remove!(Vteps vteps, address2)], Concerns::OfNode2),
        ("another node's VTEP", vec![change!(Vteps vteps, address3, vtep)], Concerns::Nobody),
        ("a peer is gone", vec![remove!(TunnelPeers tunnel_peers, address2)], Concerns::OfNode2),
        ("a link's addresses", vec![change!(Links links, node.uplink, uplink)], Concerns::OfWorld),
        ("another link", vec![change!(Links links, 99, uplink)], Concerns::Nobody),
        ("an exclusion", vec![set_network("198.51.100.0/24", "2001:db8::/64")], Concerns::OfWorld),
        ("another exclusion", vec![set_network("192.0.2.0/24", "2001:db8:1::/64")], Concerns::Nobody),
        ("a hostPort", vec![change!(Frontends frontends, frontend, backend)], Concerns::Nobody),
        ("another pod's limit", vec![change!(Guards guards, 99, guard)], Concerns::Nobody),
    ]
}

/// Returns changes of services that the node has.
fn changes_of_services(node: &Fixture) -> Vec<(&'static str, Vec<TableChange>, Concerns)> {
    let now = desired(&node.model, Scope::All).tables;
    let services = now.services.iter();
    let entries = services
        .map(|(key, value)| Change { key: *key, before: Some(*value), now: Some(*value) })
        .map(TableChange::Services);
    let ended = now.serving.iter().map(|(key, value)| Change { key: *key, before: Some(*value), now: None });
    let ended = ended.map(TableChange::Serving);
    vec![
        ("the services' entries", entries.collect(), Concerns::OfService),
        ("backends no longer serve", ended.collect(), Concerns::OfService),
    ]
}

/// The agent writes a table while the program judges a packet, so the program's verdict is stale.
#[test]
fn what_changes_while_a_flow_is_learnt_ends_it() {
    Trial::<Ipv4Addr>::each_with(counting::take, check_moments);
    Trial::<Ipv6Addr>::each_with(counting::take, check_moments);
}

fn check_moments<A: Address>(trial: &mut Trial<A>) {
    let plain = trial.sent(&trial.plain);
    let generation = Moment { generation: 1, ..Moment::QUIET };
    for slot in trial.slots() {
        let epoch = Moment { slot: slot.into(), epoch: 1, ..Moment::QUIET };
        for first in 0..MOMENTS {
            for second in first..MOMENTS {
                let what = format!("{}: slot {slot}, moments {first}, {second}", trial.what());
                let judged = trial.judged(&plain);
                let writes = [(first, generation), (second, epoch)];
                assert_eq!(learn_while(trial, &writes), judged, "{what}: a stale entry decides");
            }
        }
        // In the reverse order the program does learn a stale verdict. This shows that the test
        // controls the moments.
        let judged = trial.judged(&plain);
        let reversed = [(0, epoch), (MOMENTS - 1, generation)];
        assert_ne!(learn_while(trial, &reversed), judged, "{}: no moment was forced", trial.what());
    }
}

#[test]
fn a_record_made_while_a_flow_is_learnt_ends_it() {
    Trial::<Ipv4Addr>::each_with(counting::take, check_records);
    Trial::<Ipv6Addr>::each_with(counting::take, check_records);
}

fn check_records<A: Address>(trial: &mut Trial<A>) {
    let event = if trial.way.kind.is_translated() { Moment::TRANSLATION_GONE } else { Moment::STACK_FLOW };
    let write = Moment { event, flow: trial.flow, ..Moment::QUIET };
    for moment in 0..MOMENTS {
        let plain = trial.sent(&trial.plain);
        trial.judged(&plain);
        assert!(trial.entry().is_some(), "{}: nothing is learnt", trial.what());
        prepare(trial);
        write_at(trial, &[(moment, write)]);
        trial.see(&plain);
        write_at(trial, &[]);
        assert_eq!(trial.entry(), None, "{}: moment {moment}: the flow was learnt", trial.what());
        trial.node.forget_recorded();
    }
}

/// Lets a program learn a flow from a packet while others write, falsifies the learnt entry, and
/// returns what becomes of the next packet.
fn learn_while<A: Address>(trial: &mut Trial<A>, writes: &[(usize, Moment)]) -> Seen {
    let plain = trial.sent(&trial.plain);
    prepare(trial);
    write_at(trial, writes);
    trial.see(&plain);
    write_at(trial, &[]);
    if trial.entry().is_some() {
        trial.change(falsify::<A>);
    }
    trial.see(&plain)
}

/// Forgets all known flows. A translated flow keeps its translation.
fn prepare<A: Address>(trial: &mut Trial<A>) {
    let plain = trial.sent(&trial.plain);
    trial.judged(&plain);
    trial.node.forget_known();
}

/// Sets what the programs write at each moment of learning from now on.
fn write_at<A: Address>(trial: &mut Trial<A>, writes: &[(usize, Moment)]) {
    let map = trial.node.loaded.ebpf.map_mut(LEARNING).expect("the object that counts helper calls has it");
    let mut learning: Array<&mut MapData, Moment> = map.try_into().unwrap();
    for moment in 0..MOMENTS {
        let at = writes.iter().filter(|(at, _)| *at == moment).map(|(_, write)| *write);
        let sum = at.fold(Moment::QUIET, |sum, write| Moment {
            generation: sum.generation + write.generation,
            slot: sum.slot + write.slot,
            epoch: sum.epoch + write.epoch,
            event: sum.event + write.event,
            flow: if write.event == 0 { sum.flow } else { write.flow },
        });
        learning.set(moment as u32, sum, 0).unwrap();
    }
}

/// The errors quote packets that this node has not sent.
#[test]
fn foreign_icmp_errors_end_nothing_that_is_known() {
    Trial::<Ipv4Addr>::each(check_foreign_errors);
    Trial::<Ipv6Addr>::each(check_foreign_errors);
}

fn check_foreign_errors<A: Address>(trial: &mut Trial<A>) {
    const ERRORS: u32 = 10_000;
    let plain = trial.sent(&trial.plain);
    for (quoted, error) in foreign_errors::<Ipv4Addr>().into_iter().chain(foreign_errors::<Ipv6Addr>()) {
        let what = format!("{}: {quoted}", trial.what());
        trial.mislead();
        let (before, known) = (trial.see(&plain), trial.entry());
        trial.node.run_often(FROM_UPLINK, trial.node.uplink, &error, ERRORS);
        assert_eq!(trial.entry(), known, "{what}: the entry");
        assert_eq!(trial.see(&plain), before, "{what}: the entry does not decide");
        assert_eq!(A::all_known(&trial.node.loaded.maps).len(), 1, "{what}: something was learnt");
    }
}

/// Returns errors that quote packets which this node has not sent.
fn foreign_errors<A: Address>() -> Vec<(String, Vec<u8>)> {
    let tunnel = |source, destination| (source, destination, udp(50000, VXLAN_PORT));
    let quoted = [
        ("a tunnel to no node", tunnel(A::NODE1, A::STRANGER)),
        ("a tunnel of others", tunnel(A::NODE3, A::NODE2)),
        ("a tunnel to another node", tunnel(A::NODE1, A::NODE3)),
        ("another port of a node", (A::NODE1, A::NODE2, udp(50000, 53))),
        ("a connection to a node", (A::NODE1, A::NODE2, tcp(50000, VXLAN_PORT))),
        ("an unknown flow to the world", (A::NODE1, A::WORLD, udp(1, 2))),
        ("an unknown flow of a pod's", (A::POD_A, A::REMOTE_POD, udp(1, 2))),
        ("an unknown flow to a pod", (A::REMOTE_POD, A::POD_A, udp(1, 2))),
    ];
    let family = A::either("IPv4", "IPv6");
    let error = |(what, (source, destination, transport))| {
        (format!("{family}: {what}"), error_about(&A::Packet::new(source, destination, transport)))
    };
    quoted.into_iter().map(error).collect()
}

#[test]
fn icmp_error_ends_the_flow_or_node_that_it_quotes() {
    check_errors::<Ipv4Addr>();
    check_errors::<Ipv6Addr>();
}

fn check_errors<A: Address>() {
    let of_a = |destination, transport| from_a::<A>(destination, transport).build();
    let flow = |destination, port| flow_of(A::POD_A, destination, (port, SERVER), protocol::TCP);
    let tunnel = error_about(&Packet::new(NODE1, NODE2, udp(50000, VXLAN_PORT)));
    let tunnel6 = error_about(&Packet6::new(NODE1_6, NODE2_6, udp(50000, VXLAN_PORT)));
    let translated = error_about(&A::Packet::new(A::NODE1, A::WORLD, tcp(TRANSLATED, SERVER)));
    let direct = error_about(&A::Packet::new(A::POD_A, A::REMOTE_POD, tcp(CLIENT, SERVER)));
    let (to_world, local) = (flow(A::WORLD, CLIENT), flow(A::POD_B, CLIENT));
    let (to_node2, also_to_node2) = (flow(A::REMOTE_POD, CLIENT), flow(A::REMOTE_POD, CLIENT + 1));
    let of_node2 = vec![to_node2, also_to_node2];
    let (v4, v6) = (Family::V4, Family::V6);
    let mut table = vec![
        ("the tunnel", (Mode::Vxlan, v4), tunnel, of_node2.clone()),
        ("a translated flow", (Mode::Vxlan, v4), translated.clone(), vec![to_world]),
        ("a translated flow", (Mode::Direct, v4), translated, vec![to_world]),
        ("a pod's flow", (Mode::Direct, v4), direct, vec![to_node2]),
    ];
    // A tunnel of IPv6 has no known flows of IPv4.
    table.extend(A::either(None, Some(("the tunnel of IPv6", (Mode::Vxlan, v6), tunnel6, of_node2))));
    for (what, (mode, over), error, ends) in table {
        let mut node = dual(mode);
        node.model.tunnel_family = over;
        node.fill();
        node.translate::<A>(protocol::TCP);
        let pod = node.pod_a;
        let sent = [
            (to_world, of_a(A::WORLD, ack(CLIENT, SERVER))),
            (to_node2, of_a(A::REMOTE_POD, ack(CLIENT, SERVER))),
            (also_to_node2, of_a(A::REMOTE_POD, ack(CLIENT + 1, SERVER))),
            (local, of_a(A::POD_B, ack(CLIENT, SERVER))),
        ];
        sent.iter().for_each(|(_, frame)| drop(node.run(FROM_POD, pod, frame, 0)));
        for (flow, _) in &sent {
            let mut known = known_of::<A>(&node, flow);
            known.reserved = OURS;
            A::insert_known(&mut node.loaded.maps, A::Stored::key(flow).borrow(), known);
        }
        node.run(FROM_UPLINK, node.uplink, &error, 0);
        for (flow, frame) in &sent {
            node.run(FROM_POD, pod, frame, 0);
            let is_new = known_of::<A>(&node, flow).reserved != OURS;
            assert_eq!(is_new, ends.contains(flow), "{mode:?}: {what}: {flow:?}");
        }
    }
}

fn known_of<A: Address>(node: &Fixture, flow: &Flow) -> Known<A> {
    A::known(&node.loaded.maps, A::Stored::key(flow).borrow()).expect("it is learnt")
}

/// Returns "fragmentation needed" or "packet too big" about a packet, from a router on its way, to
/// the packet's sender.
fn error_about<P: IpPacket>(quoted: &P) -> Vec<u8> {
    let too_big = P::Address::either(
        Transport::Icmp { kind: 3, code: 4, word: [0, 0, 5, 0] },
        Transport::Icmp { kind: 2, code: 0, word: [0, 0, 5, 0] },
    );
    let sender = *quoted.clone().fields().source;
    arriving(P::Address::STRANGER, sender, too_big)
        .set(|fields| *fields.payload = behind_ethernet(&quoted.build()))
        .build()
}
