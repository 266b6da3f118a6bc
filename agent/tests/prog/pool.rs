//! Loaded programs that one test leaves to the next. The verifier takes longer than all that a test does, most of all where the
//! processor is emulated.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use aya::maps::PerCpuValues;
use aya::util::nr_cpus;
use podwire::dataplane::maps::Maps;
use podwire::dataplane::{Dataplane, load};
use podwire_common::abi::Config;
use podwire_common::tables::{Share, Table};

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

/// Empties a map of a kind.
macro_rules! empty {
    // They go on, as they do on a node.
    (MappedArray $name:ident, $map:expr, $value:ty) => {};
    (Array $name:ident, $map:expr, $value:ty) => {
        for slot in 0..$map.len() {
            $map.set(slot, <$value>::default(), 0).unwrap();
        }
    };
    (PerCpuArray $name:ident, $map:expr, $value:ty) => {
        for slot in 0..$map.len() {
            $map.set(slot, on_each_cpu(<$value>::default()), 0).unwrap();
        }
    };
    ($hash:ident $name:ident, $map:expr, $value:ty) => {
        for key in $map.keys().map(Result::unwrap).collect::<Vec<_>>() {
            $map.remove(&key).unwrap();
        }
    };
}

macro_rules! empty_all {
    ($maps:ident $($owner:ident {
        $(#[doc = $doc:literal])+
        $name:ident, $field:ident, $variant:ident: $kind:ident<$key:ty, $value:ty>, $($sizes_and_shares:tt)*
    })*) => { $(empty!($kind $name, $maps.$field, $value);)* };
}

/// Leaves what a new load has: but `GENERATION` and `EPOCHS` go on, as they do on a node.
fn empty(dataplane: &mut Dataplane) {
    let maps = &mut dataplane.maps;
    podwire_common::tables!(empty_all, maps);
    empty_shares(maps);
}

/// Takes back what all holders have of the tables, as the programs have counted it.
pub fn empty_shares(maps: &mut Maps) {
    for holder in maps.holders.keys().map(Result::unwrap).collect::<Vec<_>>() {
        maps.holders.remove(&holder).unwrap();
    }
    for table in Table::ALL {
        if let Share::AsMuchAsIsFree(number) = table.row().share {
            let capacity = u32::try_from(maps.capacity(table)).unwrap();
            maps.room.set(number.into(), capacity, 0).unwrap();
        }
    }
}

fn on_each_cpu<T: aya::Pod>(value: T) -> PerCpuValues<T> {
    PerCpuValues::try_from(vec![value; nr_cpus().unwrap()]).unwrap()
}
