//! Packets that the kernel has put into a list. No context of a program shows it, so it is read as in `checksum_left.rs`.

use aya_ebpf::programs::TcContext;
use podwire_common::abi::SkbLayout;

use crate::helpers::bpf_probe_read_kernel;

/// `linux/skbuff.h`.
const SKB_GSO_FRAGLIST: u32 = 1 << 18;

/// Whether a large packet is a list of packets, each as it arrived (the feature `rx-gro-list`): what a program takes off the
/// first one's front stays with the others. Where it cannot be read, it is taken for one.
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
    // SAFETY: the helper writes as many bytes as the value has, integers all of them, and reads kernel memory that it checks itself.
    let code =
        unsafe { bpf_probe_read_kernel((&raw mut *into).cast(), size_of::<T>() as u32, from as *const _) };
    code == 0
}
