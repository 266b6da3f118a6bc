//! A pod, or a process of the node, reaches a pod by a service, beside a pod without one and beside
//! kube-proxy's rules.

use anyhow::{Context as _, Result};
use xtask::lab::KubeProxy;

use super::ends::{Ends, Served};
use super::{SERVICE, SPARE_TURNS, connect};
use crate::bench::client::{FIRST_CONNECTION_PORT, Transport};
use crate::bench::comparison::Ratio;
use crate::bench::record::{Report, Target};
use crate::bench::site::{Family, LIMIT, Place, Programs, Site};
use crate::bench::{Effort, contest};

const POD: &str = "podwire, the pod itself";
const KUBE_PROXY: &str = "podwire, kube-proxy, nftables";
/// On the bridge: the pod itself, and by kube-proxy's rules.
const NFTABLES: [&str; 2] = ["bridge, nftables, the pod itself", "bridge, kube-proxy, nftables"];
const IPTABLES: [&str; 2] = ["bridge, iptables, the pod itself", "bridge, kube-proxy, iptables"];
/// A process of the node on Podwire, to the pod itself and to the service.
const PROCESS: [&str; 2] = ["podwire, a process, the pod itself", "podwire, a process, by its service"];

/// Services among which one is measured.
const NUMBERS: [usize; 3] = [1, 1000, 10_000];
/// The places, their names in figures, and the least ratio of connections beside the bridge.
const PLACES: [(Place, &str, f64); 2] =
    [(Place::SameNode, "same-node", 1.2), (Place::CrossNode, "cross-node", 1.5)];

pub(crate) fn measure(
    programs: &Programs,
    family: Family,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let turns = u16::try_from(effort.rounds)?.checked_add(SPARE_TURNS).context("fewer rounds")?;
    let of_processes = FIRST_CONNECTION_PORT + turns;
    let served = Served { services: 1, connections: FIRST_CONNECTION_PORT..=of_processes + turns };
    for (place, name, least) in PLACES {
        let own = Ends::podwire(programs, place, family, &served)?;
        let kube_proxy = Ends::podwire_with(KubeProxy::Nftables, programs, place, family, &served)?;
        let nftables = Ends::bridge(KubeProxy::Nftables, place, family, &served)?;
        let iptables = Ends::bridge(KubeProxy::Iptables, place, family, &served)?;
        let sites = [
            Site::limit(LIMIT, place, family)?,
            own.pod(POD),
            own.by_service(SERVICE),
            kube_proxy.by_service(KUBE_PROXY),
            nftables.pod(NFTABLES[0]),
            nftables.by_service(NFTABLES[1]),
            iptables.pod(IPTABLES[0]),
            iptables.by_service(IPTABLES[1]),
        ];
        let most_added = [(Transport::Tcp, "tcp", 0.2), (Transport::Udp, "udp", 0.25)];
        for (transport, protocol, most) in most_added {
            let figure = format!("service-{name}-{protocol}-rr");
            let one_way = contest::round_trips(&figure, transport, &sites, effort)?.one_way;
            one_way.record(&figure, SERVICE, POD, Ratio::Plain, Some(Target::AtMost(1.03)), report)?;
            let most = Some(Target::AtMost(most));
            for (suffix, [pod, by_service], target) in [("", NFTABLES, most), ("-iptables", IPTABLES, None)] {
                // The cost of network and service together, and that of the service alone.
                let (added, alone) = (format!("{figure}-added{suffix}"), format!("{figure}-alone{suffix}"));
                one_way.record(&added, SERVICE, by_service, Ratio::AddedTo(LIMIT), target, report)?;
                let to_pod = Ratio::EachAddedTo { ours: POD, reference: pod };
                one_way.record(&alone, SERVICE, by_service, to_pod, target, report)?;
            }
            let figure = format!("{figure}-kube-proxy");
            one_way.record(&figure, SERVICE, KUBE_PROXY, Ratio::Plain, None, report)?;
            report.charts.push(one_way.chart());
        }
        let figure = format!("service-{name}-connect");
        let rate = connect(&figure, &sites[1..], FIRST_CONNECTION_PORT, effort)?;
        for (suffix, reference, target) in [
            ("", POD, Some(Target::AtLeast(0.92))),
            ("-bridge", NFTABLES[1], Some(Target::AtLeast(least))),
            ("-bridge-iptables", IPTABLES[1], None),
            ("-kube-proxy", KUBE_PROXY, None),
        ] {
            let figure = format!("{figure}{suffix}");
            rate.record(&figure, SERVICE, reference, Ratio::Plain, target, report)?;
        }
        report.charts.push(rate.chart());
        let figure = format!("process-{name}-connect");
        let rate = connect(&figure, &own.of_process(PROCESS), of_processes, effort)?;
        let target = Some(Target::AtLeast(0.95));
        rate.record(&figure, PROCESS[1], PROCESS[0], Ratio::Plain, target, report)?;
        report.charts.push(rate.chart());
    }
    Ok(())
}

/// Measures a service among few and many others, beside kube-proxy's rules for as many.
pub(crate) fn measure_many(programs: &Programs, effort: Effort, report: &mut Report) -> Result<()> {
    let turns = u16::try_from(effort.rounds)?.checked_add(SPARE_TURNS).context("fewer rounds")?;
    let connections = FIRST_CONNECTION_PORT..=FIRST_CONNECTION_PORT + turns;
    let own = |services| format!("podwire, {services} services");
    let peer = |services| format!("bridge, kube-proxy, nftables, {services} services");
    for (place, name, _) in PLACES {
        let (mut all, mut sites) = (Vec::new(), Vec::new());
        for services in NUMBERS {
            let served = Served { services, connections: connections.clone() };
            let podwire = Ends::podwire(programs, place, Family::Ipv4, &served)?;
            let bridge = Ends::bridge(KubeProxy::Nftables, place, Family::Ipv4, &served)?;
            sites.extend([podwire.by_service(&own(services)), bridge.by_service(&peer(services))]);
            all.extend([podwire, bridge]);
        }
        let [one, .., most] = NUMBERS;
        for (transport, protocol) in [(Transport::Tcp, "tcp"), (Transport::Udp, "udp")] {
            let figure = format!("services-many-{name}-{protocol}-rr");
            let one_way = contest::round_trips(&figure, transport, &sites, effort)?.one_way;
            let target = Some(Target::AtMost(1.03));
            one_way.record(&figure, &own(most), &own(one), Ratio::Plain, target, report)?;
            let figure = format!("{figure}-bridge");
            one_way.record(&figure, &own(most), &peer(most), Ratio::Plain, None, report)?;
            report.charts.push(one_way.chart());
        }
        let figure = format!("services-many-{name}-connect");
        let rate = connect(&figure, &sites, FIRST_CONNECTION_PORT, effort)?;
        // This is a rate: 1.03 times the time is 0.97 times the rate.
        let target = Some(Target::AtLeast(0.97));
        rate.record(&figure, &own(most), &own(one), Ratio::Plain, target, report)?;
        for services in NUMBERS {
            let figure = format!("{figure}-bridge-{services}");
            rate.record(&figure, &own(services), &peer(services), Ratio::Plain, None, report)?;
        }
        report.charts.push(rate.chart());
    }
    Ok(())
}
