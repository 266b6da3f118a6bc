//! Copies the BPF object into `OUT_DIR`, from where the library embeds it.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=PODWIRE_BPF_OBJECT");
    let built = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join("../target/bpf/podwire-ebpf");
    let object = env::var_os("PODWIRE_BPF_OBJECT").map_or(built, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("podwire-ebpf");
    if let Err(error) = fs::copy(&object, &embedded) {
        println!(
            "cargo::error=the BPF object {} cannot be read ({error}): run `cargo xtask build`",
            object.display()
        );
    }
}
