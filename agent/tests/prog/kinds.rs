//! The kinds of packets for which tests count the cost and the benchmark measures it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use podwire_common::names::programs::{
    FROM_OVERLAY, FROM_POD, FROM_UPLINK, TO_OVERLAY, TO_POD, TO_UPLINK, UPLINK_XDP,
};
use podwire_common::names::{GATEWAY6, INNER_DESTINATION_MAC, INNER_SOURCE_MAC};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::{PortMapping, Transport as Protocol};

use crate::family::{Address, IpPacket, can_leave_tunnel};
use crate::fixture::{
    Fixture, GATEWAY, HOST_A_MAC, NODE1, NODE2, NODE2_MAC, POD_A, POD_A_MAC, UPLINK_MAC, WORLD,
};
use crate::fixture6::{ALL_NODES, NODE1_6, NODE2_6};
use crate::kind::{Kind, Link, Setting};
use crate::known_kinds;
use crate::packets::{Transport, Vxlan, arp, udp};
use crate::packets6::{self, Packet6};
use crate::service_kinds;

/// A client's port.
pub const CLIENT: u16 = 40000;
/// A server's port.
pub const SERVER: u16 = 80;
/// A hostPort of pod A on every address of the node, with [`SERVER`] behind it.
pub const HOST_PORT: u16 = 9088;

/// Returns all kinds. A later packet is a packet of an established connection.
fn kinds() -> Vec<Kind> {
    let [arp, solicitation] = gateway_asked_for();
    [
        known_kinds::kinds(),
        service_kinds::kinds(),
        of_family::<Ipv4Addr>(),
        of_family::<Ipv6Addr>(),
        vec![arp, solicitation, by_socket()],
    ]
    .concat()
}

fn of_family<A: Address>() -> Vec<Kind> {
    [
        vec![dropped::<A>()],
        fragments_of_pod::<A>(),
        to_stack::<A>(),
        host_port_replies::<A>(),
        tunnel_in::<A>(),
        from_world::<A>(),
        host_port_requests::<A>(),
        host_in::<A>(),
        to_world::<A>(),
        host_out::<A>(),
        out_of_stack::<A>(),
        on_device::<A>(),
    ]
    .concat()
}

/// The link address of [`ALL_NODES`] (RFC 2464 section 7).
pub const GROUP_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

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

/// Returns the name of a way, with the family if it is IPv6.
pub fn named<A: Address>(way: &str) -> String {
    A::either(way.to_owned(), format!("{way}, IPv6"))
}

/// Returns a kind of packet for `from_pod`.
pub fn from_pod(name: impl Into<String>, packet: &impl IpPacket, path: Path) -> Kind {
    Kind::new(FROM_POD, name, Link::PodA, packet.build(), Some(path))
}

/// Returns a kind of packet for `from_uplink`.
pub fn from_uplink(name: impl Into<String>, frame: Vec<u8>, path: Option<Path>) -> Kind {
    Kind::new(FROM_UPLINK, name, Link::Uplink, frame, path)
}

fn to_uplink(name: impl Into<String>, packet: &impl IpPacket, path: Option<Path>) -> Kind {
    Kind::new(TO_UPLINK, name, Link::Uplink, packet.build(), path)
}

/// Returns a packet under another pod's address, which is dropped, with its event.
fn dropped<A: Address>() -> Kind {
    let foreign = A::Packet::new(A::POD_B, A::WORLD, ack(CLIENT, SERVER)).on_link(HOST_A_MAC, POD_A_MAC);
    Kind::new(FROM_POD, format!("{}, TCP", named::<A>("dropped")), Link::PodA, foreign.build(), None)
        .dropped(Reason::SourceNotOwned)
}

