//! Packets that no host beside the nodes may send to them: the nodes drop them, each counted under
//! its own reason.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::EtherType;
use podwire_common::reason::{Drop, Path};
use xtask::lab::frames::{self, Capture};
use xtask::lab::{Lab, Mode, Node, Ns, Pod, traffic};

use crate::check::Counted;
use crate::packets::{Packet, Vxlan, arp, inner, udp};
use crate::packets6::over_ipv6;
use crate::refused::{OTHER_MAC, Row, grown, refused};
use crate::{sockets, v4, v6};

const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 66);
const STRANGER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x200, 0, 0, 0, 0, 0x66);
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

#[test]
fn nobody_but_a_node_sends_into_the_tunnel() {
    let scene = Scene::new(Mode::Vxlan, &[]);
    let (before, capture) = (Counted::quiet(&scene.lab), Capture::start(&scene.pod, "eth0").unwrap());
    refused(&scene.lab, 0, (&scene.stranger, "eth0"), &scene.tunnel_rows());
    // The kernels at both ends of the pod's link report groups of IPv6.
    let is_ipv4 = |frame: &Vec<u8>| frame[12..14] == EtherType::IPV4.0.to_be_bytes();
    assert!(!capture.finish().unwrap().iter().any(is_ipv4), "the pod received something");
    // The node accepts the frame from which the rows were made: its source claims to be the other
    // node.
    let admitted = scene.outer().around(&scene.inner());
    let capture = Capture::start(&scene.pod, "eth0").unwrap();
    let now = Counted::quiet(&scene.lab);
    assert_ne!(now, before);
    frames::send(&scene.stranger, "eth0", &admitted).unwrap();
    grown(&scene.lab, &now).expect(&[(0, Path::TunnelIn)], &[]).unwrap();
    // The capture also shows the pod's answer, since no socket listens there.
    let received = capture.finish().unwrap();
    assert_eq!(received.iter().filter(|frame| frame[..6] == scene.pod.eth0_mac()).count(), 1);
}

#[test]
fn xdp_drops_strangers_before_anything_else_sees_them() {
    let scene = Scene::new(Mode::Vxlan, &["--uplink-xdp", "generic"]);
    let outer_rows: Vec<Row<'_>> = scene
        .tunnel_rows()
        .into_iter()
        .filter(|(_, _, reason)| matches!(reason, Drop::TunnelPeerUnknown | Drop::TunnelVniUnknown))
        .filter(|(name, ..)| !name.contains("options"))
        .collect();
    assert!(outer_rows.len() >= 2);
    // Generic XDP runs before packet sockets, and TC after them.
    let capture = Capture::start(scene.lab.node(0), "eth0").unwrap();
    refused(&scene.lab, 0, (&scene.stranger, "eth0"), &outer_rows);
    let seen = capture.finish().unwrap();
    let stranger = scene.stranger.mac("eth0").unwrap();
    assert!(!seen.iter().any(|frame| frame[6..12] == stranger), "a stranger's frame passed XDP");
    // XDP leaves faults of the inner packet to TC, and the tunnel works.
    refused(&scene.lab, 0, (&scene.stranger, "eth0"), &[scene.inner_not_owned()]);
    traffic::tcp_exchange(&scene.pod, &scene.far, scene.far.address(), 8080, 1 << 20).unwrap();
}

#[test]
fn no_bare_pod_address_is_let_in_by_an_uplink() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode, arguments(mode));
        // Let the nodes resolve each other: the nodes of a real cluster have done so before.
        traffic::tcp_exchange(&scene.pod, &scene.far, scene.far.address(), 8080, 1000).unwrap();
        let bare = |source| scene.to_node(Packet::new(source, v4(scene.pod.address()), udp(1, 2))).build();
        let rows: Vec<Row<'_>> = vec![
            (
                "a remote pod's address from a stranger",
                bare(v4(scene.far.address())),
                Drop::PodSourceNotFromNode,
            ),
            (
                "a local pod's address from a stranger",
                bare(v4(scene.other.address())),
                Drop::PodSourceNotFromNode,
            ),
        ];
        refused(&scene.lab, 0, (&scene.stranger, "eth0"), &rows);
    }
}

