//! Decisions of address translation that need no kernel.

use crate::abi::{Flow, STATE_FIN, STATE_REPLIED, STATE_REPLY_FIN, STATE_RESET, Translation};
use crate::flow::protocol;

/// How many ports are tried before a flow is refused. With 20,000 of the default range's 32,768 ports taken, all tries fail
/// for one flow in 10^13.
pub const PORT_ATTEMPTS: u32 = 64;
/// TCP flags (RFC 9293 section 3.1).
pub const TCP_FIN: u8 = 0x01;
/// Synchronize.
pub const TCP_SYN: u8 = 0x02;
/// Acknowledgement.
pub const TCP_ACK: u8 = 0x10;
/// Reset.
pub const TCP_RST: u8 = 0x04;

/// The port of an attempt: the flow's own first, then a walk through the range from a random start (RFC 6056).
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

/// The state of a translation after one more packet. `reply`: it travelled in the direction of the replies.
#[inline(always)]
pub const fn next_state(state: u8, protocol_number: u8, tcp_flags: u8, reply: bool) -> u8 {
    if protocol_number == protocol::TCP {
        if tcp_flags & TCP_SYN != 0 {
            // Also where the 5-tuple of a connection that ended is used again.
            return if reply { STATE_REPLIED } else { 0 };
        }
        let fin = if reply { STATE_REPLY_FIN } else { STATE_FIN };
        // Whoever goes on has not believed a reset, or is answered with another one.
        let seen = state & !STATE_RESET | if reply { STATE_REPLIED } else { 0 };
        let ended = if tcp_flags & TCP_FIN != 0 { fin } else { 0 };
        let reset = if tcp_flags & TCP_RST != 0 { STATE_RESET } else { 0 };
        return seen | ended | reset;
    }
    state | if reply { STATE_REPLIED } else { 0 }
}

/// Whether a TCP connection is over: reset, or closed by both sides.
#[inline(always)]
pub const fn is_closed(state: u8) -> bool {
    const BOTH: u8 = STATE_FIN | STATE_REPLY_FIN;
    state & STATE_RESET != 0 || state & BOTH == BOTH
}

/// Seconds that a closed TCP connection is remembered: a little longer than its server does (`TCP_TIMEWAIT_LEN` of Linux, a minute),
/// so that its port is not given to another pod meanwhile.
const CLOSED_TIMEOUT: u64 = 65;

/// Seconds of silence after which a translation is removed (TCP: RFC 5382 REQ-5, which asks for four
/// minutes in transitory states, but for what both sides have closed; UDP: RFC 4787 REQ-5; ICMP: RFC 5508 REQ-2).
pub const fn idle_timeout(state: u8, protocol_number: u8) -> u64 {
    let replied = state & STATE_REPLIED != 0;
    match protocol_number {
        protocol::TCP if is_closed(state) => CLOSED_TIMEOUT,
        protocol::TCP if replied && state & (STATE_FIN | STATE_REPLY_FIN) == 0 => 7440,
        protocol::TCP => 240,
        protocol::UDP if replied => 300,
        protocol::UDP => 120,
        _ => 60,
    }
}

/// The same while the table is nearly full: what is over leaves soon, and what nobody has answered.
pub const fn idle_timeout_under_pressure(state: u8, protocol_number: u8) -> u64 {
    let ordinary = idle_timeout(state, protocol_number);
    let short = if is_closed(state) {
        2
    } else if state & STATE_REPLIED == 0 {
        20
    } else {
        ordinary
    };
    if short < ordinary { short } else { ordinary }
}

impl Translation {
    /// What the flow of this half becomes.
    #[inline(always)]
    pub const fn translated(&self, protocol_number: u8) -> Flow {
        Flow::new(self.source, self.destination, self.source_port, self.destination_port, protocol_number)
    }

