//! The world as the client: NodePorts, on nodes with more addressed devices than their uplink.

use std::net::{IpAddr, SocketAddr};

use xtask::lab::{KubeProxy, Ns};

use super::table::Protocol::{Tcp, Udp};
use super::table::{Row, Seen, check};
use super::{Cluster, WEB};

const WEB_TCP: u16 = 30080;
const WEB_UDP: u16 = 30081;
/// A NodePort with `externalTrafficPolicy: Local`.
const WEB_LOCAL: u16 = 30082;
/// The backends on each node.
const LOCAL: [&[&str]; 2] = [&["web-1"], &["web-2", "web-3"]];

#[test]
fn the_world_reaches_backends_here_and_there_by_a_node_port() {
    Cluster::each(|cluster| {
        let world: (&Ns, IpAddr) = (cluster.lab.world(), cluster.lab.world_address());
        let mut rows = Vec::new();
        for node in [0, 1] {
            let port = |port| SocketAddr::new(cluster.lab.node(node).address(), port);
            rows.extend([
                Row::masqueraded("world", world, Tcp, port(WEB_TCP), WEB, node),
                Row::masqueraded("world", world, Udp, port(WEB_UDP), WEB, node),
                Row::masqueraded("neighbour", cluster.neighbour(node), Tcp, port(WEB_TCP), WEB, node),
                Row::masqueraded("neighbour", cluster.neighbour(node), Udp, port(WEB_UDP), WEB, node),
            ]);
            if cluster.proxy == KubeProxy::Iptables {
                // In this mode every address of a node has the ports.
                let second = SocketAddr::new(Cluster::second_address(node), WEB_TCP);
                rows.push(Row::masqueraded(
                    "second uplink's address",
                    cluster.neighbour(node),
                    Tcp,
                    second,
                    WEB,
                    node,
                ));
            }
        }
        check(cluster, &rows);
    });
}

#[test]
fn local_backends_see_the_world_as_it_is() {
    Cluster::each(|cluster| {
        let world: (&Ns, IpAddr) = (cluster.lab.world(), cluster.lab.world_address());
        let row = |name, client, node: usize| {
            let service = SocketAddr::new(cluster.lab.node(node).address(), WEB_LOCAL);
            Row::masqueraded(name, client, Tcp, service, LOCAL[node], node).seen_as(Seen::Client)
        };
        check(
            cluster,
            &[
                row("world", world, 0),
                row("world", world, 1),
                row("neighbour", cluster.neighbour(0), 0),
                row("neighbour", cluster.neighbour(1), 1),
            ],
        );
    });
}

#[test]
fn a_pod_reaches_node_ports_of_both_nodes() {
    Cluster::each(|cluster| {
        let port = |node: usize, port| SocketAddr::new(cluster.lab.node(node).address(), port);
        let row = |client, node, protocol, number| {
            let pod = cluster.pod(client);
            let client: (&Ns, IpAddr) = (pod, pod.address());
            Row::masqueraded("pod to a NodePort", client, protocol, port(node, number), WEB, node)
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
                Row::pod(cluster, "pod to a local NodePort", "client-1", Tcp, port(0, WEB_LOCAL), WEB),
            ],
        );
    });
}

impl Cluster {
    /// Returns the neighbour as a node (from 0) sees it.
    fn neighbour(&self, node: usize) -> (&Ns, IpAddr) {
        (&self.neighbour, IpAddr::from([10, 201, node as u8 + 1, 66]))
    }
}
