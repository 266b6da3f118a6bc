//! Reads the host's firewall rules for forwarded packets. Writes nothing and executes no program.

mod legacy;
mod nftables;

use std::collections::BTreeSet;
use std::io;

use podwire_core::forward_policy::Place;

/// Largest number of attempts to read nftables' rules while they keep changing.
const ATTEMPTS: usize = 3;

/// Returns the places that may drop pods' packets of either family, in this thread's network
/// namespace.
///
/// # Errors
/// The kernel's error; [`io::ErrorKind::Interrupted`] when nftables' rules change in every attempt,
/// or when a legacy table changes while the agent reads it.
pub fn look() -> io::Result<BTreeSet<Place>> {
    let mut places = nftables::places();
    for _ in 1..ATTEMPTS {
        if places.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {
            places = nftables::places();
        }
    }
    let mut places: BTreeSet<Place> = places?.into_iter().collect();
    for (tables, place) in [(&legacy::IPV4, Place::LegacyIptables), (&legacy::IPV6, Place::LegacyIp6tables)] {
        if tables.drop_pods()? {
            places.insert(place);
        }
    }
    Ok(places)
}

/// The side of the host stack on which a rule sees pods, by the names of their links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    FromPods,
    ToPods,
}

/// Returns whether rules accept pods' packets in both directions.
fn accept_both_ways(accepted: &[Side]) -> bool {
    [Side::FromPods, Side::ToPods].iter().all(|side| accepted.contains(side))
}
