//! Lists of packets (fraglist GRO). The program's context does not show them, so this reads the
//! socket buffer, as `checksum_left.rs` does.

use aya_ebpf::programs::TcContext;
use podwire_common::abi::SkbLayout;

use crate::helpers::bpf_probe_read_kernel;

/// `linux/skbuff.h`.
const SKB_GSO_FRAGLIST: u32 = 1 << 18;

/// Returns whether a large packet is a list of whole packets (`ethtool` feature `rx-gro-list`). A
/// program changes only the first packet's headers. If the kernel refuses the read, the packet
/// counts as a list.
#[inline(never)]
pub fn is_list(ctx: &TcContext, layout: SkbLayout) -> bool {
    let (mut head, mut end, mut kind) = (0_u64, 0_u32, 0_u32);
    let skb = ctx.skb.skb as u64;
    let read = read(&mut head, skb + u64::from(layout.head))
        && read(&mut end, skb + u64::from(layout.end))
        && read(&mut kind, head + u64::from(end) + u64::from(layout.gso_type));
    !read || kind & SKB_GSO_FRAGLIST != 0
}

#[inline(always)]
fn read<T>(into: &mut T, from: u64) -> bool {
    // SAFETY: the value is an integer, and the helper writes as many bytes as it has. The helper
    // checks the kernel memory that it reads.
    let code =
        unsafe { bpf_probe_read_kernel((&raw mut *into).cast(), size_of::<T>() as u32, from as *const _) };
    code == 0
}
