//! The programs that others go on with.

use aya_ebpf::programs::TcContext;
use podwire_common::names::programs::Jump;

use super::JUMPS;

/// Goes on with another program, and does not come back. Where the array does not hold it, nothing happens. Only for a hook's
/// own function: Linux 6.1 takes no jump out of a function on every architecture.
#[inline(always)]
pub fn jump(ctx: &TcContext, to: Jump) {
    // SAFETY: no value of the programs has anything to be dropped.
    unsafe { JUMPS.tail_call(ctx, to as u32) }
}
