//! The events of new flows, while somebody listens.

use std::net::{Ipv4Addr, Ipv6Addr};

use podwire::dataplane::packet_events;
use podwire::packet_events::Listeners;
use podwire::packet_filter::Filter;
use podwire_common::abi::{Flow, TRANSLATION_HOST_PORT, TRANSLATION_SNAT};
use podwire_common::addr::Be16;
use podwire_common::event::{
    Event, FAMILY_BIT_IPV4, FAMILY_BIT_IPV6, FILTER_ADDRESSES, Kind as EventKind, Listening, RING_BYTES,
    VERDICTS, VERSION,
};
use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK, TO_UPLINK};
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC, VERDICTS_LOST};
use podwire_common::reason::{Drop as Reason, Hook, Path};
use podwire_core::model::{Family, Mode};

use crate::family::{Address, IpPacket};
use crate::fixture::{
    Fixture, HOST_A_MAC, HOST_B_MAC, NODE1, POD_A_MAC, POD_B_MAC, STRANGER, STRANGER_MAC, UPLINK_MAC, flow_of,
};
use crate::fixture6::{NODE1_6, STRANGER6, dual};
use crate::kind::Kind;
use crate::kinds::{CLIENT, HOST_PORT, SERVER, ack, add_host_port, arriving, by_setting, from_a, out, syn};
use crate::packets::{Transport, Vxlan, udp};
use crate::packets6;
use crate::pool::Loaded;

/// Returns the kind of event that a listener gets of a packet, if it gets one.
fn expected(kind: &Kind) -> Option<(EventKind, u16)> {
    if let Some(reason) = kind.drop {
        return Some((EventKind::Drop, reason as u16));
    }
    let path = kind.path?;
    // Of UDP on its way into the stack, the programs keep nothing: the flow's event comes when it
    // leaves the stack.
    let is_kept = kind.name.contains("TCP") || path != Path::ToStack;
    let event = match path {
        Path::SnatOut | Path::HostPortIn => EventKind::Translation,
        _ if kind.setting.has_service => EventKind::Translation,
        _ => EventKind::Flow,
    };
    (kind.name.contains("first packet") && is_kept).then_some((event, path as u16))
}

#[test]
fn first_packets_of_flows_have_one_event_and_others_none() {
    for (setting, kinds) in by_setting() {
        let mut node = setting.node(Loaded::take);
        for kind in kinds {
            // A packet that the test sends beforehand would have the event.
            node.listen(&Listening::NOBODY);
            let mut ready = kind.on(&mut node);
            let mut told = |wanted: &Listening| {
                ready.node.renew_budgets();
                ready.node.listen(wanted);
                ready.node.events();
                ready.send(1);
                let events = ready.node.events();
                events.iter().map(|event| (event.kind, event.outcome)).collect::<Vec<_>>()
            };
            let all: Vec<_> =
                expected(&kind).map(|(kind, outcome)| (kind as u8, outcome)).into_iter().collect();
            let (what, drop) = (format!("{}: {}", kind.program, kind.name), kind.drop.is_some());
            if !kind.name.contains("first packet") || kind.is_first {
                // The first of two packets would make the flow known.
                assert_eq!(
                    told(&Listening::NOBODY),
                    if drop { all.clone() } else { vec![] },
                    "{what}, nobody"
                );
            }
            assert_eq!(told(&Listening::EVERYTHING), all, "{what}");
        }
    }
}

/// Sends a frame that is the first of a flow, and returns its event.
fn event_of(node: &mut Fixture, program: &str, link: u32, frame: &[u8]) -> Event {
    node.events();
    node.run(program, link, frame, 0);
    let events = node.events();
    assert_eq!(events.len(), 1, "{program}: {events:?}");
    events[0]
}

