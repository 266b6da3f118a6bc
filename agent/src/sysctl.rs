//! The kernel switches that pod traffic through the host stack depends on.

use std::fs;
use std::path::Path;

use tracing::info;

use crate::error::Error;

/// Pods' packets to what the stack decides about (ClusterIPs, the world) are forwarded by it.
///
/// # Errors
/// [`Error::File`].
pub fn enable_forwarding() -> Result<(), Error> {
    set("net/ipv4/ip_forward", "1")
}

/// Loose reverse path filter: what arrives through the tunnel from a node's own address would be routed back by the
/// uplink, and strict mode drops it. The kernel takes the larger of this value and `all`'s, so a strict `all` does no
/// harm.
///
/// # Errors
/// [`Error::File`].
pub fn loosen_reverse_path_filter(device: &str) -> Result<(), Error> {
    set(&format!("net/ipv4/conf/{device}/rp_filter"), "2")
}

/// The tunnel carries IPv4 only: without this the kernel sends router solicitations and group reports into it.
///
/// # Errors
/// [`Error::File`].
pub fn disable_ipv6(device: &str) -> Result<(), Error> {
    let name = format!("net/ipv6/conf/{device}/disable_ipv6");
    // Absent on a kernel without IPv6, and on a device with an MTU below IPv6's 1280.
    if Path::new("/proc/sys").join(&name).exists() { set(&name, "1") } else { Ok(()) }
}

/// Writes only what is not so already, and says what it changed.
fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys").join(name);
    let before = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    if before.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(Error::file("write", &path))?;
    info!(sysctl = name, from = before.trim(), to = value, "kernel switch set");
    Ok(())
}
