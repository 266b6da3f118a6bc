//! Nothing: what the kernel's statistics cost by themselves, for benches. Only in the build that counts.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

#[classifier]
pub fn empty(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
