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

/// Pings once with this number of payload bytes, and waits five seconds for the answer.
///
/// # Errors
/// When there is no answer, with the output of ping.
pub fn ping(from: &Ns, address: IpAddr, size: usize) -> Result<PingReply> {
    run(from, address, size, "dont")
}

/// Pings as [`ping`] does, with "don't fragment". The kernel refuses to send a packet that is
/// larger than the path MTU it knows.
///
/// # Errors
/// When there is no answer, with the output of ping, which has the MTU.
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
