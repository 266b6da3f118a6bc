//! A change ends the entries of `FLOWS` that it makes wrong, and no others.

use aya::maps::{Array, MapData};
use podwire_common::abi;
use podwire_common::addr::{Be16, Mac};
use podwire_common::flow::protocol;
use podwire_common::helper::{LEARNING, MOMENTS, Moment};
use podwire_common::names::VXLAN_PORT;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK};
use podwire_core::change::Change;
use podwire_core::features::{Scope, desired};
use podwire_core::model::Mode;
use podwire_core::slice::{Prefix, TableChange};

use crate::counting;
use crate::fixture::*;
use crate::kinds::{CLIENT, SERVER, ack, arriving, from_a};
use crate::packets::*;
use crate::trial::{ATTEMPTS, Kind, OURS, Trial, falsify};

/// The flows of [`Trial`] that a change concerns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Concerns {
    Nobody,
    Everybody,
    Neighbours,
    OfNode2,
    OfWorld,
}

impl Concerns {
    fn includes(self, kind: Kind) -> bool {
        let (is_local, is_world) = (kind == Kind::Local, matches!(kind, Kind::WorldOut | Kind::WorldIn));
        match self {
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
    Trial::each(|trial| {
        for (what, changes, concerns) in changes(&trial.node) {
            let what = format!("{}: {what}", trial.what());
            let is_concerned = concerns.includes(trial.way.kind);
            // A known flow may expire at the same moment.
            let attempts = if is_concerned { 1 } else { ATTEMPTS };
            let is_followed = (0..attempts).any(|_| is_followed_after(trial, &changes, &what));
            assert_eq!(is_followed, !is_concerned, "{what}: whether the packet follows the known flow");
        }
    });
}

/// Applies changes after a program has learnt the flow. Returns whether the next packet still
/// follows the learnt entry. If it does not, asserts that the tables decide as they are now.
fn is_followed_after(trial: &mut Trial, changes: &[TableChange], what: &str) -> bool {
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
fn changes(node: &Fixture) -> Vec<(&'static str, Vec<TableChange>, Concerns)> {
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
    let (a, b) = (now.endpoints[&POD_A.into()], now.endpoints[&POD_B.into()]);
    let new = abi::Endpoint { ifindex: 99, id: 99, ..a };
    let prefix = |text: &str| Prefix::from(text.parse::<ipnet::IpNet>().unwrap());
    let of_node2 = now.nodes[&prefix("10.244.2.0/24")];
    let of_node3 = now.nodes[&prefix("10.244.3.0/24")];
    let set = |text: &str, node: abi::Node| change!(Nodes nodes, prefix(text), node);
    let uplink = now.links[&node.uplink];
    let vtep = abi::Vtep { mac: Mac { bytes: [2; 6] }, reserved: [0; 2] };
    let frontend = abi::Frontend { address: NODE1.into(), port: Be16::new(80), protocol: 6, reserved: 0 };
    let backend = abi::Backend { address: POD_B.into(), port: Be16::new(80), reserved: [0; 2] };
    let guard = abi::Guard { paid: 0, cost: 1, credit: 1 };
    let remove = |text: &str| remove!(Nodes nodes, prefix(text));
    vec![
        ("a pod's entry", vec![change!(Endpoints endpoints, POD_A.into(), a)], Concerns::Everybody),
        ("a pod is gone", vec![remove!(Endpoints endpoints, POD_A.into())], Concerns::Everybody),
        ("another pod's entry", vec![change!(Endpoints endpoints, POD_B.into(), b)], Concerns::Neighbours),
        ("another pod is gone", vec![remove!(Endpoints endpoints, POD_B.into())], Concerns::Neighbours),
        ("a new pod", vec![change!(Endpoints endpoints, [10, 244, 1, 9].into_v4(), new)], Concerns::Nobody),
        (
            "a pod with the far address",
            vec![change!(Endpoints endpoints, REMOTE_POD.into(), new)],
            Concerns::OfNode2,
        ),
        ("a node's entry", vec![set("10.244.2.0/24", of_node2)], Concerns::OfNode2),
        ("a node is gone", vec![remove("10.244.2.0/24")], Concerns::OfNode2),
        ("another node has its prefix", vec![set("10.244.2.0/24", of_node3)], Concerns::OfNode2),
        ("another node has a part of its prefix", vec![set("10.244.2.0/30", of_node3)], Concerns::OfNode2),
        ("another node is gone", vec![remove("10.244.3.0/24")], Concerns::Nobody),
        ("another node's address is gone", vec![remove("10.200.0.3/32")], Concerns::Nobody),
        (
            "a new node",
            vec![
                change!(TunnelPeers tunnel_peers, [10, 200, 0, 4].into_v4(), 4),
                set("10.244.4.0/24", of_node3),
                set("10.200.0.4/32", of_node3),
            ],
            Concerns::Nobody,
        ),
        ("a new node has the far address", vec![set("198.51.100.0/25", of_node3)], Concerns::OfWorld),
        ("a new node has nearly all addresses", vec![set("10.0.0.0/8", of_node3)], Concerns::Everybody),
        ("a node's VTEP", vec![change!(Vteps vteps, NODE2.into(), vtep)], Concerns::OfNode2),
        ("a node's VTEP is gone", vec![remove!(Vteps vteps, NODE2.into())], Concerns::OfNode2),
        ("another node's VTEP", vec![change!(Vteps vteps, NODE3.into(), vtep)], Concerns::Nobody),
        ("a peer is gone", vec![remove!(TunnelPeers tunnel_peers, NODE2.into())], Concerns::OfNode2),
        ("a link's addresses", vec![change!(Links links, node.uplink, uplink)], Concerns::OfWorld),
        ("another link", vec![change!(Links links, 99, uplink)], Concerns::Nobody),
        ("an exclusion", vec![change!(Networks networks, prefix("198.51.100.0/24"), 1)], Concerns::OfWorld),
        ("another exclusion", vec![change!(Networks networks, prefix("192.0.2.0/24"), 1)], Concerns::Nobody),
        ("a hostPort", vec![change!(Frontends frontends, frontend, backend)], Concerns::Nobody),
        ("another pod's limit", vec![change!(Guards guards, 99, guard)], Concerns::Nobody),
    ]
}

trait IntoV4 {
    fn into_v4(self) -> podwire_common::addr::Addr;
}

impl IntoV4 for [u8; 4] {
    fn into_v4(self) -> podwire_common::addr::Addr {
        podwire_common::addr::Addr::from_v4(self)
    }
}

/// The agent writes a table while the program judges a packet, so the program's verdict is stale.
#[test]
fn what_changes_while_a_flow_is_learnt_ends_it() {
    Trial::each_with(counting::take, |trial| {
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
    });
}

#[test]
fn a_record_made_while_a_flow_is_learnt_ends_it() {
    Trial::each_with(counting::take, |trial| {
        let is_world = matches!(trial.way.kind, Kind::WorldOut | Kind::WorldIn);
        let event = if is_world { Moment::TRANSLATION_GONE } else { Moment::STACK_FLOW };
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
    });
}

/// Lets a program learn a flow from a packet while others write, falsifies the learnt entry, and
/// returns what becomes of the next packet.
fn learn_while(trial: &mut Trial, writes: &[(usize, Moment)]) -> crate::trial::Seen {
    let plain = trial.sent(&trial.plain);
    prepare(trial);
    write_at(trial, writes);
    trial.see(&plain);
    write_at(trial, &[]);
    if trial.entry().is_some() {
        trial.change(falsify);
    }
    trial.see(&plain)
}

/// Empties `FLOWS`. A translated flow keeps its translation.
fn prepare(trial: &mut Trial) {
    let plain = trial.sent(&trial.plain);
    trial.judged(&plain);
    trial.node.forget_known();
}

/// Sets what the programs write at each moment of learning from now on.
fn write_at(trial: &mut Trial, writes: &[(usize, Moment)]) {
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
    const ERRORS: u32 = 10_000;
    let tunnel = |source, destination| Packet::new(source, destination, udp(50000, VXLAN_PORT));
    Trial::each(|trial| {
        let quoted = [
            ("a tunnel to no node", tunnel(NODE1, STRANGER)),
            ("a tunnel of others", tunnel(NODE3, NODE2)),
            ("a tunnel to another node", tunnel(NODE1, NODE3)),
            ("another port of a node", Packet::new(NODE1, NODE2, udp(50000, 53))),
            ("a connection to a node", Packet::new(NODE1, NODE2, tcp(50000, VXLAN_PORT))),
            ("an unknown flow to the world", Packet::new(NODE1, WORLD, udp(1, 2))),
            ("an unknown flow of a pod's", Packet::new(POD_A, REMOTE_POD, udp(1, 2))),
            ("an unknown flow to a pod", Packet::new(REMOTE_POD, POD_A, udp(1, 2))),
        ];
        let plain = trial.sent(&trial.plain);
        for (what, quoted) in quoted {
            let what = format!("{}: {what}", trial.what());
            trial.mislead();
            let (before, known) = (trial.see(&plain), trial.entry());
            trial.node.run_often(FROM_UPLINK, trial.node.uplink, &error_about(&quoted), ERRORS);
            assert_eq!(trial.entry(), known, "{what}: the entry");
            assert_eq!(trial.see(&plain), before, "{what}: the entry does not decide");
            assert_eq!(trial.node.loaded.maps.flows.keys().count(), 1, "{what}: something was learnt");
        }
    });
}

#[test]
fn icmp_error_ends_the_flow_or_node_that_it_quotes() {
    let of_a = |destination, transport| from_a(destination, transport).build();
    let tunnel = Packet::new(NODE1, NODE2, udp(50000, VXLAN_PORT));
    let translated = Packet::new(NODE1, WORLD, tcp(TRANSLATED, SERVER));
    let direct = Packet::new(POD_A, REMOTE_POD, tcp(CLIENT, SERVER));
    let to_world = flow_of(POD_A, WORLD, (CLIENT, SERVER), protocol::TCP);
    let to_node2 = flow_of(POD_A, REMOTE_POD, (CLIENT, SERVER), protocol::TCP);
    let also_to_node2 = flow_of(POD_A, REMOTE_POD, (CLIENT + 1, SERVER), protocol::TCP);
    let local = flow_of(POD_A, POD_B, (CLIENT, SERVER), protocol::TCP);
    let table = [
        ("the tunnel", Mode::Vxlan, tunnel, vec![to_node2, also_to_node2]),
        ("a translated flow", Mode::Vxlan, translated.clone(), vec![to_world]),
        ("a translated flow", Mode::Direct, translated, vec![to_world]),
        ("a pod's flow", Mode::Direct, direct, vec![to_node2]),
    ];
    for (what, mode, quoted, ends) in table {
        let mut node = Fixture::new(mode);
        node.namespace.ip("route add default via 10.200.0.2 dev up0");
        node.translate(protocol::TCP);
        let pod = node.pod_a;
        let sent = [
            (to_world, of_a(WORLD, ack(CLIENT, SERVER))),
            (to_node2, of_a(REMOTE_POD, ack(CLIENT, SERVER))),
            (also_to_node2, of_a(REMOTE_POD, ack(CLIENT + 1, SERVER))),
            (local, of_a(POD_B, ack(CLIENT, SERVER))),
        ];
        sent.iter().for_each(|(_, frame)| drop(node.run(FROM_POD, pod, frame, 0)));
        let marked = |node: &mut Fixture| {
            for (flow, _) in &sent {
                let mut known = node.loaded.maps.flows.get(&flow.key(), 0).expect("it is learnt");
                known.reserved = OURS;
                node.loaded.maps.flows.insert(flow.key(), known, 0).unwrap();
            }
        };
        marked(&mut node);
        node.run(FROM_UPLINK, node.uplink, &error_about(&quoted), 0);
        for (flow, frame) in &sent {
            node.run(FROM_POD, pod, frame, 0);
            let known = node.loaded.maps.flows.get(&flow.key(), 0).expect("it is learnt again");
            assert_eq!(known.reserved != OURS, ends.contains(flow), "{mode:?}: {what}: {flow:?}");
        }
    }
}

/// Returns "fragmentation needed" about a packet, from a router on its way, to the packet's sender.
fn error_about(quoted: &Packet) -> Vec<u8> {
    let icmp = Transport::Icmp { kind: 3, code: 4, word: [0, 0, 5, 0] };
    let error = arriving(STRANGER, quoted.source, icmp);
    error.with(|packet| packet.payload = behind_ethernet(&quoted.build())).build()
}
