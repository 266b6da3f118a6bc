//! Flannel's announcements change, or are left behind.

use podwire_common::names::maps;
use podwire_common::reason::Path::{TunnelIn, TunnelOut};
use xtask::lab::reference::VXLAN;
use xtask::lab::{Lab, traffic};

use super::{OLD_MAC, PORT, Scene, announce, reach_node};
use crate::check::{Row, check};
use crate::sockets::wait_until;
use crate::sweep::comes;

const MEBIBYTE: u64 = 1 << 20;
const NEW_MAC: [u8; 6] = [0x6a, 0x0f, 0x33, 0xb2, 0x71, 0x5d];

#[test]
fn connection_follows_flannels_device_to_a_new_link_address() {
    let scene = Scene::new(Lab::builder());
    let stream = traffic::tcp_stream(&scene.pod, &scene.far, scene.far.address, PORT).unwrap();
    stream.wait_for(4 * MEBIBYTE).unwrap();
    // This is the state after flannel has recreated its device.
    scene
        .flannels()
        .ip(&format!(
            "link set dev {VXLAN} address {}\nneighbour replace 10.244.1.0 lladdr {} dev {VXLAN} nud permanent\n",
            text(NEW_MAC),
            text(OLD_MAC)
        ))
        .unwrap();
    announce(&scene.lab, [Some(OLD_MAC), Some(NEW_MAC)]).unwrap();
    let vteps = || scene.ours().map_dump(maps::VTEPS).unwrap();
    let list = NEW_MAC.map(|byte| byte.to_string()).join(",");
    assert!(wait_until(|| vteps().to_string().contains(&list).then_some(())).is_some(), "{}", vteps());
    stream.wait_for(4 * MEBIBYTE).unwrap();
    assert_eq!(stream.finish().unwrap().peer_seen_by_server.ip(), scene.pod.address());
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
    assert_eq!(scene.ours().map_dump(maps::VTEPS).unwrap().as_array().unwrap().len(), 1);
    traffic::tcp_exchange(&scene.pod, &scene.far, scene.far.address, PORT, MEBIBYTE).unwrap();
}

#[test]
fn our_nodes_with_flannels_annotations_reach_each_other() {
    let lab = Lab::builder().agents(false).build().unwrap();
    announce(&lab, [Some(OLD_MAC), Some(NEW_MAC)]).unwrap();
    for node in lab.nodes() {
        node.start_agent().unwrap();
    }
    let [one, other] = [0, 1].map(|node| lab.node(node).add_pod("pod").unwrap());
    let (pod, far) = ((&*one, one.address()), (&*other, other.address()));
    let node = |index: usize| (&**lab.node(index), lab.node(index).address());
    let direct: &[_] = &[(0, TunnelOut), (1, TunnelIn), (1, TunnelOut), (0, TunnelIn)];
    check(
        &lab,
        &[
            Row::new("pod to pod", pod, far).takes(direct),
            Row::new("node to pod", node(0), far).seen_as(lab.node(0).gateway()),
        ],
    );
    reach_node(&one, one.address(), lab.node(1)).unwrap();
    traffic::udp_segments(&one, &other, other.address(), PORT, 1200, 40).unwrap();
}

#[test]
fn what_of_flannels_keeps_nodes_apart_is_said() {
    let lab = Lab::builder().agents(false).build().unwrap();
    announce(&lab, [None, Some(OLD_MAC)]).unwrap();
    let mut list = lab.node_list().unwrap();
    let annotations = &mut list["items"][1]["metadata"]["annotations"];
    annotations["flannel.alpha.coreos.com/backend-data"] =
        r#"{"VNI":4096,"VtepMAC":"6a:0f:33:b2:71:5c"}"#.into();
    annotations["flannel.alpha.coreos.com/public-ip"] = "192.0.2.7".into();
    lab.write_node_list(&list.to_string()).unwrap();
    lab.node(0).start_agent().unwrap();
    // The agent may be ready a moment before it reports this.
    let says = |text: &str| comes(lab.node(0), "node-problem", text);
    says("node node2: flannel's VNI there is 4096, and --vni is 1");
    says("node node2: flannel's public-ip there is 192.0.2.7");
    list["items"][1]["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-data"] = "null".into();
    lab.write_node_list(&list.to_string()).unwrap();
    says("backend-data is not understood");
    let entries = || lab.node(0).map_dump(maps::VTEPS).unwrap().as_array().unwrap().len();
    assert!(wait_until(|| (entries() == 0).then_some(())).is_some());
    assert!(
        !lab.node(0).map_dump(maps::NODES).unwrap().as_array().unwrap().is_empty(),
        "the node is not used"
    );
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
