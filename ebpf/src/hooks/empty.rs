//! A program that does nothing. The benchmark runs it to measure the cost of the kernel's own
//! statistics. Only a build with `count-helpers` has it.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

#[classifier]
pub fn empty(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
