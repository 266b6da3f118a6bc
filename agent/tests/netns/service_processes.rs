//! The node's own processes reach services: the programs for sockets point theirs at a backend. No
//! rule of the host translates anything here.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use aya::maps::{HashMap, Map, MapData};
use podwire_common::abi::{Backend, BackendKey, Frontend, Service};
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;
use podwire_common::names::maps;
use podwire_common::reason::Path::BoundToLoopback;
use xtask::lab::traffic;
use xtask::lab::{Lab, Mode, Node, Ns, Pod};

use crate::host_ports;
use crate::host_processes::{LOOPBACKS, answered, attached, connect, every_kind, kinds};
use crate::service::service;
use crate::services::{ENTRIES, POD_PORT, SERVICE_PORT, lab, put, route, slice};
use crate::sockets::{UdpSocket, connect_from, listen, udp, unspecified, wait_until};

/// Last byte of the addresses of a service with a backend on the processes' node.
const NEAR: u8 = 0x40;
/// The same, with a backend on the other node.
const FAR: u8 = 0x41;
/// The same, with a backend on each node.
const BOTH: u8 = 0x42;

/// Two nodes with a pod each, and three services. The processes are those of the first node.
struct Services {
    lab: Lab,
    pods: [Pod; 2],
}

impl Services {
    fn new() -> Self {
        let lab = lab(Mode::Vxlan);
        let pods = [0, 1].map(|node| lab.node(node).add_pod(&format!("pod{node}")).unwrap());
        put(&lab, "near", NEAR, &[&pods[0]], ENTRIES);
        put(&lab, "far", FAR, &[&pods[1]], 2 * ENTRIES);
        put(&lab, "both", BOTH, &[&pods[0], &pods[1]], 3 * ENTRIES);
        Self { lab, pods }
    }

    fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// Returns the pods' UDP sockets of a family.
    fn servers(&self, family: usize) -> [UdpSocket; 2] {
        self.pods.each_ref().map(|pod| udp(pod, (pod.addresses()[family], POD_PORT)))
    }
}

/// Opens a pinned map.
fn table<K: aya::Pod, V: aya::Pod>(node: &Node, name: &str) -> HashMap<MapData, K, V> {
    let data = MapData::from_pin(node.bpf_dir().join(name)).unwrap();
    Map::HashMap(data).try_into().unwrap()
}

/// Adds a service of UDP with one backend. The agent must be away: it would remove the entries.
fn add_by_hand(node: &Node, at: SocketAddr, backend: IpAddr) {
    let list = 1;
    let backend = Backend { address: backend.into(), port: Be16::new(POD_PORT), reserved: [0; 2] };
    let mut backends = table(node, maps::BACKENDS);
    backends.insert(BackendKey { list, index: 0, reserved: 0 }, backend, 0).unwrap();
    let (address, port) = (at.ip().into(), Be16::new(at.port()));
    let frontend = Frontend { address, port, protocol: protocol::UDP, clients: 0 };
    let mut services = table(node, maps::SERVICES);
    let service = Service { list, id: 1, backends: 1, flags: 0, affinity: 0, reserved: 0 };
    services.insert(frontend, service, 0).unwrap();
}

/// Returns the number of entries about redirected sockets.
fn remembered(node: &Node) -> usize {
    node.map_dump(maps::REDIRECTED_SOCKETS).unwrap().as_array().unwrap().len()
}

/// Waits until there are none. A child process of another test has the sockets of this one for a
/// moment, between fork and exec.
pub fn forgets_all(node: &Node) -> bool {
    wait_until(|| (remembered(node) == 0).then_some(())).is_some()
}

fn destination(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, SERVICE_PORT)
}

fn mapped(address: IpAddr) -> SocketAddr {
    let IpAddr::V4(address) = address else { panic!("{address} is no IPv4 address") };
    destination(address.to_ipv6_mapped().into())
}

/// Sends a datagram, and returns the index of the server that it reaches.
fn receiver(servers: &[UdpSocket; 2], client: &UdpSocket, to: SocketAddr) -> usize {
    client.send_to(b"question", to).unwrap();
    first_of(|index| {
        servers[index].set_nonblocking(true).unwrap();
        servers[index].recv(&mut [0; 64])
    })
}

/// Waits until one of two servers succeeds, and returns its index.
fn first_of<T>(receive: impl Fn(usize) -> io::Result<T>) -> usize {
    wait_until(|| (0..2).find(|index| receive(*index).is_ok())).expect("neither pod received anything")
}

