//! The agents' Node list: the list that a real cluster printed, with the names and addresses of the
//! lab.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize as _;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Value, json};

use crate::lab::topology::Topology;

/// The output of `kubectl get nodes -o json` in a running cluster with IPv4, and in one with both
/// families.
const PRINTED: &str = include_str!("../../../testdata/kubernetes/nodes.json");
const PRINTED_DUAL: &str = include_str!("../../../testdata/dual-stack/nodes.json");

/// Returns a list of the lab's nodes and of this number of invented nodes. Each has all fields that
/// a kubelet reports.
pub(crate) fn render(topology: &Topology, others: u16) -> Result<String> {
    let printed = if topology.families.has_ipv6() { PRINTED_DUAL } else { PRINTED };
    let mut list: Value = serde_json::from_str(printed).context("decode the captured list of nodes")?;
    let template = list["items"][0].clone();
    let there = topology.nodes.iter().map(|place| {
        let pod_cidrs = topology.families.of(place.pod_cidr.clone(), place.pod_cidr6.clone());
        let families = topology.families;
        let ipv4 = families.has_ipv4().then(|| IpAddr::from(place.address));
        let ipv6 = families.has_ipv6().then(|| IpAddr::from(place.address6));
        let addresses: Vec<_> = ipv4.into_iter().chain(ipv6).collect();
        entry(&template, &place.name, &pod_cidrs, &addresses)
    });
    let elsewhere = (0..others).map(|number| {
        let [high, low] = number.to_be_bytes();
        let address = Ipv4Addr::new(10, 190, high, low);
        let pod_cidr = format!("10.{}.{low}.0/24", 32 + high);
        entry(&template, &format!("elsewhere{number}"), &[pod_cidr], &[address.into()])
    });
    list["items"] = there.chain(elsewhere).collect();
    // Indent as kubectl does.
    let mut text = Vec::new();
    let indented = PrettyFormatter::with_indent(b"    ");
    list.serialize(&mut Serializer::with_formatter(&mut text, indented))?;
    Ok(String::from_utf8(text)?)
}

fn entry(template: &Value, name: &str, pod_cidrs: &[String], addresses: &[IpAddr]) -> Value {
    let mut node = template.clone();
    node["metadata"]["name"] = json!(name);
    node["metadata"]["labels"]["kubernetes.io/hostname"] = json!(name);
    node["spec"] = json!({ "podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs });
    let internal = addresses.iter().map(|address| json!({ "address": address, "type": "InternalIP" }));
    let hostname = json!({ "address": name, "type": "Hostname" });
    node["status"]["addresses"] = internal.chain([hostname]).collect();
    node
}

/// Writes a new file and renames it, so that an agent never reads half a list.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("json.new");
    std::fs::write(&beside, text).with_context(|| format!("write {}", beside.display()))?;
    std::fs::rename(&beside, path).with_context(|| format!("replace {}", path.display()))
}