fn fragments_of_pod<A: Address>() -> Vec<Kind> {
    let (local, out) = (named::<A>("same node"), named::<A>("VXLAN"));
    let [first, last] = from_a(A::POD_B, udp(CLIENT, SERVER)).fragments();
    let [first_out, last_out] = from_a(A::REMOTE_POD, udp(CLIENT, SERVER)).fragments();
    vec![
        from_pod(format!("{local}, UDP, first fragment"), &first, Path::Local),
        from_pod(format!("{local}, UDP, last fragment"), &last, Path::Local).after(
            FROM_POD,
            Link::PodA,
            first.build(),
        ),
        from_pod(format!("{out}, UDP, first fragment"), &first_out, Path::TunnelOut),
        from_pod(format!("{out}, UDP, last fragment"), &last_out, Path::TunnelOut).after(
            FROM_POD,
            Link::PodA,
            first_out.build(),
        ),
        from_pod(
            format!("{out}, UDP, too large and not to be cut"),
            &from_a(A::REMOTE_POD, udp(CLIENT, SERVER)).set(|fields| *fields.payload = vec![0; 1460]),
            Path::TooBigAnswered,
        ),
    ]
}

fn to_stack<A: Address>() -> Vec<Kind> {
    // A request comes out of the stack to pod A, and pod A answers.
    let request =
        |transport| A::Packet::new(A::POD_B, A::POD_A, transport).on_link(HOST_A_MAC, HOST_A_MAC).build();
    let kind = |way, protocol, packet: A::Packet| {
        from_pod(format!("{}, {protocol}", named::<A>(way)), &packet, Path::ToStack)
    };
    vec![
        kind("to a service", "TCP", from_a(A::SERVICE, ack(CLIENT, SERVER))),
        kind("to this node", "TCP", from_a(A::NODE1, ack(CLIENT, SERVER))),
        kind("stack flow", "TCP", from_a(A::POD_B, ack(SERVER, CLIENT))).after(
            TO_POD,
            Link::PodA,
            request(syn(CLIENT, SERVER)),
        ),
        kind("stack flow", "UDP", from_a(A::POD_B, udp(SERVER, CLIENT))).after(
            TO_POD,
            Link::PodA,
            request(udp(CLIENT, SERVER)),
        ),
    ]
}

fn gateway_asked_for() -> [Kind; 2] {
    let arp = arp(1, POD_A_MAC, POD_A, [0; 6], GATEWAY);
    let solicitation = solicitation(GATEWAY6.into()).build();
    [("ARP for the gateway", arp), ("solicitation for the gateway, IPv6", solicitation)]
        .map(|(name, frame)| Kind::new(FROM_POD, name, Link::PodA, frame, Some(Path::ArpAnswered)))
}

/// Returns pod A's neighbour solicitation for an address.
pub fn solicitation(target: Ipv6Addr) -> Packet6 {
    let kind = Transport::Icmp { kind: 135, code: 0, word: [0; 4] };
    let source = [&[1, 1][..], &POD_A_MAC].concat();
    from_a(ALL_NODES, kind).macs(GROUP_MAC, POD_A_MAC).with(|packet| {
        (packet.hop_limit, packet.payload) = (255, [&target.octets()[..], &source].concat());
    })
}

fn host_port_replies<A: Address>() -> Vec<Kind> {
    let request = |transport| arriving(A::STRANGER, A::NODE1, transport).build();
    let reply = |protocol, transport, asked| {
        let name = format!("{}, {protocol}, later packet", named::<A>("hostPort reply"));
        from_pod(name, &from_a(A::STRANGER, transport), Path::HostPortOut).with_host_port().after(
            FROM_UPLINK,
            Link::Uplink,
            request(asked),
        )
    };
    let established = |kind: Kind| {
        kind.after(FROM_POD, Link::PodA, from_a(A::STRANGER, syn_ack(SERVER, CLIENT)).build()).after(
            FROM_UPLINK,
            Link::Uplink,
            request(ack(CLIENT, HOST_PORT)),
        )
    };
    vec![
        established(reply("TCP", ack(SERVER, CLIENT), syn(CLIENT, HOST_PORT))),
        reply("UDP", udp(SERVER, CLIENT), udp(CLIENT, HOST_PORT)).after(
            FROM_POD,
            Link::PodA,
            from_a(A::STRANGER, udp(SERVER, CLIENT)).build(),
        ),
    ]
}

