//! Pods and the nodes' own processes as clients of services.

use std::collections::BTreeSet;

use xtask::lab::{KubeProxy, Ns};

use super::backends::{Connection, expect_refusal};
use super::table::Protocol::{self, Tcp, Udp};
use super::table::{Row, Seen, check};
use super::{Cluster, DNS, KUBERNETES, NOBODY, SOLO, WEB, WEB_EXTERNAL, WEB_STICKY, WEB_TCP, WEB_UDP, v4};

/// With a random choice, this many connections would go to at least two of three backends.
const STICKY: usize = 20;

#[test]
fn pod_reaches_services_with_backends_here_there_and_itself() {
    Cluster::each(|cluster| {
        let pod = |name, client, protocol, service, backends| {
            Row::pod(cluster, name, client, protocol, service, backends)
        };
        check(
            cluster,
            &[
                pod("pod to three backends", "client-1", Tcp, WEB_TCP, WEB),
                pod("pod to three backends", "client-1", Udp, WEB_UDP, WEB),
                pod("pod to three backends, from the other node", "client-2", Tcp, WEB_TCP, WEB),
                pod("pod to three backends, from the other node", "client-2", Udp, WEB_UDP, WEB),
                pod("pod to three backends, itself one", "web-1", Tcp, WEB_TCP, WEB),
                pod("pod to three backends, itself one", "web-2", Udp, WEB_UDP, WEB),
                pod("pod to a backend on its node", "client-2", Tcp, SOLO, &["solo"]),
                pod("pod to a backend on the other node", "client-1", Tcp, SOLO, &["solo"]),
                pod("pod to itself", "solo", Tcp, SOLO, &["solo"]),
                pod("pod to DNS on its node", "client-1", Udp, DNS, &["dns"]),
                pod("pod to DNS on the other node", "client-2", Udp, DNS, &["dns"]),
                pod("pod to DNS on the other node", "client-2", Tcp, DNS, &["dns"]),
                pod("DNS to itself", "dns", Udp, DNS, &["dns"]),
            ],
        );
    });
}

#[test]
fn pods_and_processes_of_nodes_reach_the_api_server() {
    Cluster::each(|cluster| {
        check(
            cluster,
            &[
                Row::pod(cluster, "pod of the API server's node", "client-1", Tcp, KUBERNETES, &["node1"]),
                Row::pod(cluster, "pod of the other node", "client-2", Tcp, KUBERNETES, &["node1"]),
                process(cluster, "the API server's node", 0, Tcp, KUBERNETES, &["node1"]),
                process(cluster, "the other node", 1, Tcp, KUBERNETES, &["node1"]),
            ],
        );
    });
}

#[test]
fn a_process_of_a_node_reaches_services() {
    Cluster::each(|cluster| {
        check(
            cluster,
            &[
                process(cluster, "three backends", 0, Tcp, WEB_TCP, WEB),
                process(cluster, "three backends", 1, Udp, WEB_UDP, WEB),
                process(cluster, "a backend on the other node", 0, Tcp, SOLO, &["solo"]),
                process(cluster, "a backend on its node", 1, Tcp, SOLO, &["solo"]),
                process(cluster, "an external IP", 0, Tcp, WEB_EXTERNAL, WEB),
            ],
        );
    });
}

#[test]
fn a_pod_reaches_a_service_by_its_external_ip() {
    Cluster::each(|cluster| {
        let row = |client, node| {
            Row::pod(cluster, "external IP", client, Tcp, WEB_EXTERNAL, WEB).seen_as(Seen::Node(node))
        };
        check(cluster, &[row("client-1", 0), row("client-2", 1), row("web-1", 0)]);
    });
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    Cluster::each(|cluster| {
        let clients: [&Ns; 3] = [cluster.pod("client-1"), cluster.pod("client-2"), cluster.lab.node(0)];
        for client in clients {
            expect_refusal(client, NOBODY).unwrap();
            if cluster.proxy == KubeProxy::Nftables {
                // This is a port that the service does not have.
                expect_refusal(client, v4([10, 96, 66, 215], 8080)).unwrap();
            }
        }
    });
}

#[test]
fn a_client_of_a_service_with_affinity_stays_with_one_backend() {
    Cluster::each(|cluster| {
        let _backends = cluster.serve();
        let clients: [&Ns; 3] = [cluster.pod("client-1"), cluster.pod("client-2"), cluster.pod("solo")];
        for client in clients {
            let answers = (0..STICKY).map(|_| {
                let mut connection = Connection::open(client, WEB_STICKY).unwrap();
                connection.echo(1000).unwrap();
                connection.answer.backend
            });
            let answered: BTreeSet<String> = answers.collect();
            assert_eq!(answered.len(), 1, "{}: {answered:?}", client.name());
        }
    });
}

fn process<'a>(
    cluster: &'a Cluster,
    name: &'static str,
    node: usize,
    protocol: Protocol,
    service: std::net::SocketAddr,
    backends: &'a [&'a str],
) -> Row<'a> {
    let client = cluster.lab.node(node);
    Row::masqueraded(name, (client, client.address()), protocol, service, backends, node)
}
