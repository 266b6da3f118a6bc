//! Protects what the programs have checked: the kernel must not write a checksum over it later.

use aya_ebpf::programs::TcContext;
use podwire_common::reason::Drop;

use crate::{
    maps,
    packet::{Fragment, Ip, Place, checksum_left},
};

/// Refuses a pod's packet if the kernel is to write its checksum anywhere but into the packet's own
/// checksum (see `ChecksumLeft::is_own`).
///
/// # Errors
/// [`Drop::ChecksumNotOwn`].
// Not inlined: its stack is free when it returns.
#[inline(never)]
pub fn of_pod<I: Ip>(ctx: &TcContext) -> Result<(), Drop> {
    let Some(left) = checksum_left(ctx, maps::skb_layout())? else {
        return Ok(());
    };
    let mut place = Place::<I>::new();
    let loaded = place.load(ctx).map_err(|_| Drop::ChecksumNotOwn)?;
    if !loaded.headers().is_ip() {
        return Err(Drop::ChecksumNotOwn);
    }
    let packet = loaded.walk(ctx).map_err(|_| Drop::ChecksumNotOwn)?;
    let is_own = matches!(packet.fragment_part(), Fragment::Whole)
        && left.is_own(packet.protocol(), packet.transport_offset() as u16);
    if is_own { Ok(()) } else { Err(Drop::ChecksumNotOwn) }
}
