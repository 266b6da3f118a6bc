//! Flows and translations: what the programs write and the agent ages out.

use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;

use aya::Pod;
use aya::maps::{HashMap, IterableMap as _, Map, MapData};
use podwire_common::abi::{ENDPOINT_STACK_ONLY, Flow, StackFlow, Translation};
use podwire_common::addr::Addr;
use podwire_common::names::maps as names;
use tracing::{info, warn};

use super::batch;
use super::maps::{Maps, map_error, remove};
use crate::conntrack::Conntrack;
use crate::error::Error;
use crate::housekeeping;

impl Maps {
    /// Removes every flow and translation of a pod: what still arrives for its address is nobody's, and a new pod
    /// with the address starts afresh. Walks the tables, so it takes as long as they are full.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn forget_pod(&mut self, address: Ipv4Addr) -> Result<(), Error> {
        let address = Addr::from(address);
        let concerns = |flow: &Flow| flow.source == address || flow.destination == address;
        let flows = matching(&self.stack_flows, names::STACK_FLOWS, |flow, _| concerns(flow))?;
        for (flow, _) in &flows {
            remove(self.stack_flows.remove(flow), names::STACK_FLOWS)?;
        }
        self.forget_translations(address)?;
        let inbound = matching(&self.inbound_flows, names::INBOUND_FLOWS, |flow, _| concerns(flow))?;
        for (flow, _) in &inbound {
            remove(self.inbound_flows.remove(flow), names::INBOUND_FLOWS)?;
        }
        Ok(())
    }

    /// Removes every translation that an address takes part in, before it or after.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn forget_translations(&mut self, address: Addr) -> Result<usize, Error> {
        let translations = matching(&self.translations, names::TRANSLATIONS, |flow, to| {
            [flow.source, flow.destination, to.source, to.destination].contains(&address)
        })?;
        for (flow, _) in &translations {
            remove(self.translations.remove(flow), names::TRANSLATIONS)?;
        }
        self.forget_flows()?;
        Ok(translations.len())
    }

    /// Turns endpoints back that were sent to the stack for want of room, when `used` entries of `STACK_FLOWS` leave enough.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn clear_stack_only(&mut self, used: usize) -> Result<(), Error> {
        if !housekeeping::has_room(used, self.stack_flows_capacity) {
            return Ok(());
        }
        let marked: Vec<_> = self
            .endpoints
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, endpoint)| housekeeping::is_stack_only(endpoint.flags))
            .collect();
        for (address, mut endpoint) in marked {
            endpoint.flags &= !ENDPOINT_STACK_ONLY;
            self.endpoints.insert(address, endpoint, 0).map_err(map_error("write", names::ENDPOINTS))?;
            info!(pod = ?address, "the table of stack flows has room again: the pod's flows may go direct");
        }
        Ok(())
    }

    /// What ages the tables out, with handles of its own: it runs beside the owner of state, which never waits for a walk.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn collector(&self, conntrack: Option<Conntrack>) -> Result<Collector, Error> {
        Ok(Collector {
            translations: another(&self.translations, names::TRANSLATIONS)?,
            translations_capacity: self.translations_capacity,
            stack_flows: another(&self.stack_flows, names::STACK_FLOWS)?,
            conntrack,
            pressure: false,
        })
    }
}

/// What one round found and removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Entries of `TRANSLATIONS` that were there; two of a translation, one of a reservation.
    pub translations: usize,
    /// Entries that were removed.
    pub translations_expired: usize,
    /// Entries of `STACK_FLOWS` that were there.
    pub stack_flows: usize,
    /// Entries that were removed.
    pub stack_flows_expired: usize,
    /// Whether a table is nearly full, so that the next round comes soon and takes more.
    pub pressure: bool,
}

/// Ages translations and stack flows out.
#[derive(Debug)]
pub struct Collector {
    translations: HashMap<MapData, Flow, Translation>,
    translations_capacity: usize,
    stack_flows: HashMap<MapData, Flow, StackFlow>,
    conntrack: Option<Conntrack>,
    pressure: bool,
}

impl Collector {
    /// Removes what has been silent for too long at `now` (`CLOCK_MONOTONIC`, nanoseconds). A stack flow leaves when
    /// connection tracking knows it no more, and without that after the longest time that it could.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn collect(&mut self, now: u64) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        self.collect_translations(now, &mut collected)?;
        self.collect_stack_flows(now, &mut collected)?;
        let left = collected.translations - collected.translations_expired;
        self.pressure = !housekeeping::has_room(left, self.translations_capacity);
        collected.pressure = self.pressure;
        Ok(collected)
    }

    /// Both halves leave together: they tell the same time and state, and each names the other.
    fn collect_translations(&mut self, now: u64, collected: &mut Collected) -> Result<(), Error> {
        let expired = matching(&self.translations, names::TRANSLATIONS, |flow, half| {
            collected.translations += 1;
            housekeeping::translation_expired(flow, half, now, self.pressure)
        })?;
        for (flow, half) in expired {
            // A packet may have come meanwhile.
            match self.translations.get(&flow, 0) {
                Ok(there) if there.last_seen == half.last_seen => {}
                _ => continue,
            }
            let other = half.other_half(flow.protocol);
            // A reservation has none. And where a half was left alone, its other half's place may be somebody else's by now.
            let has_other = match self.translations.get(&other, 0) {
                Ok(there) => there.other_half(flow.protocol) == flow,
                Err(_) => false,
            };
            // The way out first: while only the way back is left, nothing new is translated by half a pair.
            if has_other && half.reply != 0 {
                remove(self.translations.remove(&other), names::TRANSLATIONS)?;
            }
            remove(self.translations.remove(&flow), names::TRANSLATIONS)?;
            if has_other && half.reply == 0 {
                remove(self.translations.remove(&other), names::TRANSLATIONS)?;
            }
            collected.translations_expired += 1 + usize::from(has_other);
        }
        Ok(())
    }

    fn collect_stack_flows(&mut self, now: u64, collected: &mut Collected) -> Result<(), Error> {
        let mut silent = matching(&self.stack_flows, names::STACK_FLOWS, |_, entry| {
            collected.stack_flows += 1;
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
                            self.stack_flows
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
                remove(self.stack_flows.remove(flow), names::STACK_FLOWS)?;
                collected.stack_flows_expired += 1;
            }
        }
        Ok(())
    }
}

/// The entries that match.
fn matching<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
    mut matches: impl FnMut(&K, &V) -> bool,
) -> Result<Vec<(K, V)>, Error> {
    let mut found = Vec::new();
    let walk = batch::for_each(map.map().fd().as_fd(), |key: &K, value: &V| {
        if matches(key, value) {
            found.push((*key, *value));
        }
    });
    walk.map_err(|error| map_error("read", name)(error.into()))?;
    Ok(found)
}

/// Another handle of the same map.
fn another<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, Error> {
    let file = map
        .map()
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(Error::file("open another handle of map", name))?;
    let data = MapData::from_fd(file).map_err(map_error("open", name))?;
    HashMap::try_from(Map::HashMap(data)).map_err(map_error("open", name))
}