fn tunnel_in<A: Address>() -> Vec<Kind> {
    let to_a = |transport| A::Packet::new(A::REMOTE_POD, A::POD_A, transport);
    let way = named::<A>("VXLAN");
    let at_xdp = Kind::new(
        UPLINK_XDP,
        format!("{way}, TCP"),
        Link::Uplink,
        tunnelled(&to_a(ack(CLIENT, SERVER))),
        None,
    )
    .at_xdp();
    if !can_leave_tunnel::<A>() {
        return vec![at_xdp];
    }
    let [first, last] = to_a(udp(CLIENT, SERVER)).fragments();
    let fragment = |which, packet: &A::Packet| {
        from_uplink(format!("{way}, UDP, {which} fragment"), tunnelled(packet), Some(Path::TunnelIn))
    };
    // Pod A has asked a service through the stack, and the backend is on node 2. So the backend's
    // answers take the stack, too.
    let of_stack = A::Packet::new(A::POD_A, A::REMOTE_POD, syn(CLIENT, SERVER)).on_link([2; 6], [2; 6]);
    let to_node = A::Packet::new(A::REMOTE_POD, A::NODE1, ack(CLIENT, SERVER));
    vec![
        fragment("first", &first),
        fragment("last", &last).after(FROM_UPLINK, Link::Uplink, tunnelled(&first)),
        from_uplink(format!("{way}, stack flow, TCP"), tunnelled(&to_a(ack(SERVER, CLIENT))), None).after(
            TO_OVERLAY,
            Link::Uplink,
            of_stack.build(),
        ),
        from_uplink(format!("{way}, for this node, TCP"), tunnelled(&to_node), None),
        at_xdp,
    ]
}

fn from_world<A: Address>() -> Vec<Kind> {
    let [first, last] = arriving(A::WORLD, A::NODE1, udp(SERVER, CLIENT)).fragments();
    let fragment = |which, packet: &A::Packet| {
        let name = format!("{}, UDP, {which} fragment", named::<A>("from the world"));
        from_uplink(name, packet.build(), Some(Path::SnatIn))
            .after(TO_UPLINK, Link::Uplink, out(A::POD_A, A::WORLD, udp(CLIENT, SERVER)).build())
            .after(FROM_UPLINK, Link::Uplink, first.build())
    };
    let own_address = |transport| arriving(A::WORLD, A::POD_A, transport).build();
    let to_own = |which, transport| {
        let way = named::<A>("from the world to a pod's own address");
        from_uplink(format!("{way}, TCP, {which} packet"), own_address(transport), None)
    };
    vec![
        fragment("first", &first),
        fragment("last", &last),
        to_own("first", syn(CLIENT, SERVER)).first(),
        to_own("later", ack(CLIENT, SERVER)).after(
            FROM_UPLINK,
            Link::Uplink,
            own_address(syn(CLIENT, SERVER)),
        ),
    ]
}

fn host_port_requests<A: Address>() -> Vec<Kind> {
    let request = |transport| arriving(A::STRANGER, A::NODE1, transport).build();
    let kind = |protocol, which, transport| {
        let name = format!("{}, {protocol}, {which} packet", named::<A>("hostPort request"));
        from_uplink(name, request(transport), Some(Path::HostPortIn)).with_host_port()
    };
    let answered = |kind: Kind, asked, answer| {
        kind.after(FROM_UPLINK, Link::Uplink, request(asked)).after(
            FROM_POD,
            Link::PodA,
            from_a(A::STRANGER, answer).build(),
        )
    };
    let later = kind("TCP", "later", ack(CLIENT, HOST_PORT));
    let later_udp = kind("UDP", "later", udp(CLIENT, HOST_PORT));
    vec![
        kind("TCP", "first", syn(CLIENT, HOST_PORT)).first(),
        answered(later, syn(CLIENT, HOST_PORT), syn_ack(SERVER, CLIENT)),
        kind("UDP", "first", udp(CLIENT, HOST_PORT)).first(),
        answered(later_udp, udp(CLIENT, HOST_PORT), udp(SERVER, CLIENT)),
    ]
}

