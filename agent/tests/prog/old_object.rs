//! The BPF object of the layout before (`testdata/schema-2`), loaded as an agent of that time did.

use std::fs;
use std::path::Path;

use aya::maps::{HashMap, MapData};
use aya::{Ebpf, EbpfLoader};
use podwire_common::abi;
use podwire_common::addr::Be16;
use podwire_common::names::{self, VNI, VXLAN_PORT, maps};

const OBJECT: &str = "../testdata/schema-2/podwire-ebpf";

/// Maps whose values or keys had another layout, or other contents.
pub const CHANGED: [&str; 4] = [maps::ENDPOINTS, maps::TRANSLATIONS, maps::FLOWS, maps::BEGINNINGS];

pub type OldEndpoints = HashMap<MapData, [u8; 16], [u8; 40]>;
pub type OldTranslations = HashMap<MapData, [u8; 40], [u8; 56]>;

/// With its maps pinned in the folder; those that are there already are used again. The folder says so.
pub fn load(folder: &Path, config: &abi::Config) -> Ebpf {
    let mut loader = EbpfLoader::new();
    loader.override_global(names::CONFIG, config, true);
    for (name, entries) in [
        (maps::TRANSLATIONS, 262_144),
        (maps::STACK_FLOWS, 131_072),
        (maps::FRAGMENTS, 8192),
        (maps::INBOUND_FLOWS, 16_384),
    ] {
        loader.map_max_entries(name, entries);
    }
    for name in maps::ALL {
        loader.map_pin_path(name, folder.join(name));
    }
    let old = loader.load(&fs::read(OBJECT).unwrap()).unwrap();
    let version = folder.join("schema-version");
    let _ = fs::remove_file(&version);
    std::os::unix::fs::symlink("2", version).unwrap();
    old
}

/// What the programs of that time are told, too.
pub fn config(mode: u32, vxlan_ifindex: u32) -> abi::Config {
    abi::Config {
        mode,
        vni: VNI,
        vxlan_ifindex,
        vxlan_port: Be16::new(VXLAN_PORT),
        snat_port_first: 32768,
        snat_port_last: 65535,
        node_port_first: 30000,
        node_port_last: 32767,
        ask: abi::ASK_EACH_DESTINATION,
        netns_cookie: 0,
    }
}

/// The map of a name, which the object gives away once.
pub fn map<T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(old: &mut Ebpf, name: &str) -> T {
    T::try_from(old.take_map(name).unwrap()).unwrap()
}

/// A value of today's layout as it was: without the MTU.
pub fn old_endpoint(value: &[u8]) -> [u8; 40] {
    [&value[..12], &value[16..]].concat().try_into().unwrap()
}

/// The same: without the time of asking, which came after the link, and with less padding at the end.
pub fn old_translation(value: &[u8]) -> [u8; 56] {
    [&value[..48], &value[52..60]].concat().try_into().unwrap()
}
