//! Flows and translations: what the programs write and the agent ages out.

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
    /// Removes every flow and translation of pods: what still arrives for their addresses is nobody's, and new pods
    /// with the addresses start afresh. Walks the tables once, which takes as long as they are full: 70 ms for
    /// 200,000 entries.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn forget_pods(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), DataplaneError> {
        let addresses: BTreeSet<_> = addresses.iter().copied().map(Addr::from).collect();
        let concerns =
            |flow: &Flow| addresses.contains(&flow.source) || addresses.contains(&flow.destination);
        let flows = matching(&self.stack_flows, names::STACK_FLOWS, |flow, _| concerns(flow))?;
        let pods = self.endpoints.keys().filter_map(Result::ok).chain(addresses.iter().copied()).collect();
        let mut removed = Tally::default();
        for (flow, _) in &flows {
            remove(self.stack_flows.remove(flow), names::STACK_FLOWS)?;
            removed.add(holder_of(flow, &pods));
        }
        self.give_back(TABLE_STACK_FLOWS, &removed)?;
        // What is known of the pods' flows ended with their entries of `ENDPOINTS`.
        self.remove_translations(&addresses)?;
        let inbound = matching(&self.inbound_flows, names::INBOUND_FLOWS, |flow, _| concerns(flow))?;
        for (flow, _) in &inbound {
            remove(self.inbound_flows.remove(flow), names::INBOUND_FLOWS)?;
        }
        Ok(())
    }

    /// Removes every translation of an address that this node has no more, and has the programs forget all flows: the
    /// address may be the source of a known destination.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn forget_translations(&mut self, address: Addr) -> Result<usize, DataplaneError> {
        let removed = self.remove_translations(&BTreeSet::from([address]))?;
        self.forget_flows();
        Ok(removed)
    }

    /// Removes every translation that one of the addresses takes part in, before it or after.
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

    /// Lets the flows of endpoints go direct again that were sent to the stack because they had used up
    /// their share of `STACK_FLOWS`. The flows that have to stay there are recorded by now.
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
            // A program may have failed to record another flow since.
            if !self.has_share_left(&Holder::of_stack_flows(*address))? {
                continue;
            }
            // Nothing is forgotten: while the pod was marked, no flow of it was learnt.
            endpoint.flags &= !ENDPOINT_STACK_ONLY;
            self.endpoints.insert(address, endpoint, 0).map_err(map_error("write", names::ENDPOINTS))?;
            info!(pod = ?address, "the table of stack flows has room again: the pod's flows may go direct");
        }
        Ok(())
    }

    /// What ages the tables out, with handles of its own: it runs beside the owner of state, which never waits for a walk.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn collector(&self, conntrack: Option<Conntrack>) -> Result<Collector, DataplaneError> {
        let maps = self.another()?;
        let refused = refused(&maps)?;
        Ok(Collector { maps, conntrack, pressure: false, crowded: BTreeSet::new(), refused })
    }
}

/// How full a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Entries that were there.
    pub entries: usize,
    /// Entries that there is room for.
    pub capacity: usize,
}

/// What one round found and removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Entries of `TRANSLATIONS` that were there; two of a translation, one of a reservation.
    pub translations: usize,
    /// Entries that were removed.
    pub translations_expired: usize,
    /// Entries of `STACK_FLOWS` that were there.
    pub stack_flows: usize,
    /// Entries that were removed.
    pub stack_flows_expired: usize,
    /// Whether the table of translations is nearly full.
    pub pressure: bool,
    /// Who has nearly used up the share of the table of translations.
    pub crowded: BTreeSet<Holder>,
    /// Endpoints that were sent to the stack, have room in their share again, and whose flows are recorded.
    pub recorded: BTreeSet<Addr>,
    /// Links without programs by which the route led for pods' packets since the last round, by ifindex. The programs dropped
    /// those.
    pub refused: BTreeSet<u32>,
    /// How full each table is that entries are added to and removed from.
    pub fill: BTreeMap<Table, Fill>,
}

impl Collected {
    /// Whether the next round is to come soon, and takes more.
    pub fn is_pressed(&self) -> bool {
        self.pressure || !self.crowded.is_empty()
    }
}

/// Ages translations and stack flows out.
pub struct Collector {
    maps: Maps,
    conntrack: Option<Conntrack>,
    /// Of the last round.
    pressure: bool,
    crowded: BTreeSet<Holder>,
    /// How many packets the programs had refused for each link, by ifindex.
    refused: BTreeMap<u32, u32>,
}

