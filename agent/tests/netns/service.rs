//! ClusterIPs, translated by iptables rules as kube-proxy writes them: path symmetry (invariant 1).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use podwire_common::reason::Path::{
    DirectIn, DirectOut, FromStack, Local, StackEncapsulated, ToStack, TunnelIn, TunnelOut, TunnelToStack,
};
use xtask::lab::frames::Capture;
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Lab, Mode, Ns, Pod};

use crate::check::{Counted, Row, check};
use crate::headers::Ip;
use crate::{FAMILIES, ip_tables};

/// The API server's ClusterIP in clusters of kubeadm and kind.
const API_SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
/// A service with pods behind it on the client's node.
const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 20));
/// A service with pods behind it on the other node.
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 21));

#[test]
fn pod_reaches_the_api_server_of_another_node_by_cluster_ip() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        drop_invalid(&lab);
        let rule =
            "-A PREROUTING -d 10.96.0.1/32 -p tcp --dport 443 -j DNAT --to-destination 10.200.0.2:6443";
        iptables(lab.node(0), &format!("-t nat {rule}"));
        let client = lab.node(0).add_pod("client").unwrap();
        let capture = Capture::start(lab.underlay(), "node1").unwrap();
        let route = Route::translated(SocketAddr::new(API_SERVER, 443), 6443);
        let exchange = traffic::tcp_exchange_on(&client, lab.node(1), route, 1 << 20).unwrap();
        assert_eq!(exchange.peer_seen_by_server, exchange.client);
        assert_eq!(exchange.peer_seen_by_client, route.destination);
        assert_bare_pod_addresses(mode, &capture.finish().unwrap());
    }
}

#[test]
fn a_cluster_ip_answers_in_vxlan_mode_wherever_its_backend_is() {
    let services = Services::new(Mode::Vxlan);
    let capture = Capture::start(services.lab.underlay(), "node1").unwrap();
    check(
        &services.lab,
        &[
            services.host_backend().takes(&[
                (0, ToStack),
                (0, StackEncapsulated),
                (1, TunnelToStack),
                (0, FromStack),
            ]),
            services.near_backend().takes(&[(0, ToStack), (0, FromStack)]).avoids(&[(0, Local)]),
            services
                .far_backend()
                .takes(&[(0, ToStack), (0, FromStack), (1, TunnelIn), (1, TunnelOut), (0, TunnelToStack)])
                .avoids(&[(0, TunnelIn), (0, TunnelOut)]),
            services.node_to_far_backend().takes(&[(1, TunnelIn), (1, TunnelOut), (0, TunnelToStack)]),
        ],
    );
    assert_bare_pod_addresses(Mode::Vxlan, &capture.finish().unwrap());
}

#[test]
fn cluster_ip_answers_in_direct_routing_wherever_it_leads() {
    let services = Services::new(Mode::Direct);
    check(
        &services.lab,
        &[
            services
                .host_backend()
                .takes(&[(0, ToStack), (0, FromStack)])
                .avoids(&[(0, DirectOut), (0, DirectIn)]),
            services.near_backend().takes(&[(0, ToStack), (0, FromStack)]).avoids(&[(0, Local)]),
            services
                .far_backend()
                .takes(&[(0, ToStack), (0, FromStack), (1, DirectIn), (1, DirectOut)])
                .avoids(&[(0, DirectOut), (0, DirectIn)]),
            services.node_to_far_backend().takes(&[(1, DirectIn), (1, DirectOut)]),
        ],
    );
}

#[test]
fn backend_that_is_also_reached_directly_keeps_ways_apart() {
    let services = Services::new(Mode::Vxlan);
    let through_service = traffic::tcp_stream_on(
        &services.client,
        &services.far,
        Route::translated(SocketAddr::new(FAR, 8081), 8081),
    )
    .unwrap();
    let before = Counted::now(&services.lab);
    let (client, far) = (&services.client, &services.far);
    let direct = traffic::tcp_exchange(client, far, far.address(), 8080, 1 << 20).unwrap();
    assert_eq!(direct.peer_seen_by_server, direct.client);
    traffic::udp_exchange(client, far, far.address(), 8081, 1000).unwrap();
    through_service.wait_for(1 << 20).unwrap();
    // The flow through the service takes neither path on this node. So the direct flows made these
    // counts grow.
    Counted::now(&services.lab).since(&before).expect(&[(0, TunnelOut), (0, TunnelIn)], &[]).unwrap();
    let exchange = through_service.finish().unwrap();
    assert_eq!(exchange.peer_seen_by_server, exchange.client);
}

/// A client on the first node, and a service for each place where its backend can be.
struct Services {
    client: Pod,
    near: Pod,
    far: Pod,
    lab: Lab,
}

impl Services {
    fn new(mode: Mode) -> Self {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let services = Self {
            client: lab.node(0).add_pod("client").unwrap(),
            near: lab.node(0).add_pod("near").unwrap(),
            far: lab.node(1).add_pod("far").unwrap(),
            lab,
        };
        let Self { near, far, lab, .. } = &services;
        drop_invalid(lab);
        let backends = [(API_SERVER, lab.node(1).address()), (NEAR, near.address()), (FAR, far.address())];
        for (service, backend) in backends {
            // The rules are for every protocol: the rows ping a ClusterIP as well.
            for chain in ["PREROUTING", "OUTPUT"] {
                let rule = format!("-t nat -A {chain} -d {service}/32 -j DNAT --to-destination {backend}");
                iptables(lab.node(0), &rule);
            }
        }
        services
    }

    fn client(&self) -> (&Ns, IpAddr) {
        (&self.client, self.client.address())
    }

    fn host_backend(&self) -> Row<'_> {
        let server = (&**self.lab.node(1), self.lab.node(1).address());
        Row::new("ClusterIP of a process of the other node", self.client(), server).by_way_of(API_SERVER)
    }

    fn near_backend(&self) -> Row<'_> {
        Row::new("ClusterIP of a pod of the same node", self.client(), (&self.near, self.near.address()))
            .by_way_of(NEAR)
    }

    fn far_backend(&self) -> Row<'_> {
        Row::new("ClusterIP of a pod of the other node", self.client(), (&self.far, self.far.address()))
            .by_way_of(FAR)
    }

    fn node_to_far_backend(&self) -> Row<'_> {
        let node = self.lab.node(0);
        Row::new(
            "node to ClusterIP of a pod of the other node",
            (node, node.address()),
            (&self.far, self.far.address()),
        )
        .by_way_of(FAR)
    }
}

/// Adds kube-proxy's rule on every node. It drops packets in conntrack's state INVALID, for example
/// if conntrack has seen only one direction of their connection.
pub fn drop_invalid(lab: &Lab) {
    for family in FAMILIES {
        for node in lab.nodes() {
            ip_tables(node, family, "-A FORWARD -m conntrack --ctstate INVALID -j DROP");
        }
    }
}

pub fn iptables(ns: &Ns, rule: &str) {
    let mut command = vec!["iptables", "-w"];
    command.extend(rule.split_whitespace());
    ns.exec(&command).unwrap();
}

/// Asserts that in VXLAN mode no frame between nodes has a bare pod address, and that in direct
/// routing some have.
fn assert_bare_pod_addresses(mode: Mode, frames: &[Vec<u8>]) {
    let bare = frames.iter().filter_map(|frame| Ip::of_frame(frame)).find(Ip::is_of_pod_network);
    assert_eq!(bare.is_some(), mode == Mode::Direct, "{bare:?}");
}
