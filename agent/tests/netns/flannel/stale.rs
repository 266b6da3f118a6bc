//! Flannel's announcements change, or are left behind.

use podwire_common::names::maps;
use podwire_common::reason::Path::{TunnelIn, TunnelOut, TunnelOutDevice};
use serde_json::json;
use xtask::lab::reference::{VXLAN, VXLAN6, format_mac};
use xtask::lab::{Lab, traffic};

use super::{Macs, OLD_MACS, PORT, Scene, announce, reach_node};
use crate::check::{Counter, Row, check};
use crate::sockets::wait_until;
use crate::sweep::comes;

const MEBIBYTE: u64 = 1 << 20;
const NEW_MACS: Macs = [[0x6a, 0x0f, 0x33, 0xb2, 0x71, 0x5d], [0x6a, 0x0f, 0x33, 0xb2, 0x71, 0x6d]];

#[test]
fn connection_follows_flannels_devices_to_new_link_addresses() {
    let scene = Scene::new(Lab::builder());
    let streams = [0, 1].map(|family| {
        let (server, address) = scene.far(family);
        traffic::tcp_stream(&scene.pod, server, address, PORT + family as u16).unwrap()
    });
    let go_on = || streams.iter().for_each(|stream| stream.wait_for(4 * MEBIBYTE).unwrap());
    go_on();
    // This is the state after flannel has recreated its devices.
    for (family, (device, ours)) in
        [(VXLAN, "10.244.1.0"), (VXLAN6, "fd00:10:244:1::")].into_iter().enumerate()
    {
        scene
            .flannels()
            .ip(&format!(
                "link set dev {device} address {}\nneighbour replace {ours} lladdr {} dev {device} nud permanent\n",
                format_mac(NEW_MACS[family]),
                format_mac(OLD_MACS[family])
            ))
            .unwrap();
    }
    announce(&scene.lab, [Some(OLD_MACS), Some(NEW_MACS)]).unwrap();
    let vteps = || scene.ours().map_dump(maps::VTEPS).unwrap();
    let lists = NEW_MACS.map(|mac| mac.map(|byte| byte.to_string()).join(","));
    let has_both = |vteps: String| lists.iter().all(|list| vteps.contains(list)).then_some(());
    assert!(wait_until(|| has_both(vteps().to_string())).is_some(), "{}", vteps());
    go_on();
    for (family, stream) in streams.into_iter().enumerate() {
        assert_eq!(stream.finish().unwrap().peer_seen_by_server.ip(), scene.pod(family).1);
    }
    announce(&scene.lab, [None, None]).unwrap();
    let gone = wait_until(|| vteps().as_array().unwrap().is_empty().then_some(()));
    assert!(gone.is_some(), "an entry without an announcement stays: {}", vteps());
}

#[test]
fn an_agent_makes_the_map_that_the_release_before_did_not_have() {
    let scene = Scene::new(Lab::builder());
    scene.ours().kill_agent().unwrap();
    std::fs::remove_file(scene.ours().bpf_dir().join(maps::VTEPS)).unwrap();
    scene.ours().start_agent().unwrap();
    assert_eq!(scene.ours().map_dump(maps::VTEPS).unwrap().as_array().unwrap().len(), 2);
    for family in [0, 1] {
        let (server, address) = scene.far(family);
        traffic::tcp_exchange(&scene.pod, server, address, PORT, MEBIBYTE).unwrap();
    }
}

#[test]
fn our_nodes_with_flannels_annotations_reach_each_other() {
    let lab = Lab::builder().agents(false).build().unwrap();
    announce(&lab, [Some(OLD_MACS), Some(NEW_MACS)]).unwrap();
    for node in lab.nodes() {
        node.start_agent().unwrap();
    }
    let [one, other] = [0, 1].map(|node| lab.node(node).add_pod("pod").unwrap());
    let direct: [[Counter; 4]; 2] = [
        [(0, TunnelOut), (1, TunnelIn), (1, TunnelOut), (0, TunnelIn)],
        [(0, TunnelOutDevice), (1, TunnelIn), (1, TunnelOutDevice), (0, TunnelIn)],
    ];
    for (family, direct) in direct.iter().enumerate() {
        let (pod, far) = ((&*one, one.addresses()[family]), (&*other, other.addresses()[family]));
        let node = (&**lab.node(0), lab.node(0).addresses()[family]);
        check(
            &lab,
            &[
                Row::new("pod to pod", pod, far).takes(direct),
                Row::new("node to pod", node, far).seen_as(lab.node(0).overlay_addresses()[family]),
            ],
        );
        reach_node(&one, pod.1, lab.node(1)).unwrap();
        traffic::udp_segments(&one, &other, far.1, PORT, 1200, 40).unwrap();
    }
}

#[test]
fn what_of_flannels_keeps_nodes_apart_is_said() {
    let lab = Lab::builder().agents(false).build().unwrap();
    announce(&lab, [None, Some(OLD_MACS)]).unwrap();
    let mut list = lab.node_list().unwrap();
    let mut annotate = |values: [&str; 4]| {
        let names = ["backend-data", "backend-v6-data", "public-ip", "public-ipv6"];
        for (name, value) in names.into_iter().zip(values) {
            let name = format!("flannel.alpha.coreos.com/{name}");
            list["items"][1]["metadata"]["annotations"][name] = value.into();
        }
        lab.write_node_list(&list.to_string()).unwrap();
    };
    let data = OLD_MACS.map(|mac| json!({ "VNI": 4096, "VtepMAC": format_mac(mac) }).to_string());
    annotate([&data[0], &data[1], "192.0.2.7", "2001:db8:7::7"]);
    lab.node(0).start_agent().unwrap();
    // The agent may be ready a moment before it reports this.
    let says = |text: &str| comes(lab.node(0), "node-problem", text);
    says("node node2: flannel's VNI there is 4096, and --vni is 1");
    says("node node2: flannel's public-ip there is 192.0.2.7");
    says("node node2: flannel's public-ipv6 there is 2001:db8:7::7");
    annotate(["null", "null", "192.0.2.7", "2001:db8:7::7"]);
    says("backend-data is not understood");
    says("backend-v6-data is not understood");
    let entries = || lab.node(0).map_dump(maps::VTEPS).unwrap().as_array().unwrap().len();
    assert!(wait_until(|| (entries() == 0).then_some(())).is_some());
    assert!(
        !lab.node(0).map_dump(maps::NODES).unwrap().as_array().unwrap().is_empty(),
        "the node is not used"
    );
}
