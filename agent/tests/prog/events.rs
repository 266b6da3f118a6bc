//! The events of dropped packets. `Fixture::check` shows that each drop has its event; here are what
//! an event says, and how many there may be.

use std::net::{Ipv4Addr, Ipv6Addr};

use podwire_common::abi::Flow;
use podwire_common::addr::Be16;
use podwire_common::event::{EVENTS_PER_SECOND, Event, Kind, RING_BYTES, VERSION};
use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK};
use podwire_common::reason::{Drop as Reason, Hook};
use podwire_core::model::Mode;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::family::{Address, IpPacket};
use crate::fixture::{Fixture, HOST_A_MAC, POD_A_MAC, POD_B, STRANGER_MAC, UPLINK_MAC, WORLD, flow_of};
use crate::fixture6::dual;
use crate::kinds::{CLIENT, SERVER, ack, from_a};
use crate::packets::{Packet, Transport, ethernet};

/// Sends a frame that is dropped, and returns its event.
fn event_of(node: &mut Fixture, program: &str, link: u32, frame: &[u8]) -> Event {
    node.events();
    node.renew_budgets();
    node.run(program, link, frame, 0);
    let events = node.events();
    assert_eq!(events.len(), 1, "{program}: {events:?}");
    events[0]
}

fn says_where_and_why<A: Address>(node: &mut Fixture) {
    let (pod_a, uplink) = (node.pod_a, node.uplink);
    let foreign =
        |transport| A::Packet::new(A::POD_B, A::WORLD, transport).on_link(HOST_A_MAC, POD_A_MAC).build();
    let of_pod = A::Packet::new(A::POD_B, A::NODE1, ack(CLIENT, SERVER));
    let arriving = of_pod.clone().on_link(UPLINK_MAC, STRANGER_MAC).build();
    let echo = A::either(protocol::ICMP, protocol::ICMPV6);
    let (tcp, not_owned) = (protocol::TCP, Reason::SourceNotOwned);
    let request = Transport::EchoRequest { identifier: 7 };
    // Program, link, frame, the hook, the reason, protocol and ports.
    let rows = [
        (FROM_POD, pod_a, foreign(ack(CLIENT, SERVER)), Hook::FromPod, not_owned, tcp, (CLIENT, SERVER)),
        (FROM_POD, pod_a, foreign(request), Hook::FromPod, not_owned, echo, (7, 0)),
        (
            FROM_UPLINK,
            uplink,
            arriving.clone(),
            Hook::FromUplink,
            Reason::PodSourceNotFromNode,
            tcp,
            (CLIENT, SERVER),
        ),
    ];
    for (program, link, frame, hook, reason, protocol, ports) in rows {
        let event = event_of(node, program, link, &frame);
        let destination = if program == FROM_POD { A::WORLD } else { A::NODE1 };
        let expected = Event {
            time: event.time,
            flow: flow_of(A::POD_B, destination, ports, protocol),
            link,
            length: frame.len() as u32,
            // Pod B has the address.
            endpoint: 2,
            ethertype: Be16::new(A::either(0x0800, 0x86dd)),
            outcome: reason as u16,
            version: VERSION,
            kind: Kind::Drop as u8,
            hook: hook as u8,
            ..Event::default()
        };
        assert_eq!(event, expected, "{program}");
    }
}

#[test]
fn an_event_says_where_and_why_a_packet_was_dropped() {
    let mut node = dual(Mode::Vxlan);
    says_where_and_why::<Ipv4Addr>(&mut node);
    says_where_and_why::<Ipv6Addr>(&mut node);
}

#[test]
fn a_frame_that_is_not_ip_has_its_ethertype() {
    let mut node = dual(Mode::Vxlan);
    let link = node.pod_a;
    let frame = [&ethernet(HOST_A_MAC, POD_A_MAC, 0x88cc.into())[..], &[0; 46]].concat();
    let event = event_of(&mut node, FROM_POD, link, &frame);
    assert_eq!(event.outcome, Reason::EthertypeUnknown as u16);
    assert_eq!((event.ethertype, event.flow), (Be16::new(0x88cc), Flow::default()));
}

/// Returns a frame that `from_pod` drops as `source-not-owned`.
fn foreign() -> Vec<u8> {
    Packet::new(POD_B, WORLD, ack(CLIENT, SERVER)).macs(HOST_A_MAC, POD_A_MAC).build()
}

/// Keeps the calling thread on one CPU, so that all its packets share one budget.
fn stay_here() {
    let mut cpus = CpuSet::new();
    cpus.set(0);
    sched_setaffinity(None, &cpus).unwrap();
}

#[test]
fn a_reason_has_a_budget_and_what_is_lost_is_counted() {
    const SENT: u64 = 10 * EVENTS_PER_SECOND;
    stay_here();
    let mut node = dual(Mode::Vxlan);
    let (link, frame) = (node.pod_a, foreign());
    node.events();
    node.renew_budgets();
    let lost = node.lost_events();
    (0..SENT).for_each(|_| drop(node.run(FROM_POD, link, &frame, 0)));
    let (told, lost) = (node.events().len() as u64, node.lost_events() - lost);
    assert_eq!(told + lost, SENT);
    // The packets may take longer than a second, on an emulated CPU for example.
    assert!(told >= EVENTS_PER_SECOND && lost > 0, "{told} told, {lost} lost");

    // Another reason has its own.
    let multicast = from_a(Ipv4Addr::new(224, 0, 0, 1), ack(CLIENT, SERVER)).build();
    assert_eq!(event_of(&mut node, FROM_POD, link, &multicast).outcome, Reason::Multicast as u16);
}

#[test]
fn a_full_ring_loses_nothing_uncounted_and_works_again() {
    const RECORD: usize = 8 + size_of::<Event>();
    stay_here();
    let mut node = dual(Mode::Vxlan);
    let (link, frame) = (node.pod_a, foreign());
    node.events();
    let lost = node.lost_events();
    let mut sent = 0;
    while sent < 2 * (RING_BYTES / RECORD) as u64 {
        node.renew_budgets();
        (0..EVENTS_PER_SECOND).for_each(|_| drop(node.run(FROM_POD, link, &frame, 0)));
        sent += EVENTS_PER_SECOND;
    }
    let told = node.events().len();
    // One record less fits if the ring would be full to the last byte.
    assert!([RING_BYTES / RECORD, RING_BYTES / RECORD - 1].contains(&told), "{told} told");
    assert_eq!(node.lost_events() - lost, sent - told as u64);
    event_of(&mut node, FROM_POD, link, &frame);
}
