//! Much traffic at once, with and without the offloads that make it cheap.

use podwire_common::reason::Path::{TunnelIn, TunnelInDevice, TunnelOut, TunnelOutDevice};
use serde_json::json;
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Families, Lab, Mode, Ns, is_soak};

use crate::check::{Counted, Row, check};
use crate::icmp_errors::path_mtu;
use crate::sockets::wait_until;

const GIBIBYTE: u64 = 1 << 30;
/// Settings for `ethtool -K`. Each starts from [`USUAL`].
const OFFLOADS: [&str; 8] = [
    "",
    "gro off",
    "tso off gso off",
    "tso off gso off gro off",
    "tx off rx off tso off gso off gro off",
    // The kernel may put packets into lists (`SKB_GSO_FRAGLIST`).
    "tso off gso off gro on rx-gro-list on",
    "gro on rx-udp-gro-forwarding on",
    "tx-udp-segmentation off",
];
/// The default: everything is on but lists and UDP GRO forwarding.
const USUAL: &str =
    "tx on rx on tso on gso on gro on rx-gro-list off rx-udp-gro-forwarding off tx-udp-segmentation on";
const IN_IPV6: &[&str] = &["--tunnel-family", "ipv6"];
const HOST_PORT: u16 = 8090;
const STREAM: u64 = 20 << 20;
/// A datagram of many fragments.
const LARGE: usize = 60_000;
/// The most timeouts that a stream may have. A stream that loses many packets has dozens.
const MOST_TIMEOUTS: u64 = 10;

#[test]
fn a_gibibyte_crosses_the_tunnel_unchanged() {
    let lab = Lab::builder().families(Families::Dual).build().unwrap();
    let client = lab.node(0).add_pod("client").unwrap();
    let server = lab.node(1).add_pod("server").unwrap();
    for address in server.addresses() {
        let before = Counted::quiet(&lab);
        let rounds = if is_soak() { 20 } else { 1 };
        for _ in 0..rounds {
            // Every byte is compared on arrival.
            let exchange = traffic::tcp_exchange(&client, &server, *address, 8080, GIBIBYTE).unwrap();
            assert_eq!(exchange.bytes, GIBIBYTE);
            assert_eq!(exchange.peer_seen_by_server, exchange.client);
        }
        let grown = Counted::quiet(&lab).since(&before);
        grown.expect(&[(0, TunnelOut), (1, TunnelIn)], &[]).unwrap();
        // With segments of 1410 bytes there would be many more packets: the stream keeps its large
        // segments.
        let whole = GIBIBYTE / 1410 / 4 * rounds;
        assert!(grown.packets((0, TunnelOut)) < whole && grown.packets((1, TunnelIn)) < whole, "{grown}");
    }
}

#[test]
fn every_path_works_with_every_offload_setting_in_vxlan_mode() {
    offloads(Mode::Vxlan, false);
}

#[test]
fn a_tunnel_of_ipv6_works_with_every_offload_setting() {
    offloads(Mode::Vxlan, true);
}

#[test]
fn every_path_works_with_every_offload_setting_in_direct_mode() {
    offloads(Mode::Direct, false);
}

#[test]
fn packets_that_arrive_in_a_list_are_left_to_the_vxlan_device() {
    for arguments in [&[][..], IN_IPV6] {
        let lab = Lab::builder().families(Families::Dual).agent_arguments(arguments).build().unwrap();
        let (sending, receiving) = (lab.node(0), lab.node(1));
        let (client, server) = (sending.add_pod("client").unwrap(), receiving.add_pod("server").unwrap());
        let set = |ns: &Ns, link: &str, settings: &str| {
            ns.exec(&[&["ethtool", "-K", link], &settings.split(' ').collect::<Vec<_>>()[..]].concat())
                .unwrap();
        };
        for (ns, link) in [
            (&*client, "eth0"),
            (&**sending, client.host_interface()),
            (&**sending, sending.uplink()),
            (lab.underlay(), "node1"),
            (lab.underlay(), "node2"),
        ] {
            set(ns, link, "tso off gso off gro off");
        }
        set(receiving, receiving.uplink(), "gro on rx-gro-list on");
        for address in server.addresses() {
            let (before, waited) = (Counted::quiet(&lab), timeouts(&[&client, &server]));
            traffic::tcp_exchange(&client, &server, *address, 8080, STREAM).unwrap();
            let grown = Counted::quiet(&lab).since(&before);
            grown.expect(&[(1, TunnelInDevice)], &[]).unwrap();
            let waited = timeouts(&[&client, &server]) - waited;
            assert!(waited < MOST_TIMEOUTS, "{arguments:?}, {address}: {waited} timeouts; {grown}");
        }
    }
}

