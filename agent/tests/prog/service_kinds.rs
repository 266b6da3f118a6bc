//! Packets of services: of a pod here to a backend here or on another node, of a client outside to
//! one here or on another node, and the answers. Known flows are those of [`known_kinds`].
//!
//! [`known_kinds`]: crate::known_kinds

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use podwire_common::names::programs::{FROM_POD, FROM_UPLINK};
use podwire_common::reason::Path;
use podwire_core::model::Family;
use podwire_core::services::{Answer, Backend, Frontend, FrontendKind, Protocol, ServedPort, ServiceName};

use crate::fixture::{Fixture, NODE1, POD_A, POD_B, REMOTE_POD, STRANGER};
use crate::kind::{Kind, Link};
use crate::kinds::{CLIENT, ack, arriving, from_a, from_pod, from_uplink, syn, syn_ack, tunnelled};
use crate::packets::{Packet, Transport, udp};

pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
pub const SERVICE_PORT: u16 = 80;
/// The backends' port.
pub const BACKEND: u16 = 8080;
/// The port of a flow to a service that the backend sees in place of [`CLIENT`].
pub const SERVED: u16 = 8256;
/// Ports of [`SERVICE`] for kinds of packets, by their backend.
const TO_REMOTE_POD: u16 = SERVICE_PORT;
const TO_POD_B: u16 = 81;
const TO_POD_A: u16 = 82;

/// Returns a port of the service, with backends for new flows and others.
pub fn port(protocol: Protocol, backends: &[Ipv4Addr], others: &[Ipv4Addr]) -> ServedPort {
    let port = |number| NonZeroU16::new(number).unwrap();
    let backend =
        |address: &Ipv4Addr| Backend { address: IpAddr::V4(*address), port: port(BACKEND), is_local: false };
    ServedPort {
        name: String::new(),
        protocol,
        family: Family::V4,
        affinity: None,
        cluster: backends.iter().map(backend).collect(),
        local: Vec::new(),
        serving: backends.iter().chain(others).map(backend).collect(),
        frontends: vec![Frontend {
            address: SERVICE.into(),
            port: port(SERVICE_PORT),
            kind: FrontendKind::ClusterIp,
            inside: if backends.is_empty() { Answer::Refused } else { Answer::Cluster },
            outside: None,
            keeps_client_address: false,
            source_ranges: Vec::new(),
        }],
    }
}

/// Gives the service these ports.
pub fn put(fixture: &mut Fixture, ports: Vec<ServedPort>) {
    let name = ServiceName { namespace: "default".into(), name: "web".into() };
    fixture.model.services.set(&name, Some(ports));
    fixture.fill();
}

/// Gives a node the service of the kinds, at an external address: it serves clients inside and
/// outside.
pub fn add_service(node: &mut Fixture) {
    let backends = [(TO_REMOTE_POD, REMOTE_POD), (TO_POD_B, POD_B), (TO_POD_A, POD_A)];
    let of = |protocol| {
        backends.map(|(number, backend)| {
            let mut port = port(protocol, &[backend], &[]);
            port.name = number.to_string();
            let frontend = &mut port.frontends[0];
            frontend.port = number.try_into().unwrap();
            frontend.kind = FrontendKind::ExternalIp;
            frontend.outside = Some(Answer::Cluster);
            port
        })
    };
    put(node, [Protocol::Tcp, Protocol::Udp].map(of).concat());
}

/// Returns all of them.
pub fn kinds() -> Vec<Kind> {
    let kinds = [same_node(), other_node(), outside_here(), outside_there()].concat();
    kinds.into_iter().map(Kind::with_service).collect()
}

