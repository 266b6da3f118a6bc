//! Masquerades sources that the other nodes do not know, on their way into the tunnel.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{TRANSLATION_TUNNEL, Translation},
    reason::Drop,
};

use super::{
    super::{flow, translation},
    out::address_of,
};
use crate::{
    maps,
    packet::{Ip, Parsed, translate},
};

/// Replaces the source with the overlay address. The reply comes back through the tunnel, where
/// `from_overlay` restores the destination.
///
/// # Errors
/// Those of [`translation::check`] and [`translation::establish`]; [`Drop::SnatNoAddress`].
#[inline(never)]
pub fn into_tunnel<I: Ip>(ctx: &TcContext, packet: &mut Parsed<I>) -> Result<(), Drop> {
    flow::complete(packet)?;
    if let Some(entry) = translation::of(packet) {
        let half = entry.get();
        if half.kind == TRANSLATION_TUNNEL && half.reply == 0 {
            translation::touch(&entry, packet);
            return translate(ctx, packet, half);
        }
    }
    if packet.is_error {
        return Err(Drop::SnatProtocolUnknown);
    }
    translation::check(packet)?;
    let device = maps::vxlan_ifindex();
    let mut to = translation::begin(TRANSLATION_TUNNEL, device, &packet.flow);
    to.source = address_of::<I>(device)?;
    translation::establish::<I>(ctx, &packet.flow, &mut to)?;
    translate(ctx, packet, &to)
}

/// Returns whether a remote pod's packet is the reply to a flow that [`into_tunnel`] masqueraded.
// Not inlined: the key would take stack in the caller.
#[inline(never)]
pub fn is_answer_from_tunnel<I: Ip>(packet: &mut Parsed<I>) -> bool {
    if flow::complete(packet).is_err() {
        return false;
    }
    let begun = |half: &Translation| half.kind == TRANSLATION_TUNNEL && half.reply == 0;
    maps::translation(&packet.flow.reversed()).is_some_and(|entry| begun(entry.get()))
}
