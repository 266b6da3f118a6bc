//! The services of the API server and of the cluster's DNS. Kubernetes gives both the cluster's
//! first family only.

use std::net::SocketAddr;

use super::Cluster;
use super::cluster_ip::process;
use super::table::Protocol::{Tcp, Udp};
use super::table::{Row, check};

#[test]
fn clients_reach_the_api_server_and_the_clusters_dns() {
    Cluster::each(|cluster| {
        let services = cluster.services();
        let (Some(kubernetes), Some((dns, pods))) = (services.kubernetes, services.dns) else { return };
        let kubernetes = SocketAddr::new(kubernetes, 443);
        let api_server = |name, client| Row::pod(cluster, name, client, Tcp, kubernetes, &["node1"]);
        let dns = |name, client, protocol| {
            Row::pod(cluster, name, client, protocol, SocketAddr::new(dns, 53), pods)
        };
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
    });
}
