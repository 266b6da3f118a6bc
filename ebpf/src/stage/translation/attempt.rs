//! One attempt to make both halves of a translation, with one source port.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        FAMILY_IPV4, Flow, TRANSLATION_HOST_PORT, TRANSLATION_OUTSIDE, TRANSLATION_RESERVATION,
        TRANSLATION_SERVICE, Translation,
    },
    addr::{Addr, Be16},
    flow::{FlowAddr, protocol},
    nat,
};

use super::entries::{added, is_node_port};
use crate::{
    global::global,
    maps::{self, EBUSY, EEXIST},
    packet::{Ip, Ipv4, Ipv6, has_socket},
};

/// Does the same as [`maps::add_translation`], for arguments of a global function.
// Not inlined: both copies would take stack in the caller.
#[inline(never)]
fn add<A: FlowAddr>(original: &Flow, to: &Translation) -> Result<(), i32> {
    let (key, value) = (*original, *to);
    maps::add_translation::<A>(&key, &value)
}

/// The result of an attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Try {
    /// Both halves exist.
    Done,
    /// The flow has another translation by now.
    There,
    /// Another flow or a socket has the port.
    Taken,
    /// The table is full, or memory is short.
    Failed,
}

/// [`Closed::last_seen`] of a connection of the same pod.
pub const SAME_POD: u64 = 0;

/// A closed connection that could give up its port.
#[repr(C)]
pub struct Closed {
    /// When it was last seen; the older, the better.
    pub last_seen: u64,
    /// Its port.
    pub port: Be16,
    /// Explicit padding.
    pub reserved: [u16; 3],
}

/// Tries to add both halves with the source port in `to`.
#[inline(always)]
pub fn try_port<I: Ip>(ctx: &TcContext, original: &Flow, to: &Translation, oldest: &mut Closed) -> Try {
    let skb = ctx.skb.skb;
    match match I::FAMILY {
        FAMILY_IPV4 => podwire_try_port(skb, original, to, oldest),
        _ => podwire_try_port6(skb, original, to, oldest),
    } {
        DONE => Try::Done,
        TAKEN => Try::Taken,
        THERE => Try::There,
        _ => Try::Failed,
    }
}

const DONE: i32 = 0;
const TAKEN: i32 = 1;
const THERE: i32 = 2;
const FAILED: i32 = 3;

global! {
    fn podwire_try_port(ctx, original: ref Flow, to: ref Translation, oldest: mut Closed) -> i32, or FAILED {
        try_port_here::<Ipv4>(ctx, original, to, oldest)
    }
}

global! {
    fn podwire_try_port6(ctx, original: ref Flow, to: ref Translation, oldest: mut Closed) -> i32, or FAILED {
        try_port_here::<Ipv6>(ctx, original, to, oldest)
    }
}

#[inline(always)]
fn try_port_here<I: Ip>(ctx: &TcContext, original: &Flow, to: &Translation, oldest: &mut Closed) -> i32 {
    match attempt::<I>(ctx, original, to, oldest) {
        Try::Done => DONE,
        Try::Taken => TAKEN,
        Try::There => THERE,
        Try::Failed => FAILED,
    }
}

#[inline(always)]
fn attempt<I: Ip>(ctx: &TcContext, original: &Flow, to: &Translation, oldest: &mut Closed) -> Try {
    let is_node_address =
        !matches!(to.kind, TRANSLATION_HOST_PORT | TRANSLATION_SERVICE | TRANSLATION_OUTSIDE);
    if is_node_address && is_kept_free::<I>(&to.source, to.source_port, original.protocol) {
        return Try::Taken;
    }
    let reply = add_reply::<I::FlowAddr>(original, to, oldest);
    match reply {
        Reply::Added | Reply::OfTheSameFlow => {}
        Reply::Taken => return Try::Taken,
        Reply::Failed => return Try::Failed,
    }
    // The port of a pod is in the pod's namespace: no socket here can have it.
    if is_node_address && has_socket::<I>(ctx, to, original.protocol) {
        if reply == Reply::Added {
            remove_reply::<I::FlowAddr>(to, original.protocol);
        }
        return Try::Taken;
    }
    // Add this half even if another CPU has added the replies' half of this very flow. That CPU is
    // about to add this half too, and one of the two succeeds.
    let Err(error) = add::<I::FlowAddr>(original, to) else {
        return Try::Done;
    };
    if error == EEXIST && leads_to(original, to) {
        return Try::Done;
    }
    if reply == Reply::Added {
        remove_reply::<I::FlowAddr>(to, original.protocol);
    }
    match error {
        EEXIST => Try::There,
        EBUSY => Try::Taken,
        _ => Try::Failed,
    }
}

/// Returns whether the existing half of a flow is the wanted one: another CPU has completed this
/// pair.
#[inline(never)]
fn leads_to(original: &Flow, to: &Translation) -> bool {
    added(original).is_some_and(|entry| {
        let there = entry.get();
        (there.source, there.source_port) == (to.source, to.source_port)
    })
}

/// The result for the replies' half.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reply {
    Added,
    /// It exists already, for this very flow.
    OfTheSameFlow,
    Taken,
    Failed,
}

// Not inlined and called one after the other: their keys and values share the stack.
#[inline(never)]
fn add_reply<A: FlowAddr>(original: &Flow, to: &Translation, oldest: &mut Closed) -> Reply {
    let reply = to.other_half(original.protocol);
    let back = Translation {
        source: original.destination,
        destination: original.source,
        source_port: original.destination_port,
        destination_port: original.source_port,
        reply: 1,
        ..*to
    };
    match maps::add_translation::<A>(&reply, &back) {
        Ok(()) => Reply::Added,
        Err(EEXIST) => meet(&reply, &back, oldest),
        Err(EBUSY) => Reply::Taken,
        Err(_) => Reply::Failed,
    }
}

#[inline(never)]
fn remove_reply<A: FlowAddr>(to: &Translation, protocol_number: u8) {
    maps::remove_translation::<A>(&to.other_half(protocol_number));
}

/// Returns whether the existing half belongs to this flow or to another. Writes a closed connection
/// to `oldest` if it should give up its port before the one there.
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

/// Returns whether a port must stay free of translated flows: the tunnel's port, NodePorts and
/// hostPorts. Otherwise a connection to such a port would match the replies of a translated flow.
#[inline(never)]
fn is_kept_free<I: Ip>(address: &Addr, port: Be16, protocol_number: u8) -> bool {
    if protocol_number == I::ICMP {
        return false;
    }
    if is_node_port(port) || port == maps::vxlan_port() {
        return true;
    }
    maps::backend(address, &I::ANY_ADDRESS, port, protocol_number).is_some()
}
