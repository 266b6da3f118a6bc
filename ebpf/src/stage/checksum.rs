//! Nothing that was checked is written over afterwards.

use aya_ebpf::programs::TcContext;
use podwire_common::reason::Drop;

use crate::{
    maps,
    packet::{Fragment, Place, checksum_left},
};

/// Refuses a pod's packet whose checksum the kernel is to write anywhere but where the packet's own
/// is.
///
/// # Errors
/// [`Drop::ChecksumNotOwn`].
// A function of its own: the stack that it needs is free again when it returns.
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
