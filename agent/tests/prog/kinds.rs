//! The kinds of packets for which tests count the cost and the benchmark measures it.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use podwire_common::flow::protocol;
use podwire_common::names::programs::{
    FROM_OVERLAY, FROM_POD, FROM_UPLINK, TO_OVERLAY, TO_POD, TO_UPLINK, UPLINK_XDP,
};
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC};
use podwire_common::reason::Path;
use podwire_core::model::{PortMapping, Transport as Protocol};

use crate::family::{Address, IpPacket};
use crate::fixture::{
    Fixture, GATEWAY, HOST_A_MAC, NODE1, NODE2, NODE2_MAC, POD_A, POD_A_MAC, POD_B, REMOTE_POD, STRANGER,
    UPLINK_MAC, WORLD,
};
use crate::fixture6::{NODE1_6, NODE2_6};
use crate::kind::{Kind, Link, Setting};
use crate::known_kinds;
use crate::packets::{Packet, Transport, Vxlan, arp, inner, udp};
use crate::packets6::{self, Packet6};

/// A client's port.
pub const CLIENT: u16 = 40000;
/// A server's port.
pub const SERVER: u16 = 80;
/// A service's address, which only the host's rules know.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// A hostPort of pod A on every address of the node, with [`SERVER`] behind it.
pub const HOST_PORT: u16 = 9088;

/// Returns all kinds. A later packet is a packet of an established connection.
fn kinds() -> Vec<Kind> {
    [
        known_kinds::kinds(),
        fragments_of_pod(),
        to_stack(),
        host_port_replies(),
        tunnel_in(),
        from_world(),
        host_port_requests(),
        host_in(),
        to_world(),
        host_out(),
        out_of_stack(),
        on_device(),
    ]
    .concat()
}

/// Returns all kinds, grouped by their node's setting. Use one node at a time: the thread is in its
/// namespace.
pub fn by_setting() -> Vec<(Setting, Vec<Kind>)> {
    let mut settings: Vec<(Setting, Vec<Kind>)> = Vec::new();
    for kind in kinds() {
        match settings.iter_mut().find(|(setting, _)| *setting == kind.setting) {
            Some((_, kinds)) => kinds.push(kind),
            None => settings.push((kind.setting, vec![kind])),
        }
    }
    settings
}

/// Gives pod A its hostPort.
pub fn add_host_port(node: &mut Fixture) {
    let pod = node
        .model
        .endpoints
        .values_mut()
        .find(|endpoint| endpoint.addresses().any(|address| address == POD_A))
        .unwrap();
    let port = |number| NonZeroU16::new(number).unwrap();
    let mapping = |protocol| PortMapping {
        host_address: None,
        host_port: port(HOST_PORT),
        container_port: port(SERVER),
        protocol,
    };
    pod.port_mappings = [Protocol::Tcp, Protocol::Udp].map(mapping).to_vec();
    node.fill();
}

/// Returns the segment with which a client begins a connection.
pub fn syn(source: u16, destination: u16) -> Transport {
    Transport::Tcp { source, destination, flags: 0x02 }
}

/// Returns the segment with which a server accepts a connection.
pub fn syn_ack(source: u16, destination: u16) -> Transport {
    Transport::Tcp { source, destination, flags: 0x12 }
}

/// Returns a segment of an established connection.
pub fn ack(source: u16, destination: u16) -> Transport {
    Transport::Tcp { source, destination, flags: 0x10 }
}

/// Returns a packet that pod A sends.
pub fn from_a<A: Address>(destination: A, transport: Transport) -> A::Packet {
    A::Packet::new(A::POD_A, destination, transport).on_link(HOST_A_MAC, POD_A_MAC)
}

/// Returns a packet that leaves by the uplink.
pub fn out<A: Address>(source: A, destination: A, transport: Transport) -> A::Packet {
    A::Packet::new(source, destination, transport).on_link(NODE2_MAC, UPLINK_MAC)
}