impl Collector {
    /// Removes what has been silent for too long at `now` (`CLOCK_MONOTONIC`, nanoseconds). A stack flow leaves when
    /// connection tracking knows it no more, and without that after the longest time that it could.
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
        collected.fill = self.fill(&collected);
        Ok(collected)
    }

    /// The links whose count of refused packets has changed since the last round.
    fn newly_refused(&mut self) -> Result<BTreeSet<u32>, DataplaneError> {
        let before = std::mem::replace(&mut self.refused, refused(&self.maps)?);
        let is_new = |(index, count): &(&u32, &u32)| before.get(index) != Some(count);
        Ok(self.refused.iter().filter(is_new).map(|(index, _)| *index).collect())
    }

    /// Counts what was not counted already of the tables that programs fill. One that cannot be counted is left out.
    fn fill(&self, collected: &Collected) -> BTreeMap<Table, Fill> {
        let count = |table| match table {
            Table::Translations => Ok(collected.translations),
            Table::StackFlows => Ok(collected.stack_flows),
            _ => batch::count(self.maps.map(table)),
        };
        let is_programs = |table: &Table| table.row().kind.fills() && table.row().owner != Owner::Agent;
        let mut fill = BTreeMap::new();
        for table in Table::ALL.into_iter().filter(is_programs) {
            match count(table) {
                Ok(entries) => {
                    fill.insert(table, Fill { entries, capacity: self.maps.capacity(table) });
                }
                Err(error) => warn!("count the entries of {}: {error}", table.name()),
            }
        }
        fill
    }

    /// Both halves leave together: they tell the same time and state, and each names the other.
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
            // A packet may have come meanwhile.
            match self.maps.translations.get(&flow, 0) {
                Ok(there) if there.last_seen == half.last_seen => {}
                _ => continue,
            }
            let other = half.other_half(flow.protocol);
            // A reservation has none. And where a half was left alone, its other half's place may be somebody else's by now.
            let has_other = match self.maps.translations.get(&other, 0) {
                Ok(there) => there.other_half(flow.protocol) == flow,
                Err(_) => false,
            };
            // The way out first: while only the way back is left, nothing new is translated by half a pair.
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
        let pods: BTreeSet<Addr> = self.maps.endpoints.keys().filter_map(Result::ok).collect();
        let holder = |flow: &Flow| holder_of(flow, &pods);
        let mut tally = Tally::default();
        let mut silent = matching(&self.maps.stack_flows, names::STACK_FLOWS, |flow, entry| {
            collected.stack_flows += 1;
            tally.add(holder(flow));
            housekeeping::is_silent(*entry, now)
        })?;
        // Those that were silent longest first: a question costs some microseconds, so only so many are asked at a time.
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
                            // Asked again only after the others: an idle connection may live for days.
                            self.maps
                                .stack_flows
                                .insert(flow, StackFlow { last_seen: now }, 0)
                                .map_err(map_error("write", names::STACK_FLOWS))?;
                            false
                        }
                        Ok(false) => true,
                        Err(error) => {
                            warn!("ask connection tracking for {flow:?}: {error}");
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

    /// Records the flows of endpoints that were sent to the stack, as far as these have room in their share
    /// again. While an endpoint was marked, flows that began without a record may have gone silent: a
    /// reply of such a flow would go past connection tracking as soon as the mark is gone. Connection
    /// tracking knows all of them. Gives the endpoints all of whose flows are recorded.
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
        // Without connection tracking nobody can say which flows there are: the mark stays.
        if marked.is_empty() || self.conntrack.is_none() {
            return Ok(BTreeSet::new());
        }
        let flows = match Conntrack::flows() {
            Ok(flows) => flows,
            Err(error) => {
                warn!("list the flows of connection tracking: {error}: pods that use the stack stay there");
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

/// Who answers for an entry of `STACK_FLOWS`, as the programs count: what a pod here sends is its own, and
/// what it gets from elsewhere too.
fn holder_of(flow: &Flow, pods: &BTreeSet<Addr>) -> Holder {
    Holder::of_stack_flows(if pods.contains(&flow.source) { flow.source } else { flow.destination })
}

/// How many packets the programs have refused for each link, by ifindex.
fn refused(maps: &Maps) -> Result<BTreeMap<u32, u32>, DataplaneError> {
    let links = matching(&maps.links, names::LINKS, |_, link| link.refused != 0)?;
    Ok(links.into_iter().map(|(index, link)| (index, link.refused)).collect())
}

/// The entries that match.
fn matching<K: Pod, V: Pod>(
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