fn says_what_becomes_of_a_flow<A: Address>(node: &mut Fixture) {
    let (pod_a, uplink) = (node.pod_a, node.uplink);
    let common = |flow, path: Path, hook: Hook, link, frame: &[u8]| Event {
        flow,
        link,
        length: frame.len() as u32,
        endpoint: 1,
        ethertype: Be16::new(A::either(0x0800, 0x86dd)),
        outcome: path as u16,
        version: VERSION,
        kind: EventKind::Flow as u8,
        hook: hook as u8,
        ..Event::default()
    };
    let check = |node: &mut Fixture, program, frame: &[u8], expected: Event| {
        let event = event_of(node, program, expected.link, frame);
        assert_eq!(Event { time: 0, ..event }, expected, "{program}");
    };
    let tcp = |source: A, destination: A, ports| flow_of(source, destination, ports, protocol::TCP);

    let local = from_a(A::POD_B, syn(CLIENT, SERVER)).build();
    let flow = tcp(A::POD_A, A::POD_B, (CLIENT, SERVER));
    check(node, FROM_POD, &local, common(flow, Path::Local, Hook::FromPod, pod_a, &local));

    // A pod's echo request has its identifier as the source port.
    let request = from_a(A::POD_B, Transport::EchoRequest { identifier: 7 }).build();
    let echo = A::either(protocol::ICMP, protocol::ICMPV6);
    let flow = flow_of(A::POD_A, A::POD_B, (7, 0), echo);
    check(node, FROM_POD, &request, common(flow, Path::Local, Hook::FromPod, pod_a, &request));

    let world = out(A::POD_A, A::WORLD, syn(CLIENT, SERVER)).build();
    let flow = tcp(A::POD_A, A::WORLD, (CLIENT, SERVER));
    let expected = Event {
        kind: EventKind::Translation as u8,
        translation: TRANSLATION_SNAT,
        translated: tcp(A::NODE1, A::WORLD, (CLIENT, SERVER)),
        ..common(flow, Path::SnatOut, Hook::ToUplink, uplink, &world)
    };
    check(node, TO_UPLINK, &world, expected);

    let asked = arriving(A::STRANGER, A::NODE1, syn(CLIENT, HOST_PORT)).build();
    let expected = Event {
        kind: EventKind::Translation as u8,
        translation: TRANSLATION_HOST_PORT,
        translated: tcp(A::STRANGER, A::POD_A, (CLIENT, SERVER)),
        ..common(
            tcp(A::STRANGER, A::NODE1, (CLIENT, HOST_PORT)),
            Path::HostPortIn,
            Hook::FromUplink,
            uplink,
            &asked,
        )
    };
    check(node, FROM_UPLINK, &asked, expected);
}

#[test]
fn an_event_says_what_becomes_of_a_flow() {
    let mut node = dual(Mode::Vxlan);
    add_host_port(&mut node);
    node.listen(&Listening::EVERYTHING);
    says_what_becomes_of_a_flow::<Ipv4Addr>(&mut node);
    says_what_becomes_of_a_flow::<Ipv6Addr>(&mut node);
}

#[test]
fn answers_and_later_datagrams_are_no_new_flows() {
    let mut node = dual(Mode::Vxlan);
    let (pod_a, pod_b) = (node.pod_a, node.pod_b);
    node.listen(&Listening::EVERYTHING);
    let asked = from_a(Ipv4Addr::POD_B, udp(CLIENT, SERVER)).build();
    event_of(&mut node, FROM_POD, pod_a, &asked);
    let answer = <Ipv4Addr as Address>::Packet::new(Ipv4Addr::POD_B, Ipv4Addr::POD_A, udp(SERVER, CLIENT));
    let answer = answer.macs(HOST_B_MAC, POD_B_MAC).build();
    for (link, frame) in [(pod_a, &asked), (pod_b, &answer), (pod_a, &asked), (pod_b, &answer)] {
        node.run(FROM_POD, link, frame, 0);
        assert_eq!(node.events(), []);
    }
    // Stale entries are still no new flows.
    node.loaded.maps.forget_flows();
    node.run(FROM_POD, pod_a, &asked, 0);
    node.run(FROM_POD, pod_b, &answer, 0);
    assert_eq!(node.events(), []);
}

/// Returns a filter that wants only what `change` leaves.
fn filter(change: impl FnOnce(&mut Listening)) -> Listening {
    let mut wanted = Listening::EVERYTHING;
    change(&mut wanted);
    wanted
}

