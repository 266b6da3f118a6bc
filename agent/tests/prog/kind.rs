//! One kind of packet on its way through one program: the packets that come before it, and a way to
//! send it as often as needed.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use podwire::dataplane::attach::{UplinkAttachment, UplinkXdp};
use podwire_common::abi::{self, Flow, FlowKey};
use podwire_common::names::VXLAN_DEVICE;
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::{Family, Mode};
use podwire_core::slice::Hooks;
use xtask::lab::frames;

use crate::fixture::{Fixture, NODE1, WORLD};
use crate::fixture6::{self, make_dual};
use crate::pool::{Loaded, empty_shares};

/// How long a prepared node stays usable. A known flow is valid for
/// [`KNOWN_FLOW_JIFFIES`](abi::KNOWN_FLOW_JIFFIES), a quarter of a second where the kernel has 1000
/// jiffies a second. Programs update an entry's time after a second. A packet after either of these
/// times costs more than others of its kind.
const FRESH: Duration = Duration::from_millis(200);
/// How long packets may be on their way through the kernel.
const PATIENCE: Duration = Duration::from_secs(10);

/// The link that a packet is on.
#[derive(Clone, Copy, Debug)]
pub enum Link {
    Uplink,
    PodA,
}

/// The setup of a node. Kinds of packets with the same setup share a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    mode: Mode,
    /// The family of the tunnel.
    pub over: Family,
    has_host_port: bool,
    pub has_service: bool,
    wire: Wire,
}

/// What is attached. It is only the measured program, so all counts are that program's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    Nothing,
    Loopback,
    Overlay,
    Uplink,
}

/// How packets get to the program.
#[derive(Clone, Debug)]
enum Way {
    /// By a test run.
    TestRun(Link, Vec<u8>),
    /// By a test run of the XDP program.
    Xdp(Vec<u8>),
    /// On the wire, through the VXLAN device, because a test run has no tunnel key.
    Device(Vec<u8>),
    /// From a UDP socket of the node to the world, because a test run's packet belongs to no
    /// socket.
    Socket,
}

/// The entry of `FLOWS` or `FLOWS6` for a packet's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// No entry.
    Nothing,
    /// An entry of an older generation.
    Once,
    /// A valid entry.
    Now,
}

/// A kind of packet.
#[derive(Clone, Debug)]
pub struct Kind {
    /// The measured program.
    pub program: &'static str,
    /// What distinguishes this kind from others of the program.
    pub name: String,
    /// The path that the program counts, if it counts one.
    pub path: Option<Path>,
    /// Why the program drops it, if it does.
    pub drop: Option<Reason>,
    /// The node on which it is sent.
    pub setting: Setting,
    way: Way,
    before: Vec<(&'static str, Link, Vec<u8>)>,
    pub is_first: bool,
    pub known: Known,
    is_past_stack: bool,
    /// The flow to a destination that counts as known: the host's rules have just let another
    /// connection to it pass.
    destination: Option<Flow>,
}

impl Kind {
    /// Returns a kind of packet on a link.
    pub fn new(
        program: &'static str,
        name: impl Into<String>,
        link: Link,
        frame: Vec<u8>,
        path: Option<Path>,
    ) -> Self {
        let way = Way::TestRun(link, frame);
        Self {
            program,
            name: name.into(),
            path,
            drop: None,
            setting: Setting {
                mode: Mode::Vxlan,
                over: Family::V4,
                has_host_port: false,
                has_service: false,
                wire: Wire::Nothing,
            },
            way,
            before: Vec::new(),
            is_first: false,
            known: Known::Nothing,
            is_past_stack: false,
            destination: None,
        }
    }

    /// Makes it a packet that the program drops.
    pub fn dropped(mut self, reason: Reason) -> Self {
        self.drop = Some(reason);
        self
    }

    /// Chooses direct routing instead of the tunnel.
    pub fn direct(mut self) -> Self {
        self.setting.mode = Mode::Direct;
        self
    }

    /// Chooses a tunnel of IPv6.
    pub fn over_ipv6(mut self) -> Self {
        self.setting.over = Family::V6;
        self
    }

    /// Adds a packet that comes before this one.
    pub fn after(mut self, program: &'static str, link: Link, frame: Vec<u8>) -> Self {
        self.before.push((program, link, frame));
        self
    }

    /// Gives pod A a hostPort: see [`crate::kinds`].
    pub fn with_host_port(mut self) -> Self {
        self.setting.has_host_port = true;
        self
    }

    /// Serves services: see [`crate::service_kinds`].
    pub fn with_service(mut self) -> Self {
        self.setting.has_service = true;
        self
    }

