//! Typed access to the maps.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError, PerCpuArray};
use podwire_common::abi::{self, Count};
use podwire_common::names::maps as names;
use podwire_common::reason::{self, Drop};
use podwire_common::tables::{Owner, Share, Table};
use podwire_core::change::{Change, Value as _};
use podwire_core::slice::{Prefix, TableChange, Tables};

use super::batch;
use super::error::DataplaneError;
use super::flows::Fill;
use super::numbers::Numbers;
use super::pins;
use crate::files::FileError;

type Result<T, E = DataplaneError> = std::result::Result<T, E>;

/// The type of the handle for a kind of map.
macro_rules! handle {
    (LpmTrie, $key:ty, $value:ty) => { LpmTrie<MapData, $key, $value> };
    (MappedArray, $key:ty, $value:ty) => { Numbers<$value> };
    (Array, $key:ty, $value:ty) => { Array<MapData, $value> };
    (PerCpuArray, $key:ty, $value:ty) => { PerCpuArray<MapData, $value> };
    ($hash:ident, $key:ty, $value:ty) => { HashMap<MapData, $key, $value> };
}

/// aya's variant for a kind of map.
macro_rules! map_of_kind {
    (Hash) => {
        Map::HashMap
    };
    (LazyHash) => {
        Map::HashMap
    };
    (LruHash) => {
        Map::LruHashMap
    };
    (MappedArray) => {
        Map::Array
    };
    ($same_name:ident) => {
        Map::$same_name
    };
}

/// The type of a key as the map has it.
macro_rules! raw_key {
    (LpmTrie, $key:ty) => { Key<$key> };
    ($hash:ident, $key:ty) => { $key };
}

/// Converts a key of a map to the model's key.
macro_rules! key_from_map {
    (LpmTrie, $key:ident) => {
        Prefix { address: $key.data().into(), bits: $key.prefix_len() }
    };
    ($hash:ident, $key:ident) => {
        $key
    };
}

/// Converts a key of the model to the map's key.
macro_rules! key_to_map {
    (LpmTrie, $key:expr) => {
        Key::new($key.bits, $key.address.into())
    };
    ($hash:ident, $key:expr) => {
        $key
    };
}