/// The transport headers of a flow: of its first packet, of the first answer, and of later packets.
type Flow = (&'static str, fn(u16, u16) -> Transport, fn(u16, u16) -> Transport, fn(u16, u16) -> Transport);

const TCP: Flow = ("TCP", syn, syn_ack, ack);
const UDP: Flow = ("UDP", udp, udp, udp);

/// Returns the packets of a flow that may have an entry in `FLOWS`.
fn later(way: &str, kind: impl Fn(String) -> Kind) -> Vec<Kind> {
    vec![
        kind(format!("{way}, later packet, judged anew")).judged_anew(),
        kind(format!("{way}, later packet, known")).known(),
    ]
}

fn same_node() -> Vec<Kind> {
    let of = |(protocol, first, _, next): Flow| {
        let way = format!("to a service, same node, {protocol}");
        let to = |name, transport| from_pod(name, &from_a(SERVICE, transport), Path::Local);
        let begun = from_a(SERVICE, first(CLIENT, TO_POD_B)).build();
        [
            vec![to(format!("{way}, first packet"), first(CLIENT, TO_POD_B)).first()],
            later(&way, |name| to(name, next(CLIENT, TO_POD_B)).after(FROM_POD, Link::PodA, begun.clone())),
        ]
        .concat()
    };
    [TCP, UDP].map(of).concat()
}

fn other_node() -> Vec<Kind> {
    let of = |(protocol, first, _, next): Flow| {
        let way = format!("to a service, VXLAN, {protocol}");
        let to = |name, transport| from_pod(name, &from_a(SERVICE, transport), Path::TunnelOut);
        let begun = from_a(SERVICE, first(CLIENT, TO_REMOTE_POD)).build();
        let answer = |transport| tunnelled(&Packet::new(REMOTE_POD, POD_A, transport));
        let from = |name, transport| {
            from_uplink(name, answer(transport), Some(Path::TunnelIn)).after(
                FROM_POD,
                Link::PodA,
                begun.clone(),
            )
        };
        let back = format!("from a service, VXLAN, {protocol}");
        [
            vec![to(format!("{way}, first packet"), first(CLIENT, TO_REMOTE_POD)).first()],
            later(&way, |name| {
                to(name, next(CLIENT, TO_REMOTE_POD)).after(FROM_POD, Link::PodA, begun.clone())
            }),
            later(&back, |name| from(name, next(BACKEND, SERVED))),
        ]
        .concat()
    };
    let accepted = tunnelled(&Packet::new(REMOTE_POD, POD_A, syn_ack(BACKEND, SERVED)));
    let accepted = from_uplink("from a service, VXLAN, TCP, first answer", accepted, Some(Path::TunnelIn))
        .after(FROM_POD, Link::PodA, from_a(SERVICE, syn(CLIENT, TO_REMOTE_POD)).build());
    [[TCP, UDP].map(of).concat(), vec![accepted]].concat()
}

/// Returns packets of a client outside to pod A, and its answers.
fn outside_here() -> Vec<Kind> {
    let asks = |transport| arriving(STRANGER, SERVICE, transport).build();
    let of = |(protocol, first, answers, next): Flow| {
        let way = format!("from outside to a service, {protocol}");
        let to = |name, transport| from_uplink(name, asks(transport), Some(Path::ServiceIn));
        let answer = |name, transport| {
            from_pod(name, &from_a(STRANGER, transport), Path::ServiceOut).after(
                FROM_UPLINK,
                Link::Uplink,
                asks(first(CLIENT, TO_POD_A)),
            )
        };
        vec![
            to(format!("{way}, first packet"), first(CLIENT, TO_POD_A)).first(),
            to(format!("{way}, later packet"), next(CLIENT, TO_POD_A))
                .after(FROM_UPLINK, Link::Uplink, asks(first(CLIENT, TO_POD_A)))
                .after(FROM_POD, Link::PodA, from_a(STRANGER, answers(BACKEND, CLIENT)).build()),
            answer(format!("answer of a service to outside, {protocol}"), next(BACKEND, CLIENT)),
        ]
    };
    [TCP, UDP].map(of).concat()
}

/// Returns packets of a client outside to a pod of another node, and its answers.
fn outside_there() -> Vec<Kind> {
    let asks = |transport| arriving(STRANGER, SERVICE, transport).build();
    let of = |(protocol, first, answers, next): Flow| {
        let way = format!("from outside to a service, relayed, {protocol}");
        let to = |name, transport| from_uplink(name, asks(transport), Some(Path::RelayOut));
        let answer = |transport| tunnelled(&Packet::new(REMOTE_POD, NODE1, transport));
        let back = |name, transport, path| {
            from_uplink(name, answer(transport), path).after(
                FROM_UPLINK,
                Link::Uplink,
                asks(first(CLIENT, TO_REMOTE_POD)),
            )
        };
        vec![
            to(format!("{way}, first packet"), first(CLIENT, TO_REMOTE_POD)).first(),
            to(format!("{way}, later packet"), next(CLIENT, TO_REMOTE_POD))
                .after(FROM_UPLINK, Link::Uplink, asks(first(CLIENT, TO_REMOTE_POD)))
                .after(FROM_UPLINK, Link::Uplink, answer(answers(BACKEND, SERVED))),
            back(
                format!("relayed answer of a service, {protocol}"),
                next(BACKEND, SERVED),
                Some(Path::RelayIn),
            ),
        ]
    };
    [TCP, UDP].map(of).concat()
}
