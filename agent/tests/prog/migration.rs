//! Taking over maps of the layout before, step by step: what is carried over, and what an agent that is killed half way leaves.

use std::fs;
use std::path::{Path, PathBuf};

use podwire::dataplane::{Dataplane, load, pins};
use podwire::error::Error;
use podwire::housekeeping;
use podwire_common::abi::{self, Flow, STATE_REPLIED, Translation};
use podwire_common::addr::{Addr, Be16};
use podwire_common::flow::protocol;
use podwire_common::names::maps;

use crate::fixture::{NODE1, WORLD};
use crate::old_object::{self, OldEndpoints, OldTranslations};

/// A folder of pins as an agent of layout 2 left it; removed at the end.
struct Scene {
    folder: PathBuf,
    endpoints: OldEndpoints,
    translations: OldTranslations,
}

impl Scene {
    fn new(name: &str) -> Self {
        let folder = Path::new("/sys/fs/bpf").join(format!("pwprog{}-{name}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let mut old = old_object::load(&folder, &config());
        let endpoints = old_object::map(&mut old, maps::ENDPOINTS);
        let translations = old_object::map(&mut old, maps::TRANSLATIONS);
        Self { folder, endpoints, translations }
    }

    /// Old programs have translated a flow, or forwarded a packet of it.
    fn old_entry(&mut self, port: u16, seen: u64) {
        let half = old_object::old_translation(&bytes_of(&half(seen)));
        self.translations.insert(flow_bytes(port), half, 0).unwrap();
    }

    fn start(&self) -> Dataplane {
        load::load(&config(), &[], Some(&self.folder)).unwrap()
    }

    fn schema(&self) -> PathBuf {
        fs::read_link(self.folder.join("schema-version")).unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn what_old_programs_write_while_they_are_replaced_is_carried_over_too() {
    let mut scene = Scene::new("late");
    let before = housekeeping::now();
    scene.old_entry(1, before);
    scene.old_entry(2, before);
    let mut new = scene.start();
    assert_eq!(seen(&new, 1), Some(before));
    // The new programs have forwarded a packet of the first, the old ones one of the second and begun a third. What belonged to a pod that is
    // gone was removed.
    let later = housekeeping::now() + 1_000_000;
    new.maps.translations.insert(flow(1), half(later), 0).unwrap();
    scene.old_entry(1, later - 1);
    scene.old_entry(2, later);
    scene.old_entry(3, later);
    scene.old_entry(4, before);
    new.finish_migration().unwrap();
    assert_eq!([1, 2, 3, 4].map(|port| seen(&new, port)), [Some(later), Some(later), Some(later), None]);
    assert_eq!(scene.schema(), Path::new("3"));
    assert!(!pins::next(&scene.folder).exists());
    drop(new);
    assert_eq!(seen(&scene.start(), 3), Some(later), "the new map has the old one's name");
}

#[test]
fn until_all_programs_are_replaced_the_release_before_finds_what_it_left() {
    let mut scene = Scene::new("killed");
    scene.old_entry(1, housekeeping::now());
    drop(scene.start());
    assert_eq!(scene.schema(), Path::new("2"));
    let mut again = old_object::load(&scene.folder, &config());
    let found: OldTranslations = old_object::map(&mut again, maps::TRANSLATIONS);
    assert!(found.get(&flow_bytes(1), 0).is_ok());
    // And a newer agent goes on from there.
    scene.old_entry(2, housekeeping::now());
    let mut new = scene.start();
    new.finish_migration().unwrap();
    assert!(seen(&new, 1).is_some() && seen(&new, 2).is_some());
}

#[test]
fn after_a_rollback_nothing_is_taken_from_the_attempt_before_it() {
    let mut scene = Scene::new("rollback");
    scene.old_entry(1, housekeeping::now());
    scene.old_entry(2, housekeeping::now());
    drop(scene.start());
    // The release before has served again, and a pod was deleted with its flows.
    scene.translations.remove(&flow_bytes(1)).unwrap();
    let mut new = scene.start();
    assert_eq!((seen(&new, 1).is_some(), seen(&new, 2).is_some()), (false, true));
    // Without a rollback its programs are at work, and what they have written counts.
    let later = housekeeping::now();
    new.maps.translations.insert(flow(3), half(later), 0).unwrap();
    assert_eq!(seen(&scene.start(), 3), Some(later));
    new.finish_migration().unwrap();
}

#[test]
fn an_endpoint_that_is_released_while_programs_are_replaced_does_not_come_back() {
    let mut scene = Scene::new("released");
    scene.endpoints.insert(Addr::from(NODE1).bytes, [0; 40], 0).unwrap();
    let mut new = scene.start();
    assert!(new.maps.endpoint(NODE1).unwrap().is_some());
    new.maps.endpoints.remove(&NODE1.into()).unwrap();
    new.finish_migration().unwrap();
    assert_eq!(new.maps.endpoint(NODE1).unwrap(), None);
}

#[test]
fn an_agent_that_was_killed_while_maps_got_their_names_is_followed_by_one_that_ends_it() {
    let mut scene = Scene::new("renaming");
    scene.old_entry(1, housekeeping::now());
    drop(scene.start());
    // As `finish_migration` does, up to the second map.
    let version = scene.folder.join("schema-version");
    fs::remove_file(&version).unwrap();
    std::os::unix::fs::symlink("2-to-3", &version).unwrap();
    fs::rename(pins::next(&scene.folder).join(maps::FLOWS), scene.folder.join(maps::FLOWS)).unwrap();
    let new = scene.start();
    assert!(seen(&new, 1).is_some());
    assert_eq!(scene.schema(), Path::new("3"));
    assert!(!pins::next(&scene.folder).exists());
}

#[test]
fn a_layout_that_is_not_known_is_refused() {
    let scene = Scene::new("unknown");
    let version = scene.folder.join("schema-version");
    for found in ["1", "4", "2-to-4"] {
        fs::remove_file(&version).unwrap();
        std::os::unix::fs::symlink(found, &version).unwrap();
        let refused = load::load(&config(), &[], Some(&scene.folder)).map(drop);
        assert!(matches!(&refused, Err(Error::Schema { .. })), "{found}: {refused:?}");
        assert!(!pins::next(&scene.folder).exists());
    }
}

fn config() -> abi::Config {
    old_object::config(abi::MODE_DIRECT, 0)
}

fn flow(port: u16) -> Flow {
    Flow::new(WORLD.into(), NODE1.into(), Be16::new(443), Be16::new(port), protocol::TCP)
}

fn flow_bytes(port: u16) -> [u8; 40] {
    let flow = flow(port);
    let ports = [flow.source_port.get().to_be_bytes(), flow.destination_port.get().to_be_bytes()].concat();
    let rest = [flow.protocol, 0, 0, 0];
    [&flow.source.bytes[..], &flow.destination.bytes, &ports, &rest].concat().try_into().unwrap()
}

fn half(last_seen: u64) -> Translation {
    Translation {
        last_seen,
        source: WORLD.into(),
        destination: NODE1.into(),
        source_port: Be16::new(443),
        destination_port: Be16::new(40000),
        ifindex: 2,
        asked: 0,
        kind: abi::TRANSLATION_SNAT,
        reply: 1,
        state: STATE_REPLIED,
        hairpin: 0,
        past_stack: 1,
        is_long: 0,
        reserved: [0; 6],
    }
}

/// In the order of the fields.
fn bytes_of(half: &Translation) -> Vec<u8> {
    [
        &half.last_seen.to_ne_bytes()[..],
        &half.source.bytes,
        &half.destination.bytes,
        &half.source_port.get().to_be_bytes(),
        &half.destination_port.get().to_be_bytes(),
        &half.ifindex.to_ne_bytes(),
        &half.asked.to_ne_bytes(),
        &[half.kind, half.reply, half.state, half.hairpin, half.past_stack, half.is_long],
        &half.reserved,
    ]
    .concat()
}

fn seen(dataplane: &Dataplane, port: u16) -> Option<u64> {
    dataplane.maps.translations.get(&flow(port), 0).ok().map(|half| half.last_seen)
}