fn host_in<A: Address>() -> Vec<Kind> {
    let kind = |what, source, transport| {
        let name = format!("{}, {what}", named::<A>("this node's own"));
        from_uplink(name, arriving(source, A::NODE1, transport).build(), None)
    };
    vec![
        kind("TCP, first packet", A::STRANGER, syn(CLIENT, SERVER)),
        kind("TCP, later packet", A::STRANGER, ack(CLIENT, SERVER)),
        kind("UDP", A::STRANGER, udp(CLIENT, SERVER)),
        kind("of another node, TCP", A::NODE2, ack(CLIENT, SERVER)),
    ]
}

fn to_world<A: Address>() -> Vec<Kind> {
    let kind = |which, packet: &A::Packet| {
        let name = format!("{}, {which}", named::<A>("pod to the world"));
        to_uplink(name, packet, Some(Path::SnatOut))
    };
    let by_service = |which, transport| {
        let name = format!("{}, TCP, {which} packet", named::<A>("pod to a node by a service"));
        to_uplink(name, &out(A::POD_A, A::NODE2, transport), Some(Path::StackEncapsulated))
    };
    let of_a = |transport| out(A::POD_A, A::WORLD, transport);
    let asked = |kind: Kind, packet: A::Packet| kind.after(TO_UPLINK, Link::Uplink, packet.build());
    let answered = |kind: Kind, transport| {
        kind.after(FROM_UPLINK, Link::Uplink, arriving(A::WORLD, A::NODE1, transport).build())
    };
    let later = asked(kind("TCP, later packet", &of_a(ack(CLIENT, SERVER))), of_a(syn(CLIENT, SERVER)));
    let later_udp = asked(kind("UDP, later packet", &of_a(udp(CLIENT, SERVER))), of_a(udp(CLIENT, SERVER)));
    let [first, last] = of_a(udp(CLIENT, SERVER)).fragments();
    vec![
        kind("TCP, first packet", &of_a(syn(CLIENT, SERVER))).first(),
        answered(later, syn_ack(SERVER, CLIENT)),
        kind("UDP, first packet", &of_a(udp(CLIENT, SERVER))).first(),
        answered(later_udp, udp(SERVER, CLIENT)),
        asked(kind("UDP, first fragment", &first), first.clone()),
        asked(kind("UDP, last fragment", &last), first),
        by_service("first", syn(CLIENT, SERVER)).first(),
        asked(by_service("later", ack(CLIENT, SERVER)), out(A::POD_A, A::NODE2, syn(CLIENT, SERVER))),
    ]
}

fn host_out<A: Address>() -> Vec<Kind> {
    let own = |transport| out(A::NODE1, A::WORLD, transport);
    let kind = |what, transport| {
        to_uplink(format!("{}, {what}", named::<A>("this node's own")), &own(transport), None)
    };
    let of_device = A::Packet::new(A::NODE1, A::REMOTE_POD, ack(CLIENT, SERVER));
    let of_device = of_device.on_link(INNER_DESTINATION_MAC, INNER_SOURCE_MAC).build();
    let of_device = Kind::new(
        TO_UPLINK,
        format!("{}, VXLAN of the device", named::<A>("this node's own")),
        Link::Uplink,
        A::either(
            Vxlan::new(NODE1, NODE2).around(&of_device),
            packets6::over_ipv6(NODE1_6, NODE2_6, 50000, &of_device).macs(NODE2_MAC, UPLINK_MAC).build(),
        ),
        None,
    );
    vec![
        kind("TCP, first packet of no socket", syn(CLIENT, SERVER)).first(),
        kind("TCP, later packet", ack(CLIENT, SERVER)),
        kind("UDP, first packet of no socket", udp(CLIENT, SERVER)).first(),
        kind("UDP, later packet of no socket", udp(CLIENT, SERVER)).after(
            TO_UPLINK,
            Link::Uplink,
            own(udp(CLIENT, SERVER)).build(),
        ),
        A::either(of_device.clone(), of_device.over_ipv6()),
    ]
}

