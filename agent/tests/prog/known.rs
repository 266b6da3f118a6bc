//! `FLOWS`: for a packet of a known flow, a program does what its stages would do. It follows an
//! entry only as long as the entry is valid.

use podwire_common::abi::{self, FlowKey, KNOWN_FLOW_JIFFIES, KnownFlow, Macs, NextHop, Tunnel};
use podwire_common::addr::{Be16, Mac, Quad};
use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK, TO_OVERLAY, TO_POD, TO_UPLINK};
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC};
use podwire_common::reason::Path;
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::kinds::{CLIENT, HOST_PORT, SERVER, add_host_port, arriving, from_a, out, syn};
use crate::packets::*;
use crate::trial::{Kind, Sent, Trial};

#[test]
fn known_flows_packet_becomes_what_the_stages_would_make_of_it() {
    Trial::each(|trial| {
        let mut packets = vec![
            ("plain", trial.varied(|_| ())),
            ("DSCP and ECN", trial.varied(|packet| packet.traffic_class = 0xb9)),
            ("congestion seen before", trial.varied(|packet| packet.traffic_class = 3)),
            ("TTL 2", trial.varied(|packet| packet.ttl = 2)),
            ("odd length", trial.varied(|packet| packet.payload = vec![0x55; 333])),
            ("as large as fits", trial.varied(|packet| packet.payload = vec![0x55; 1450 - 40])),
        ];
        if trial.is_tcp() {
            // A test run cannot set a segment's type. Without one the kernel refuses to grow the
            // headers.
            if trial.way.kind != Kind::TunnelOut {
                packets.push(("a large segment", trial.large_segment()));
            }
        } else {
            let no_checksum = |packet: &mut Packet| {
                if let Transport::Udp { checksum, .. } = &mut packet.transport {
                    *checksum = false;
                }
            };
            packets.push(("without checksum", trial.varied(no_checksum)));
        }
        for (packet, sent) in packets {
            let judged = trial.judged(&sent);
            assert_eq!(trial.known(&sent, |_| ()), judged, "{}: {packet}", trial.what());
        }
    });
}

#[test]
fn what_is_remembered_of_a_flow() {
    let mac = |bytes| Mac { bytes };
    Trial::each(|trial| {
        let plain = trial.sent(&trial.plain);
        trial.judged(&plain);
        let entry = trial.entry().expect("it is remembered");
        let (uplink, pod_a, pod_b) = (trial.node.uplink, trial.node.pod_a, trial.node.pod_b);
        let key = trial.flow.key();
        let path = |path: Path| path as u16;
        let nothing = KnownFlow {
            key,
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
            source: key.source,
            destination: key.destination,
            source_port: key.source_port,
            destination_port: key.destination_port,
            path: 0,
            reserved: [0; 2],
            next_hop: NextHop::UNKNOWN,
            tunnel: Tunnel::NONE,
            reserved2: [0; 4],
        };
        let out = KnownFlow {
            leaves: abi::LEAVES_BY_UPLINK,
            next_hop: NextHop::v4(NODE2.octets()),
            mtu: 1500,
            ..nothing
        };
        let to_a = KnownFlow {
            from: uplink,
            to: pod_a,
            sender_mac: mac(NODE2_MAC),
            leaves: abi::LEAVES_INTO_POD,
            macs: Macs { destination: mac(POD_A_MAC), source: mac(HOST_A_MAC) },
            ..nothing
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
                leaves: abi::LEAVES_IN_TUNNEL,
                mtu: 1450,
                path: path(Path::TunnelOut),
                tunnel: Tunnel {
                    here: NODE1.into(),
                    there: NODE2.into(),
                    source_port: trial.flow.tunnel_source_port(),
                    inner_mac: mac(INNER_DESTINATION_MAC),
                },
                ..out
            },
            Kind::DirectOut => KnownFlow { path: path(Path::DirectOut), ..out },
            Kind::WorldOut => KnownFlow {
                flags: abi::FLOW_OF_SENDER | abi::FLOW_REWRITES_SOURCE,
                source: Quad::of(&NODE1.into()),
                source_port: Be16::new(TRANSLATED),
                path: path(Path::SnatOut),
                ..out
            },
            Kind::TunnelIn => KnownFlow {
                sender_mac: mac(INNER_SOURCE_MAC),
                flags: abi::FLOW_IN_TUNNEL,
                path: path(Path::TunnelIn),
                tunnel: Tunnel { there: NODE2.into(), ..Tunnel::NONE },
                ..to_a
            },
            Kind::DirectIn => KnownFlow { path: path(Path::DirectIn), ..to_a },
            Kind::WorldIn => KnownFlow {
                flags: abi::FLOW_REWRITES_DESTINATION,
                mtu: 1450,
                destination: Quad::of(&POD_A.into()),
                destination_port: Be16::new(CLIENT),
                path: path(Path::SnatIn),
                ..to_a
            },
        };
        assert_eq!(entry, expected, "{}", trial.what());
    });
}