#[test]
fn each_filter_has_what_it_wants_and_no_near_miss() {
    let mut node = dual(Mode::Vxlan);
    let link = node.pod_a;
    let addresses = |addresses: &[Ipv4Addr]| {
        filter(|wanted| {
            wanted.address_count = addresses.len() as u32;
            wanted
                .addresses
                .iter_mut()
                .zip(addresses)
                .for_each(|(place, address)| *place = (*address).into());
        })
    };
    let ports = |ports: &[u16]| {
        filter(|wanted| {
            wanted.port_count = ports.len() as u32;
            wanted.ports.iter_mut().zip(ports).for_each(|(place, port)| *place = Be16::new(*port));
        })
    };
    let other = Ipv4Addr::new(10, 244, 1, 99);
    let last = [other; FILTER_ADDRESSES - 1];
    let tcp = |bit: u8| filter(|wanted| wanted.protocols = [1 << bit, 0, 0, 0]);
    let rows = [
        (addresses(&[Ipv4Addr::POD_A]), addresses(&[other])),
        (addresses(&[Ipv4Addr::POD_B]), addresses(&[Ipv4Addr::NODE1])),
        (addresses(&[&last[..], &[Ipv4Addr::POD_A]].concat()), addresses(&last)),
        (ports(&[CLIENT]), ports(&[CLIENT + 1])),
        (ports(&[1, 2, 3, SERVER]), ports(&[1, 2, 3])),
        (tcp(protocol::TCP), tcp(protocol::UDP)),
        (
            filter(|wanted| wanted.families = FAMILY_BIT_IPV4),
            filter(|wanted| wanted.families = FAMILY_BIT_IPV6),
        ),
        (
            filter(|wanted| wanted.kinds = EventKind::Flow.bit()),
            filter(|wanted| wanted.kinds = EventKind::Translation.bit() | EventKind::Drop.bit()),
        ),
    ];
    let frame = from_a(Ipv4Addr::POD_B, syn(CLIENT, SERVER)).build();
    let mut told = |wanted: &Listening| {
        node.listen(wanted);
        node.events();
        node.run(FROM_POD, link, &frame, 0);
        node.events().len()
    };
    for (number, (hit, miss)) in rows.iter().enumerate() {
        assert_eq!((told(hit), told(miss)), (1, 0), "row {number}");
    }
}

#[test]
fn what_no_filter_wants_uses_no_budget_of_drops() {
    let mut node = dual(Mode::Vxlan);
    let link = node.pod_a;
    let not_owned = |source: Ipv4Addr| {
        let packet = <Ipv4Addr as Address>::Packet::new(source, Ipv4Addr::WORLD, ack(CLIENT, SERVER));
        packet.macs(HOST_A_MAC, POD_A_MAC).build()
    };
    let (wanted, unwanted) = (not_owned(Ipv4Addr::POD_B), not_owned(Ipv4Addr::REMOTE_POD));
    node.renew_budgets();
    let lost = node.lost_events();
    node.listen(&filter(|wanted| {
        (wanted.address_count, wanted.addresses[0]) = (1, Ipv4Addr::POD_B.into());
    }));
    node.events();
    (0..1000).for_each(|_| drop(node.run(FROM_POD, link, &unwanted, 0)));
    assert_eq!((node.events(), node.lost_events()), (vec![], lost));
    node.run(FROM_POD, link, &wanted, 0);
    assert_eq!(node.events().len(), 1);

    // A reason, and other kinds.
    for (kinds, reason, told) in [
        (EventKind::Drop.bit(), Reason::SourceNotOwned, 1),
        (EventKind::Drop.bit(), Reason::SourceMacNotOwned, 0),
        (VERDICTS, Reason::SourceNotOwned, 0),
    ] {
        node.listen(&filter(|wanted| (wanted.kinds, wanted.reasons) = (kinds, 1 << reason as u32)));
        node.run(FROM_POD, link, &wanted, 0);
        assert_eq!(node.events().len(), told, "{}", reason.name());
    }
    assert_eq!(node.lost_events(), lost);
}