/// Returns the kind that a socket of the node sends, of IPv4 only: with IPv6 on the link, the
/// kernel's own packets would be counted.
fn by_socket() -> Kind {
    let packet = out(NODE1, WORLD, udp(CLIENT, SERVER));
    to_uplink("this node's own, UDP of a socket", &packet, None).by_socket()
}

fn out_of_stack<A: Address>() -> Vec<Kind> {
    let to_a = |source, transport| {
        A::Packet::new(source, A::POD_A, transport).on_link(HOST_A_MAC, HOST_A_MAC).build()
    };
    let kind = |way, which, frame| {
        let name = format!("{}, {which}", named::<A>(way));
        Kind::new(TO_POD, name, Link::PodA, frame, Some(Path::FromStack))
    };
    let by_service = |which, frame| kind("from a pod by a service", which, frame);
    let syn_of_b = to_a(A::POD_B, syn(CLIENT, SERVER));
    let udp_of_b = to_a(A::POD_B, udp(CLIENT, SERVER));
    let to_node2 =
        |source, transport| A::Packet::new(source, A::REMOTE_POD, transport).on_link([2; 6], [2; 6]).build();
    let to_overlay = |way, which, frame| {
        let name = format!("{}, {which}", named::<A>(way));
        Kind::new(TO_OVERLAY, name, Link::Uplink, frame, Some(Path::StackToTunnel))
    };
    let syn_of_a = to_node2(A::POD_A, syn(CLIENT, SERVER));
    let by_service_out = |which, frame| to_overlay("from a pod by a service", which, frame);
    vec![
        kind("from the world", "TCP", to_a(A::WORLD, ack(SERVER, CLIENT))),
        kind("from this node", "TCP", to_a(A::NODE1, ack(CLIENT, SERVER))),
        by_service("TCP, first packet", syn_of_b.clone()).first(),
        by_service("TCP, later packet", to_a(A::POD_B, ack(CLIENT, SERVER))).after(
            TO_POD,
            Link::PodA,
            syn_of_b,
        ),
        by_service("UDP, first packet", udp_of_b.clone()).first(),
        by_service("UDP, later packet", udp_of_b.clone()).after(TO_POD, Link::PodA, udp_of_b),
        to_overlay("this node's own", "TCP", to_node2(A::NODE1, ack(CLIENT, SERVER))),
        by_service_out("TCP, first packet", syn_of_a.clone()).first(),
        by_service_out("TCP, later packet", to_node2(A::POD_A, ack(CLIENT, SERVER))).after(
            TO_OVERLAY,
            Link::Uplink,
            syn_of_a,
        ),
    ]
}

fn on_device<A: Address>() -> Vec<Kind> {
    let kind = |way, which, destination, transport, path| {
        let frame = tunnelled(&A::Packet::new(A::REMOTE_POD, destination, transport));
        let name = format!("{}, {which}", named::<A>(way));
        Kind::new(FROM_OVERLAY, name, Link::Uplink, frame, Some(path)).through_device()
    };
    vec![
        kind("to a pod", "TCP, first packet", A::POD_A, syn(CLIENT, SERVER), Path::TunnelInDevice),
        kind("to a pod", "TCP, later packet", A::POD_A, ack(CLIENT, SERVER), Path::TunnelInDevice),
        kind("to a pod", "UDP", A::POD_A, udp(CLIENT, SERVER), Path::TunnelInDevice),
        kind("to this node", "UDP", A::NODE1, udp(CLIENT, SERVER), Path::TunnelToStack),
    ]
}
