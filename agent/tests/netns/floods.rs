//! Floods of new flows: the flooding holder is refused, and the flows of all others still begin.
//! Each family's flows have a holder of their own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use podwire_common::abi::{STATE_ESTABLISHED, TRANSLATION_HOST_PORT};
use podwire_common::names::maps;
use podwire_common::reason::{Drop, Path};
use serde_json::{Value, json};
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Lab, Mode, Node, Ns, Pod, frames};

use crate::icmp_errors::frame;
use crate::packets::{Transport, tcp, udp};
use crate::service::{drop_invalid, service};
use crate::sockets::{connect_from, listen, wait_until};
use crate::{ANY, FAMILIES, Place as _, ip_tables, keep_families_apart, world_end};

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
            for family in FAMILIES {
                let what = format!("{mode:?}, {name}, {}", scene.node().addresses()[family]);
                let refused = scene.drops(Drop::TranslationShareUsed);
                scene.flood(name, family);
                assert!(scene.drops(Drop::TranslationShareUsed) > refused, "{what}");
                assert_eq!(scene.drops(Drop::TranslationsFull), 0, "{what}");
                // Before this flood, the other family's may have left half of the table.
                let entries = scene.translations(family).len();
                assert!((TABLE / 8..=TABLE / 2 + 2).contains(&entries), "{what}: {entries} entries");
                scene.others_begin_new_flows(&what);
            }
        }
    }
}

#[test]
fn half_open_connections_to_a_host_port_expire() {
    let scene = Scene::new(Mode::Vxlan);
    let half_open = |family| {
        let of_host_port =
            |entry: &&Value| entry["formatted"]["value"]["kind"] == u64::from(TRANSLATION_HOST_PORT);
        scene.translations(family).iter().filter(of_host_port).count()
    };
    let state = |entry: &Value| entry["formatted"]["value"]["state"].as_u64().unwrap();
    // The first flood leaves half of the table to the second one, which gets half of that.
    for (family, least) in [(0, TABLE / 4), (1, TABLE / 8)] {
        scene.flood("SYNs of invented senders to a hostPort", family);
        assert!(half_open(family) > least, "{family}: {}", half_open(family));
        let is_established = |entry: &&Value| state(entry) & u64::from(STATE_ESTABLISHED) != 0;
        let established = scene.translations(family).iter().filter(is_established).count();
        assert_eq!(established, 0, "no sender has completed a handshake");
    }
    let left = || FAMILIES.map(half_open).iter().sum::<usize>();
    assert!(wait_until(|| (left() == 0).then_some(())).is_some(), "{} are left", left());
    // The hostPort serves again after the flood.
    for node in scene.node().addresses() {
        let route = Route::translated(SocketAddr::new(node, HOST_PORT), PORT);
        traffic::udp_exchange_on(scene.lab.world(), &scene.hosted, route, 1000).unwrap();
        let any = ANY[usize::from(node.is_ipv6())];
        connect_from(scene.lab.world(), (any, 0), route.destination).unwrap();
    }
}

#[test]
fn established_connection_survives_the_flood_of_its_host_port() {
    let scene = Scene::new(Mode::Vxlan);
    keep_families_apart(&[&scene.hosted]);
    let streams = scene.node().addresses().into_iter().map(|node| {
        let route = Route::translated(SocketAddr::new(node, HOST_PORT + 2), PORT + 1);
        traffic::tcp_stream_on(scene.lab.world(), &scene.hosted, route).unwrap()
    });
    let streams: Vec<_> = streams.collect();
    let go_on = || streams.iter().for_each(|stream| stream.wait_for(1 << 16).unwrap());
    go_on();
    for family in FAMILIES {
        let refused = scene.drops(Drop::TranslationShareUsed);
        scene.invented(family, &tcp(1000, HOST_PORT + 2));
        assert!(scene.drops(Drop::TranslationShareUsed) > refused, "{family}");
    }
    // Under pressure the agent walks the table every second. Flows that are not established expire
    // after a few seconds of silence, but the established flows stay.
    let left = || FAMILIES.map(|family| scene.translations(family).len()).iter().sum::<usize>();
    let only_the_streams = || (left() <= 2 * streams.len()).then_some(());
    assert!(wait_until(only_the_streams).is_some(), "{} entries are left", left());
    go_on();
    streams.into_iter().for_each(|stream| assert!(stream.finish().unwrap().bytes > 0));
}

