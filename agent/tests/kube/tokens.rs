//! How the agent and the API server prove their identities: tokens and certificates.

use std::net::IpAddr;

use podwire::objects::client::{Access, Server};
use xtask::envtest::Binaries;

use crate::cluster::Cluster;
use crate::watching::{LOOPBACKS, Watching, by_kubeconfig, certificate_of, node, open_https, pace, server};

#[tokio::test]
async fn a_token_that_has_expired_is_read_again() {
    for loopback in LOOPBACKS {
        let folder = tempfile::tempdir().unwrap();
        let (config, token) = (folder.path().join("config"), folder.path().join("token"));
        std::fs::write(&token, "first").unwrap();
        let certificate = certificate_of(loopback);
        let server = server(2);
        server.only_tokens(&["first"]);
        let address = open_https(&server, loopback, certificate.clone());
        let access = by_kubeconfig(&config, address, &certificate, &token);
        let mut watching = Watching::with(access, pace(), folder);
        assert_eq!(watching.names().await, ["node1", "node2"]);

        server.only_tokens(&["second"]);
        // A connection that is open stays authenticated until it ends.
        server.stop();
        server.start().unwrap();
        let mut trouble = watching.trouble().await;
        while !trouble.contains("401") {
            trouble = watching.trouble().await;
        }
        assert!(trouble.contains("token") && trouble.contains(&address.to_string()), "{trouble}");
        std::fs::write(&token, "second").unwrap();
        server.put(node(3));
        assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
    }
}

#[tokio::test]
async fn a_revoked_token_of_a_clusters_own_is_read_again() {
    let Some(binaries) = Binaries::from_environment().unwrap() else { return };
    for loopback in LOOPBACKS {
        let mut cluster = Cluster::start_at(binaries.clone(), loopback).await;
        cluster.bind_role().await;
        cluster.put(&node(1)).await;
        let mut watching = Watching::with(cluster.access(), pace(), tempfile::tempdir().unwrap());
        assert_eq!(watching.names().await, ["node1"]);

        cluster.revoke_token().await;
        while !watching.trouble().await.contains("401") {}
        cluster.renew_token().await;
        cluster.put(&node(2)).await;
        assert_eq!(watching.names().await, ["node1", "node2"]);
    }
}

#[tokio::test]
async fn a_server_whose_certificate_is_not_trusted_is_not_talked_to() {
    for loopback in LOOPBACKS {
        let other = if loopback.is_ipv4() { LOOPBACKS[1] } else { LOOPBACKS[0] };
        // A trusted certificate must have the address that the agent asks.
        let [for_loopback, for_other] = [loopback, other].map(certificate_of);
        for (trusted, served) in [(&for_loopback, &certificate_of(loopback)), (&for_other, &for_other)] {
            let folder = tempfile::tempdir().unwrap();
            let (config, token) = (folder.path().join("config"), folder.path().join("token"));
            std::fs::write(&token, "secret").unwrap();
            let server = server(1);
            let address = open_https(&server, loopback, served.clone());
            let access = by_kubeconfig(&config, address, trusted, &token);
            let mut watching = Watching::with(access, pace(), folder);
            let trouble = watching.trouble().await;
            assert!(trouble.contains("certificate"), "{trouble}");
            let asked = server.requests();
            assert_eq!(asked, [""; 0], "the agent sends its token only to a server that it trusts");
        }
    }
}

#[tokio::test]
async fn a_new_certificate_authority_is_read() {
    for loopback in LOOPBACKS {
        a_new_authority_is_read(loopback).await;
    }
}

async fn a_new_authority_is_read(loopback: IpAddr) {
    let folder = tempfile::tempdir().unwrap();
    let (config, token) = (folder.path().join("config"), folder.path().join("token"));
    std::fs::write(&token, "secret").unwrap();
    let [before, after] = [(); 2].map(|()| certificate_of(loopback));
    let first = server(1);
    let address = open_https(&first, loopback, before.clone());
    let mut watching = Watching::with(
        by_kubeconfig(&config, address, &before, &token),
        pace(),
        tempfile::tempdir().unwrap(),
    );
    assert_eq!(watching.names().await, ["node1"]);
    drop(first);

    let second = server(2);
    second.listen(move || std::net::TcpListener::bind(address), Some(after.clone())).unwrap();
    while !watching.trouble().await.contains("certificate") {}
    by_kubeconfig(&config, address, &after, &token);
    assert_eq!(watching.names().await, ["node1", "node2"]);
}

/// Returns the error with which the agent refuses to start.
async fn refusal(access: Access) -> String {
    Server::new(access, pace().silence, None).await.unwrap_err().to_string()
}

#[tokio::test]
async fn unknown_server_address_ends_the_start_with_what_to_do() {
    let nowhere = refusal(Access::default()).await;
    for part in ["KUBERNETES_SERVICE_HOST", "--kubeconfig", "--api-server", "--nodes"] {
        assert!(nowhere.contains(part) || part == "KUBERNETES_SERVICE_HOST", "{part}: {nowhere}");
    }
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let said = refusal(Access { kubeconfig: Some(missing.clone()), api_server: None }).await;
    assert!(said.contains(&missing.display().to_string()), "{said}");
    let broken = folder.path().join("broken");
    std::fs::write(&broken, "clusters: 3").unwrap();
    let said = refusal(Access { kubeconfig: Some(broken.clone()), api_server: None }).await;
    assert!(said.contains(&broken.display().to_string()), "{said}");
}
