//! ICMP errors about translated flows, in both directions: each end learns about the flow that it
//! knows.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use xtask::lab::traffic;
use xtask::lab::{Lab, Mode, Pod};

use super::ask;
use crate::icmp_errors::path_mtu;
use crate::sockets::{UdpSocket, udp, unspecified, wait_until};
use crate::{FAMILIES, world_end};

/// Routes of the underlay to the world, of each family, with a smaller MTU.
pub(super) const SHRUNK: &str = "route change 198.51.100.0/24 dev world src 198.51.100.1 proto kernel scope link mtu lock 1280\n\
    route replace 2001:db8::/64 dev world proto kernel metric 256 mtu lock 1280\n";

#[test]
fn connection_to_the_world_lives_when_its_path_shrinks() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().nodes(1).mode(mode).build().unwrap();
        let pod = lab.node(0).add_pod("client").unwrap();
        let streams = lab.world_addresses().into_iter().zip(443..);
        let streams = streams.map(|(to, port)| traffic::tcp_stream(&pod, lab.world(), to, port).unwrap());
        let streams: Vec<_> = streams.collect();
        streams.iter().for_each(|stream| stream.wait_for(1 << 20).unwrap());
        lab.underlay().ip(SHRUNK).unwrap();
        for stream in streams {
            stream.wait_for(4 << 20).unwrap();
            stream.finish().unwrap();
        }
        for address in lab.world_addresses() {
            assert_eq!(path_mtu(&pod, address), Some(1280), "{mode:?}: {address}");
        }
    }
}

#[test]
fn the_world_is_told_when_an_answer_does_not_fit_the_pod() {
    // The pod's MTU leaves room for the tunnel's headers: what fits the uplink may not fit the pod.
    let lab = Lab::builder().nodes(1).mode(Mode::Vxlan).build().unwrap();
    let pod = lab.node(0).add_pod("client").unwrap();
    // With the headers, these bytes fill the uplink's 1500. The kernel forbids fragments as long as
    // it knows no smaller MTU.
    for (family, size) in [1472, 1452].into_iter().enumerate() {
        let Flow { client, server, peer } = Flow::new(&lab, &pod, family);
        server.send_to(&vec![7; size], peer).unwrap();
        let told = wait_until(|| path_mtu(lab.world(), peer.ip()));
        assert_eq!(told, Some(1450), "{peer}");
        server.send_to(&vec![8; size], peer).unwrap();
        let mut buffer = [0; 2000];
        let (length, _) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((length, buffer[0]), (size, 8), "the next one comes, in fragments");
    }
}

#[test]
fn a_closed_port_of_the_world_is_told_to_the_pod() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let pod = lab.node(0).add_pod("client").unwrap();
    for address in lab.world_addresses() {
        let client = udp(&pod, (unspecified(address), 40000));
        client.connect((address, 9)).unwrap();
        client.send(b"anybody?").unwrap();
        let error = client.recv(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{address}: {error}");
    }
}

#[test]
fn a_closed_port_of_a_pod_is_told_to_the_world() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let pod = lab.node(0).add_pod("client").unwrap();
    for family in FAMILIES {
        let Flow { client, server, peer } = Flow::new(&lab, &pod, family);
        drop(client);
        server.connect(peer).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        // A process that another test starts may hold the client's socket for a moment.
        let refused = wait_until(|| {
            server.send(b"answer").and_then(|_| server.recv(&mut [0; 10])).err().filter(is_refusal)
        });
        assert!(refused.is_some(), "no error about the closed port of {peer} came");
    }
}

/// A UDP flow from a pod to the world.
struct Flow {
    client: UdpSocket,
    server: UdpSocket,
    /// The client as the server sees it.
    peer: SocketAddr,
}

impl Flow {
    /// Begins a flow of a family with a question and its answer.
    fn new(lab: &Lab, pod: &Pod, family: usize) -> Self {
        let (world, address) = world_end(lab, family);
        let server = udp(world, (unspecified(address), 53));
        let client = udp(pod, (unspecified(address), 40000));
        let peer = ask(&client, &server, SocketAddr::new(address, 53), "question");
        Self { client, server, peer }
    }
}

#[test]
fn traceroute_from_a_pod_shows_the_hops() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().nodes(1).mode(mode).build().unwrap();
        let node = lab.node(0);
        let pod = node.add_pod("client").unwrap();
        let router = ["10.200.0.254", "fd00:10:200::254"];
        for (family, tool) in ["traceroute", "traceroute6"].into_iter().enumerate() {
            let world = lab.world_addresses()[family].to_string();
            for how in [&["-I"][..], &[]] {
                let command =
                    [&["busybox", tool, "-n", "-q", "1", "-w", "5", "-m", "5"], how, &[world.as_str()]];
                let shown = pod.exec(&command.concat()).unwrap();
                let hops: Vec<_> =
                    shown.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap()).collect();
                let own = node.addresses()[family].to_string();
                assert_eq!(hops, [own.as_str(), router[family], &world], "{mode:?} {how:?}: {shown}");
            }
        }
    }
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}
