//! A pod can leave a checksum to the kernel, which writes it after all checks of the programs. That
//! must not change what the programs have checked.

use std::net::IpAddr;

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, ip_number};
use podwire_common::flow::protocol;
use podwire_common::reason::Drop;
use xtask::lab::frames::Capture;
use xtask::lab::{Families, Lab, Mode, Ns, Pod};

use crate::check::Counted;
use crate::offload::{Offload, Sender};
use crate::packets::{ETHERNET, Packet, Transport, udp};
use crate::packets6::{Extension, Packet6};
use crate::sockets::{self, unspecified};

const PORTS: (u16, u16) = (4000, 5000);
/// The offset of the transport header in an IPv4 frame without IP options.
const TRANSPORT: u16 = 34;
const PAYLOAD: usize = 120;
const STARTS: std::ops::RangeInclusive<u16> = 0..=80;
const OFFSETS: std::ops::RangeInclusive<u16> = 0..=30;

#[test]
fn a_source_is_not_written_over_by_a_checksum() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        for on in [true, false] {
            scene.offload(on);
            for receiver in scene.receivers() {
                // The attack: the kernel would write the sum over the last bytes of the source.
                let frame = scene.frame(&receiver, datagram(), PAYLOAD);
                let case = format!("{mode:?}, offload {on}, {}", receiver.name);
                scene.check_own(&case, &receiver, &frame, &[receiver.end_of_source()], None);
            }
        }
    }
}

#[test]
fn only_its_own_checksum_is_left_to_the_kernel() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        for on in [true, false] {
            scene.offload(on);
            for receiver in scene.receivers() {
                // A segment without a SYN stays with the host stack on its way to the world, and
                // conntrack judges it there. So the world gets only datagrams.
                let tcp = (receiver.name != "the world").then_some((segment(), 16));
                for (transport, offset) in [Some((datagram(), 6)), tcp].into_iter().flatten() {
                    let case = format!("{mode:?}, offload {on}, {}, {transport:?}", receiver.name);
                    let frame = scene.frame(&receiver, transport, PAYLOAD);
                    let own = Some((receiver.transport(), offset));
                    scene.check_own(&case, &receiver, &frame, &all(), own);
                }
            }
        }
    }
}

#[test]
fn options_and_extension_headers_move_the_own_checksum() {
    let scene = Scene::new(Mode::Vxlan);
    scene.offload(false);
    let receivers = scene.receivers();
    let receiver = &receivers[0];
    let packet = scene.packet(receiver, datagram()).with(|packet| packet.options = vec![1; 8]);
    scene.check_own("IP options", receiver, &packet.build(), &all(), Some((TRANSPORT + 8, 6)));
    let receiver = &receivers[3];
    let packet = scene.packet6(receiver, datagram());
    let packet = packet.with(|packet| packet.extensions = vec![Extension::of(protocol::DESTINATION_OPTIONS)]);
    let own = (receiver.transport() + 8, 6);
    scene.check_own("an extension header", receiver, &packet.build(), &all(), Some(own));
}

#[test]
fn a_fragment_leaves_no_checksum_and_icmp_neither() {
    let scene = Scene::new(Mode::Vxlan);
    let receiver = &scene.receivers()[0];
    let packet = |transport| scene.packet(receiver, transport);
    for (name, packet) in [
        ("a first fragment", packet(datagram()).with(|packet| packet.fragment = (0, true))),
        ("a later fragment", packet(datagram()).with(|packet| packet.fragment = (2, false))),
        ("an echo request", packet(Transport::EchoRequest { identifier: 7 })),
        ("another protocol", packet(Transport::None(253))),
    ] {
        let before = Counted::quiet(&scene.lab);
        let sender = Sender::open(&scene.pod, "eth0");
        assert!(sender.send(&Offload::checksum(TRANSPORT, 6), &packet.build()), "{name}");
        assert!(sender.send(&Offload::checksum(TRANSPORT, 2), &packet.build()), "{name}");
        let grown = Counted::quiet(&scene.lab).since(&before);
        assert_eq!(grown.drops(0).get(Drop::ChecksumNotOwn.name()), Some(&2), "{name}: {grown}");
    }
}

