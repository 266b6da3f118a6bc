//! A node's programs and maps, filled by the agent's own code, and one `check` for all packet
//! tables.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use aya::maps::{PerCpuArray, PerCpuValues, RingBuf};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use podwire::dataplane::attach::{UplinkAttachment, UplinkXdp};
use podwire_common::abi;
use podwire_common::addr::{Addr, Be16, Mac};
use podwire_common::event::{Budget, Event, Listening};
use podwire_common::names::programs::UPLINK_XDP;
use podwire_common::names::{EVENT_BUDGETS, EVENTS, VNI, VXLAN_DEVICE, VXLAN_PORT};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::features::{Scope, desired};
use podwire_core::model::{Attachment, Bandwidth};
use podwire_core::model::{Endpoint, Mode, Model, Node, NodeLink, Path as Way, PodAddress, Role};
use podwire_core::plan::{Op, Removals, plan};
use podwire_core::slice::{Hooks, Slice};
use xtask::lab::frames;

use crate::namespace::Namespace;
use crate::packets;
use crate::pool::{Loaded, set_listening};

pub const NODE1: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
pub const NODE2: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);
pub const NODE3: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 3);
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 99);
pub const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
pub const POD_A: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
pub const POD_B: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 3);
pub const REMOTE_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 2);
pub const POD_OF_NODE3: Ipv4Addr = Ipv4Addr::new(10, 244, 3, 2);

pub const POD_A_MAC: [u8; 6] = [2, 0, 0, 0, 0xa, 1];
pub const HOST_A_MAC: [u8; 6] = [2, 0, 0, 0, 0xa, 2];
pub const POD_B_MAC: [u8; 6] = [2, 0, 0, 0, 0xb, 1];
pub const HOST_B_MAC: [u8; 6] = [2, 0, 0, 0, 0xb, 2];
pub const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0xc, 1];
pub const NODE2_MAC: [u8; 6] = [2, 0, 0, 0, 0xc, 2];
pub const STRANGER_MAC: [u8; 6] = [2, 0, 0, 0, 0xc, 99];

/// The port that the world sees in place of pod A's client port, after [`Fixture::translate`].
pub const TRANSLATED: u16 = 61000;

/// First and last of the ports that SNAT chooses from in these tests.
pub const SNAT_PORTS: (u16, u16) = (61000, 61999);

/// First and last of Kubernetes' NodePorts.
pub const NODE_PORTS: (u16, u16) = (30000, 32767);

const UNSPECIFIED: u32 = u32::MAX;
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

/// A node: a namespace with an uplink, the host sides of two pods' veth pairs and a VXLAN device,
/// and programs with empty maps.
///
/// The other ends of the links lead nowhere: a test run delivers no packet. It needs the links for
/// their ifindex, and for the routes that the kernel's lookups return.
pub struct Fixture {
    pub loaded: Loaded,
    pub model: Model,
    pub uplink: u32,
    pub pod_a: u32,
    pub pod_b: u32,
    pub namespace: Namespace,
    /// Whether programs are attached to links of the namespace.
    pub is_attached: bool,
}

/// The expected verdict of a hook.
pub enum Expect {
    /// Neither changed nor counted.
    Pass,
    /// Passed to the host stack, counted under a path, with these bytes.
    Stack(Path, Vec<u8>),
    /// Redirected, counted under a path, with these bytes.
    Redirect(Path, Vec<u8>),
    /// Dropped, counted under a reason.
    Drop(Reason),
    /// Dropped, counted under a reason, and answered with these bytes.
    Answer(Reason, Vec<u8>),
}

/// Returns the flow between two addresses.
pub fn flow_of<A: Into<Addr>>(source: A, destination: A, ports: (u16, u16), protocol: u8) -> abi::Flow {
    abi::Flow::new(source.into(), destination.into(), Be16::new(ports.0), Be16::new(ports.1), protocol)
}

/// A program's verdict and output for a frame.
pub struct Ran {
    pub code: u32,
    pub frame: Vec<u8>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Without their links no packet runs the programs, so the next test can take them.
        if self.is_attached && !std::thread::panicking() {
            self.namespace.remove_links();
        }
    }
}

