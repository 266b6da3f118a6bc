//! The sizes of the maps, and the memory that they need.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::{fs, io};

use aya::maps::MapData;
use podwire_common::tables::{Owner, Table};
use tracing::{info, warn};

use super::error::DataplaneError;
use super::maps::{Maps, map_error};
use crate::files::FileError;

/// Bytes of a hash element beside key and value: links, hash, reference (`struct htab_elem`,
/// kernel/bpf/hashtab.c), and a pointer of the allocator (kernel/bpf/memalloc.c).
const ELEMENT: u64 = 48 + 8;
/// Bytes of a bucket (`struct bucket`).
const BUCKET: u64 = 16;

impl Maps {
    /// Logs size and memory of each map that an option sizes or that traffic fills. A pinned map
    /// keeps the size that it was made with. If the options ask for another size, the log says what
    /// to do.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn print_sizes(&self, asked: &[(&'static str, u32)]) -> Result<(), DataplaneError> {
        for table in Table::ALL.into_iter().filter(|table| is_worth_a_line(*table)) {
            let name = table.name();
            let map = self.map(table).info().map_err(map_error("look up", name))?;
            let entries = map.max_entries();
            let mebibytes = bytes_when_full(map.key_size(), map.value_size(), entries).div_ceil(1 << 20);
            info!(map = name, entries, "up to {mebibytes} MiB of kernel memory");
            if let Some((_, wanted)) =
                asked.iter().find(|(asked, wanted)| *asked == name && *wanted != entries)
            {
                warn!(
                    map = name,
                    entries,
                    "the options ask for {wanted} entries, but the pinned map keeps its entries and its size until the node restarts"
                );
            }
        }
        Ok(())
    }

    /// Returns the memory of each table in bytes, as the kernel counts it.
    ///
    /// # Errors
    /// [`DataplaneError::File`].
    pub fn memory(&self) -> Result<BTreeMap<Table, u64>, DataplaneError> {
        Table::ALL.into_iter().map(|table| Ok((table, memory_of(self.map(table))?))).collect()
    }
}

/// Returns `memlock` of a map's descriptor. Since Linux 6.4 these are the bytes that the map has
/// now, before that an estimate from its size.
fn memory_of(map: &MapData) -> Result<u64, FileError> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).map_err(FileError::of("read", &path))?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
    bytes.ok_or_else(|| FileError::of("find memlock in", path)(io::ErrorKind::InvalidData.into()))
}

/// Returns whether an option sizes a table, or traffic fills it.
fn is_worth_a_line(table: Table) -> bool {
    let row = table.row();
    row.kind.fills() && (row.option.is_some() || row.owner == Owner::Programs)
}

/// Returns an upper limit, in bytes, for the memory of a hash map with every entry used. The kernel
/// takes elements out of caches of a few sizes (kmalloc).
fn bytes_when_full(key: u32, value: u32, entries: u32) -> u64 {
    const CACHES: [u64; 11] = [16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096];
    let element = ELEMENT + u64::from(key).next_multiple_of(8) + u64::from(value).next_multiple_of(8);
    let element = CACHES.into_iter().find(|cache| element <= *cache).unwrap_or(element);
    u64::from(entries) * element + u64::from(entries).next_power_of_two() * BUCKET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_less_is_said_than_the_kernel_counts() {
        // `memlock` in /proc/PID/fdinfo of full maps, Linux 6.18: STACK_FLOWS, TRANSLATIONS.
        for (value, entries, counted) in [(8, 131_072, 15_729_536), (56, 262_144, 44_041_088)] {
            let said = bytes_when_full(40, value, entries);
            assert!((counted..counted * 3 / 2).contains(&said), "{said} for {counted}");
        }
    }
}
