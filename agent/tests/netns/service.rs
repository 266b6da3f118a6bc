//! ClusterIPs, translated by iptables rules as kube-proxy writes them: path symmetry (invariant 1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podwire_common::reason::Path::{
    DirectIn, DirectOut, FromStack, Local, StackEncapsulated, ToStack, TunnelIn, TunnelOut, TunnelToStack,
};
use xtask::lab::frames::Capture;
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Lab, Mode, Ns, Pod};

use crate::check::{Counted, Row, check};
use crate::headers::of_pods;
use crate::{FAMILIES, ip_tables};

/// The API server's ClusterIP in clusters of kubeadm and kind, and the same in IPv6.
pub const API_SERVER: [IpAddr; 2] = service(1);
/// A service with pods behind it on the client's node.
pub const NEAR: [IpAddr; 2] = service(0x20);
/// A service with pods behind it on the other node.
pub const FAR: [IpAddr; 2] = service(0x21);

/// Returns a ClusterIP of each family. No host has it.
pub const fn service(last: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(10, 96, 0, last)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, last as u16)),
    ]
}

#[test]
fn pod_reaches_the_api_server_of_another_node_by_cluster_ip() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        drop_invalid(&lab);
        let client = lab.node(0).add_pod("client").unwrap();
        for (service, server) in API_SERVER.into_iter().zip(lab.node(1).addresses()) {
            let server = SocketAddr::new(server, 6443);
            let rule =
                format!("-A PREROUTING -d {service} -p tcp --dport 443 -j DNAT --to-destination {server}");
            iptables_of(service, lab.node(0), &format!("-t nat {rule}"));
            let capture = Capture::start(lab.underlay(), "node1").unwrap();
            let route = Route::translated(SocketAddr::new(service, 443), 6443);
            let exchange = traffic::tcp_exchange_on(&client, lab.node(1), route, 1 << 20).unwrap();
            assert_eq!(exchange.peer_seen_by_server, exchange.client);
            assert_eq!(exchange.peer_seen_by_client, route.destination);
            assert_bare_pod_addresses(mode, &capture.finish().unwrap());
        }
    }
}

#[test]
fn a_cluster_ip_answers_in_vxlan_mode_wherever_its_backend_is() {
    let services = Services::new(Mode::Vxlan);
    for family in FAMILIES {
        let capture = Capture::start(services.lab.underlay(), "node1").unwrap();
        check(
            &services.lab,
            &[
                services.host_backend(family).takes(&[
                    (0, ToStack),
                    (0, StackEncapsulated),
                    (1, TunnelToStack),
                    (0, FromStack),
                ]),
                services.near_backend(family).takes(&[(0, ToStack), (0, FromStack)]).avoids(&[(0, Local)]),
                services
                    .far_backend(family)
                    .takes(&[(0, ToStack), (0, FromStack), (1, TunnelIn), (1, TunnelOut), (0, TunnelToStack)])
                    .avoids(&[(0, TunnelIn), (0, TunnelOut)]),
                services.node_to_far_backend(family).takes(&[
                    (1, TunnelIn),
                    (1, TunnelOut),
                    (0, TunnelToStack),
                ]),
            ],
        );
        assert_bare_pod_addresses(Mode::Vxlan, &capture.finish().unwrap());
    }
}

#[test]
fn cluster_ip_answers_in_direct_routing_wherever_it_leads() {
    let services = Services::new(Mode::Direct);
    for family in FAMILIES {
        check(
            &services.lab,
            &[
                services
                    .host_backend(family)
                    .takes(&[(0, ToStack), (0, FromStack)])
                    .avoids(&[(0, DirectOut), (0, DirectIn)]),
                services.near_backend(family).takes(&[(0, ToStack), (0, FromStack)]).avoids(&[(0, Local)]),
                services
                    .far_backend(family)
                    .takes(&[(0, ToStack), (0, FromStack), (1, DirectIn), (1, DirectOut)])
                    .avoids(&[(0, DirectOut), (0, DirectIn)]),
                services.node_to_far_backend(family).takes(&[(1, DirectIn), (1, DirectOut)]),
            ],
        );
    }
}

