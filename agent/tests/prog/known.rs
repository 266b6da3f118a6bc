//! `FLOWS` and `FLOWS6`: for a packet of a known flow, a program does what its stages would do. It
//! follows an entry only as long as the entry is valid.

use std::borrow::Borrow as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use podwire_common::abi::{self, Flow, KNOWN_FLOW_JIFFIES, KnownFlow, Macs, NextHop, Tunnel};
use podwire_common::addr::{Be16, Mac};
use podwire_common::flow::{FlowAddr as _, protocol};
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK, TO_OVERLAY, TO_POD, TO_UPLINK};
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC};
use podwire_common::reason::Path;
use podwire_core::model::{Family, Mode};

use crate::family::{Address, Fields, IpPacket as _, next_hop};
use crate::fixture::*;
use crate::fixture6::{NODE3_6, STRANGER6, dual};
use crate::kinds::{CLIENT, HOST_PORT, SERVER, add_host_port, arriving, from_a, out, over_ipv6, syn};
use crate::packets::*;
use crate::packets6::{Extension, Packet6};
use crate::service_kinds::{BACKEND, SERVED};
use crate::trial::{Kind, SERVICE_PORTS, Sent, Trial};

#[test]
fn known_flows_packet_becomes_what_the_stages_would_make_of_it() {
    Trial::<Ipv4Addr>::each(check_variations);
    Trial::<Ipv6Addr>::each(check_variations);
}

fn check_variations<A: Address>(trial: &mut Trial<A>) {
    let largest = trial.tunnel_mtu() as usize - trial.headers();
    let mut packets = vec![
        ("plain", trial.varied(|_| ())),
        ("DSCP and ECN", trial.varied(|fields| *fields.traffic_class = 0xb9)),
        ("congestion seen before", trial.varied(|fields| *fields.traffic_class = 3)),
        ("TTL 2", trial.varied(|fields| *fields.ttl = 2)),
        ("odd length", trial.varied(|fields| *fields.payload = vec![0x55; 333])),
        ("as large as fits", trial.varied(|fields| *fields.payload = vec![0x55; largest])),
    ];
    if trial.is_tcp() {
        // A test run cannot set a segment's type. Without one the kernel refuses to grow the
        // headers.
        if !trial.way.kind.leaves_in_tunnel() {
            packets.push(("a large segment", trial.large_segment()));
        }
    } else {
        let no_checksum = |fields: Fields<'_, A>| {
            if let Transport::Udp { checksum, .. } = fields.transport {
                *checksum = false;
            }
        };
        packets.push(("without checksum", trial.varied(no_checksum)));
    }
    if trial.way.kind.comes_in_tunnel() && trial.way.over == Family::V4 {
        let inner = trial.plain.clone().set(|fields| *fields.traffic_class = 1).build();
        let frame = outer().with(|outer| outer.traffic_class = 3).around(&inner);
        packets.push(("congestion in the tunnel", Sent { frame, ..trial.varied(|_| ()) }));
    }
    for (packet, sent) in packets {
        let judged = trial.judged(&sent);
        assert_eq!(trial.known(&sent, |_| ()), judged, "{}: {packet}", trial.what());
    }
}

#[test]
fn what_is_remembered_of_a_flow() {
    Trial::<Ipv4Addr>::each(check_entry);
    Trial::<Ipv6Addr>::each(check_entry);
}

const REWRITES_BOTH: u8 = abi::FLOW_REWRITES_SOURCE | abi::FLOW_REWRITES_DESTINATION;

