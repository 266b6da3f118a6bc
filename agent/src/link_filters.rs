//! Filters on the host's links and their queueing discipline, for kernels without TCX.

use podwire_common::names::programs;
use tracing::info;

use crate::before::Before;
use crate::dataplane::attach;
use crate::error::Error;
use crate::links::Links;

/// Removes the filters of the links' programs from a device. Also removes clsact if an agent has
/// made it and nothing else is on it. Missing filters are no error.
///
/// # Errors
/// [`Error::Link`].
pub async fn remove(links: &Links, index: u32, name: &str, before: &Before) -> Result<(), Error> {
    detach(links, index, name).await?;
    if before.without_clsact.contains(name) && links.remove_empty_clsact(index).await? {
        info!(device = name, "clsact removed");
    }
    Ok(())
}

/// Removes the filters of the links' programs from a device. Missing filters are no error.
///
/// # Errors
/// [`Error::Link`].
pub async fn detach(links: &Links, index: u32, name: &str) -> Result<(), Error> {
    let filters = links.filters(index).await?;
    let found = [filters.ingress, filters.egress];
    if found.iter().flatten().any(|filter| programs::UPLINK_LINKS.contains(&filter.name.as_str())) {
        attach::detach_filters(name);
        info!(device = name, "programs detached");
    }
    Ok(())
}
