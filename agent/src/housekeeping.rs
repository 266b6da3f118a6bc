//! What ages out of the maps, and when.

use std::time::Duration;

use podwire_common::abi::{ENDPOINT_STACK_ONLY, Flow, StackFlow, Translation};
use podwire_common::flow::protocol;
use podwire_common::nat::{idle_timeout, whole_state};

/// How often the maps are looked through and the kernel is compared with what is wanted.
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

/// Whether a translation has been silent for too long; [`whole`] of its halves.
pub fn translation_expired(flow: &Flow, translation: &Translation, now: u64) -> bool {
    let timeout = Duration::from_secs(idle_timeout(translation.state, flow.protocol));
    silent_for(translation.last_seen, now) > timeout
}

/// A translation as both its halves tell it: each sees one direction only. The later time and the further state.
pub fn whole(half: &Translation, other: Option<&Translation>) -> Translation {
    let other = other.unwrap_or(half);
    Translation {
        last_seen: half.last_seen.max(other.last_seen),
        state: whole_state(half.state, other.state),
        ..*half
    }
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

/// The other half of a translation: the pod's flow and its reply as it arrives are each other's key.
pub fn other_half(flow: &Flow, translation: &Translation) -> Flow {
    use podwire_common::abi::TRANSLATION_SOURCE;
    let mut translated = *flow;
    if translation.kind == TRANSLATION_SOURCE {
        translated.source = translation.address;
        translated.source_port = translation.port;
    } else {
        translated.destination = translation.address;
        translated.destination_port = translation.port;
    }
    translated.reversed()
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
        STATE_CLOSING, STATE_ESTABLISHED, STATE_NEW, TRANSLATION_DESTINATION, TRANSLATION_SOURCE,
    };
    use podwire_common::addr::{Addr, Be16};

    const SECOND: u64 = 1_000_000_000;

    fn flow(number: u8) -> Flow {
        let (pod, world) = (Addr::from_v4([10, 244, 1, 2]), Addr::from_v4([203, 0, 113, 5]));
        Flow::new(pod, world, Be16::new(40000), Be16::new(443), number)
    }

    fn translation(kind: u8, address: [u8; 4], port: u16, state: u8) -> Translation {
        Translation {
            last_seen: 0,
            address: Addr::from_v4(address),
            port: Be16::new(port),
            kind,
            state,
            reserved: 0,
        }
    }

    #[test]
    fn each_half_of_a_translation_finds_the_other() {
        let out = translation(TRANSLATION_SOURCE, [192, 0, 2, 1], 61000, STATE_ESTABLISHED);
        let reply = other_half(&flow(protocol::TCP), &out);
        assert_eq!(reply.destination, Addr::from_v4([192, 0, 2, 1]));
        assert_eq!((reply.source_port.get(), reply.destination_port.get()), (443, 61000));
        let back = translation(TRANSLATION_DESTINATION, [10, 244, 1, 2], 40000, STATE_ESTABLISHED);
        assert_eq!(other_half(&reply, &back), flow(protocol::TCP));
    }

    #[test]
    fn the_two_halves_of_an_echo_find_each_other() {
        // The identifier is the port of the side that asks; the other port is 0.
        let mut request = flow(protocol::ICMP);
        request.destination_port = Be16::ZERO;
        let out = translation(TRANSLATION_SOURCE, [192, 0, 2, 1], 7, STATE_ESTABLISHED);
        let reply = other_half(&request, &out);
        assert_eq!((reply.source_port.get(), reply.destination_port.get()), (0, 7));
    }

    #[test]
    fn a_translation_ends_with_its_protocols_timeout() {
        let established = translation(TRANSLATION_SOURCE, [192, 0, 2, 1], 1, STATE_ESTABLISHED);
        let closing = translation(TRANSLATION_SOURCE, [192, 0, 2, 1], 1, STATE_CLOSING);
        let tcp = flow(protocol::TCP);
        assert!(!translation_expired(&tcp, &established, 7440 * SECOND));
        assert!(translation_expired(&tcp, &established, 7441 * SECOND));
        assert!(!translation_expired(&tcp, &closing, 240 * SECOND));
        let closed = whole(&closing, Some(&closing));
        assert!(translation_expired(&tcp, &closed, 31 * SECOND));
        let seen_later = Translation { last_seen: 40 * SECOND, ..closed };
        assert!(!translation_expired(&tcp, &seen_later, 31 * SECOND));
    }

    #[test]
    fn a_translation_is_as_alive_as_its_livelier_half() {
        let sent =
            Translation { last_seen: 9, ..translation(TRANSLATION_SOURCE, [192, 0, 2, 1], 1, STATE_NEW) };
        let received = translation(TRANSLATION_DESTINATION, [10, 244, 1, 2], 1, STATE_ESTABLISHED);
        for (half, other) in [(&sent, &received), (&received, &sent)] {
            let whole = whole(half, Some(other));
            assert_eq!((whole.last_seen, whole.state), (9, STATE_ESTABLISHED));
        }
        assert_eq!(whole(&sent, None), sent);
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