fn check_entry<A: Address>(trial: &mut Trial<A>) {
    let mac = |bytes| Mac { bytes };
    let plain = trial.sent(&trial.plain);
    trial.judged(&plain);
    let entry = trial.entry().expect("it is remembered");
    let (uplink, pod_a, pod_b) = (trial.node.uplink, trial.node.pod_a, trial.node.pod_b);
    let flow = trial.flow;
    let path = |path: Path| path as u16;
    let nothing = KnownFlow {
        key: *A::Stored::key(&flow).borrow(),
        epochs: trial.node.loaded.maps.sum_of_epochs(&entry.slots),
        asked: entry.asked,
        slots: trial.slots(),
        from: pod_a,
        to: uplink,
        mtu: u32::MAX,
        sender_mac: mac(POD_A_MAC),
        flags: abi::FLOW_OF_SENDER,
        leaves: 0,
        macs: Macs::default(),
        source: A::Stored::of(&flow.source),
        destination: A::Stored::of(&flow.destination),
        source_port: flow.source_port,
        destination_port: flow.destination_port,
        path: 0,
        reserved: [0; 2],
        next_hop: NextHop::UNKNOWN,
        tunnel: Tunnel::NONE,
        reserved2: [0; 4],
    };
    let out = KnownFlow { leaves: abi::LEAVES_BY_UPLINK, next_hop: next_hop(A::NODE2), mtu: 1500, ..nothing };
    let to_a = KnownFlow {
        from: uplink,
        to: pod_a,
        sender_mac: mac(NODE2_MAC),
        leaves: abi::LEAVES_INTO_POD,
        macs: Macs { destination: mac(POD_A_MAC), source: mac(HOST_A_MAC) },
        ..nothing
    };
    let served = KnownFlow {
        flags: abi::FLOW_OF_SENDER | REWRITES_BOTH,
        source: A::Stored::of(&A::POD_A.into()),
        source_port: Be16::new(SERVED),
        destination_port: Be16::new(BACKEND),
        ..nothing
    };
    let answer = KnownFlow {
        flags: abi::FLOW_OF_SENDER | REWRITES_BOTH,
        source: A::Stored::of(&A::SERVICE.into()),
        source_port: Be16::new(SERVICE_PORTS[0]),
        destination: A::Stored::of(&A::POD_A.into()),
        destination_port: Be16::new(CLIENT),
        ..to_a
    };
    let expected = match trial.way.kind {
        Kind::Local => KnownFlow {
            to: pod_b,
            leaves: abi::LEAVES_INTO_POD,
            macs: Macs { destination: mac(POD_B_MAC), source: mac(HOST_B_MAC) },
            path: path(Path::Local),
            ..nothing
        },
        Kind::TunnelOut => KnownFlow {
            leaves: match trial.way.over {
                Family::V4 => abi::LEAVES_IN_TUNNEL,
                Family::V6 => abi::LEAVES_IN_TUNNEL6,
            },
            next_hop: next_hop(trial.tunnel().1),
            mtu: trial.tunnel_mtu(),
            path: path(Path::TunnelOut),
            tunnel: Tunnel {
                here: trial.tunnel().0,
                there: trial.tunnel().1,
                source_port: flow.tunnel_source_port(),
                inner_mac: mac(INNER_DESTINATION_MAC),
            },
            ..out
        },
        Kind::DirectOut => KnownFlow { path: path(Path::DirectOut), ..out },
        Kind::WorldOut => KnownFlow {
            flags: abi::FLOW_OF_SENDER | abi::FLOW_REWRITES_SOURCE,
            source: A::Stored::of(&A::NODE1.into()),
            source_port: Be16::new(TRANSLATED),
            path: path(Path::SnatOut),
            ..out
        },
        Kind::TunnelIn => KnownFlow {
            sender_mac: mac(INNER_SOURCE_MAC),
            flags: abi::FLOW_IN_TUNNEL,
            path: path(Path::TunnelIn),
            tunnel: Tunnel { there: trial.tunnel().1, ..Tunnel::NONE },
            ..to_a
        },
        Kind::DirectIn => KnownFlow { path: path(Path::DirectIn), ..to_a },
        Kind::WorldIn => KnownFlow {
            flags: abi::FLOW_REWRITES_DESTINATION,
            mtu: 1450,
            destination: A::Stored::of(&A::POD_A.into()),
            destination_port: Be16::new(CLIENT),
            path: path(Path::SnatIn),
            ..to_a
        },
        Kind::ServiceLocal => KnownFlow {
            to: pod_b,
            leaves: abi::LEAVES_INTO_POD,
            macs: Macs { destination: mac(POD_B_MAC), source: mac(HOST_B_MAC) },
            path: path(Path::Local),
            destination: A::Stored::of(&A::POD_B.into()),
            ..served
        },
        Kind::ServiceOut => KnownFlow {
            leaves: abi::LEAVES_IN_TUNNEL,
            next_hop: next_hop(trial.tunnel().1),
            mtu: trial.tunnel_mtu(),
            path: path(Path::TunnelOut),
            tunnel: Tunnel {
                here: trial.tunnel().0,
                there: trial.tunnel().1,
                source_port: flow.tunnel_source_port(),
                inner_mac: mac(INNER_DESTINATION_MAC),
            },
            destination: A::Stored::of(&A::REMOTE_POD.into()),
            ..served
        },
        Kind::ServiceDirectIn => KnownFlow { path: path(Path::DirectIn), ..answer },
        Kind::ServiceIn => KnownFlow {
            sender_mac: mac(INNER_SOURCE_MAC),
            flags: abi::FLOW_IN_TUNNEL | REWRITES_BOTH,
            path: path(Path::TunnelIn),
            tunnel: Tunnel { there: trial.tunnel().1, ..Tunnel::NONE },
            ..answer
        },
    };
    assert_eq!(entry, expected, "{}", trial.what());
}

