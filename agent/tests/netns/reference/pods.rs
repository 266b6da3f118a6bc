//! Pods as clients of each other, of nodes, and of the world.

use std::net::SocketAddr;

use xtask::lab::traffic;

use super::cases::Case;
use super::cluster::{Cluster, PORT, Place};
use super::talk::{self, Protocol};
use super::{Fault, Outcome, demand};

type Of = fn(&Cluster) -> &Place;

pub fn without_translation() -> Vec<Case> {
    let pairs: [(&str, Of, Of); 6] = [
        ("pod to a pod of its node", |cluster| &cluster.pod, |cluster| &cluster.near),
        ("pod to a pod of another node", |cluster| &cluster.pod, |cluster| &cluster.far),
        ("pod to its node", |cluster| &cluster.pod, |cluster| &cluster.node),
        ("pod to another node", |cluster| &cluster.pod, |cluster| &cluster.other),
        ("node to its pod", |cluster| &cluster.node, |cluster| &cluster.pod),
        ("node to a pod of another node", |cluster| &cluster.node, |cluster| &cluster.far),
    ];
    let case = |(name, from, to): (&str, Of, Of), protocol: Protocol| {
        let name = format!("{name}, without NAT, {}", protocol.name());
        Case::new(name, move |cluster: &Cluster| {
            let (from, to) = (from(cluster), to(cluster));
            let destination = SocketAddr::new(to.address, PORT);
            let seen = talk::ask(cluster, protocol, &from.ns, to, destination)?;
            demand(from.has(seen)?, || format!("is seen as {seen}"))?;
            Ok(())
        })
    };
    pairs.into_iter().flat_map(|pair| Protocol::BOTH.map(|protocol| case(pair, protocol))).collect()
}

pub fn to_the_world() -> Vec<Case> {
    let mut cases = Vec::new();
    for protocol in Protocol::BOTH {
        cases.push(Case::new(
            format!("pod to the world, as its node, {}", protocol.name()),
            move |cluster| {
                let seen = talk::ask(cluster, protocol, &cluster.pod.ns, &cluster.world, world(cluster))?;
                demand(seen == cluster.node.address, || format!("is seen as {seen}"))?;
                Ok(())
            },
        ));
    }
    cases.push(Case::new("pod to the world, ping", |cluster| {
        traffic::ping(&cluster.pod.ns, cluster.world.address, 56)
            .map(|_| ())
            .map_err(|_| Fault::Wrong("no answer".to_owned()))
    }));
    for protocol in Protocol::BOTH {
        cases.push(Case::new(
            format!("a pod and then its node, from the pod's port, to one server, {}", protocol.name()),
            move |cluster| one_port(cluster, protocol, &cluster.pod, &cluster.node),
        ));
        cases.push(Case::new(
            format!("a node and then its pod, from the node's port, to one server, {}", protocol.name()),
            move |cluster| one_port(cluster, protocol, &cluster.node, &cluster.pod),
        ));
        cases.push(Case::new(
            format!("pods of two nodes, from one port, to one server, {}", protocol.name()),
            move |cluster| one_port(cluster, protocol, &cluster.pod, &cluster.far),
        ));
    }
    cases.push(Case::new("traceroute from a pod shows the hops", traceroute));
    cases
}

fn world(cluster: &Cluster) -> SocketAddr {
    SocketAddr::new(cluster.world.address, PORT)
}

/// Starts two flows. The second one's source port is the port under which the world sees the first.
/// Both must begin and go on.
fn one_port(cluster: &Cluster, protocol: Protocol, first: &Place, second: &Place) -> Outcome {
    let start =
        |place: &Place, port| talk::start(cluster, protocol, &place.ns, port, &cluster.world, world(cluster));
    let (one, seen) = start(first, cluster.unused_port())?;
    let (other, also_seen) = start(second, seen.port())?;
    demand(seen != also_seen, || format!("both are seen as {seen}"))?;
    for flow in [&one, &other, &one, &other] {
        flow.go_on(&cluster.world)?;
    }
    Ok(())
}

fn traceroute(cluster: &Cluster) -> Outcome {
    let world = cluster.world.address.to_string();
    let tool = ["traceroute", "traceroute6"][cluster.family];
    let traced = cluster.pod.ns.exec(&["busybox", tool, "-n", "-q", "1", "-w", "2", "-m", "4", &world])?;
    let hops: Vec<&str> =
        traced.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap_or_default()).collect();
    let node = [cluster.node.address, cluster.lab.node(0).overlay_addresses()[cluster.family]];
    let router = ["10.200.0.254", "fd00:10:200::254"][cluster.family];
    // The node may answer from any of its addresses.
    let shown = matches!(hops[..], [one, second, last]
        if second == router && last == world && node.iter().any(|address| one == address.to_string()));
    demand(shown, || format!("shows {}", hops.join(", ")))?;
    Ok(())
}
