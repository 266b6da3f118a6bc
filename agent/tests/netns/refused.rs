//! Packets that no pod may send: the node drops them, each counted under its own reason.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use etherparse::EtherType;
use podwire_common::reason::{Drop, Path};
use xtask::lab::frames::{self, Capture};
use xtask::lab::{Families, Lab, Mode, Node, Ns, traffic};

use crate::check::Counted;
use crate::packets::{self, Packet, Vxlan, arp, inner, tagged, udp};
use crate::v4;

pub const OTHER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x66];

const GLOBAL: [u8; 16] = [0xfd, 0, 0, 0x10, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2];
const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const ALL_ROUTERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

/// A frame with its description, and the reason for which it is dropped.
pub type Row<'a> = (&'a str, Vec<u8>, Drop);

#[test]
fn a_pod_sends_only_what_is_its_own() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        // Each frame is counted, so no IPv6 stack may send any.
        let lab = Lab::builder().mode(mode).families(Families::V4).build().unwrap();
        let [pod, other] = ["pod", "other"].map(|name| lab.node(0).add_pod(name).unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        let (own, gateway) = (v4(pod.address()), v4(pod.gateway()));
        let good = Packet::new(own, v4(far.address()), udp(4000, 5000)).macs(pod.host_mac(), pod.eth0_mac());
        let to = |destination: Ipv4Addr| good.clone().with(|packet| packet.destination = destination);
        let from = |source: Ipv4Addr| good.clone().with(|packet| packet.source = source).build();
        let to_mac = |mac| good.clone().macs(mac, pod.eth0_mac());
        let tunnel = |node: &Node| {
            Vxlan::new(own, v4(node.address())).with(|outer| {
                outer.source_mac = pod.eth0_mac();
                outer.destination_mac = pod.host_mac();
            })
        };
        let ask = |mac, sender, target| arp(1, mac, sender, [0; 6], target);
        let ethernet = |ether_type| {
            [packets::ethernet(pod.host_mac(), pod.eth0_mac(), ether_type), vec![0; 46]].concat()
        };
        let icmpv6 = |source: [u8; 16], destination: [u8; 16], kind| {
            let ip = [&[0x60, 0, 0, 0, 0, 24, 58, 255][..], &source, &destination].concat();
            let message = [&[kind][..], &[0; 23]].concat();
            let ethernet = packets::ethernet(pod.host_mac(), pod.eth0_mac(), EtherType::IPV6);
            [ethernet, ip, message].concat()
        };
        let injected = inner(&Packet::new(v4(other.address()), v4(far.address()), udp(1, 2)));
        let rows: Vec<Row<'_>> = vec![
            ("another pod's address", from(v4(other.address())), Drop::SourceNotOwned),
            ("a remote pod's address", from(v4(far.address())), Drop::SourceNotOwned),
            ("the node's address", from(v4(lab.node(0).address())), Drop::SourceNotOwned),
            ("nobody's address", from(Ipv4Addr::new(192, 0, 2, 1)), Drop::SourceNotOwned),
            ("another's MAC", good.clone().macs(pod.host_mac(), OTHER_MAC).build(), Drop::SourceMacNotOwned),
            ("VXLAN to another node", tunnel(lab.node(1)).around(&injected), Drop::VxlanFromPod),
            ("VXLAN to its own node", tunnel(lab.node(0)).around(&injected), Drop::VxlanFromPod),
            ("a VLAN tag", tagged(&good.build()), Drop::VlanTagged),
            (
                "a multicast address",
                to(Ipv4Addr::new(224, 0, 0, 251)).macs([1, 0, 0x5e, 0, 0, 0xfb], pod.eth0_mac()).build(),
                Drop::Multicast,
            ),
            ("a multicast link address", to_mac([1, 0, 0x5e, 0, 0, 1]).build(), Drop::Multicast),
            ("the broadcast address", to(Ipv4Addr::BROADCAST).build(), Drop::Broadcast),
            ("the broadcast link address", to_mac([0xff; 6]).build(), Drop::Broadcast),
            ("IPv6 from an address that it lacks", icmpv6(GLOBAL, GLOBAL, 128), Drop::SourceNotOwned),
            ("IPv6 from nowhere", icmpv6([0; 16], GLOBAL, 128), Drop::AddressNeverOnWire),
            ("IPv6 from a link-local address", icmpv6(LINK_LOCAL, GLOBAL, 128), Drop::LinkLocalAddress),
            ("a router solicitation", icmpv6(LINK_LOCAL, ALL_ROUTERS, 133), Drop::NeighbourChatter),
            ("duplicate address detection", icmpv6([0; 16], ALL_ROUTERS, 135), Drop::NeighbourChatter),
            ("a router advertisement", icmpv6(LINK_LOCAL, ALL_ROUTERS, 134), Drop::RouterAdvertisement),
            ("an IPv6 redirect", icmpv6(LINK_LOCAL, GLOBAL, 137), Drop::RedirectFromPod),
            ("IPv6 of version 0", ethernet(EtherType::IPV6), Drop::SourceNotOwned),
            ("neither IP nor ARP", ethernet(EtherType(0x88b5)), Drop::EthertypeUnknown),
            ("ARP for another pod", ask(pod.eth0_mac(), own, v4(other.address())), Drop::ArpNotForGateway),
            ("ARP for itself", ask(pod.eth0_mac(), own, own), Drop::ArpNotForGateway),
            ("an ARP reply", arp(2, pod.eth0_mac(), own, pod.host_mac(), gateway), Drop::ArpNotForGateway),
            (
                "ARP in another's name",
                ask(pod.eth0_mac(), v4(other.address()), gateway),
                Drop::SourceNotOwned,
            ),
            ("ARP from another's MAC", ask(OTHER_MAC, own, gateway), Drop::SourceMacNotOwned),
        ];
        let sender = (&*pod, "eth0");
        refused(&lab, 0, sender, &rows);
        // The frame from which all rows were made passes, and so does an ARP request for the
        // gateway.
        let before = Counted::quiet(&lab);
        frames::send_all(&pod, "eth0", &[&good.build(), &ask(pod.eth0_mac(), own, gateway)]).unwrap();
        let out = if mode == Mode::Vxlan { Path::TunnelOut } else { Path::DirectOut };
        grown(&lab, &before).expect(&[(0, out), (0, Path::ArpAnswered)], &[]).unwrap();
    }
}