#[test]
fn other_packets_of_the_sender_do_not_follow_what_is_known() {
    Trial::each(|trial| {
        let kind = trial.way.kind;
        let mut other_link = Sent { link: trial.node.pod_b, ..trial.varied(|_| ()) };
        // The frame must have that link's own address: a program leaves frames for other hosts
        // alone.
        other_link.frame[..6].copy_from_slice(&HOST_B_MAC);
        let (source, destination) = trial.way.ports;
        let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        let mut others = vec![
            ("another link", other_link),
            ("TTL 1", trial.varied(|packet| packet.ttl = 1)),
            ("IP options", trial.varied(|packet| packet.options = vec![1; 4])),
            ("IP options in the place of its ports", trial.varied(|packet| packet.options = ports)),
            ("a first fragment", trial.varied(|packet| packet.fragment = (0, true))),
        ];
        if trial.is_tcp() {
            for (what, bits) in
                [("SYN", 0x02), ("SYN, ACK", 0x12), ("FIN", 0x11), ("RST", 0x04), ("RST, ACK", 0x14)]
            {
                let flagged = |packet: &mut Packet| {
                    if let Transport::Tcp { flags, .. } = &mut packet.transport {
                        *flags = bits;
                    }
                };
                others.push((what, trial.varied(flagged)));
            }
        }
        if kind != Kind::TunnelIn {
            let with = |at: usize, bytes: &[u8]| {
                let mut sent = trial.varied(|_| ());
                sent.frame[at..][..bytes.len()].copy_from_slice(bytes);
                sent
            };
            others.push(("to a multicast MAC", with(0, &[1])));
            others.push(("a length that ends within its headers", with(16, &27u16.to_be_bytes())));
            others.push(("a length beyond the frame", with(16, &u16::MAX.to_be_bytes())));
        }
        if trial.way.program == FROM_POD || kind == Kind::DirectIn {
            let other_mac = |packet: &mut Packet| packet.source_mac = STRANGER_MAC;
            others.push(("another link address", trial.varied(other_mac)));
        }
        if matches!(kind, Kind::TunnelOut | Kind::DirectOut | Kind::WorldOut | Kind::WorldIn) {
            let mtu = if matches!(kind, Kind::DirectOut | Kind::WorldOut) { 1500 } else { 1450 };
            let headers = if trial.is_tcp() { 40 } else { 28 };
            let large = |packet: &mut Packet| packet.payload = vec![0x55; mtu - headers + 1];
            others.push(("larger than the path takes", trial.varied(large)));
            let segments = trial.varied(|packet| packet.payload = vec![0x55; 3000]);
            let segment = (mtu - headers + 1) as u32;
            others.push(("segments larger than the path takes", Sent { segment, ..segments }));
        }
        if kind == Kind::TunnelOut {
            others.push(("what the kernel does not encapsulate", trial.large_segment()));
        }
        if kind == Kind::TunnelIn {
            let inner = trial.plain.build();
            let outer = Vxlan::new(NODE2, NODE1)
                .with(|outer| (outer.destination_mac, outer.source_mac) = (UPLINK_MAC, NODE2_MAC));
            let around = |change: &dyn Fn(&mut Vxlan)| Sent {
                frame: outer.clone().with(|outer| change(outer)).around(&inner),
                ..trial.varied(|_| ())
            };
            let outers = [
                ("another node's tunnel", around(&|outer| outer.source = NODE3)),
                ("a stranger's tunnel", around(&|outer| outer.source = STRANGER)),
                ("another VNI", around(&|outer| outer.vni += 1)),
                ("no VNI", around(&|outer| outer.flags = 0)),
                ("an outer fragment", around(&|outer| outer.fragment = (0, true))),
            ];
            others.extend(outers);
        }
        for (what, sent) in others {
            let judged = trial.judged(&sent);
            trial.mislead();
            assert_eq!(trial.see(&sent), judged, "{}: {what}", trial.what());
        }
    });
}

