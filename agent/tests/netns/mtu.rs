//! Paths with a smaller MTU than the sender believes: "fragmentation needed" comes back, and
//! connections go on.

use podwire_common::reason::Path::TooBigAnswered;
use rustix::io::Errno;
use xtask::lab::{Lab, Mode, Ns, Pod, traffic};

use crate::check::{Counted, Row, check};
use crate::service::drop_invalid;
use crate::sockets::{udp, wait_until};

/// The MTU to which the path shrinks.
const SHRUNK: u32 = 1280;
const MEBIBYTE: u64 = 1 << 20;

#[test]
fn a_connection_lives_when_the_path_shrinks_under_its_tunnel() {
    let (lab, client, server) = behind_a_router(Mode::Vxlan);
    let before = Counted::quiet(&lab);
    let (down, up) = shrink_under_streams(&lab, &client, &server);
    assert_eq!((down, up), (client.address(), server.address()));
    let grown = Counted::quiet(&lab).since(&before);
    for node in [0, 1] {
        assert!(grown.packets((node, TooBigAnswered)) > 0, "{grown}");
    }
    assert_eq!(path_mtu(&client, &server), SHRUNK - 50);
    assert_eq!(path_mtu(&server, &client), SHRUNK - 50);
}

#[test]
fn a_connection_lives_when_the_path_shrinks_in_direct_routing() {
    let (lab, client, server) = behind_a_router(Mode::Direct);
    let (down, up) = shrink_under_streams(&lab, &client, &server);
    assert_eq!((down, up), (client.address(), server.address()));
    assert_eq!(path_mtu(&client, &server), SHRUNK);
    assert_eq!(path_mtu(&server, &client), SHRUNK);
}

#[test]
fn datagram_sender_is_told_when_a_known_flows_path_shrinks() {
    for (mode, told) in [(Mode::Vxlan, SHRUNK - 50), (Mode::Direct, SHRUNK)] {
        let (lab, client, server) = behind_a_router(mode);
        let (receiver, sender) = (udp(&server, "0.0.0.0:8080"), udp(&client, "0.0.0.0:40000"));
        sender.connect((server.address(), 8080)).unwrap();
        let exchange = |size: usize| {
            sender.send(&vec![7; size]).unwrap();
            assert_eq!(receiver.recv(&mut [0; 2000]).unwrap(), size, "{mode:?}");
        };
        (0..3).for_each(|_| exchange(1400));
        shrink(&lab);
        let route = || client.exec(&["ip", "route", "get", &server.address().to_string()]).unwrap();
        let heard =
            wait_until(|| sender.send(&[8; 1400]).err()).unwrap_or_else(|| panic!("{mode:?}: {}", route()));
        assert_eq!(Errno::from_io_error(&heard), Some(Errno::MSGSIZE), "{mode:?}");
        assert!(route().contains(&format!("mtu {told}")), "{mode:?}: {}", route());
        // Earlier datagrams may have got through in fragments.
        receiver.set_nonblocking(true).unwrap();
        while receiver.recv(&mut [0; 2000]).is_ok() {}
        receiver.set_nonblocking(false).unwrap();
        exchange(1401);
    }
}

#[test]
fn what_may_be_cut_and_what_the_node_sends_passes_a_shrunk_path() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let (lab, client, server) = behind_a_router(mode);
        shrink(&lab);
        // Packets that may be cut get through from the first one on: they need no ICMP error.
        let before = Counted::quiet(&lab);
        let cut = [1300, 3000].map(|size| traffic::ping(&client, server.address(), size));
        let grown = Counted::quiet(&lab).since(&before);
        for answer in cut {
            answer.unwrap_or_else(|error| panic!("{mode:?}: {error:#}; {grown}"));
        }
        grown.expect(&[], &[]).unwrap();
        let (pod, far) = ((&*client, client.address()), (&*server, server.address()));
        let node = |index: usize| (&**lab.node(index), lab.node(index).address());
        check(
            &lab,
            &[
                Row::new("pod to pod", pod, far),
                Row::new("node to pod", node(0), far),
                Row::new("pod to node", pod, node(1)),
                Row::new("pod to node, the other way", far, node(0)),
            ],
        );
    }
}

#[test]
fn a_pod_whose_link_takes_more_than_the_path_is_told_so() {
    for (mode, fits) in [(Mode::Vxlan, 1450), (Mode::Direct, 1500)] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let (client, server) =
            (lab.node(0).add_pod("client").unwrap(), lab.node(1).add_pod("server").unwrap());
        // Otherwise a veth silently drops packets larger than its peer's MTU.
        for (node, pod) in [(lab.node(0), &client), (lab.node(1), &server)] {
            node.ip(&format!("link set {} mtu 9000", pod.host_interface())).unwrap();
            pod.ip("link set eth0 mtu 9000").unwrap();
        }
        let header = 28;
        traffic::ping_unfragmented(&client, server.address(), fits - header).unwrap();
        for address in [server.address(), lab.node(1).address()] {
            let refused =
                traffic::ping_unfragmented(&client, address, fits - header + 1).unwrap_err().to_string();
            assert!(refused.contains(&format!("mtu = {fits}")), "{mode:?} to {address}: {refused}");
        }
        let refused = traffic::ping_unfragmented(&client, lab.world_address(), 1473).unwrap_err().to_string();
        assert!(refused.contains("mtu = 1500"), "{mode:?} to the world: {refused}");
        // Both ends of this connection believe that 9000 bytes fit.
        traffic::tcp_exchange(&client, &server, server.address(), 8080, 4 * MEBIBYTE).unwrap();
        traffic::tcp_exchange(&client, lab.world(), lab.world_address(), 8080, MEBIBYTE).unwrap();
        assert_eq!(path_mtu(&client, &server), fits as u32);
    }
}

/// Runs streams in both directions while the path to both nodes shrinks. Returns the addresses that
/// their servers saw.
fn shrink_under_streams(lab: &Lab, client: &Pod, server: &Pod) -> (std::net::IpAddr, std::net::IpAddr) {
    let down = traffic::tcp_stream(client, server, server.address(), 8080).unwrap();
    let up = traffic::tcp_stream(server, client, client.address(), 8080).unwrap();
    down.wait_for(MEBIBYTE).unwrap();
    up.wait_for(MEBIBYTE).unwrap();
    shrink(lab);
    down.wait_for(16 * MEBIBYTE).unwrap();
    up.wait_for(16 * MEBIBYTE).unwrap();
    (down.finish().unwrap().peer_seen_by_server.ip(), up.finish().unwrap().peer_seen_by_server.ip())
}

fn behind_a_router(mode: Mode) -> (Lab, Pod, Pod) {
    let lab = Lab::builder().mode(mode).router(true).build().unwrap();
    // Connection tracking does not know flows that go past the stack, nor a router's errors about
    // them.
    drop_invalid(&lab);
    let client = lab.node(0).add_pod("client").unwrap();
    let server = lab.node(1).add_pod("server").unwrap();
    (lab, client, server)
}

fn shrink(lab: &Lab) {
    lab.set_path_mtu(0, SHRUNK).unwrap();
    lab.set_path_mtu(1, SHRUNK).unwrap();
}

/// Returns the path MTU that a pod has learnt for another pod.
fn path_mtu(from: &Ns, to: &Pod) -> u32 {
    let route = from.exec(&["ip", "route", "get", &to.address().to_string()]).unwrap();
    let mtu = route.split(" mtu ").nth(1).and_then(|rest| rest.split_whitespace().next());
    mtu.unwrap_or_else(|| panic!("no MTU was learnt: {route}")).parse().unwrap()
}