impl Fixture {
    pub fn new(mode: Mode) -> Self {
        Self::with_programs(mode, Loaded::take)
    }

    /// Like [`Self::new`], with a changed configuration of the programs.
    pub fn with_config(mode: Mode, change: impl FnOnce(&abi::Config) -> abi::Config) -> Self {
        Self::with_programs(mode, |config| Loaded::take(&change(config)))
    }

    /// Like [`Self::new`], with another build of the programs.
    pub fn with_programs<L: Into<Loaded>>(mode: Mode, load: impl FnOnce(&abi::Config) -> L) -> Self {
        let namespace = Namespace::enter();
        // The kernel's own neighbour discovery would change the counters.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let links = [("up0", UPLINK_MAC), ("pwa", HOST_A_MAC), ("pwb", HOST_B_MAC)];
        let add = |(name, bytes)| {
            let mac = Mac { bytes };
            format!(
                "link add {name} address {mac:?} type veth peer name {name}-p\n\
                 link set {name} up\n\
                 link set {name}-p up\n"
            )
        };
        let routes = "address add 10.200.0.1/24 dev up0\n\
                      neigh add 10.200.0.2 lladdr 02:00:00:00:0c:02 dev up0 nud permanent\n\
                      route add 10.244.2.0/24 via 10.200.0.2 dev up0\n";
        namespace.ip(&(links.map(add).concat() + routes));
        let [uplink, pod_a, pod_b] = links.map(|(name, _)| namespace.ifindex(name));
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let vxlan = (mode == Mode::Vxlan).then_some(77);
        let config = abi::Config {
            mode: match mode {
                Mode::Vxlan => abi::MODE_VXLAN,
                Mode::Direct => abi::MODE_DIRECT,
            },
            link_addresses: abi::LINK_ADDRESSES_ANY,
            vni: VNI,
            vxlan_ifindex: vxlan.unwrap_or(0),
            vxlan_port: Be16::new(VXLAN_PORT),
            snat_port_first: SNAT_PORTS.0,
            snat_port_last: SNAT_PORTS.1,
            node_port_first: NODE_PORTS.0,
            node_port_last: NODE_PORTS.1,
            ask: abi::ASK_EACH_DESTINATION,
            services: 0,
            reserved: 0,
            netns_cookie: 0,
        };
        let loaded = load(&config).into();
        let mut model = Model::new(mode, None);
        model.vxlan = vxlan;
        model.own = Some(node("node1", "10.244.1.0/24", NODE1));
        model.remote.insert("node2".into(), node("node2", "10.244.2.0/24", NODE2));
        model.remote.insert("node3".into(), node("node3", "10.244.3.0/24", NODE3));
        for address in [NODE2, NODE3] {
            model.paths.insert(address.into(), Way { device: uplink, mtu: 1500, gateway: None });
        }
        let addresses = vec![NODE1.into()];
        model.links.push(NodeLink {
            index: uplink,
            name: "up0".into(),
            mtu: 1500,
            addresses,
            role: Role::Uplink,
            is_bare: false,
        });
        for (id, address, ifindex, pod_mac, host_mac) in
            [(1, POD_A, pod_a, POD_A_MAC, HOST_A_MAC), (2, POD_B, pod_b, POD_B_MAC, HOST_B_MAC)]
        {
            let attachment = Attachment { container_id: format!("pod{id}"), interface: "eth0".into() };
            let endpoint = Endpoint {
                attachment: attachment.clone(),
                netns: String::new(),
                host_interface: String::new(),
                ifindex,
                id,
                pod_mac: Mac { bytes: pod_mac },
                host_mac: Mac { bytes: host_mac },
                pod_addresses: vec![PodAddress { address: address.into(), gateway: GATEWAY.into() }],
                mtu: 1450,
                port_mappings: Vec::new(),
                pod: None,
                network: None,
                bandwidth: Bandwidth::default(),
            };
            model.endpoints.insert(attachment, endpoint);
        }
        let mut fixture = Self { loaded, model, uplink, pod_a, pod_b, namespace, is_attached: false };
        fixture.fill();
        fixture
    }

