//! Node objects, as `kubectl get nodes -o json` (or `-o yaml`) prints them.

use std::net::IpAddr;

use ipnet::IpNet;
use podwire_core::cluster::flannel::{Annotations, Lease};
use podwire_core::cluster::{ENTRY, NodeProblem, NodeRecord};
use serde::{Deserialize, Serialize};

use crate::objects::list;

/// The type of the addresses over which nodes reach each other.
const INTERNAL_ADDRESS: &str = "InternalIP";
/// The condition of a node that waits for its network to be set up.
pub(super) const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// The taint of a node that the cluster's autoscaler is about to remove.
const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";

/// The most entries of a list: four times the nodes of the largest clusters.
const MAX_ENTRIES: usize = 20_000;

/// The entries of a list that were read.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) records: Vec<NodeRecord>,
    pub(super) problems: Vec<NodeProblem>,
}

impl list::Entries for Entries {
    const WHAT: &'static str = "the node list";
    const COMMAND: &'static str = "kubectl get nodes";
    const LISTS: &'static [&'static str] = &["List", "NodeList"];
    const OBJECTS: &'static [&'static str] = &["Node"];
    const MOST: usize = MAX_ENTRIES;

    fn add_json(&mut self, text: &str) {
        let number = self.len() + 1;
        match decode(text, || format!("entry {number}")) {
            Ok(record) => self.records.push(record),
            Err(problem) => self.problems.push(problem),
        }
    }

    fn len(&self) -> usize {
        self.records.len() + self.problems.len()
    }
}

/// Decodes a Node object. `unnamed` names an object without a name.
pub(super) fn decode(text: &str, unnamed: impl FnOnce() -> String) -> Result<NodeRecord, NodeProblem> {
    let decoded = serde_json::from_str::<NodeObject>(text).map_err(|error| error.to_string());
    decoded.and_then(NodeRecord::try_from).map_err(|reason| {
        let entry = name_of(text).map_or_else(unnamed, |name| format!("{ENTRY}{name}"));
        NodeProblem::Malformed { entry, reason }
    })
}

/// Returns the name in an entry that does not decode.
fn name_of(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
    }
    serde_json::from_str(text).ok().map(|named: Named| named.metadata.name)
}

/// The fields of a Node object that the agent reads; it skips all others. The saved list holds
/// nodes in this form, too.
#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeObject {
    kind: Option<String>,
    metadata: Metadata,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    uid: Option<String>,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    labels: Option<Labels>,
    annotations: Option<Annotations>,
}

#[derive(Default, Deserialize, Serialize)]
struct Labels {
    #[serde(rename = "kubernetes.io/os")]
    operating_system: Option<String>,
    #[serde(rename = "topology.kubernetes.io/zone")]
    zone: Option<String>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    unschedulable: Option<bool>,
    taints: Option<Vec<Taint>>,
}

#[derive(Deserialize, Serialize)]
struct Taint {
    key: String,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    addresses: Option<Vec<NodeAddress>>,
    conditions: Option<Vec<Condition>>,
    node_info: Option<NodeInfo>,
}

#[derive(Deserialize, Serialize)]
struct NodeAddress {
    address: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize, Serialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeInfo {
    operating_system: Option<String>,
}

impl TryFrom<NodeObject> for NodeRecord {
    type Error = String;

