//! Protects what the programs have checked: the kernel must not write a checksum over it later.

use aya_ebpf::programs::TcContext;
use podwire_common::reason::Drop;

use crate::{
    maps,
    packet::{ETHERNET_LENGTH, Fragment, Ip as _, Place, checksum_left},
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
    let mut place: Place = Place::new();
    let loaded = place.load(ctx).map_err(|_| Drop::ChecksumNotOwn)?;
    let (headers, ip) = (loaded.headers(), &loaded.headers().ip);
    let is_own = headers.is_ip()
        && matches!(ip.fragment_part(&()), Fragment::Whole)
        && left.is_own(ip.protocol, (ETHERNET_LENGTH + ip.header_length(&())) as u16);
    if is_own { Ok(()) } else { Err(Drop::ChecksumNotOwn) }
}
