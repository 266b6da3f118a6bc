//! The build of the programs that counts helper calls.

use std::collections::BTreeMap;

use aya::maps::{Array, MapData};
use podwire::dataplane::{Dataplane, load};
use podwire_common::abi;
use podwire_common::helper::{HELPER_CALLS, HELPER_SLOTS, Helper};
use podwire_common::reason::{Drop as Reason, Path};

use crate::fixture::Fixture;
use crate::kind::Kind;
use crate::pool::{Build, Loaded};

/// The object that `cargo xtask test` builds.
const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/podwire-ebpf-count-helpers");

/// Calls by the helper's name.
pub type Calls = BTreeMap<String, u64>;

/// Takes idle programs of this build, or loads the object as the agent loads its own.
pub fn take(config: &abi::Config) -> Loaded {
    Loaded::take_or(Build::Counting, config, || {
        let object = std::fs::read(OBJECT)
            .unwrap_or_else(|error| panic!("read {OBJECT}: {error}: `cargo xtask test` builds it"));
        load::load_object(&object, config, &[], None).unwrap()
    })
}

/// Calls by [`Helper`].
pub struct Counts([u64; HELPER_SLOTS]);

impl Counts {
    /// Reads all counts of the programs.
    fn read(loaded: &Dataplane) -> Self {
        let map = loaded.ebpf.map(HELPER_CALLS).expect("the object counts helper calls");
        Self(Array::<&MapData, _>::try_from(map).unwrap().get(&0, 0).unwrap())
    }

    /// Counts the calls for one packet. Asserts that the packet is counted under its kind's path,
    /// and that further packets of its kind cause the same calls.
    pub fn of(kind: &Kind, node: &mut Fixture) -> Self {
        const MORE: u64 = 3;
        let (calls, more, ways) = kind.on(node).fresh(|ready| {
            // The packet that changes the state of its flow costs more than the packets after it.
            if !kind.is_first {
                ready.send(1);
            }
            let (ways, before) = (ready.node.counters(), Self::read(&ready.node.loaded));
            ready.send(1);
            let one = Self::read(&ready.node.loaded);
            ready.send(MORE as usize);
            let (mut ways_after, after) = (ready.node.counters(), Self::read(&ready.node.loaded));
            ways_after.retain(|name, packets| ways.get(name) != Some(packets));
            (one.since(&before), after.since(&one), ways_after.into_keys().collect::<Vec<_>>())
        });
        let repeated = calls.0.map(|count| count * MORE);
        assert_eq!(more.0, repeated, "{}: {}: calls for {MORE} more packets", kind.program, kind.name);
        let path = kind.path.map(Path::name).or(kind.drop.map(Reason::name));
        let meant: Vec<_> = path.into_iter().map(str::to_owned).collect();
        assert_eq!(ways, meant, "{}: {}: the packet's path", kind.program, kind.name);
        calls
    }

    fn since(&self, before: &Self) -> Self {
        Self(std::array::from_fn(|slot| self.0[slot] - before.0[slot]))
    }

    /// Returns the number of calls of some helpers.
    pub fn sum(&self, of: impl Fn(Helper) -> bool) -> u64 {
        Helper::ALL.iter().filter(|helper| of(**helper)).map(|helper| self.0[*helper as usize]).sum()
    }

    /// Returns the calls by name, without helpers that were not called.
    pub fn by_name(&self) -> Calls {
        let all = Helper::ALL.iter().map(|helper| (helper.name().to_owned(), self.0[*helper as usize]));
        all.filter(|(_, calls)| *calls > 0).collect()
    }
}
