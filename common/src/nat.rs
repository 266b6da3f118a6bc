//! Decisions of address translation that need no kernel.

use crate::abi::{
    Flow, Holder, STATE_ESTABLISHED, STATE_FIN, STATE_OUTSIDE_RESET, STATE_REPLIED, STATE_REPLY_FIN,
    STATE_RESET, TABLE_TRANSLATIONS, TRANSLATION_HOST_PORT, TRANSLATION_OUTSIDE, TRANSLATION_RELAY,
    TRANSLATION_SERVICE, TRANSLATION_SNAT, TRANSLATION_TUNNEL, Translation,
};
use crate::addr::{Addr, Be16};
use crate::flow::protocol;

/// How many ports a flow tries before it is refused. With 20,000 of the default range's 32,768
/// ports taken, all tries fail for one flow in 10^13.
pub const PORT_ATTEMPTS: u32 = 64;
/// TCP flags (RFC 9293 section 3.1).
pub const TCP_FIN: u8 = 0x01;
/// Synchronize.
pub const TCP_SYN: u8 = 0x02;
/// Acknowledgement.
pub const TCP_ACK: u8 = 0x10;
/// Reset.
pub const TCP_RST: u8 = 0x04;

/// First and last source port of a service's flows: registered ports below those that Linux and
/// Kubernetes' NodePorts use by default. Pods do not choose them for flows of their own.
pub const SERVICE_PORTS: (u16, u16) = (1024, 29_999);

/// First port that Linux chooses for a pod's own flows, unless the pod has other settings.
const EPHEMERAL: u16 = 32_768;

/// Returns the source port that a flow to a service tries first: its own port if that is low enough,
/// or else always the same one for the same ephemeral port. Sequence numbers and timestamps of a
/// client grow from one connection to the next with the same ports. So a server accepts the next
/// connection although it still remembers the last one (RFC 6191), and no two ephemeral ports meet.
/// `None`: any port will do.
#[inline(always)]
pub const fn service_port(own: u16) -> Option<u16> {
    let (first, last) = SERVICE_PORTS;
    if own <= last {
        return Some(own);
    }
    let offset = own.wrapping_sub(EPHEMERAL);
    if own < EPHEMERAL || offset > last - first { None } else { Some(first + offset) }
}

/// Returns whether a port may be the source port of a service's flow after its translation.
#[inline(always)]
pub const fn may_be_service_port(port: u16) -> bool {
    port <= SERVICE_PORTS.1
}

/// Returns a number that chooses a socket's backend from a list of `BACKENDS`: the same one as long
/// as the service has the list, and no pattern from one socket to the next. So no table remembers
/// which backend an unconnected socket has.
#[inline(always)]
pub const fn choice_of_socket(cookie: u64, list: u64) -> u32 {
    // Finalizer of MurmurHash3 for 64 bits: the kernel numbers sockets one after the other.
    let mut hash = cookie ^ list;
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (hash >> 32) as u32
}

/// Returns whether a client of a service with session affinity keeps its backend: its last
/// connection began less than `seconds` ago. Both times are nanoseconds.
#[inline(always)]
pub const fn keeps_backend(last_begun: u64, now: u64, seconds: u32) -> bool {
    // Another CPU may have begun a connection after this one read the clock.
    now.saturating_sub(last_begun) < seconds as u64 * 1_000_000_000
}

/// Returns the port of an attempt after the one with the flow's own port: a walk through the range
/// from a random start (RFC 6056).
#[inline(always)]
pub const fn port_for_attempt(attempt: u32, random: u32, first: u16, last: u16) -> u16 {
    // At least 1 for any bounds: the verifier refuses a program that may divide by zero or panic.
    let span = last.wrapping_sub(first) as u32 + 1;
    // The step is odd, and larger than most runs of adjacent ports in use.
    first.wrapping_add((random.wrapping_add(attempt.wrapping_mul(257)) % span) as u16)
}

