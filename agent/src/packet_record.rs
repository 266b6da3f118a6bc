//! An event of a packet as operators read it: with names.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use podwire_common::abi::{
    Flow, TRANSLATION_HOST, TRANSLATION_HOST_PORT, TRANSLATION_OUTSIDE, TRANSLATION_RELAY,
    TRANSLATION_SERVICE, TRANSLATION_SNAT, TRANSLATION_TUNNEL,
};
use podwire_common::addr::{Addr, Be16};
use podwire_common::event::{Event, Kind};
use podwire_common::flow::protocol;
use podwire_common::reason::{Drop, Hook, Path};
use serde::{Deserialize, Serialize};

use crate::events::Names;
use crate::housekeeping;

/// An event with names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When (RFC 3339, UTC).
    pub time: Timestamp,
    /// What happened: `drop`, `flow` (the first packet of a flow), `translation` (the same, of a
    /// flow that the programs translate), or `packet` (any packet, if it is captured).
    pub kind: Cow<'static, str>,
    /// Why: the reason of a drop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// The path of a packet that was not dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Cow<'static, str>>,
    /// What kind of translation it is: `snat`, `host`, `host-port`, `service`, `service-outside`,
    /// `service-relay` or `tunnel`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translation: Option<Cow<'static, str>>,
    /// Where: the name of the program.
    pub hook: Cow<'static, str>,
    /// The link that the program is on.
    pub link: Link,
    /// Name or number of the transport protocol; of the EtherType if the packet is not IP.
    pub protocol: Cow<'static, str>,
    /// The packet's source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<End>,
    /// The packet's destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<End>,
    /// The ends after the translation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translated: Option<Ends>,
    /// The packet inside a tunnel packet that was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inner: Option<Ends>,
    /// Bytes of the frame.
    pub length: u32,
}

/// Both ends of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// Name or number of the transport protocol.
    pub protocol: Cow<'static, str>,
    /// Where packets come from.
    pub source: End,
    /// Where they go.
    pub destination: End,
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// ifindex.
    pub index: u32,
    /// Name, if the agent knows the link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Address.
    pub address: IpAddr,
    /// Port, or the identifier of an ICMP request or reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Namespace and name of the pod of this node that has the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Name of the node that has the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// The time of day at a time of the clock that events have.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    day: Timestamp,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    monotonic: u64,
}

impl Clocks {
    /// Reads both clocks.
    #[expect(clippy::disallowed_methods, reason = "operators read the time of day")]
    pub fn now() -> Self {
        Self { day: Timestamp::now(), monotonic: housekeeping::now() }
    }

    fn time_of(self, event: &Event) -> Timestamp {
        let later = Duration::from_nanos(event.time.saturating_sub(self.monotonic));
        let earlier = Duration::from_nanos(self.monotonic.saturating_sub(event.time));
        self.day.saturating_add(later).and_then(|time| time.saturating_sub(earlier)).unwrap_or(self.day)
    }
}

impl Record {
    /// Gives an event its names.
    pub fn new(event: &Event, names: &Names, clocks: Clocks) -> Self {
        let ends = ends_of(&event.flow, names);
        let protocol = match &ends {
            Some(ends) => ends.protocol.clone(),
            None => ethertype_name(event.ethertype),
        };
        let (source, destination) = ends.map(|ends| (ends.source, ends.destination)).unzip();
        let is_drop = event.kind == Kind::Drop as u8;
        let outcome = event.outcome.into();
        let reason = is_drop.then(|| name_of(Drop::ALL, outcome, |reason| reason as u32, Drop::name));
        let has_path = !is_drop && event.kind != Kind::Packet as u8;
        let path = has_path.then(|| name_of(Path::ALL, outcome, |path| path as u32, Path::name));
        Self {
            time: clocks.time_of(event),
            kind: name_of(&Kind::ALL, event.kind.into(), |kind| kind as u32, Kind::name),
            reason,
            path,
            translation: (event.translation != 0).then(|| translation_name(event.translation)),
            hook: name_of(Hook::ALL, event.hook.into(), |hook| hook as u32, Hook::name),
            link: Link { index: event.link, name: names.links.get(&event.link).cloned() },
            protocol,
            source,
            destination,
            translated: ends_of(&event.translated, names),
            inner: ends_of(&event.inner, names),
            length: event.length,
        }
    }
}

