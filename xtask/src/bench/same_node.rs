//! Pod to pod on one node.

use anyhow::Result;

use crate::bench::client::Transport;
use crate::bench::comparison::Ratio;
use crate::bench::record::{Report, Target};
use crate::bench::site::{
    DIRECT, FLANNEL, FLANNEL_NFTABLES, Family, LIMIT, OTHER, Place, Programs, Site, VXLAN,
};
use crate::bench::{Effort, contest};

pub(crate) fn measure(
    programs: &Programs,
    family: Family,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let sites = Site::usual(programs, Place::SameNode, family)?;
    for (transport, figure) in [(Transport::Tcp, "same-node-tcp-rr"), (Transport::Udp, "same-node-udp-rr")] {
        let latencies = contest::round_trips(figure, transport, &sites, effort)?;
        let target = Some(Target::AtMost(0.18));
        latencies.report(figure, VXLAN, FLANNEL, target, report)?;
        let added = Ratio::AddedTo(LIMIT);
        let one_way = &latencies.one_way;
        one_way.record(&format!("{figure}-direct"), DIRECT, FLANNEL, added, target, report)?;
        one_way.record(&format!("{figure}-nftables"), VXLAN, FLANNEL_NFTABLES, added, None, report)?;
        if programs.other.is_some() {
            one_way.record(&format!("{figure}-other"), VXLAN, OTHER, added, None, report)?;
        }
    }
    let packets = contest::packets("same-node-udp-pps", &sites, effort)?;
    packets.record("same-node-udp-pps", VXLAN, FLANNEL, Ratio::Plain, Some(Target::AtLeast(1.4)), report)?;
    packets.record("same-node-udp-pps-nftables", VXLAN, FLANNEL_NFTABLES, Ratio::Plain, None, report)?;
    report.charts.push(packets.chart());
    let stream = contest::stream("same-node-stream", &sites, effort)?;
    stream.record("same-node-stream", VXLAN, FLANNEL, Ratio::Plain, None, report)?;
    report.charts.push(stream.chart());
    Ok(())
}