/// Flows get slower, but none breaks, although kube-proxy's rule drops packets in conntrack's state
/// INVALID.
#[test]
fn full_table_of_stack_flows_costs_no_connection() {
    const SERVICES: [[IpAddr; 2]; 2] = [service(11), service(12)];
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).agent_arguments(&["--max-stack-flows", "256"]).build().unwrap();
        drop_invalid(&lab);
        let node = lab.node(0);
        let [flooder, victim, x, y] = ["flooder", "victim", "x", "y"].map(|name| node.add_pod(name).unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        keep_families_apart(&[&victim]);
        for family in FAMILIES {
            for (service, backend) in SERVICES.iter().zip([&victim, &y]) {
                let (service, to) = (service[family], SocketAddr::new(backend.end(family).1, PORT));
                for protocol in ["tcp", "udp"] {
                    let rule = format!("-d {service} -p {protocol} --dport 80 -j DNAT --to-destination {to}");
                    ip_tables(node, family, &format!("-t nat -A PREROUTING {rule}"));
                }
            }
        }
        let full = || node.traffic().unwrap().get(Path::StackFlowsFull.name()).copied().unwrap_or_default();
        for family in FAMILIES {
            let before = full();
            flood_from(&flooder, (flooder.end(family).1, SERVICES[0][family]), |port| udp(port, 80));
            assert!(full() > before, "{mode:?}, {family}: the victim has not used up its share");
        }
        for family in FAMILIES {
            // The victim's flows take the stack, no matter which side begins them. The programs still
            // record other pods' connections by a service.
            for (from, to) in [(&x, &victim), (&victim, &x), (&victim, &far), (&far, &victim), (&x, &y)] {
                let address = to.end(family).1;
                traffic::tcp_exchange(from, to, address, PORT + 1, 1 << 20)
                    .unwrap_or_else(|error| panic!("{mode:?}: {} to {address}: {error:#}", from.name()));
            }
            for (service, backend) in SERVICES.iter().zip([&victim, &y]) {
                let route = Route::translated(SocketAddr::new(service[family], 80), PORT);
                traffic::tcp_exchange_on(&x, backend, route, 1 << 20)
                    .unwrap_or_else(|error| panic!("{mode:?}: by {}: {error:#}", service[family]));
            }
            assert!(marked(node, victim.end(family).1) && !marked(node, y.end(family).1), "{mode:?}");
        }
        // These connections begin while the victim is marked. They must go on when the mark is gone.
        let quiet = SERVICES[0].map(|service| {
            let route = Route::translated(SocketAddr::new(service, 80), PORT);
            traffic::tcp_stream_on(&x, &victim, route).unwrap()
        });
        let go_on = || quiet.iter().for_each(|stream| stream.wait_for(1 << 16).unwrap());
        go_on();
        for family in ["ipv4", "ipv6"] {
            node.exec(&["conntrack", "-D", "-f", family, "-p", "udp"]).unwrap();
        }
        age_out_stack_flows(node);
        for address in victim.addresses() {
            let is_free = || (!marked(node, *address)).then_some(());
            assert!(wait_until(is_free).is_some(), "{mode:?}: {address} is still marked");
        }
        go_on();
        quiet.into_iter().for_each(|stream| assert!(stream.finish().unwrap().bytes > 0));
    }
}

/// Returns whether all flows of a pod's address take the stack.
fn marked(node: &Node, address: IpAddr) -> bool {
    let dump = node.map_dump(maps::ENDPOINTS).unwrap();
    let entries = dump.as_array().unwrap();
    let entry = entries.iter().find(|entry| addressed(&entry["formatted"]["key"]) == address);
    entry.unwrap()["formatted"]["value"]["flags"].as_u64().unwrap() & 1 != 0
}

