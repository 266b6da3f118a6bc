//! Flows and translations: what the programs write and the agent ages out.

use std::collections::HashMap as Table;
use std::net::Ipv4Addr;

use podwire_common::abi::{self, ENDPOINT_STACK_ONLY, Flow};
use podwire_common::addr::Addr;
use podwire_common::names::maps as names;
use tracing::{info, warn};

use super::maps::{Maps, map_error, remove};
use crate::conntrack::Conntrack;
use crate::error::Error;
use crate::housekeeping;

/// What one round of housekeeping removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Translations, both halves counted as one.
    pub translations: usize,
    /// Flows that went through the stack.
    pub stack_flows: usize,
    /// Endpoints that need not send everything to the stack any more.
    pub stack_only_cleared: usize,
}

impl Maps {
    /// Removes every flow and translation of a pod: what still arrives for its address is nobody's, and a new pod
    /// with the address starts afresh. Walks both tables, so it takes as long as they are full.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn forget_pod(&mut self, address: Ipv4Addr) -> Result<(), Error> {
        let address = Addr::from(address);
        let concerns = |flow: &Flow| flow.source == address || flow.destination == address;
        let bound = self.walk_bound();
        let flows: Vec<_> =
            self.stack_flows.keys().take(bound).filter_map(Result::ok).filter(concerns).collect();
        for flow in &flows {
            remove(self.stack_flows.remove(flow), names::STACK_FLOWS)?;
        }
        // The two halves of a translation: one has the pod's address in its key, the other in its value.
        let translations: Vec<_> = self
            .translations
            .iter()
            .take(bound)
            .filter_map(Result::ok)
            .filter(|(flow, translation)| concerns(flow) || translation.address == address)
            .map(|(flow, _)| flow)
            .collect();
        for flow in &translations {
            remove(self.translations.remove(flow), names::TRANSLATIONS)?;
        }
        Ok(())
    }

    /// Removes what has been silent for too long at `now` (`CLOCK_MONOTONIC`, nanoseconds), and turns endpoints back
    /// that were sent to the stack for want of room. A stack flow leaves when connection tracking knows it no more, and
    /// without that after the longest time that it could.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn expire(&mut self, now: u64, conntrack: Option<&Conntrack>) -> Result<Expired, Error> {
        let translations = self.expire_translations(now)?;
        let stack_flows = self.expire_stack_flows(now, conntrack)?;
        let stack_only_cleared = self.clear_stack_only()?;
        Ok(Expired { translations, stack_flows, stack_only_cleared })
    }

    /// Both halves of a translation leave together, when the later of them has been silent for too long. A half whose
    /// other is not there (its program was about to add it) is judged by itself.
    fn expire_translations(&mut self, now: u64) -> Result<usize, Error> {
        let all: Table<Flow, abi::Translation> =
            self.translations.iter().take(self.walk_bound()).filter_map(Result::ok).collect();
        let mut removed = 0;
        for (flow, translation) in &all {
            let other = housekeeping::other_half(flow, translation);
            let whole = housekeeping::whole(translation, all.get(&other));
            if !housekeeping::translation_expired(flow, &whole, now) {
                continue;
            }
            // The way out first: while only the way back is left, nothing new is translated by half a pair.
            let (first, second) =
                if translation.kind == abi::TRANSLATION_SOURCE { (*flow, other) } else { (other, *flow) };
            remove(self.translations.remove(&first), names::TRANSLATIONS)?;
            remove(self.translations.remove(&second), names::TRANSLATIONS)?;
            if translation.kind == abi::TRANSLATION_SOURCE || !all.contains_key(&other) {
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn expire_stack_flows(&mut self, now: u64, conntrack: Option<&Conntrack>) -> Result<usize, Error> {
        let mut silent: Vec<_> = self
            .stack_flows
            .iter()
            .take(self.walk_bound())
            .filter_map(Result::ok)
            .filter(|(_, entry)| housekeeping::is_silent(*entry, now))
            .collect();
        // Those that were silent longest first: a question costs some microseconds, so only so many are asked at a time.
        silent.sort_unstable_by_key(|(_, entry)| entry.last_seen);
        let mut removed = 0;
        let mut questions = housekeeping::QUESTIONS;
        for (flow, entry) in &silent {
            let gone = match conntrack {
                Some(conntrack) if housekeeping::can_be_asked_for(flow) => {
                    if questions == 0 {
                        break;
                    }
                    questions -= 1;
                    match conntrack.knows(flow) {
                        Ok(true) => {
                            // Asked again only after the others: an idle connection may live for days.
                            self.stack_flows
                                .insert(flow, abi::StackFlow { last_seen: now }, 0)
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
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn clear_stack_only(&mut self) -> Result<usize, Error> {
        let marked: Vec<_> = self
            .endpoints
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, endpoint)| housekeeping::is_stack_only(endpoint.flags))
            .collect();
        if marked.is_empty() {
            return Ok(0);
        }
        let used = self.stack_flows.keys().take(self.walk_bound()).count();
        if !housekeeping::has_room(used, self.stack_flows_capacity) {
            return Ok(0);
        }
        for (address, mut endpoint) in marked.iter().copied() {
            endpoint.flags &= !ENDPOINT_STACK_ONLY;
            self.endpoints.insert(address, endpoint, 0).map_err(map_error("write", names::ENDPOINTS))?;
            info!(pod = ?address, "the table of stack flows has room again: the pod's flows may go direct");
        }
        Ok(marked.len())
    }

    /// A walk starts over when the entry that it stands on is removed by a program: without a bound, a busy table
    /// could keep it for ever.
    fn walk_bound(&self) -> usize {
        2 * self.stack_flows_capacity
    }
}
