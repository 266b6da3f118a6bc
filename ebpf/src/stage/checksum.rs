//! Protects what the programs have checked: the kernel must not write a checksum over it later.

use aya_ebpf::programs::TcContext;
use podwire_common::reason::Drop;

use crate::{
    maps,
    packet::{Fragment, Place, checksum_left},
};

/// Refuses a pod's packet if the kernel is to write its checksum anywhere but into the packet's own
/// checksum (see `ChecksumLeft::is_own`).
///
/// # Errors
/// [`Drop::ChecksumNotOwn`].
// Not inlined: its stack is free when it returns.
#[inline(never)]
pub fn of_pod(ctx: &TcContext) -> Result<(), Drop> {
    let Some(left) = checksum_left(ctx, maps::skb_layout())? else {
        return Ok(());
    };
    let mut place = Place::new();
    let loaded = place.load(ctx).map_err(|_| Drop::ChecksumNotOwn)?;
    let headers = loaded.headers();
    let is_own = headers.is_ipv4()
        && matches!(headers.fragment_part(), Fragment::Whole)
        && left.is_own(headers.protocol, headers.transport_offset(0) as u16);
    if is_own { Ok(()) } else { Err(Drop::ChecksumNotOwn) }
}