/// Returns the state of a translation after one more packet. `reply`: the packet travelled in the
/// direction of the replies. `inside`: the packet came from the end with a checked address, a pod
/// or this node; the other end's address may be forged.
///
/// The states are those of connection tracking (`nf_conntrack_proto_tcp.c`,
/// `nf_conntrack_proto_udp.c`). The third packet establishes a flow: the first packet in the
/// original direction after a reply.
#[inline(always)]
pub const fn next_state(state: u8, protocol_number: u8, tcp_flags: u8, reply: bool, inside: bool) -> u8 {
    let replied = if reply { STATE_REPLIED } else { 0 };
    let is_third = !reply && state & STATE_REPLIED != 0;
    let established = if is_third { STATE_ESTABLISHED } else { 0 };
    if protocol_number != protocol::TCP {
        return state | replied | established;
    }
    if tcp_flags & TCP_RST != 0 {
        return state | if inside { STATE_RESET } else { STATE_OUTSIDE_RESET };
    }
    if tcp_flags & TCP_SYN != 0 {
        // A forged SYN must not return an idle connection to the handshake state. After a
        // connection has ended, the next one may use its 5-tuple.
        return if is_open(state) { state } else { replied };
    }
    let fin = match (tcp_flags & TCP_FIN != 0, reply) {
        (false, _) => 0,
        (true, false) => STATE_FIN,
        (true, true) => STATE_REPLY_FIN,
    };
    // An end that continues did not accept the reset, or the other end will reset it once more.
    (state & !(STATE_RESET | STATE_OUTSIDE_RESET)) | replied | established | fin
}

/// Returns whether packets of a translation in this direction come from the end with a checked
/// address: a pod or a node.
#[inline(always)]
pub const fn is_inside(kind: u8, reply: bool) -> bool {
    matches!(kind, TRANSLATION_HOST_PORT | TRANSLATION_OUTSIDE | TRANSLATION_RELAY | TRANSLATION_TUNNEL)
        == reply
}

/// Returns whether a TCP connection is established and neither end has begun to close it.
#[inline(always)]
const fn is_open(state: u8) -> bool {
    const CLOSING: u8 = STATE_FIN | STATE_REPLY_FIN | STATE_RESET | STATE_OUTSIDE_RESET;
    state & STATE_ESTABLISHED != 0 && state & CLOSING == 0
}

/// Returns whether a TCP connection is over: the end with a checked address reset it, or both ends
/// closed it.
#[inline(always)]
pub const fn is_closed(state: u8) -> bool {
    const BOTH: u8 = STATE_FIN | STATE_REPLY_FIN;
    state & STATE_RESET != 0 || state & BOTH == BOTH
}

/// Seconds for which a closed TCP connection keeps its entry. The server remembers the connection
/// for a little less (`TCP_TIMEWAIT_LEN` of Linux, one minute), so no other pod gets its port too
/// early.
const CLOSED_TIMEOUT: u64 = 65;

/// Returns for how many seconds a translation may be idle before the agent removes it. Open and
/// half closed TCP follow RFC 5382 REQ-5, ICMP follows RFC 5508 REQ-2, established UDP follows RFC
/// 4787 REQ-5 and connection tracking. Flows that wait for their third packet have the timeouts of
/// connection tracking.
pub const fn idle_timeout(state: u8, protocol_number: u8) -> u64 {
    let is_established = state & STATE_ESTABLISHED != 0;
    match protocol_number {
        protocol::TCP if is_closed(state) => CLOSED_TIMEOUT,
        protocol::TCP if is_open(state) => 7440,
        protocol::TCP if is_established => 240,
        // Two seconds more than two minutes: `last_seen` may be older than the last packet.
        protocol::UDP | protocol::UDP_LITE if is_established => 122,
        protocol::UDP | protocol::UDP_LITE => 30,
        protocol::ICMP | protocol::ICMPV6 => 60,
        // SCTP sends heartbeats every 30 s. GRE and ESP tunnels may be idle for minutes.
        _ if is_established => 600,
        _ => 60,
    }
}

/// Returns whether SNAT may change the flow's ports. SCTP's checksum is a CRC over the whole
/// packet, so SNAT cannot change SCTP's ports. GRE, ESP and others have no ports. `icmp`: the number
/// of the family's ICMP.
#[inline(always)]
pub const fn can_change_ports(protocol_number: u8, icmp: u8) -> bool {
    matches!(protocol_number, protocol::TCP | protocol::UDP | protocol::UDP_LITE) || protocol_number == icmp
}

/// Returns the timeout while the table, or the holder's share of it, is nearly full. It is
/// [`idle_timeout`], but shorter for flows that are over, not established, or reset from outside:
/// these leave first. It is shorter for UDP, too: nothing says when a flow of datagrams is over.
pub const fn idle_timeout_under_pressure(state: u8, protocol_number: u8) -> u64 {
    let ordinary = idle_timeout(state, protocol_number);
    let short = if protocol_number == protocol::TCP && is_closed(state) {
        2
    } else if state & STATE_ESTABLISHED == 0 {
        5
    } else if protocol_number == protocol::TCP && state & STATE_OUTSIDE_RESET != 0 {
        CLOSED_TIMEOUT
    } else if matches!(protocol_number, protocol::UDP | protocol::UDP_LITE) {
        30
    } else {
        ordinary
    };
    if short < ordinary { short } else { ordinary }
}

