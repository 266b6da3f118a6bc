//! Fields of captured frames, and the content of the tunnel's outer headers.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use etherparse::{
    EtherType, Ethernet2Slice, Ipv4HeaderSlice, Ipv6HeaderSlice, LaxNetSlice, LaxSlicedPacket,
    TransportSlice, UdpSlice, ip_number,
};
use ipnet::IpNet;
use podwire_common::abi::Flow;
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;
use podwire_common::names::{VNI, VXLAN_PORT};
use podwire_common::reason::Path::{StackToTunnel, TunnelOut, TunnelOutDevice};
use xtask::lab::frames::Capture;
use xtask::lab::{Lab, Mode, Pod, traffic};

use crate::check::Counted;
use crate::{FAMILIES, Place as _};

const MEBIBYTE: u64 = 1 << 20;
/// Bytes of a full underlay frame: 1500 and the Ethernet header.
const FULL_FRAME: usize = 1514;
/// Expedited forwarding with ECT(1). Around "congestion experienced" the VXLAN device writes ECT(0)
/// (RFC 3168 section 9.1.1), but the programs copy it.
const CLASS: u8 = 0xb9;

/// An IPv4 packet in a captured frame.
#[derive(Clone, Debug)]
pub struct Ip<'a> {
    header: Ipv4HeaderSlice<'a>,
    payload: &'a [u8],
}

impl<'a> Ip<'a> {
    /// Returns the packet in a frame, or `None` if the frame has something else.
    pub fn of_frame(frame: &'a [u8]) -> Option<Self> {
        let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
        let packet = (ethernet.ether_type() == EtherType::IPV4).then(|| ethernet.payload_slice())?;
        let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
        // Up to the frame's end: a large segment may be longer than the header's total length can
        // say.
        Some(Self { payload: &packet[header.slice().len()..], header })
    }

    /// Returns whether one of its ends has this address.
    pub fn has_end(&self, address: Ipv4Addr) -> bool {
        [self.header.source_addr(), self.header.destination_addr()].contains(&address)
    }

    pub fn is_fragment(&self) -> bool {
        self.header.is_fragmenting_payload()
    }

    pub fn udp(&self) -> Option<UdpSlice<'a>> {
        let is_udp = self.header.protocol() == ip_number::UDP && !self.is_fragment();
        is_udp.then(|| UdpSlice::from_slice_lax(self.payload).ok())?
    }

    /// Returns the inner packet, if this is a tunnel packet.
    pub fn tunnelled(&self) -> Option<Ip<'a>> {
        let udp = self.udp().filter(|udp| udp.destination_port() == VXLAN_PORT)?;
        Self::of_frame(udp.payload().get(8..)?)
    }
}

/// Returns source and destination of the IP packet in a frame.
pub fn ends(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match LaxSlicedPacket::from_ethernet(frame).ok()?.net? {
        LaxNetSlice::Ipv4(packet) => {
            let header = packet.header();
            Some((header.source_addr().into(), header.destination_addr().into()))
        }
        LaxNetSlice::Ipv6(packet) => {
            let header = packet.header();
            Some((header.source_addr().into(), header.destination_addr().into()))
        }
        LaxNetSlice::Arp(_) => None,
    }
}

/// Returns the ends of the first packet in these frames that has a pod at one of its ends.
pub fn of_pods(frames: &[Vec<u8>]) -> Option<(IpAddr, IpAddr)> {
    let networks: [IpNet; 2] = ["10.244.0.0/16", "fd00:10:244::/48"].map(|network| network.parse().unwrap());
    let is_pods = |address: &IpAddr| networks.iter().any(|network| network.contains(address));
    let mut ends = frames.iter().filter_map(|frame| ends(frame));
    ends.find(|(source, destination)| is_pods(source) || is_pods(destination))
}

/// A packet in a tunnel of IPv6.
struct InIpv6<'a> {
    outer: Ipv6HeaderSlice<'a>,
    udp: UdpSlice<'a>,
    /// The inner frame.
    inner: &'a [u8],
}

impl<'a> InIpv6<'a> {
    /// Returns the packet in a frame, or `None` if the frame has something else.
    fn of_frame(frame: &'a [u8]) -> Option<Self> {
        let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
        match (packet.net?, packet.transport?) {
            (LaxNetSlice::Ipv6(outer), TransportSlice::Udp(udp)) if udp.destination_port() == VXLAN_PORT => {
                let inner = udp.payload().get(8..)?;
                Some(Self { outer: outer.header(), udp, inner })
            }
            _ => None,
        }
    }

