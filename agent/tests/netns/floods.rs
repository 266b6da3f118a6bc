//! Floods of new flows: the flooding holder is refused, and the flows of all others still begin.

use std::net::{Ipv4Addr, SocketAddr};

use podwire_common::abi::{STATE_ESTABLISHED, TRANSLATION_HOST_PORT};
use podwire_common::names::maps;
use podwire_common::reason::{Drop, Path};
use serde_json::{Value, json};
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Lab, Mode, Node, Ns, Pod, frames};

use crate::packets::{Packet, Transport, tcp, udp};
use crate::service::{drop_invalid, iptables};
use crate::sockets::{connect_from, listen, wait_until};
use crate::v4;

/// Entries of `TRANSLATIONS` on every node.
const TABLE: usize = 1024;
/// More flows than the table has room for.
const FLOOD: u16 = 3000;
const HOST_PORT: u16 = 9088;
const OTHER_HOST_PORT: u16 = 9089;
const PORT: u16 = 8080;
const EVIL: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 66);

#[test]
fn flood_takes_a_share_and_others_begin_new_flows() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        for name in FLOODS {
            let scene = Scene::new(mode);
            scene.flood(name);
            let drops = scene.node().drops().unwrap();
            let drop = |reason: Drop| drops.get(reason.name()).copied().unwrap_or_default();
            assert!(drop(Drop::TranslationShareUsed) > 0, "{mode:?}, {name}: {drops:?}");
            assert_eq!(drop(Drop::TranslationsFull), 0, "{mode:?}, {name}");
            let entries = scene.translations();
            assert!(entries.len() <= TABLE / 2 + 2, "{mode:?}, {name}: {} entries", entries.len());
            scene.others_begin_new_flows(name);
        }
    }
}

#[test]
fn half_open_connections_to_a_host_port_expire() {
    let scene = Scene::new(Mode::Vxlan);
    scene.flood("SYNs of invented senders to a hostPort");
    let half_open = || {
        let of_host_port =
            |entry: &&Value| entry["formatted"]["value"]["kind"] == u64::from(TRANSLATION_HOST_PORT);
        scene.translations().iter().filter(of_host_port).count()
    };
    assert!(half_open() > TABLE / 4, "{}", half_open());
    let state = |entry: &Value| entry["formatted"]["value"]["state"].as_u64().unwrap();
    let established =
        scene.translations().iter().filter(|entry| state(entry) & u64::from(STATE_ESTABLISHED) != 0).count();
    assert_eq!(established, 0, "no sender has completed a handshake");
    // The pod's kernel still answers the half-open connections in the listener's queue, so their
    // entries remain.
    assert!(wait_until(|| (half_open() <= TABLE / 3).then_some(())).is_some(), "{} are left", half_open());
    // The hostPort serves again after the flood.
    let route = Route::translated(SocketAddr::new(scene.node().address(), HOST_PORT), PORT);
    traffic::udp_exchange_on(scene.lab.world(), &scene.hosted, route, 1000).unwrap();
    connect_from(scene.lab.world(), "0.0.0.0:0", route.destination).unwrap();
}

#[test]
fn established_connection_survives_the_flood_of_its_host_port() {
    let scene = Scene::new(Mode::Vxlan);
    let route = Route::translated(SocketAddr::new(scene.node().address(), HOST_PORT + 2), PORT + 1);
    let stream = traffic::tcp_stream_on(scene.lab.world(), &scene.hosted, route).unwrap();
    stream.wait_for(1 << 16).unwrap();
    scene.invented(|source| Packet::new(source, v4(scene.node().address()), tcp(1000, HOST_PORT + 2)));
    assert!(scene.node().drops().unwrap()[Drop::TranslationShareUsed.name()] > 0);
    // Under pressure the agent walks the table every second. Flows that are not established expire
    // after a few seconds of silence, but the established flow stays.
    assert!(wait_until(|| (scene.translations().len() < TABLE / 3).then_some(())).is_some());
    stream.wait_for(1 << 16).unwrap();
    stream.finish().unwrap();
}

