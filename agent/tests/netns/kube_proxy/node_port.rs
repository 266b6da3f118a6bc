//! The world as the client: NodePorts, on nodes with more addressed devices than their uplink.

use std::net::{IpAddr, SocketAddr};

use podwire_common::reason::Path::TunnelInDevice;
use xtask::lab::{KubeProxy, Ns};

use super::Cluster;
use super::cluster_ip::pod_reaches_services;
use super::table::Protocol::{Tcp, Udp};
use super::table::{Row, Seen, check};
use crate::check::Counted;

const WEB_TCP: u16 = 30080;
const WEB_UDP: u16 = 30081;
/// A NodePort with `externalTrafficPolicy: Local`.
const WEB_LOCAL: u16 = 30082;

#[test]
fn the_world_reaches_backends_here_and_there_by_a_node_port() {
    Cluster::each(the_world_reaches_backends);
}

#[test]
fn pods_and_the_world_reach_services_in_a_tunnel_of_ipv6() {
    Cluster::in_a_tunnel_of_ipv6(|cluster| {
        pod_reaches_services(cluster);
        the_world_reaches_backends(cluster);
        // In such a tunnel only the VXLAN device takes IPv4.
        let counted = Counted::now(&cluster.lab);
        assert!([0, 1].into_iter().all(|node| counted.packets((node, TunnelInDevice)) > 0), "{counted}");
    });
}

pub fn the_world_reaches_backends(cluster: &Cluster) {
    let (world, web) = (cluster.world(), cluster.site.web);
    let mut rows = Vec::new();
    for node in [0, 1] {
        let port = |port| SocketAddr::new(cluster.node_address(node), port);
        rows.extend([
            Row::masqueraded("world", world, Tcp, port(WEB_TCP), web, node),
            Row::masqueraded("world", world, Udp, port(WEB_UDP), web, node),
            Row::masqueraded("neighbour", cluster.neighbour(node), Tcp, port(WEB_TCP), web, node),
            Row::masqueraded("neighbour", cluster.neighbour(node), Udp, port(WEB_UDP), web, node),
        ]);
        if cluster.proxy == KubeProxy::Iptables {
            // In this mode every address of a node has the ports.
            let second = SocketAddr::new(cluster.second_address(node), WEB_TCP);
            rows.push(Row::masqueraded(
                "second uplink's address",
                cluster.neighbour(node),
                Tcp,
                second,
                web,
                node,
            ));
        }
    }
    check(cluster, &rows);
}

#[test]
fn local_backends_see_the_world_as_it_is() {
    Cluster::each(|cluster| {
        let world = cluster.world();
        let row = |name, client, node: usize| {
            let service = SocketAddr::new(cluster.node_address(node), WEB_LOCAL);
            Row::masqueraded(name, client, Tcp, service, cluster.site.local[node], node).seen_as(Seen::Client)
        };
        let has_backend = |node: &usize| !cluster.site.local[*node].is_empty();
        let rows = [0, 1]
            .into_iter()
            .filter(has_backend)
            .flat_map(|node| [row("world", world, node), row("neighbour", cluster.neighbour(node), node)]);
        check(cluster, &rows.collect::<Vec<_>>());
    });
}

#[test]
fn a_pod_reaches_node_ports_of_both_nodes() {
    Cluster::each(|cluster| {
        let all = cluster.site.local.concat();
        let port = |node: usize, port| SocketAddr::new(cluster.node_address(node), port);
        let row = |client, node, protocol, number| {
            let client: (&Ns, IpAddr) = (cluster.pod(client), cluster.address(client));
            Row::masqueraded(
                "pod to a NodePort",
                client,
                protocol,
                port(node, number),
                cluster.site.web,
                node,
            )
        };
        check(
            cluster,
            &[
                row("client-1", 0, Tcp, WEB_TCP),
                row("client-1", 0, Udp, WEB_UDP),
                row("client-1", 1, Tcp, WEB_TCP),
                row("client-1", 1, Udp, WEB_UDP),
                row("web-2", 0, Tcp, WEB_TCP),
                row("web-2", 1, Tcp, WEB_TCP),
                // On its own node, kube-proxy lets a pod through to every backend, with the pod's
                // own address.
                Row::pod(cluster, "pod to a local NodePort", "client-1", Tcp, port(0, WEB_LOCAL), &all),
            ],
        );
    });
}

impl Cluster {
    fn world(&self) -> (&Ns, IpAddr) {
        (self.lab.world(), self.lab.world_addresses()[self.family])
    }
}
