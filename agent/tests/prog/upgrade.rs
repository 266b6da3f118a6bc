//! Taking over maps of an earlier layout, step by step: what the agent carries over, and what an
//! agent leaves when it is killed half way.

use std::fs;
use std::path::{Path, PathBuf};

use aya::EbpfLoader;
use aya::maps::{HashMap, Map, MapData, MapError};
use podwire::dataplane::DataplaneError;
use podwire::dataplane::conversions::CONVERSIONS;
use podwire::dataplane::{Dataplane, load, pins};
use podwire::housekeeping;
use podwire_common::abi::{self, ENDPOINT_STACK_ONLY, Flow, StackFlow};
use podwire_common::addr::{Addr, Be16};
use podwire_common::flow::protocol;
use podwire_common::names::{VNI, VXLAN_PORT, maps};

use crate::fixture::{POD_A, POD_B, WORLD};

/// The object of the artificial layout 0, which `cargo xtask test` builds.
const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/podwire-ebpf-earlier-layout");

/// The reserved bytes before the fields that both layouts have.
const RESERVED: usize = 8;
const ENDPOINT: usize = RESERVED + size_of::<abi::Endpoint>();
const TRANSLATION: usize = RESERVED + size_of::<abi::Translation>();
/// The offset of `last_seen` in a translation of layout 0.
const LAST_SEEN: usize = RESERVED;

/// The offsets of these fields in values of layout 0.
const ID: usize = RESERVED + std::mem::offset_of!(abi::Endpoint, id);
const FLAGS: usize = RESERVED + std::mem::offset_of!(abi::Endpoint, flags);

/// A folder of pins as an agent of layout 0 left it. It is removed at the end.
struct Scene {
    folder: PathBuf,
    endpoints: HashMap<MapData, Addr, [u8; ENDPOINT]>,
    translations: HashMap<MapData, Flow, [u8; TRANSLATION]>,
}