/// Flows get slower, but none breaks, although kube-proxy's rule drops packets in conntrack's state
/// INVALID.
#[test]
fn full_table_of_stack_flows_costs_no_connection() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).agent_arguments(&["--max-stack-flows", "256"]).build().unwrap();
        drop_invalid(&lab);
        let node = lab.node(0);
        let [flooder, victim, x, y] = ["flooder", "victim", "x", "y"].map(|name| node.add_pod(name).unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        for (service, backend) in [("10.96.0.11", &victim), ("10.96.0.12", &y)] {
            let to = format!("{}:{PORT}", backend.address());
            for protocol in ["tcp", "udp"] {
                let rule = format!(
                    "-t nat -A PREROUTING -d {service} -p {protocol} --dport 80 -j DNAT --to-destination {to}"
                );
                iptables(node, &rule);
            }
        }
        let service = |last| Ipv4Addr::new(10, 96, 0, last);
        flood_from(&flooder, |port| {
            Packet::new(v4(flooder.address()), service(11), udp(port, 80)).with(|packet| packet.ttl = 64)
        });
        let full = || node.traffic().unwrap()[Path::StackFlowsFull.name()];
        assert!(full() > 0, "{mode:?}: the victim has not used up its share");
        // The victim's flows take the stack, no matter which side begins them. The programs still
        // record other pods' connections by a service.
        for (from, to) in [(&x, &victim), (&victim, &x), (&victim, &far), (&far, &victim), (&x, &y)] {
            traffic::tcp_exchange(from, to, to.address(), PORT + 1, 1 << 20)
                .unwrap_or_else(|error| panic!("{mode:?}: {} to {}: {error:#}", from.name(), to.name()));
        }
        for (last, backend) in [(11, &victim), (12, &y)] {
            let route = Route::translated(SocketAddr::new(service(last).into(), 80), PORT);
            traffic::tcp_exchange_on(&x, backend, route, 1 << 20)
                .unwrap_or_else(|error| panic!("{mode:?}: by the service of {}: {error:#}", backend.name()));
        }
        let marked = |pod: &Pod| {
            let dump = node.map_dump(maps::ENDPOINTS).unwrap();
            let key = format!("{:?}", v4(pod.address()).octets());
            let entries = dump.as_array().unwrap();
            let entry = entries.iter().find(|entry| {
                let bytes = entry["formatted"]["key"]["bytes"].as_array().unwrap();
                format!("{:?}", bytes[12..].iter().map(|byte| byte.as_u64().unwrap()).collect::<Vec<_>>())
                    == key
            });
            entry.unwrap()["formatted"]["value"]["flags"].as_u64().unwrap() & 1 != 0
        };
        assert!(marked(&victim) && !marked(&y), "{mode:?}");
        // This connection begins while the victim is marked. It must go on when the mark is gone.
        let route = Route::translated(SocketAddr::new(service(11).into(), 80), PORT);
        let quiet = traffic::tcp_stream_on(&x, &victim, route).unwrap();
        quiet.wait_for(1 << 16).unwrap();
        node.exec(&["conntrack", "-D", "-p", "udp"]).unwrap();
        age_out_stack_flows(node);
        assert!(wait_until(|| (!marked(&victim)).then_some(())).is_some(), "{mode:?}: still marked");
        quiet.wait_for(1 << 16).unwrap();
        quiet.finish().unwrap();
    }
}

/// Removes the flooder's entries, as the agent does when connection tracking has forgotten their
/// flows.
fn age_out_stack_flows(node: &Node) {
    let dump = node.map_dump(maps::STACK_FLOWS).unwrap();
    let pin = node.bpf_dir().join(maps::STACK_FLOWS);
    for entry in dump.as_array().unwrap() {
        if entry["formatted"]["key"]["protocol"] != 17 {
            continue;
        }
        let key = entry["key"].as_array().unwrap().iter().map(|byte| byte.as_str().unwrap());
        let command = ["bpftool", "map", "delete", "pinned", pin.to_str().unwrap(), "key", "hex"];
        let bytes: Vec<&str> = key.map(|byte| byte.trim_start_matches("0x")).collect();
        node.exec(&[&command[..], &bytes].concat()).unwrap();
    }
}

const FLOODS: [&str; 6] = [
    "SYNs of invented senders to a hostPort",
    "datagrams of invented senders to a hostPort",
    "a pod's datagrams to the world",
    "a pod's SYNs to the world",
    "a pod's echo requests to the world",
    "another node's pod to a hostPort",
];

/// Pods of node 1 (two with hostPorts), one of node 2, and a host of the underlay that is not a
/// node.
struct Scene {
    lab: Lab,
    hosted: Pod,
    other_hosted: Pod,
    pod: Pod,
    flooder: Pod,
    far: Pod,
    evil: Ns,
    _listener: std::net::TcpListener,
}

