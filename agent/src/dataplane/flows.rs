//! Flows and translations: the programs write them, and the agent removes stale ones.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd as _;

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, IterableMap as _, MapData, MapError};
use podwire_common::abi::{
    ENDPOINT_STACK_ONLY, Flow, Holder, StackFlow, TABLE_STACK_FLOWS, TABLE_TRANSLATIONS,
};
use podwire_common::addr::Addr;
use podwire_common::flow::can_go_direct;
use podwire_common::names::maps as names;
use podwire_common::nat;
use podwire_common::tables::{Owner, Table};
use tracing::{info, warn};

use super::batch;
use super::error::DataplaneError;
use super::maps::{Maps, map_error, remove};
use super::shares::Tally;
use crate::conntrack::Conntrack;
use crate::housekeeping;

impl Maps {
    /// Removes every flow and translation of pods. Packets that still arrive for the addresses then
    /// belong to no pod, and new pods with the addresses start without old state. Walks each table
    /// once; the time depends on how full the tables are: 70 ms for 200,000 entries.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn forget_pods(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), DataplaneError> {
        let addresses: BTreeSet<_> = addresses.iter().copied().map(Addr::from).collect();
        let concerns =
            |flow: &Flow| addresses.contains(&flow.source) || addresses.contains(&flow.destination);
        let flows = matching(&self.stack_flows, names::STACK_FLOWS, |flow, _| concerns(flow))?;
        let pods = pods(self).into_iter().chain(addresses.iter().copied()).collect();
        let mut removed = Tally::default();
        for (flow, _) in &flows {
            remove(self.stack_flows.remove(flow), names::STACK_FLOWS)?;
            removed.add(holder_of(flow, &pods));
        }
        self.give_back(TABLE_STACK_FLOWS, &removed)?;
        // The pods' known flows became stale when their entries of `ENDPOINTS` were removed.
        self.remove_translations(&addresses)?;
        let inbound = matching(&self.inbound_flows, names::INBOUND_FLOWS, |flow, _| concerns(flow))?;
        for (flow, _) in &inbound {
            remove(self.inbound_flows.remove(flow), names::INBOUND_FLOWS)?;
        }
        Ok(())
    }

    /// Removes every translation of an address that this node has lost. Then makes the programs
    /// forget all known flows, because a known destination may have the address as its source.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn forget_translations(&mut self, address: Addr) -> Result<usize, DataplaneError> {
        let removed = self.remove_translations(&BTreeSet::from([address]))?;
        self.forget_flows();
        Ok(removed)
    }

    /// Removes every translation with one of the addresses, on either side of the translation.
    fn remove_translations(&mut self, addresses: &BTreeSet<Addr>) -> Result<usize, DataplaneError> {
        let translations = matching(&self.translations, names::TRANSLATIONS, |flow, to| {
            [flow.source, flow.destination, to.source, to.destination]
                .iter()
                .any(|end| addresses.contains(end))
        })?;
        let mut removed = Tally::default();
        for (flow, half) in &translations {
            remove(self.translations.remove(flow), names::TRANSLATIONS)?;
            removed.add(nat::holder(flow, half));
        }
        self.give_back(TABLE_TRANSLATIONS, &removed)?;
        Ok(translations.len())
    }

    /// Lets flows of endpoints go direct again. The programs had sent them to the stack because the
    /// endpoints had used up their share of `STACK_FLOWS`. The flows that must stay on the stack
    /// are recorded by now.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn clear_stack_only(&mut self, recorded: &BTreeSet<Addr>) -> Result<(), DataplaneError> {
        for address in recorded {
            let mut endpoint = match self.endpoints.get(address, 0) {
                Ok(endpoint) if housekeeping::is_stack_only(endpoint.flags) => endpoint,
                Ok(_) | Err(MapError::KeyNotFound) => continue,
                Err(error) => return Err(map_error("read", names::ENDPOINTS)(error)),
            };
            // Since the collector's round, a program may again have had no room to record a flow.
            if !self.has_share_left(&Holder::of_stack_flows(*address))? {
                continue;
            }
            // No known flow needs to be forgotten: the programs learn no flow of a marked pod.
            endpoint.flags &= !ENDPOINT_STACK_ONLY;
            self.endpoints.insert(address, endpoint, 0).map_err(map_error("write", names::ENDPOINTS))?;
            info!(pod = ?address, "the pod has room again in its share of the table of stack flows: its flows may take the fast path again");
        }
        Ok(())
    }

    /// Counts the entries of all tables that fill. Walks through each of them.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn count_entries(&self) -> Result<BTreeMap<Table, Fill>, DataplaneError> {
        let fill = Table::ALL.into_iter().filter(|table| table.row().kind.fills()).map(|table| {
            let entries = batch::count(self.map(table)).map_err(map_error("count", table.name()))?;
            Ok((table, Fill { entries, capacity: self.capacity(table) }))
        });
        fill.collect()
    }

    /// Returns the collector, with handles of its own. It runs beside the owner of state, which
    /// never waits for a walk.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn collector(&self, conntrack: Option<Conntrack>) -> Result<Collector, DataplaneError> {
        let maps = self.another()?;
        let refused = refused(&maps)?;
        Ok(Collector {
            maps,
            conntrack,
            pressure: false,
            crowded: BTreeSet::new(),
            refused,
            fill: BTreeMap::new(),
            until_count: 0,
        })
    }
}