    /// Makes it the first packet of its flow. After each such packet, the test removes the entries
    /// that the packet added.
    pub fn first(mut self) -> Self {
        self.is_first = true;
        self
    }

    /// Makes it a later packet of a flow that a program judges again, because the flow's entry has
    /// ended.
    pub fn judged_anew(mut self) -> Self {
        self.known = Known::Once;
        self
    }

    /// Makes it a later packet of a known flow. In a long series a program judges a packet again
    /// whenever the entry gets too old.
    pub fn known(mut self) -> Self {
        self.known = Known::Now;
        self
    }

    /// Sets that the host's rules let the first packets of translated flows pass unchanged.
    pub fn past_stack(mut self) -> Self {
        self.is_past_stack = true;
        self
    }

    /// Sets that the host's rules have just let another connection to the flow's destination pass
    /// unchanged.
    pub fn destination_known(mut self, flow: Flow) -> Self {
        self.destination = Some(flow);
        self
    }

    /// Sends the frame to the uplink, so that it comes out of the VXLAN device.
    pub fn through_device(mut self) -> Self {
        let Way::TestRun(_, frame) = self.way else { panic!("{}: no frame", self.name) };
        self.way = Way::Device(frame);
        self.setting.wire = Wire::Overlay;
        self
    }

    /// Sends the frame to the XDP program.
    pub fn at_xdp(mut self) -> Self {
        let Way::TestRun(_, frame) = self.way else { panic!("{}: no frame", self.name) };
        self.way = Way::Xdp(frame);
        self.setting.wire = Wire::Loopback;
        self
    }

    /// Sends it from a UDP socket of the node.
    pub fn by_socket(mut self) -> Self {
        self.way = Way::Socket;
        self.setting.wire = Wire::Uplink;
        self
    }

    /// Prepares a node of its setting for such a packet.
    pub fn on<'a>(&'a self, node: &'a mut Fixture) -> Ready<'a> {
        let socket = matches!(self.way, Way::Socket).then(|| {
            let socket = UdpSocket::bind((NODE1, 40000)).unwrap();
            socket.connect((WORLD, 53)).unwrap();
            socket
        });
        let mut ready = Ready { kind: self, node, socket, made: Vec::new(), destination_known: None };
        ready.made = ready.entries().into_iter().collect();
        ready.forget();
        ready.made = Vec::new();
        ready.prepare();
        if self.is_first {
            let before = ready.entries();
            ready.send(1);
            ready.made = ready.entries().difference(&before).copied().collect();
            ready.forget();
        }
        ready
    }
}

impl Setting {
    /// Returns a node with these programs. The calling thread moves into its namespace.
    pub fn node<L: Into<Loaded>>(self, load: impl FnOnce(&abi::Config) -> L) -> Fixture {
        let with = |config: &abi::Config| load(&abi::Config { services: self.has_service.into(), ..*config });
        let mut node = Fixture::with_programs(self.mode, with);
        match self.wire {
            // The kernel's own IPv6 packets would be counted on a link with an attached program.
            // The VXLAN device gives the programs IPv6 packets also without IPv6 on the links.
            Wire::Loopback | Wire::Overlay | Wire::Uplink => {
                fixture6::add_ipv6(&mut node);
                node.namespace.ip("route add default via 10.200.0.2 dev up0");
            }
            Wire::Nothing => make_dual(&mut node),
        }
        node.model.tunnel_family = self.over;
        node.fill();
        if self.has_host_port {
            crate::kinds::add_host_port(&mut node);
        }
        if self.has_service {
            crate::service_kinds::add_service(&mut node);
        }
        node.is_attached = matches!(self.wire, Wire::Overlay | Wire::Uplink);
        match self.wire {
            Wire::Nothing => {}
            Wire::Loopback => node.use_loopback_as_uplink(),
            Wire::Overlay => {
                node.add_tunnel_device();
                node.loaded.attach_overlay(VXLAN_DEVICE).unwrap();
            }
            Wire::Uplink => {
                node.loaded
                    .attach_link(
                        node.uplink,
                        "up0",
                        Hooks::Uplink,
                        UplinkAttachment::Clsact,
                        Some(UplinkXdp::Off),
                    )
                    .unwrap();
            }
        }
        node
    }
}

/// An entry of a map that has entries for flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Entry {
    StackFlow(Flow),
    Translation(Flow),
    InboundFlow(Flow),
    Known(FlowKey),
    Known6(Flow),
}

/// A node that is prepared for packets of a kind.
pub struct Ready<'a> {
    /// The node.
    pub node: &'a mut Fixture,
    kind: &'a Kind,
    socket: Option<UdpSocket>,
    /// Entries that a first packet adds.
    made: Vec<Entry>,
    /// When the destination was last made known.
    destination_known: Option<Instant>,
}