/// Returns the holder that a translation's entries count for. `flow` and `half` are key and value
/// of an entry of `TRANSLATIONS`.
#[inline(always)]
pub const fn holder(flow: &Flow, half: &Translation) -> Holder {
    let (address, port, protocol) = match (half.kind, half.reply != 0) {
        (TRANSLATION_SNAT | TRANSLATION_SERVICE, false) => (flow.source, Be16::ZERO, 0),
        (TRANSLATION_SNAT | TRANSLATION_SERVICE, true) => (half.destination, Be16::ZERO, 0),
        (TRANSLATION_HOST_PORT | TRANSLATION_OUTSIDE | TRANSLATION_RELAY, false) => {
            (half.destination, half.destination_port, flow.protocol)
        }
        (TRANSLATION_HOST_PORT | TRANSLATION_OUTSIDE | TRANSLATION_RELAY, true) => {
            (flow.source, flow.source_port, flow.protocol)
        }
        // The overlay address belongs to no pod. So these flows have a share of their own, apart
        // from the node's.
        (TRANSLATION_TUNNEL, false) => (half.source, Be16::ZERO, 0),
        (TRANSLATION_TUNNEL, true) => (flow.destination, Be16::ZERO, 0),
        _ => (Addr::UNSPECIFIED, Be16::ZERO, 0),
    };
    Holder { address, port, protocol, table: TABLE_TRANSLATIONS }
}

impl Translation {
    /// Returns the flow that this half translates to.
    #[inline(always)]
    pub const fn translated(&self, protocol_number: u8) -> Flow {
        Flow::new(self.source, self.destination, self.source_port, self.destination_port, protocol_number)
    }

    /// Returns the key of the other half.
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
    use std::vec::Vec;

    proptest! {
        #[test]
        fn a_chosen_port_is_in_its_range(attempt in 1u32..PORT_ATTEMPTS, random in any::<u32>(), first in 1024u16..40000, span in 0u16..20000) {
            let last = first + span;
            let port = port_for_attempt(attempt, random, first, last);
            prop_assert!((first..=last).contains(&port));
        }

        #[test]
        fn no_attempt_is_wasted_on_a_port_that_was_tried(random in any::<u32>(), first in 1024u16..30000, span in 20000u16..32768) {
            let tried: BTreeSet<_> = (1..PORT_ATTEMPTS)
                .map(|attempt| port_for_attempt(attempt, random, first, first + span))
                .collect();
            prop_assert_eq!(tried.len(), PORT_ATTEMPTS as usize - 1);
        }

        #[test]
        fn the_state_is_that_of_a_plain_reading_of_all_packets(packets in prop::collection::vec((0u8..32, any::<bool>()), 1..20)) {
            let state = packets.iter().fold(0, |state, (flags, reply)| next_state(state, protocol::TCP, *flags, *reply, !*reply));
            // Slow and obvious: only packets since the last SYN count. A SYN that met an open
            // connection does not count.
            let mut rest: Vec<(u8, bool)> = Vec::new();
            let mut opened_by_reply = false;
            for &(flags, reply) in &packets {
                if flags & (TCP_SYN | TCP_RST) == TCP_SYN {
                    if !plainly_open(&rest, opened_by_reply) {
                        rest.clear();
                        opened_by_reply = reply;
                    }
                } else {
                    rest.push((flags, reply));
                }
            }
            prop_assert_eq!(is_open(state), plainly_open(&rest, opened_by_reply));
            let last_reset = rest.iter().rev().take_while(|(flags, _)| flags & TCP_RST != 0);
            let (mut inside, mut outside) = (false, false);
            last_reset.for_each(|(_, reply)| *(if *reply { &mut outside } else { &mut inside }) = true);
            prop_assert_eq!((state & STATE_RESET != 0, state & STATE_OUTSIDE_RESET != 0), (inside, outside));
        }

        #[test]
        fn pressure_never_lengthens_a_timeout(state in 0u8..64, number in any::<u8>()) {
            prop_assert!(idle_timeout_under_pressure(state, number) <= idle_timeout(state, number));
        }
    }