/// In a tunnel of IPv6, only the path to a pod of another node differs.
fn offloads(mode: Mode, is_ipv6_tunnel: bool) {
    let lab = Lab::builder().mode(mode).families(Families::Dual);
    let lab = if is_ipv6_tunnel { lab.agent_arguments(IN_IPV6) } else { lab }.build().unwrap();
    let mapping =
        json!({"portMappings": [{"hostPort": HOST_PORT, "containerPort": HOST_PORT, "protocol": "tcp"}]});
    let client = lab.node(0).add_pod("client").unwrap();
    let near = lab.node(0).add_pod_with("near", &mapping).unwrap();
    let far = lab.node(1).add_pod("far").unwrap();
    let mut links: Vec<(&Ns, &str)> = vec![(lab.underlay(), "node1"), (lab.underlay(), "node2")];
    links.extend(lab.nodes().iter().map(|node| (&**node, node.uplink())));
    for (node, pod) in [(0, &client), (0, &near), (1, &far)] {
        links.extend([(&**pod, "eth0"), (&**lab.node(node), pod.host_interface())]);
    }
    // In IPv6 no router fragments. So the world loses its first answer that is larger than the pod's
    // link, and learns how large an answer may be.
    let [_, world] = lab.world_addresses()[..] else { panic!("the world has two addresses") };
    if mode == Mode::Vxlan && !is_ipv6_tunnel {
        let has_learnt = || {
            // The first question may be lost, too: while the kernel resolves a neighbour, it keeps only
            // some of the fragments.
            drop(traffic::udp_exchange(&client, lab.world(), world, 8080, LARGE));
            path_mtu(lab.world(), lab.node(0).addresses()[1])
        };
        assert!(wait_until(has_learnt).is_some(), "the world does not learn how large an answer may be");
    }
    for settings in OFFLOADS {
        for (ns, link) in links.iter().filter(|_| !settings.is_empty()) {
            let mut command = vec!["ethtool", "-K", link];
            command.extend(USUAL.split(' '));
            ns.exec(&command).unwrap();
            command.truncate(3);
            command.extend(settings.split(' '));
            ns.exec(&command).unwrap();
        }
        for (family, world) in lab.world_addresses().into_iter().enumerate() {
            let name = |what: &str| format!("{what} with {settings:?}");
            let (near_row, far_row, world_row) = (name("near pod"), name("far pod"), name("world"));
            let [from, near_address, far_address] =
                [&client, &near, &far].map(|pod| (&**pod, pod.addresses()[family]));
            let node = lab.node(0).addresses()[family];
            let mut rows = vec![
                Row::new(&far_row, from, far_address),
                Row::new(&near_row, from, near_address),
                Row::new(&world_row, from, (lab.world(), world)).seen_as(node),
            ];
            let mut streams = vec![
                ("far pod", &*client, &*far, Route::to(far_address.1, 8080)),
                ("near pod", &*client, &*near, Route::to(near_address.1, 8080)),
                ("world", &*client, lab.world(), Route::to(world, 8080)),
                ("hostPort", lab.world(), &*near, Route::to(node, HOST_PORT)),
            ];
            let out = [(0, [TunnelOutDevice, TunnelOut][family])];
            if is_ipv6_tunnel {
                rows = vec![rows[0].takes(&out)];
                streams.truncate(1);
            }
            check(&lab, &rows);
            let ends: [&Ns; 4] = [&client, &near, &far, lab.world()];
            for (what, client, server, route) in streams {
                let before = timeouts(&ends);
                traffic::tcp_exchange_on(client, server, route, STREAM)
                    .unwrap_or_else(|error| panic!("{} at {route:?}: {error:#}", name(what)));
                let waited = timeouts(&ends) - before;
                assert!(waited < MOST_TIMEOUTS, "{} at {route:?}: {waited} timeouts", name(what));
            }
            for (server, address) in [near_address, far_address] {
                traffic::udp_segments(&client, server, address, 8080, 1200, 40).unwrap_or_else(|error| {
                    panic!("UDP segments to {address}, {}: {error:#}", name(server.name()))
                });
            }
        }
    }
}

/// Returns how often TCP of these namespaces has waited for its retransmission timer.
fn timeouts(namespaces: &[&Ns]) -> u64 {
    let of = |ns: &&Ns| {
        let counters = ns.exec(&["cat", "/proc/net/netstat"]).unwrap();
        let mut tcp = counters.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
        let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
        let mut counters = names.split(' ').zip(values.split(' '));
        counters.find(|(name, _)| *name == "TCPTimeouts").unwrap().1.parse::<u64>().unwrap()
    };
    namespaces.iter().map(of).sum()
}