#[test]
fn what_is_known_ends_with_what_it_was_made_of() {
    type Event = fn(&mut Trial);
    let events: [(&str, Event); 4] = [
        ("the agent forgets all", |trial| trial.node.loaded.maps.forget_flows()),
        ("it has expired", |trial| {
            trial.change(|known| known.asked = known.asked.wrapping_sub(KNOWN_FLOW_JIFFIES));
        }),
        ("another epoch", |trial| trial.change(|known| known.epochs ^= 1)),
        ("another flow has its element now", |trial| {
            trial.change(|known| known.key.source_port.bytes[0] ^= 2)
        }),
    ];
    Trial::each(|trial| {
        let plain = trial.sent(&trial.plain);
        for (what, event) in events {
            let judged = trial.judged(&plain);
            trial.mislead();
            event(trial);
            assert_eq!(trial.see(&plain), judged, "{}: {what}", trial.what());
            let entry = trial.entry().expect("the program remembers the flow again");
            assert_eq!(entry.reserved, [0; 2], "{}: {what}", trial.what());
        }
    });
}

#[test]
fn what_is_recorded_about_a_flow_ends_what_is_known_of_it() {
    let of_stack = |source, destination, transport| {
        Packet::new(source, destination, transport).macs([2; 6], [2; 6]).build()
    };
    let mut node = Fixture::new(Mode::Vxlan);
    add_host_port(&mut node);
    for (transport, protocol) in [(syn as fn(u16, u16) -> Transport, protocol::TCP), (udp, protocol::UDP)] {
        let flow = |source, destination, ports| flow_of(source, destination, ports, protocol);
        let there = (CLIENT, SERVER);
        let request = |source, destination| {
            let flow = flow(source, destination, there);
            vec![flow, flow.reversed()]
        };
        let recorded = [
            (TO_POD, of_stack(POD_B, POD_A, transport(CLIENT, SERVER)), request(POD_B, POD_A)),
            (TO_OVERLAY, of_stack(POD_A, REMOTE_POD, transport(CLIENT, SERVER)), request(POD_A, REMOTE_POD)),
            (TO_UPLINK, out(POD_A, NODE2, transport(CLIENT, SERVER)).build(), request(POD_A, NODE2)),
            (
                TO_UPLINK,
                out(POD_A, WORLD, transport(CLIENT, SERVER)).build(),
                vec![flow(POD_A, WORLD, there), flow(WORLD, NODE1, (SERVER, CLIENT))],
            ),
            (
                TO_UPLINK,
                out(NODE1, WORLD, transport(CLIENT, SERVER)).build(),
                vec![flow(WORLD, NODE1, (SERVER, CLIENT))],
            ),
            (
                FROM_UPLINK,
                arriving(STRANGER, NODE1, transport(CLIENT, HOST_PORT)).build(),
                vec![flow(STRANGER, NODE1, (CLIENT, HOST_PORT)), flow(POD_A, STRANGER, (SERVER, CLIENT))],
            ),
        ];
        let other = flow(POD_A, POD_B, (1, 2));
        for (program, frame, gone) in recorded {
            node.forget_known();
            node.forget_recorded();
            // The entries may have any content: they get another flow's.
            node.run(FROM_POD, node.pod_a, &from_a(POD_B, udp(3, 4)).build(), 0);
            let some = flow_of(POD_A, POD_B, (3, 4), protocol::UDP);
            let known = node.loaded.maps.flows.get(&some.key(), 0).unwrap();
            for flow in gone.iter().chain([&other]) {
                node.loaded.maps.flows.insert(flow.key(), known, 0).unwrap();
            }
            let link = if program == TO_POD { node.pod_a } else { node.uplink };
            node.run(program, link, &frame, 0);
            let flows: Vec<FlowKey> = node.loaded.maps.flows.keys().map(Result::unwrap).collect();
            for flow in gone {
                assert!(!flows.contains(&flow.key()), "{program}: {flow:?} is still known");
            }
            assert!(flows.contains(&other.key()), "{program}: another flow is forgotten");
        }
    }
}
