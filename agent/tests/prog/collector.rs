//! What the agent ages out of the table of translations.

use podwire::housekeeping;
use podwire::model::Mode;
use podwire_common::abi::{Flow, STATE_REPLIED, Translation};
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_UPLINK, TO_UPLINK};

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
    let pair = node.translations();
    assert!(pair.len() == 2 && pair.values().all(|half| half.state == STATE_REPLIED), "{pair:?}");
    // Pod A had the port before. On kernels before 6.15 a removal may fail where two CPUs meet (EBUSY), and leave this.
    let flow = |source: std::net::Ipv4Addr| {
        Flow::new(source.into(), WORLD.into(), Be16::new(40000), Be16::new(443), protocol::TCP)
    };
    let left = Translation { state: 0, ..pair[&flow(POD_B)] };
    node.loaded.maps.translations.insert(flow(POD_A), left, 0).unwrap();
    let mut collector = node.loaded.maps.collector(None).unwrap();
    // Longer than a connection lives that was never answered, and shorter than one that was.
    let collected = collector.collect(housekeeping::now() + 300 * SECOND).unwrap();
    assert_eq!(collected.translations_expired, 1);
    assert_eq!(node.translations(), pair);
}

#[test]
fn a_round_sees_every_entry_of_a_large_table_once_and_removes_what_is_silent() {
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
