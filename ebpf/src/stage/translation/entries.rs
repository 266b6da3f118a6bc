//! Existing translations: finding, keeping and removing them.

use podwire_common::{
    abi::{Flow, Translation},
    addr::Be16,
    flow::{FlowAddr, protocol},
    nat,
    reason::Drop,
};

use super::super::icmp_error;
use crate::{
    maps::{self, EEXIST, TranslationEntry},
    packet::{Fragment, Ip, Parsed},
};

/// Refuses packets that cannot be translated: AH, and ICMP without an identifier. A later fragment
/// passes, because the first one has decided.
///
/// # Errors
/// [`Drop::SnatProtocolUnknown`], [`Drop::SnatImpossible`].
#[inline(never)]
pub fn check<I: Ip>(packet: &Parsed<I>) -> Result<(), Drop> {
    match packet.flow.protocol {
        icmp if icmp == I::ICMP && !packet.is_query && !matches!(packet.fragment_part(), Fragment::Later) => {
            Err(Drop::SnatProtocolUnknown)
        }
        protocol::AH => Err(Drop::SnatImpossible),
        _ if packet.is_authenticated() => Err(Drop::SnatImpossible),
        _ => Ok(()),
    }
}

/// Returns the translation that a packet follows. An ICMP error follows one only if it goes to the
/// sender of the quoted packet. A packet with an authentication header follows none, because no
/// address of it can change.
#[inline(always)]
pub fn of<I: Ip>(packet: &Parsed<I>) -> Option<TranslationEntry> {
    if packet.is_authenticated() || (packet.is_error && !icmp_error::goes_to_sender(packet)) {
        return None;
    }
    maps::translation(&packet.flow)
}

/// Marks a translation as seen now. An ICMP error changes nothing, because it does not show that
/// the flow is alive.
#[inline(always)]
pub fn touch<I: Ip>(entry: &TranslationEntry, packet: &Parsed<I>) {
    if packet.is_error {
        return;
    }
    let half = entry.get();
    let reply = half.reply != 0;
    let inside = nat::is_inside(half.kind, reply);
    let state = nat::next_state(half.state, packet.flow.protocol, packet.tcp_flags, reply, inside);
    entry.touch(packet.flow.protocol, state);
}

/// Returns a translation that does not change the flow yet.
#[inline(always)]
pub fn begin(kind: u8, ifindex: u32, flow: &Flow) -> Translation {
    Translation {
        #[cfg(feature = "earlier-layout")]
        earlier: [0; 8],
        last_seen: maps::now(),
        source: flow.source,
        destination: flow.destination,
        source_port: flow.source_port,
        destination_port: flow.destination_port,
        ifindex,
        asked: 0,
        kind,
        reply: 0,
        state: 0,
        hairpin: 0,
        past_stack: 0,
        is_long: 0,
        service: 0,
        list: 0,
    }
}

/// Entries that a translation takes.
pub(super) const PAIR: u32 = 2;

// Not inlined: the key would take stack in every caller.
#[inline(never)]
pub(super) fn take_share(original: &Flow, to: &Translation) -> bool {
    maps::take_share(&nat::holder(original, to), PAIR)
}

#[inline(never)]
pub(super) fn give_back(flow: &Flow, half: &Translation) {
    maps::give_back(&nat::holder(flow, half), PAIR);
}

/// Returns the translation of a flow that is an argument of a global function.
// Copies the key. Before Linux 6.2 the verifier takes keys and values from the stack, from packets
// and from map elements, but not from a global function's arguments.
#[inline(always)]
pub(super) fn added(original: &Flow) -> Option<TranslationEntry> {
    let key = *original;
    maps::translation(&key)
}

/// Returns whether a port is in Kubernetes' NodePort range.
#[inline(always)]
pub fn is_node_port(port: Be16) -> bool {
    let (first, last) = maps::node_ports();
    (first..=last).contains(&port.get())
}

/// Removes both halves of a translation.
// Calls the two functions one after the other, not nested: before Linux 6.8 each nested function
// takes stack in steps of 32 bytes.
#[inline(always)]
pub fn remove<I: Ip>(flow: &Flow, half: &Translation) {
    // First, because it reads the half.
    give_back(flow, half);
    remove_halves::<I::FlowAddr>(flow, half);
}

#[inline(never)]
fn remove_halves<A: FlowAddr>(flow: &Flow, half: &Translation) {
    let other = half.other_half(flow.protocol);
    maps::remove_translation::<A>(flow);
    maps::remove_translation::<A>(&other);
}

/// Reserves the 5-tuple of a flow's replies. Returns `false` if there is no room for it.
#[inline(always)]
pub fn reserve<I: Ip>(reply: &Flow, reservation: &Translation) -> bool {
    let holder = nat::holder(reply, reservation);
    if !maps::take_share(&holder, 1) {
        return false;
    }
    let outcome = maps::add_translation::<I::FlowAddr>(reply, reservation);
    if outcome.is_err() {
        maps::give_back(&holder, 1);
    }
    matches!(outcome, Ok(()) | Err(EEXIST))
}
