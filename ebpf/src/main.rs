//! Podwire's BPF programs: one hook for each attach point. A hook lists its stages in order.
//!
//! aya loads the programs with the licence `GPL`: `bpf_redirect_neigh` and others are GPL-only
//! helpers.
#![no_std]
#![no_main]
#![cfg_attr(all(feature = "count-helpers", target_arch = "bpf"), feature(asm_experimental_arch))]

mod global;
mod helpers;
mod hooks;
mod maps;
mod packet;
mod stage;
mod verdict;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no program gets here.
    loop {}
}
