//! The Node list that agents read: what a cluster printed, with the lab's names and addresses in place of its own.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::lab::topology::Topology;

/// `kubectl get nodes -o json` of a running cluster.
const PRINTED: &str = include_str!("../../../testdata/kubernetes/nodes.json");

pub(crate) fn render(topology: &Topology) -> Result<String> {
    let mut list: Value = serde_json::from_str(PRINTED).context("decode testdata/kubernetes/nodes.json")?;
    let template = list["items"][0].clone();
    let nodes = topology.nodes.iter().map(|place| {
        let mut node = template.clone();
        node["metadata"]["name"] = json!(place.name);
        node["spec"] = json!({ "podCIDR": place.pod_cidr, "podCIDRs": [place.pod_cidr] });
        node["status"]["addresses"] = json!([
            { "address": place.address, "type": "InternalIP" },
            { "address": place.name, "type": "Hostname" },
        ]);
        node
    });
    list["items"] = nodes.collect();
    Ok(serde_json::to_string_pretty(&list)?)
}

/// Writes beside and renames: an agent never reads half a list.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("json.new");
    std::fs::write(&beside, text).with_context(|| format!("write {}", beside.display()))?;
    std::fs::rename(&beside, path).with_context(|| format!("replace {}", path.display()))
}
