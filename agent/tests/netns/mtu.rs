//! Paths with a smaller MTU than the sender believes: "fragmentation needed" comes back, and
//! connections go on.

use podwire_common::reason::Path::TooBigAnswered;
use rustix::io::Errno;
use xtask::lab::{Lab, Mode, Ns, Pod, traffic};

use crate::check::{Counted, Row, check};
use crate::icmp_errors::path_mtu;
use crate::service::{FAR, drop_invalid, iptables_of};
use crate::sockets::{UdpSocket, udp, unspecified, wait_until};
use crate::{FAMILIES, Place as _, world_end};

/// The MTU to which the path shrinks.
const SHRUNK: u32 = 1280;
/// The MTU to which the path of a tunnel of IPv6 shrinks: the least that takes packets of 1280
/// bytes, which every path must take.
const SHRUNK6: u32 = 1350;
const IN_IPV6: &[&str] = &["--tunnel-family", "ipv6"];
/// What a pod learns of it in VXLAN mode, by family: IPv6 packets of 1280 bytes pass every path.
const TOLD_IN_TUNNEL: [Option<u32>; 2] = [Some(SHRUNK - 50), Some(1280)];
const MEBIBYTE: u64 = 1 << 20;

#[test]
fn a_connection_lives_when_the_path_shrinks_under_its_tunnel() {
    for (arguments, shrunk, told) in
        [(&[][..], SHRUNK, TOLD_IN_TUNNEL), (IN_IPV6, SHRUNK6, [Some(SHRUNK6 - 70); 2])]
    {
        let (lab, client, server) = behind_a_router_with(Mode::Vxlan, arguments);
        let before = Counted::quiet(&lab);
        shrink_under_streams(&lab, &client, &server, shrunk);
        let grown = Counted::quiet(&lab).since(&before);
        for node in [0, 1] {
            assert!(grown.packets((node, TooBigAnswered)) > 0, "{grown}");
        }
        assert_eq!(learnt(&client, &server), told, "{arguments:?}");
        assert_eq!(learnt(&server, &client), told, "{arguments:?}");
    }
}

#[test]
fn a_connection_lives_when_the_path_shrinks_in_direct_routing() {
    let (lab, client, server) = behind_a_router(Mode::Direct);
    shrink_under_streams(&lab, &client, &server, SHRUNK);
    assert_eq!(learnt(&client, &server), [Some(SHRUNK); 2]);
    assert_eq!(learnt(&server, &client), [Some(SHRUNK); 2]);
}

#[test]
fn datagram_sender_is_told_when_a_known_flows_path_shrinks() {
    for (mode, told) in [(Mode::Vxlan, TOLD_IN_TUNNEL), (Mode::Direct, [Some(SHRUNK); 2])] {
        let (lab, client, server) = behind_a_router(mode);
        let pairs = FAMILIES.map(|family| {
            let address = server.addresses()[family];
            let port = if address.is_ipv4() { 8080 } else { 8081 };
            let receiver = udp(&server, (unspecified(address), port));
            let sender = udp(&client, (unspecified(address), 0));
            sender.connect((address, port)).unwrap();
            (sender, receiver)
        });
        let exchange = |(sender, receiver): &(UdpSocket, UdpSocket), size: usize| {
            sender.send(&vec![7; size]).unwrap();
            assert_eq!(receiver.recv(&mut [0; 2000]).unwrap(), size, "{mode:?}");
        };
        for pair in &pairs {
            (0..3).for_each(|_| exchange(pair, 1400));
        }
        shrink(&lab, SHRUNK);
        for pair in &pairs {
            let (sender, receiver) = pair;
            let heard = wait_until(|| sender.send(&[8; 1400]).err());
            let heard = heard.unwrap_or_else(|| panic!("{mode:?}: {:?}", learnt(&client, &server)));
            assert_eq!(Errno::from_io_error(&heard), Some(Errno::MSGSIZE), "{mode:?}");
            // Earlier datagrams may have got through in fragments.
            receiver.set_nonblocking(true).unwrap();
            while receiver.recv(&mut [0; 2000]).is_ok() {}
            receiver.set_nonblocking(false).unwrap();
            exchange(pair, 1401);
        }
        assert_eq!(learnt(&client, &server), told, "{mode:?}");
    }
}

#[test]
fn what_may_be_cut_and_what_the_node_sends_passes_a_shrunk_path() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let (lab, client, server) = behind_a_router(mode);
        shrink(&lab, SHRUNK);
        // Packets that may be cut get through from the first one on: they need no ICMP error. Only
        // IPv4 has such packets.
        let before = Counted::quiet(&lab);
        let cut = [1300, 3000].map(|size| traffic::ping(&client, server.address(), size));
        let grown = Counted::quiet(&lab).since(&before);
        for answer in cut {
            answer.unwrap_or_else(|error| panic!("{mode:?}: {error:#}; {grown}"));
        }
        grown.expect(&[], &[]).unwrap();
        FAMILIES.iter().for_each(|family| check(&lab, &rows(&lab, &client, &server, *family)));
    }
}