#[test]
fn other_packets_of_the_sender_do_not_follow_what_is_known() {
    Trial::<Ipv4Addr>::each(check_others);
    Trial::<Ipv6Addr>::each(check_others);
}

fn check_others<A: Address>(trial: &mut Trial<A>) {
    let kind = trial.way.kind;
    let mut other_link = Sent { link: trial.node.pod_b, ..trial.varied(|_| ()) };
    // The frame must have that link's own address: a program leaves frames for other hosts
    // alone.
    other_link.frame[..6].copy_from_slice(&HOST_B_MAC);
    let mut others = vec![("another link", other_link), ("TTL 1", trial.varied(|fields| *fields.ttl = 1))];
    let odd = trial.plain.odd(trial.way.ports);
    others.extend(odd.iter().map(|(what, packet)| (*what, trial.sent(packet))));
    if trial.is_tcp() {
        for (what, bits) in
            [("SYN", 0x02), ("SYN, ACK", 0x12), ("FIN", 0x11), ("RST", 0x04), ("RST, ACK", 0x14)]
        {
            let flagged = |fields: Fields<'_, A>| {
                if let Transport::Tcp { flags, .. } = fields.transport {
                    *flags = bits;
                }
            };
            others.push((what, trial.varied(flagged)));
        }
    }
    if !kind.comes_in_tunnel() {
        let with = |at: usize, bytes: &[u8]| {
            let mut sent = trial.varied(|_| ());
            sent.frame[at..][..bytes.len()].copy_from_slice(bytes);
            sent
        };
        others.push(("to a multicast MAC", with(0, &[1])));
        let (at, length) = A::Packet::LENGTH;
        others.push(("a length that ends within its headers", with(at, &(length + 7).to_be_bytes())));
        others.push(("a length beyond the frame", with(at, &u16::MAX.to_be_bytes())));
    }
    if trial.way.program == FROM_POD || matches!(kind, Kind::DirectIn | Kind::ServiceDirectIn) {
        let other_mac = |fields: Fields<'_, A>| *fields.source_mac = STRANGER_MAC;
        others.push(("another link address", trial.varied(other_mac)));
    }
    if kind.leaves_in_tunnel() || matches!(kind, Kind::DirectOut | Kind::WorldOut | Kind::WorldIn) {
        let mtu = match kind {
            Kind::DirectOut | Kind::WorldOut => 1500,
            _ => trial.tunnel_mtu(),
        };
        let large = mtu as usize - trial.headers() + 1;
        let larger = trial.varied(|fields| *fields.payload = vec![0x55; large]);
        others.push(("larger than the path takes", larger));
        let segments = Sent { segment: large as u32, ..trial.large_segment() };
        others.push(("segments larger than the path takes", segments));
    }
    if kind.leaves_in_tunnel() {
        others.push(("what the kernel does not encapsulate", trial.large_segment()));
    }
    if kind.comes_in_tunnel() {
        let inner = trial.plain.build();
        let outers = match trial.way.over {
            Family::V4 => outers(&inner),
            Family::V6 => outers_of_ipv6(&inner),
        };
        others.extend(outers.map(|(what, frame)| (what, Sent { frame, ..trial.varied(|_| ()) })));
    }
    for (what, sent) in others {
        let judged = trial.judged(&sent);
        trial.mislead();
        assert_eq!(trial.see(&sent), judged, "{}: {what}", trial.what());
    }
}

