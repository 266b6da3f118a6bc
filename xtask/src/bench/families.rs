//! IPv6 beside IPv4: both between the same pods, by the same programs.

use anyhow::Result;

use crate::bench::client::Transport;
use crate::bench::comparison::Ratio;
use crate::bench::record::Report;
use crate::bench::site::{Family, Place, Programs, Site, Way};
use crate::bench::{Effort, contest};

const LIMITS: [&str; 2] = ["limit, IPv4", "limit, IPv6"];
const VXLAN: [&str; 2] = ["podwire, VXLAN, IPv4", "podwire, VXLAN, IPv6"];
const VXLAN_IPV6: [&str; 2] = ["podwire, VXLAN by IPv6, IPv4", "podwire, VXLAN by IPv6, IPv6"];
const DIRECT: [&str; 2] = ["podwire, direct, IPv4", "podwire, direct, IPv6"];

/// Compares the costs that the two families add to their own limits. Without targets: the longer
/// header has a cost of its own.
pub(crate) fn measure(programs: &Programs, effort: Effort, report: &mut Report) -> Result<()> {
    for (place, name) in
        [(Place::SameNode, "same-node"), (Place::CrossNode, "cross-node"), (Place::World, "world-snat")]
    {
        let mut sites =
            vec![Site::limit(LIMITS[0], place, Family::Ipv4)?, Site::limit(LIMITS[1], place, Family::Ipv6)?];
        sites.extend(Site::both_families(VXLAN, programs, Way::VXLAN, place)?);
        sites.extend(Site::both_families(DIRECT, programs, Way::DIRECT, place)?);
        let mut ways = vec![("vxlan", VXLAN), ("direct", DIRECT)];
        if place == Place::CrossNode {
            sites.extend(Site::both_families(VXLAN_IPV6, programs, Way::VXLAN_IPV6, place)?);
            ways.push(("ipv6-underlay", VXLAN_IPV6));
        }
        let each = Ratio::EachAddedTo { ours: LIMITS[1], reference: LIMITS[0] };
        for (transport, protocol) in [(Transport::Tcp, "tcp"), (Transport::Udp, "udp")] {
            let figure = format!("families-{name}-{protocol}-rr");
            let one_way = contest::round_trips(&figure, transport, &sites, effort)?.one_way;
            for (way, [ipv4, ipv6]) in &ways {
                let figure = format!("families-{name}-{way}-{protocol}-rr");
                one_way.record(&figure, ipv6, ipv4, each, None, report)?;
            }
            report.charts.push(one_way.chart());
        }
    }
    Ok(())
}