#[test]
fn a_socket_of_both_families_reaches_a_service() {
    let services = Services::new();
    let node = services.node();
    for (last, pod) in [(NEAR, &services.pods[0]), (FAR, &services.pods[1])] {
        let _listener = listen(pod, (Ipv4Addr::UNSPECIFIED, POD_PORT));
        let to = mapped(service(last)[0]);
        assert_eq!(connect(node, to).unwrap().peer_addr().unwrap(), to);
    }
    assert!(forgets_all(node));
}

#[test]
fn sockets_of_processes_spread_over_the_backends() {
    const SOCKETS: usize = 200;
    let services = Services::new();
    for (family, address) in service(BOTH).into_iter().enumerate() {
        let any = unspecified(LOOPBACKS[family]);
        let listeners = services.pods.each_ref().map(|pod| listen(pod, (any, POD_PORT)));
        for listener in &listeners {
            listener.set_nonblocking(true).unwrap();
        }
        let mut accepted = [0; 2];
        for _ in 0..SOCKETS {
            let _client = connect(services.node(), destination(address)).unwrap();
            accepted[first_of(|index| listeners[index].accept())] += 1;
        }
        // Of 200 even choices, one in 10^8 leaves less than 60 for one of two.
        assert!(accepted.iter().all(|count| *count >= 60), "{accepted:?}");
    }
}

#[test]
fn other_namespaces_sockets_are_not_redirected() {
    let services = Services::new();
    let (node, other) = (services.node(), services.lab.node(1));
    let client = node.add_pod("client").unwrap();
    for (family, address) in service(FAR).into_iter().enumerate() {
        let _listener = listen(&services.pods[1], (unspecified(LOOPBACKS[family]), POD_PORT));
        // `from_pod` translates the packets of a pod, and another agent's programs serve another
        // node.
        let of_pod = connect(&client, destination(address)).unwrap();
        assert_eq!((of_pod.peer_addr().unwrap(), remembered(node)), (destination(address), 0));
        let of_other = connect(other, destination(address)).unwrap();
        assert_eq!((remembered(node), remembered(other)), (0, 2));
        drop(of_other);
        assert!(forgets_all(other));
    }
}

#[test]
fn closed_socket_leaves_nothing_in_the_table() {
    let services = Services::new();
    let node = services.node();
    for family in [0, 1] {
        let any = unspecified(LOOPBACKS[family]);
        let [near, far, both] = [NEAR, FAR, BOTH].map(|last| destination(service(last)[family]));
        let refused = connect(node, near).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(forgets_all(node));
        let listener = listen(&services.pods[0], (any, POD_PORT));
        let client = connect(node, near).unwrap();
        // The other processes that have the socket keep its entries.
        let copy = client.try_clone().unwrap();
        drop(client);
        assert_eq!(remembered(node), 2);
        drop(copy);
        assert!(forgets_all(node));
        drop(listener);
        // A socket with several backends, one of which two services have.
        let client = udp(node, (any, 0));
        for to in [near, far, both, near, far] {
            client.send_to(b"question", to).unwrap();
        }
        let direct = SocketAddr::new(services.pods[1].addresses()[family], POD_PORT);
        client.send_to(b"question", direct).unwrap();
        client.send_to(b"question", far).unwrap();
        client.connect(near).unwrap();
        assert!(remembered(node) >= 4);
        drop(client);
        assert!(forgets_all(node));
    }
}

#[test]
fn a_udp_socket_hears_the_service_that_it_asked() {
    let services = Services::new();
    let node = services.node();
    for family in [0, 1] {
        let any = unspecified(LOOPBACKS[family]);
        let servers = services.servers(family);
        let asked = [NEAR, FAR].map(|last| destination(service(last)[family]));
        for (to, server) in asked.into_iter().zip(&servers) {
            let client = udp(node, (any, 0));
            client.connect(to).unwrap();
            assert_eq!(client.peer_addr().unwrap(), to);
            client.send(b"question").unwrap();
            assert_eq!(answered(&client, server), to);
            // A process may name an address for one datagram too. The datagram goes to the backend
            // to which the socket is connected, which alone can answer.
            client.send_to(b"question", to).unwrap();
            assert_eq!(answered(&client, server), to);
        }
        // One socket asks two services and the pods themselves, by turns.
        let client = udp(node, (any, 0));
        for _ in 0..2 {
            for (index, server) in servers.iter().enumerate() {
                let direct = SocketAddr::new(services.pods[index].addresses()[family], POD_PORT);
                for to in [asked[index], direct] {
                    client.send_to(b"question", to).unwrap();
                    assert_eq!(answered(&client, server), to);
                }
            }
        }
    }
    let servers = services.servers(0);
    for (last, server) in [NEAR, FAR].into_iter().zip(&servers) {
        let (to, client) = (mapped(service(last)[0]), udp(node, (Ipv6Addr::UNSPECIFIED, 0)));
        client.send_to(b"question", to).unwrap();
        assert_eq!(answered(&client, server), to);
        client.connect(to).unwrap();
        assert_eq!(client.peer_addr().unwrap(), to);
        client.send(b"question").unwrap();
        assert_eq!(answered(&client, server), to);
    }
}