/// Returns the address in a dumped map.
fn addressed(dumped: &Value) -> IpAddr {
    let bytes = dumped["bytes"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8);
    let octets: [u8; 16] = bytes.collect::<Vec<_>>().try_into().unwrap();
    Ipv6Addr::from(octets).to_canonical()
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
    _listener: TcpListener,
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
        // Otherwise the pod answers the half-open connections in its listeners' queues again and
        // again, for up to a minute.
        hosted.sysctl("net/ipv4/tcp_synack_retries", "0").unwrap();
        let ports = [port(OTHER_HOST_PORT, PORT, "tcp"), port(OTHER_HOST_PORT, PORT, "udp")];
        let other_hosted = node.add_pod_with("other", &json!({ "portMappings": ports })).unwrap();
        let (pod, flooder) = (node.add_pod("pod").unwrap(), node.add_pod("flooder").unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        let evil = lab.add_host("evil", EVIL.into()).unwrap();
        // The listener answers the SYNs of both families.
        let listener = listen(&hosted, (Ipv6Addr::UNSPECIFIED, PORT));
        Self { lab, hosted, other_hosted, pod, flooder, far, evil, _listener: listener }
    }

    fn node(&self) -> &Node {
        self.lab.node(0)
    }

    fn flood(&self, name: &str, family: usize) {
        let (node, world) = (self.node().end(family).1, world_end(&self.lab, family).1);
        let from_pod = |pod: &Pod, to, transport: fn(u16) -> Transport| {
            flood_from(pod, (pod.end(family).1, to), transport);
        };
        match name {
            "SYNs of invented senders to a hostPort" => self.invented(family, &tcp(1000, HOST_PORT)),
            "datagrams of invented senders to a hostPort" => self.invented(family, &udp(1000, HOST_PORT)),
            "a pod's datagrams to the world" => from_pod(&self.flooder, world, |port| udp(port, 53)),
            "a pod's SYNs to the world" => from_pod(&self.flooder, world, |port| tcp(port, 443)),
            "a pod's echo requests to the world" => {
                from_pod(&self.flooder, world, |identifier| Transport::EchoRequest { identifier });
            }
            "another node's pod to a hostPort" => from_pod(&self.far, node, |port| udp(port, HOST_PORT)),
            _ => unreachable!("a flood without packets"),
        }
    }

    /// Sends packets of a host of the underlay to the node, each with a different invented sender.
    fn invented(&self, family: usize, transport: &Transport) {
        let macs = [self.node().mac("eth0").unwrap(), self.evil.mac("eth0").unwrap()];
        let node = self.node().end(family).1;
        let sender = |number: u16| match (family, number.to_be_bytes()) {
            (0, [high, low]) => IpAddr::from([198, 18, high, low]),
            _ => Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, number).into(),
        };
        let frames: Vec<_> =
            (1..=FLOOD).map(|number| frame(macs, (sender(number), node), transport, None)).collect();
        send(&self.evil, &frames);
    }

    fn drops(&self, reason: Drop) -> u64 {
        self.node().drops().unwrap().get(reason.name()).copied().unwrap_or_default()
    }

    /// Returns the entries of a family.
    fn translations(&self, family: usize) -> Vec<Value> {
        let dump = self.node().map_dump(maps::TRANSLATIONS).unwrap();
        let is_of_family =
            |entry: &&Value| addressed(&entry["formatted"]["key"]["source"]).is_ipv6() == (family == 1);
        dump.as_array().unwrap().iter().filter(is_of_family).cloned().collect()
    }

    /// Begins flows of both families.
    fn others_begin_new_flows(&self, what: &str) {
        let (lab, node) = (&self.lab, self.node());
        for family in FAMILIES {
            let world = world_end(lab, family).1;
            let to_world = Route::to(world, PORT);
            let host_port = Route::translated(SocketAddr::new(node.end(family).1, OTHER_HOST_PORT), PORT);
            let ways: [(&Ns, &Ns, Route); 3] = [
                (&self.pod, lab.world(), to_world),
                (lab.world(), &self.other_hosted, host_port),
                (&self.far, &self.other_hosted, host_port),
            ];
            for (from, to, route) in ways {
                let way = format!("{what}: {} to {}", from.name(), route.destination);
                traffic::tcp_exchange_on(from, to, route, 1000)
                    .unwrap_or_else(|error| panic!("{way}, TCP: {error:#}"));
                traffic::udp_exchange_on(from, to, route, 100)
                    .unwrap_or_else(|error| panic!("{way}, UDP: {error:#}"));
            }
            let reply = traffic::ping(&self.pod, world, 56);
            reply.unwrap_or_else(|error| panic!("{what}: echo to {world}: {error:#}"));
        }
    }
}

/// Sends raw packets of a pod from one address to another, each from another port.
fn flood_from(pod: &Pod, ends: (IpAddr, IpAddr), transport: impl Fn(u16) -> Transport) {
    let macs = [pod.host_mac(), pod.eth0_mac()];
    let frames: Vec<_> =
        (1..=FLOOD).map(|number| frame(macs, ends, &transport(10_000 + number), None)).collect();
    send(pod, &frames);
}

fn send(ns: &Ns, all: &[Vec<u8>]) {
    let all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    for some in all.chunks(100) {
        frames::send_all(ns, "eth0", some).unwrap();
    }
}
