//! What every kind of address translation shares: finding one, making both of its halves, choosing a port.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{Flow, TRANSLATION_HOST_PORT, TRANSLATION_RESERVATION, Translation},
    addr::{Addr, Be16},
    flow::protocol,
    nat,
    reason::Drop,
};

use super::icmp_error;
use crate::{
    maps::{self, EBUSY, EEXIST, TranslationEntry},
    packet::{Fragment, Ipv4, has_socket},
    subprogram,
};

/// TCP, UDP and ICMP echo. A later fragment is judged by its first one's translation.
#[inline(always)]
pub fn has_ports(packet: &Ipv4) -> bool {
    match packet.flow.protocol {
        protocol::TCP | protocol::UDP => true,
        protocol::ICMP => packet.is_echo || matches!(packet.headers.fragment_part(), Fragment::Later),
        _ => false,
    }
}

/// The translation that a packet follows. An ICMP error follows one only to the sender of the quoted packet.
#[inline(always)]
pub fn of(packet: &Ipv4) -> Option<TranslationEntry> {
    if packet.is_error && !icmp_error::goes_to_sender(packet) {
        return None;
    }
    maps::translation(&packet.flow)
}

/// Marks a translation as seen now; an ICMP error is no sign of life.
#[inline(always)]
pub fn touch(entry: &TranslationEntry, packet: &Ipv4) {
    if packet.is_error {
        return;
    }
    let half = entry.get();
    let reply = half.reply != 0;
    let inside = nat::is_inside(half.kind, reply);
    let state = nat::next_state(half.state, packet.flow.protocol, packet.tcp_flags, reply, inside);
    entry.touch(packet.flow.protocol, state);
}

/// A translation of a kind that changes nothing of a flow yet.
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
        reserved: [0; 6],
    }
}

/// Makes both halves of a translation: the original flow becomes what `to` says, with a source port of its own where that one is
/// somebody else's.
///
/// Replies must find one owner only. So their half is written first, which fails where there is another, and then it is looked for
/// a socket: one that begins later finds the half when its first packet leaves. While that half is there alone nothing is
/// translated yet.
///
/// # Errors
/// [`Drop::SnatPortsExhausted`], [`Drop::TranslationsFull`], [`Drop::TranslationShareUsed`].
#[inline(always)]
pub fn establish(ctx: &TcContext, original: &Flow, to: &mut Translation) -> Result<(), Drop> {
    if !take_share(original, to) {
        return Err(Drop::TranslationShareUsed);
    }
    let outcome = establish_pair(ctx, original, to);
    if outcome != Ok(Made::Here) {
        give_back(original, to);
    }
    outcome.map(|_| ())
}

/// Who made a pair.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Here,
    /// Another CPU was first with the same flow.
    Elsewhere,
}

#[inline(always)]
fn establish_pair(ctx: &TcContext, original: &Flow, to: &mut Translation) -> Result<Made, Drop> {
    let random = maps::random();
    let own = to.source_port.get();
    let mut oldest = Closed { last_seen: u64::MAX, port: Be16::ZERO, reserved: [0; 3] };
    let mut attempt = 0;
    while attempt < nat::PORT_ATTEMPTS {
        // Read again for each attempt: kept, they would take their place on the stack.
        let (first, last) = maps::snat_ports();
        to.source_port = Be16::new(nat::port_for_attempt(own, attempt, random, first, last));
        attempt += 1;
        match subprogram::try_port(ctx, original, to, &mut oldest) {
            Try::Done => return Ok(Made::Here),
            Try::There => return adopt(original, to),
            Try::Taken if oldest.last_seen == SAME_POD => break,
            Try::Taken => {}
            Try::Failed => return Err(Drop::TranslationsFull),
        }
    }
    if oldest.last_seen == u64::MAX {
        return Err(Drop::SnatPortsExhausted);
    }
    // A connection that is over gives way: one of the same pod, or the oldest of those that were met. Its server may still
    // remember it, and takes another pod's timestamps for old ones (RFC 7323 section 5).
    to.source_port = oldest.port;
    remove_closed(to, original.protocol);
    match subprogram::try_port(ctx, original, to, &mut oldest) {
        Try::Done => Ok(Made::Here),
        Try::There => adopt(original, to),
        _ => Err(Drop::SnatPortsExhausted),
    }
}

