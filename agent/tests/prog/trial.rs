//! Packets of one flow that goes past the host stack: what the stages make of a packet, and what a
//! known flow makes of it. A trial has a family: the type of its addresses.

use std::borrow::Borrow as _;

use podwire_common::abi::{self, Flow};
use podwire_common::addr::{Addr, Be16, Mac};
use podwire_common::epoch::{self, ALL_FLOWS, FLOW_SLOTS};
use podwire_common::flow::{FlowAddr as _, protocol};
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK};
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC};
use podwire_core::model::{Family, Mode, NodeLink, Role};
use podwire_core::services::Protocol;

use crate::family::{Address, Fields, IpPacket as _, Known, can_leave_tunnel};
use crate::fixture::*;
use crate::fixture6::{NODE1_6, NODE2_6, STRANGER6, make_dual};
use crate::kinds::{CLIENT, SERVER, ack, arriving, from_a, over_ipv6, syn, tunnelled};
use crate::packets::*;
use crate::pool::{Loaded, empty_shares};
use crate::service_kinds::{BACKEND, SERVED, port, put};

/// A link address that shows that a program followed a falsified entry.
const FALSE_MAC: [u8; 6] = [2, 0, 0, 0, 0xff, 0xff];
/// The mark of an entry that a test wrote: the programs write 0.
pub const OURS: [u8; 2] = [1; 2];
/// A known flow may expire between two packets, so a test tries this often.
pub const ATTEMPTS: usize = 20;

/// The ways past the host stack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Local,
    DirectOut,
    TunnelOut,
    WorldOut,
    DirectIn,
    TunnelIn,
    WorldIn,
    /// To a service's backend on this node.
    ServiceLocal,
    /// To a service's backend on another node.
    ServiceOut,
    /// From there, by direct routing.
    ServiceDirectIn,
    /// From there, by the tunnel.
    ServiceIn,
}

impl Kind {
    /// Returns whether the programs know such flows only if they serve services.
    pub fn is_served(self) -> bool {
        matches!(self, Self::ServiceLocal | Self::ServiceOut | Self::ServiceDirectIn | Self::ServiceIn)
    }

    /// Returns whether the flow has a translation.
    pub fn is_translated(self) -> bool {
        self.is_served() || matches!(self, Self::WorldOut | Self::WorldIn)
    }

    /// Returns whether its packets come in the tunnel.
    pub fn comes_in_tunnel(self) -> bool {
        matches!(self, Self::TunnelIn | Self::ServiceIn)
    }

    /// Returns whether its packets leave in the tunnel.
    pub fn leaves_in_tunnel(self) -> bool {
        matches!(self, Self::TunnelOut | Self::ServiceOut)
    }
}

/// A way past the host stack.
pub struct Way<A: Address> {
    what: &'static str,
    mode: Mode,
    pub program: &'static str,
    pub kind: Kind,
    /// Makes a packet on this way. [`Fixture::translate`] uses the same server port.
    packet: fn(Transport) -> A::Packet,
    /// The ports of that packet.
    pub ports: (u16, u16),
    /// The family of the node's tunnel.
    pub over: Family,
}

/// Ports of a service with a backend on node 2, and of one with pod B as its backend.
pub const SERVICE_PORTS: [u16; 2] = [80, 81];

/// Modes with the family of the tunnel, and whether the programs serve services.
const SETTINGS: [(Mode, Family, bool); 5] = [
    (Mode::Vxlan, Family::V4, false),
    (Mode::Vxlan, Family::V6, false),
    (Mode::Direct, Family::V4, false),
    (Mode::Vxlan, Family::V4, true),
    (Mode::Direct, Family::V4, true),
];

/// Returns the ways of a mode. A tunnel of IPv6 has known flows of IPv6 only, and services have known
/// flows of IPv4 only.
fn ways<A: Address>(mode: Mode, over: Family, services: bool) -> impl Iterator<Item = Way<A>> {
    let is_there = move |way: &Way<A>| match (way.kind, over) {
        (kind, _) if kind.is_served() != services => false,
        (kind, _) if kind.is_served() => A::either(true, false),
        (Kind::TunnelIn, Family::V4) => can_leave_tunnel::<A>(),
        (Kind::TunnelOut | Kind::TunnelIn, Family::V6) => A::either(false, true),
        (_, over) => over == Family::V4,
    };
    all_ways()
        .into_iter()
        .map(move |way| Way { over, ..way })
        .filter(move |way| way.mode == mode && is_there(way))
}

