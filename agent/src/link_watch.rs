//! Tells the owner of state when other programs change links, addresses, routes or IPsec policies.
//! Without this, a new uplink would have no programs until the next check of the kernel, up to ten
//! seconds later.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use crate::events::Event;
use crate::links::{LinkError, Notices};

/// Waiting time for related changes: a link, its addresses and its routes change together.
const SETTLE: Duration = Duration::from_millis(100);
/// Pause between two events: a host that starts many containers makes many links.
const PAUSE: Duration = Duration::from_secs(1);

/// Sends [`Event::LinksChanged`] a moment after each change, until the receiver is dropped.
///
/// # Errors
/// [`LinkError::File`] when the kernel's notices cannot be read.
pub async fn watch(events: mpsc::Sender<Event>) -> Result<(), LinkError> {
    let notices = Notices::listen()?;
    loop {
        while !notices.is_of_others().await? {}
        let settled = Instant::now() + SETTLE;
        while timeout_at(settled, notices.is_of_others()).await.is_ok() {}
        if events.send(Event::LinksChanged).await.is_err() {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}