/// Returns a packet that arrives on the uplink.
pub fn arriving<A: Address>(source: A, destination: A, transport: Transport) -> A::Packet {
    A::Packet::new(source, destination, transport).on_link(UPLINK_MAC, NODE2_MAC)
}

/// Returns node 2's packet for pod A, in the tunnel.
pub fn tunnelled(packet: &impl IpPacket) -> Vec<u8> {
    let inner = packet.clone().on_link(INNER_DESTINATION_MAC, INNER_SOURCE_MAC).build();
    Vxlan::new(NODE2, NODE1)
        .with(|outer| (outer.destination_mac, outer.source_mac) = (UPLINK_MAC, NODE2_MAC))
        .around(&inner)
}

/// Returns node 2's tunnel packet of IPv6 around a frame.
pub fn over_ipv6(frame: &[u8]) -> Packet6 {
    packets6::over_ipv6(NODE2_6, NODE1_6, 50000, frame).macs(UPLINK_MAC, NODE2_MAC)
}

/// Returns the first and the last fragment of a datagram.
fn fragments(first: Packet) -> [Packet; 2] {
    let cut = |packet: &mut Packet, fragment| {
        (packet.dont_fragment, packet.fragment) = (false, fragment);
    };
    let last = first.clone().with(|packet| packet.transport = Transport::None(protocol::UDP));
    [first.with(|packet| cut(packet, (0, true))), last.with(|packet| cut(packet, (2, false)))]
}

/// Returns a kind of packet for `from_pod`.
pub fn from_pod(name: impl Into<String>, packet: &impl IpPacket, path: Path) -> Kind {
    Kind::new(FROM_POD, name, Link::PodA, packet.build(), Some(path))
}

/// Returns a kind of packet for `from_uplink`.
pub fn from_uplink(name: impl Into<String>, frame: Vec<u8>, path: Option<Path>) -> Kind {
    Kind::new(FROM_UPLINK, name, Link::Uplink, frame, path)
}

fn to_uplink(name: &'static str, packet: &Packet, path: Option<Path>) -> Kind {
    Kind::new(TO_UPLINK, name, Link::Uplink, packet.build(), path)
}

fn fragments_of_pod() -> Vec<Kind> {
    let [first, last] = fragments(from_a(POD_B, udp(CLIENT, SERVER)));
    let [first_out, last_out] = fragments(from_a(REMOTE_POD, udp(CLIENT, SERVER)));
    vec![
        from_pod("same node, UDP, first fragment", &first, Path::Local),
        from_pod("same node, UDP, last fragment", &last, Path::Local).after(
            FROM_POD,
            Link::PodA,
            first.build(),
        ),
        from_pod("VXLAN, UDP, first fragment", &first_out, Path::TunnelOut),
        from_pod("VXLAN, UDP, last fragment", &last_out, Path::TunnelOut).after(
            FROM_POD,
            Link::PodA,
            first_out.build(),
        ),
        from_pod(
            "VXLAN, UDP, too large and not to be cut",
            &from_a(REMOTE_POD, udp(CLIENT, SERVER)).with(|packet| packet.payload = vec![0; 1460]),
            Path::TooBigAnswered,
        ),
    ]
}

fn to_stack() -> Vec<Kind> {
    // A request comes out of the stack to pod A, and pod A answers.
    let request = |transport| Packet::new(POD_B, POD_A, transport).macs(HOST_A_MAC, HOST_A_MAC).build();
    vec![
        from_pod("to a service, TCP", &from_a(SERVICE, ack(CLIENT, SERVER)), Path::ToStack),
        from_pod("to this node, TCP", &from_a(NODE1, ack(CLIENT, SERVER)), Path::ToStack),
        from_pod("stack flow, TCP", &from_a(POD_B, ack(SERVER, CLIENT)), Path::ToStack).after(
            TO_POD,
            Link::PodA,
            request(syn(CLIENT, SERVER)),
        ),
        from_pod("stack flow, UDP", &from_a(POD_B, udp(SERVER, CLIENT)), Path::ToStack).after(
            TO_POD,
            Link::PodA,
            request(udp(CLIENT, SERVER)),
        ),
        Kind::new(
            FROM_POD,
            "ARP for the gateway",
            Link::PodA,
            arp(1, POD_A_MAC, POD_A, [0; 6], GATEWAY),
            Some(Path::ArpAnswered),
        ),
    ]
}

