//! The text of /metrics.

mod process;

use std::collections::BTreeSet;
use std::fmt::Error;

use podwire_common::abi::Count;
use podwire_core::cluster::Skipped;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use crate::events::{Figures, Repair};
pub(crate) use process::Process;

/// The type of [`text`] for HTTP.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Returns the text of /metrics, in Prometheus' text format. Every client reads this format, and
/// `promtool check metrics` reads no other. `process`: `None` if it cannot be read.
///
/// # Errors
/// The encoder's own.
pub(crate) fn text(figures: &Figures, process: Option<&Process>, is_ready: bool) -> Result<String, Error> {
    Ok(in_text_format(&open_metrics(figures, process, is_ready)?))
}

/// Converts OpenMetrics to Prometheus' text format (version 0.0.4). There HELP and TYPE of a counter
/// have the name of its samples, with `_total`, and there are no units.
fn in_text_format(open_metrics: &str) -> String {
    let types = open_metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let counters: BTreeSet<&str> = types.filter_map(|line| line.strip_suffix(" counter")).collect();
    let mut text = String::new();
    for line in open_metrics.lines().filter(|line| !line.starts_with("# UNIT ")) {
        match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
            ["#", what, name, rest] if counters.contains(name) => {
                text += &format!("# {what} {name}_total {rest}\n");
            }
            _ => text += &format!("{line}\n"),
        }
    }
    text
}

fn open_metrics(figures: &Figures, process: Option<&Process>, is_ready: bool) -> Result<String, Error> {
    let mut registry = Registry::with_prefix("podwire");
    let version = Family::<Labels<1>, Gauge>::default();
    version.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
    registry.register("build_info", "1, with the agent's version", version);
    readiness(&mut registry, figures, is_ready);
    packets(&mut registry, figures);
    nodes_and_pods(&mut registry, figures);
    tables(&mut registry, figures);
    changes(&mut registry, figures);
    durations(&mut registry, figures);
    let mut text = String::new();
    encode_registry(&mut text, &registry)?;
    if let Some(process) = process {
        let mut registry = Registry::with_prefix("process");
        process.register(&mut registry);
        encode_registry(&mut text, &registry)?;
    }
    Ok(text)
}