/// Returns the outer headers of node 2's packets.
fn outer() -> Vxlan {
    Vxlan::new(NODE2, NODE1).with(|outer| (outer.destination_mac, outer.source_mac) = (UPLINK_MAC, NODE2_MAC))
}

/// Returns a frame in outer headers that do not fit the known flow.
fn outers(inner: &[u8]) -> [(&'static str, Vec<u8>); 5] {
    let around = |change: &dyn Fn(&mut Vxlan)| outer().with(|outer| change(outer)).around(inner);
    [
        ("another node's tunnel", around(&|outer| outer.source = NODE3)),
        ("a stranger's tunnel", around(&|outer| outer.source = STRANGER)),
        ("another VNI", around(&|outer| outer.vni += 1)),
        ("no VNI", around(&|outer| outer.flags = 0)),
        ("an outer fragment", around(&|outer| outer.fragment = (0, true))),
    ]
}

/// Returns the same for a tunnel of IPv6.
fn outers_of_ipv6(inner: &[u8]) -> [(&'static str, Vec<u8>); 5] {
    const FLAGS: usize = 0;
    const VNI: usize = 6;
    let outer = over_ipv6(inner);
    let around = |change: &dyn Fn(&mut Packet6)| outer.clone().with(|outer| change(outer)).build();
    [
        ("another node's tunnel", around(&|outer| outer.source = NODE3_6)),
        ("a stranger's tunnel", around(&|outer| outer.source = STRANGER6)),
        ("another VNI", around(&|outer| outer.payload[VNI] ^= 1)),
        ("no VNI", around(&|outer| outer.payload[FLAGS] = 0)),
        ("an outer fragment", around(&|outer| outer.extensions = vec![Extension::fragment(0, true, 1)])),
    ]
}

#[test]
fn what_is_known_ends_with_what_it_was_made_of() {
    Trial::<Ipv4Addr>::each(check_events);
    Trial::<Ipv6Addr>::each(check_events);
}

fn check_events<A: Address>(trial: &mut Trial<A>) {
    type Event<A> = fn(&mut Trial<A>);
    let events: [(&str, Event<A>); 3] = [
        ("the agent forgets all", |trial| trial.node.loaded.maps.forget_flows()),
        ("it has expired", |trial| {
            trial.change(|known| known.asked = known.asked.wrapping_sub(KNOWN_FLOW_JIFFIES));
        }),
        ("another epoch", |trial| trial.change(|known| known.epochs ^= 1)),
    ];
    for (what, event) in events {
        check_event(trial, what, event);
    }
    for other in others(&trial.flow) {
        check_event(trial, &format!("the element is now that of {other:?}"), |trial| {
            trial.change(|known| known.key = *A::Stored::key(&other).borrow());
        });
    }
}

fn check_event<A: Address>(trial: &mut Trial<A>, what: &str, event: impl Fn(&mut Trial<A>)) {
    let plain = trial.sent(&trial.plain);
    let judged = trial.judged(&plain);
    trial.mislead();
    event(trial);
    assert_eq!(trial.see(&plain), judged, "{}: {what}", trial.what());
    let entry = trial.entry().expect("the program remembers the flow again");
    assert_eq!(entry.reserved, [0; 2], "{}: {what}", trial.what());
}

/// Returns flows that differ from a flow in one word of the key.
fn others(flow: &Flow) -> Vec<Flow> {
    let with = |change: &dyn Fn(&mut Flow)| {
        let mut other = *flow;
        change(&mut other);
        other
    };
    let ports = [
        with(&|flow| flow.source_port.bytes[0] ^= 2),
        with(&|flow| flow.destination_port.bytes[0] ^= 2),
        with(&|flow| flow.protocol ^= 1),
    ];
    let addresses = if flow.source.is_v4() { 12..16 } else { 0..16 };
    let words = addresses.step_by(4).flat_map(|word| {
        [with(&|flow| flow.source.bytes[word] ^= 1), with(&|flow| flow.destination.bytes[word] ^= 1)]
    });
    ports.into_iter().chain(words).collect()
}

#[test]
fn what_is_recorded_about_a_flow_ends_what_is_known_of_it() {
    let mut node = dual(Mode::Vxlan);
    add_host_port(&mut node);
    for transport in [syn, udp] {
        check_recorded::<Ipv4Addr>(&mut node, transport);
        check_recorded::<Ipv6Addr>(&mut node, transport);
    }
}

fn check_recorded<A: Address>(node: &mut Fixture, transport: fn(u16, u16) -> Transport) {
    let protocol =
        if matches!(transport(1, 2), Transport::Tcp { .. }) { protocol::TCP } else { protocol::UDP };
    let flow = |source, destination, ports| flow_of(source, destination, ports, protocol);
    let there = (CLIENT, SERVER);
    let of_stack = |source, destination| {
        A::Packet::new(source, destination, transport(CLIENT, SERVER)).on_link([2; 6], [2; 6])
    };
    let leaving = |source, destination| out(source, destination, transport(CLIENT, SERVER));
    let request = |source, destination| {
        let flow = flow(source, destination, there);
        vec![flow, flow.reversed()]
    };
    let answer = flow(A::WORLD, A::NODE1, (SERVER, CLIENT));
    let to_host_port =
        vec![flow(A::STRANGER, A::NODE1, (CLIENT, HOST_PORT)), flow(A::POD_A, A::STRANGER, (SERVER, CLIENT))];
    let recorded = [
        (TO_POD, of_stack(A::POD_B, A::POD_A), request(A::POD_B, A::POD_A)),
        (TO_OVERLAY, of_stack(A::POD_A, A::REMOTE_POD), request(A::POD_A, A::REMOTE_POD)),
        (TO_UPLINK, leaving(A::POD_A, A::NODE2), request(A::POD_A, A::NODE2)),
        (TO_UPLINK, leaving(A::POD_A, A::WORLD), vec![flow(A::POD_A, A::WORLD, there), answer]),
        (TO_UPLINK, leaving(A::NODE1, A::WORLD), vec![answer]),
        (FROM_UPLINK, arriving(A::STRANGER, A::NODE1, transport(CLIENT, HOST_PORT)), to_host_port),
    ];
    let other = flow(A::POD_A, A::POD_B, (1, 2));
    for (program, packet, gone) in recorded {
        node.forget_known();
        node.forget_recorded();
        // The entries may have any content: they get another flow's.
        node.run(FROM_POD, node.pod_a, &from_a(A::POD_B, udp(3, 4)).build(), 0);
        let some = flow_of(A::POD_A, A::POD_B, (3, 4), protocol::UDP);
        let known = A::known(&node.loaded.maps, A::Stored::key(&some).borrow()).unwrap();
        for flow in gone.iter().chain([&other]) {
            A::insert_known(&mut node.loaded.maps, A::Stored::key(flow).borrow(), known);
        }
        let link = if program == TO_POD { node.pod_a } else { node.uplink };
        node.run(program, link, &packet.build(), 0);
        let is_known = |flow: &Flow| A::known(&node.loaded.maps, A::Stored::key(flow).borrow()).is_some();
        for flow in gone {
            assert!(!is_known(&flow), "{program}: {flow:?} is still known");
        }
        assert!(is_known(&other), "{program}: another flow is forgotten");
    }
}
