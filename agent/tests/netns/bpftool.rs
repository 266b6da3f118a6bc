//! The pinned maps as an operator sees them.

use std::net::IpAddr;

use podwire_common::names::maps;
use serde_json::{Value, json};
use xtask::lab::{Lab, Node, Pod, traffic};

use crate::idle_clients::get;
use crate::service::iptables;
use crate::sockets::wait_until;

#[test]
fn every_pinned_map_dumps_with_field_names() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let (pod, far) = (node.add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
    fill(&lab, &pod, &far);
    let tuple = &["source", "destination", "source_port", "destination_port", "protocol"][..];
    let known =
        &["key", "epochs", "asked", "slots", "from", "to", "mtu", "sender_mac", "flags", "leaves"][..];

    for (map, key, value) in [
        (maps::ENDPOINTS, &["bytes"][..], &["ifindex", "id", "flags", "pod_mac", "host_mac", "gateway"][..]),
        (
            maps::NODES,
            &["prefix_len", "data"],
            &["tunnel_endpoint", "source", "uplink", "mtu", "node_id", "flags"],
        ),
        (maps::TUNNEL_PEERS, &["bytes"], &[]),
        (maps::STACK_FLOWS, tuple, &["last_seen"]),
        (
            maps::FRAGMENTS,
            &["source", "destination", "identification", "protocol"],
            &["source_port", "destination_port"],
        ),
        (
            maps::TRANSLATIONS,
            tuple,
            &[
                "last_seen",
                "source",
                "destination",
                "source_port",
                "destination_port",
                "kind",
                "reply",
                "state",
                "hairpin",
            ],
        ),
        (maps::LINKS, &[], &["ipv4", "tunnel_address", "mtu", "kind"]),
        (maps::LINKS6, &[], &["source", "tunnel_address"]),
        (maps::FLOWS, tuple, known),
        (maps::FLOWS6, tuple, known),
    ] {
        let entry = first(node, map);
        assert_fields(map, &entry["key"], key);
        assert_fields(map, &entry["value"], value);
    }
    for map in [maps::DROPS, maps::TRAFFIC] {
        assert_fields(map, &first(node, map)["values"][0]["value"], &["packets", "bytes"]);
    }
}

#[test]
fn addresses_and_link_addresses_are_byte_arrays() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let pod = lab.node(0).add_pod("pod").unwrap();
    let dump = lab.node(0).map_dump(maps::ENDPOINTS).unwrap();
    let ifindex = lab.node(0).ifindex(pod.host_interface()).unwrap();
    for address in pod.addresses() {
        let bytes = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        let mut entries = dump.as_array().unwrap().iter().map(|entry| &entry["formatted"]);
        let entry = entries.find(|entry| numbers(&entry["key"]["bytes"]) == bytes).unwrap();
        assert_eq!(numbers(&entry["value"]["pod_mac"]["bytes"]), pod.eth0_mac());
        assert_eq!(numbers(&entry["value"]["host_mac"]["bytes"]), pod.host_mac());
        assert_eq!(entry["value"]["ifindex"], json!(ifindex));
    }
}

#[test]
fn every_map_is_pinned_under_its_name() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    for map in maps::ALL {
        let dump = lab.node(0).map_dump(map).unwrap();
        assert!(dump.is_array(), "{map}: {dump}");
    }
}

/// Adds something to every map: fragments, a translation, a flow through the stack, known flows of
/// both families.
fn fill(lab: &Lab, pod: &Pod, far: &Pod) {
    for address in far.addresses() {
        traffic::tcp_exchange(pod, far, *address, 8080, 1 << 16).unwrap();
    }
    let far = far.address();
    traffic::udp_exchange(pod, lab.world(), lab.world_address(), 8080, 3000).unwrap();
    iptables(lab.node(0), &format!("-t nat -A PREROUTING -d 10.96.0.20/32 -j DNAT --to-destination {far}"));
    traffic::ping(pod, "10.96.0.20".parse().unwrap(), 56).unwrap();
}

fn first(node: &Node, map: &str) -> Value {
    let dump = node.map_dump(map).unwrap();
    assert!(dump[0]["formatted"].is_object(), "{map} has no formatted entry: {dump}");
    dump[0]["formatted"].clone()
}

/// Asserts that an entry has these fields. It may have more: explicit padding is a field as well.
fn assert_fields(map: &str, shown: &Value, fields: &[&str]) {
    for field in fields {
        assert!(shown.get(field).is_some(), "{map} shows no {field}: {shown}");
    }
}

/// Parses bytes, which bpftool prints as numbers or, in arrays, as hexadecimal text.
fn numbers(shown: &Value) -> Vec<u8> {
    let byte = |value: &Value| match value {
        Value::String(text) => u8::from_str_radix(text.trim_start_matches("0x"), 16).unwrap(),
        number => u8::try_from(number.as_u64().unwrap()).unwrap(),
    };
    shown.as_array().unwrap_or_else(|| panic!("no array: {shown}")).iter().map(byte).collect()
}

#[test]
fn metrics_show_how_full_each_table_is() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let _pods = ["one", "two"].map(|name| node.add_pod(name).unwrap());
    let lines = [
        "podwire_table_entries{table=\"ENDPOINTS\"} 4",
        "podwire_table_max_entries{table=\"ENDPOINTS\"} 1024",
        "podwire_table_entries{table=\"FRONTENDS\"} 0",
    ];
    let shown = wait_until(|| {
        let text = get(node, "/metrics");
        lines.iter().all(|line| text.lines().any(|shown| shown == *line)).then_some(())
    });
    assert!(shown.is_some(), "{}", get(node, "/metrics"));
}