/// Loose source and record route (RFC 791): the kernels of pods and nodes accept none.
#[test]
fn a_source_route_leads_nowhere() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let [pod, other] = ["pod", "other"].map(|name| lab.node(0).add_pod(name).unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        let mut options = vec![0x83, 7, 4];
        options.extend(v4(far.address()).octets());
        options.push(0);
        let receivers = [&other, &far].map(|pod| crate::sockets::udp(pod, "0.0.0.0:5000"));
        for by in [other.address(), lab.node(0).address(), lab.node(1).address(), lab.world_address()] {
            let packet = Packet::new(v4(pod.address()), v4(by), udp(4000, 5000))
                .macs(pod.host_mac(), pod.eth0_mac())
                .with(|packet| packet.options = options.clone());
            frames::send(&pod, "eth0", &packet.build()).unwrap();
        }
        // What the pod sends afterwards arrives, and nothing came before it.
        for (receiver, to) in receivers.iter().zip([&other, &far]) {
            let sender = crate::sockets::udp(&pod, "0.0.0.0:4001");
            sender.send_to(b"last", (to.address(), 5000)).unwrap();
            let mut buffer = [0; 100];
            let (length, _) = receiver.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"last", "{mode:?}: {}", to.name());
        }
    }
}

#[test]
fn a_dead_pods_address_goes_nowhere() {
    let lab = Lab::builder().build().unwrap();
    let [pod, dead] = ["pod", "dead"].map(|name| lab.node(0).add_pod(name).unwrap());
    let address = dead.address();
    dead.delete().unwrap();
    let capture = Capture::start(lab.underlay(), "node1").unwrap();
    let error = traffic::ping(&pod, address, 56).unwrap_err().to_string();
    assert!(error.contains("Unreachable"), "{error}");
    let leaked = capture.finish().unwrap();
    let leaked = crate::headers::of_pods(&leaked);
    assert_eq!(leaked, None);
}

/// Sends each row's frame. Asserts that the node counts one drop for the row's reason, and no
/// packet on any path.
pub fn refused(lab: &Lab, node: usize, (sender, link): (&Ns, &str), rows: &[Row<'_>]) {
    let mut failures = Vec::new();
    for (name, frame, reason) in rows {
        let before = Counted::quiet(lab);
        frames::send(sender, link, frame).unwrap();
        let grown = grown(lab, &before);
        let expected = BTreeMap::from([(reason.name(), 1)]);
        if grown.drops(node) != &expected || Path::ALL.iter().any(|path| grown.packets((node, *path)) > 0) {
            failures.push(format!("{name}: expected {expected:?}, {grown}"));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// Returns the counts of what was just sent. Waits for the first count, but no longer than two
/// seconds.
pub fn grown(lab: &Lab, before: &Counted) -> Counted {
    let start = Instant::now();
    loop {
        let now = Counted::quiet(lab);
        if now != *before || start.elapsed() > Duration::from_secs(2) {
            return now.since(before);
        }
    }
}
