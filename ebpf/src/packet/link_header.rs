//! Link headers for packets of links that have none.

use aya_ebpf::{EbpfContext as _, programs::TcContext};
use podwire_common::{
    addr::{Be16, Mac},
    reason::Drop,
};

use super::Skb;
use crate::helpers::bpf_skb_change_head;

/// An Ethernet header.
#[repr(C)]
struct LinkHeader {
    destination: Mac,
    source: Mac,
    ethertype: Be16,
}

const _: () = assert!(size_of::<LinkHeader>() == 14);

/// Puts an Ethernet header with unspecified addresses in front of an IP packet. The kernel
/// removes it when the packet goes to the host stack or leaves by a link without link header.
///
/// # Errors
/// [`Drop::RewriteFailed`].
// Not inlined: the header would take stack in `to_bare_uplink`.
#[inline(never)]
pub fn add(ctx: &TcContext, ethertype: u16) -> Result<(), Drop> {
    // SAFETY: the context is valid.
    let code = unsafe { bpf_skb_change_head(ctx.as_ptr().cast(), size_of::<LinkHeader>() as u32, 0) };
    if code != 0 {
        return Err(Drop::RewriteFailed);
    }
    let none = Mac::default();
    ctx.store_at(0, &LinkHeader { destination: none, source: none, ethertype: Be16::new(ethertype) })
}
