//! The events that the programs write about single packets, from the ring to all who listen. The
//! programs write what the listeners together want.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use podwire_common::event::{Event, Kind, VERDICTS};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, broadcast};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};
use tracing::error;

use crate::dataplane::DataplaneError;
use crate::dataplane::packet_events::{EventRing, EventSwitch, Record};
use crate::packet_filter::{self, Filter};

/// Events that a slow listener may be behind. It misses older ones, and learns how many.
const BEHIND: usize = 4096;
/// Drops that the agent keeps for `podwire drops`.
const LAST: usize = 1024;
/// Events that the reader takes before listeners run.
const AT_ONCE: usize = BEHIND / 2;
/// Kinds for which the programs do not wake the reader.
const NOT_WOKEN_FOR: u32 = VERDICTS | Kind::Packet.bit();
/// How often the reader looks for events for which it is not woken.
const PAUSE: Duration = Duration::from_millis(10);
/// How often a listener looks for lost events of drops.
const DROPS_PAUSE: Duration = Duration::from_secs(1);

/// Events that the programs could not write although a listener wanted them: the ring was full, or
/// a reason's budget was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Drops.
    pub drops: u64,
    /// New flows.
    pub flows: u64,
    /// Packets.
    pub packets: u64,
}

/// The place where listeners subscribe.
#[derive(Clone)]
pub struct Listeners(Arc<Shared>);

struct Shared {
    /// The last drops, the oldest first.
    drops: Mutex<VecDeque<Event>>,
    told: broadcast::Sender<Record>,
    wanted: Mutex<Wanted>,
    /// What is wanted has changed.
    changed: Notify,
}

struct Wanted {
    switch: EventSwitch,
    next: u64,
    filters: BTreeMap<u64, Filter>,
}

/// One listener. The programs write what it wants until it is dropped.
pub struct Listener {
    shared: Arc<Shared>,
    number: u64,
    filter: Filter,
    told: broadcast::Receiver<Record>,
    lost: Lost,
    drops_read: Instant,
}

impl Listeners {
    /// Returns a place without listeners.
    pub fn new(switch: EventSwitch) -> Self {
        let wanted = Mutex::new(Wanted { switch, next: 0, filters: BTreeMap::new() });
        let drops = Mutex::new(VecDeque::with_capacity(LAST));
        let told = broadcast::Sender::new(BEHIND);
        Self(Arc::new(Shared { drops, told, wanted, changed: Notify::new() }))
    }

    /// Returns the last drops that had an event, the oldest first.
    pub fn last_drops(&self) -> Vec<Event> {
        self.0.drops().iter().copied().collect()
    }

    /// Listens from now on.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn listen(&self, filter: Filter) -> Result<Listener, DataplaneError> {
        let (shared, told) = (Arc::clone(&self.0), self.0.told.subscribe());
        let mut wanted = self.0.wanted();
        let number = wanted.next;
        wanted.next += 1;
        let switch = &wanted.switch;
        let lost = Lost {
            drops: switch.lost_drops()?,
            flows: switch.lost_flows()?,
            packets: switch.lost_packets()?,
        };
        drop(wanted);
        let listener = Listener { shared, number, filter, told, lost, drops_read: Instant::now() };
        self.0.set(number, Some(listener.filter.clone()))?;
        Ok(listener)
    }

    fn is_to_look(&self) -> bool {
        self.0.wanted().switch.wanted().kinds & NOT_WOKEN_FOR != 0
    }
}