#[test]
fn a_tunnel_packet_in_fragments_is_checked_as_well() {
    let scene = Scene::new(Mode::Vxlan, &[]);
    let send = |frame: &[u8]| {
        let before = Counted::quiet(&scene.lab);
        let parts = in_fragments(frame);
        frames::send_all(&scene.stranger, "eth0", &[&parts[0], &parts[1]]).unwrap();
        grown(&scene.lab, &before)
    };
    let cut = || scene.outer().with(|outer| (outer.dont_fragment, outer.identification) = (false, 7));
    let unknown = send(&cut().with(|outer| outer.source = STRANGER).around(&scene.inner()));
    assert_eq!(unknown.drops(0), &BTreeMap::from([(Drop::TunnelPeerUnknown.name(), 1)]));
    let not_owned = send(&cut().around(&scene.inner_from(WORLD)));
    assert_eq!(not_owned.drops(0), &BTreeMap::from([(Drop::InnerSourceNotOwned.name(), 1)]));
    send(&cut().around(&scene.inner())).expect(&[(0, Path::TunnelInDevice)], &[]).unwrap();
}

#[test]
fn a_frame_to_a_group_is_checked_as_well() {
    const PORT: u16 = 7000;
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode, arguments(mode));
        let node = scene.lab.node(0);
        let socket = sockets::udp(node, (Ipv4Addr::UNSPECIFIED, PORT));
        socket.set_nonblocking(true).unwrap();
        // Let the nodes resolve each other: the nodes of a real cluster have done so before.
        traffic::tcp_exchange(&scene.pod, &scene.far, scene.far.address(), 8080, 1000).unwrap();
        for group in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            let to_node = |source| {
                let packet = Packet::new(source, v4(node.address()), udp(4000, PORT));
                packet.macs(group, scene.stranger_mac).build()
            };
            let mut rows: Vec<Row<'_>> = vec![
                ("a remote pod's address", to_node(v4(scene.far.address())), Drop::PodSourceNotFromNode),
                ("a local pod's address", to_node(v4(scene.pod.address())), Drop::PodSourceNotFromNode),
            ];
            if mode == Mode::Vxlan {
                let outer = || scene.outer().with(|outer| outer.destination_mac = group);
                rows.extend([
                    (
                        "VXLAN from no node",
                        outer().with(|outer| outer.source = STRANGER).around(&scene.inner()),
                        Drop::TunnelPeerUnknown,
                    ),
                    (
                        "VXLAN with an inner source of the world",
                        outer().around(&scene.inner_from(WORLD)),
                        Drop::InnerSourceNotOwned,
                    ),
                ]);
            }
            refused(&scene.lab, 0, (&scene.stranger, "eth0"), &rows);
            assert_eq!(socket.recv(&mut [0; 100]).unwrap_err().kind(), ErrorKind::WouldBlock);
            // A packet with the stranger's own source is still left to the host.
            frames::send(&scene.stranger, "eth0", &to_node(STRANGER)).unwrap();
            socket.set_nonblocking(false).unwrap();
            assert_eq!(socket.recv_from(&mut [0; 100]).unwrap().1.ip(), IpAddr::V4(STRANGER));
            socket.set_nonblocking(true).unwrap();
        }
    }
}

#[test]
fn a_frame_to_a_group_reaches_no_host_port() {
    let scene = Scene::new(Mode::Vxlan, &[]);
    let ports =
        serde_json::json!({"portMappings": [{"hostPort": 18080, "containerPort": 8080, "protocol": "udp"}]});
    let pod = scene.lab.node(0).add_pod_with("published", &ports).unwrap();
    let request = Packet::new(STRANGER, v4(scene.lab.node(0).address()), udp(4000, 18080));
    let to = |mac| request.clone().macs(mac, scene.stranger_mac).build();
    let capture = Capture::start(&pod, "eth0").unwrap();
    let before = Counted::quiet(&scene.lab);
    for group in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        frames::send(&scene.stranger, "eth0", &to(group)).unwrap();
    }
    frames::send(&scene.stranger, "eth0", &to(scene.node_mac)).unwrap();
    let counted = grown(&scene.lab, &before);
    assert_eq!(counted.packets((0, Path::HostPortIn)), 1, "{counted}");
    let received = capture.finish().unwrap();
    assert_eq!(received.iter().filter(|frame| frame[..6] == pod.eth0_mac()).count(), 1);
}

/// Nodes, their pods, and a stranger: a host on the nodes' network that is not a node.
struct Scene {
    pod: Pod,
    other: Pod,
    far: Pod,
    stranger: Ns,
    node_mac: [u8; 6],
    stranger_mac: [u8; 6],
    lab: Lab,
}

/// Returns the agent's options. Without a tunnel, only the link address tells a stranger from a
/// node.
fn arguments(mode: Mode) -> &'static [&'static str] {
    match mode {
        Mode::Vxlan => &[],
        Mode::Direct => &["--link-addresses", "checked"],
    }
}