/// Another CPU was first with the same flow: its translation is as good.
#[inline(never)]
fn adopt(original: &Flow, to: &mut Translation) -> Result<Made, Drop> {
    *to = *added(original).ok_or(Drop::TranslationsFull)?.get();
    Ok(Made::Elsewhere)
}

/// Entries of a translation.
const PAIR: u32 = 2;

// Functions of their own: the key would take its place on the stack of every caller.
#[inline(never)]
fn take_share(original: &Flow, to: &Translation) -> bool {
    maps::take_share(&nat::holder(original, to), PAIR)
}

#[inline(never)]
fn give_back(flow: &Flow, half: &Translation) {
    maps::give_back(&nat::holder(flow, half), PAIR);
}

/// The translation of a flow that a global function was given.
// Before Linux 6.2 the verifier takes keys and values from the stack, from packets and from map elements, but not from the
// memory that a global function was given a pointer to.
#[inline(always)]
fn added(original: &Flow) -> Option<TranslationEntry> {
    let key = *original;
    maps::translation(&key)
}

/// As [`maps::add_translation`], for a flow and a translation that a global function was given.
// A function of its own: both copies would take their place on the stack of the caller.
#[inline(never)]
fn add(original: &Flow, to: &Translation) -> Result<(), i32> {
    let (key, value) = (*original, *to);
    maps::add_translation(&key, &value)
}

/// What became of an attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Try {
    /// Both halves are there.
    Done,
    /// The flow has a translation by now.
    There,
    /// The port is somebody else's.
    Taken,
    /// The table is full, or memory is short.
    Failed,
}

/// [`Closed::last_seen`] of a connection that has the same pod.
const SAME_POD: u64 = 0;

/// A closed connection that could give way.
#[repr(C)]
pub struct Closed {
    /// The older the better.
    last_seen: u64,
    port: Be16,
    reserved: [u16; 3],
}

#[inline(never)]
fn remove_closed(to: &Translation, protocol_number: u8) {
    let reply = to.other_half(protocol_number);
    if let Some(entry) = maps::translation(&reply) {
        remove(&reply, entry.get());
    }
}

/// Tries to make both halves with the source port that `to` has.
#[inline(always)]
pub fn try_port(ctx: &TcContext, original: &Flow, to: &Translation, oldest: &mut Closed) -> Try {
    let is_node_address = to.kind != TRANSLATION_HOST_PORT;
    if is_node_address && is_kept_free(&to.source, to.source_port, original.protocol) {
        return Try::Taken;
    }
    let reply = add_reply(original, to, oldest);
    match reply {
        Reply::Added | Reply::OfTheSameFlow => {}
        Reply::Taken => return Try::Taken,
        Reply::Failed => return Try::Failed,
    }
    // A pod's own port behind a hostPort is in the pod's namespace: no socket here can have it.
    if is_node_address && has_socket(ctx, to, original.protocol) {
        if reply == Reply::Added {
            remove_reply(to, original.protocol);
        }
        return Try::Taken;
    }
    // Also where the replies' half was there for this very flow: another CPU is about to add this one.
    let Err(error) = add(original, to) else {
        return Try::Done;
    };
    if error == EEXIST && leads_to(original, to) {
        return Try::Done;
    }
    if reply == Reply::Added {
        remove_reply(to, original.protocol);
    }
    match error {
        EEXIST => Try::There,
        EBUSY => Try::Taken,
        _ => Try::Failed,
    }
}