impl Scene {
    fn new(mode: Mode) -> Self {
        let entries = TABLE.to_string();
        let lab =
            Lab::builder().mode(mode).agent_arguments(&["--max-translations", &entries]).build().unwrap();
        let node = lab.node(0);
        let port = |host: u16, pod: u16, protocol: &str| json!({ "hostPort": host, "containerPort": pod, "protocol": protocol });
        let ports = [
            port(HOST_PORT, PORT, "tcp"),
            port(HOST_PORT, PORT, "udp"),
            port(HOST_PORT + 2, PORT + 1, "tcp"),
        ];
        let hosted = node.add_pod_with("hosted", &json!({ "portMappings": ports })).unwrap();
        let ports = [port(OTHER_HOST_PORT, PORT, "tcp"), port(OTHER_HOST_PORT, PORT, "udp")];
        let other_hosted = node.add_pod_with("other", &json!({ "portMappings": ports })).unwrap();
        let (pod, flooder) = (node.add_pod("pod").unwrap(), node.add_pod("flooder").unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        let evil = lab.add_host("evil", EVIL.into()).unwrap();
        // The listener answers a SYN.
        let listener = listen(&hosted, ("0.0.0.0", PORT));
        Self { lab, hosted, other_hosted, pod, flooder, far, evil, _listener: listener }
    }

    fn node(&self) -> &Node {
        self.lab.node(0)
    }

    fn flood(&self, name: &str) {
        let node = v4(self.node().address());
        let world = v4(self.lab.world_address());
        match name {
            "SYNs of invented senders to a hostPort" => {
                self.invented(|source| Packet::new(source, node, tcp(1000, HOST_PORT)));
            }
            "datagrams of invented senders to a hostPort" => {
                self.invented(|source| Packet::new(source, node, udp(1000, HOST_PORT)));
            }
            "a pod's datagrams to the world" => self.pod_floods(&self.flooder, world, |port| udp(port, 53)),
            "a pod's SYNs to the world" => self.pod_floods(&self.flooder, world, |port| tcp(port, 443)),
            "a pod's echo requests to the world" => {
                self.pod_floods(&self.flooder, world, |identifier| Transport::EchoRequest { identifier });
            }
            "another node's pod to a hostPort" => {
                self.pod_floods(&self.far, node, |port| udp(port, HOST_PORT));
            }
            _ => unreachable!("a flood without packets"),
        }
    }

    /// Sends packets of a host of the underlay, each with a different invented sender.
    fn invented(&self, packet: impl Fn(Ipv4Addr) -> Packet) {
        let macs = (self.node().mac("eth0").unwrap(), self.evil.mac("eth0").unwrap());
        let frames: Vec<Vec<u8>> = (1..=FLOOD)
            .map(|number| {
                let [high, low] = number.to_be_bytes();
                packet(Ipv4Addr::new(198, 18, high, low)).macs(macs.0, macs.1).build()
            })
            .collect();
        send(&self.evil, &frames);
    }

    fn pod_floods(&self, pod: &Pod, destination: Ipv4Addr, transport: impl Fn(u16) -> Transport) {
        flood_from(pod, |port| Packet::new(v4(pod.address()), destination, transport(port)));
    }

    fn translations(&self) -> Vec<Value> {
        let dump = self.node().map_dump(maps::TRANSLATIONS).unwrap();
        dump.as_array().unwrap().clone()
    }

    fn others_begin_new_flows(&self, name: &str) {
        let (lab, node) = (&self.lab, self.node());
        let world = Route::to(lab.world_address(), PORT);
        let host_port = Route::translated(SocketAddr::new(node.address(), OTHER_HOST_PORT), PORT);
        let ways: [(&str, &Ns, &Ns, Route); 3] = [
            ("pod to world", &self.pod, lab.world(), world),
            ("world to hostPort", lab.world(), &self.other_hosted, host_port),
            ("another node's pod to hostPort", &self.far, &self.other_hosted, host_port),
        ];
        for (way, from, to, route) in ways {
            traffic::tcp_exchange_on(from, to, route, 1000)
                .unwrap_or_else(|error| panic!("{name}: {way}, TCP: {error:#}"));
            traffic::udp_exchange_on(from, to, route, 100)
                .unwrap_or_else(|error| panic!("{name}: {way}, UDP: {error:#}"));
        }
        let reply = traffic::ping(&self.pod, lab.world_address(), 56);
        reply.unwrap_or_else(|error| panic!("{name}: echo: {error:#}"));
    }
}

/// Sends raw packets of a pod, each from another port.
fn flood_from(pod: &Pod, packet: impl Fn(u16) -> Packet) {
    let macs = (pod.host_mac(), pod.eth0_mac());
    let frames: Vec<Vec<u8>> =
        (1..=FLOOD).map(|number| packet(10_000 + number).macs(macs.0, macs.1).build()).collect();
    send(pod, &frames);
}

fn send(ns: &Ns, all: &[Vec<u8>]) {
    let all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    for some in all.chunks(100) {
        frames::send_all(ns, "eth0", some).unwrap();
    }
}