/// Returns one way of each kind.
fn all_ways<A: Address>() -> [Way<A>; 11] {
    let way = |what, mode, program, kind, packet: fn(Transport) -> A::Packet| Way {
        what,
        mode,
        program,
        kind,
        packet,
        ports: (CLIENT, SERVER),
        over: Family::V4,
    };
    let (vxlan, direct) = (Mode::Vxlan, Mode::Direct);
    [
        way("same node", vxlan, FROM_POD, Kind::Local, |transport| from_a(A::POD_B, transport)),
        way("tunnel out", vxlan, FROM_POD, Kind::TunnelOut, |transport| from_a(A::REMOTE_POD, transport)),
        way("direct out", direct, FROM_POD, Kind::DirectOut, |transport| from_a(A::REMOTE_POD, transport)),
        way("to the world", vxlan, FROM_POD, Kind::WorldOut, |transport| from_a(A::WORLD, transport)),
        way("tunnel in", vxlan, FROM_UPLINK, Kind::TunnelIn, |transport| {
            A::Packet::new(A::REMOTE_POD, A::POD_A, transport)
                .on_link(INNER_DESTINATION_MAC, INNER_SOURCE_MAC)
        }),
        way("direct in", direct, FROM_UPLINK, Kind::DirectIn, |transport| {
            arriving(A::REMOTE_POD, A::POD_A, transport)
        }),
        Way {
            ports: (SERVER, TRANSLATED),
            ..way("from the world", vxlan, FROM_UPLINK, Kind::WorldIn, |transport| {
                arriving(A::WORLD, A::NODE1, transport)
            })
        },
        Way {
            ports: (CLIENT, SERVICE_PORTS[1]),
            ..way("to a service, same node", vxlan, FROM_POD, Kind::ServiceLocal, |transport| {
                from_a(A::SERVICE, transport)
            })
        },
        Way {
            ports: (CLIENT, SERVICE_PORTS[0]),
            ..way("to a service, tunnel out", vxlan, FROM_POD, Kind::ServiceOut, |transport| {
                from_a(A::SERVICE, transport)
            })
        },
        Way {
            ports: (BACKEND, SERVED),
            ..way("from a service, direct in", direct, FROM_UPLINK, Kind::ServiceDirectIn, |transport| {
                arriving(A::REMOTE_POD, A::POD_A, transport)
            })
        },
        Way {
            ports: (BACKEND, SERVED),
            ..way("from a service, tunnel in", vxlan, FROM_UPLINK, Kind::ServiceIn, |transport| {
                A::Packet::new(A::REMOTE_POD, A::POD_A, transport)
                    .on_link(INNER_DESTINATION_MAC, INNER_SOURCE_MAC)
            })
        },
    ]
}

/// What a program made of a packet: the code, the counters that changed, and the bytes.
pub type Seen = (u32, Vec<String>, String);

/// A packet, with its link.
pub struct Sent {
    pub link: u32,
    pub frame: Vec<u8>,
    /// The segment size of a large segment; 0 for others.
    pub segment: u32,
}

/// A node, and one flow with a way past its host stack.
pub struct Trial<A: Address> {
    pub way: Way<A>,
    pub node: Fixture,
    /// The flow as the program finds it in its packets.
    pub flow: Flow,
    /// A packet from which the program learns the flow. Once the flow is known, the packet follows
    /// the entry.
    pub plain: A::Packet,
}

impl<A: Address> Trial<A> {
    /// Runs an action with each way, for TCP and for UDP.
    pub fn each(action: impl Fn(&mut Self)) {
        Self::each_with(Loaded::take, action);
    }

    /// Like [`Self::each`], with another build of the programs.
    pub fn each_with<L: Into<Loaded>>(load: impl Fn(&abi::Config) -> L, action: impl Fn(&mut Self)) {
        for (mode, over, services) in SETTINGS {
            if ways::<A>(mode, over, services).next().is_none() {
                continue;
            }
            let with = |config: &abi::Config| load(&abi::Config { services: services.into(), ..*config });
            let mut node = Fixture::with_programs(mode, with);
            make_dual(&mut node);
            node.model.tunnel_family = over;
            let addresses = vec![NODE1.into(), NODE1_6.into()];
            node.model.links.push(NodeLink {
                index: node.pod_b,
                name: "pwb".into(),
                mtu: 1500,
                addresses,
                role: Role::Uplink,
                is_bare: false,
            });
            node.fill();
            if services {
                serve::<A>(&mut node);
            }
            for transport in [ack, udp] {
                for way in ways(mode, over, services) {
                    let mut trial = Self::new(node, way, transport);
                    action(&mut trial);
                    node = trial.node;
                }
            }
        }
    }