#[test]
fn a_udp_socket_keeps_its_backend_until_the_list_changes() {
    let services = Services::new();
    let servers = [0, 1].map(|family| services.servers(family));
    let sockets = |family: usize| -> [UdpSocket; 40] {
        std::array::from_fn(|_| udp(services.node(), (unspecified(LOOPBACKS[family]), 0)))
    };
    let ask = |client: &UdpSocket, family: usize| {
        receiver(&servers[family], client, destination(service(BOTH)[family]))
    };
    let clients = [0, 1].map(sockets);
    let ask_all = |family: usize| clients[family].each_ref().map(|client| ask(client, family));
    for family in [0, 1] {
        let first = ask_all(family);
        assert!(first.contains(&0) && first.contains(&1), "{first:?}");
        assert_eq!(ask_all(family), first);
        // Connected, a socket still has the same backend.
        for client in sockets(family) {
            let server = ask(&client, family);
            client.connect(destination(service(BOTH)[family])).unwrap();
            assert_eq!(ask(&client, family), server);
        }
    }
    put(&services.lab, "both", BOTH, &[&services.pods[1]], 3 * ENTRIES);
    for family in [0, 1] {
        assert!(wait_until(|| (ask_all(family) == [1; 40]).then_some(())).is_some());
    }
}

/// Connects sockets to a service until one reaches each of two servers. Returns one of each.
fn one_of_each(services: &Services, servers: &[UdpSocket; 2], to: SocketAddr) -> [UdpSocket; 2] {
    let mut found = [None, None];
    // Of a hundred even choices, one in 10^29 leaves none for one of two.
    for _ in 0..100 {
        let client = udp(services.node(), (unspecified(to.ip()), 0));
        client.connect(to).unwrap();
        let server = receiver(servers, &client, to);
        found[server] = Some(client);
    }
    found.map(|client| client.expect("a server that no socket reaches"))
}

/// Waits until a socket was closed from outside.
fn is_aborted(client: &UdpSocket) -> bool {
    let error = wait_until(|| client.take_error().unwrap());
    error.is_some_and(|error| error.kind() == ErrorKind::ConnectionAborted)
}

#[test]
fn a_connected_udp_socket_is_closed_with_its_backend() {
    let services = Services::new();
    let (lab, node, pods) = (&services.lab, services.node(), &services.pods);
    let both = service(BOTH);
    let servers = [0, 1].map(|family| services.servers(family));
    let clients = [0, 1].map(|family| one_of_each(&services, &servers[family], destination(both[family])));
    let connected = |from: IpAddr, to: SocketAddr| {
        let client = udp(node, (from, 0));
        client.connect(to).unwrap();
        client
    };
    let any = unspecified(LOOPBACKS[0]);
    let direct = connected(any, SocketAddr::new(pods[0].addresses()[0], POD_PORT));
    let to_near = connected(any, destination(service(NEAR)[0]));
    // It asks the service for one datagram only, so its next datagram goes elsewhere.
    let unconnected = udp(node, (any, 0));
    receiver(&servers[0], &unconnected, destination(both[0]));
    // Sockets of both families, to see one of each.
    let mapped = [0; 2].map(|_| connected(Ipv6Addr::UNSPECIFIED.into(), mapped(both[0])));
    put(lab, "both", BOTH, &[&pods[1]], 3 * ENTRIES);
    for family in [0, 1] {
        let [gone, stays] = &clients[family];
        assert!(is_aborted(gone), "{}", node.agent_log_tail(20));
        let to = destination(both[family]);
        assert_eq!(receiver(&servers[family], stays, to), 1);
        // The process can go on with the socket.
        gone.connect(to).unwrap();
        assert_eq!(receiver(&servers[family], gone, to), 1);
    }
    // No other endpoint serves, so the backend may come back.
    put(lab, "near", NEAR, &[], 3 * ENTRIES);
    node.restart_agent().unwrap();
    put(lab, "both", BOTH, &[&pods[0]], 3 * ENTRIES);
    for client in clients.iter().flatten().chain(&mapped) {
        assert!(is_aborted(client), "{}", node.agent_log_tail(20));
    }
    for client in [&direct, &to_near] {
        client.send(b"question").unwrap();
        assert_eq!(first_of(|index| servers[0][index].recv(&mut [0; 64])), 0);
    }
    assert_eq!(receiver(&servers[0], &unconnected, destination(both[0])), 0);
    // The sockets of a node that lost its agent in the meantime.
    let missed = connected(any, destination(both[0]));
    node.kill_agent().unwrap();
    let api = lab.api_server().unwrap();
    api.put(slice("both", &[pods[1].addresses()[0]], 0));
    node.start_agent().unwrap();
    assert!(is_aborted(&missed), "{}", node.agent_log_tail(20));
    drop((clients, direct, to_near, unconnected, mapped, missed));
    assert!(forgets_all(node));
}

