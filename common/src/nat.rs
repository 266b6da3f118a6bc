//! Decisions of source translation that need no kernel.

use crate::abi::{STATE_CLOSED, STATE_CLOSING, STATE_ESTABLISHED, STATE_NEW};
use crate::flow::protocol;

/// How many ports are tried before a flow is refused.
pub const PORT_ATTEMPTS: u32 = 32;
/// TCP flags (RFC 9293 section 3.1).
pub const TCP_FIN: u8 = 0x01;
/// Synchronize.
pub const TCP_SYN: u8 = 0x02;
/// Acknowledgement.
pub const TCP_ACK: u8 = 0x10;
/// Reset.
pub const TCP_RST: u8 = 0x04;

/// The port of an attempt: the flow's own first, then a walk through the range from a random start.
#[inline(always)]
pub const fn port_for_attempt(own: u16, attempt: u32, random: u32, first: u16, last: u16) -> u16 {
    if attempt == 0 {
        return own;
    }
    // At least 1 for whatever bounds: the verifier refuses a division by zero, and so would a panic.
    let span = last.wrapping_sub(first) as u32 + 1;
    // A step that is odd and larger than most bursts of neighbours.
    first.wrapping_add((random.wrapping_add(attempt.wrapping_mul(257)) % span) as u16)
}

/// The state of one half after one more packet of its direction. `reply`: it travelled towards the pod.
#[inline(always)]
pub const fn next_state(state: u8, protocol_number: u8, tcp_flags: u8, reply: bool) -> u8 {
    let begun = if reply { STATE_ESTABLISHED } else { STATE_NEW };
    if protocol_number == protocol::TCP {
        if tcp_flags & TCP_SYN != 0 {
            // Also where the 5-tuple of a connection that ended is used again.
            return begun;
        }
        if tcp_flags & TCP_RST != 0 {
            return STATE_CLOSED;
        }
        if tcp_flags & TCP_FIN != 0 && state < STATE_CLOSING {
            return STATE_CLOSING;
        }
    }
    if state < begun { begun } else { state }
}

/// The state of a translation as both its halves tell it.
pub const fn whole_state(one: u8, other: u8) -> u8 {
    if one == STATE_CLOSING && other == STATE_CLOSING {
        return STATE_CLOSED;
    }
    if one > other { one } else { other }
}

/// Seconds of silence after which a translation in a [`whole_state`] is removed (TCP: RFC 5382 REQ-5, which asks for four
/// minutes in transitory states, but for what both sides have closed; UDP: RFC 4787 REQ-5; ICMP: RFC 5508 REQ-2).
pub const fn idle_timeout(state: u8, protocol_number: u8) -> u64 {
    match (protocol_number, state) {
        (protocol::TCP, STATE_ESTABLISHED) => 7440,
        (protocol::TCP, STATE_NEW | STATE_CLOSING) => 240,
        (protocol::TCP, _) => 30,
        (protocol::UDP, STATE_ESTABLISHED) => 300,
        (protocol::UDP, _) => 120,
        _ => 60,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_chosen_port_is_in_its_range(own in any::<u16>(), attempt in 1u32..PORT_ATTEMPTS, random in any::<u32>(), first in 1024u16..40000, span in 0u16..20000) {
            let last = first + span;
            let port = port_for_attempt(own, attempt, random, first, last);
            prop_assert!((first..=last).contains(&port));
        }
    }

    #[test]
    fn the_first_attempt_keeps_the_port() {
        assert_eq!(port_for_attempt(40123, 0, 7, 1024, 2048), 40123);
    }

    #[test]
    fn a_connection_that_both_sides_closed_leaves_early() {
        let tcp = |state, flags, reply| next_state(state, protocol::TCP, flags, reply);
        let (pod, world) = (tcp(STATE_NEW, TCP_SYN, false), tcp(STATE_NEW, TCP_SYN | 0x10, true));
        assert_eq!(whole_state(pod, world), STATE_ESTABLISHED);
        let pod = tcp(pod, TCP_FIN, false);
        assert_eq!(whole_state(pod, world), STATE_CLOSING);
        assert_eq!(
            idle_timeout(STATE_CLOSING, protocol::TCP),
            240,
            "half closed: the other side may still send"
        );
        let world = tcp(world, TCP_FIN, true);
        assert_eq!(whole_state(pod, world), STATE_CLOSED);
        assert_eq!(idle_timeout(STATE_CLOSED, protocol::TCP), 30);
        let again = (tcp(pod, TCP_SYN, false), tcp(world, TCP_SYN | 0x10, true));
        assert_eq!(whole_state(again.0, again.1), STATE_ESTABLISHED, "the 5-tuple is used again");
        assert_eq!(tcp(STATE_ESTABLISHED, TCP_RST, true), STATE_CLOSED);
    }

    #[test]
    fn flags_mean_nothing_outside_tcp() {
        assert_eq!(next_state(STATE_NEW, protocol::UDP, TCP_FIN, false), STATE_NEW);
        assert_eq!(next_state(STATE_NEW, protocol::UDP, TCP_RST, true), STATE_ESTABLISHED);
    }
}