#[test]
fn programs_write_what_the_agents_listeners_want() {
    let mut node = dual(Mode::Vxlan);
    // The agent takes maps out of the object that other tests would miss.
    node.loaded.keep();
    let (mut ring, _, switch) = packet_events::take(&mut node.loaded.ebpf).unwrap();
    let listeners = Listeners::new(switch);
    let link = node.pod_a;
    let mut port = CLIENT;
    let mut told = || {
        port += 1;
        let frames = [syn(port, SERVER), syn(port, SERVER + 1), udp(port, 53)]
            .map(|transport| from_a(Ipv4Addr::POD_B, transport).build());
        frames.map(|frame| {
            node.run(FROM_POD, link, &frame, 0);
            std::iter::from_fn(|| ring.pop()).count()
        })
    };
    assert_eq!(told(), [0, 0, 0]);
    let of_port = Filter { ports: [SERVER].into(), ..Filter::default() };
    let tcp = listeners.listen(of_port.clone()).unwrap();
    assert_eq!(told(), [1, 0, 0]);
    // Together they want every protocol and port.
    let of_udp = Filter { protocols: [protocol::UDP].into(), ..Filter::default() };
    let mut other = listeners.listen(of_udp).unwrap();
    assert_eq!(told(), [1, 1, 1]);
    drop(tcp);
    assert_eq!(told(), [0, 0, 1]);
    other.set_filter(of_port).unwrap();
    assert_eq!(told(), [1, 0, 0]);
    drop(other);
    assert_eq!(told(), [0, 0, 0]);
}

#[test]
fn new_flows_beyond_a_full_ring_are_counted_by_kind() {
    const RECORDS: u64 = (RING_BYTES / (8 + size_of::<Event>())) as u64;
    const SENT: u64 = RECORDS + 1000;
    let mut node = dual(Mode::Vxlan);
    let link = node.pod_a;
    node.listen(&Listening::EVERYTHING);
    node.events();
    let lost = |node: &Fixture| {
        let map = node.loaded.ebpf.map(VERDICTS_LOST).unwrap();
        let lost: aya::maps::PerCpuArray<_, u64> = map.try_into().unwrap();
        EventKind::ALL.map(|kind| lost.get(&(kind as u32), 0).unwrap().iter().sum::<u64>())
    };
    let before = lost(&node);
    for port in 0..SENT {
        let frame = from_a(Ipv4Addr::POD_B, syn(1 + port as u16, SERVER)).build();
        node.run(FROM_POD, link, &frame, 0);
    }
    let events = node.events();
    // In order, and the first ones.
    let ports: Vec<_> = events.iter().map(|event| u64::from(event.flow.source_port.get())).collect();
    assert_eq!(ports, (1..=events.len() as u64).collect::<Vec<_>>());
    let after = lost(&node);
    let lost: Vec<_> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(lost, [0, SENT - events.len() as u64, 0, 0]);
    assert!([RECORDS, RECORDS - 1].contains(&(events.len() as u64)), "{}", events.len());
}

#[test]
fn a_refused_tunnel_packet_has_its_inner_flow() {
    fn inner<A: Address>() -> (Flow, Vec<u8>) {
        let packet = A::Packet::new(A::REMOTE_POD, A::POD_A, ack(CLIENT, SERVER));
        let frame = packet.on_link(INNER_DESTINATION_MAC, INNER_SOURCE_MAC).build();
        (flow_of(A::REMOTE_POD, A::POD_A, (CLIENT, SERVER), protocol::TCP), frame)
    }
    let mut node = dual(Mode::Vxlan);
    let link = node.uplink;
    for (over, reason) in [(Family::V4, Reason::TunnelPeerUnknown), (Family::V6, Reason::TunnelPeerUnknown)] {
        node.model.tunnel_family = over;
        node.fill();
        for (flow, frame) in [inner::<Ipv4Addr>(), inner::<Ipv6Addr>()] {
            let outer = match over {
                Family::V4 => Vxlan::new(STRANGER, NODE1)
                    .with(|outer| (outer.destination_mac, outer.source_mac) = (UPLINK_MAC, STRANGER_MAC))
                    .around(&frame),
                Family::V6 => packets6::over_ipv6(STRANGER6, NODE1_6, 50000, &frame)
                    .macs(UPLINK_MAC, STRANGER_MAC)
                    .build(),
            };
            node.renew_budgets();
            let event = event_of(&mut node, FROM_UPLINK, link, &outer);
            assert_eq!((event.outcome, event.inner), (reason as u16, flow), "{over:?}");
            assert_eq!(event.flow.protocol, protocol::UDP);
            // The filter of an address finds the packet by its inner addresses.
            for (address, told) in [(flow.source, 1), (Ipv4Addr::NODE3.into(), 0)] {
                node.listen(&filter(|wanted| (wanted.address_count, wanted.addresses[0]) = (1, address)));
                node.run(FROM_UPLINK, link, &outer, 0);
                assert_eq!(node.events().len(), told, "{over:?}");
            }
            node.listen(&Listening::NOBODY);
        }
    }
}