fn ends_of(flow: &Flow, names: &Names) -> Option<Ends> {
    let end = |address: Addr, port: Be16| {
        let address = IpAddr::from(address);
        End {
            address,
            port: (port != Be16::ZERO).then(|| port.get()),
            pod: names.pods.get(&address).cloned(),
            node: names.nodes.get(&address).cloned(),
        }
    };
    let is_ip = flow.source != Addr::UNSPECIFIED || flow.destination != Addr::UNSPECIFIED;
    is_ip.then(|| Ends {
        protocol: protocol_name(flow.protocol),
        source: end(flow.source, flow.source_port),
        destination: end(flow.destination, flow.destination_port),
    })
}

/// Returns the name of a number, or the number if this release does not know it.
pub fn name_of<T: Copy>(
    all: &[T],
    number: u32,
    number_of: impl Fn(T) -> u32,
    name: impl Fn(T) -> &'static str,
) -> Cow<'static, str> {
    let found = all.iter().find(|known| number_of(**known) == number);
    found.map_or_else(|| number.to_string().into(), |known| name(*known).into())
}

/// Returns the name of a transport protocol, or its number as text.
pub fn protocol_name(number: u8) -> Cow<'static, str> {
    let name = match number {
        protocol::ICMP => "icmp",
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        protocol::ICMPV6 => "icmpv6",
        protocol::SCTP => "sctp",
        _ => return format!("protocol {number}").into(),
    };
    name.into()
}

fn ethertype_name(ethertype: Be16) -> Cow<'static, str> {
    match ethertype.get() {
        0x0806 => "arp".into(),
        other => format!("ethertype {other:#06x}").into(),
    }
}

fn translation_name(kind: u8) -> Cow<'static, str> {
    let name = match kind {
        TRANSLATION_SNAT => "snat",
        TRANSLATION_HOST => "host",
        TRANSLATION_HOST_PORT => "host-port",
        TRANSLATION_TUNNEL => "tunnel",
        TRANSLATION_SERVICE => "service",
        TRANSLATION_OUTSIDE => "service-outside",
        TRANSLATION_RELAY => "service-relay",
        _ => return kind.to_string().into(),
    };
    name.into()
}

impl Record {
    /// Returns where the event happened and to which packet, as a text for people.
    pub fn description(&self) -> String {
        let ends = |source: &End, destination: &End| format!("{source} > {destination}");
        let mut text = format!("{} of {}: {}", self.hook, self.link, self.protocol);
        if let (Some(source), Some(destination)) = (&self.source, &self.destination) {
            text += &format!(" {}", ends(source, destination));
        }
        if let Some(Ends { source, destination, .. }) = &self.translated {
            text += &format!(" becomes {}", ends(source, destination));
        }
        if let Some(Ends { protocol, source, destination }) = &self.inner {
            text += &format!(" around {protocol} {}", ends(source, destination));
        }
        text + &format!(", {} bytes", self.length)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6} {}", self.time, self.kind)?;
        for outcome in self.reason.iter().chain(&self.path) {
            write!(f, " {outcome}")?;
        }
        write!(f, " at {}", self.description())
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "link {}", self.index),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (IpAddr::V6(address), Some(port)) => write!(f, "[{address}]:{port}")?,
            (address, Some(port)) => write!(f, "{address}:{port}")?,
            (address, None) => write!(f, "{address}")?,
        }
        match (&self.pod, &self.node) {
            (Some(pod), _) => write!(f, " ({pod})"),
            (None, Some(node)) => write!(f, " (node {node})"),
            (None, None) => Ok(()),
        }
    }
}
