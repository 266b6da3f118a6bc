//! A program that does nothing. Benches measure with it what the kernel's statistics cost by
//! themselves. Only in a build with `count-helpers`.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

#[classifier]
pub fn empty(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