fn host_port_replies() -> Vec<Kind> {
    let request = |transport| arriving(STRANGER, NODE1, transport).build();
    let reply = |name, transport, asked| {
        from_pod(name, &from_a(STRANGER, transport), Path::HostPortOut).with_host_port().after(
            FROM_UPLINK,
            Link::Uplink,
            request(asked),
        )
    };
    let established = |kind: Kind| {
        kind.after(FROM_POD, Link::PodA, from_a(STRANGER, syn_ack(SERVER, CLIENT)).build()).after(
            FROM_UPLINK,
            Link::Uplink,
            request(ack(CLIENT, HOST_PORT)),
        )
    };
    vec![
        established(reply("hostPort reply, TCP, later packet", ack(SERVER, CLIENT), syn(CLIENT, HOST_PORT))),
        reply("hostPort reply, UDP, later packet", udp(SERVER, CLIENT), udp(CLIENT, HOST_PORT)).after(
            FROM_POD,
            Link::PodA,
            from_a(STRANGER, udp(SERVER, CLIENT)).build(),
        ),
    ]
}

fn tunnel_in() -> Vec<Kind> {
    let to_a = |transport| Packet::new(REMOTE_POD, POD_A, transport);
    let [first, last] = fragments(to_a(udp(CLIENT, SERVER)));
    let fragment = |name, packet: &Packet| from_uplink(name, tunnelled(packet), Some(Path::TunnelIn));
    // Pod A has asked a service through the stack, and the backend is on node 2. So the backend's
    // answers take the stack, too.
    let of_stack = Packet::new(POD_A, REMOTE_POD, syn(CLIENT, SERVER)).macs([2; 6], [2; 6]).build();
    vec![
        fragment("VXLAN, UDP, first fragment", &first),
        fragment("VXLAN, UDP, last fragment", &last).after(FROM_UPLINK, Link::Uplink, tunnelled(&first)),
        from_uplink("VXLAN, stack flow, TCP", tunnelled(&to_a(ack(SERVER, CLIENT))), None).after(
            TO_OVERLAY,
            Link::Uplink,
            of_stack,
        ),
        from_uplink(
            "VXLAN, for this node, TCP",
            tunnelled(&Packet::new(REMOTE_POD, NODE1, ack(CLIENT, SERVER))),
            None,
        ),
        Kind::new(UPLINK_XDP, "VXLAN, TCP", Link::Uplink, tunnelled(&to_a(ack(CLIENT, SERVER))), None)
            .at_xdp(),
    ]
}

fn from_world() -> Vec<Kind> {
    let [first, last] = fragments(arriving(WORLD, NODE1, udp(SERVER, CLIENT)));
    let fragment = |name, packet: &Packet| {
        from_uplink(name, packet.build(), Some(Path::SnatIn))
            .after(TO_UPLINK, Link::Uplink, out(POD_A, WORLD, udp(CLIENT, SERVER)).build())
            .after(FROM_UPLINK, Link::Uplink, first.build())
    };
    let to_own = |name, transport| from_uplink(name, own_address(transport), None);
    vec![
        fragment("from the world, UDP, first fragment", &first),
        fragment("from the world, UDP, last fragment", &last),
        to_own("from the world to a pod's own address, TCP, first packet", syn(CLIENT, SERVER)).first(),
        to_own("from the world to a pod's own address, TCP, later packet", ack(CLIENT, SERVER)).after(
            FROM_UPLINK,
            Link::Uplink,
            own_address(syn(CLIENT, SERVER)),
        ),
    ]
}

