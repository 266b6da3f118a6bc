//! Pod to pod on two nodes.

use anyhow::Result;
use xtask::lab::reference::{Join, Masquerade};

use crate::bench::client::Transport;
use crate::bench::comparison::Ratio;
use crate::bench::record::{Report, Target};
use crate::bench::site::{
    DIRECT, FLANNEL, FLANNEL_NFTABLES, Family, HOST_GW, LIMIT, OTHER, PEERS, Place, Programs, Site, VXLAN,
    VXLAN_IPV6, Way, XDP,
};
use crate::bench::{Effort, contest};

pub(crate) fn measure(
    programs: &Programs,
    family: Family,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let place = Place::CrossNode;
    let object = Some(programs.through_device.as_path());
    let podwire = |name, way| Site::podwire(name, programs, way, place, family);
    let reference = |name, join, masquerade| Site::reference(name, join, masquerade, place, family);
    let mut sites = vec![
        Site::limit(LIMIT, place, family)?,
        podwire(VXLAN, Way::VXLAN)?,
        podwire(XDP, Way { arguments: &["--uplink-xdp", "generic"], ..Way::VXLAN })?,
        podwire(DIRECT, Way::DIRECT)?,
        podwire(PEERS, Way { object, ..Way::VXLAN })?,
        reference(FLANNEL, Join::Vxlan, Masquerade::Iptables)?,
        reference(FLANNEL_NFTABLES, Join::Vxlan, Masquerade::Nftables)?,
        reference(HOST_GW, Join::Routes, Masquerade::Iptables)?,
    ];
    // Only IPv6 pods have nodes of both families. The reference's tunnel has IPv6 outside then.
    let ipv6_underlay = family == Family::Ipv6;
    if ipv6_underlay {
        sites.push(podwire(VXLAN_IPV6, Way::VXLAN_IPV6)?);
    }
    if let Some(way) = Way::other(programs) {
        sites.push(podwire(OTHER, way)?);
    }
    let added = Ratio::AddedTo(LIMIT);
    for (transport, name) in [(Transport::Tcp, "tcp-rr"), (Transport::Udp, "udp-rr")] {
        let vxlan = format!("cross-node-vxlan-{name}");
        let latencies = contest::round_trips(&format!("cross-node-{name}"), transport, &sites, effort)?;
        latencies.report(&vxlan, VXLAN, FLANNEL, Some(Target::AtMost(0.27)), report)?;
        let one_way = &latencies.one_way;
        let below = Some(Target::AtMost(0.7));
        one_way.record(&format!("{vxlan}-peers"), VXLAN, PEERS, added, below, report)?;
        one_way.record(&format!("{vxlan}-nftables"), VXLAN, FLANNEL_NFTABLES, added, None, report)?;
        one_way.record(&format!("{vxlan}-xdp"), XDP, FLANNEL, added, None, report)?;
        if ipv6_underlay {
            let (figure, target) = (format!("{vxlan}-ipv6-underlay"), Some(Target::AtMost(0.27)));
            one_way.record(&figure, VXLAN_IPV6, FLANNEL, added, target, report)?;
        }
        // The target concerns TCP only.
        let target = (transport == Transport::Tcp).then_some(Target::AtMost(0.3));
        one_way.record(&format!("cross-node-direct-{name}"), DIRECT, HOST_GW, added, target, report)?;
        if programs.other.is_some() {
            one_way.record(&format!("{vxlan}-other"), VXLAN, OTHER, added, None, report)?;
        }
    }
    let packets = contest::packets("cross-node-udp-pps", &sites, effort)?;
    let (least, plain) = (Some(Target::AtLeast(1.4)), Ratio::Plain);
    packets.record("cross-node-udp-pps", VXLAN, FLANNEL, plain, least, report)?;
    packets.record("cross-node-udp-pps-peers", VXLAN, PEERS, plain, None, report)?;
    if ipv6_underlay {
        packets.record("cross-node-udp-pps-ipv6-underlay", VXLAN_IPV6, FLANNEL, plain, least, report)?;
    }
    packets.record("cross-node-direct-udp-pps", DIRECT, HOST_GW, plain, None, report)?;
    report.charts.push(packets.chart());
    let stream = contest::stream("cross-node-stream", &sites, effort)?;
    let least = Some(Target::AtLeast(1.15));
    stream.record("cross-node-vxlan-stream", VXLAN, FLANNEL, plain, least, report)?;
    if ipv6_underlay {
        let figure = "cross-node-vxlan-stream-ipv6-underlay";
        stream.record(figure, VXLAN_IPV6, FLANNEL, plain, least, report)?;
    }
    stream.record("cross-node-vxlan-stream-peers", VXLAN, PEERS, plain, None, report)?;
    stream.record("cross-node-direct-stream", DIRECT, HOST_GW, plain, None, report)?;
    report.charts.push(stream.chart());
    Ok(())
}
