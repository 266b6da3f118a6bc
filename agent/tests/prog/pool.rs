//! Loaded programs that one test passes on to the next. The verifier takes longer than a test does,
//! most of all on an emulated CPU.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use aya::Ebpf;
use aya::maps::{Array, PerCpuValues};
use aya::util::nr_cpus;
use podwire::dataplane::maps::Maps;
use podwire::dataplane::{Dataplane, load};
use podwire_common::abi::Config;
use podwire_common::event::Listening;
use podwire_common::names::LISTENING;
use podwire_common::tables::{Share, Table};

/// Idle programs.
static IDLE: Mutex<Vec<(Kind, Dataplane)>> = Mutex::new(Vec::new());

/// A build of the programs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// The object in the agent.
    Embedded,
    /// The build that counts helper calls.
    Counting,
}

/// What a test asks for.
type Kind = (Build, Config);

/// Loaded programs with empty maps. When dropped, they wait for the next test that asks for the
/// same.
pub struct Loaded {
    /// `None` only during the drop.
    dataplane: Option<Dataplane>,
    /// `None`: no other test may take them.
    kind: Option<Kind>,
}

impl Loaded {
    /// Takes idle programs of the embedded object with this configuration, or loads them.
    pub fn take(config: &Config) -> Self {
        Self::take_or(Build::Embedded, config, || load::load(config, &[], None).unwrap())
    }

    /// Takes idle programs of this kind, or loads them.
    pub fn take_or(build: Build, config: &Config, load: impl FnOnce() -> Dataplane) -> Self {
        let kind = (build, *config);
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let found = idle.iter().position(|(other, _)| *other == kind);
        let found = found.map(|index| idle.swap_remove(index).1);
        drop(idle);
        let dataplane = found.unwrap_or_else(load);
        Self { dataplane: Some(dataplane), kind: Some(kind) }
    }

    /// Keeps other tests from using these programs. They end with this value.
    pub fn keep(&mut self) {
        self.kind = None;
    }
}

impl From<Dataplane> for Loaded {
    fn from(dataplane: Dataplane) -> Self {
        Self { dataplane: Some(dataplane), kind: None }
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
        if let (Some(mut dataplane), Some(kind)) = (self.dataplane.take(), self.kind)
            && !std::thread::panicking()
        {
            empty(&mut dataplane);
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push((kind, dataplane));
        }
    }
}

/// Empties a map, by its kind.
macro_rules! empty {
    // `GENERATION` and `EPOCHS` keep their numbers, as they do on a node.
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

/// Brings maps to the state of a new load. Only `GENERATION` and `EPOCHS` keep their numbers, as
/// they do on a node.
fn empty(dataplane: &mut Dataplane) {
    set_listening(&mut dataplane.ebpf, &Listening::NOBODY);
    let maps = &mut dataplane.maps;
    podwire_common::tables!(empty_all, maps);
    empty_shares(maps);
}

/// Sets which events of loaded programs somebody wants.
pub fn set_listening(ebpf: &mut Ebpf, wanted: &Listening) {
    let section = ebpf.map_mut(LISTENING).unwrap();
    let mut section: Array<_, Listening> = section.try_into().unwrap();
    section.set(0, wanted, 0).unwrap();
}

/// Resets the programs' counts of entries by holder and of free entries.
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
