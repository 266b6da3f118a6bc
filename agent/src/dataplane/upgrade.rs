//! Takes over pinned maps of an earlier layout, with their entries.
//!
//! 1. The agent makes the tables that its layout has changed, and fills them from the earlier ones.
//!    The earlier programs forward in the meantime.
//! 2. The agent replaces all programs.
//! 3. The agent carries over what the earlier programs have written since step 1, and writes down
//!    that its own layout counts. Then it removes the earlier pins ([`pins::finish_upgrade`]).
//!
//! Until step 3, an earlier release finds its own maps as it left them. If the agent is killed in
//! between, the next one carries over what was written since the last time.

use std::mem::offset_of;
use std::path::Path;

use aya::maps::MapData;
use podwire_common::abi::{self, ENDPOINT_STACK_ONLY, InboundFlow, SCHEMA_VERSION, StackFlow, Translation};
use podwire_common::names::maps as names;
use podwire_common::tables::{Owner, Table};
use tracing::{info, warn};

use super::conversions::{Conversion, Entry, conversion};
use super::error::DataplaneError;
use super::maps::{Maps, map_error};
use super::pins::Earlier;
use super::{Dataplane, batch, pins};
use crate::files::{FileError, absent_is_fine};
use crate::housekeeping;

/// An upgrade that has not ended.
pub(super) struct Upgrade {
    tables: Vec<Changed>,
    /// Entries last used before this time are already carried over (`CLOCK_MONOTONIC`,
    /// nanoseconds). `None`: no entry is.
    since: Option<u64>,
    carried: usize,
}

/// A table with another layout than before.
struct Changed {
    table: Table,
    earlier: MapData,
    conversion: &'static Conversion,
    /// Entries that the new map had no room for.
    left_behind: usize,
}

impl Upgrade {
    /// Opens the earlier maps. Call this before the new maps are made. It removes maps that an
    /// earlier attempt made but did not fill; no program uses them.
    ///
    /// # Errors
    /// [`DataplaneError::NoConversion`], [`DataplaneError::Map`], [`DataplaneError::File`].
    pub(super) fn begin(
        folder: &Path,
        earlier: Vec<Earlier>,
        conversions: &'static [Conversion],
    ) -> Result<Self, DataplaneError> {
        let since = pins::filled_until(folder)?;
        let mut tables = Vec::new();
        for Earlier { table, layout, path } in earlier {
            if since.is_none() {
                let begun = pins::map(folder, table);
                absent_is_fine(std::fs::remove_file(&begun)).map_err(FileError::of("remove", begun))?;
            }
            if table.is_carried_over() {
                let conversion = conversion(conversions, table, layout).ok_or_else(|| {
                    DataplaneError::NoConversion { path: folder.into(), found: layout, table: table.name() }
                })?;
                let earlier = MapData::from_pin(path).map_err(map_error("open the earlier", table.name()))?;
                tables.push(Changed { table, earlier, conversion, left_behind: 0 });
            }
        }
        info!("the pinned maps have an earlier layout: the agent takes them over");
        Ok(Self { tables, since, carried: 0 })
    }

    /// Carries over the remaining entries, and writes down the time up to which the new maps are
    /// filled.
    ///
    /// # Errors
    /// [`DataplaneError::Map`], [`DataplaneError::File`].
    pub(super) fn carry_over(&mut self, folder: &Path, maps: &mut Maps) -> Result<(), DataplaneError> {
        let now = housekeeping::now();
        for changed in &mut self.tables {
            self.carried += match (changed.table.row().owner, self.since) {
                // After the first pass, this agent wrote only to its own map, so the earlier map
                // has no new entries. But the earlier programs may have set marks in it.
                (Owner::Agent, Some(_)) => changed.carry_marks_over(maps)?,
                (_, since) => changed.carry_over(maps, since.unwrap_or(0))?,
            };
        }
        pins::note_filled(folder, now)?;
        self.since = Some(now);
        Ok(())
    }
}