/// The fill level of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Entries of the table.
    pub entries: usize,
    /// The most entries that fit.
    pub capacity: usize,
}

/// The result of one round of the collector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Entries of `TRANSLATIONS` before the removal. A translation has two, a reservation one.
    pub translations: usize,
    /// Entries that the round removed.
    pub translations_expired: usize,
    /// Entries of `STACK_FLOWS` before the removal.
    pub stack_flows: usize,
    /// Entries that the round removed.
    pub stack_flows_expired: usize,
    /// Whether the table of translations is nearly full.
    pub pressure: bool,
    /// Holders that have nearly used up their share of the table of translations.
    pub crowded: BTreeSet<Holder>,
    /// Endpoints that were sent to the stack, have room in their share again, and have all their
    /// flows recorded.
    pub recorded: BTreeSet<Addr>,
    /// Links without programs over which the kernel's routes led pods' packets since the last
    /// round, by ifindex. The programs dropped these packets.
    pub refused: BTreeSet<u32>,
    /// The fill level of each table that programs add entries to.
    pub fill: BTreeMap<Table, Fill>,
}

impl Collected {
    /// Returns whether the next round should come soon and remove more.
    pub fn is_pressed(&self) -> bool {
        self.pressure || !self.crowded.is_empty()
    }
}

/// Removes stale translations and stack flows.
pub struct Collector {
    maps: Maps,
    conntrack: Option<Conntrack>,
    /// Whether the table was nearly full in the last round.
    pressure: bool,
    crowded: BTreeSet<Holder>,
    /// How many packets the programs had refused for each link, by ifindex.
    refused: BTreeMap<u32, u32>,
    /// The fill levels of the last round.
    fill: BTreeMap<Table, Fill>,
    /// Rounds until the next count of the tables that are walked for their count alone.
    until_count: u32,
}

/// Rounds between two counts of tables that are walked for their count alone. At every round those
/// walks would be a third of an idle agent's work.
const COUNT_ROUNDS: u32 = 6;