    /// The key of the other half.
    #[inline(always)]
    pub const fn other_half(&self, protocol_number: u8) -> Flow {
        self.translated(protocol_number).reversed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_chosen_port_is_in_its_range(own in any::<u16>(), attempt in 1u32..PORT_ATTEMPTS, random in any::<u32>(), first in 1024u16..40000, span in 0u16..20000) {
            let last = first + span;
            let port = port_for_attempt(own, attempt, random, first, last);
            prop_assert!((first..=last).contains(&port));
        }

        #[test]
        fn no_attempt_is_wasted_on_a_port_that_was_tried(random in any::<u32>(), first in 1024u16..30000, span in 20000u16..32768) {
            let tried: BTreeSet<_> = (1..PORT_ATTEMPTS)
                .map(|attempt| port_for_attempt(80, attempt, random, first, first + span))
                .collect();
            prop_assert_eq!(tried.len(), PORT_ATTEMPTS as usize - 1);
        }

        #[test]
        fn the_state_is_that_of_a_plain_reading_of_all_packets(packets in prop::collection::vec((0u8..32, any::<bool>()), 1..20)) {
            let state = packets.iter().fold(0, |state, (flags, reply)| next_state(state, protocol::TCP, *flags, *reply));
            // Slow and obvious: only what came since the last SYN counts.
            let begin = packets.iter().rposition(|(flags, _)| flags & TCP_SYN != 0);
            let rest = &packets[begin.map_or(0, |at| at + 1)..];
            let seen = |flag: u8, reply: bool| rest.iter().any(|(flags, r)| flags & flag != 0 && *r == reply);
            let replied = begin.is_some_and(|at| packets[at].1) || rest.iter().any(|(_, reply)| *reply);
            prop_assert_eq!(state & STATE_REPLIED != 0, replied);
            prop_assert_eq!(state & STATE_FIN != 0, seen(TCP_FIN, false));
            prop_assert_eq!(state & STATE_REPLY_FIN != 0, seen(TCP_FIN, true));
            prop_assert_eq!(state & STATE_RESET != 0, rest.last().is_some_and(|(flags, _)| flags & TCP_RST != 0));
        }

        #[test]
        fn pressure_never_lengthens_a_timeout(state in 0u8..16, number in any::<u8>()) {
            prop_assert!(idle_timeout_under_pressure(state, number) <= idle_timeout(state, number));
        }
    }

    #[test]
    fn the_first_attempt_keeps_the_port() {
        assert_eq!(port_for_attempt(40123, 0, 7, 1024, 2048), 40123);
    }

    #[test]
    fn a_connection_that_both_sides_closed_leaves_early() {
        let tcp = |state, flags, reply| next_state(state, protocol::TCP, flags, reply);
        let timeout = |state| idle_timeout(state, protocol::TCP);
        let begun = tcp(0, TCP_SYN, false);
        assert_eq!(timeout(begun), 240);
        let established = tcp(begun, TCP_SYN | TCP_ACK, true);
        assert_eq!(timeout(established), 7440);
        let half_closed = tcp(established, TCP_FIN, false);
        assert_eq!(timeout(half_closed), 240, "the other side may still send");
        let closed = tcp(half_closed, TCP_FIN, true);
        assert!(is_closed(closed));
        assert_eq!(timeout(closed), 65);
        let again = tcp(tcp(closed, TCP_SYN, false), TCP_SYN | TCP_ACK, true);
        assert_eq!(timeout(again), 7440, "the 5-tuple is used again");
        assert!(is_closed(tcp(established, TCP_RST, true)));
    }

    #[test]
    fn a_reset_after_which_both_go_on_is_none() {
        let established = STATE_REPLIED;
        // Anybody can send one; the receiver believes it only with the right sequence number (RFC 5961 section 3).
        let reset = next_state(established, protocol::TCP, TCP_RST, true);
        assert_eq!(idle_timeout(reset, protocol::TCP), 65);
        let gone_on = next_state(reset, protocol::TCP, TCP_ACK, false);
        assert_eq!(idle_timeout(gone_on, protocol::TCP), 7440);
    }

    #[test]
    fn flags_mean_nothing_outside_tcp() {
        assert_eq!(next_state(0, protocol::UDP, TCP_FIN, false), 0);
        assert_eq!(next_state(0, protocol::UDP, TCP_RST, true), STATE_REPLIED);
    }
}