/// Whether the half that is there for a flow is the one that was wanted: another CPU has completed this pair.
#[inline(never)]
fn leads_to(original: &Flow, to: &Translation) -> bool {
    added(original).is_some_and(|entry| {
        let there = entry.get();
        (there.source, there.source_port) == (to.source, to.source_port)
    })
}

/// What became of the replies' half.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reply {
    Added,
    /// It is there, for this very flow.
    OfTheSameFlow,
    Taken,
    Failed,
}

// Functions of their own, one after the other: the keys and values share their place on the stack.
#[inline(never)]
fn add_reply(original: &Flow, to: &Translation, oldest: &mut Closed) -> Reply {
    let reply = to.other_half(original.protocol);
    let back = Translation {
        source: original.destination,
        destination: original.source,
        source_port: original.destination_port,
        destination_port: original.source_port,
        reply: 1,
        ..*to
    };
    match maps::add_translation(&reply, &back) {
        Ok(()) => Reply::Added,
        Err(EEXIST) => meet(&reply, &back, oldest),
        Err(EBUSY) => Reply::Taken,
        Err(_) => Reply::Failed,
    }
}

#[inline(never)]
fn remove_reply(to: &Translation, protocol_number: u8) {
    maps::remove_translation(&to.other_half(protocol_number));
}

/// Whose the half is that is there in place of the wanted one.
#[inline(always)]
fn meet(reply: &Flow, wanted: &Translation, oldest: &mut Closed) -> Reply {
    let Some(entry) = maps::translation(reply) else {
        return Reply::Taken;
    };
    let half = entry.get();
    let same_pod = half.destination == wanted.destination;
    if same_pod
        && half.destination_port == wanted.destination_port
        && (half.source, half.source_port) == (wanted.source, wanted.source_port)
        && half.kind == wanted.kind
    {
        return Reply::OfTheSameFlow;
    }
    if reply.protocol != protocol::TCP || !nat::is_closed(half.state) || half.kind == TRANSLATION_RESERVATION
    {
        return Reply::Taken;
    }
    let age = if same_pod { SAME_POD } else { half.last_seen };
    if age < oldest.last_seen {
        oldest.port = reply.destination_port;
        oldest.last_seen = age;
    }
    Reply::Taken
}

/// Ports that are nobody's for a flow: the tunnel's, NodePorts, hostPorts. A connection to one of them would find the wrong
/// flow's replies.
#[inline(never)]
fn is_kept_free(address: &Addr, port: Be16, protocol_number: u8) -> bool {
    if protocol_number == protocol::ICMP {
        return false;
    }
    if is_node_port(port) || port == maps::vxlan_port() {
        return true;
    }
    maps::backend(address, port, protocol_number).is_some()
}

/// Whether a port is of Kubernetes' NodePort range.
#[inline(always)]
pub fn is_node_port(port: Be16) -> bool {
    let (first, last) = maps::node_ports();
    (first..=last).contains(&port.get())
}

/// Removes both halves of a translation.
// One function after the other and not one in the other: before Linux 6.8 each takes its stack in steps of 32 bytes.
#[inline(always)]
pub fn remove(flow: &Flow, half: &Translation) {
    remove_halves(flow, half);
    give_back(flow, half);
}

#[inline(never)]
fn remove_halves(flow: &Flow, half: &Translation) {
    let other = half.other_half(flow.protocol);
    maps::remove_translation(flow);
    maps::remove_translation(&other);
}

/// Keeps the 5-tuple that a flow's replies have from being taken. `false`: there is no room for that.
#[inline(never)]
pub fn reserve(reply: &Flow, reservation: &Translation) -> bool {
    let holder = nat::holder(reply, reservation);
    if !maps::take_share(&holder, 1) {
        return false;
    }
    let outcome = maps::add_translation(reply, reservation);
    if outcome.is_err() {
        maps::give_back(&holder, 1);
    }
    matches!(outcome, Ok(()) | Err(EEXIST))
}
