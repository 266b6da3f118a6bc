//! The events that the programs write about single packets, from the ring to all who listen.

use std::io;

use podwire_common::event::Event;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;
use tracing::error;

use crate::dataplane::packet_events::EventRing;

/// Events that a slow listener may be behind. It misses older ones, and learns how many.
const BEHIND: usize = 4096;

/// The place where listeners subscribe.
pub type Listeners = broadcast::Sender<Event>;

/// Returns a place without listeners.
pub fn listeners() -> Listeners {
    broadcast::Sender::new(BEHIND)
}

/// Reads the ring until the process ends. Without listeners, events are forgotten: the ring must
/// not be full of old ones when somebody begins to listen.
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
        let mut guard = ring.readable_mut().await?;
        while let Some(event) = guard.get_inner_mut().pop() {
            // An error only says that nobody listens.
            let _ = listeners.send(event);
        }
        guard.clear_ready();
    }
}
