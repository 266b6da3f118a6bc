//! Real IPv6 traffic between a pod and the world: the checksums that senders leave to the kernel.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use podwire_common::names::GATEWAY6;
use podwire_common::reason::Path;
use podwire_core::model::{Mode, PortMapping, Transport as Protocol};
use xtask::lab::Ns;

use crate::fixture::*;
use crate::fixture6::{NODE1_6, POD, STRANGER6, node};
use crate::namespace;

/// The world's server, the hostPort and the pod's server have the same port.
const PORT: u16 = 8080;
const STREAM: usize = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// A namespace at the other end of one of the node's links. It is removed when this value is
/// dropped.
struct Peer(Ns);

impl Peer {
    fn new(node: &Fixture, link: &str, name: &str) -> Self {
        let ns = Ns::create(&format!("{}-{name}", node.namespace.ns.name())).unwrap();
        node.namespace.ip(&format!("link set {link} netns {} name eth0", ns.name()));
        for (switch, value) in [("disable_ipv6", "0"), ("accept_ra", "0")] {
            ns.sysctl(&format!("net/ipv6/conf/eth0/{switch}"), value).unwrap();
        }
        Self(ns)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        namespace::remove(&self.0);
    }
}

/// Sends a stream and a datagram, and returns the clients' addresses as the server saw them.
fn exchange(client: &Ns, server: &Ns, destination: Ipv6Addr) -> [SocketAddr; 2] {
    let any = (Ipv6Addr::UNSPECIFIED, PORT);
    let (listener, socket) =
        server.enter(|| (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())).unwrap();
    let serve = || {
        let (mut stream, seen) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        assert!(received == pattern(), "the stream arrives as it was sent");
        stream.write_all(&received).unwrap();
        drop(stream);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut datagram = [0; 2000];
        let (length, from) = socket.recv_from(&mut datagram).unwrap();
        socket.send_to(&datagram[..length], from).unwrap();
        [seen, from]
    };
    std::thread::scope(|scope| {
        let server = scope.spawn(serve);
        client
            .enter(|| {
                let to = SocketAddr::from((destination, PORT));
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(&pattern()).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut back = Vec::new();
                stream.read_to_end(&mut back).unwrap();
                assert_eq!(back.len(), STREAM);
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.connect(to).unwrap();
                socket.send(&[7; 1200]).unwrap();
                assert_eq!(socket.recv(&mut [0; 2000]).unwrap(), 1200);
            })
            .unwrap();
        server.join().unwrap()
    })
}

fn pattern() -> Vec<u8> {
    (0..STREAM).map(|index| (index / 7) as u8).collect()
}

#[test]
fn streams_to_world_and_host_port_arrive_whatever_the_offloads() {
    let mut node = node(Mode::Vxlan);
    let pod = node
        .model
        .endpoints
        .values_mut()
        .find(|endpoint| endpoint.addresses().any(|address| address == POD))
        .unwrap();
    let port = std::num::NonZeroU16::new(PORT).unwrap();
    pod.port_mappings = [Protocol::Tcp, Protocol::Udp]
        .map(|protocol| PortMapping { host_address: None, host_port: port, container_port: port, protocol })
        .to_vec();
    node.fill();
    let (pod, world) = (Peer::new(&node, "pwa-p", "pod"), Peer::new(&node, "up0-p", "world"));
    for link in ["up0", "pwa"] {
        for (switch, value) in [("disable_ipv6", "0"), ("forwarding", "1"), ("accept_dad", "0")] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/{switch}"), value).unwrap();
        }
    }
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    let mac = |bytes| format!("{:?}", podwire_common::addr::Mac { bytes });
    node.namespace.ip(&format!(
        "link set pwa mtu 1450\n\
         address add {NODE1_6}/64 dev up0 nodad\n\
         route add {POD}/128 dev pwa\n\
         neigh add {POD} lladdr {} dev pwa nud permanent\n",
        mac(POD_A_MAC)
    ));
    let gateway = Ipv6Addr::from(GATEWAY6);
    pod.0
        .ip(&format!(
            "link set eth0 address {} mtu 1450 up\n\
             address add {POD}/128 dev eth0 nodad\n\
             neigh add {gateway} lladdr {} dev eth0 nud permanent\n\
             route add default via {gateway} dev eth0\n",
            mac(POD_A_MAC),
            mac(HOST_A_MAC)
        ))
        .unwrap();
    world.0.ip(&format!("link set eth0 up\naddress add {STRANGER6}/64 dev eth0 nodad\n")).unwrap();
    node.attach();
    for settings in ["tx on rx on tso on gso on gro on", "tx off rx off tso off gso off gro off"] {
        let here = node.namespace.ns.clone();
        for (ns, link) in [(&here, "up0"), (&here, "pwa"), (&pod.0, "eth0"), (&world.0, "eth0")] {
            let command: Vec<_> = ["ethtool", "-K", link].into_iter().chain(settings.split(' ')).collect();
            ns.exec(&command).unwrap();
        }
        let before = node.counters();
        for seen in exchange(&pod.0, &world.0, STRANGER6) {
            assert_eq!(seen.ip(), NODE1_6, "{settings}");
        }
        for seen in exchange(&world.0, &pod.0, NODE1_6) {
            assert_eq!(seen.ip(), STRANGER6, "{settings}");
        }
        let after = node.counters();
        for path in [Path::SnatOut, Path::SnatIn, Path::HostPortIn, Path::HostPortOut] {
            assert_ne!(before.get(path.name()), after.get(path.name()), "{settings}: {}", path.name());
        }
        let to_world =
            node.translations().into_iter().filter(|(flow, _)| flow.destination == STRANGER6.into());
        let past: Vec<_> =
            to_world.filter(|(_, half)| half.reply == 0).map(|(_, half)| half.past_stack).collect();
        assert!(past.contains(&1), "{settings}: no flow goes past the stack: {past:?}");
    }
}
