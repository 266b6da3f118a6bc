//! Which entries of the maps expire, and when.

use std::time::Duration;

use podwire_common::abi::{ENDPOINT_STACK_ONLY, Flow, StackFlow, Translation};
use podwire_common::flow::protocol;
use podwire_common::nat::{idle_timeout, idle_timeout_under_pressure};

/// Interval of the collector's rounds through the maps, and of the agent's periodic checks. A check
/// compares the kernel with the wanted state only for a reason, such as a change that the kernel
/// has reported, or a last comparison that failed or is too old.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// After this much silence, conntrack has certainly forgotten a TCP flow. Its own limit for an
/// established TCP connection is five days (`nf_conntrack_tcp_timeout_established`).
const STACK_FLOW_TCP: Duration = Duration::from_hours(5 * 24 + 1);
/// The same for other protocols. Conntrack's longest limit for these is ten minutes
/// (`nf_conntrack_generic_timeout`).
const STACK_FLOW_OTHER: Duration = Duration::from_mins(15);

/// Fill level, as numerator and denominator, below which a table, or the share of a holder in it,
/// has room again. A pod with all flows on the host stack can then get the fast path back.
const ROOM: (usize, usize) = (3, 4);

/// After this much silence, the collector asks connection tracking whether it still knows a flow.
const SILENCE: Duration = Duration::from_mins(1);
/// Largest number of queries to connection tracking in one round.
pub const QUESTIONS: usize = 2000;

/// Returns the time until the collector's next round: short under pressure.
pub fn pause(pressure: bool) -> Duration {
    if pressure { Duration::from_secs(1) } else { INTERVAL }
}

/// Returns whether a translation has been silent for too long. Both of its entries give the same
/// result.
pub fn translation_expired(flow: &Flow, translation: &Translation, now: u64, pressure: bool) -> bool {
    let timeout = if pressure { idle_timeout_under_pressure } else { idle_timeout };
    silent_for(translation.last_seen, now) > Duration::from_secs(timeout(translation.state, flow.protocol))
}

/// Returns whether a flow through the host stack has been silent for long enough to ask connection
/// tracking about it.
pub fn is_silent(entry: StackFlow, now: u64) -> bool {
    silent_for(entry.last_seen, now) > SILENCE
}

/// Returns whether connection tracking finds the flow by its 5-tuple alone. ICMP needs type and
/// code as well.
pub fn can_be_asked_for(flow: &Flow) -> bool {
    matches!(flow.protocol, protocol::TCP | protocol::UDP)
}

/// Returns whether a flow through the host stack has been silent for so long that conntrack can no
/// longer have it. The collector uses this if it cannot ask about the flow ([`can_be_asked_for`]),
/// or if connection tracking does not answer.
pub fn stack_flow_expired(flow: &Flow, entry: StackFlow, now: u64) -> bool {
    let bound = if flow.protocol == protocol::TCP { STACK_FLOW_TCP } else { STACK_FLOW_OTHER };
    silent_for(entry.last_seen, now) > bound
}

/// Returns whether a table of `capacity` entries has room again.
pub fn has_room(used: usize, capacity: usize) -> bool {
    used * ROOM.1 < capacity * ROOM.0
}

/// Returns whether all flows of an endpoint take the host stack, because `STACK_FLOWS` had no room
/// for one of them.
pub fn is_stack_only(flags: u32) -> bool {
    flags & ENDPOINT_STACK_ONLY != 0
}

fn silent_for(last_seen: u64, now: u64) -> Duration {
    // A program may have written a later time: `now` was read before the entry.
    Duration::from_nanos(now.saturating_sub(last_seen))
}

/// Returns `CLOCK_MONOTONIC` in nanoseconds, the clock of the programs.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwire_common::abi::{
        STATE_ESTABLISHED, STATE_FIN, STATE_REPLIED, STATE_REPLY_FIN, STATE_RESET, TRANSLATION_SNAT,
    };
    use podwire_common::addr::{Addr, Be16};

    const SECOND: u64 = 1_000_000_000;

    fn flow(number: u8) -> Flow {
        let (pod, world) = (Addr::from_v4([10, 244, 1, 2]), Addr::from_v4([203, 0, 113, 5]));
        Flow::new(pod, world, Be16::new(40000), Be16::new(443), number)
    }

    fn translation(state: u8) -> Translation {
        let flow = flow(protocol::TCP);
        Translation {
            last_seen: 0,
            source: Addr::from_v4([192, 0, 2, 1]),
            destination: flow.destination,
            source_port: Be16::new(61000),
            destination_port: flow.destination_port,
            ifindex: 2,
            asked: 0,
            kind: TRANSLATION_SNAT,
            reply: 0,
            state,
            hairpin: 0,
            past_stack: 0,
            is_long: 0,
            service: 0,
            list: 0,
        }
    }

    #[test]
    fn a_translation_ends_with_its_states_timeout() {
        const OPEN: u8 = STATE_REPLIED | STATE_ESTABLISHED;
        let tcp = flow(protocol::TCP);
        let expired =
            |state, seconds| translation_expired(&tcp, &translation(state), seconds * SECOND, false);
        assert!(!expired(OPEN, 7440));
        assert!(expired(OPEN, 7441));
        assert!(!expired(OPEN | STATE_FIN, 240));
        assert!(expired(OPEN | STATE_FIN | STATE_REPLY_FIN, 66));
        assert!(expired(STATE_REPLIED, 61));
        let seen_later = Translation { last_seen: 70 * SECOND, ..translation(STATE_RESET) };
        assert!(!translation_expired(&tcp, &seen_later, 66 * SECOND, false));
    }

    #[test]
    fn under_pressure_only_flows_that_are_over_leave_at_once() {
        let tcp = flow(protocol::TCP);
        let expired = |state, seconds| translation_expired(&tcp, &translation(state), seconds * SECOND, true);
        assert!(expired(STATE_RESET, 3));
        assert!(expired(0, 6));
        assert!(!expired(STATE_REPLIED | STATE_ESTABLISHED, 7440));
    }

    #[test]
    fn a_stack_flow_outlives_conntracks_own_entry() {
        let entry = StackFlow { last_seen: 0 };
        let five_days = 5 * 24 * 3600 * SECOND;
        assert!(!stack_flow_expired(&flow(protocol::TCP), entry, five_days));
        assert!(stack_flow_expired(&flow(protocol::TCP), entry, five_days + 3601 * SECOND));
        assert!(!stack_flow_expired(&flow(protocol::UDP), entry, 600 * SECOND));
        assert!(stack_flow_expired(&flow(protocol::UDP), entry, 901 * SECOND));
    }

    #[test]
    fn there_is_room_again_below_three_quarters() {
        assert!(has_room(74, 100));
        assert!(!has_room(75, 100));
    }
}