impl Shared {
    fn drops(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.drops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a record on, and keeps it if it is a drop.
    fn tell(&self, record: Record) {
        if record.event.kind == Kind::Drop as u8 {
            let mut drops = self.drops();
            if drops.len() == LAST {
                drops.pop_front();
            }
            drops.push_back(record.event);
        }
        // An error only says that nobody listens.
        let _ = self.told.send(record);
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, number: u64, filter: Option<Filter>) -> Result<(), DataplaneError> {
        let mut wanted = self.wanted();
        match filter {
            Some(filter) => wanted.filters.insert(number, filter),
            None => wanted.filters.remove(&number),
        };
        let Wanted { switch, filters, .. } = &mut *wanted;
        switch.set(&packet_filter::of_all(filters.values()))?;
        drop(wanted);
        self.changed.notify_one();
        Ok(())
    }
}

impl Listener {
    /// Returns the next event that the listener wants, or the number of events that it has missed.
    /// `None`: there are no more.
    pub async fn next(&mut self) -> Option<Result<Record, u64>> {
        use broadcast::error::RecvError;
        loop {
            match self.told.recv().await {
                Ok(record) if self.filter.matches(&record.event) => return Some(Ok(record)),
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => return Some(Err(missed)),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Does the same as [`Self::next`] without waiting. `None`: there is nothing now.
    pub fn next_now(&mut self) -> Option<Result<Record, u64>> {
        use broadcast::error::TryRecvError;
        loop {
            match self.told.try_recv() {
                Ok(record) if self.filter.matches(&record.event) => return Some(Ok(record)),
                Ok(_) => {}
                Err(TryRecvError::Lagged(missed)) => return Some(Err(missed)),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
    }

    /// Wants something else from now on.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn set_filter(&mut self, filter: Filter) -> Result<(), DataplaneError> {
        if self.filter == filter {
            return Ok(());
        }
        self.shared.set(self.number, Some(filter.clone()))?;
        self.filter = filter;
        Ok(())
    }

    /// Returns how many events of the kinds that the listener wants were lost since the last call.
    /// Events that another listener wanted may be among them. Of drops the answer is a second old at
    /// most: they have a counter for each reason.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn lost(&mut self) -> Result<Lost, DataplaneError> {
        let mut now = self.lost;
        let wanted = self.shared.wanted();
        if self.filter.wants_kind(Kind::Flow) || self.filter.wants_kind(Kind::Translation) {
            now.flows = wanted.switch.lost_flows()?;
        }
        if self.filter.wants_kind(Kind::Packet) {
            now.packets = wanted.switch.lost_packets()?;
        }
        if self.filter.wants_kind(Kind::Drop) && self.drops_read.elapsed() >= DROPS_PAUSE {
            now.drops = wanted.switch.lost_drops()?;
            self.drops_read = Instant::now();
        }
        drop(wanted);
        let before = std::mem::replace(&mut self.lost, now);
        Ok(Lost {
            drops: now.drops - before.drops,
            flows: now.flows - before.flows,
            packets: now.packets - before.packets,
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = self.shared.set(self.number, None) {
            error!("the programs go on writing events for a listener that is gone: {error}");
        }
    }
}

/// Reads the ring until the process ends. Without listeners, only the last drops are kept: the
/// ring must not be full of old events when somebody begins to listen.
pub async fn read(ring: EventRing, listeners: Listeners) {
    if let Err(error) = try_read(ring, &listeners).await {
        error!("cannot read the programs' events, so `podwire monitor` shows none: {error}");
    }
}

async fn try_read(ring: EventRing, listeners: &Listeners) -> io::Result<()> {
    #[expect(unsafe_code, reason = "tokio has no safe way to wait for a descriptor")]
    // SAFETY: the ring owns its descriptor, never changes it, and lives as long as the waiter.
    let mut ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
    loop {
        let is_to_look = listeners.is_to_look();
        tokio::select! {
            guard = ring.readable_mut() => guard?.clear_ready(),
            () = listeners.0.changed.notified() => {}
            () = sleep(PAUSE), if is_to_look => {}
        }
        let mut taken = 0;
        while let Some(record) = ring.get_mut().pop() {
            listeners.0.tell(record);
            taken += 1;
            if taken % AT_ONCE == 0 {
                yield_now().await;
            }
        }
    }
}