macro_rules! handles {
    ($($owner:ident {
        $(#[doc = $doc:literal])+
        $name:ident, $field:ident, $variant:ident: $kind:ident<$key:ty, $value:ty>, $($sizes_and_shares:tt)*
    })*) => {
        /// Every map of the object.
        pub struct Maps {
            $(
                $(#[doc = $doc])+
                pub $field: handle!($kind, $key, $value),
            )*
            /// The most entries that fit into each map, in the order of [`Table::ALL`].
            capacities: [u32; Table::ALL.len()],
            /// Entries of each map that the agent fills, in the same order.
            entries: [AtomicUsize; Table::ALL.len()],
        }

        impl Maps {
            fn open(ebpf: &mut Ebpf) -> Result<Self> {
                $(let $field: handle!($kind, $key, $value) = take(ebpf, names::$name)?;)*
                let capacities = [$(capacity($field.map(), names::$name)?),*];
                Ok(Self { $($field,)* capacities, entries: Default::default() })
            }

            /// Opens the maps that an agent has pinned in a folder. The caller has checked their
            /// layout ([`pins::are_readable`]).
            ///
            /// # Errors
            /// [`DataplaneError::Map`].
            pub fn of_pins(folder: &Path) -> Result<Self> {
                $(
                    let $field = MapData::from_pin(pins::map(folder, Table::$variant));
                    let $field = map_of_kind!($kind)($field.map_err(map_error("open", names::$name))?);
                    let $field: handle!($kind, $key, $value) =
                        $field.try_into().map_err(map_error("open", names::$name))?;
                )*
                let capacities = [$(capacity($field.map(), names::$name)?),*];
                Ok(Self { $($field,)* capacities, entries: Default::default() })
            }

            /// Opens further handles of the same maps.
            ///
            /// # Errors
            /// [`DataplaneError::Map`].
            pub(crate) fn another(&self) -> Result<Self> {
                $(
                    let $field = map_of_kind!($kind)(reopen(self.$field.map(), names::$name)?);
                    let $field = $field.try_into().map_err(map_error("open", names::$name))?;
                )*
                Ok(Self { $($field,)* capacities: self.capacities, entries: Default::default() })
            }

            /// Returns the map of a table.
            pub(super) fn map(&self, table: Table) -> &MapData {
                match table {
                    $(Table::$variant => self.$field.map(),)*
                }
            }
        }
    };
}

podwire_common::tables!(handles);

/// The programs' counters, summed over all CPUs.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// By reason.
    pub drops: Vec<(Drop, Count)>,
    /// By path.
    pub traffic: Vec<(reason::Path, Count)>,
}

impl Maps {
    /// Takes the maps out of a loaded object. The maps must live until the object's programs are
    /// loaded.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut maps = Self::open(ebpf)?;
        for table in Table::ALL {
            if let Share::AsMuchAsIsFree(number) = table.row().share {
                let capacity = maps.capacity(table);
                maps.begin_shares(number, capacity)?;
            }
        }
        Ok(maps)
    }

    /// Returns how many entries fit into a table.
    pub fn capacity(&self, table: Table) -> usize {
        self.capacities[table as usize] as usize
    }

    /// Returns the present content of the tables that the agent fills.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn contents(&self) -> Result<Tables> {
        self.differences(&mut Tables::default())
    }

    /// Returns the entries of these tables that are not as wanted. Removes from `want` what is there
    /// already, so that a large table is in memory only once.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn differences(&self, want: &mut Tables) -> Result<Tables> {
        let mut found = Tables::default();
        macro_rules! read {
            ($($owner:ident {
                $(#[doc = $doc:literal])+
                $name:ident, $field:ident, $variant:ident: $kind:ident<$key:ty, $value:ty>, $($sizes_and_rank:tt)*
            })*) => { $(
                let mut entries = 0;
                let walk = batch::for_each(
                    self.$field.map().fd().as_fd(),
                    |key: &raw_key!($kind, $key), value: &$value| {
                        let key = *key;
                        let key = key_from_map!($kind, key);
                        entries += 1;
                        if want.$field.get(&key).is_some_and(|wanted| wanted.keeping(value) == *value) {
                            want.$field.remove(&key);
                        } else {
                            found.$field.insert(key, *value);
                        }
                    },
                );
                walk.map_err(|error| map_error("read", names::$name)(error.into()))?;
                self.entries[Table::$variant as usize].store(entries, Ordering::Relaxed);
            )* };
        }
        podwire_common::agent_tables!(read);
        Ok(found)
    }

    /// Returns the entries of [`Self::contents`] with the keys of `wanted`.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn entries_of(&self, wanted: &Tables) -> Result<Tables> {
        let mut contents = Tables::default();
        macro_rules! read {
            ($($owner:ident {
                $(#[doc = $doc:literal])+
                $name:ident, $field:ident, $variant:ident: $kind:ident<$key:ty, $value:ty>, $($sizes_and_rank:tt)*
            })*) => { $(
                for key in wanted.$field.keys() {
                    match self.$field.get(&key_to_map!($kind, *key), 0) {
                        Ok(value) => drop(contents.$field.insert(*key, value)),
                        Err(MapError::KeyNotFound) => {}
                        Err(source) => return Err(map_error("read", names::$name)(source)),
                    }
                }
            )* };
        }
        podwire_common::agent_tables!(read);
        Ok(contents)
    }

    /// Applies a change. The programs forget the known flows that it makes stale, and no others.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn apply(&mut self, change: &TableChange) -> Result<()> {
        self.write(change)?;
        self.count(change);
        self.forget_after(change);
        Ok(())
    }

    /// Returns the fill level of the tables that the agent fills, as of the last reading and all
    /// changes since. Walking the tables would cost more than everything else that an agent at rest
    /// does.
    pub fn fill(&self) -> BTreeMap<Table, Fill> {
        let agents = Table::ALL.into_iter().filter(|table| table.row().owner == Owner::Agent);
        let entries = |table| self.entries[table as usize].load(Ordering::Relaxed);
        agents
            .map(|table| (table, Fill { entries: entries(table), capacity: self.capacity(table) }))
            .collect()
    }

    fn count(&self, change: &TableChange) {
        let entries = &self.entries[change.table() as usize];
        let before = entries.load(Ordering::Relaxed);
        if change.is_addition() {
            entries.store(before + 1, Ordering::Relaxed);
        } else if change.is_removal() {
            entries.store(before.saturating_sub(1), Ordering::Relaxed);
        }
    }

    fn write(&mut self, change: &TableChange) -> Result<()> {
        macro_rules! write_entry {
            ($($owner:ident {
                $(#[doc = $doc:literal])+
                $name:ident, $field:ident, $variant:ident: $kind:ident<$key:ty, $value:ty>, $($sizes_and_rank:tt)*
            })*) => {
                match change { $(
                    TableChange::$variant(Change { key, now, .. }) => {
                        let key = key_to_map!($kind, *key);
                        match now {
                            Some(value) => write(self.$field.insert(&key, value, 0), names::$name),
                            None => remove(self.$field.remove(&key), names::$name),
                        }
                    }
                )* }
            };
        }
        podwire_common::agent_tables!(write_entry)
    }

    /// Returns the entry of an endpoint.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn endpoint(&self, address: IpAddr) -> Result<Option<abi::Endpoint>> {
        found(self.endpoints.get(&address.into(), 0), names::ENDPOINTS)
    }

    /// Returns the programs' counters.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn counters(&self) -> Result<Counters> {
        let drops =
            Drop::ALL.iter().map(|reason| Ok((*reason, sum(&self.drops, *reason as u32, names::DROPS)?)));
        let traffic = reason::Path::ALL
            .iter()
            .map(|path| Ok((*path, sum(&self.traffic, *path as u32, names::TRAFFIC)?)));
        Ok(Counters { drops: drops.collect::<Result<_>>()?, traffic: traffic.collect::<Result<_>>()? })
    }
}