impl Ready<'_> {
    /// Sends the packet several times in a row. After each, removes what the next one of its kind
    /// must not find.
    pub fn send(&mut self, times: usize) {
        match &self.kind.way {
            Way::TestRun(link, frame) => {
                let link = self.index_of(*link);
                for _ in 0..times {
                    self.know_destination();
                    self.node.run(self.kind.program, link, frame, 0);
                    self.forget();
                }
            }
            Way::Xdp(frame) => {
                for _ in 0..times {
                    self.node.run_xdp(frame);
                }
            }
            Way::Device(frame) => {
                let seen = self.seen() + times as u64;
                frames::send_all(&self.node.namespace.ns, "up0-p", &vec![frame.as_slice(); times]).unwrap();
                // A busy CPU handles arriving packets later, on a kernel thread.
                let deadline = Instant::now() + PATIENCE;
                while self.seen() < seen {
                    assert!(Instant::now() < deadline, "{}: packets were lost on their way", self.kind.name);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Way::Socket => {
                for _ in 0..times {
                    self.socket.as_ref().expect("made with the node").send(b"podwire!").unwrap();
                }
            }
        }
    }

    /// Runs an action on a node where everything that the packet finds is younger than `FRESH`.
    pub fn fresh<T>(&mut self, action: impl Fn(&mut Self) -> T) -> T {
        for _ in 0..50 {
            let start = Instant::now();
            // Make the destination known now. Within the action it would add to the calls that are
            // counted.
            self.destination_known = None;
            self.prepare();
            let outcome = action(self);
            if start.elapsed() < FRESH {
                return outcome;
            }
        }
        panic!(
            "{}: {}: this machine stands still for {FRESH:?} again and again",
            self.kind.program, self.kind.name
        );
    }

    /// Returns the packets that the program has counted.
    fn seen(&self) -> u64 {
        let path = self.kind.path.expect("a kind that passes the device is counted").name();
        self.node.counters().get(path).copied().unwrap_or(0)
    }

    fn prepare(&mut self) {
        for (program, link, frame) in &self.kind.before {
            self.node.run(program, self.index_of(*link), frame, 0);
        }
        if self.kind.is_past_stack {
            self.node.set_past_stack();
        }
        self.know_destination();
        if self.kind.known != Known::Nothing {
            // Refresh the entry: an earlier one might expire before the packet comes.
            self.node.loaded.maps.forget_flows();
            self.send(1);
        }
    }

    fn know_destination(&mut self) {
        let Some(flow) = &self.kind.destination else { return };
        if self.destination_known.is_none_or(|since| since.elapsed() > FRESH) {
            match flow.source.is_v4() {
                true => drop(self.node.know_destination::<Ipv4Addr>(flow)),
                false => drop(self.node.know_destination::<Ipv6Addr>(flow)),
            }
            self.destination_known = Some(Instant::now());
        }
    }

    fn index_of(&self, link: Link) -> u32 {
        match link {
            Link::Uplink => self.node.uplink,
            Link::PodA => self.node.pod_a,
        }
    }

    fn entries(&self) -> BTreeSet<Entry> {
        let maps = &self.node.loaded.maps;
        let stack_flows = maps.stack_flows.keys().map(|flow| Entry::StackFlow(flow.unwrap()));
        let translations = maps.translations.keys().map(|flow| Entry::Translation(flow.unwrap()));
        let inbound = maps.inbound_flows.keys().map(|flow| Entry::InboundFlow(flow.unwrap()));
        let known = maps.flows.keys().map(|key| Entry::Known(key.unwrap()));
        let known6 = maps.flows6.keys().map(|flow| Entry::Known6(flow.unwrap()));
        stack_flows.chain(translations).chain(inbound).chain(known).chain(known6).collect()
    }

    fn forget(&mut self) {
        let maps = &mut self.node.loaded.maps;
        for entry in &self.made {
            match entry {
                Entry::StackFlow(flow) => maps.stack_flows.remove(flow),
                Entry::Translation(flow) => maps.translations.remove(flow),
                Entry::InboundFlow(flow) => maps.inbound_flows.remove(flow),
                Entry::Known(key) => maps.flows.remove(key),
                Entry::Known6(flow) => maps.flows6.remove(flow),
            }
            .unwrap();
        }
        // The programs have counted the removed entries. Without this reset the pod would use up
        // its share.
        empty_shares(maps);
        if self.kind.known == Known::Once {
            maps.forget_flows();
        }
    }
}
