//! ICMP errors about translated flows, in both directions: each end learns about the flow that it
//! knows.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use xtask::lab::traffic;
use xtask::lab::{Lab, Mode};

use super::ask;
use crate::sockets::{udp, wait_until};

const WORLD_NETWORK: &str = "198.51.100.0/24";

#[test]
fn connection_to_the_world_lives_when_its_path_shrinks() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().nodes(1).mode(mode).build().unwrap();
        let pod = lab.node(0).add_pod("client").unwrap();
        let stream = traffic::tcp_stream(&pod, lab.world(), lab.world_address(), 443).unwrap();
        stream.wait_for(1 << 20).unwrap();
        let shrunk = "src 198.51.100.1 proto kernel scope link mtu lock 1280";
        lab.underlay().ip(&format!("route change {WORLD_NETWORK} dev world {shrunk}\n")).unwrap();
        stream.wait_for(4 << 20).unwrap();
        stream.finish().unwrap();
        let route = pod.exec(&["ip", "route", "get", &lab.world_address().to_string()]).unwrap();
        assert!(route.contains("mtu 1280"), "the pod has not learnt the MTU: {route}");
    }
}

#[test]
fn the_world_is_told_when_an_answer_does_not_fit_the_pod() {
    // The pod's MTU leaves room for the tunnel's headers: what fits the uplink may not fit the pod.
    let lab = Lab::builder().nodes(1).mode(Mode::Vxlan).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    let server = udp(lab.world(), "0.0.0.0:53");
    let client = udp(&pod, "0.0.0.0:40000");
    let peer = ask(&client, &server, SocketAddr::new(lab.world_address(), 53), "question");
    // 1472 bytes and the headers fill the uplink's 1500. The kernel forbids fragments as long as it
    // knows no smaller MTU.
    server.send_to(&[7; 1472], peer).unwrap();
    let route = wait_until(|| {
        let route = lab.world().exec(&["ip", "route", "get", &node.address().to_string()]).unwrap();
        route.contains("mtu 1450").then_some(route)
    });
    assert!(route.is_some(), "the world never learned the pod's MTU");
    server.send_to(&[8; 1472], peer).unwrap();
    let mut buffer = [0; 2000];
    let (length, _) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((length, buffer[0]), (1472, 8), "the next one comes, in fragments");
}

#[test]
fn a_closed_port_of_the_world_is_told_to_the_pod() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let pod = lab.node(0).add_pod("client").unwrap();
    let client = udp(&pod, "0.0.0.0:40000");
    client.connect((lab.world_address(), 9)).unwrap();
    client.send(b"anybody?").unwrap();
    let error = client.recv(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
}

#[test]
fn a_closed_port_of_a_pod_is_told_to_the_world() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    let server = udp(lab.world(), "0.0.0.0:53");
    let client = udp(&pod, "0.0.0.0:40000");
    let peer = ask(&client, &server, SocketAddr::new(lab.world_address(), 53), "question");
    drop(client);
    server.connect(peer).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    // A process that another test starts may hold the client's socket for a moment.
    let refused = wait_until(|| {
        server.send(b"answer").and_then(|_| server.recv(&mut [0; 10])).err().filter(is_refusal)
    });
    assert!(refused.is_some(), "no error about the closed port came");
}

#[test]
fn traceroute_from_a_pod_shows_the_hops() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().nodes(1).mode(mode).build().unwrap();
        let node = lab.node(0);
        let pod = node.add_pod("client").unwrap();
        let world = lab.world_address().to_string();
        for how in [&["-I"][..], &[]] {
            let command =
                [&["busybox", "traceroute", "-n", "-q", "1", "-w", "5", "-m", "5"], how, &[world.as_str()]];
            let shown = pod.exec(&command.concat()).unwrap();
            let hops: Vec<_> =
                shown.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap()).collect();
            assert_eq!(
                hops,
                [node.address().to_string().as_str(), "10.200.0.254", &world],
                "{mode:?} {how:?}: {shown}"
            );
        }
    }
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}
