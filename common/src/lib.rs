//! The ABI between Podwire's BPF programs and its user space, and those packet decisions that are
//! pure arithmetic. Compiled for BPF and for the host; tested on the host.
#![no_std]

#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod abi;
pub mod addr;
pub mod checksum_left;
pub mod csum;
pub mod ecn;
pub mod epoch;
pub mod event;
pub mod flow;
pub mod helper;
pub mod names;
pub mod nat;
pub mod reason;
pub mod tables;
pub mod token_bucket;
