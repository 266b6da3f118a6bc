//! Pods and the nodes' own processes as clients of services.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use xtask::lab::{KubeProxy, Ns};

use super::Cluster;
use super::table::Protocol::{self, Tcp, Udp};
use super::table::{Row, Seen, check};
use crate::backends::{Connection, expect_refusal};

/// With a random choice, this many connections would go to at least two backends.
const STICKY: usize = 20;

#[test]
fn pod_reaches_services_with_backends_here_there_and_itself() {
    Cluster::each(pod_reaches_services);
}

pub fn pod_reaches_services(cluster: &Cluster) {
    let (services, web) = (cluster.services(), cluster.site.web);
    let (tcp, udp) = (services.web_tcp(), services.web_udp());
    let pod = |name, client, protocol, service, backends| {
        Row::pod(cluster, name, client, protocol, service, backends)
    };
    let rows = [
        pod("pod to all backends", "client-1", Tcp, tcp, web),
        pod("pod to all backends", "client-1", Udp, udp, web),
        pod("pod to all backends, from the other node", "client-2", Tcp, tcp, web),
        pod("pod to all backends, from the other node", "client-2", Udp, udp, web),
        pod("pod to all backends, itself one", "web-1", Tcp, tcp, web),
        pod("pod to all backends, itself one", "web-2", Udp, udp, web),
        pod("pod to a backend on its node", "client-2", Tcp, services.solo(), &["solo"]),
        pod("pod to a backend on the other node", "client-1", Tcp, services.solo(), &["solo"]),
        pod("pod to itself", "solo", Tcp, services.solo(), &["solo"]),
    ];
    check(cluster, &rows);
}

#[test]
fn a_process_of_a_node_reaches_services() {
    Cluster::each(|cluster| {
        let (services, web) = (cluster.services(), cluster.site.web);
        let external = SocketAddr::new(services.web_external, 80);
        check(
            cluster,
            &[
                process(cluster, "all backends", 0, Tcp, services.web_tcp(), web),
                process(cluster, "all backends", 1, Udp, services.web_udp(), web),
                process(cluster, "a backend on the other node", 0, Tcp, services.solo(), &["solo"]),
                process(cluster, "a backend on its node", 1, Tcp, services.solo(), &["solo"]),
                process(cluster, "an external IP", 0, Tcp, external, web),
            ],
        );
    });
}

#[test]
fn a_pod_reaches_a_service_by_its_external_ip() {
    Cluster::each(|cluster| {
        let external = SocketAddr::new(cluster.services().web_external, 80);
        let row = |client, node| {
            Row::pod(cluster, "external IP", client, Tcp, external, cluster.site.web)
                .seen_as(Seen::Node(node))
        };
        check(cluster, &[row("client-1", 0), row("client-2", 1), row("web-1", 0)]);
    });
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    Cluster::each(|cluster| {
        let services = cluster.services();
        let clients: [&Ns; 3] = [cluster.pod("client-1"), cluster.pod("client-2"), cluster.lab.node(0)];
        for client in clients {
            expect_refusal(client, SocketAddr::new(services.nobody, 80)).unwrap();
            if cluster.proxy == KubeProxy::Nftables {
                // This is a port that the service does not have.
                expect_refusal(client, SocketAddr::new(services.web, 8080)).unwrap();
            }
        }
    });
}

#[test]
fn a_client_of_a_service_with_affinity_stays_with_one_backend() {
    Cluster::each(|cluster| {
        let _backends = cluster.serve();
        let sticky = SocketAddr::new(cluster.services().web_sticky, 80);
        let clients: [&Ns; 3] = [cluster.pod("client-1"), cluster.pod("client-2"), cluster.pod("solo")];
        for client in clients {
            let answers = (0..STICKY).map(|_| {
                let mut connection = Connection::open(client, sticky).unwrap();
                connection.echo(1000).unwrap();
                connection.answer.backend
            });
            let answered: BTreeSet<String> = answers.collect();
            assert_eq!(answered.len(), 1, "{}: {answered:?}", client.name());
        }
    });
}

/// Returns a row with a process of a node (from 0) as the client.
pub fn process<'a>(
    cluster: &'a Cluster,
    name: &'static str,
    node: usize,
    protocol: Protocol,
    service: SocketAddr,
    backends: &'a [&'a str],
) -> Row<'a> {
    let client = cluster.lab.node(node);
    Row::masqueraded(name, (client, cluster.node_address(node)), protocol, service, backends, node)
}
