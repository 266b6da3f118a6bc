//! The cluster's first family. The services of the API server and of the cluster's DNS have no
//! other.

use std::net::SocketAddr;

use super::Cluster;
use super::cluster_ip::{pod_reaches_services, process};
use super::node_port::the_world_reaches_backends;
use super::table::Protocol::{Tcp, Udp};
use super::table::{Row, check};

#[test]
fn pods_and_the_world_reach_services_where_ipv6_is_first() {
    Cluster::with_ipv6_first(|cluster| {
        assert!(cluster.pod("web-1").address().is_ipv6());
        pod_reaches_services(cluster);
        the_world_reaches_backends(cluster);
        reach_the_api_server_and_dns(cluster);
    });
}

#[test]
fn clients_reach_the_api_server_and_the_clusters_dns() {
    Cluster::each(reach_the_api_server_and_dns);
}

fn reach_the_api_server_and_dns(cluster: &Cluster) {
    let services = cluster.services();
    let (Some(kubernetes), Some((dns, pods))) = (services.kubernetes, services.dns) else { return };
    let kubernetes = SocketAddr::new(kubernetes, 443);
    let api_server = |name, client| Row::pod(cluster, name, client, Tcp, kubernetes, &["node1"]);
    let dns =
        |name, client, protocol| Row::pod(cluster, name, client, protocol, SocketAddr::new(dns, 53), pods);
    check(
        cluster,
        &[
            api_server("pod of the API server's node", "client-1"),
            api_server("pod of the other node", "client-2"),
            process(cluster, "the API server's node", 0, Tcp, kubernetes, &["node1"]),
            process(cluster, "the other node", 1, Tcp, kubernetes, &["node1"]),
            dns("pod to DNS on its node", "client-1", Udp),
            dns("pod to DNS on the other node", "client-2", Udp),
            dns("pod to DNS on the other node", "client-2", Tcp),
            dns("DNS to itself", "dns", Udp),
        ],
    );
}
