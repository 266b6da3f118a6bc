//! What fits: the largest packet of a pod that passes each underlay, and the error that comes back
//! for one byte more.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use podwire_common::names::{VXLAN_OVERHEAD, VXLAN_OVERHEAD_IPV6};
use podwire_common::reason::Drop;
use podwire_core::model::Family;
use rustix::io::Errno;
use xtask::lab::{Families, Lab, Mode, Ns, traffic};

use crate::check::Counted;
use crate::icmp_errors::path_mtu;
use crate::sockets::{UdpSocket, udp, unspecified, wait_until};
use crate::sweep::{comes, goes};

const PORT: u16 = 5000;
const STREAM: u64 = 1 << 20;
/// The MTU of the world's link.
const WORLD: u32 = 1500;
/// Bytes by which pods' links take more than what fits, so that pods learn it from errors. The
/// agents are told this MTU: they would undo what others set on a pod's link.
const WIDER: u32 = 200;

#[test]
fn largest_packet_passes_and_one_byte_more_is_told_in_vxlan() {
    let mut failures = String::new();
    // 1330 bytes are the least that take a packet of IPv6's minimum MTU whole.
    for underlay in [1280, 1329, 1330, 1400, 1500, 9000] {
        check(Layer { mode: Mode::Vxlan, tunnel: Some(Family::V4), underlay }, &mut failures);
    }
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn largest_packet_passes_and_one_byte_more_is_told_in_ipv6() {
    let mut failures = String::new();
    // 1350 bytes are the least that take a packet of IPv6's minimum MTU.
    for underlay in [1280, 1349, 1350, 1400, 1500, 9000] {
        check(Layer { mode: Mode::Vxlan, tunnel: Some(Family::V6), underlay }, &mut failures);
    }
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn largest_packet_passes_and_one_byte_more_is_told_in_direct() {
    let mut failures = String::new();
    for underlay in [1280, 1400, 1500, 9000] {
        check(Layer { mode: Mode::Direct, tunnel: None, underlay }, &mut failures);
    }
    assert!(failures.is_empty(), "\n{failures}");
}

/// What lies below pods' packets.
#[derive(Clone, Copy)]
struct Layer {
    mode: Mode,
    /// The family of the outer packets.
    tunnel: Option<Family>,
    /// The MTU of the links between the nodes.
    underlay: u32,
}

impl Layer {
    /// Returns the largest packet of a family that passes between pods of two nodes.
    fn takes(self, family: Family) -> u32 {
        // The VXLAN device sends packets of IPv6 up to its minimum in outer fragments.
        let least = if family == Family::V6 && self.tunnel == Some(Family::V4) { 1280 } else { 0 };
        self.whole().max(least)
    }

    /// Returns the largest packet that passes without outer fragments.
    fn whole(self) -> u32 {
        let headers = match self.tunnel {
            None => 0,
            Some(Family::V4) => VXLAN_OVERHEAD,
            Some(Family::V6) => VXLAN_OVERHEAD_IPV6,
        };
        self.underlay - headers
    }
}

fn check(layer: Layer, failures: &mut String) {
    let of_link = (WIDER + layer.takes(Family::V6).max(layer.takes(Family::V4))).to_string();
    let tunnel = if layer.tunnel == Some(Family::V6) { "ipv6" } else { "ipv4" };
    let lab = Lab::builder().mode(layer.mode).families(Families::Dual).underlay_mtu(layer.underlay);
    let lab = lab.agent_arguments(&["--mtu", &of_link, "--tunnel-family", tunnel]).build().unwrap();
    match layer.tunnel == Some(Family::V6) && layer.whole() < Family::V6.least_mtu() {
        true => drop(comes(lab.node(0), "underlay-too-small", &layer.underlay.to_string())),
        false => goes(lab.node(0), "underlay-too-small"),
    }
    let client = lab.node(0).add_pod("client").unwrap();
    // A path MTU belongs to a destination: each protocol has its own, to learn it by itself.
    let servers = ["tcp", "udp"].map(|name| lab.node(1).add_pod(name).unwrap());
    for (index, world) in lab.world_addresses().into_iter().enumerate() {
        let family = Family::of(world);
        let takes = layer.takes(family);
        let [tcp, datagrams] = servers.each_ref().map(|server| (&**server, server.addresses()[index]));
        let own = (&*client, client.addresses()[index]);
        let mut row = |what: &str, outcome: Result<()>| {
            if let Err(error) = outcome {
                let Layer { mode, underlay, .. } = layer;
                writeln!(failures, "{family}, {mode:?}, {underlay} bytes, {what}: {error:#}").unwrap();
            }
        };
        if family == Family::V6 && takes < family.least_mtu() {
            row("UDP", one_byte_more_is_dropped(&lab, own, datagrams, takes));
            continue;
        }
        row("TCP", stream_learns(own, tcp, takes));
        row("UDP", one_byte_more_is_told(own, datagrams, takes));
        row("UDP, the other way", one_byte_more_is_told(datagrams, own, takes));
        if layer.underlay <= WORLD {
            row("UDP to the world", one_byte_more_is_told(own, (lab.world(), world), layer.underlay));
        }
    }
    // What the condition asks for, where it holds.
    lab.node(0).ip("link set eth0 mtu 1500\n").unwrap();
    goes(lab.node(0), "underlay-too-small");
}

/// Runs a stream both ends of which believe that more fits. Both learn what does.
fn stream_learns(client: (&Ns, IpAddr), server: (&Ns, IpAddr), takes: u32) -> Result<()> {
    traffic::tcp_exchange(client.0, server.0, server.1, PORT, STREAM)?;
    let learnt = [path_mtu(client.0, server.1), path_mtu(server.0, client.1)];
    ensure!(learnt == [Some(takes); 2], "learnt {learnt:?} and not {takes}");
    Ok(())
}

/// Sends a datagram of the largest packet, which must arrive, and then larger ones, until the error
/// comes back.
fn one_byte_more_is_told(client: (&Ns, IpAddr), server: (&Ns, IpAddr), takes: u32) -> Result<()> {
    let (sender, payload) = largest_passes(client, server, takes)?;
    let early = path_mtu(client.0, server.1);
    ensure!(early.is_none(), "an error with the MTU {early:?} came back for {takes} bytes");
    let heard = wait_until(|| sender.send(&vec![8; payload + 1]).err());
    let heard = heard.with_context(|| format!("no error came back for {} bytes", takes + 1))?;
    ensure!(Errno::from_io_error(&heard) == Some(Errno::MSGSIZE), "another error came back: {heard}");
    let learnt = path_mtu(client.0, server.1);
    ensure!(learnt == Some(takes), "learnt {learnt:?} and not {takes}");
    Ok(())
}

/// Sends a datagram of the largest packet, which must arrive, and then a larger one that no host
/// would make smaller, which a program must refuse.
fn one_byte_more_is_dropped(
    lab: &Lab,
    client: (&Ns, IpAddr),
    server: (&Ns, IpAddr),
    takes: u32,
) -> Result<()> {
    let (sender, payload) = largest_passes(client, server, takes)?;
    let before = Counted::quiet(lab);
    sender.send(&vec![8; payload + 1])?;
    let grown = Counted::quiet(lab).since(&before);
    ensure!(grown.drops(0).get(Drop::TunnelTooSmall.name()) == Some(&1), "{grown}");
    Ok(())
}

/// Sends a datagram of the largest packet, which must arrive. Returns the sender, and the bytes of
/// payload.
fn largest_passes(client: (&Ns, IpAddr), server: (&Ns, IpAddr), takes: u32) -> Result<(UdpSocket, usize)> {
    let headers = if server.1.is_ipv4() { 28 } else { 48 };
    let payload = takes as usize - headers;
    let receiver = udp(server.0, (unspecified(server.1), PORT));
    let sender = udp(client.0, (client.1, 0));
    sender.connect(SocketAddr::new(server.1, PORT))?;
    sender.send(&vec![7; payload])?;
    let received = receiver.recv(&mut [0; 10_000]).with_context(|| format!("{takes} bytes"))?;
    ensure!(received == payload, "{received} of {payload} bytes arrived");
    Ok((sender, payload))
}
