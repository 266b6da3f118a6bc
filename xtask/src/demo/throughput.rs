//! Throughput of a path: one TCP stream with both ends in this process.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use xtask::lab::{Lab, Ns, Pod, traffic};

const PORT: u16 = 8081;
const LENGTH: Duration = Duration::from_millis(1500);

/// Prints one line for each path.
pub(crate) fn show(lab: &Lab, pods: &[Pod]) -> Result<()> {
    println!("\nOne TCP stream, every byte compared by the receiver");
    let [near, beside, far, ..] = pods else { return Ok(()) };
    let (node, other) = (lab.node(0), lab.node(1));
    let paths: [(&str, &Ns, &Ns, IpAddr); 5] = [
        ("pod → pod, same node", near, beside, beside.address()),
        ("pod → pod, other node", near, far, far.address()),
        ("pod → other node", near, other, other.address()),
        ("node → pod, other node", node, far, far.address()),
        ("pod → world", near, lab.world(), lab.world_address()),
    ];
    for (name, from, to, address) in paths {
        let sent = traffic::tcp_throughput(from, to, address, PORT, LENGTH)?;
        println!("{:>8.2} Gbit/s  {name}", sent.bits_per_second() / 1e9);
    }
    Ok(())
}