#[test]
fn sockets_bound_to_loopback_are_counted_and_left_alone() {
    let services = Services::new();
    let node = services.node();
    let missed = || node.traffic().unwrap().get(BoundToLoopback.name()).copied().unwrap_or(0);
    for (family, loopback) in LOOPBACKS.into_iter().enumerate() {
        let to = destination(service(NEAR)[family]);
        let before = missed();
        let client = udp(node, (loopback, 0));
        let _ = client.send_to(b"question", to);
        assert_eq!((missed() - before, remembered(node)), (1, 0));
        // No service is there.
        let _ = client.send_to(b"question", SocketAddr::new(to.ip(), SERVICE_PORT + 1));
        assert_eq!(missed() - before, 1);
    }
    let before = missed();
    let to = destination(service(NEAR)[0]);
    connect_from(node, (LOOPBACKS[0], 0), to).unwrap_err();
    assert_eq!((missed() - before, remembered(node)), (1, 0));
}

#[test]
fn processes_are_served_only_with_the_option() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    for (mode, is_on) in [("off", false), ("on", true), ("on", true), ("off", false)] {
        node.start_agent_with(&[("PODWIRE_SERVICES", mode)]).unwrap();
        assert_eq!(kinds(&attached(node)), every_kind(is_on), "{mode}");
        node.kill_agent().unwrap();
        for (loopback, address) in LOOPBACKS.into_iter().zip(service(NEAR)) {
            add_by_hand(node, destination(address), loopback);
            let client = udp(node, (unspecified(address), 0));
            client.connect(destination(address)).unwrap();
            assert_eq!(client.peer_addr().unwrap(), destination(address));
            assert_eq!(remembered(node), if is_on { 2 } else { 0 }, "{mode}");
            drop(client);
            assert!(forgets_all(node), "{mode}");
        }
    }
}

#[test]
fn host_port_comes_first_and_own_addresses_may_be_services() {
    const HOST_PORT: u16 = 18080;
    let services = Services::new();
    let node = services.node();
    let mappings = host_ports::mappings(&[(HOST_PORT, POD_PORT, "udp", None)]);
    let exposed = node.add_pod_with("exposed", &mappings).unwrap();
    node.kill_agent().unwrap();
    for (family, address) in node.addresses().into_iter().enumerate() {
        for port in [HOST_PORT, HOST_PORT + 1] {
            add_by_hand(node, SocketAddr::new(address, port), services.pods[1].addresses()[family]);
        }
        let any = unspecified(address);
        let client = udp(node, (any, 0));
        for (port, pod) in [(HOST_PORT, &exposed), (HOST_PORT + 1, &services.pods[1])] {
            let to = SocketAddr::new(address, port);
            let server = udp(pod, (any, POD_PORT));
            client.send_to(b"question", to).unwrap();
            assert_eq!(answered(&client, &server), to);
        }
    }
}

/// The agents of the lab have another address of the API server, so they do not depend on this one.
#[test]
fn the_api_servers_service_is_for_processes_too() {
    let lab = lab(Mode::Vxlan);
    let node = lab.node(0);
    let (client, server) = (node.add_pod("client").unwrap(), lab.node(1).add_pod("server").unwrap());
    put(&lab, "kubernetes", 0x43, &[&server], ENTRIES);
    for address in service(0x43) {
        let clients: [&Ns; 2] = [&client, node];
        for from in clients {
            traffic::tcp_exchange_on(from, &server, route(address), 1 << 10).unwrap();
        }
    }
}
