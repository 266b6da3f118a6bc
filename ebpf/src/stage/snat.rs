//! Pods' flows to the world bear the address of the uplink that the route chose.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{Flow, STATE_NEW, TRANSLATION_DESTINATION, TRANSLATION_SOURCE, Translation},
    addr::{Addr, Be16},
    flow::protocol,
    nat,
    reason::{Drop, Path},
};

use super::{flow, source};
use crate::{
    maps::{self, EEXIST},
    packet::{End, Fragment, Ipv4, Skb, translate},
    verdict::{Outcome, Verdict},
};

/// Translates the source of a pod's packet that leaves for the world.
///
/// # Errors
/// The reason why it cannot be translated: it never leaves with the pod's address.
#[inline(always)]
pub fn out(ctx: &TcContext, packet: &mut Ipv4) -> Outcome {
    let uplink = maps::uplink(ctx.ifindex()).ok_or(Drop::SnatNoAddress)?;
    if uplink.ipv4 == Addr::UNSPECIFIED {
        return Err(Drop::SnatNoAddress);
    }
    if packet.is_error || !has_ports(packet) {
        return Err(Drop::SnatProtocolUnknown);
    }
    flow::complete(packet)?;
    // It would leave with a node's address, which other nodes believe, and may reach one by an address that is in no list.
    if !maps::is_direct() && source::is_tunnel(packet) {
        return Err(Drop::VxlanFromPod);
    }
    let port = match maps::translation(&packet.flow) {
        Some(entry) if entry.get().address == uplink.ipv4 => {
            let translation = entry.get();
            entry.touch(nat::next_state(translation.state, packet.flow.protocol, packet.tcp_flags, false));
            translation.port
        }
        stale => {
            if let Some(entry) = stale {
                // The uplink's address changed, or the route chose another uplink: replies to the old one are lost anyway.
                remove_pair(&packet.flow, &entry.get());
            }
            create(packet, &uplink.ipv4)?
        }
    };
    translate(ctx, packet, End::Source, &uplink.ipv4, port)?;
    Ok(Verdict::Stack(Path::SnatOut))
}

/// Translates the destination of a reply back to the pod, if it is one.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn back(ctx: &TcContext, packet: &mut Ipv4) -> Outcome {
    // Errors about translated flows keep their quoted packet untranslated: left to the host.
    if packet.is_error || !has_ports(packet) || flow::complete(packet).is_err() {
        return Ok(Verdict::Pass);
    }
    let Some(entry) = maps::translation(&packet.flow) else {
        return Ok(Verdict::Pass);
    };
    let translation = entry.get();
    if translation.kind != TRANSLATION_DESTINATION {
        return Ok(Verdict::Pass);
    }
    entry.touch(nat::next_state(translation.state, packet.flow.protocol, packet.tcp_flags, true));
    translate(ctx, packet, End::Destination, &translation.address, translation.port)?;
    Ok(Verdict::Stack(Path::SnatIn))
}

/// TCP, UDP and ICMP echo. A later fragment is judged by its first one's translation.
#[inline(always)]
fn has_ports(packet: &Ipv4) -> bool {
    match packet.flow.protocol {
        protocol::TCP | protocol::UDP => true,
        protocol::ICMP => packet.is_echo || matches!(packet.headers.fragment_part(), Fragment::Later),
        _ => false,
    }
}

/// Makes both halves of a new translation and returns its source port: the flow's own when that is free.
#[inline(never)]
fn create(packet: &Ipv4, address: &Addr) -> Result<Be16, Drop> {
    let (first, last) = maps::snat_ports();
    let flow = &packet.flow;
    // Ports that cannot be guessed (RFC 6056).
    let random = maps::random();
    let own = flow.source_port.get();
    let mut attempt = 0;
    while attempt < nat::PORT_ATTEMPTS {
        let port = Be16::new(nat::port_for_attempt(own, attempt, random, first, last));
        attempt += 1;
        // Replies to it would be taken for the tunnel's.
        if port == maps::vxlan_port() {
            continue;
        }
        let reply = reply_of(flow, *address, port);
        let back = half(flow.source, flow.source_port, TRANSLATION_DESTINATION);
        // The reply's half first: while it is there alone, nothing is translated yet.
        match maps::add_translation(&reply, &back) {
            Ok(()) => {}
            Err(EEXIST) => continue,
            Err(_) => return Err(Drop::TranslationsFull),
        }
        return match maps::add_translation(flow, &half(*address, port, TRANSLATION_SOURCE)) {
            Ok(()) => Ok(port),
            Err(error) => {
                maps::remove_translation(&reply);
                // Another CPU was first with the same flow: its translation is as good.
                match maps::translation(flow) {
                    Some(entry) if error == EEXIST => Ok(entry.get().port),
                    _ => Err(Drop::TranslationsFull),
                }
            }
        };
    }
    Err(Drop::SnatPortsExhausted)
}

#[inline(always)]
fn remove_pair(flow: &Flow, translation: &Translation) {
    maps::remove_translation(flow);
    maps::remove_translation(&reply_of(flow, translation.address, translation.port));
}

/// A translated flow's reply as it arrives.
#[inline(always)]
fn reply_of(flow: &Flow, address: Addr, port: Be16) -> Flow {
    Flow::new(flow.destination, address, flow.destination_port, port, flow.protocol)
}

#[inline(always)]
fn half(address: Addr, port: Be16, kind: u8) -> Translation {
    Translation { last_seen: maps::now(), address, port, kind, state: STATE_NEW, reserved: 0 }
}
