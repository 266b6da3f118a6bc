//! Reads services from a file, and watches the file.

use std::path::PathBuf;
use std::time::Duration;

use podwire_core::services::list::ServiceList;
use tokio::sync::mpsc;
use tracing::info;

use super::objects::Entries;
use crate::events::Event;
use crate::objects::list;
use crate::watched_file::{WatchError, Watched};

/// Largest size of the file in bytes: three times the 80 MB of 10,000 services with 50,000
/// endpoints.
const LARGEST: u64 = 256 << 20;

/// Sends the file's content as an event now and after every change. If the file cannot be used, the
/// event says why.
///
/// # Errors
/// The errors of [`Watched::watch`].
pub async fn watch(path: PathBuf, events: mpsc::Sender<Event>) -> Result<(), WatchError> {
    let file = Watched { what: "the service list", path: path.clone(), limit: LARGEST };
    file.watch(&events, move |file| match file.map(|file| list::parse(&path, file)) {
        Ok(Ok(entries)) => {
            let Entries { services, slices, problems, .. } = entries;
            info!(path = %path.display(), services = services.len(), slices = slices.len(), "service list read");
            Event::Services(ServiceList { services, slices, problems, age: Duration::ZERO })
        }
        Ok(Err(error)) => Event::ServicesUnusable(error.to_string()),
        Err(reason) => Event::ServicesUnusable(reason),
    })
    .await
}