    /// Returns whether packets since a SYN make a connection that is established and not closing.
    fn plainly_open(packets: &[(u8, bool)], opened_by_reply: bool) -> bool {
        let plain: Vec<_> = packets.iter().filter(|(flags, _)| flags & TCP_RST == 0).collect();
        let first_reply = if opened_by_reply { Some(0) } else { plain.iter().position(|(_, reply)| *reply) };
        let third = first_reply.is_some_and(|at| plain[at..].iter().any(|(_, reply)| !*reply));
        third
            && plain.iter().all(|(flags, _)| flags & TCP_FIN == 0)
            && packets.last().is_none_or(|(flags, _)| flags & TCP_RST == 0)
    }

    const OUT: (bool, bool) = (false, true);
    const BACK: (bool, bool) = (true, false);

    fn tcp(state: u8, flags: u8, (reply, inside): (bool, bool)) -> u8 {
        next_state(state, protocol::TCP, flags, reply, inside)
    }

    fn timeout(state: u8) -> u64 {
        idle_timeout(state, protocol::TCP)
    }

    fn established() -> u8 {
        let begun = tcp(0, TCP_SYN, OUT);
        tcp(tcp(begun, TCP_SYN | TCP_ACK, BACK), TCP_ACK, OUT)
    }

    #[test]
    fn ports_of_services_are_outside_the_ephemeral_range() {
        let chosen: Vec<_> = (EPHEMERAL..=61_743).map(service_port).collect();
        assert!(chosen.iter().all(|port| port.is_some_and(|port| (1024..30_000).contains(&port))));
        assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len(), "each has its own");
        assert_eq!([80, 1024, 29_999].map(service_port), [Some(80), Some(1024), Some(29_999)]);
        assert_eq!([30_000, 32_767, 61_744, u16::MAX].map(service_port), [None; 4]);
    }

    #[test]
    fn sockets_choose_each_backend_equally_often() {
        for (list, step) in [(0, 1), (u64::MAX / 3, 1), (7, 2), (7, 4096)] {
            for backends in [2, 3, 10] {
                let mut chosen = std::vec![0; backends];
                for socket in 0..1000 * backends as u64 {
                    chosen[choice_of_socket(socket * step, list) as usize % backends] += 1;
                }
                // Five standard deviations of a random choice.
                assert!(chosen.iter().all(|count| (842..1158).contains(count)), "{list} {step} {chosen:?}");
            }
        }
    }

    #[test]
    fn a_client_keeps_its_backend_for_so_many_seconds() {
        const SECOND: u64 = 1_000_000_000;
        assert!(keeps_backend(SECOND, SECOND, 1));
        assert!(keeps_backend(SECOND, 3 * SECOND - 1, 2) && !keeps_backend(SECOND, 3 * SECOND, 2));
        assert!(keeps_backend(SECOND + 1, SECOND, 1), "another CPU was later");
        assert!(keeps_backend(0, u64::from(u32::MAX) * SECOND - 1, u32::MAX));
    }

    #[test]
    fn connection_is_established_by_its_third_packet() {
        let begun = tcp(0, TCP_SYN, OUT);
        assert_eq!(timeout(begun), 60);
        let received = tcp(begun, TCP_SYN | TCP_ACK, BACK);
        assert_eq!(timeout(received), 60, "anybody can invent the source of a SYN");
        assert_eq!(timeout(tcp(received, TCP_SYN | TCP_ACK, BACK)), 60, "repeated");
        assert_eq!(timeout(tcp(received, TCP_ACK, OUT)), 7440);
    }

    #[test]
    fn connection_that_both_sides_closed_leaves_early() {
        let half_closed = tcp(established(), TCP_FIN, OUT);
        assert_eq!(timeout(half_closed), 240, "the other side may still send");
        let closed = tcp(half_closed, TCP_FIN, BACK);
        assert!(is_closed(closed));
        assert_eq!(timeout(closed), 65);
        let again = tcp(tcp(tcp(closed, TCP_SYN, OUT), TCP_SYN | TCP_ACK, BACK), TCP_ACK, OUT);
        assert_eq!(timeout(again), 7440, "the 5-tuple is used again");
    }

    #[test]
    fn reset_counts_by_the_end_that_it_comes_from() {
        let checked = tcp(established(), TCP_RST, OUT);
        assert!(is_closed(checked));
        assert_eq!(timeout(checked), 65);
        let invented = tcp(established(), TCP_RST, BACK);
        assert!(!is_closed(invented));
        assert_eq!(timeout(invented), 240);
        assert_eq!(timeout(tcp(invented, TCP_RST, OUT)), 65, "the pod confirms it");
        // The receiver believes a reset only with the right sequence number (RFC 5961 section 3).
        assert_eq!(timeout(tcp(invented, TCP_ACK, OUT)), 7440, "the pod goes on");
        // For a hostPort, the pod is the end that answers.
        assert!(is_inside(TRANSLATION_HOST_PORT, true) && !is_inside(TRANSLATION_HOST_PORT, false));
        assert!(is_inside(TRANSLATION_SNAT, false) && !is_inside(TRANSLATION_SNAT, true));
    }

    #[test]
    fn invented_syn_changes_nothing_of_an_open_connection() {
        assert_eq!(tcp(established(), TCP_SYN, OUT), established());
        assert_eq!(tcp(established(), TCP_SYN | TCP_ACK, BACK), established());
    }

    #[test]
    fn datagrams_are_established_by_the_third_one() {
        let udp = |state, reply| next_state(state, protocol::UDP, TCP_FIN | TCP_RST, reply, !reply);
        let timeout = |state| idle_timeout(state, protocol::UDP);
        assert_eq!((udp(0, false), timeout(0)), (0, 30), "flags mean nothing outside TCP");
        let answered = udp(0, true);
        assert_eq!((answered, timeout(answered)), (STATE_REPLIED, 30));
        assert_eq!(timeout(udp(answered, true)), 30);
        let established = udp(answered, false);
        assert_eq!(timeout(established), 122);
        let pressed = |state| idle_timeout_under_pressure(state, protocol::UDP);
        assert_eq!((pressed(answered), pressed(established)), (5, 30));
    }

    #[test]
    fn pressure_spares_what_is_established() {
        let pressed = |state| idle_timeout_under_pressure(state, protocol::TCP);
        assert_eq!(pressed(established()), 7440);
        assert_eq!(pressed(tcp(established(), TCP_FIN, OUT)), 240);
        assert_eq!(pressed(tcp(0, TCP_SYN, OUT)), 5);
        assert_eq!(pressed(tcp(0, TCP_SYN | TCP_ACK, BACK)), 5);
        assert_eq!(pressed(tcp(established(), TCP_RST, OUT)), 2);
        assert_eq!(pressed(tcp(established(), TCP_RST, BACK)), 65);
    }

    #[test]
    fn both_halves_of_a_translation_have_one_holder() {
        let pod = Addr::from_v4([10, 244, 1, 2]);
        let (node, world) = (Addr::from_v4([10, 200, 0, 1]), Addr::from_v4([198, 51, 100, 10]));
        let half = |kind, reply, source, destination, ports: (u16, u16)| Translation {
            last_seen: 0,
            source,
            destination,
            source_port: Be16::new(ports.0),
            destination_port: Be16::new(ports.1),
            ifindex: 2,
            asked: 0,
            kind,
            reply,
            state: 0,
            hairpin: 0,
            past_stack: 0,
            is_long: 0,
            service: 0,
            list: 0,
        };
        let flow = |source, destination, ports: (u16, u16)| {
            Flow::new(source, destination, Be16::new(ports.0), Be16::new(ports.1), protocol::TCP)
        };
        let out =
            holder(&flow(pod, world, (40000, 443)), &half(TRANSLATION_SNAT, 0, node, world, (40001, 443)));
        let back =
            holder(&flow(world, node, (443, 40001)), &half(TRANSLATION_SNAT, 1, world, pod, (443, 40000)));
        assert_eq!((out.address, out.port.get(), out.protocol), (pod, 0, 0));
        assert_eq!(out, back);
        let request = holder(
            &flow(world, node, (40000, 9088)),
            &half(TRANSLATION_HOST_PORT, 0, world, pod, (40000, 8080)),
        );
        let reply = holder(
            &flow(pod, world, (8080, 40000)),
            &half(TRANSLATION_HOST_PORT, 1, node, world, (9088, 40000)),
        );
        assert_eq!((request.address, request.port.get(), request.protocol), (pod, 8080, protocol::TCP));
        assert_eq!(request, reply);
        let overlay = Addr::from_v4([10, 244, 1, 1]);
        let into =
            holder(&flow(world, pod, (443, 80)), &half(TRANSLATION_TUNNEL, 0, overlay, pod, (443, 80)));
        let answer =
            holder(&flow(pod, overlay, (80, 443)), &half(TRANSLATION_TUNNEL, 1, pod, world, (80, 443)));
        assert_eq!((into.address, into), (overlay, answer));
    }
}
