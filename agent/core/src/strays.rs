//! Devices that are named like a pod's link but belong to no pod. They remain if the plugin dies
//! during an ADD, after it made the veth pair and before it asked the agent. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a device may have no owner before the agent removes it. An ADD in progress must not
/// lose its link, but it ends much earlier: the plugin waits only ten seconds for the agent.
pub const GRACE: Duration = Duration::from_secs(60);

/// Devices without an owner, by ifindex, and since when they have none.
#[derive(Clone, Debug, Default)]
pub struct Strays {
    since: BTreeMap<u32, Instant>,
}

impl Strays {
    /// Records the devices that have no owner now. Returns those that had no owner at any look
    /// during the last [`GRACE`] or longer.
    pub fn look(&mut self, ownerless: impl IntoIterator<Item = u32>, now: Instant) -> Vec<u32> {
        let before = std::mem::take(&mut self.since);
        self.since =
            ownerless.into_iter().map(|index| (index, before.get(&index).copied().unwrap_or(now))).collect();
        self.since.iter().filter(|(_, since)| is_over(**since, now)).map(|(index, _)| *index).collect()
    }

    /// Returns whether [`GRACE`] is over for any device, so that the caller should look again.
    pub fn due(&self, now: Instant) -> bool {
        self.since.values().any(|since| is_over(*since, now))
    }
}

fn is_over(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= GRACE
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_device_is_a_stray_when_it_had_no_owner_for_the_whole_grace() {
        let (mut strays, start) = (Strays::default(), Instant::now());
        assert_eq!(strays.look([7], start), [0; 0]);
        assert!(!strays.due(start + GRACE - SECOND));
        assert_eq!(strays.look([7, 8], start + GRACE - SECOND), [0; 0]);
        assert!(strays.due(start + GRACE));
        assert_eq!(strays.look([7, 8], start + GRACE), [7]);
    }

    #[test]
    fn a_device_that_got_an_owner_or_went_begins_anew() {
        let (mut strays, start) = (Strays::default(), Instant::now());
        strays.look([7], start);
        strays.look([0; 0], start + SECOND);
        assert_eq!(strays.look([7], start + GRACE + SECOND), [0; 0]);
        assert!(!strays.due(start + GRACE + SECOND));
    }
}