#[test]
fn no_kind_of_segments_changes_who_sent_them() {
    /// `VIRTIO_NET_HDR_GSO_*`: TCPv4, UDP fragments, TCPv6, UDP; TCPv4 and TCPv6 with ECN.
    const KINDS: [u8; 6] = [1, 3, 4, 5, 0x81, 0x84];
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        for on in [true, false] {
            scene.offload(on);
            for receiver in scene.receivers() {
                let senders = [libc::ETH_P_IP, libc::ETH_P_IPV6, libc::ETH_P_8021Q];
                let senders = senders.map(|protocol| Sender::open_for(&scene.pod, "eth0", protocol));
                let capture = Capture::start(receiver.ns, "eth0").unwrap();
                for (transport, offset) in [(datagram(), 6), (segment(), 16)] {
                    let frame = scene.frame(&receiver, transport, 1200);
                    for kind in KINDS {
                        for header_length in [0, 20, 42, 54, 300] {
                            let own = (receiver.transport(), offset);
                            for checksum in [None, Some(own), Some(receiver.end_of_source()), Some((14, 10))]
                            {
                                let offload =
                                    Offload { checksum, segments: Some((kind, 500)), header_length };
                                for sender in &senders {
                                    sender.send(&offload, &frame);
                                }
                            }
                        }
                    }
                }
                Counted::quiet(&scene.lab);
                let received = receiver.received(capture);
                assert!(!received.is_empty(), "{mode:?}, offload {on}, {}", receiver.name);
                for frame in received {
                    receiver.assert_is_from_sender(&frame, &[ip_number::UDP, ip_number::TCP]);
                }
            }
        }
    }
}

#[test]
fn no_agent_starts_where_the_kernel_tells_no_types() {
    let without = r#"mount --bind /dev/null /sys/kernel/btf/vmlinux && exec "$@""#;
    let container = ["unshare", "--mount", "sh", "-c", without, "sh"];
    let lab = Lab::builder().agents(false).agent_wrapper(&container).build().unwrap();
    assert!(!lab.node(0).run_second_agent().unwrap().success());
    let log = lab.node(0).agent_log();
    let told = log.lines().find(|line| line.contains("ERROR")).unwrap();
    assert!(told.contains("/sys/kernel/btf/vmlinux") && told.contains("CONFIG_DEBUG_INFO_BTF"), "{told}");
}

/// Returns every place of a checksum.
fn all() -> Vec<(u16, u16)> {
    STARTS.flat_map(|start| OFFSETS.map(move |offset| (start, offset))).collect()
}

fn datagram() -> Transport {
    udp(PORTS.0, PORTS.1)
}

/// Returns a segment in the middle of its connection.
fn segment() -> Transport {
    Transport::Tcp { source: PORTS.0, destination: PORTS.1, flags: 16 }
}

/// A pod, and the receivers of its packets.
struct Scene {
    pod: Pod,
    near: Pod,
    far: Pod,
    lab: Lab,
}

/// A receiver, and the source that it must see.
struct Receiver<'a> {
    name: &'static str,
    ns: &'a Ns,
    mac: [u8; 6],
    address: IpAddr,
    sees: IpAddr,
}

impl Scene {
    fn new(mode: Mode) -> Self {
        let lab = Lab::builder().mode(mode).families(Families::Dual).build().unwrap();
        Self {
            pod: lab.node(0).add_pod("pod").unwrap(),
            near: lab.node(0).add_pod("near").unwrap(),
            far: lab.node(1).add_pod("far").unwrap(),
            lab,
        }
    }

    /// Switches whether the node's uplink writes checksums and cuts segments itself.
    fn offload(&self, on: bool) {
        let on = if on { "on" } else { "off" };
        let node = self.lab.node(0);
        node.exec(&["ethtool", "-K", "eth0", "tx", on, "tso", on, "gso", on]).unwrap();
    }

