//! Packets of this node itself. A pod's flow and one of the node never share a 5-tuple.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        Flow, NODE_LOCAL, TRANSLATION_HOST, TRANSLATION_OUTSIDE, TRANSLATION_RELAY, TRANSLATION_RESERVATION,
        TRANSLATION_SNAT,
    },
    addr::Be16,
    flow::protocol,
    nat,
    reason::Path,
};

use super::super::{flow, source, translation};
use crate::{
    maps,
    packet::{Ip, Parsed, Skb, belongs_to_socket, translate},
    verdict::{Outcome, Verdict},
};

/// Handles a packet of this node itself, or one that the host's rules have masqueraded. If a pod's
/// flow has its 5-tuple, the packet gets another source port. Otherwise the program makes sure that
/// no pod's flow gets this 5-tuple later.
///
/// # Errors
/// As [`out`](fn@super::out).
#[inline(never)]
pub fn host_out<I: Ip>(ctx: &TcContext, packet: &mut Parsed<I>) -> Outcome {
    if source::is_tunnel(packet) || flow::complete(packet).is_err() {
        return Ok(Verdict::PASS);
    }
    if let Some(entry) = translation::of(packet) {
        let half = entry.get();
        // The node's own errors about translated flows quote the pod's address, which no outside
        // host knows.
        let path = match half.kind {
            // The answer of a process to a client outside.
            TRANSLATION_OUTSIDE => Path::ServiceOut,
            _ => Path::HostSnatOut,
        };
        if matches!(half.kind, TRANSLATION_HOST | TRANSLATION_OUTSIDE) || packet.is_error {
            translation::touch(&entry, packet);
            translate(ctx, packet, half)?;
            return Ok(Verdict::stack(path));
        }
        return Ok(Verdict::PASS);
    }
    if packet.is_error || translation::check(packet).is_err() {
        return Ok(Verdict::PASS);
    }
    let reply = packet.flow.reversed();
    match maps::translation(&reply) {
        None => {
            reserve(ctx, packet, &reply);
            Ok(Verdict::PASS)
        }
        Some(entry) => match entry.get().kind {
            TRANSLATION_RESERVATION => {
                let state =
                    nat::next_state(entry.get().state, packet.flow.protocol, packet.tcp_flags, false, true);
                entry.touch(packet.flow.protocol, state);
                Ok(Verdict::PASS)
            }
            TRANSLATION_SNAT | TRANSLATION_HOST | TRANSLATION_RELAY => {
                let mut to = translation::begin(TRANSLATION_HOST, ctx.ifindex(), &packet.flow);
                match translation::establish::<I>(ctx, &packet.flow, &mut to) {
                    Ok(()) => {
                        translate(ctx, packet, &to)?;
                        Ok(Verdict::stack(Path::HostSnatOut))
                    }
                    // Only one of the two flows fits, and this node's flow wins.
                    Err(_) if entry.get().kind == TRANSLATION_SNAT => {
                        translation::remove::<I>(&reply, entry.get());
                        Ok(Verdict::PASS)
                    }
                    Err(reason) => Err(reason),
                }
            }
            _ => Ok(Verdict::PASS),
        },
    }
}

/// Reserves the 5-tuple of a flow if no lookup of sockets would find its owner. `reply`: the flow of
/// the replies.
#[inline(never)]
fn reserve<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, reply: &Flow) {
    let flow = &packet.flow;
    let needed = match flow.protocol {
        // OSPF and VRRP send to groups: nothing replies.
        _ if packet.headers.ip.is_multicast() => false,
        // Only the side that asks has the identifier as its port.
        icmp if icmp == I::ICMP => flow.source_port != Be16::ZERO,
        // Only the first packet of a TCP connection needs a reservation: the answer to an outside
        // client begins no connection. The programs never give a NodePort to a flow, so NodePorts
        // need no reservation.
        protocol::TCP | protocol::UDP => {
            (flow.protocol != protocol::TCP || packet.begins_connection())
                && !translation::is_node_port(flow.source_port)
                && !belongs_to_socket::<I>(ctx, flow)
        }
        // The kernel has no lookup for sockets of other protocols.
        _ => true,
    };
    if !needed {
        return;
    }
    if maps::node(&flow.source).is_none_or(|node| node.flags & NODE_LOCAL == 0) {
        return;
    }
    let mut reservation = translation::begin(TRANSLATION_RESERVATION, ctx.ifindex(), reply);
    reservation.reply = 1;
    if !translation::reserve::<I>(reply, &reservation) {
        maps::count_path(Path::ReservationsFull, 0);
    }
}