impl Collector {
    /// Removes entries that were silent for too long at `now` (`CLOCK_MONOTONIC`, nanoseconds). A
    /// stack flow goes when conntrack no longer knows it. Without conntrack, it goes after the
    /// longest time that conntrack could have kept it.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn collect(&mut self, now: u64) -> Result<Collected, DataplaneError> {
        let mut collected = Collected::default();
        let tally = self.collect_translations(now, &mut collected)?;
        let capacity = self.maps.capacity(Table::Translations);
        self.maps.write_shares(TABLE_TRANSLATIONS, &tally, capacity)?;
        self.pressure = !housekeeping::has_room(tally.total(), capacity);
        self.crowded = tally.crowded(capacity).collect();
        (collected.pressure, collected.crowded) = (self.pressure, self.crowded.clone());
        let tally = self.collect_stack_flows(now, &mut collected)?;
        let capacity = self.maps.capacity(Table::StackFlows);
        self.maps.write_shares(TABLE_STACK_FLOWS, &tally, capacity)?;
        collected.recorded = self.record_flows_of_marked()?;
        collected.refused = self.newly_refused()?;
        self.count_entries(&collected);
        collected.fill.clone_from(&self.fill);
        Ok(collected)
    }

    /// Returns the links with a changed count of refused packets since the last round.
    fn newly_refused(&mut self) -> Result<BTreeSet<u32>, DataplaneError> {
        let before = std::mem::replace(&mut self.refused, refused(&self.maps)?);
        let is_new = |(index, count): &(&u32, &u32)| before.get(index) != Some(count);
        Ok(self.refused.iter().filter(is_new).map(|(index, _)| *index).collect())
    }

    /// Updates the fill levels of the tables that programs fill. Every round walks `TRANSLATIONS`
    /// and `STACK_FLOWS` anyway, so their counts are at hand. The others are counted once in
    /// [`COUNT_ROUNDS`] rounds. A table that cannot be counted has no fill level.
    fn count_entries(&mut self, collected: &Collected) {
        let is_due = self.until_count == 0;
        self.until_count = if is_due { COUNT_ROUNDS } else { self.until_count } - 1;
        let is_programs = |table: &Table| table.row().kind.fills() && table.row().owner != Owner::Agent;
        for table in Table::ALL.into_iter().filter(is_programs) {
            let entries = match table {
                Table::Translations => Ok(collected.translations),
                Table::StackFlows => Ok(collected.stack_flows),
                _ if is_due => batch::count(self.maps.map(table)),
                _ => continue,
            };
            match entries {
                Ok(entries) => {
                    self.fill.insert(table, Fill { entries, capacity: self.maps.capacity(table) });
                }
                Err(error) => {
                    self.fill.remove(&table);
                    warn!("cannot count the entries of {}: {error}", table.name());
                }
            }
        }
    }

    /// Removes both halves of a translation together: they have the same time and state, and each
    /// names the other.
    fn collect_translations(&mut self, now: u64, collected: &mut Collected) -> Result<Tally, DataplaneError> {
        let mut tally = Tally::default();
        let expired = matching(&self.maps.translations, names::TRANSLATIONS, |flow, half| {
            collected.translations += 1;
            let holder = nat::holder(flow, half);
            tally.add(holder);
            let pressure = self.pressure || self.crowded.contains(&holder);
            housekeeping::translation_expired(flow, half, now, pressure)
        })?;
        for (flow, half) in expired {
            // A packet may have arrived since the walk.
            match self.maps.translations.get(&flow, 0) {
                Ok(there) if there.last_seen == half.last_seen => {}
                _ => continue,
            }
            let other = half.other_half(flow.protocol);
            // A reservation has no other half. And if one half was left alone, another flow may
            // have taken the other half's place by now.
            let has_other = match self.maps.translations.get(&other, 0) {
                Ok(there) => there.other_half(flow.protocol) == flow,
                Err(_) => false,
            };
            // Remove the half of the way out first. Alone, it would still translate the flow's
            // packets, but their replies would find no translation.
            if has_other && half.reply != 0 {
                remove(self.maps.translations.remove(&other), names::TRANSLATIONS)?;
            }
            remove(self.maps.translations.remove(&flow), names::TRANSLATIONS)?;
            if has_other && half.reply == 0 {
                remove(self.maps.translations.remove(&other), names::TRANSLATIONS)?;
            }
            collected.translations_expired += 1 + usize::from(has_other);
            tally.subtract(nat::holder(&flow, &half));
            if has_other {
                tally.subtract(nat::holder(&flow, &half));
            }
        }
        Ok(tally)
    }

    fn collect_stack_flows(&mut self, now: u64, collected: &mut Collected) -> Result<Tally, DataplaneError> {
        let pods = pods(&self.maps);
        let holder = |flow: &Flow| holder_of(flow, &pods);
        let mut tally = Tally::default();
        let mut silent = matching(&self.maps.stack_flows, names::STACK_FLOWS, |flow, entry| {
            collected.stack_flows += 1;
            tally.add(holder(flow));
            housekeeping::is_silent(*entry, now)
        })?;
        // The flows that were silent longest come first. A question costs some microseconds, so
        // each round asks only a limited number.
        silent.sort_unstable_by_key(|(_, entry)| entry.last_seen);
        let mut questions = housekeeping::QUESTIONS;
        for (flow, entry) in &silent {
            let gone = match &self.conntrack {
                Some(conntrack) if housekeeping::can_be_asked_for(flow) => {
                    if questions == 0 {
                        break;
                    }
                    questions -= 1;
                    match conntrack.knows(flow) {
                        Ok(true) => {
                            // The entry counts as seen now, so that the next rounds ask about the
                            // others first: an idle connection may live for days.
                            self.maps
                                .stack_flows
                                .insert(flow, StackFlow { last_seen: now }, 0)
                                .map_err(map_error("write", names::STACK_FLOWS))?;
                            false
                        }
                        Ok(false) => true,
                        Err(error) => {
                            warn!("cannot ask connection tracking for {flow:?}: {error}");
                            housekeeping::stack_flow_expired(flow, *entry, now)
                        }
                    }
                }
                _ => housekeeping::stack_flow_expired(flow, *entry, now),
            };
            if gone {
                remove(self.maps.stack_flows.remove(flow), names::STACK_FLOWS)?;
                collected.stack_flows_expired += 1;
                tally.subtract(holder(flow));
            }
        }
        Ok(tally)
    }

    /// Records the flows of endpoints that were sent to the stack, if they have room in their share
    /// again. While an endpoint was marked, flows without a record may have begun and gone silent.
    /// A reply of such a flow would bypass conntrack as soon as the mark is gone. Conntrack knows
    /// all of these flows. Returns the endpoints with all their flows recorded.
    fn record_flows_of_marked(&mut self) -> Result<BTreeSet<Addr>, DataplaneError> {
        let mut marked = BTreeSet::new();
        for entry in self.maps.endpoints.iter() {
            let (address, endpoint) = entry.map_err(map_error("read", names::ENDPOINTS))?;
            if housekeeping::is_stack_only(endpoint.flags)
                && self.maps.has_share_left(&Holder::of_stack_flows(address))?
            {
                marked.insert(address);
            }
        }
        // Without conntrack, the agent cannot list the flows: the mark stays.
        if marked.is_empty() || self.conntrack.is_none() {
            return Ok(BTreeSet::new());
        }
        let flows = match Conntrack::flows() {
            Ok(flows) => flows,
            Err(error) => {
                warn!(
                    "cannot list the entries of connection tracking, so pods that use only the host stack stay on it: {error}"
                );
                return Ok(BTreeSet::new());
            }
        };
        let now = housekeeping::now();
        for flow in flows {
            for (end, other) in [(flow.source, flow.destination), (flow.destination, flow.source)] {
                if !marked.contains(&end) || !self.can_go_direct(other)? {
                    continue;
                }
                match self.maps.stack_flows.insert(flow, StackFlow { last_seen: now }, 0) {
                    Ok(()) => {}
                    Err(MapError::SyscallError(error))
                        if error.io_error.raw_os_error() == Some(libc::E2BIG) =>
                    {
                        marked.remove(&end);
                    }
                    Err(error) => return Err(map_error("write", names::STACK_FLOWS)(error)),
                }
            }
        }
        Ok(marked)
    }

    /// See [`can_go_direct`].
    fn can_go_direct(&self, address: Addr) -> Result<bool, DataplaneError> {
        let node_flags = || match self.maps.nodes.get(&Key::new(128, address.into()), 0) {
            Ok(node) => Ok(Some(node.flags)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(map_error("read", names::NODES)(error)),
        };
        can_go_direct(self.maps.endpoints.get(&address, 0).is_ok(), node_flags)
    }
}

