//! A host outside reaches a pod by a service's external address, with Podwire's programs and with
//! rules as kube-proxy writes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use serde_json::json;
use xtask::lab::Lab;

use super::{READY_PORT, SERVICE, SPARE_TURNS, cluster_ip, connect, objects, wait, write};
use crate::bench::Effort;
use crate::bench::client::FIRST_CONNECTION_PORT;
use crate::bench::comparison::Ratio;
use crate::bench::record::{Report, Target};
use crate::bench::site::{Family, Programs, Site};

const KUBE_PROXY: &str = "podwire, by rules as kube-proxy's";

/// Measures connections of a host outside, with the pod on the node that it asks and on another one.
pub(crate) fn measure(
    programs: &Programs,
    family: Family,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let turns = u16::try_from(effort.rounds)?.checked_add(SPARE_TURNS).context("fewer rounds")?;
    let connections = || FIRST_CONNECTION_PORT..=FIRST_CONNECTION_PORT + turns;
    let external = external_ip(family);
    for (number, name) in [(0, "here"), (1, "there")] {
        let folder = tempfile::tempdir().context("make a folder for the services")?;
        let file = folder.path().join("services.json");
        write(&file, &[])?;
        let path = file.to_string_lossy();
        let arguments = ["--services", "on", "--services-file", &path];
        let own = lab_outside(programs, &arguments, family)?;
        let peer = lab_outside(programs, &[], family)?;
        let [backend, of_peer] = [&own, &peer].map(|lab| lab.node(number).add_pod("backend"));
        let (backend, of_peer) = (backend?, of_peer?);
        for lab in [&own, &peer] {
            let via = lab.node(0).addresses()[0];
            lab.underlay().ip(&format!("route add {external} via {via}\n"))?;
        }
        let mut objects = objects(cluster_ip(family), backend.address(), connections());
        objects[0]["spec"]["externalIPs"] = json!([external]);
        write(&file, &objects)?;
        let ports = connections().chain([READY_PORT]);
        peer.node(0).exec(&["nft", &kube_proxy_rules(external, of_peer.address(), ports)])?;
        wait(own.world(), &backend, external)?;
        wait(peer.world(), &of_peer, external)?;
        let sites = [
            Site::of_service(KUBE_PROXY, peer.world(), &of_peer, external),
            Site::of_service(SERVICE, own.world(), &backend, external),
        ];
        let figure = format!("service-outside-{name}-connect");
        let comparison = connect(&figure, &sites, FIRST_CONNECTION_PORT, effort)?;
        let target = Some(Target::AtLeast(1.2));
        comparison.record(&figure, SERVICE, KUBE_PROXY, Ratio::Plain, target, report)?;
        report.charts.push(comparison.chart());
    }
    Ok(())
}

/// Makes a lab with a host outside.
fn lab_outside(programs: &Programs, arguments: &[&str], family: Family) -> Result<Lab> {
    let builder = Lab::builder().node_file().families(family.families()).binaries(&programs.binaries);
    builder.agent_arguments(arguments).build()
}

/// Returns rules of nftables as those of kube-proxy: a map from address, protocol and port to a chain,
/// which marks the packet for masquerading and translates its destination.
fn kube_proxy_rules(external: IpAddr, pod: IpAddr, ports: impl Iterator<Item = u16>) -> String {
    let (table, of_type) = if pod.is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
    let elements: Vec<_> = ports.map(|port| format!("{external} . tcp . {port} : goto external")).collect();
    format!(
        "table {table} outside {{
            chain endpoint {{ meta l4proto tcp dnat to {pod}; }}
            chain external {{ meta mark set meta mark or 0x4000; goto endpoint; }}
            map services {{
                type {of_type} . inet_proto . inet_service : verdict;
                elements = {{ {} }}
            }}
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                {table} daddr . meta l4proto . th dport vmap @services;
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                meta mark and 0x4000 == 0x4000 masquerade fully-random;
            }}
        }}",
        elements.join(", ")
    )
}

/// Returns an address that no host has.
fn external_ip(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(203, 0, 113, 50).into(),
        Family::Ipv6 => Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 0x50).into(),
    }
}
