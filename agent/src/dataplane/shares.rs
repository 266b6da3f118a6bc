//! Counts each holder's entries in the tables that never evict. The agent counts exactly, once a
//! round; between two rounds the programs keep the counts.

use std::collections::BTreeMap;

use podwire_common::abi::Holder;
use podwire_common::names::maps as names;

use super::error::DataplaneError;
use super::flows::matching;
use super::maps::{Maps, map_error, remove};
use crate::housekeeping;

/// The number of one table's entries for each holder.
#[derive(Debug, Default)]
pub(super) struct Tally {
    held: BTreeMap<Holder, u32>,
}

impl Tally {
    pub(super) fn add(&mut self, holder: Holder) {
        *self.held.entry(holder).or_default() += 1;
    }

    pub(super) fn subtract(&mut self, holder: Holder) {
        if let Some(held) = self.held.get_mut(&holder) {
            *held = held.saturating_sub(1);
        }
    }

    /// Returns the number of entries in the table.
    pub(super) fn total(&self) -> usize {
        self.held.values().map(|held| *held as usize).sum()
    }

    /// Returns the holders that have nearly used up their share.
    pub(super) fn crowded(&self, capacity: usize) -> impl Iterator<Item = Holder> {
        let room = capacity.saturating_sub(self.total());
        let crowded = move |held: u32| !housekeeping::has_room(held as usize, room);
        self.held.iter().filter(move |(_, held)| crowded(**held)).map(|(holder, _)| *holder)
    }
}

impl Maps {
    /// Replaces the counts that the programs keep for a table of `capacity` entries.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub(super) fn write_shares(
        &mut self,
        table: u8,
        tally: &Tally,
        capacity: usize,
    ) -> Result<(), DataplaneError> {
        let known: Vec<Holder> =
            self.holders.keys().filter_map(Result::ok).filter(|holder| holder.table == table).collect();
        for holder in known.iter().filter(|holder| tally.held.get(holder).is_none_or(|held| *held == 0)) {
            remove(self.holders.remove(holder), names::HOLDERS)?;
        }
        for (holder, held) in tally.held.iter().filter(|(_, held)| **held > 0) {
            self.holders.insert(holder, held, 0).map_err(map_error("write", names::HOLDERS))?;
        }
        let room = capacity.saturating_sub(tally.total());
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        self.room.set(table.into(), room, 0).map_err(map_error("write", names::ROOM))
    }

    /// Corrects the counts after the agent has removed entries.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub(super) fn give_back(&mut self, table: u8, removed: &Tally) -> Result<(), DataplaneError> {
        for (holder, entries) in &removed.held {
            let held = self.holders.get(holder, 0).unwrap_or_default();
            if held > *entries {
                let left = held - entries;
                self.holders.insert(holder, left, 0).map_err(map_error("write", names::HOLDERS))?;
            } else {
                remove(self.holders.remove(holder), names::HOLDERS)?;
            }
        }
        let room = self.room_of(table)?;
        let more = u32::try_from(removed.total()).unwrap_or(u32::MAX);
        self.room.set(table.into(), room.saturating_add(more), 0).map_err(map_error("write", names::ROOM))
    }

    /// Returns the holders of a table, and how many entries each has.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn holders_of(&self, table: u8) -> Result<Vec<(Holder, u32)>, DataplaneError> {
        matching(&self.holders, names::HOLDERS, |holder, _| holder.table == table)
    }

    /// Returns the number of free entries of a table, as the programs count them.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn room_of(&self, table: u8) -> Result<u32, DataplaneError> {
        self.room.get(&table.into(), 0).map_err(map_error("read", names::ROOM))
    }

    /// Returns whether a holder has much of its share left.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub(super) fn has_share_left(&self, holder: &Holder) -> Result<bool, DataplaneError> {
        let held = self.holders.get(holder, 0).unwrap_or_default();
        let room = self.room_of(holder.table)?;
        Ok(housekeeping::has_room(held as usize, room as usize))
    }

    /// Writes how many entries fit into a table, unless the programs already count for it.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub(super) fn begin_shares(&mut self, table: u8, capacity: usize) -> Result<(), DataplaneError> {
        let room = self.room_of(table)?;
        // A full table also has 0 here. The next count corrects the value that is written for it.
        if room > 0 {
            return Ok(());
        }
        self.write_shares(table, &Tally::default(), capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwire_common::abi::TABLE_TRANSLATIONS;
    use podwire_common::addr::{Addr, Be16};

    fn holder(last: u8) -> Holder {
        let address = Addr::from_v4([10, 244, 1, last]);
        Holder { address, port: Be16::ZERO, protocol: 0, table: TABLE_TRANSLATIONS }
    }

    #[test]
    fn crowded_is_who_has_three_quarters_of_what_is_free() {
        let mut tally = Tally::default();
        (0..43).for_each(|_| tally.add(holder(1)));
        tally.add(holder(2));
        assert_eq!(tally.total(), 44);
        assert_eq!(tally.crowded(100).collect::<Vec<_>>(), [holder(1)]);
        assert_eq!(tally.crowded(200).count(), 0);
        tally.subtract(holder(1));
        assert_eq!(tally.crowded(101).count(), 0, "42 of 58");
    }
}
