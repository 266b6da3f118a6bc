//! The text of /metrics.

use std::collections::BTreeMap;

use podwire_common::abi::Count;
use podwire_common::tables::Table;
use podwire_core::cluster::Skipped;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::dataplane::flows::Fill;
use crate::events::{Figures, Repair};

type Labels = [(&'static str, &'static str); 1];
type Condition = [(&'static str, &'static str); 2];

/// Returns the text of /metrics.
///
/// # Errors
/// The encoder's own.
pub(crate) fn text(figures: &Figures, is_ready: bool) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("podwire");
    let drops = figures.counters.drops.iter().map(|(reason, count)| ([("reason", reason.name())], *count));
    counters(&mut registry, "dropped", "dropped by the programs, by reason", drops);
    let traffic = figures.counters.traffic.iter().map(|(path, count)| ([("path", path.name())], *count));
    counters(&mut registry, "forwarded", "handled by the programs, by path", traffic);
    let lost = Family::<Labels, Counter>::default();
    for (reason, count) in &figures.events_lost {
        lost.get_or_create(&[("reason", reason.name())]).inc_by(*count);
    }
    registry.register(
        "events_lost",
        "Dropped packets without an event, by reason: its budget was used, or the ring was full",
        lost,
    );
    gauge(&mut registry, "endpoints", "Pods of this node", figures.endpoints);
    gauge(&mut registry, "nodes", "Nodes that the agent uses, including this node", figures.nodes);
    let skipped = Family::<Labels, Gauge>::default();
    for reason in Skipped::ALL {
        let count = figures.skipped.get(&reason).copied().unwrap_or_default();
        skipped.get_or_create(&[("reason", reason.name())]).set(count as i64);
    }
    registry.register(
        "nodes_skipped",
        "Nodes that the agent does not use in the pod network, by reason",
        skipped,
    );
    gauge(
        &mut registry,
        "node_list_age_seconds",
        "Seconds since the node list was last known to be current: 0 while its source answers",
        figures.node_list_age.as_secs() as usize,
    );
    gauge(
        &mut registry,
        "addresses",
        "Addresses of this node's podCIDR that pods can have, assigned or free",
        figures.addresses as usize,
    );
    let collected = &figures.collected;
    gauge(&mut registry, "translations", "Entries of TRANSLATIONS at the last count", collected.translations);
    gauge(&mut registry, "stack_flows", "Entries of STACK_FLOWS at the last count", collected.stack_flows);
    gauge(
        &mut registry,
        "pressure",
        "1 while TRANSLATIONS is nearly full and the agent removes finished flows sooner",
        usize::from(collected.pressure),
    );
    fill(&mut registry, &collected.fill);
    let reattached: Counter = Counter::default();
    reattached.inc_by(figures.reattached);
    registry.register(
        "programs_reattached",
        "Programs that the agent attached again after another tool removed or replaced them",
        reattached,
    );
    let repairs = Family::<Labels, Counter>::default();
    for repair in Repair::ALL {
        let count = figures.repairs.get(&repair).copied().unwrap_or_default();
        repairs.get_or_create(&[("what", repair.name())]).inc_by(count);
    }
    registry.register("repairs", "Other changes by tools that the agent undid, by kind", repairs);
    let switches: Counter = Counter::default();
    switches.inc_by(figures.switches_set_again);
    registry.register(
        "switches_set_again",
        "Kernel switches that the agent set again after another tool changed them",
        switches,
    );
    let operations: Counter = Counter::default();
    operations.inc_by(figures.operations);
    registry.register("operations", "Changes that the agent made to map entries and routes", operations);
    let in_the_way = Family::<[(&'static str, String); 1], Gauge>::default();
    for place in &figures.forward_policy_drops {
        in_the_way.get_or_create(&[("where", place.clone())]).set(1);
    }
    let conditions = Family::<Condition, Gauge>::default();
    for (name, subjects) in &figures.conditions {
        let labels = [("condition", name.name()), ("severity", name.severity().name())];
        conditions.get_or_create(&labels).set(i64::try_from(*subjects).unwrap_or(i64::MAX));
    }
    registry.register(
        "condition",
        "Conditions that hold, by name and severity: the number of affected pods, nodes or places, or 1",
        conditions,
    );
    registry.register(
        "forward_policy_drop",
        "1 for each place where the host's firewall may drop pods' packets to services and the world",
        in_the_way,
    );
    if let Some(first) = figures.cni_configuration_first {
        gauge(
            &mut registry,
            "cni_configuration_first",
            "1 while the runtime takes Podwire's network configuration: no other one comes before it in --cni-conf-dir",
            usize::from(first),
        );
    }
    gauge(&mut registry, "ready", "1 while /readyz answers that the agent is ready", usize::from(is_ready));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn counters(registry: &mut Registry, name: &str, help: &str, counts: impl Iterator<Item = (Labels, Count)>) {
    let (packets, bytes) = (Family::<Labels, Counter>::default(), Family::<Labels, Counter>::default());
    for (labels, count) in counts {
        packets.get_or_create(&labels).inc_by(count.packets);
        bytes.get_or_create(&labels).inc_by(count.bytes);
    }
    registry.register(format!("{name}_packets"), format!("Packets {help}"), packets);
    registry.register(format!("{name}_bytes"), format!("Bytes {help}"), bytes);
}

fn fill(registry: &mut Registry, fill: &BTreeMap<Table, Fill>) {
    let (entries, capacity) = (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge>::default());
    for (table, fill) in fill {
        entries.get_or_create(&[("table", table.name())]).set(fill.entries as i64);
        capacity.get_or_create(&[("table", table.name())]).set(fill.capacity as i64);
    }
    registry.register("table_entries", "Entries of a table at the last count", entries);
    registry.register("table_max_entries", "Largest number of entries of a table", capacity);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: usize) {
    let gauge: Gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::ConditionName;
    use crate::dataplane::flows::Collected;
    use crate::dataplane::maps::Counters;
    use podwire_common::reason::{Drop, Path};

    #[test]
    fn counters_bear_the_names_of_reasons_and_paths() {
        let counters = Counters {
            drops: vec![(Drop::Multicast, Count { packets: 3, bytes: 300 })],
            traffic: vec![(Path::Local, Count { packets: 5, bytes: 500 })],
        };
        let forward_policy_drops = vec!["nftables ip filter FORWARD".to_owned()];
        let fill = BTreeMap::from([(Table::Endpoints, Fill { entries: 4, capacity: 1024 })]);
        let figures = Figures {
            counters,
            events_lost: vec![(Drop::Multicast, 2)],
            endpoints: 4,
            nodes: 2,
            addresses: 253,
            reattached: 2,
            repairs: [(Repair::Pin, 6)].into(),
            conditions: vec![(ConditionName::NoRouteToNode, 3)],
            forward_policy_drops,
            collected: Collected { fill, ..Collected::default() },
            ..Figures::default()
        };
        let text = text(&figures, true).unwrap();
        for line in [
            r#"podwire_dropped_packets_total{reason="multicast"} 3"#,
            r#"podwire_dropped_bytes_total{reason="multicast"} 300"#,
            r#"podwire_forwarded_packets_total{path="local"} 5"#,
            r#"podwire_events_lost_total{reason="multicast"} 2"#,
            "podwire_endpoints 4",
            "podwire_programs_reattached_total 2",
            r#"podwire_repairs_total{what="pin"} 6"#,
            r#"podwire_forward_policy_drop{where="nftables ip filter FORWARD"} 1"#,
            r#"podwire_table_entries{table="ENDPOINTS"} 4"#,
            r#"podwire_table_max_entries{table="ENDPOINTS"} 1024"#,
            r#"podwire_condition{condition="no-route-to-node",severity="degraded"} 3"#,
            "podwire_ready 1",
        ] {
            assert!(text.lines().any(|said| said == line), "`{line}` is missing from:\n{text}");
        }
    }
}
