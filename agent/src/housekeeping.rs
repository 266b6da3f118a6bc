//! What ages out of the maps, and when.

use std::time::Duration;

use podwire_common::abi::{ENDPOINT_STACK_ONLY, Flow, StackFlow, Translation};
use podwire_common::flow::protocol;
use podwire_common::nat::{idle_timeout, idle_timeout_under_pressure};

/// How often the maps are looked through, and the kernel is compared with what is wanted if it has told of a change.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// After this much silence conntrack has certainly forgotten a flow: its own bound for an established TCP connection
/// is five days (`nf_conntrack_tcp_timeout_established`), for anything else minutes.
const STACK_FLOW_TCP: Duration = Duration::from_hours(5 * 24 + 1);
/// The same for other protocols; conntrack's longest is `nf_conntrack_generic_timeout`, ten minutes.
const STACK_FLOW_OTHER: Duration = Duration::from_mins(15);

/// Share of `STACK_FLOWS` below which endpoints that were turned to the stack for want of room are turned back.
const ROOM: (usize, usize) = (3, 4);

/// After this much silence connection tracking is asked whether it still knows a flow.
const SILENCE: Duration = Duration::from_mins(1);
/// Questions to connection tracking in one round.
pub const QUESTIONS: usize = 2000;

/// How long until the tables are looked through again: soon while one is nearly full.
pub fn pause(pressure: bool) -> Duration {
    if pressure { Duration::from_secs(1) } else { INTERVAL }
}

/// Whether a translation has been silent for too long. Each half tells the same.
pub fn translation_expired(flow: &Flow, translation: &Translation, now: u64, pressure: bool) -> bool {
    let timeout = if pressure { idle_timeout_under_pressure } else { idle_timeout };
    silent_for(translation.last_seen, now) > Duration::from_secs(timeout(translation.state, flow.protocol))
}

/// Whether a flow that goes through the stack has been silent for long enough to ask whether it is still there.
pub fn is_silent(entry: StackFlow, now: u64) -> bool {
    silent_for(entry.last_seen, now) > SILENCE
}

/// Whether connection tracking finds the flow by its 5-tuple alone. ICMP needs type and code as well.
pub fn can_be_asked_for(flow: &Flow) -> bool {
    matches!(flow.protocol, protocol::TCP | protocol::UDP)
}

/// Whether a flow that goes through the stack has been silent for so long that conntrack has none any more, whatever it
/// says: for flows that cannot be asked for, and without connection tracking.
pub fn stack_flow_expired(flow: &Flow, entry: StackFlow, now: u64) -> bool {
    let bound = if flow.protocol == protocol::TCP { STACK_FLOW_TCP } else { STACK_FLOW_OTHER };
    silent_for(entry.last_seen, now) > bound
}

/// Whether there is room again in a table of `capacity`.
pub fn has_room(used: usize, capacity: usize) -> bool {
    used * ROOM.1 < capacity * ROOM.0
}

/// Whether an endpoint was turned to the stack for want of room.
pub fn is_stack_only(flags: u32) -> bool {
    flags & ENDPOINT_STACK_ONLY != 0
}

fn silent_for(last_seen: u64, now: u64) -> Duration {
    // A program may have written a later time than `now`, which was read before.
    Duration::from_nanos(now.saturating_sub(last_seen))
}

/// `CLOCK_MONOTONIC` in nanoseconds, as the programs read it.
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
            reserved: [0; 6],
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
