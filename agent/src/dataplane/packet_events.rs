//! The ring of what the programs tell of single packets, and which of that somebody wants:
//! `EVENTS`, `EVENT_BUDGETS`, `VERDICTS_LOST`, and the section with [`Listening`].

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use podwire_common::event::{Budget, Event, Kind, Listening, Packet};
use podwire_common::names::{EVENT_BUDGETS, EVENTS, LISTENING, VERDICTS_LOST};
use podwire_common::reason::Drop;

use super::error::DataplaneError;
use super::maps::{self, map_error};

/// The ring of one load of the programs, with the only reader that a ring can have.
pub struct EventRing(RingBuf<MapData>);

/// What the programs count about their events of drops.
pub struct EventBudgets(PerCpuArray<MapData, Budget>);

/// What the programs of one load write, and how much of it they could not write.
pub struct EventSwitch {
    budgets: Arc<EventBudgets>,
    verdicts_lost: PerCpuArray<MapData, u64>,
    section: Array<MapData, Listening>,
    now: Listening,
}

/// Takes the ring, the budgets and the switch out of the loaded object. The programs go on writing
/// to the ring.
///
/// # Errors
/// [`DataplaneError::Map`]; [`DataplaneError::Load`] if they were taken before.
pub fn take(ebpf: &mut Ebpf) -> Result<(EventRing, Arc<EventBudgets>, EventSwitch), DataplaneError> {
    let budgets = Arc::new(EventBudgets(maps::take(ebpf, EVENT_BUDGETS)?));
    let switch = EventSwitch {
        budgets: Arc::clone(&budgets),
        verdicts_lost: maps::take(ebpf, VERDICTS_LOST)?,
        section: maps::take(ebpf, LISTENING)?,
        now: Listening::NOBODY,
    };
    Ok((EventRing(maps::take(ebpf, EVENTS)?), budgets, switch))
}

/// A record of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What happened.
    pub event: Event,
    /// Of a captured packet the first bytes, else nothing.
    pub data: Arc<[u8]>,
}

impl EventRing {
    /// Returns the next record. Returns `None` if there is none now, and passes over records of
    /// other releases.
    pub fn pop(&mut self) -> Option<Record> {
        loop {
            let record = self.0.next()?;
            if let Some(event) = Event::of_record(&record) {
                return Some(Record { event, data: Arc::default() });
            }
            if let Some(packet) = Packet::of_record(&record) {
                return Some(Record { event: packet.event, data: packet.data().into() });
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

impl EventSwitch {
    /// Returns how many events of new flows did not fit the ring, since the programs were loaded.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn lost_flows(&self) -> Result<u64, DataplaneError> {
        [Kind::Flow, Kind::Translation].into_iter().map(|kind| self.lost_of(kind)).sum()
    }

    /// Returns how many packets did not fit the ring, since the programs were loaded.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn lost_packets(&self) -> Result<u64, DataplaneError> {
        self.lost_of(Kind::Packet)
    }

    fn lost_of(&self, kind: Kind) -> Result<u64, DataplaneError> {
        let of_cpus = self.verdicts_lost.get(&(kind as u32), 0);
        Ok(of_cpus.map_err(map_error("read", VERDICTS_LOST))?.iter().sum())
    }

    /// Returns how many wanted drops have no event, since the programs were loaded.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn lost_drops(&self) -> Result<u64, DataplaneError> {
        Ok(self.budgets.lost()?.iter().map(|(_, lost)| lost).sum())
    }

    /// Returns what the programs write.
    pub const fn wanted(&self) -> &Listening {
        &self.now
    }

    /// Sets what the programs write from now on.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn set(&mut self, wanted: &Listening) -> Result<(), DataplaneError> {
        if self.now == *wanted {
            return Ok(());
        }
        if self.now.kinds != 0 && wanted.kinds != 0 {
            // A program may read the value while it changes. So the programs write too much for a
            // moment: what one listener wanted before and wants still is never missing.
            let open = Listening { kinds: self.now.kinds | wanted.kinds, ..Listening::EVERYTHING };
            self.write(&open)?;
            self.write(&Listening { ports: wanted.ports, addresses: wanted.addresses, ..open })?;
        }
        self.write(wanted)
    }

    fn write(&mut self, wanted: &Listening) -> Result<(), DataplaneError> {
        self.section.set(0, wanted, 0).map_err(map_error("write", LISTENING))?;
        self.now = *wanted;
        Ok(())
    }
}

impl AsRawFd for EventRing {
    /// Returns the ring's descriptor. It is readable when there are events of drops.
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
