//! Pod to the world. The world sees the node's address as the pod's address.

use anyhow::Result;

use crate::bench::client::{Connections, Transport};
use crate::bench::comparison::{Comparison, Contestant, Ratio};
use crate::bench::record::{Report, Target};
use crate::bench::site::{
    DIRECT, FLANNEL, FLANNEL_NFTABLES, Family, LIMIT, OTHER, Place, Programs, Site, VXLAN,
};
use crate::bench::{Effort, contest};

pub(crate) fn round_trips(
    programs: &Programs,
    family: Family,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let sites = Site::usual(programs, Place::World, family)?;
    for (transport, name) in [(Transport::Tcp, "tcp-rr"), (Transport::Udp, "udp-rr")] {
        let figure = format!("world-snat-{name}");
        let latencies = contest::round_trips(&figure, transport, &sites, effort)?;
        // The target concerns TCP only.
        let target = (transport == Transport::Tcp).then_some(Target::AtMost(0.5));
        latencies.report(&figure, VXLAN, FLANNEL, target, report)?;
        let (added, one_way) = (Ratio::AddedTo(LIMIT), &latencies.one_way);
        one_way.record(&format!("{figure}-direct"), DIRECT, FLANNEL, added, None, report)?;
        one_way.record(&format!("{figure}-nftables"), VXLAN, FLANNEL_NFTABLES, added, None, report)?;
        if programs.other.is_some() {
            one_way.record(&format!("{figure}-other"), VXLAN, OTHER, added, None, report)?;
        }
    }
    let stream = contest::stream("world-snat-stream", &sites, effort)?;
    stream.record("world-snat-stream", VXLAN, FLANNEL, Ratio::Plain, None, report)?;
    report.charts.push(stream.chart());
    Ok(())
}

pub(crate) fn connections(
    programs: &Programs,
    family: Family,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let sites = Site::usual(programs, Place::World, family)?;
    let contestants = sites.iter().map(|site| {
        let mut connections = Connections::new(site);
        Contestant::new(&site.name, move || Ok([connections.measure(effort.turn)?]))
    });
    let figure = "world-snat-connect";
    let [connections] = Comparison::run_all([(figure, "connections/s")], effort, contestants.collect())?;
    let plain = Ratio::Plain;
    connections.record(figure, VXLAN, FLANNEL, plain, Some(Target::AtLeast(1.25)), report)?;
    connections.record(&format!("{figure}-nftables"), VXLAN, FLANNEL_NFTABLES, plain, None, report)?;
    report.charts.push(connections.chart());
    Ok(())
}
