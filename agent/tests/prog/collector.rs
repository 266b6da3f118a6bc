//! Aging: the entries of `TRANSLATIONS` that the agent removes.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::lpm_trie::Key;
use podwire::dataplane::flows::Fill;
use podwire::housekeeping;
use podwire_common::abi::{
    self, Flow, Holder, STATE_ESTABLISHED, STATE_REPLIED, TABLE_TRANSLATIONS, Translation, Vtep,
};
use podwire_common::addr::{Addr, Be16, Mac};
use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_UPLINK, TO_UPLINK};
use podwire_common::reason::Drop;
use podwire_common::tables::Table;
use podwire_core::change::Change;
use podwire_core::model::Mode;
use podwire_core::slice::{Prefix, TableChange, Tables};

use crate::fixture::*;
use crate::packets::*;

const SECOND: u64 = 1_000_000_000;

#[test]
fn half_a_pair_takes_nobody_elses_half_with_it() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let out = Packet::new(POD_B, WORLD, tcp(40000, 443)).macs(STRANGER_MAC, UPLINK_MAC);
    node.run(TO_UPLINK, link, &out.build(), 0);
    let back = Packet::new(WORLD, NODE1, tcp(443, 40000)).macs(UPLINK_MAC, STRANGER_MAC);
    node.run(FROM_UPLINK, link, &back.build(), 0);
    let ack = Transport::Tcp { source: 40000, destination: 443, flags: 0x10 };
    let out = Packet::new(POD_B, WORLD, ack).macs(STRANGER_MAC, UPLINK_MAC);
    node.run(TO_UPLINK, link, &out.build(), 0);
    let pair = node.translations();
    let is_open = |half: &Translation| half.state == STATE_REPLIED | STATE_ESTABLISHED;
    assert!(pair.len() == 2 && pair.values().all(is_open), "{pair:?}");
    // Pod A had the port before. Before Linux 6.15 a removal may fail with EBUSY, when two CPUs use
    // the same bucket, and leave this entry.
    let flow = |source: std::net::Ipv4Addr| {
        Flow::new(source.into(), WORLD.into(), Be16::new(40000), Be16::new(443), protocol::TCP)
    };
    let left = Translation { state: 0, ..pair[&flow(POD_B)] };
    node.loaded.maps.translations.insert(flow(POD_A), left, 0).unwrap();
    let mut collector = node.loaded.maps.collector(None).unwrap();
    // Unanswered connections live shorter than these 300 s, answered ones longer.
    let collected = collector.collect(housekeeping::now() + 300 * SECOND).unwrap();
    assert_eq!(collected.translations_expired, 1);
    assert_eq!(node.translations(), pair);
}

#[test]
fn round_sees_every_entry_once_and_removes_what_is_silent() {
    let mut node = Fixture::new(Mode::Vxlan);
    let flow =
        |number: u16| Flow::new(WORLD.into(), NODE1.into(), Be16::new(443), Be16::new(number), protocol::TCP);
    const ENTRIES: usize = 20_000;
    let flows = (1..).map(flow).take(ENTRIES);
    assert!(!node.fill_translations(flows), "the table is too small for this test");
    let mut collector = node.loaded.maps.collector(None).unwrap();
    let collected = collector.collect(SECOND).unwrap();
    assert_eq!((collected.translations, collected.translations_expired), (ENTRIES, 0));
    let collected = collector.collect(8000 * SECOND).unwrap();
    assert_eq!(collected.translations_expired, ENTRIES);
    assert_eq!(collector.collect(8000 * SECOND).unwrap().translations, 0);
}

#[test]
fn a_round_counts_what_each_holder_has() {
    let mut node = Fixture::new(Mode::Vxlan);
    let (link, capacity) = (node.uplink, node.loaded.maps.capacity(Table::Translations));
    let from = |pod, port| Packet::new(pod, WORLD, udp(port, 53)).macs(STRANGER_MAC, UPLINK_MAC);
    for port in 40000..40005 {
        node.run(TO_UPLINK, link, &from(POD_A, port).build(), 0);
    }
    node.run(TO_UPLINK, link, &from(POD_B, 40000).build(), 0);
    let of = |pod: std::net::Ipv4Addr| Holder {
        address: Addr::from(pod),
        port: Be16::ZERO,
        protocol: 0,
        table: TABLE_TRANSLATIONS,
    };
    let expected = [(of(POD_A), 10), (of(POD_B), 2)];
    assert_eq!(node.holders(), expected.into(), "as the programs count");
    assert_eq!(node.room_for_translations(), capacity - 12);
    // Two CPUs that count at once may lose a count. The collector replaces the programs' counts.
    node.set_holder(of(POD_A), 7);
    let mut collector = node.loaded.maps.collector(None).unwrap();
    collector.collect(housekeeping::now()).unwrap();
    assert_eq!(node.holders(), expected.into(), "as the agent counts");
    node.loaded.maps.forget_pods(&BTreeSet::from([POD_A.into()])).unwrap();
    assert_eq!((node.holders(), node.room_for_translations()), ([(of(POD_B), 2)].into(), capacity - 2));
    collector.collect(housekeeping::now() + 31 * SECOND).unwrap();
    assert_eq!((node.holders(), node.room_for_translations()), ([].into(), capacity));
}