    fn new(node: Fixture, way: Way<A>, transport: fn(u16, u16) -> Transport) -> Self {
        let transport = transport(way.ports.0, way.ports.1);
        let protocol = match transport {
            Transport::Tcp { .. } => protocol::TCP,
            _ => protocol::UDP,
        };
        let mut plain = (way.packet)(transport);
        let fields = plain.fields();
        let flow = flow_of(*fields.source, *fields.destination, way.ports, protocol);
        Self { way, node, flow, plain }
    }

    /// Returns whether the flow is TCP. Otherwise it is UDP.
    pub fn is_tcp(&self) -> bool {
        self.flow.protocol == protocol::TCP
    }

    /// Returns the bytes of the plain packet's IP and transport headers.
    pub fn headers(&self) -> usize {
        A::Packet::HEADER + if self.is_tcp() { 20 } else { 8 }
    }

    /// Returns the addresses of this node and of node 2 in the tunnel.
    pub fn tunnel(&self) -> (Addr, Addr) {
        match self.way.over {
            Family::V4 => (NODE1.into(), NODE2.into()),
            Family::V6 => (NODE1_6.into(), NODE2_6.into()),
        }
    }

    /// Returns the largest packet of the pod that leaves in the tunnel.
    pub fn tunnel_mtu(&self) -> u32 {
        match self.way.over {
            Family::V4 => 1450,
            Family::V6 => 1430,
        }
    }

    /// Returns the name for messages.
    pub fn what(&self) -> String {
        let transport = if self.is_tcp() { "TCP" } else { "UDP" };
        format!("{}, {transport}, {} over {:?}", self.way.what, A::either("IPv4", "IPv6"), self.way.over)
    }

    /// Returns a packet as it arrives at the program.
    pub fn sent(&self, packet: &A::Packet) -> Sent {
        let link = if self.way.program == FROM_POD { self.node.pod_a } else { self.node.uplink };
        let frame = match (self.way.kind, self.way.over) {
            (kind, Family::V4) if kind.comes_in_tunnel() => tunnelled(packet),
            (kind, Family::V6) if kind.comes_in_tunnel() => over_ipv6(&packet.build()).build(),
            _ => packet.build(),
        };
        Sent { link, frame, segment: 0 }
    }