impl Changed {
    /// Carries over the entries last used at `since` or later, and those of tables that record no
    /// time. Returns how many it wrote.
    fn carry_over(&mut self, maps: &Maps, since: u64) -> Result<usize, DataplaneError> {
        let map = maps.map(self.table);
        let mut carried = 0;
        for (key, value) in self.entries()? {
            let seen = last_seen(self.table, &value);
            if seen.is_some_and(|seen| seen < since) {
                continue;
            }
            let there = batch::get(map, &key).map_err(map_error("read", self.table.name()))?;
            // The new programs have used the entry, too: keep theirs, it is at least as recent.
            if there.is_some_and(|there| last_seen(self.table, &there) >= seen) {
                continue;
            }
            match batch::set(map, &key, &value) {
                Ok(()) => carried += 1,
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => self.left_behind += 1,
                Err(error) => return Err(map_error("write", self.table.name())(error.into())),
            }
        }
        Ok(carried)
    }

    /// Carries over what programs write into entries of the agent: the marks of the pods that use
    /// only the stack.
    fn carry_marks_over(&self, maps: &mut Maps) -> Result<usize, DataplaneError> {
        if self.table != Table::Endpoints {
            return Ok(0);
        }
        let mut carried = 0;
        for (key, value) in self.entries()? {
            let field = |at: usize| value.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
            let id = field(offset_of!(abi::Endpoint, id));
            let is_marked = field(offset_of!(abi::Endpoint, flags)).unwrap_or(0) & ENDPOINT_STACK_ONLY != 0;
            let address = key.try_into().map(|bytes| podwire_common::addr::Addr { bytes });
            let (true, Ok(address)) = (is_marked, address) else { continue };
            let Ok(mut there) = maps.endpoints.get(&address, 0) else { continue };
            if Some(there.id) == id && there.flags & ENDPOINT_STACK_ONLY == 0 {
                there.flags |= ENDPOINT_STACK_ONLY;
                maps.endpoints.insert(address, there, 0).map_err(map_error("write", names::ENDPOINTS))?;
                carried += 1;
            }
        }
        Ok(carried)
    }

    /// Returns the entries of the earlier map, converted.
    fn entries(&self) -> Result<Vec<Entry>, DataplaneError> {
        let mut entries = Vec::new();
        batch::for_each_raw(&self.earlier, |key, value| entries.extend((self.conversion.entry)(key, value)))
            .map_err(map_error("read the earlier", self.table.name()))?;
        Ok(entries)
    }
}

/// Returns when an entry was last used. `None`: the table does not record it.
fn last_seen(table: Table, value: &[u8]) -> Option<u64> {
    let at = match table {
        Table::StackFlows => offset_of!(StackFlow, last_seen),
        Table::InboundFlows => offset_of!(InboundFlow, last_seen),
        Table::Translations => offset_of!(Translation, last_seen),
        _ => return None,
    };
    value.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes)
}

impl Dataplane {
    /// Ends an upgrade, if there is one. Call this when every device has the new programs.
    ///
    /// # Errors
    /// [`DataplaneError::Map`], [`DataplaneError::File`]: the upgrade has not ended.
    pub fn finish_upgrade(&mut self) -> Result<(), DataplaneError> {
        let (Some(upgrade), Some(folder)) = (&mut self.upgrade, &self.bpf_dir) else {
            return Ok(());
        };
        upgrade.carry_over(folder, &mut self.maps)?;
        pins::finish_upgrade(folder)?;
        info!(
            layout = SCHEMA_VERSION,
            entries = upgrade.carried,
            "the agent has taken over the maps of the earlier layout"
        );
        for changed in upgrade.tables.iter().filter(|changed| changed.left_behind > 0) {
            let option =
                changed.table.row().option.map(|field| format!(": raise --{}", field.replace('_', "-")));
            warn!(
                map = changed.table.name(),
                entries = changed.left_behind,
                "the new map has no room for these entries, so their flows end{}",
                option.unwrap_or_default()
            );
        }
        self.upgrade = None;
        self.maps.forget_flows();
        Ok(())
    }
}