    /// Like [`Self::new`], with the loopback link as the uplink.
    pub fn for_xdp(mode: Mode) -> Self {
        let mut fixture = Self::new(mode);
        fixture.use_loopback_as_uplink();
        fixture
    }

    /// Makes the loopback link the uplink: see [`Self::run_xdp`].
    pub fn use_loopback_as_uplink(&mut self) {
        self.model.links[0].index = 1;
        self.fill();
    }

    /// Returns node 2 as seen from itself: [`REMOTE_POD`] has pod A's place, and node 1 is the
    /// neighbour.
    pub fn node2(mode: Mode) -> Self {
        let mut fixture = Self::new(mode);
        let model = &mut fixture.model;
        let own = model.own.take().unwrap();
        model.own = model.remote.remove("node2");
        model.remote.insert(own.name.clone(), own);
        let path = model.paths.remove(&NODE2.into()).unwrap();
        model.paths.insert(NODE1.into(), path);
        model.links[0].addresses = vec![NODE2.into()];
        for (endpoint, address) in model.endpoints.values_mut().zip([REMOTE_POD, [10, 244, 2, 3].into()]) {
            endpoint.pod_addresses =
                vec![PodAddress { address: address.into(), gateway: [10, 244, 2, 1].into() }];
        }
        let link_address = Mac { bytes: UPLINK_MAC };
        fixture.namespace.ip(&format!(
            "address del 10.200.0.1/24 dev up0\n\
             address add 10.200.0.2/24 dev up0\n\
             neigh add 10.200.0.1 lladdr {link_address:?} dev up0 nud permanent\n\
             route add 10.244.1.0/24 via 10.200.0.1 dev up0\n"
        ));
        fixture.fill();
        fixture
    }

    /// Writes the map entries that follow from the model, as the agent does.
    pub fn fill(&mut self) {
        let tables = |tables| Slice { tables, ..Slice::default() };
        let mut want = desired(&self.model, Scope::All).tables;
        let have = tables(self.loaded.maps.differences(&mut want).unwrap());
        for op in plan(&tables(want), &have, Removals::Allowed) {
            let Op::Table(change) = op else { continue };
            self.loaded.maps.apply(&change).unwrap();
        }
    }

    /// Runs a program on a frame that is on a link, and checks code, bytes and every counter.
    #[track_caller]
    pub fn check(&mut self, what: &str, program: &str, link: u32, frame: &[u8], expect: Expect) {
        self.check_segments(what, program, link, frame, 0, expect);
    }

    /// Like [`Self::check`], for a large segment.
    #[track_caller]
    pub fn check_segments(
        &mut self,
        what: &str,
        program: &str,
        link: u32,
        frame: &[u8],
        segment: u32,
        expect: Expect,
    ) {
        self.events();
        let (before, lost) = (self.counters(), self.lost_events());
        let ran = self.run(program, link, frame, segment);
        let (events, lost) = (self.events(), self.lost_events() - lost);
        let counted: Vec<String> = self
            .counters()
            .into_iter()
            .filter(|(name, count)| before.get(name) != Some(count))
            .map(|(name, count)| {
                assert_eq!(
                    count,
                    before.get(&name).copied().unwrap_or(0) + 1,
                    "{what}: {name} counted more than once"
                );
                name
            })
            .collect();
        let dropped: Vec<_> = events.iter().map(|event| (event.outcome, event.link, event.length)).collect();
        match &expect {
            // A reason has a budget of events.
            Expect::Drop(_) | Expect::Answer(..) if lost == 1 => assert_eq!(dropped, [], "{what}: events"),
            Expect::Drop(reason) | Expect::Answer(reason, _) => {
                let told = [(*reason as u16, link, frame.len() as u32)];
                assert_eq!((&dropped[..], lost), (&told[..], 0), "{what}: events");
            }
            _ => assert_eq!((&dropped[..], lost), (&[][..], 0), "{what}: events"),
        }
        let (code, bytes, count) = match expect {
            Expect::Pass => (UNSPECIFIED, Some(frame.to_vec()), vec![]),
            Expect::Stack(path, bytes) => (UNSPECIFIED, Some(bytes), vec![path.name().to_owned()]),
            Expect::Redirect(path, bytes) => (REDIRECT, Some(bytes), vec![path.name().to_owned()]),
            Expect::Drop(reason) => (SHOT, None, vec![reason.name().to_owned()]),
            Expect::Answer(reason, bytes) => (REDIRECT, Some(bytes), vec![reason.name().to_owned()]),
        };
        assert_eq!(counted, count, "{what}: counters");
        assert_eq!(ran.code, code, "{what}: code");
        if let Some(bytes) = bytes {
            assert_eq!(hex(&ran.frame), hex(&bytes), "{what}: bytes");
        }
    }

