//! Tells the owner of state when others change links, addresses or routes. The look at the kernel every ten seconds would leave a
//! new uplink without programs for as long.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use crate::events::Event;
use crate::links::{LinkError, Notices};

/// Changes come in groups: a link, its addresses, its routes.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two events: a host that starts many containers makes many links.
const PAUSE: Duration = Duration::from_secs(1);

/// Sends [`Event::LinksChanged`] a moment after each change, for as long as somebody takes events.
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
