//! A real cluster's lists, against what its kube-proxy made of them on both nodes
//! (`testdata/dual-stack`).

use std::collections::BTreeMap;

use super::super::{Answer, FrontendKind, Protocol, ServedPort, served_ports};
use super::{ThisNode, ip, sockets};
use crate::model::Family;

mod lists;
mod rules;

/// What a frontend does, in words: from kube-proxy's rules, or from ours. By address, protocol and
/// port; NodePorts have `IPv4` or `IPv6` as address.
type Behaviour = BTreeMap<String, String>;

fn key(address: &str, protocol: &str, port: &str) -> String {
    format!("{address} {protocol} {port}")
}

fn describe(
    inside: &str,
    outside: Option<&str>,
    keeps_client: bool,
    ranges: &[String],
    affinity: u32,
) -> String {
    let outside = outside.unwrap_or("nobody");
    let source = if keeps_client { "keeps" } else { "hides" };
    format!(
        "inside: {inside}; outside: {outside}; {source} the client; only {ranges:?}; affinity {affinity} s"
    )
}

/// Returns what this agent would do.
fn ours(served: &[ServedPort]) -> Behaviour {
    let mut behaviour = Behaviour::new();
    for port in served {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        for frontend in &port.frontends {
            let answer = |answer| match answer {
                Answer::Refused => "refused".to_string(),
                Answer::Dropped => "dropped".to_string(),
                _ => sockets(port.backends(answer)).join(" "),
            };
            let address = match frontend.kind {
                FrontendKind::NodePort => port.family.to_string(),
                _ => frontend.address.to_string(),
            };
            let outside = frontend.outside.map(answer);
            let ranges: Vec<_> = frontend.source_ranges.iter().map(ToString::to_string).collect();
            // Without backends kube-proxy's rules do not tell.
            let has_backends = frontend.inside != Answer::Refused && frontend.inside != Answer::Dropped;
            let words = describe(
                &answer(frontend.inside),
                outside.as_deref(),
                has_backends && frontend.keeps_client_address,
                &ranges,
                port.affinity.filter(|_| has_backends).map_or(0, Into::into),
            );
            behaviour.insert(key(&address, protocol, &frontend.port.to_string()), words);
        }
    }
    behaviour
}

#[track_caller]
fn check(name: &str, addresses: [&str; 2], rules: &str) {
    let node = ThisNode { name: name.into(), zone: None, addresses: addresses.map(ip).into() };
    let (services, slices) = (lists::services(), lists::slices());
    let of_service = |service: &super::Service| {
        let slices: Vec<_> = slices.iter().filter(|slice| slice.service == service.name).collect();
        served_ports(service, &slices, &node)
    };
    let served: Vec<_> = services.iter().flat_map(of_service).collect();
    let (ours, kube_proxy) = (ours(&served), rules::behaviour(rules));
    for key in ours.keys().chain(kube_proxy.keys()) {
        assert_eq!(ours.get(key), kube_proxy.get(key), "{name}: {key}");
    }
    let of = |family: Family| served.iter().filter(|port| port.family == family).count();
    assert_eq!((of(Family::V4), of(Family::V6), ours.len()), (25, 24, 70));
}

#[test]
fn first_node_serves_what_its_kube_proxy_serves() {
    let rules = include_str!("../../../../../../testdata/dual-stack/kube-proxy/nftables-kn1.nft");
    check("kn1", ["172.31.0.1", "fd00:172:31::1"], rules);
}

#[test]
fn second_node_serves_what_its_kube_proxy_serves() {
    let rules = include_str!("../../../../../../testdata/dual-stack/kube-proxy/nftables-kn2.nft");
    check("kn2", ["172.31.0.2", "fd00:172:31::2"], rules);
}