impl Scene {
    fn new(mode: Mode, arguments: &[&str]) -> Self {
        let lab = Lab::builder().mode(mode).agent_arguments(arguments).build().unwrap();
        let stranger = lab.add_host("stranger", IpAddr::V4(STRANGER)).unwrap();
        Self {
            pod: lab.node(0).add_pod("pod").unwrap(),
            other: lab.node(0).add_pod("other").unwrap(),
            far: lab.node(1).add_pod("far").unwrap(),
            node_mac: lab.node(0).mac("eth0").unwrap(),
            stranger_mac: stranger.mac("eth0").unwrap(),
            stranger,
            lab,
        }
    }

    fn to_node(&self, packet: Packet) -> Packet {
        packet.macs(self.node_mac, self.stranger_mac)
    }

    /// Returns outer headers with the other node as the source.
    fn outer(&self) -> Vxlan {
        Vxlan::new(v4(self.lab.node(1).address()), v4(self.lab.node(0).address())).with(|outer| {
            outer.destination_mac = self.node_mac;
            outer.source_mac = self.stranger_mac;
        })
    }

    /// Returns an inner frame from the other node's pod to this node's.
    fn inner(&self) -> Vec<u8> {
        self.inner_from(v4(self.far.address()))
    }

    fn inner_from(&self, source: Ipv4Addr) -> Vec<u8> {
        inner(&Packet::new(source, v4(self.pod.address()), udp(4000, 5000)))
    }

    fn inner_not_owned(&self) -> Row<'_> {
        (
            "an inner source that is this node's",
            self.outer().around(&self.inner_from(v4(self.other.address()))),
            Drop::InnerSourceNotOwned,
        )
    }

    fn tunnel_rows(&self) -> Vec<Row<'_>> {
        let outer = || self.outer();
        let stranger = || outer().with(|outer| outer.source = STRANGER);
        let options = |outer: &mut Vxlan| outer.options = vec![1; 4];
        let arp = arp(1, OTHER_MAC, v4(self.far.address()), [0; 6], v4(self.pod.address()));
        let over_ipv6 = |node: Option<&Node>| {
            let source = node.map_or(STRANGER6, |node| v6(node.addresses()[1]));
            over_ipv6(source, v6(self.lab.node(0).addresses()[1]), 50000, &self.inner())
                .macs(self.node_mac, self.stranger_mac)
        };
        let mut other_vni = over_ipv6(Some(self.lab.node(1)));
        other_vni.payload[6] ^= 1;
        let split = in_fragments(&stranger().with(|outer| outer.dont_fragment = false).around(&self.inner()));
        assert_eq!(split.len(), 2);
        vec![
            ("VXLAN from no node", stranger().around(&self.inner()), Drop::TunnelPeerUnknown),
            (
                "VXLAN from no node with IP options",
                stranger().with(options).around(&self.inner()),
                Drop::TunnelPeerUnknown,
            ),
            (
                "another VNI",
                outer().with(|outer| outer.vni = 2).around(&self.inner()),
                Drop::TunnelVniUnknown,
            ),
            (
                "other flags",
                outer().with(|outer| outer.flags = 0).around(&self.inner()),
                Drop::TunnelVniUnknown,
            ),
            ("VXLAN over IPv6 from no node", over_ipv6(None).build(), Drop::TunnelPeerUnknown),
            ("another VNI over IPv6", other_vni.build(), Drop::TunnelVniUnknown),
            self.inner_not_owned(),
            (
                "an inner source of the world",
                outer().around(&self.inner_from(WORLD)),
                Drop::InnerSourceNotOwned,
            ),
            (
                "an inner source that is this node",
                outer().around(&self.inner_from(v4(self.lab.node(0).address()))),
                Drop::InnerSourceNotOwned,
            ),
            (
                "an inner source not owned, behind IP options",
                outer().with(options).around(&self.inner_from(WORLD)),
                Drop::InnerSourceNotOwned,
            ),
            ("ARP inside", outer().around(&arp), Drop::InnerProtocolUnknown),
        ]
    }
}

/// Returns an IPv4 frame in two fragments.
fn in_fragments(frame: &[u8]) -> Vec<Vec<u8>> {
    const FIRST: usize = 48;
    let (link, ip, payload) = (&frame[..14], &frame[14..34], &frame[34..]);
    let part = |offset: usize, more: bool, payload: &[u8]| {
        let mut header = etherparse::Ipv4Header::from_slice(ip).unwrap().0;
        header.set_payload_len(payload.len()).unwrap();
        header.fragment_offset = etherparse::IpFragOffset::try_new((offset / 8) as u16).unwrap();
        header.more_fragments = more;
        header.header_checksum = header.calc_header_checksum();
        [link, &header.to_bytes(), payload].concat()
    };
    vec![part(0, true, &payload[..FIRST]), part(FIRST, false, &payload[FIRST..])]
}