/// Nobody fragments the outer packets of a tunnel of IPv6, so every sender has to learn what fits.
#[test]
fn in_a_tunnel_of_ipv6_every_sender_learns_what_fits() {
    let (lab, client, server) = behind_a_router_with(Mode::Vxlan, IN_IPV6);
    shrink(&lab, SHRUNK6);
    for family in FAMILIES {
        // Flows of a service pass the host stack, which forwards them into the tunnel.
        let (service, backend) = (FAR[family], server.addresses()[family]);
        let rule = format!("-t nat -A PREROUTING -d {service} -j DNAT --to-destination {backend}");
        iptables_of(service, lab.node(0), &rule);
        let of_service = Row::new("pod to service", client.end(family), server.end(family));
        let rows = rows(&lab, &client, &server, family);
        let rows: Vec<_> = rows.into_iter().chain([of_service.by_way_of(service)]).collect();
        for row in &rows {
            // One packet whole, and one in fragments. Each end has to be told.
            for size in [1400, 3000] {
                let passes = || traffic::ping(row.client, row.destination, size).ok();
                assert!(wait_until(passes).is_some(), "{}: {size} bytes, {}", row.name, Counted::now(&lab));
            }
        }
        check(&lab, &rows);
    }
}

/// Returns the paths between pods and nodes.
fn rows<'a>(lab: &'a Lab, client: &'a Pod, server: &'a Pod, family: usize) -> [Row<'a>; 4] {
    let (pod, far) = (client.end(family), server.end(family));
    let [node, other] = [0, 1].map(|node| lab.node(node).end(family));
    [
        Row::new("pod to pod", pod, far),
        Row::new("node to pod", node, far),
        Row::new("pod to node", pod, other),
        Row::new("pod to node, the other way", far, node),
    ]
}

#[test]
fn a_pod_whose_link_takes_more_than_the_path_is_told_so() {
    for (mode, fits) in [(Mode::Vxlan, 1450), (Mode::Direct, 1500)] {
        // A link that was raised by hand would not do: the agent sets it right.
        let lab = Lab::builder().mode(mode).agent_arguments(&["--mtu", "9000"]).build().unwrap();
        let (client, server) =
            (lab.node(0).add_pod("client").unwrap(), lab.node(1).add_pod("server").unwrap());
        for (family, headers) in [28, 48].into_iter().enumerate() {
            let [far, node] = [server.addresses()[family], lab.node(1).addresses()[family]];
            let (world, of_world) = world_end(&lab, family);
            traffic::ping_unfragmented(&client, far, fits as usize - headers).unwrap();
            for (address, fits) in [(far, fits), (node, fits), (of_world, 1500)] {
                let one_more = fits as usize - headers + 1;
                assert!(
                    traffic::ping_unfragmented(&client, address, one_more).is_err(),
                    "{mode:?}: {address}"
                );
                assert_eq!(path_mtu(&client, address), Some(fits), "{mode:?}: {address}");
            }
            // Both ends of this connection believe that 9000 bytes fit.
            traffic::tcp_exchange(&client, &server, far, 8080, 4 * MEBIBYTE).unwrap();
            traffic::tcp_exchange(&client, world, of_world, 8080, MEBIBYTE).unwrap();
        }
        assert_eq!(learnt(&client, &server), [Some(fits); 2]);
    }
}

/// Runs streams of both families in both directions while the path to both nodes shrinks.
fn shrink_under_streams(lab: &Lab, client: &Pod, server: &Pod, mtu: u32) {
    let ways = [(client, server), (server, client)];
    let ends = FAMILIES.map(|family| ways.map(|(from, to)| (from.end(family), to.end(family))));
    let streams = ends.as_flattened().iter().map(|(from, to)| {
        let port = if to.1.is_ipv4() { 8080 } else { 8081 };
        let stream = traffic::tcp_stream(from.0, to.0, to.1, port).unwrap();
        stream.wait_for(MEBIBYTE).unwrap();
        (stream, from.1)
    });
    let streams: Vec<_> = streams.collect();
    shrink(lab, mtu);
    for (stream, _) in &streams {
        stream.wait_for(8 * MEBIBYTE).unwrap();
    }
    for (stream, from) in streams {
        assert_eq!(stream.finish().unwrap().peer_seen_by_server.ip(), from);
    }
}

fn behind_a_router(mode: Mode) -> (Lab, Pod, Pod) {
    behind_a_router_with(mode, &[])
}

fn behind_a_router_with(mode: Mode, arguments: &[&str]) -> (Lab, Pod, Pod) {
    let lab = Lab::builder().mode(mode).router(true).agent_arguments(arguments).build().unwrap();
    // Connection tracking does not know flows that go past the stack, nor a router's errors about
    // them.
    drop_invalid(&lab);
    let client = lab.node(0).add_pod("client").unwrap();
    let server = lab.node(1).add_pod("server").unwrap();
    (lab, client, server)
}

fn shrink(lab: &Lab, mtu: u32) {
    lab.set_path_mtu(0, mtu).unwrap();
    lab.set_path_mtu(1, mtu).unwrap();
}

/// Returns the path MTUs that a pod has learnt for another pod's addresses.
fn learnt(from: &Ns, to: &Pod) -> [Option<u32>; 2] {
    FAMILIES.map(|family| path_mtu(from, to.addresses()[family]))
}