fn readiness(registry: &mut Registry, figures: &Figures, is_ready: bool) {
    gauge(registry, "ready", "1 while /readyz answers that the agent is ready", usize::from(is_ready));
    let conditions = figures.conditions.iter().map(|(name, subjects)| {
        ([("condition", name.name()), ("severity", name.severity().name())], *subjects as u64)
    });
    gauges(
        registry,
        "condition",
        "Conditions that hold, by name and severity: the number of affected pods, nodes or places, or 1",
        None,
        conditions,
    );
    let in_the_way = Family::<[(&'static str, String); 1], Gauge>::default();
    for place in &figures.forward_policy_drops {
        in_the_way.get_or_create(&[("where", place.clone())]).set(1);
    }
    registry.register(
        "forward_policy_drop",
        "1 for each place where the host's firewall may drop pods' packets to services and the world",
        in_the_way,
    );
    if let Some(first) = figures.cni_configuration_first {
        gauge(
            registry,
            "cni_configuration_first",
            "1 while the runtime takes Podwire's network configuration: no other one comes before it in --cni-conf-dir",
            usize::from(first),
        );
    }
}

fn packets(registry: &mut Registry, figures: &Figures) {
    let drops = figures.counters.drops.iter().map(|(reason, count)| ([("reason", reason.name())], *count));
    counts(registry, "dropped", "dropped by the programs, by reason", drops);
    let traffic = figures.counters.traffic.iter().map(|(path, count)| ([("path", path.name())], *count));
    counts(registry, "forwarded", "handled by the programs, by path", traffic);
    counters(
        registry,
        "events_lost",
        "Dropped packets without an event, by reason: its budget was used, or the ring was full",
        figures.events_lost.drops.iter().map(|(reason, count)| ([("reason", reason.name())], *count)),
    );
    counters(
        registry,
        "monitor_events_lost",
        "First packets of new flows, and captured packets, that somebody wanted to see and that did not fit the ring, by kind of event",
        figures.events_lost.others.iter().map(|(kind, count)| ([("kind", kind.name())], *count)),
    );
}

fn nodes_and_pods(registry: &mut Registry, figures: &Figures) {
    gauge(registry, "endpoints", "Pods of this node", figures.endpoints);
    gauge(
        registry,
        "addresses",
        "Addresses of this node's podCIDR that pods can have, assigned or free",
        figures.addresses as usize,
    );
    gauge(registry, "nodes", "Nodes that the agent uses, including this node", figures.nodes);
    let skipped = Skipped::ALL.iter().map(|reason| {
        let count = figures.skipped.get(reason).copied().unwrap_or_default();
        ([("reason", reason.name())], count as u64)
    });
    gauges(
        registry,
        "nodes_skipped",
        "Nodes that the agent does not use in the pod network, by reason",
        None,
        skipped,
    );
    registry.register_with_unit(
        "node_list_age",
        "Time since the node list was last known to be current: 0 while its source answers",
        Unit::Seconds,
        ConstGauge::new(figures.node_list_age.as_secs()),
    );
    if let Some((services, endpoints)) = figures.services {
        gauge(registry, "services", "Services that the agent has read, with --services on", services);
        gauge(
            registry,
            "service_endpoints",
            "Endpoints of these services in their EndpointSlices, ready or not, with --services on",
            endpoints,
        );
    }
}

fn tables(registry: &mut Registry, figures: &Figures) {
    let collected = &figures.collected;
    gauge(registry, "translations", "Entries of TRANSLATIONS at the last count", collected.translations);
    gauge(registry, "stack_flows", "Entries of STACK_FLOWS at the last count", collected.stack_flows);
    gauge(
        registry,
        "pressure",
        "1 while TRANSLATIONS is nearly full and the agent removes finished flows sooner",
        usize::from(collected.pressure),
    );
    let fill = collected.fill.iter().map(|(table, fill)| ([("table", table.name())], fill));
    let entries = fill.clone().map(|(labels, fill)| (labels, fill.entries as u64));
    gauges(registry, "table_entries", "Entries of a table at the last count", None, entries);
    let most = fill.map(|(labels, fill)| (labels, fill.capacity as u64));
    gauges(registry, "table_max_entries", "Largest number of entries of a table", None, most);
    let memory = figures.memory.iter().map(|(table, bytes)| ([("table", table.name())], *bytes));
    gauges(
        registry,
        "table_memory",
        "Kernel memory of a table, as the kernel counts it",
        Some(Unit::Bytes),
        memory,
    );
}

fn changes(registry: &mut Registry, figures: &Figures) {
    registry.register(
        "operations",
        "Changes that the agent made to map entries and routes",
        ConstCounter::new(figures.operations),
    );
    registry.register(
        "programs_reattached",
        "Programs that the agent attached again after another tool removed or replaced them",
        ConstCounter::new(figures.reattached),
    );
    let repairs = Repair::ALL
        .iter()
        .map(|repair| ([("what", repair.name())], figures.repairs.get(repair).copied().unwrap_or_default()));
    counters(registry, "repairs", "Other changes by tools that the agent undid, by kind", repairs);
    registry.register(
        "switches_set_again",
        "Kernel switches that the agent set again after another tool changed them",
        ConstCounter::new(figures.switches_set_again),
    );
}

fn durations(registry: &mut Registry, figures: &Figures) {
    let durations = &figures.durations;
    registry.register_with_unit(
        "cni_call_duration",
        "Time from a plugin's request to the agent's reply, by verb and outcome",
        Unit::Seconds,
        durations.calls.clone(),
    );
    registry.register_with_unit(
        "node_list_sync_duration",
        "Time from when the agent takes a node list until the kernel holds what follows from it, by outcome",
        Unit::Seconds,
        durations.node_lists.clone(),
    );
    registry.register_with_unit(
        "reconcile_duration",
        "Time for which the agent compares everything that the kernel has with what is wanted, and puts it right, by outcome",
        Unit::Seconds,
        durations.reconciles.clone(),
    );
}

fn counts(registry: &mut Registry, name: &str, help: &str, counts: impl Iterator<Item = (Labels<1>, Count)>) {
    let (packets, bytes) = (Family::<Labels<1>, Counter>::default(), Family::<Labels<1>, Counter>::default());
    for (labels, count) in counts {
        packets.get_or_create(&labels).inc_by(count.packets);
        bytes.get_or_create(&labels).inc_by(count.bytes);
    }
    let unit = Unit::Other("packets".to_owned());
    registry.register_with_unit(name, format!("Packets {help}"), unit, packets);
    registry.register_with_unit(name, format!("Bytes {help}"), Unit::Bytes, bytes);
}

fn counters(registry: &mut Registry, name: &str, help: &str, counts: impl Iterator<Item = (Labels<1>, u64)>) {
    let counters = Family::<Labels<1>, Counter>::default();
    for (labels, count) in counts {
        counters.get_or_create(&labels).inc_by(count);
    }
    registry.register(name, help, counters);
}

fn gauges<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    values: impl Iterator<Item = (Labels<N>, u64)>,
) {
    let gauges = Family::<Labels<N>, Gauge>::default();
    for (labels, value) in values {
        gauges.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
    }
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, gauges),
        None => registry.register(name, help, gauges),
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: usize) {
    registry.register(name, help, ConstGauge::new(value));
}