/// Returns the holder of an entry of `STACK_FLOWS`, as the programs count: a pod of this node holds
/// the flows that it sends, and those that it receives from elsewhere.
pub(super) fn holder_of(flow: &Flow, pods: &BTreeSet<Addr>) -> Holder {
    Holder::of_stack_flows(if pods.contains(&flow.source) { flow.source } else { flow.destination })
}

/// Returns the addresses of this node's pods.
pub(super) fn pods(maps: &Maps) -> BTreeSet<Addr> {
    maps.endpoints.keys().filter_map(Result::ok).collect()
}

/// Returns how many packets the programs have refused for each link, by ifindex.
fn refused(maps: &Maps) -> Result<BTreeMap<u32, u32>, DataplaneError> {
    let links = matching(&maps.links, names::LINKS, |_, link| link.refused != 0)?;
    Ok(links.into_iter().map(|(index, link)| (index, link.refused)).collect())
}

/// Returns the matching entries.
pub(super) fn matching<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
    mut matches: impl FnMut(&K, &V) -> bool,
) -> Result<Vec<(K, V)>, DataplaneError> {
    let mut found = Vec::new();
    let walk = batch::for_each(map.map().fd().as_fd(), |key: &K, value: &V| {
        if matches(key, value) {
            found.push((*key, *value));
        }
    });
    walk.map_err(|error| map_error("read", name)(error.into()))?;
    Ok(found)
}
