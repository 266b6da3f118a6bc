//! Fragments: only the first bears the ports that the others need.

use podwire_common::{abi::FragmentPorts, reason::Drop};

use crate::{
    maps,
    packet::{Fragment, Ipv4},
};

/// Completes a packet's 5-tuple: a first fragment is remembered, a later one is given its first one's ports.
///
/// # Errors
/// [`Drop::FragmentWithoutFirst`] when the first has not been seen, or too long ago.
#[inline(never)]
pub fn complete(packet: &mut Ipv4) -> Result<(), Drop> {
    match packet.headers.fragment_part() {
        Fragment::Whole => {}
        Fragment::First => {
            let ports = FragmentPorts {
                source_port: packet.flow.source_port,
                destination_port: packet.flow.destination_port,
            };
            maps::remember_fragment(&packet.headers.fragment_key(), ports);
        }
        Fragment::Later => {
            let ports =
                maps::fragment_ports(&packet.headers.fragment_key()).ok_or(Drop::FragmentWithoutFirst)?;
            packet.flow.source_port = ports.source_port;
            packet.flow.destination_port = ports.destination_port;
        }
    }
    Ok(())
}