#[cfg(test)]
mod documented;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::ConditionName;
    use crate::dataplane::flows::{Collected, Fill};
    use crate::dataplane::maps::Counters;
    use crate::dataplane::packet_events::LostCounts;
    use podwire_common::event::Kind;
    use podwire_common::reason::{Drop, Path};
    use podwire_common::tables::Table;
    use std::collections::BTreeMap;
    use std::time::Duration;

    /// Figures with which every metric has a series.
    pub(super) fn figures() -> Figures {
        let counters = Counters {
            drops: vec![(Drop::Multicast, Count { packets: 3, bytes: 300 })],
            traffic: vec![(Path::Local, Count { packets: 5, bytes: 500 })],
        };
        let fill = BTreeMap::from([(Table::Endpoints, Fill { entries: 4, capacity: 1024 })]);
        let figures = Figures {
            counters,
            events_lost: LostCounts {
                drops: vec![(Drop::Multicast, 2)],
                others: vec![(Kind::Flow, 7), (Kind::Translation, 8), (Kind::Packet, 9)],
            },
            endpoints: 4,
            nodes: 2,
            services: Some((17, 40)),
            addresses: 253,
            reattached: 2,
            repairs: [(Repair::Pin, 6)].into(),
            conditions: vec![(ConditionName::NoRouteToNode, 3)],
            forward_policy_drops: vec!["nftables ip filter FORWARD".to_owned()],
            collected: Collected { fill, ..Collected::default() },
            memory: [(Table::Endpoints, 65536)].into(),
            cni_configuration_first: Some(true),
            ..Figures::default()
        };
        figures.durations.note_call("add", "no-address", Duration::from_millis(3));
        figures.durations.note_node_list(true, Duration::from_secs(2));
        figures
    }

    #[test]
    fn counters_bear_the_names_of_reasons_and_paths() {
        let process = Process::read().unwrap();
        let text = text(&figures(), Some(&process), true).unwrap();
        for line in [
            "# TYPE podwire_dropped_packets_total counter",
            r#"podwire_dropped_packets_total{reason="multicast"} 3"#,
            r#"podwire_dropped_bytes_total{reason="multicast"} 300"#,
            r#"podwire_forwarded_packets_total{path="local"} 5"#,
            r#"podwire_events_lost_total{reason="multicast"} 2"#,
            r#"podwire_monitor_events_lost_total{kind="translation"} 8"#,
            "# TYPE podwire_endpoints gauge",
            "podwire_endpoints 4",
            "podwire_services 17",
            "podwire_service_endpoints 40",
            "podwire_programs_reattached_total 2",
            r#"podwire_repairs_total{what="pin"} 6"#,
            r#"podwire_forward_policy_drop{where="nftables ip filter FORWARD"} 1"#,
            r#"podwire_table_entries{table="ENDPOINTS"} 4"#,
            r#"podwire_table_max_entries{table="ENDPOINTS"} 1024"#,
            r#"podwire_table_memory_bytes{table="ENDPOINTS"} 65536"#,
            r#"podwire_condition{condition="no-route-to-node",severity="degraded"} 3"#,
            r#"podwire_cni_call_duration_seconds_bucket{le="0.0025",verb="add",outcome="no-address"} 0"#,
            r#"podwire_cni_call_duration_seconds_bucket{le="0.005",verb="add",outcome="no-address"} 1"#,
            r#"podwire_cni_call_duration_seconds_count{verb="add",outcome="ok"} 0"#,
            r#"podwire_node_list_sync_duration_seconds_sum{outcome="ok"} 2.0"#,
            "podwire_ready 1",
            "# TYPE process_cpu_seconds_total counter",
        ] {
            assert!(text.lines().any(|said| said == line), "`{line}` is missing from:\n{text}");
        }
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"), "{text}");
    }
}
