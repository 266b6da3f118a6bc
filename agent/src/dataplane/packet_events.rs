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

/// What the programs of one load count about events that they could not write.
pub struct LostEvents {
    budgets: PerCpuArray<MapData, Budget>,
    verdicts: PerCpuArray<MapData, u64>,
}

/// Number of events that the programs could not write, since they were loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostCounts {
    /// Dropped packets without an event, by reason.
    pub drops: Vec<(Drop, u64)>,
    /// Events of all other kinds that did not fit the ring.
    pub others: Vec<(Kind, u64)>,
}

/// What the programs of one load write, and how much of it they could not write.
pub struct EventSwitch {
    lost: Arc<LostEvents>,
    section: Array<MapData, Listening>,
    now: Listening,
}

/// Takes the ring, the counters and the switch out of the loaded object. The programs go on writing
/// to the ring.
///
/// # Errors
/// [`DataplaneError::Map`]; [`DataplaneError::Load`] if they were taken before.
pub fn take(ebpf: &mut Ebpf) -> Result<(EventRing, Arc<LostEvents>, EventSwitch), DataplaneError> {
    let (budgets, verdicts) = (maps::take(ebpf, EVENT_BUDGETS)?, maps::take(ebpf, VERDICTS_LOST)?);
    let lost = Arc::new(LostEvents { budgets, verdicts });
    let section = maps::take(ebpf, LISTENING)?;
    let switch = EventSwitch { lost: Arc::clone(&lost), section, now: Listening::NOBODY };
    Ok((EventRing(maps::take(ebpf, EVENTS)?), lost, switch))
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

impl LostEvents {
    /// Reads all counters.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn read(&self) -> Result<LostCounts, DataplaneError> {
        let others = [Kind::Flow, Kind::Translation, Kind::Packet].into_iter();
        let others: Result<_, _> = others.map(|kind| self.of(kind).map(|count| (kind, count))).collect();
        Ok(LostCounts { drops: self.drops()?, others: others? })
    }

    fn drops(&self) -> Result<Vec<(Drop, u64)>, DataplaneError> {
        let of = |reason: &Drop| {
            let of_cpus = self.budgets.get(&(*reason as u32), 0).map_err(map_error("read", EVENT_BUDGETS))?;
            Ok((*reason, of_cpus.iter().map(|budget| budget.lost).sum()))
        };
        Drop::ALL.iter().map(of).collect()
    }

    /// The kind is not [`Kind::Drop`].
    fn of(&self, kind: Kind) -> Result<u64, DataplaneError> {
        let of_cpus = self.verdicts.get(&(kind as u32), 0);
        Ok(of_cpus.map_err(map_error("read", VERDICTS_LOST))?.iter().sum())
    }
}

impl EventSwitch {
    /// Returns how many events of new flows did not fit the ring, since the programs were loaded.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn lost_flows(&self) -> Result<u64, DataplaneError> {
        [Kind::Flow, Kind::Translation].into_iter().map(|kind| self.lost.of(kind)).sum()
    }

    /// Returns how many packets did not fit the ring, since the programs were loaded.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn lost_packets(&self) -> Result<u64, DataplaneError> {
        self.lost.of(Kind::Packet)
    }

    /// Returns how many wanted drops have no event, since the programs were loaded.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn lost_drops(&self) -> Result<u64, DataplaneError> {
        Ok(self.lost.drops()?.iter().map(|(_, lost)| lost).sum())
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
