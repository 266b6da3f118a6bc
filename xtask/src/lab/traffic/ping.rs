//! ICMP echo, from the `ping` command.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::lab::Ns;

/// An answered ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingReply {
    /// Round-trip time.
    pub rtt: Duration,
}

/// Pings once with that many bytes of payload; the answer has five seconds.
///
/// # Errors
/// When there is no answer; with what ping printed.
pub fn ping(from: &Ns, address: IpAddr, size: usize) -> Result<PingReply> {
    run(from, address, size, "dont")
}

/// The same with "don't fragment": what is larger than the MTU that the kernel knows of the path is not even sent.
///
/// # Errors
/// When there is no answer; with what ping printed (with the MTU).
pub fn ping_unfragmented(from: &Ns, address: IpAddr, size: usize) -> Result<PingReply> {
    run(from, address, size, "do")
}

fn run(from: &Ns, address: IpAddr, size: usize, discovery: &str) -> Result<PingReply> {
    let (address, size) = (address.to_string(), size.to_string());
    let output = from.output(&["ping", "-n", "-c1", "-W5", "-w5", "-M", discovery, "-s", &size, &address])?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("ping from {} to {address} ({size} bytes): {}{errors}", from.name(), printed.trim());
    }
    let milliseconds = printed
        .split_once("time=")
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<f64>().ok())
        .with_context(|| format!("ping printed no time: {printed}"))?;
    Ok(PingReply { rtt: Duration::from_secs_f64(milliseconds / 1000.0) })
}