/// Returns a packet of the world for pod A's own address.
fn own_address(transport: Transport) -> Vec<u8> {
    arriving(WORLD, POD_A, transport).build()
}

fn host_port_requests() -> Vec<Kind> {
    let request = |transport| arriving(STRANGER, NODE1, transport).build();
    let kind =
        |name, transport| from_uplink(name, request(transport), Some(Path::HostPortIn)).with_host_port();
    let answered = |kind: Kind, asked, answer| {
        kind.after(FROM_UPLINK, Link::Uplink, request(asked)).after(
            FROM_POD,
            Link::PodA,
            from_a(STRANGER, answer).build(),
        )
    };
    let later = kind("hostPort request, TCP, later packet", ack(CLIENT, HOST_PORT));
    let later_udp = kind("hostPort request, UDP, later packet", udp(CLIENT, HOST_PORT));
    vec![
        kind("hostPort request, TCP, first packet", syn(CLIENT, HOST_PORT)).first(),
        answered(later, syn(CLIENT, HOST_PORT), syn_ack(SERVER, CLIENT)),
        kind("hostPort request, UDP, first packet", udp(CLIENT, HOST_PORT)).first(),
        answered(later_udp, udp(CLIENT, HOST_PORT), udp(SERVER, CLIENT)),
    ]
}

fn host_in() -> Vec<Kind> {
    let kind = |name, transport| from_uplink(name, arriving(STRANGER, NODE1, transport).build(), None);
    vec![
        kind("this node's own, TCP, first packet", syn(CLIENT, SERVER)),
        kind("this node's own, TCP, later packet", ack(CLIENT, SERVER)),
        kind("this node's own, UDP", udp(CLIENT, SERVER)),
        from_uplink(
            "this node's own, of another node, TCP",
            arriving(NODE2, NODE1, ack(CLIENT, SERVER)).build(),
            None,
        ),
    ]
}

fn to_world() -> Vec<Kind> {
    let kind = |name, packet: &Packet| to_uplink(name, packet, Some(Path::SnatOut));
    let of_a = |transport| out(POD_A, WORLD, transport);
    let asked = |kind: Kind, packet: Packet| kind.after(TO_UPLINK, Link::Uplink, packet.build());
    let answered = |kind: Kind, transport| {
        kind.after(FROM_UPLINK, Link::Uplink, arriving(WORLD, NODE1, transport).build())
    };
    let later = asked(
        kind("pod to the world, TCP, later packet", &of_a(ack(CLIENT, SERVER))),
        of_a(syn(CLIENT, SERVER)),
    );
    let later_udp = asked(
        kind("pod to the world, UDP, later packet", &of_a(udp(CLIENT, SERVER))),
        of_a(udp(CLIENT, SERVER)),
    );
    let [first, last] = fragments(of_a(udp(CLIENT, SERVER)));
    let to_node = |transport| out(POD_A, NODE2, transport);
    vec![
        kind("pod to the world, TCP, first packet", &of_a(syn(CLIENT, SERVER))).first(),
        answered(later, syn_ack(SERVER, CLIENT)),
        kind("pod to the world, UDP, first packet", &of_a(udp(CLIENT, SERVER))).first(),
        answered(later_udp, udp(SERVER, CLIENT)),
        asked(kind("pod to the world, UDP, first fragment", &first), first.clone()),
        asked(kind("pod to the world, UDP, last fragment", &last), first),
        to_uplink(
            "pod to a node by a service, TCP, first packet",
            &to_node(syn(CLIENT, SERVER)),
            Some(Path::StackEncapsulated),
        )
        .first(),
        asked(
            to_uplink(
                "pod to a node by a service, TCP, later packet",
                &to_node(ack(CLIENT, SERVER)),
                Some(Path::StackEncapsulated),
            ),
            to_node(syn(CLIENT, SERVER)),
        ),
    ]
}