    /// Returns three receivers by IPv4, then the same by IPv6.
    fn receivers(&self) -> Vec<Receiver<'_>> {
        let (node, world) = (self.lab.node(0).addresses(), self.lab.world_addresses());
        let of_family = |family: usize| {
            let [own, near, far] = [&self.pod, &self.near, &self.far].map(|pod| pod.addresses()[family]);
            [
                ("a pod of this node", &*self.near, near, own),
                ("a pod of the other node", &*self.far, far, own),
                ("the world", self.lab.world(), world[family], node[family]),
            ]
        };
        let receiver = |(name, ns, address, sees)| {
            let mac = Ns::mac(ns, "eth0").unwrap();
            Receiver { name, ns, mac, address, sees }
        };
        [0, 1].into_iter().flat_map(of_family).map(receiver).collect()
    }

    fn packet(&self, receiver: &Receiver<'_>, transport: Transport) -> Packet {
        let (IpAddr::V4(own), IpAddr::V4(to)) = (self.pod.addresses()[0], receiver.address) else {
            panic!("{} is not IPv4", receiver.address);
        };
        Packet::new(own, to, transport)
            .macs(self.pod.host_mac(), self.pod.eth0_mac())
            .with(|packet| (packet.payload, packet.dont_fragment) = (vec![0x5a; PAYLOAD], false))
    }

    fn packet6(&self, receiver: &Receiver<'_>, transport: Transport) -> Packet6 {
        let (IpAddr::V6(own), IpAddr::V6(to)) = (self.pod.addresses()[1], receiver.address) else {
            panic!("{} is not IPv6", receiver.address);
        };
        Packet6::new(own, to, transport)
            .macs(self.pod.host_mac(), self.pod.eth0_mac())
            .with(|packet| packet.payload = vec![0x5a; PAYLOAD])
    }

    fn frame(&self, receiver: &Receiver<'_>, transport: Transport, payload: usize) -> Vec<u8> {
        let payload = vec![0x5a; payload];
        match receiver.address {
            IpAddr::V4(_) => self.packet(receiver, transport).with(|packet| packet.payload = payload).build(),
            IpAddr::V6(_) => {
                self.packet6(receiver, transport).with(|packet| packet.payload = payload).build()
            }
        }
    }

    /// Sends the frame with each checksum in `left`, and ordinary frames between them, so that the
    /// flow stays known. Asserts that the receiver gets the ordinary frames and the one with its
    /// own checksum, and that the node refuses all others.
    fn check_own(
        &self,
        case: &str,
        receiver: &Receiver<'_>,
        frame: &[u8],
        left: &[(u16, u16)],
        own: Option<(u16, u16)>,
    ) {
        /// The number of frames after which an ordinary one comes.
        const ORDINARY: usize = 20;
        let _socket = sockets::udp(receiver.ns, (unspecified(receiver.address), PORTS.1));
        let sender = Sender::open_for(&self.pod, "eth0", i32::from(receiver.ethertype()));
        let capture = Capture::start(receiver.ns, "eth0").unwrap();
        let before = Counted::quiet(&self.lab);
        let (mut ordinary, mut refused, mut owned) = (0, 0, 0);
        for (index, &(start, offset)) in left.iter().enumerate() {
            if index % ORDINARY == 0 {
                assert!(sender.send(&Offload::default(), frame));
                ordinary += 1;
            }
            let is_taken = sender.send(&Offload::checksum(start, offset), frame);
            match own == Some((start, offset)) {
                true => owned += usize::from(is_taken),
                false => refused += u64::from(is_taken),
            }
        }
        let grown = Counted::quiet(&self.lab).since(&before);
        let received = receiver.received(capture);
        for frame in &received {
            receiver.assert_is_from_sender(frame, &[ip_number::UDP, ip_number::TCP]);
            assert_eq!(frame[frame.len() - PAYLOAD..], [0x5a; PAYLOAD], "{case}: {frame:02x?}");
        }
        assert_eq!(received.len(), ordinary + owned, "{case}: {grown}");
        assert_eq!(owned, usize::from(own.is_some()), "{case}");
        assert!(refused > 0, "{case}");
        assert_eq!(grown.drops(0).get(Drop::ChecksumNotOwn.name()), Some(&refused), "{case}: {grown}");
    }
}

impl Receiver<'_> {
    fn ethertype(&self) -> u16 {
        if self.address.is_ipv4() { 0x0800 } else { 0x86dd }
    }

    /// Returns the offset of the transport header in a frame without options and extension headers.
    fn transport(&self) -> u16 {
        if self.address.is_ipv4() { TRANSPORT } else { TRANSPORT + 20 }
    }

    /// Returns the place of a checksum over the last two bytes of the source.
    fn end_of_source(&self) -> (u16, u16) {
        if self.address.is_ipv4() { (26, 2) } else { (22, 14) }
    }

    /// Returns the frames to this receiver, without those by which neighbours find each other.
    fn received(&self, capture: Capture) -> Vec<Vec<u8>> {
        const ICMP6: usize = ETHERNET + 6;
        let frames = capture.finish().unwrap().into_iter();
        let is_own = |frame: &Vec<u8>| {
            let of_family = frame[..6] == self.mac && frame[12..14] == self.ethertype().to_be_bytes();
            of_family && (self.address.is_ipv4() || frame[ICMP6] != protocol::ICMPV6)
        };
        frames.filter(is_own).collect()
    }

    /// Asserts that addresses and ports are those of the pod and of this receiver.
    fn assert_is_from_sender(&self, frame: &[u8], protocols: &[IpNumber]) {
        let said = format!("{}: {frame:02x?}", self.name);
        let packet = LaxSlicedPacket::from_ethernet(frame).unwrap();
        let (source, destination, payload): (IpAddr, IpAddr, _) = match packet.net.as_ref().unwrap() {
            LaxNetSlice::Ipv4(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.payload())
            }
            LaxNetSlice::Ipv6(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.payload())
            }
            LaxNetSlice::Arp(_) => panic!("{said}"),
        };
        assert_eq!((source, destination), (self.sees, self.address), "{said}");
        assert!(protocols.contains(&payload.ip_number), "{said}");
        if !payload.fragmented || packet.transport.is_some() {
            let [from, to] = [PORTS.0, PORTS.1].map(u16::to_be_bytes);
            assert_eq!(payload.payload[..4], [from, to].concat(), "{said}");
        }
    }
}
