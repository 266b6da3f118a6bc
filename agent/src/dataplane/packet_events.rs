//! The ring of what the programs tell of single packets: `EVENTS`, and `EVENT_BUDGETS`.

use std::os::fd::{AsRawFd, RawFd};

use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray, RingBuf};
use podwire_common::event::{Budget, Event};
use podwire_common::names::{EVENT_BUDGETS, EVENTS};
use podwire_common::reason::Drop;

use super::error::DataplaneError;
use super::maps::{self, map_error};

/// The ring of one load of the programs, with the only reader that a ring can have.
pub struct EventRing(RingBuf<MapData>);

/// What the programs count about their events.
pub struct EventBudgets(PerCpuArray<MapData, Budget>);

/// Takes the ring and the budgets out of the loaded object. The programs go on writing to them.
///
/// # Errors
/// [`DataplaneError::Map`]; [`DataplaneError::Load`] if they were taken before.
pub fn take(ebpf: &mut Ebpf) -> Result<(EventRing, EventBudgets), DataplaneError> {
    Ok((EventRing(maps::take(ebpf, EVENTS)?), EventBudgets(maps::take(ebpf, EVENT_BUDGETS)?)))
}

impl EventRing {
    /// Returns the next event. Returns `None` if there is none now, and passes over records that
    /// are no [`Event`].
    pub fn pop(&mut self) -> Option<Event> {
        loop {
            let record = self.0.next()?;
            if let Some(event) = Event::of_record(&record) {
                return Some(event);
            }
        }
    }
}

impl EventBudgets {
    /// Returns how many packets of each reason have no event, since the programs were loaded.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn lost(&self) -> Result<Vec<(Drop, u64)>, DataplaneError> {
        let of = |reason: &Drop| {
            let of_cpus = self.0.get(&(*reason as u32), 0).map_err(map_error("read", EVENT_BUDGETS))?;
            Ok((*reason, of_cpus.iter().map(|budget| budget.lost).sum()))
        };
        Drop::ALL.iter().map(of).collect()
    }
}

impl AsRawFd for EventRing {
    /// Returns the ring's descriptor. It is readable when there are events.
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