fn host_out() -> Vec<Kind> {
    let own = |transport| out(NODE1, WORLD, transport);
    vec![
        to_uplink("this node's own, TCP, first packet of no socket", &own(syn(CLIENT, SERVER)), None).first(),
        to_uplink("this node's own, TCP, later packet", &own(ack(CLIENT, SERVER)), None),
        to_uplink("this node's own, UDP of a socket", &own(udp(CLIENT, SERVER)), None).by_socket(),
        to_uplink("this node's own, UDP, first packet of no socket", &own(udp(CLIENT, SERVER)), None).first(),
        to_uplink("this node's own, UDP, later packet of no socket", &own(udp(CLIENT, SERVER)), None).after(
            TO_UPLINK,
            Link::Uplink,
            own(udp(CLIENT, SERVER)).build(),
        ),
        Kind::new(
            TO_UPLINK,
            "this node's own, VXLAN of the device",
            Link::Uplink,
            Vxlan::new(NODE1, NODE2).around(&inner(&Packet::new(NODE1, REMOTE_POD, ack(CLIENT, SERVER)))),
            None,
        ),
    ]
}

fn out_of_stack() -> Vec<Kind> {
    let to_a = |source, transport| Packet::new(source, POD_A, transport).macs(HOST_A_MAC, HOST_A_MAC).build();
    let kind = |name, frame| Kind::new(TO_POD, name, Link::PodA, frame, Some(Path::FromStack));
    let syn_of_b = to_a(POD_B, syn(CLIENT, SERVER));
    let udp_of_b = to_a(POD_B, udp(CLIENT, SERVER));
    let to_node2 =
        |source, transport| Packet::new(source, REMOTE_POD, transport).macs([2; 6], [2; 6]).build();
    let to_overlay =
        |name, frame| Kind::new(TO_OVERLAY, name, Link::Uplink, frame, Some(Path::StackToTunnel));
    let syn_of_a = to_node2(POD_A, syn(CLIENT, SERVER));
    vec![
        kind("from the world, TCP", to_a(WORLD, ack(SERVER, CLIENT))),
        kind("from this node, TCP", to_a(NODE1, ack(CLIENT, SERVER))),
        kind("from a pod by a service, TCP, first packet", syn_of_b.clone()).first(),
        kind("from a pod by a service, TCP, later packet", to_a(POD_B, ack(CLIENT, SERVER))).after(
            TO_POD,
            Link::PodA,
            syn_of_b,
        ),
        kind("from a pod by a service, UDP, first packet", udp_of_b.clone()).first(),
        kind("from a pod by a service, UDP, later packet", udp_of_b.clone()).after(
            TO_POD,
            Link::PodA,
            udp_of_b,
        ),
        to_overlay("this node's own, TCP", to_node2(NODE1, ack(CLIENT, SERVER))),
        to_overlay("from a pod by a service, TCP, first packet", syn_of_a.clone()).first(),
        to_overlay("from a pod by a service, TCP, later packet", to_node2(POD_A, ack(CLIENT, SERVER))).after(
            TO_OVERLAY,
            Link::Uplink,
            syn_of_a,
        ),
    ]
}

fn on_device() -> Vec<Kind> {
    let kind = |name, destination, transport, path| {
        let frame = tunnelled(&Packet::new(REMOTE_POD, destination, transport));
        Kind::new(FROM_OVERLAY, name, Link::Uplink, frame, Some(path)).through_device()
    };
    vec![
        kind("to a pod, TCP, first packet", POD_A, syn(CLIENT, SERVER), Path::TunnelInDevice),
        kind("to a pod, TCP, later packet", POD_A, ack(CLIENT, SERVER), Path::TunnelInDevice),
        kind("to a pod, UDP", POD_A, udp(CLIENT, SERVER), Path::TunnelInDevice),
        kind("to this node, UDP", NODE1, udp(CLIENT, SERVER), Path::TunnelToStack),
    ]
}
