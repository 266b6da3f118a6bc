//! Debian's Prometheus for a test, unpacked below `target`: the installed package would start a
//! service.

use std::path::PathBuf;

use crate::manifests::root;

/// The package's name in Debian.
pub const PACKAGE: &str = "prometheus";
/// Programs of the package.
pub const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// Returns the folder into which the package is unpacked.
pub fn folder() -> PathBuf {
    root().join("target/tools").join(PACKAGE)
}

/// Returns the path of a program of the package, or only its name if the package is not unpacked.
pub fn program(name: &str) -> PathBuf {
    let unpacked = folder().join("usr/bin").join(name);
    if unpacked.exists() { unpacked } else { name.into() }
}