#[test]
fn backend_that_is_also_reached_directly_keeps_ways_apart() {
    let services = Services::new(Mode::Vxlan);
    let (client, far) = (&services.client, &services.far);
    for (family, address) in far.addresses().iter().enumerate() {
        let by_service = Route::translated(SocketAddr::new(FAR[family], 8081), 8081);
        let through_service = traffic::tcp_stream_on(client, far, by_service).unwrap();
        let before = Counted::now(&services.lab);
        let direct = traffic::tcp_exchange(client, far, *address, 8080, 1 << 20).unwrap();
        assert_eq!(direct.peer_seen_by_server, direct.client);
        traffic::udp_exchange(client, far, *address, 8081, 1000).unwrap();
        through_service.wait_for(1 << 20).unwrap();
        // The flow through the service takes neither path on this node. So the direct flows made
        // these counts grow.
        let grown = Counted::now(&services.lab).since(&before);
        grown.expect(&[(0, TunnelOut), (0, TunnelIn)], &[]).unwrap();
        let exchange = through_service.finish().unwrap();
        assert_eq!(exchange.peer_seen_by_server, exchange.client);
    }
}

/// A client on the first node, and a service for each place where its backend can be.
struct Services {
    client: Pod,
    near: Pod,
    far: Pod,
    lab: Lab,
}

/// The ends have an address for each family of the lab: `family` is the place in its order.
impl Services {
    fn new(mode: Mode) -> Self {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let services = Self {
            client: lab.node(0).add_pod("client").unwrap(),
            near: lab.node(0).add_pod("near").unwrap(),
            far: lab.node(1).add_pod("far").unwrap(),
            lab,
        };
        drop_invalid(&services.lab);
        for family in FAMILIES {
            let backends = [
                (API_SERVER, services.node(1, family).1),
                (NEAR, services.near.addresses()[family]),
                (FAR, services.far.addresses()[family]),
            ];
            for (service, backend) in backends {
                // The rules are for every protocol: the rows ping a ClusterIP as well.
                for chain in ["PREROUTING", "OUTPUT"] {
                    let service = service[family];
                    let rule = format!("-t nat -A {chain} -d {service} -j DNAT --to-destination {backend}");
                    iptables_of(service, services.lab.node(0), &rule);
                }
            }
        }
        services
    }

    fn node(&self, node: usize, family: usize) -> (&Ns, IpAddr) {
        (self.lab.node(node), self.lab.node(node).addresses()[family])
    }

    /// Returns a row from the client to a ClusterIP.
    fn row<'a>(
        &'a self,
        name: &'a str,
        family: usize,
        service: [IpAddr; 2],
        server: (&'a Ns, IpAddr),
    ) -> Row<'a> {
        let client = (&*self.client, self.client.addresses()[family]);
        Row::new(name, client, server).by_way_of(service[family])
    }

    fn host_backend(&self, family: usize) -> Row<'_> {
        let name = "ClusterIP of a process of the other node";
        self.row(name, family, API_SERVER, self.node(1, family))
    }

    fn near_backend(&self, family: usize) -> Row<'_> {
        let near = (&*self.near, self.near.addresses()[family]);
        self.row("ClusterIP of a pod of the same node", family, NEAR, near)
    }

    fn far_backend(&self, family: usize) -> Row<'_> {
        let far = (&*self.far, self.far.addresses()[family]);
        self.row("ClusterIP of a pod of the other node", family, FAR, far)
    }

    fn node_to_far_backend(&self, family: usize) -> Row<'_> {
        let far = (&*self.far, self.far.addresses()[family]);
        let name = "node to ClusterIP of a pod of the other node";
        Row::new(name, self.node(0, family), far).by_way_of(FAR[family])
    }
}

/// Adds kube-proxy's rule on every node, for both families. It drops packets in conntrack's state
/// INVALID, for example if conntrack has seen only one direction of their connection.
pub fn drop_invalid(lab: &Lab) {
    for family in FAMILIES {
        for node in lab.nodes() {
            ip_tables(node, family, "-A FORWARD -m conntrack --ctstate INVALID -j DROP");
        }
    }
}

/// Adds a rule for IPv4.
pub fn iptables(ns: &Ns, rule: &str) {
    ip_tables(ns, 0, rule);
}

/// Adds a rule for the family of an address.
pub fn iptables_of(address: IpAddr, ns: &Ns, rule: &str) {
    ip_tables(ns, usize::from(address.is_ipv6()), rule);
}

/// Asserts that in VXLAN mode no frame between nodes has a bare pod address, and that in direct
/// routing some have.
fn assert_bare_pod_addresses(mode: Mode, frames: &[Vec<u8>]) {
    let bare = of_pods(frames);
    assert_eq!(bare.is_some(), mode == Mode::Direct, "{bare:?}");
}