#[test]
fn who_has_a_share_already_is_refused_and_others_are_not() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let half = node.loaded.maps.capacity(Table::Translations) / 2;
    let of_a = Holder { address: POD_A.into(), port: Be16::ZERO, protocol: 0, table: TABLE_TRANSLATIONS };
    node.set_holder(of_a, u32::try_from(half).unwrap());
    node.set_room_for_translations(u32::try_from(half).unwrap());
    let from = |pod, port| Packet::new(pod, WORLD, tcp(port, 443)).macs(STRANGER_MAC, UPLINK_MAC).build();
    node.check("pod A", TO_UPLINK, link, &from(POD_A, 40000), Expect::Drop(Drop::TranslationShareUsed));
    node.run(TO_UPLINK, link, &from(POD_B, 40000), 0);
    assert_eq!(node.translations().len(), 2, "pod B has a share of its own");
    // With room in its share, a flow of pod A takes two entries.
    node.set_holder(of_a, 4);
    node.run(TO_UPLINK, link, &from(POD_A, 40001), 0);
    assert_eq!(node.holders()[&of_a], 6);
}

macro_rules! keys_of_each {
    ($node:ident $($owner:ident {
        $(#[doc = $doc:literal])+
        $name:ident, $field:ident, $variant:ident: $kind:ident<$key:ty, $value:ty>, $($sizes_and_shares:tt)*
    })*) => { vec![$((Table::$variant, keys_of!($kind, $node.loaded.maps.$field))),*] };
}

macro_rules! keys_of {
    (MappedArray, $map:expr) => {
        None
    };
    (Array, $map:expr) => {
        None
    };
    (PerCpuArray, $map:expr) => {
        None
    };
    ($kind:ident, $map:expr) => {
        Some($map.keys().map(Result::unwrap).count())
    };
}

#[test]
fn differences_are_entries_that_are_not_as_wanted() {
    let node = Fixture::new(Mode::Vxlan);
    let maps = &node.loaded.maps;
    let all = maps.contents().unwrap();
    let mut want = all.clone();
    assert_eq!(maps.differences(&mut want).unwrap(), Tables::default());
    assert_eq!(want, Tables::default());

    let mut want = all.clone();
    let surplus = want.nodes.pop_first().unwrap();
    let (other, entry) = want.nodes.pop_last().unwrap();
    let changed = abi::Node { mtu: entry.mtu + 1, ..entry };
    let missing = Prefix { address: Addr::from_v4([10, 99, 0, 0]), bits: 128 };
    let wanted = BTreeMap::from([(other, changed), (missing, entry)]);
    want.nodes.extend(wanted.clone());
    let found = maps.differences(&mut want).unwrap();
    let nodes = BTreeMap::from([surplus, (other, entry)]);
    assert_eq!(found, Tables { nodes, ..Tables::default() });
    assert_eq!(want, Tables { nodes: wanted, ..Tables::default() });
}

#[test]
fn a_round_counts_the_entries_of_each_table() {
    let mut node = Fixture::new(Mode::Vxlan);
    let template = node.loaded.maps.nodes.iter().next().unwrap().unwrap().1;
    // More entries than one system call returns.
    const NODES: u16 = 5000;
    for number in 0..NODES {
        let [high, low] = number.to_be_bytes();
        let key = Key::new(128, Addr::from_v4([10, 99, high, low]).into());
        node.loaded.maps.nodes.insert(&key, template, 0).unwrap();
    }
    let out = Packet::new(POD_B, WORLD, tcp(40000, 443)).macs(STRANGER_MAC, UPLINK_MAC);
    let link = node.uplink;
    node.run(TO_UPLINK, link, &out.build(), 0);
    let mut collected = node.loaded.maps.collector(None).unwrap().collect(SECOND).unwrap();
    // The agent counts its own tables when it reads them.
    node.loaded.maps.contents().unwrap();
    collected.fill.extend(node.loaded.maps.fill());
    let counted = podwire_common::tables!(keys_of_each, node);
    for (table, entries) in counted {
        let fill = entries.map(|entries| Fill { entries, capacity: node.loaded.maps.capacity(table) });
        assert_eq!(collected.fill.get(&table).copied(), fill, "{table:?}");
    }
    let entries = |table| collected.fill[&table].entries;
    assert!(
        entries(Table::Nodes) > NODES.into() && entries(Table::Translations) == 2,
        "{:?}",
        collected.fill
    );
    // The agent also updates the counts when it changes its tables.
    let (key, vtep) = (Addr::from_v4([10, 99, 0, 1]), Vtep { mac: Mac::default(), reserved: [0; 2] });
    let vteps = |node: &Fixture| node.loaded.maps.fill()[&Table::Vteps].entries;
    let before = vteps(&node);
    for (change, more) in [
        (Change { key, before: None, now: Some(vtep) }, 1),
        (Change { key, before: Some(vtep), now: Some(vtep) }, 1),
        (Change { key, before: Some(vtep), now: None }, 0),
    ] {
        node.loaded.maps.apply(&TableChange::Vteps(change)).unwrap();
        assert_eq!(vteps(&node), before + more);
    }
}
