//! Reads the tables of flows entry by entry, and removes one flow from all of them.

use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;

use aya::Pod;
use aya::maps::{HashMap, IterableMap as _, MapData};
use podwire_common::abi::{
    FLOW_REWRITES_DESTINATION, FLOW_REWRITES_SOURCE, Flow, FlowKey, KnownFlow, TABLE_STACK_FLOWS,
    TABLE_TRANSLATIONS, Translation,
};
use podwire_common::addr::{Addr, Quad};
use podwire_common::flow::FlowAddr;
use podwire_common::names::maps as names;
use podwire_common::nat;

use super::batch;
use super::error::DataplaneError;
use super::flows::{holder_of, pods};
use super::maps::{Maps, found, map_error, remove};
use super::shares::Tally;

/// An entry of one of the tables of flows.
#[derive(Clone, Copy, Debug)]
pub enum Entry {
    /// `TRANSLATIONS`.
    Translation(Translation),
    /// `STACK_FLOWS`; when the flow was last seen (`CLOCK_MONOTONIC`, nanoseconds).
    Stack(u64),
    /// `INBOUND_FLOWS`; when the flow was last seen.
    Inbound(u64),
    /// `FLOWS` or `FLOWS6`.
    Known(Known),
}

/// What the programs know of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The flow after rewriting. The source port is the flow's own in an entry for many flows.
    pub rewritten: Flow,
    /// The link by which its packets leave, ifindex.
    pub to: u32,
    /// A number of [`Path`](podwire_common::reason::Path).
    pub path: u16,
    /// Whether nothing that the entry depends on has changed since it was learnt.
    pub is_current: bool,
}

impl Maps {
    /// Calls `show` with every entry of the tables of flows, a few thousand entries at a time. An
    /// entry that comes or goes during the walk may be shown or not.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn for_each_flow(&self, mut show: impl FnMut(&Flow, Entry)) -> Result<(), DataplaneError> {
        walk(&self.translations, names::TRANSLATIONS, |flow: &Flow, half| {
            show(flow, Entry::Translation(*half));
        })?;
        walk(&self.stack_flows, names::STACK_FLOWS, |flow: &Flow, entry| {
            show(flow, Entry::Stack(entry.last_seen));
        })?;
        walk(&self.inbound_flows, names::INBOUND_FLOWS, |flow: &Flow, entry| {
            show(flow, Entry::Inbound(entry.last_seen));
        })?;
        walk(&self.flows, names::FLOWS, |key: &FlowKey, known| {
            let flow = key.flow();
            show(&flow, self.known(&flow, known));
        })?;
        walk(&self.flows6, names::FLOWS6, |flow: &Flow, known| show(flow, self.known(flow, known)))
    }

    fn known<A: FlowAddr>(&self, flow: &Flow, known: &KnownFlow<A>) -> Entry {
        let mut rewritten = *flow;
        if known.flags & FLOW_REWRITES_SOURCE != 0 {
            rewritten.source = known.source.address();
            if !flow.is_destination_key() {
                rewritten.source_port = known.source_port;
            }
        }
        if known.flags & FLOW_REWRITES_DESTINATION != 0 {
            (rewritten.destination, rewritten.destination_port) =
                (known.destination.address(), known.destination_port);
        }
        let epoch = |slot: &u16| self.epochs.of(usize::from(*slot)).load(Ordering::Relaxed);
        let sum = known.slots.iter().map(epoch).fold(0, u32::wrapping_add);
        let (to, path) = (known.to, known.path);
        Entry::Known(Known { rewritten, to, path, is_current: sum == known.epochs })
    }

    /// Returns the original flow of a flow of either direction. Without a translation this is the
    /// flow itself or its reverse, the same one for both.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn original_of(&self, flow: &Flow) -> Result<Flow, DataplaneError> {
        Ok(match self.translation_of(flow)? {
            Some((original, _)) => original,
            None => (*flow).min(flow.reversed()),
        })
    }

    /// Returns the translation to which a flow of either direction belongs: the original flow and
    /// its half. The half of the replies has no original if it is a reservation.
    fn translation_of(&self, flow: &Flow) -> Result<Option<(Flow, Translation)>, DataplaneError> {
        for way in [*flow, flow.reversed()] {
            let Some(half) = self.translation(&way)? else { continue };
            let other = half.other_half(way.protocol);
            let original = if half.reply != 0 { self.translation(&other)? } else { None };
            return Ok(Some(original.map_or((way, half), |original| (other, original))));
        }
        Ok(None)
    }

    fn translation(&self, flow: &Flow) -> Result<Option<Translation>, DataplaneError> {
        found(self.translations.get(flow, 0), names::TRANSLATIONS)
    }

    /// Removes a flow and its replies from all tables of flows. Returns the number of removed
    /// entries. The flow's next packet counts as the first one of a new flow.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn forget_flow(&mut self, flow: &Flow) -> Result<usize, DataplaneError> {
        let mut ways = vec![*flow, flow.reversed()];
        let mut removed = 0;
        if let Some((original, half)) = self.translation_of(flow)? {
            let reply = half.other_half(original.protocol);
            ways = vec![original, original.reversed(), reply, reply.reversed()];
            ways.dedup();
            let mut tally = Tally::default();
            // The half of the way out goes first: see the collector.
            for way in [original, reply] {
                if self.translation(&way)?.is_some() {
                    remove(self.translations.remove(&way), names::TRANSLATIONS)?;
                    tally.add(nat::holder(&original, &half));
                    removed += 1;
                }
            }
            self.give_back(TABLE_TRANSLATIONS, &tally)?;
        }
        let pods = pods(self);
        let mut tally = Tally::default();
        for way in &ways {
            if found(self.stack_flows.get(way, 0), names::STACK_FLOWS)?.is_some() {
                remove(self.stack_flows.remove(way), names::STACK_FLOWS)?;
                tally.add(holder_of(way, &pods));
                removed += 1;
            }
            if found(self.inbound_flows.get(way, 0), names::INBOUND_FLOWS)?.is_some() {
                remove(self.inbound_flows.remove(way), names::INBOUND_FLOWS)?;
                removed += 1;
            }
        }
        self.give_back(TABLE_STACK_FLOWS, &tally)?;
        // A program that is learning the flow by the removed entries sees that.
        self.stop_learning();
        for way in &ways {
            removed += match way.source.is_v4() {
                true => forget_known::<Quad>(&mut self.flows, names::FLOWS, way)?,
                false => forget_known::<Addr>(&mut self.flows6, names::FLOWS6, way)?,
            };
        }
        Ok(removed)
    }
}

/// Removes the known flow, and the entry for all of a pod's connections to its destination: the
/// next connection must not take the same way unseen.
fn forget_known<A: FlowAddr<Key: Pod>>(
    map: &mut HashMap<MapData, A::Key, KnownFlow<A>>,
    name: &'static str,
    flow: &Flow,
) -> Result<usize, DataplaneError>
where
    KnownFlow<A>: Pod,
{
    use std::borrow::Borrow as _;
    let mut removed = 0;
    for key in [*A::key(flow).borrow(), A::destination_key(flow)] {
        if found(map.get(&key, 0), name)?.is_some() {
            remove(map.remove(&key), name)?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn walk<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
    show: impl FnMut(&K, &V),
) -> Result<(), DataplaneError> {
    let walked = batch::for_each(map.map().fd().as_fd(), show);
    walked.map_err(|error| map_error("read", name)(error.into()))
}
