//! Fragments: only the first one carries the ports that the others need.

use podwire_common::{abi::FragmentPorts, addr::Be16, reason::Drop};

use crate::{
    maps,
    packet::{Fragment, Ip, Parsed},
};

/// Completes a packet's 5-tuple: remembers the ports of a first fragment, and gives them to later
/// ones.
///
/// # Errors
/// [`Drop::FragmentWithoutFirst`] when the first fragment was not seen, or was seen too long ago.
#[inline(never)]
pub fn complete<I: Ip>(packet: &mut Parsed<I>) -> Result<(), Drop> {
    match packet.fragment_part() {
        Fragment::Whole => {}
        Fragment::First => {
            let key = packet.fragment_key();
            packet.is_overtaken = maps::fragment_ports(&key).is_some_and(|ports| ports.early != 0);
            let ports = FragmentPorts {
                source_port: packet.flow.source_port,
                destination_port: packet.flow.destination_port,
                early: 0,
                protocol: packet.flow.protocol,
                reserved: [0; 2],
            };
            maps::remember_fragment(&key, ports);
        }
        Fragment::Later => {
            let ports = maps::fragment_ports(&packet.fragment_key())
                .filter(|ports| ports.early == 0)
                .ok_or(Drop::FragmentWithoutFirst)?;
            packet.flow.source_port = ports.source_port;
            packet.flow.destination_port = ports.destination_port;
            // Entries of an agent before have no protocol.
            if ports.protocol != 0 {
                packet.flow.protocol = ports.protocol;
            }
        }
    }
    Ok(())
}

/// Remembers that a fragment came before the first one of its datagram. The datagram's flow is not
/// known yet, so the caller leaves the fragment to the host. The host can wait for the first
/// fragment, and needs this one if the datagram is the host's own.
#[inline(never)]
pub fn note_early<I: Ip>(packet: &Parsed<I>) {
    let ports = FragmentPorts {
        source_port: Be16::ZERO,
        destination_port: Be16::ZERO,
        early: 1,
        protocol: 0,
        reserved: [0; 2],
    };
    maps::remember_fragment(&packet.fragment_key(), ports);
}