    /// Returns the traffic class of the inner packet.
    fn inner_class(&self) -> Option<u8> {
        match LaxSlicedPacket::from_ethernet(self.inner).ok()?.net? {
            LaxNetSlice::Ipv4(packet) => Some(packet.header().slice()[1]),
            LaxNetSlice::Ipv6(packet) => Some(packet.header().traffic_class()),
            LaxNetSlice::Arp(_) => None,
        }
    }

    /// Returns the inner flow, if it is of UDP or TCP.
    fn inner_flow(&self) -> Option<Flow> {
        let (source, destination) = ends(self.inner)?;
        let flow = |from: u16, to: u16, protocol| {
            Flow::new(source.into(), destination.into(), Be16::new(from), Be16::new(to), protocol)
        };
        match LaxSlicedPacket::from_ethernet(self.inner).ok()?.transport? {
            TransportSlice::Udp(udp) => Some(flow(udp.source_port(), udp.destination_port(), protocol::UDP)),
            TransportSlice::Tcp(tcp) => Some(flow(tcp.source_port(), tcp.destination_port(), protocol::TCP)),
            _ => None,
        }
    }
}

#[test]
fn outer_headers_are_those_of_a_router_and_tell_flows_apart() {
    let (lab, client, server) = two_pods();
    let frames = captured(&lab, || {
        for port in 8000..8008 {
            traffic::udp_exchange(&client, &server, server.address(), port, 100).unwrap();
        }
        traffic::tcp_exchange(&client, &server, server.address(), 8080, MEBIBYTE).unwrap();
    });
    let mut source_ports = BTreeSet::new();
    for frame in &frames {
        let Some(outer) = Ip::of_frame(frame) else { continue };
        let Some(inner) = outer.tunnelled() else { continue };
        let udp = outer.udp().unwrap();
        source_ports.insert((inner.header.source_addr(), udp.source_port()));
        assert_eq!(outer.header.ttl(), 64);
        assert_eq!(udp.checksum(), 0);
        assert_eq!(udp.payload()[..8], [8, 0, 0, 0, 0, 0, VNI as u8, 0]);
        assert_eq!(outer.header.dont_fragment(), inner.header.dont_fragment());
        // The pod sent 64, and its node has forwarded the packet.
        assert_eq!(inner.header.ttl(), 63);
    }
    let of_client = source_ports.iter().filter(|(source, _)| *source == crate::v4(client.address())).count();
    assert!(of_client > 4, "9 flows of one pod had {of_client} outer source ports");
}

#[test]
fn outer_headers_of_ipv6_have_no_checksum_and_a_flow_label() {
    let lab = Lab::builder().agent_arguments(&["--tunnel-family", "ipv6"]).build().unwrap();
    let (client, server) = two_pods_in(&lab);
    for family in FAMILIES {
        let to = server.end(family).1;
        // The VXLAN device writes the outer headers around a pod's IPv4, and around what the node
        // sends.
        let of_pod = [TunnelOutDevice, TunnelOut][family];
        for ((from, address), path) in
            [(client.end(family), of_pod), (lab.node(0).end(family), StackToTunnel)]
        {
            let before = Counted::quiet(&lab);
            let frames = captured(&lab, || {
                for port in 8000..8008 {
                    traffic::udp_exchange(from, &server, to, port, 100).unwrap();
                }
                traffic::tcp_exchange(from, &server, to, 8080, MEBIBYTE).unwrap();
                from.exec(&["ping", "-n", "-c1", "-W5", "-Q", &CLASS.to_string(), &to.to_string()]).unwrap();
            });
            Counted::quiet(&lab).since(&before).expect(&[(0, path)], &[]).unwrap();
            let (mut labels, mut classes) = (BTreeSet::new(), BTreeSet::new());
            for packet in frames.iter().filter_map(|frame| InIpv6::of_frame(frame)) {
                let InIpv6 { outer, udp, .. } = &packet;
                assert_eq!((outer.hop_limit(), udp.checksum()), (64, 0), "{path:?}, {to}");
                assert_eq!(udp.payload()[..8], [8, 0, 0, 0, 0, 0, VNI as u8, 0]);
                assert_eq!(Some(outer.traffic_class()), packet.inner_class(), "{path:?}, {to}");
                classes.insert(outer.traffic_class());
                let Some(flow) = packet.inner_flow() else { continue };
                let label = outer.flow_label().value();
                assert_eq!(label, u32::from(flow.tunnel_source_port().get()), "{path:?}, {flow:?}");
                if ends(packet.inner).unwrap().0 == address {
                    labels.insert(label);
                }
            }
            assert!(labels.len() > 4, "{path:?}, {to}: 9 flows had {} labels", labels.len());
            assert!(classes.contains(&CLASS), "{path:?}, {to}: {classes:?}");
        }
    }
}

