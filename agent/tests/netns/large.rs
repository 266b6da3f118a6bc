//! Much at once, with and without the offloads that make it cheap.

use podwire_common::reason::Path::{TunnelIn, TunnelOut};
use xtask::lab::{Lab, Mode, Ns, traffic};

use crate::check::{Counted, Row, check};

const GIBIBYTE: u64 = 1 << 30;
/// `ethtool -K` settings, every one from everything on.
const OFFLOADS: [&str; 5] =
    ["", "gro off", "tso off gso off", "tso off gso off gro off", "tx off rx off tso off gso off gro off"];

#[test]
fn a_gibibyte_crosses_the_tunnel_unchanged() {
    let lab = Lab::builder().build().unwrap();
    let client = lab.node(0).add_pod("client").unwrap();
    let server = lab.node(1).add_pod("server").unwrap();
    let before = Counted::quiet(&lab);
    let rounds = if crate::soak() { 20 } else { 1 };
    for _ in 0..rounds {
        // Every byte is compared on arrival.
        let exchange = traffic::tcp_exchange(&client, &server, server.address(), 8080, GIBIBYTE).unwrap();
        assert_eq!(exchange.bytes, GIBIBYTE);
        assert_eq!(exchange.peer_seen_by_server, exchange.client);
    }
    let grown = Counted::quiet(&lab).since(&before);
    grown.expect(&[(0, TunnelOut), (1, TunnelIn)], &[]).unwrap();
    // Segments of 1410 bytes would be many more packets than this: the stream keeps its large ones on the way.
    let whole = GIBIBYTE / 1410 / 4 * rounds;
    assert!(grown.packets((0, TunnelOut)) < whole && grown.packets((1, TunnelIn)) < whole, "{grown}");
}

#[test]
fn every_path_works_with_every_offload_setting_in_vxlan_mode() {
    offloads(Mode::Vxlan);
}

#[test]
fn every_path_works_with_every_offload_setting_in_direct_mode() {
    offloads(Mode::Direct);
}

fn offloads(mode: Mode) {
    let lab = Lab::builder().mode(mode).build().unwrap();
    let [client, near] = ["client", "near"].map(|name| lab.node(0).add_pod(name).unwrap());
    let far = lab.node(1).add_pod("far").unwrap();
    let mut links: Vec<(&Ns, &str)> = vec![(lab.underlay(), "node1"), (lab.underlay(), "node2")];
    links.extend(lab.nodes().iter().map(|node| (&**node, node.uplink())));
    for (node, pod) in [(0, &client), (0, &near), (1, &far)] {
        links.extend([(&**pod, "eth0"), (&**lab.node(node), pod.host_interface())]);
    }
    for settings in OFFLOADS {
        for (ns, link) in links.iter().filter(|_| !settings.is_empty()) {
            let mut command = vec!["ethtool", "-K", link];
            command.extend("tx on rx on tso on gso on gro on".split(' '));
            ns.exec(&command).unwrap();
            command.truncate(3);
            command.extend(settings.split(' '));
            ns.exec(&command).unwrap();
        }
        let name = |what: &str| format!("{what} with {settings:?}");
        let (near_row, far_row, world_row) = (name("near pod"), name("far pod"), name("world"));
        let from = (&*client, client.address());
        check(
            &lab,
            &[
                Row::new(&near_row, from, (&near, near.address())),
                Row::new(&far_row, from, (&far, far.address())),
                Row::new(&world_row, from, (lab.world(), lab.world_address())).seen_as(lab.node(0).address()),
            ],
        );
        for (server, address) in [(&near, near.address()), (&far, far.address())] {
            traffic::udp_segments(&client, server, address, 8080, 1200, 40)
                .unwrap_or_else(|error| panic!("UDP segments to {address} with {settings:?}: {error:#}"));
        }
    }
}