    /// Takes the events that the programs have written.
    pub fn events(&mut self) -> Vec<Event> {
        let records = self.records();
        records.iter().map(|record| Event::of_record(record).expect("a record of this version")).collect()
    }

    /// Returns the records that the programs have written since the last call.
    pub fn records(&mut self) -> Vec<Vec<u8>> {
        let map = self.loaded.ebpf.map_mut(EVENTS).unwrap();
        let mut ring = RingBuf::try_from(map).unwrap();
        std::iter::from_fn(|| Some(ring.next()?.to_vec())).collect()
    }

    /// Sets which events somebody wants.
    pub fn listen(&mut self, wanted: &Listening) {
        set_listening(&mut self.loaded.ebpf, wanted);
    }

    /// Returns the number of dropped packets without an event.
    pub fn lost_events(&self) -> u64 {
        let map = self.loaded.ebpf.map(EVENT_BUDGETS).unwrap();
        let budgets: PerCpuArray<_, Budget> = map.try_into().unwrap();
        let of = |reason: &Reason| {
            budgets.get(&(*reason as u32), 0).unwrap().iter().map(|budget| budget.lost).sum::<u64>()
        };
        Reason::ALL.iter().map(of).sum()
    }

    /// Gives every reason its whole budget again. An earlier test may have used these programs.
    pub fn renew_budgets(&mut self) {
        let map = self.loaded.ebpf.map_mut(EVENT_BUDGETS).unwrap();
        let mut budgets: PerCpuArray<_, Budget> = map.try_into().unwrap();
        for reason in Reason::ALL {
            let index = *reason as u32;
            let of_cpus = budgets.get(&index, 0).unwrap();
            let renewed: Vec<_> =
                of_cpus.iter().map(|budget| Budget { since: 0, written: 0, ..*budget }).collect();
            budgets.set(index, PerCpuValues::try_from(renewed).unwrap(), 0).unwrap();
        }
    }

