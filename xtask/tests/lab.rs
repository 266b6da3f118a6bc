//! Tests of the lab without agents: what it makes, what its traffic reports, and that nothing is
//! left behind.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use xtask::lab::frames::{self, Capture};
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Builder, Families, Lab, Mode, connect};

/// Returns a builder without agents: these tests concern only the lab under the agents.
fn ground() -> Builder {
    Lab::builder().agents(false)
}

fn namespaces_of(name: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|namespace| namespace.starts_with(name)).collect()
}

#[test]
fn nodes_reach_each_other_and_the_world_without_translation() {
    for router in [false, true] {
        let lab = ground().router(router).build().unwrap();
        let (one, two) = (lab.node(0), lab.node(1));
        for (to, address) in [(&**two, two.address()), (lab.world(), lab.world_address())] {
            let exchange = traffic::tcp_exchange(one, to, address, 8080, 3 << 20).unwrap();
            assert!(!exchange.source_translated(), "{exchange:?}");
            assert_eq!(exchange.peer_seen_by_server.ip(), one.address());
            assert_eq!(exchange.bytes, 3 << 20);
            let exchange = traffic::udp_exchange(one, to, address, 8080, 65507).unwrap();
            assert_eq!(exchange.peer_seen_by_server.ip(), one.address());
            traffic::ping(one, address, 56).unwrap();
        }
        traffic::udp_segments(one, two, two.address(), 8080, 1200, 40).unwrap();
    }
}

#[test]
fn a_translated_destination_is_answered_under_its_own_address() {
    let lab = ground().build().unwrap();
    let (one, two) = (lab.node(0), lab.node(1));
    one.exec(&[
        "iptables",
        "-t",
        "nat",
        "-A",
        "OUTPUT",
        "-p",
        "tcp",
        "-d",
        "10.96.0.1",
        "--dport",
        "443",
        "-j",
        "DNAT",
        "--to-destination",
        &format!("{}:6443", two.address()),
    ])
    .unwrap();
    let route = Route::translated("10.96.0.1:443".parse().unwrap(), 6443);
    let exchange = traffic::tcp_exchange_on(one, two, route, 1000).unwrap();
    assert_eq!(exchange.peer_seen_by_client, route.destination);
}

#[test]
fn an_address_that_nobody_has_is_an_error_and_no_hang() {
    let lab = ground().build().unwrap();
    let nobody = "10.200.0.99".parse().unwrap();
    let error = traffic::tcp_exchange(lab.node(0), lab.node(1), nobody, 8080, 1).unwrap_err();
    assert!(format!("{error:#}").contains("to 10.200.0.99:8080"), "{error:#}");
    traffic::ping(lab.node(0), nobody, 56).unwrap_err();
}

#[test]
fn a_stream_lives_on_while_the_router_shrinks_the_path() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = ground().mode(mode).router(true).build().unwrap();
        let (one, two) = (lab.node(0), lab.node(1));
        let stream = traffic::tcp_stream(one, two, two.address(), 8080).unwrap();
        stream.wait_for(1 << 20).unwrap();
        lab.set_path_mtu(1, 1300).unwrap();
        stream.wait_for(8 << 20).unwrap();
        stream.finish().unwrap();
        let error = traffic::ping_unfragmented(two, one.address(), 1400).err();
        assert!(error.is_none(), "only the path to node2 has shrunk: {error:?}");
        let error = traffic::ping_unfragmented(one, two.address(), 1400).unwrap_err();
        assert!(error.to_string().contains("1300"), "{error}");
    }
}

#[test]
fn a_frame_arrives_as_it_was_sent() {
    let lab = ground().families(Families::V4).build().unwrap();
    let (left, right) = (lab.add_namespace("left").unwrap(), lab.add_namespace("right").unwrap());
    connect(&left, "a", &right, "b").unwrap();
    // The local experimental EtherType of IEEE 802.
    let frame = [&right.mac("b").unwrap()[..], &left.mac("a").unwrap(), &[0x88, 0xb5], &[7; 46]].concat();
    let capture = Capture::start(&right, "b").unwrap();
    frames::send(&left, "a", &frame).unwrap();
    assert_eq!(capture.finish().unwrap(), [frame]);
}

#[test]
fn a_stranger_on_the_bridge_reaches_the_nodes() {
    let lab = ground().build().unwrap();
    let stranger = lab.add_host("stranger", "10.200.0.66".parse().unwrap()).unwrap();
    traffic::ping(&stranger, lab.node(1).address(), 56).unwrap();
}

#[test]
fn address_of_docker0_is_lent_where_it_came_first() {
    let lab = ground().docker(true).build().unwrap();
    let (node, pod) = (lab.node(0), lab.add_namespace("pod").unwrap());
    connect(node, "veth", &pod, "eth0").unwrap();
    node.ip("route add 10.244.1.2 dev veth scope link").unwrap();
    pod.ip("address add 10.244.1.2/32 dev eth0\nroute add default dev eth0 scope link").unwrap();
    let exchange = traffic::tcp_exchange(node, &pod, "10.244.1.2".parse().unwrap(), 8080, 1000).unwrap();
    assert_eq!(exchange.peer_seen_by_server.ip().to_string(), "172.17.0.1");
}

#[test]
fn nothing_is_left_of_a_lab_whose_test_panics() {
    let mut name = String::new();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let lab = ground().build().unwrap();
        name = lab.name().to_owned();
        assert_eq!(namespaces_of(&name).len(), 4);
        // Leave a process in the namespace, as an agent does.
        lab.node(0).exec(&["sh", "-c", "sleep 600 >/dev/null 2>&1 &"]).unwrap();
        panic!("the test fails");
    }));
    assert!(outcome.is_err());
    assert_eq!(namespaces_of(&name), Vec::<String>::new());
    assert!(!Path::new("/run").join(&name).exists());
    assert!(!Path::new("/sys/fs/bpf").join(&name).exists());
}

#[test]
fn a_kept_lab_is_there_until_it_is_removed_by_name() {
    let name = format!("pwkept{}", std::process::id());
    ground().name(&name).build().unwrap().keep();
    assert_eq!(namespaces_of(&name).len(), 4);
    let again = ground().name(&name).build().unwrap_err();
    assert!(again.to_string().contains("there already"), "{again}");
    assert!(xtask::lab::remove(&name).unwrap());
    assert_eq!(namespaces_of(&name), Vec::<String>::new());
    assert!(!xtask::lab::remove(&name).unwrap());
}
