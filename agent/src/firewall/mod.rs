//! What the host's firewall holds about forwarded packets: read, never written, and with no program executed.

mod legacy;
mod nftables;

use std::collections::BTreeSet;
use std::io;

use podwire_core::forward_policy::Place;

/// How often a dump is asked for again when the rules changed meanwhile.
const ATTEMPTS: usize = 3;

/// The places that may drop pods' packets, in this thread's network namespace.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::Interrupted`] when others change the rules all the time.
pub fn look() -> io::Result<BTreeSet<Place>> {
    let mut places = nftables::places();
    for _ in 1..ATTEMPTS {
        if places.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {
            places = nftables::places();
        }
    }
    let mut places: BTreeSet<Place> = places?.into_iter().collect();
    if legacy::drops_pods()? {
        places.insert(Place::LegacyIptables);
    }
    Ok(places)
}

/// Which side of the host stack a rule sees pods on, by the names of their links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    FromPods,
    ToPods,
}

/// Whether rules accept pods' packets both ways.
fn accept_both_ways(accepted: &[Side]) -> bool {
    [Side::FromPods, Side::ToPods].iter().all(|side| accepted.contains(side))
}