/// Takes a map out of the loaded object.
///
/// # Errors
/// [`DataplaneError::Load`], [`DataplaneError::Map`].
pub(super) fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or_else(|| missing(name))?;
    T::try_from(map).map_err(map_error("open", name))
}

fn reopen(map: &MapData, name: &'static str) -> Result<MapData> {
    let file =
        map.fd().as_fd().try_clone_to_owned().map_err(FileError::of("open another handle of map", name))?;
    MapData::from_fd(file).map_err(map_error("open", name))
}

fn capacity(map: &MapData, name: &'static str) -> Result<u32> {
    Ok(map.info().map_err(map_error("look up", name))?.max_entries())
}

fn sum(array: &PerCpuArray<MapData, Count>, index: u32, name: &'static str) -> Result<Count> {
    let values = array.get(&index, 0).map_err(map_error("read", name))?;
    Ok(values.iter().fold(Count::default(), |sum, value| Count {
        packets: sum.packets.wrapping_add(value.packets),
        bytes: sum.bytes.wrapping_add(value.bytes),
    }))
}

pub(super) fn missing(name: &str) -> DataplaneError {
    DataplaneError::load(name)("the embedded object has no such map")
}

pub(super) fn map_error(
    operation: &'static str,
    map: &'static str,
) -> impl FnOnce(MapError) -> DataplaneError {
    move |source| DataplaneError::Map { operation, map, source }
}

fn write(result: Result<(), MapError>, map: &'static str) -> Result<()> {
    result.map_err(map_error("write", map))
}

/// Returns the entry that a lookup found. `None`: there is no such entry.
pub(super) fn found<V>(looked_up: Result<V, MapError>, map: &'static str) -> Result<Option<V>> {
    match looked_up {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(source) => Err(map_error("read", map)(source)),
    }
}

/// Accepts a removal that found no entry: a program may have removed it first.
pub(super) fn remove(result: Result<(), MapError>, map: &'static str) -> Result<()> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(map_error("remove from", map)),
    }
}