    /// Returns a variation of the plain packet.
    pub fn varied(&self, change: impl FnOnce(Fields<'_, A>)) -> Sent {
        self.sent(&self.plain.clone().set(change))
    }

    /// Returns a large segment.
    pub fn large_segment(&self) -> Sent {
        Sent { segment: 1000, ..self.varied(|fields| *fields.payload = vec![0x55; 3000]) }
    }

    /// Returns what the program makes of a packet now.
    pub fn see(&self, sent: &Sent) -> Seen {
        let before = self.node.counters();
        let ran = self.node.run(self.way.program, sent.link, &sent.frame, sent.segment);
        let mut counted = self.node.counters();
        counted.retain(|name, count| before.get(name) != Some(count));
        (ran.code, counted.into_keys().collect(), hex(&ran.frame))
    }

    /// Returns what the stages make of a packet when nothing is known.
    pub fn judged(&mut self, sent: &Sent) -> Seen {
        self.node.forget_known();
        match self.way.kind {
            Kind::WorldOut | Kind::WorldIn => self.node.translate::<A>(self.flow.protocol),
            kind if kind.is_served() => self.translate_served(),
            _ => {}
        }
        self.see(sent)
    }

    /// Lets pod A's flow to the service be answered, and be worth an entry both ways.
    fn translate_served(&mut self) {
        let port = self.service_port();
        let asked = flow_of(A::POD_A, A::SERVICE, (CLIENT, port), self.flow.protocol);
        if self.node.translations().len() != 2 || !self.node.translations().contains_key(&asked) {
            self.node.forget_recorded();
            empty_shares(&mut self.node.loaded.maps);
            let transport = if self.is_tcp() { syn(CLIENT, port) } else { udp(CLIENT, port) };
            self.node.run(FROM_POD, self.node.pod_a, &from_a(A::SERVICE, transport).build(), 0);
        }
        let halves = self.node.translations();
        assert_eq!(halves.len(), 2, "{}", self.what());
        for (flow, half) in halves {
            let half = abi::Translation { is_long: 1, state: abi::STATE_REPLIED, ..half };
            self.node.loaded.maps.translations.insert(flow, half, 0).unwrap();
        }
    }

    /// Returns what the program makes of a packet after a change of the known flow. The entry still
    /// has the test's mark afterwards: the program used it and learnt no other.
    pub fn known(&mut self, sent: &Sent, change: impl Fn(&mut Known<A>)) -> Seen {
        for _ in 0..ATTEMPTS {
            let plain = self.sent(&self.plain);
            self.judged(&plain);
            self.change(|known| {
                known.reserved = OURS;
                change(known);
            });
            let seen = self.see(sent);
            if self.entry().is_some_and(|known| known.reserved == OURS) {
                return seen;
            }
        }
        panic!("{}: the program does not use the entry", self.what());
    }

    /// Makes a packet follow a falsified entry, and returns what became of the packet.
    pub fn mislead(&mut self) -> Seen {
        let plain = self.sent(&self.plain);
        let truth = self.judged(&plain);
        let misled = self.known(&plain, falsify::<A>);
        assert_ne!(misled, truth, "{}: the falsified entry has no effect", self.what());
        misled
    }

    /// Returns the slots of `EPOCHS` that an entry of the flow depends on. Pod A is endpoint 1, pod
    /// B is endpoint 2.
    pub fn slots(&self) -> [u16; FLOW_SLOTS] {
        match self.way.kind {
            Kind::Local => epoch::of_neighbours(1, 2),
            Kind::WorldOut | Kind::WorldIn => epoch::with_world(1, self.node.uplink, &A::WORLD.into()),
            Kind::DirectOut | Kind::DirectIn => epoch::with_node(1, &A::NODE2.into(), &A::REMOTE_POD.into()),
            Kind::TunnelOut | Kind::TunnelIn => epoch::with_node(1, &self.tunnel().1, &A::REMOTE_POD.into()),
            Kind::ServiceLocal => epoch::of_service(epoch::of_neighbours(1, 2), self.service_slot()),
            Kind::ServiceOut | Kind::ServiceDirectIn | Kind::ServiceIn => {
                let slots = epoch::with_node(1, &A::NODE2.into(), &A::REMOTE_POD.into());
                epoch::of_service(slots, self.service_slot())
            }
        }
    }

    fn service_port(&self) -> u16 {
        SERVICE_PORTS[usize::from(self.way.kind == Kind::ServiceLocal)]
    }

    /// Returns the slot of `EPOCHS` for the service of the flow. Only flows of UDP depend on it.
    fn service_slot(&self) -> u16 {
        if self.is_tcp() {
            return ALL_FLOWS;
        }
        let key = abi::Frontend {
            address: A::SERVICE.into(),
            port: Be16::new(self.service_port()),
            protocol: protocol::UDP,
            clients: abi::CLIENTS_INSIDE,
        };
        epoch::service(self.node.loaded.maps.services.get(&key, 0).unwrap().id)
    }

    /// Returns the flow's entry, whether it counts or not.
    pub fn entry(&self) -> Option<Known<A>> {
        A::known(&self.node.loaded.maps, A::Stored::key(&self.flow).borrow())
    }

    /// Changes the flow's entry.
    pub fn change(&mut self, change: impl Fn(&mut Known<A>)) {
        let mut known = self.entry().unwrap_or_else(|| panic!("{}: nothing is remembered", self.what()));
        change(&mut known);
        A::insert_known(&mut self.node.loaded.maps, A::Stored::key(&self.flow).borrow(), known);
    }
}

/// Gives a node the services of [`SERVICE_PORTS`], with both protocols.
fn serve<A: Address>(node: &mut Fixture) {
    let of = |protocol| {
        SERVICE_PORTS.into_iter().zip([REMOTE_POD, POD_B]).map(move |(number, backend)| {
            let mut port = port(protocol, &[backend], &[]);
            port.name = number.to_string();
            (port.frontends[0].address, port.frontends[0].port) =
                (A::SERVICE.into(), number.try_into().unwrap());
            port
        })
    };
    put(node, of(Protocol::Tcp).chain(of(Protocol::Udp)).collect());
}

/// Falsifies an entry, so that a program that follows it writes what it would never write
/// otherwise.
pub fn falsify<A: Address>(known: &mut Known<A>) {
    let stranger = A::Stored::of(&A::STRANGER.into());
    match known.leaves {
        abi::LEAVES_IN_TUNNEL => known.tunnel.here = STRANGER.into(),
        abi::LEAVES_IN_TUNNEL6 => known.tunnel.here = STRANGER6.into(),
        abi::LEAVES_BY_UPLINK => {
            (known.flags, known.source) = (known.flags | abi::FLOW_REWRITES_SOURCE, stranger)
        }
        _ => known.macs.destination = Mac { bytes: FALSE_MAC },
    }
}