#[test]
fn dscp_and_congestion_marks_are_copied_to_the_outside() {
    let (lab, client, server) = two_pods();
    // Expedited forwarding, and the four ECN codepoints. "Congestion experienced" is copied as well
    // (RFC 6040).
    for class in [0xb8, 0x00, 0x01, 0x02, 0x03, 0xbb] {
        let frames = captured(&lab, || {
            let address = server.address().to_string();
            client.exec(&["ping", "-n", "-c1", "-W5", "-Q", &class.to_string(), &address]).unwrap();
        });
        let mut seen = 0;
        for outer in frames.iter().filter_map(|frame| Ip::of_frame(frame)) {
            let Some(inner) = outer.tunnelled() else { continue };
            let class_of = |ip: &Ip<'_>| ip.header.slice()[1];
            if inner.header.source_addr() == crate::v4(client.address()) {
                assert_eq!((class_of(&outer), class_of(&inner)), (class, class));
                seen += 1;
            }
        }
        assert!(seen > 0, "no request with class {class:#x} was captured");
    }
}

#[test]
fn a_full_size_transfer_needs_no_outer_fragments() {
    let (lab, client, server) = two_pods();
    // Large segments would hide the packets on the wire.
    for node in lab.nodes() {
        node.exec(&["ethtool", "-K", "eth0", "tso", "off", "gso", "off"]).unwrap();
    }
    for pod in [&client, &server] {
        pod.exec(&["ethtool", "-K", "eth0", "tso", "off", "gso", "off"]).unwrap();
    }
    let frames = captured(&lab, || {
        traffic::tcp_exchange(&client, &server, server.address(), 8080, 8 * MEBIBYTE).unwrap();
        traffic::udp_exchange(&client, &server, server.address(), 8080, 65_507).unwrap();
    });
    let longest = frames.iter().map(Vec::len).max();
    assert_eq!(
        longest,
        Some(FULL_FRAME),
        "the tunnel does not fill the underlay's frames, or overfills them"
    );
    let fragments = frames.iter().filter_map(|frame| Ip::of_frame(frame)).filter(Ip::is_fragment).count();
    assert_eq!(fragments, 0, "outer fragments were sent");
}

#[test]
fn pods_have_the_uplinks_mtu_less_the_tunnels_headers() {
    // Pods with IPv6 have 1280 bytes at least (RFC 8200 section 5).
    for (mode, underlay, pod) in [
        (Mode::Vxlan, 1280, 1280),
        (Mode::Vxlan, 1331, 1281),
        (Mode::Vxlan, 1500, 1450),
        (Mode::Vxlan, 9000, 8950),
        (Mode::Direct, 1500, 1500),
    ] {
        let lab = Lab::builder().nodes(1).mode(mode).underlay_mtu(underlay).build().unwrap();
        let client = lab.node(0).add_pod("client").unwrap();
        for (ns, link) in [(&*client, "eth0"), (&**lab.node(0), client.host_interface())] {
            let shown = ns.exec(&["ip", "link", "show", link]).unwrap();
            assert!(shown.contains(&format!("mtu {pod} ")), "{mode:?} on {underlay}: {shown}");
        }
    }
}

fn two_pods() -> (Lab, Pod, Pod) {
    let lab = Lab::builder().build().unwrap();
    let (client, server) = two_pods_in(&lab);
    (lab, client, server)
}

fn two_pods_in(lab: &Lab) -> (Pod, Pod) {
    (lab.node(0).add_pod("client").unwrap(), lab.node(1).add_pod("server").unwrap())
}

/// Returns the frames that the first node and the underlay exchanged during an action.
fn captured(lab: &Lab, action: impl FnOnce()) -> Vec<Vec<u8>> {
    let capture = Capture::start(lab.underlay(), "node1").unwrap();
    action();
    capture.finish().unwrap()
}