impl Scene {
    fn new(name: &str) -> Self {
        // Before the folder is there: nobody would remove it.
        let object = fs::read(OBJECT)
            .unwrap_or_else(|error| panic!("read {OBJECT}: {error}: `cargo xtask test` builds it"));
        let folder = Path::new("/sys/fs/bpf").join(format!("pwprog{}-{name}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let mut loader = EbpfLoader::new();
        for map in maps::ALL {
            let changed = map == maps::ENDPOINTS || map == maps::TRANSLATIONS;
            loader.map_pin_path(map, folder.join(if changed { format!("{map}-0") } else { map.into() }));
        }
        let mut earlier = loader.load(&object).unwrap();
        std::os::unix::fs::symlink("0", folder.join("schema-version")).unwrap();
        let mut take = |name| earlier.take_map(name).unwrap();
        let endpoints = open(take(maps::ENDPOINTS));
        let translations = open(take(maps::TRANSLATIONS));
        Self { folder, endpoints, translations }
    }

    /// Acts as programs of layout 0 that translate a flow or forward a packet of it.
    fn translate(&mut self, port: u16, seen: u64) {
        let mut value: [u8; TRANSLATION] = std::array::from_fn(|at| at as u8);
        value[LAST_SEEN..LAST_SEEN + 8].copy_from_slice(&seen.to_ne_bytes());
        self.translations.insert(flow(port), value, 0).unwrap();
    }

    /// Acts as an agent of layout 0 that makes an endpoint, and as its programs, which set these
    /// flags.
    fn endpoint(&mut self, address: impl Into<Addr>, id: u32, flags: u32) {
        let mut value = [0; ENDPOINT];
        value[ID..ID + 4].copy_from_slice(&id.to_ne_bytes());
        value[FLAGS..FLAGS + 4].copy_from_slice(&flags.to_ne_bytes());
        self.endpoints.insert(address.into(), value, 0).unwrap();
    }

    fn start(&self) -> Dataplane {
        load::load(&config(), &[], Some(&self.folder)).unwrap()
    }

    fn layout(&self) -> PathBuf {
        fs::read_link(self.folder.join("schema-version")).unwrap()
    }

    fn set_layout(&self, text: &str) {
        let path = self.folder.join("schema-version");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(text, path).unwrap();
    }

    /// Returns the names of all pins, in order.
    fn pins(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn entries_of_an_earlier_layout_are_converted() {
    let mut scene = Scene::new("converted");
    scene.endpoint(POD_A, 7, abi::ENDPOINT_HAS_HOST_PORTS);
    let seen = housekeeping::now();
    // More entries than one system call returns.
    let ports = 1..=10_000;
    ports.clone().for_each(|port| scene.translate(port, seen));
    let new = scene.start();
    let entry = new.maps.endpoint(POD_A.into()).unwrap().unwrap();
    assert_eq!((entry.id, entry.flags), (7, abi::ENDPOINT_HAS_HOST_PORTS));
    for port in ports {
        let half = new.maps.translations.get(&flow(port), 0).unwrap();
        assert_eq!(half.last_seen, seen);
        // The bytes of the field, counted from the beginning of the earlier value.
        let first = (RESERVED + 8) as u8;
        assert_eq!(half.source.bytes, std::array::from_fn(|at| first + at as u8));
        assert_eq!(usize::from(half.list.to_ne_bytes()[3]), TRANSLATION - 1);
    }
}

#[test]
fn what_earlier_programs_write_meanwhile_is_carried_over() {
    let mut scene = Scene::new("late");
    let before = housekeeping::now();
    scene.translate(1, before);
    scene.translate(2, before);
    scene.endpoint(POD_A, 1, 0);
    scene.endpoint(POD_B, 2, 0);
    let mut new = scene.start();
    assert_eq!([seen(&new, 1), seen(&new, 2)], [Some(before); 2]);
    // Since then:
    //
    // - the new programs have forwarded a packet of the first flow
    // - the earlier programs have forwarded one of the second flow, begun a third, and marked both
    //   pods
    // - the agent has released one of the pods
    let later = housekeeping::now() + 1_000_000;
    let half = new.maps.translations.get(&flow(1), 0).unwrap();
    new.maps.translations.insert(flow(1), abi::Translation { last_seen: later, ..half }, 0).unwrap();
    scene.translate(1, later - 1);
    scene.translate(2, later);
    scene.translate(3, later);
    scene.translate(4, before);
    scene.endpoint(POD_A, 1, ENDPOINT_STACK_ONLY);
    scene.endpoint(POD_B, 2, ENDPOINT_STACK_ONLY);
    new.maps.endpoints.remove(&POD_B.into()).unwrap();
    new.finish_upgrade().unwrap();
    // The fourth flow is older than the upgrade: it was removed with its pod.
    assert_eq!([1, 2, 3, 4].map(|port| seen(&new, port)), [Some(later), Some(later), Some(later), None]);
    let flags = |address: std::net::Ipv4Addr| new.maps.endpoint(address.into()).unwrap().map(|it| it.flags);
    assert_eq!([POD_A, POD_B].map(flags), [Some(ENDPOINT_STACK_ONLY), None]);
    assert_eq!(scene.layout(), Path::new("1"));
    drop(new);
    assert_eq!(seen(&scene.start(), 3), Some(later), "the new map is pinned");
}

#[test]
fn after_an_upgrade_only_its_own_pins_are_left() {
    let scene = Scene::new("pins");
    let mut new = scene.start();
    new.finish_upgrade().unwrap();
    let mut expected: Vec<_> =
        maps::ALL.iter().chain(&["links", "programs", "schema-version"]).map(ToString::to_string).collect();
    expected.sort();
    assert_eq!(scene.pins(), expected);
}

#[test]
fn both_layouts_use_tables_that_are_the_same_in_both() {
    let scene = Scene::new("shared");
    let new = scene.start();
    let map = MapData::from_pin(scene.folder.join(maps::STACK_FLOWS)).unwrap();
    let mut earlier: HashMap<_, Flow, StackFlow> = open(Map::HashMap(map));
    earlier.insert(flow(1), StackFlow { last_seen: 5 }, 0).unwrap();
    assert_eq!(new.maps.stack_flows.get(&flow(1), 0).unwrap().last_seen, 5);
}

#[test]
fn until_it_ends_an_upgrade_leaves_the_earlier_maps_alone() {
    let mut scene = Scene::new("killed");
    scene.translate(1, housekeeping::now());
    let before = scene.pins();
    drop(scene.start());
    assert_eq!(scene.layout(), Path::new("0"));
    assert!(before.iter().all(|pin| scene.pins().contains(pin)));
    assert!(scene.translations.get(&flow(1), 0).is_ok());
    // The next agent continues the upgrade. Entries that its predecessor removed from the new map
    // do not come back.
    let mut new = scene.start();
    new.maps.translations.remove(&flow(1)).unwrap();
    drop(new);
    scene.translate(2, housekeeping::now());
    let mut new = scene.start();
    new.finish_upgrade().unwrap();
    assert_eq!([seen(&new, 1).is_some(), seen(&new, 2).is_some()], [false, true]);
}

#[test]
fn an_attempt_that_did_not_fill_its_maps_is_begun_anew() {
    let mut scene = Scene::new("begun");
    scene.translate(1, housekeeping::now());
    drop(scene.start());
    // This is the state after an agent was killed while it filled the new maps.
    fs::remove_file(scene.folder.join("upgrade")).unwrap();
    scene.translations.remove(&flow(1)).unwrap();
    scene.translate(2, housekeeping::now());
    let new = scene.start();
    assert_eq!([seen(&new, 1).is_some(), seen(&new, 2).is_some()], [false, true]);
}

#[test]
fn an_upgrade_killed_after_its_last_step_is_cleaned_up() {
    let scene = Scene::new("renumbered");
    drop(scene.start());
    scene.set_layout("1");
    drop(scene.start());
    assert!(scene.pins().iter().all(|pin| !pin.ends_with("-0") && pin != "upgrade"), "{:?}", scene.pins());
}

#[test]
fn a_rolled_back_upgrade_is_removed_by_the_layout_that_counts() {
    let scene = Scene::new("rolled-back");
    let mut new = scene.start();
    new.finish_upgrade().unwrap();
    drop(new);
    // This is the state that an agent of layout 2 leaves, with one changed table and one new table.
    for pin in ["TRANSLATIONS-2", "NEW_TABLE-2"] {
        let map = MapData::from_pin(scene.folder.join(maps::TRANSLATIONS)).unwrap();
        map.pin(scene.folder.join(pin)).unwrap();
    }
    std::os::unix::fs::symlink("2-at-1", scene.folder.join("upgrade")).unwrap();
    drop(scene.start());
    assert!(scene.pins().iter().all(|pin| !pin.ends_with("-2") && pin != "upgrade"), "{:?}", scene.pins());
}

#[test]
fn a_missing_conversion_is_named_before_anything_is_touched() {
    let scene = Scene::new("missing");
    let before = scene.pins();
    for missing in [maps::ENDPOINTS, maps::TRANSLATIONS] {
        let others = CONVERSIONS.iter().filter(|conversion| conversion.table.name() != missing);
        let others: Vec<_> = others.cloned().collect();
        match pins::check(&scene.folder, &others) {
            Err(DataplaneError::NoConversion { table, found: 0, .. }) => assert_eq!(table, missing),
            other => panic!("{missing}: {other:?}"),
        }
    }
    pins::check(&scene.folder, CONVERSIONS).unwrap();
    assert_eq!(scene.pins(), before);
}

#[test]
fn a_layout_that_is_not_known_is_refused() {
    let scene = Scene::new("unknown");
    let before = scene.pins();
    for found in ["2", "99", "0-to-1"] {
        scene.set_layout(found);
        let refused = load::load(&config(), &[], Some(&scene.folder)).map(drop);
        assert!(matches!(&refused, Err(DataplaneError::Schema { .. })), "{found}: {refused:?}");
        assert_eq!(scene.pins(), before);
    }
    fs::remove_file(scene.folder.join("schema-version")).unwrap();
    let refused = load::load(&config(), &[], Some(&scene.folder)).map(drop);
    assert!(matches!(&refused, Err(DataplaneError::Schema { .. })), "maps without a number: {refused:?}");
}

fn open<V: aya::Pod, K: aya::Pod>(map: Map) -> HashMap<MapData, K, V>
where
    HashMap<MapData, K, V>: TryFrom<Map, Error = MapError>,
{
    map.try_into().unwrap()
}

fn config() -> abi::Config {
    abi::Config {
        mode: abi::MODE_DIRECT,
        link_addresses: abi::LINK_ADDRESSES_ANY,
        vni: VNI,
        vxlan_ifindex: 0,
        vxlan_port: Be16::new(VXLAN_PORT),
        snat_port_first: 32768,
        snat_port_last: 65535,
        node_port_first: 30000,
        node_port_last: 32767,
        ask: abi::ASK_EACH_DESTINATION,
        services: 0,
        reserved: 0,
        netns_cookie: 0,
    }
}

fn flow(port: u16) -> Flow {
    Flow::new(WORLD.into(), POD_A.into(), Be16::new(443), Be16::new(port), protocol::TCP)
}

fn seen(dataplane: &Dataplane, port: u16) -> Option<u64> {
    dataplane.maps.translations.get(&flow(port), 0).ok().map(|half| half.last_seen)
}
