//! Loaded programs that one test leaves to the next. The verifier takes longer than all that a test does, most of all where the
//! processor is emulated.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use aya::maps::{PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use podwire::dataplane::{Dataplane, load};
use podwire_common::abi::{Beginning, Config, Count, TABLE_STACK_FLOWS, TABLE_TRANSLATIONS};
use podwire_common::names::maps;

/// With what they were configured.
static IDLE: Mutex<Vec<(Config, Dataplane)>> = Mutex::new(Vec::new());

/// Loaded programs, their maps empty. When dropped, they wait for the next test that wants the same configuration.
pub struct Loaded {
    /// `None` only while it is dropped.
    dataplane: Option<Dataplane>,
    /// What to wait for; `None`: no other test may have them.
    config: Option<Config>,
}

impl Loaded {
    /// The embedded object.
    pub fn take(config: &Config) -> Self {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let found = idle.iter().position(|(other, _)| other == config);
        let found = found.map(|index| idle.swap_remove(index).1);
        drop(idle);
        let dataplane = found.unwrap_or_else(|| load::load(config, &[], None).unwrap());
        Self { dataplane: Some(dataplane), config: Some(*config) }
    }

    /// Has them end with this value: something is attached.
    pub fn keep(&mut self) {
        self.config = None;
    }
}

impl From<Dataplane> for Loaded {
    fn from(dataplane: Dataplane) -> Self {
        Self { dataplane: Some(dataplane), config: None }
    }
}

impl Deref for Loaded {
    type Target = Dataplane;

    fn deref(&self) -> &Dataplane {
        self.dataplane.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Loaded {
    fn deref_mut(&mut self) -> &mut Dataplane {
        self.dataplane.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let (Some(mut dataplane), Some(config)) = (self.dataplane.take(), self.config)
            && !std::thread::panicking()
        {
            empty(&mut dataplane);
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push((config, dataplane));
        }
    }
}

/// Removes every entry of these maps. Says their names.
macro_rules! remove_all {
    ($dataplane:ident: $($field:ident $name:ident,)*) => {{
        $(
            let keys: Vec<_> = $dataplane.maps.$field.keys().map(Result::unwrap).collect();
            for key in keys {
                $dataplane.maps.$field.remove(&key).unwrap();
            }
        )*
        [$(maps::$name),*]
    }};
}

/// Leaves what a new load has: but `GENERATION` and `EPOCHS` go on, as they do on a node.
fn empty(dataplane: &mut Dataplane) {
    let removed = remove_all! { dataplane:
        endpoints ENDPOINTS,
        guards EGRESS_GUARDS,
        nodes NODES,
        vteps VTEPS,
        tunnel_peers TUNNEL_PEERS,
        stack_flows STACK_FLOWS,
        fragments FRAGMENTS,
        translations TRANSLATIONS,
        inbound_flows INBOUND_FLOWS,
        non_masquerade NON_MASQUERADE,
        frontends FRONTENDS,
        redirected_sockets REDIRECTED_SOCKETS,
        flows FLOWS,
        uplinks UPLINKS,
    };
    empty_shares(dataplane);
    for counters in [&mut dataplane.maps.drops, &mut dataplane.maps.traffic] {
        for slot in 0..counters.len() {
            counters.set(slot, on_each_cpu(Count { packets: 0, bytes: 0 }), 0).unwrap();
        }
    }
    let noted = dataplane.ebpf.map_mut(maps::BEGINNINGS).expect("the agent does not take it");
    let mut noted = PerCpuArray::<_, [u8; size_of::<Beginning>()]>::try_from(noted).unwrap();
    noted.set(0, on_each_cpu([0; size_of::<Beginning>()]), 0).unwrap();
    let others = [
        maps::DROPS,
        maps::TRAFFIC,
        maps::BEGINNINGS,
        maps::GENERATION,
        maps::EPOCHS,
        maps::HOLDERS,
        maps::ROOM,
    ];
    for name in maps::ALL {
        assert!(
            removed.contains(&name) || others.contains(&name),
            "{name} is left as a test made it: empty it"
        );
    }
}

fn empty_shares(dataplane: &mut Dataplane) {
    let maps = &mut dataplane.maps;
    let holders: Vec<_> = maps.shares.holders.keys().map(Result::unwrap).collect();
    for holder in holders {
        maps.shares.holders.remove(&holder).unwrap();
    }
    let tables =
        [(TABLE_TRANSLATIONS, maps.translations_capacity), (TABLE_STACK_FLOWS, maps.stack_flows_capacity)];
    for (table, capacity) in tables {
        maps.shares.room.set(table.into(), u32::try_from(capacity).unwrap(), 0).unwrap();
    }
}

fn on_each_cpu<T: aya::Pod>(value: T) -> PerCpuValues<T> {
    PerCpuValues::try_from(vec![value; nr_cpus().unwrap()]).unwrap()
}