    fn try_from(object: NodeObject) -> Result<Self, String> {
        if let Some(kind) = object.kind
            && kind != "Node"
        {
            return Err(format!("it is a {kind}, not a Node"));
        }
        let (spec, status) = (object.spec.unwrap_or_default(), object.status.unwrap_or_default());
        let networks = match spec.pod_cidrs {
            Some(networks) if !networks.is_empty() => networks,
            _ => spec.pod_cidr.into_iter().filter(|network| !network.is_empty()).collect(),
        };
        let pod_networks = networks
            .iter()
            .map(|text| text.parse::<IpNet>().map_err(|_| format!("spec.podCIDR: `{text}` is not a network")))
            .collect::<Result<_, _>>()?;
        let internal_addresses = status
            .addresses
            .unwrap_or_default()
            .iter()
            .filter(|entry| entry.kind == INTERNAL_ADDRESS)
            .map(|entry| {
                let text = &entry.address;
                text.parse::<IpAddr>()
                    .map_err(|_| format!("status.addresses: InternalIP `{text}` is not an address"))
            })
            .collect::<Result<_, _>>()?;
        let taints = spec.taints.unwrap_or_default();
        let annotations = object.metadata.annotations;
        let labels = object.metadata.labels.unwrap_or_default();
        let of_kubelet = status.node_info.and_then(|info| info.operating_system);
        Ok(Self {
            name: object.metadata.name,
            uid: object.metadata.uid,
            created: object.metadata.creation_timestamp,
            pod_networks,
            cordoned: spec.unschedulable.unwrap_or_default(),
            internal_addresses,
            operating_system: of_kubelet.filter(|system| !system.is_empty()).or(labels.operating_system),
            zone: labels.zone.filter(|zone| !zone.is_empty()),
            is_leaving: object.metadata.deletion_timestamp.is_some()
                || taints.iter().any(|taint| taint.key == LEAVING),
            network_unavailable: status
                .conditions
                .unwrap_or_default()
                .iter()
                .any(|condition| condition.kind == NETWORK_UNAVAILABLE && condition.status == "True"),
            flannel: annotations.and_then(Lease::from_annotations),
        })
    }
}

impl From<&NodeRecord> for NodeObject {
    fn from(record: &NodeRecord) -> Self {
        let address =
            |address: &IpAddr| NodeAddress { address: address.to_string(), kind: INTERNAL_ADDRESS.into() };
        Self {
            kind: Some("Node".into()),
            metadata: Metadata {
                name: record.name.clone(),
                uid: record.uid.clone(),
                creation_timestamp: record.created.clone(),
                deletion_timestamp: None,
                labels: record.zone.clone().map(|zone| Labels { zone: Some(zone), ..Labels::default() }),
                annotations: record.flannel.as_ref().map(|lease| lease.annotations().clone()),
            },
            spec: Some(Spec {
                pod_cidr: None,
                pod_cidrs: Some(record.pod_networks.iter().map(ToString::to_string).collect()),
                unschedulable: Some(record.cordoned),
                taints: record.is_leaving.then(|| vec![Taint { key: LEAVING.into() }]),
            }),
            status: Some(Status {
                addresses: Some(record.internal_addresses.iter().map(address).collect()),
                // The agent gets the conditions again with the next list.
                conditions: None,
                node_info: Some(NodeInfo { operating_system: record.operating_system.clone() }),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::before;
    use crate::objects::saved;
    use serde_json::json;
    use std::path::Path;

    fn encode(records: &[NodeRecord]) -> Vec<u8> {
        let items: Vec<_> = records.iter().map(NodeObject::from).collect();
        let mut text = Vec::new();
        saved::encode("NodeList", &items, &mut text).unwrap();
        text
    }

    fn load(path: &Path) -> Option<Entries> {
        let (entries, age) = saved::read(path).ok().flatten()?;
        assert!(!age.is_zero(), "a saved list has an age, and only a current list has none");
        Some(entries)
    }

    fn record(name: &str) -> NodeRecord {
        let annotations = json!({
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": r#"{"VNI":1,"VtepMAC":"6a:00:00:00:00:01"}"#,
        });
        let flannel = Lease::from_annotations(serde_json::from_value(annotations).unwrap());
        assert!(!flannel.as_ref().unwrap().vtep_macs().is_empty());
        NodeRecord {
            name: name.into(),
            uid: Some("0c11".into()),
            created: Some("2026-11-01T10:00:00Z".into()),
            pod_networks: vec!["10.244.2.0/24".parse().unwrap()],
            cordoned: true,
            internal_addresses: vec!["10.200.0.2".parse().unwrap()],
            operating_system: Some("linux".into()),
            zone: Some("zone-a".into()),
            is_leaving: true,
            network_unavailable: false,
            flannel,
        }
    }

    #[test]
    fn what_is_kept_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.json");
        let records = [record("node2"), NodeRecord { name: "bare".into(), ..NodeRecord::default() }];
        std::fs::write(&path, encode(&records)).unwrap();
        let list = load(&path).unwrap();
        assert_eq!(list.records, records);
        assert_eq!(list.problems, []);
    }

    #[test]
    fn empty_zone_is_none_and_lists_without_zones_are_read() {
        let zone = |labels: serde_json::Value| {
            let node = json!({ "kind": "Node", "metadata": { "name": "node1", "labels": labels } });
            decode(&node.to_string(), String::new).unwrap().zone
        };
        let label = "topology.kubernetes.io/zone";
        assert_eq!(zone(json!({ label: "zone-a", "kubernetes.io/os": "linux" })), Some("zone-a".into()));
        for labels in [json!({ label: "" }), json!({}), json!(null)] {
            assert_eq!(zone(labels.clone()), None, "{labels}");
        }
    }

    #[test]
    fn node_leaves_by_the_autoscalers_taint_or_deletion() {
        let is_leaving = |metadata: serde_json::Value, taints: &[&str]| {
            let taint = |key: &&str| json!({ "key": key, "value": "1", "effect": "NoSchedule" });
            let taints: Vec<_> = taints.iter().map(taint).collect();
            let node = json!({ "kind": "Node", "metadata": metadata, "spec": { "taints": taints } });
            decode(&node.to_string(), String::new).unwrap().is_leaving
        };
        let named = || json!({ "name": "node1" });
        assert!(is_leaving(named(), &["node.kubernetes.io/unschedulable", LEAVING]));
        assert!(!is_leaving(named(), &["DeletionCandidateOfClusterAutoscaler"]));
        let deleted = json!({ "name": "node1", "deletionTimestamp": "2026-11-02T00:00:00Z" });
        assert!(is_leaving(deleted, &[]));
    }

    #[test]
    fn what_another_boot_has_left_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.json");
        let text = String::from_utf8(encode(&[record("node2")])).unwrap();
        let boot = before::boot().unwrap();
        assert!(text.contains(&boot), "{text}");
        std::fs::write(&path, text.replace(&boot, "another")).unwrap();
        assert!(load(&path).is_none());
    }

    #[test]
    fn nothing_and_half_a_file_are_no_list() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.json");
        assert!(load(&path).is_none());
        std::fs::write(&path, &encode(&[record("node2")])[..40]).unwrap();
        assert!(load(&path).is_none());
    }
}
