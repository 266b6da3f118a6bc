//! Jumps from one program to another: `JUMPS`.

use aya_ebpf::programs::TcContext;
use podwire_common::names::programs::Jump;

use super::JUMPS;

/// Continues with another program and does not return. If the array lacks that program, the
/// function returns. Call it only from a hook's own function: on some architectures Linux 6.1
/// refuses a tail call from a subprogram.
#[inline(always)]
pub fn jump(ctx: &TcContext, to: Jump) {
    // SAFETY: no value of the programs needs to be dropped.
    unsafe { JUMPS.tail_call(ctx, to as u32) }
}