    /// Runs a program on a frame that is on a link.
    pub fn run(&self, program: &str, link: u32, frame: &[u8], segment: u32) -> Ran {
        // Offsets in `struct __sk_buff` (`linux/bpf.h`) of fields that a test run may set. It may
        // not set most others.
        const IFINDEX: usize = 40;
        const GSO_SIZE: usize = 176;
        let mut context = [0; 192];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&link.to_ne_bytes());
        context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&segment.to_ne_bytes());
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let program: &SchedClassifier = self.loaded.ebpf.program(program).unwrap().try_into().unwrap();
        let result = program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        Ran { code: result.return_value, frame: out }
    }

    /// Runs a program on a frame many times. The program must leave the frame unchanged.
    pub fn run_often(&self, program: &str, link: u32, frame: &[u8], times: u32) {
        const IFINDEX: usize = 40;
        let mut context = [0; 192];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&link.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: times,
            ..TestRunOptions::new()
        };
        let program: &SchedClassifier = self.loaded.ebpf.program(program).unwrap().try_into().unwrap();
        program.test_run(options).unwrap();
    }

    /// Sends a frame out of a link of the namespace, with the programs attached as the agent
    /// attaches them, and checks the counters. This is for packets that a test run cannot have:
    /// with a cut IPv4 header or a tunnel key. `None`: the frame passes uncounted.
    #[track_caller]
    pub fn check_on_wire(&mut self, what: &str, link: &str, frame: &[u8], counted: Option<&str>) {
        if !self.is_attached {
            self.attach();
        }
        let before = self.counters();
        // If a program drops the packet on its way out, the kernel returns an error to the sender.
        let sent = frames::send(&self.namespace.ns, link, frame);
        assert!(sent.is_ok() || counted.is_some(), "{what}: {sent:?}");
        // The marker follows the frame. When the marker is counted, the kernel has handled the
        // frame.
        let mut marker = packets::ethernet([2; 6], POD_A_MAC, etherparse::EtherType(0x88b5));
        marker.resize(60, 0);
        frames::send(&self.namespace.ns, "pwa-p", &marker).unwrap();
        let is_seen = |counters: &BTreeMap<String, u64>| {
            let name = Reason::EthertypeUnknown.name();
            counters.get(name) != before.get(name)
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut after = self.counters();
        while !is_seen(&after) || counted.is_some_and(|name| after.get(name) == before.get(name)) {
            assert!(Instant::now() < deadline, "{what}: not counted as {counted:?}; counters {after:?}");
            std::thread::sleep(Duration::from_millis(5));
            after = self.counters();
        }
        for (name, count) in after {
            let more = u64::from(counted == Some(&name)) + u64::from(name == Reason::EthertypeUnknown.name());
            assert_eq!(count, before.get(&name).copied().unwrap_or(0) + more, "{what}: {name}");
        }
    }

    /// Like [`Self::check_on_wire`], for the fragments of one packet that arrive on the uplink.
    #[track_caller]
    pub fn check_fragments(&mut self, what: &str, fragments: &[Vec<u8>; 2], counted: &str) {
        self.check_on_wire(what, "up0-p", &fragments[0], None);
        self.check_on_wire(what, "up0-p", &fragments[1], Some(counted));
    }

    /// Makes the VXLAN device.
    pub fn add_tunnel_device(&self) {
        self.namespace.ip(&format!(
            "link add {VXLAN_DEVICE} type vxlan external dstport {VXLAN_PORT} nolearning\n\
             link set {VXLAN_DEVICE} up\n"
        ));
    }

    /// Attaches every program to its link and makes the VXLAN device.
    pub fn attach(&mut self) {
        self.add_tunnel_device();
        self.loaded.attach_pod("pwa").unwrap();
        self.loaded.attach_overlay(VXLAN_DEVICE).unwrap();
        self.loaded
            .attach_link(self.uplink, "up0", Hooks::Uplink, UplinkAttachment::Clsact, Some(UplinkXdp::Off))
            .unwrap();
        self.is_attached = true;
    }

    /// Runs the XDP program on a frame of the loopback link, which has ifindex 1. For a link of a
    /// veth pair the kernel would require an attached program.
    pub fn run_xdp(&mut self, frame: &[u8]) -> u32 {
        let mut out = vec![0; frame.len() + 256];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let program: &mut Xdp = self.loaded.ebpf.program_mut(UPLINK_XDP).unwrap().try_into().unwrap();
        program.test_run(options).unwrap().return_value
    }

    /// Returns the packets by reason or path, with the names that operators read.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let counters = self.loaded.maps.counters().unwrap();
        let drops = counters.drops.into_iter().map(|(reason, count)| (reason.name(), count));
        let paths = counters.traffic.into_iter().map(|(path, count)| (path.name(), count));
        drops.chain(paths).map(|(name, count)| (name.to_owned(), count.packets)).collect()
    }
}

fn node(name: &str, pod_network: &str, address: Ipv4Addr) -> Node {
    Node {
        name: name.into(),
        uid: None,
        pod_networks: vec![pod_network.parse().unwrap()],
        internal_addresses: vec![address.into()],
        cordoned: false,
        vtep_macs: BTreeMap::new(),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x} ")).collect::<String>() + "\n")
        .collect()
}
