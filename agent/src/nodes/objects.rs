//! Node objects, as `kubectl get nodes -o json` (or `-o yaml`) prints them.

use std::fmt;
use std::io::Read;
use std::net::IpAddr;

use ipnet::IpNet;
use podwire_core::cluster::flannel::{Annotations, Lease};
use podwire_core::cluster::{ENTRY, NodeProblem, NodeRecord};
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::json::Json;

/// The type of the addresses over which nodes reach each other.
const INTERNAL_ADDRESS: &str = "InternalIP";
/// The condition of a node that waits for its network to be set up.
pub(super) const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// The most entries of a list: four times the nodes of the largest clusters.
const MAX_ENTRIES: usize = 20_000;
/// The deepest nesting of YAML. A Node object has fewer than 10 levels.
const MAX_DEPTH: usize = 64;

/// The entries of a list that were read.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) records: Vec<NodeRecord>,
    pub(super) problems: Vec<NodeProblem>,
}

/// Reads JSON, and holds one entry at a time.
pub(super) fn from_json(reader: impl Read) -> Result<Entries, String> {
    let mut deserializer = serde_json::Deserializer::from_reader(reader);
    let document = Document::deserialize(&mut deserializer);
    let document = document.and_then(|document| deserializer.end().map(|()| document));
    document.map_err(|error| error.to_string())?.entries()
}

/// Reads YAML. Holds the text as a whole, but only one decoded entry at a time.
pub(super) fn from_yaml(reader: impl Read) -> Result<Entries, String> {
    let text = std::io::read_to_string(reader).map_err(|error| error.to_string())?;
    // The budget counts the whole document, including parts that are not kept. So its other limits
    // are off, and the lists of large clusters pass.
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: usize::MAX,
            max_events: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
    };
    let document: Document =
        serde_saphyr::from_str_with_options(&text, options).map_err(|error| error.to_string())?;
    document.entries()
}

fn other_kind(kind: Option<&str>) -> String {
    kind.map_or_else(|| "there is no `kind`".into(), |kind| format!("`kind` is `{kind}`"))
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

impl Entries {
    pub(super) fn add_json(&mut self, text: &str) {
        let decoded = serde_json::from_str::<NodeObject>(text).map_err(|error| error.to_string());
        match decoded.and_then(NodeRecord::try_from) {
            Ok(record) => self.records.push(record),
            Err(reason) => {
                let number = self.len() + 1;
                let entry =
                    name_of(text).map_or_else(|| format!("entry {number}"), |name| format!("{ENTRY}{name}"));
                self.problems.push(NodeProblem::Malformed { entry, reason });
            }
        }
    }

    fn len(&self) -> usize {
        self.records.len() + self.problems.len()
    }
}

/// A list, or one node. `kind` says which, and it comes after the entries.
#[derive(Deserialize)]
struct Document {
    kind: Option<String>,
    #[serde(default)]
    items: Entries,
    metadata: Option<Json>,
    spec: Option<Json>,
    status: Option<Json>,
}

impl Document {
    fn entries(self) -> Result<Entries, String> {
        match self.kind.as_deref() {
            Some("List" | "NodeList") => Ok(self.items),
            Some("Node") => {
                let part = |part: &Option<Json>| part.as_ref().map_or("null", |Json(text)| text).to_owned();
                let [metadata, spec, status] = [&self.metadata, &self.spec, &self.status].map(part);
                let mut entries = Entries::default();
                entries.add_json(&format!(r#"{{"metadata":{metadata},"spec":{spec},"status":{status}}}"#));
                Ok(entries)
            }
            kind => Err(other_kind(kind)),
        }
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneByOne;

        impl<'de> Visitor<'de> for OneByOne {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of nodes in `items`")
            }

            fn visit_unit<E>(self) -> Result<Entries, E> {
                Ok(Entries::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Entries, A::Error> {
                let mut entries = Entries::default();
                while let Some(Json(item)) = items.next_element()? {
                    if entries.len() == MAX_ENTRIES {
                        return Err(A::Error::custom(format!("there are more than {MAX_ENTRIES} entries")));
                    }
                    entries.add_json(&item);
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_any(OneByOne)
    }
}

/// The fields of a Node object that the agent reads; it skips all others. The cache holds nodes in
/// this form, too.
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
    labels: Option<Labels>,
    annotations: Option<Annotations>,
}

#[derive(Default, Deserialize, Serialize)]
struct Labels {
    #[serde(rename = "kubernetes.io/os")]
    operating_system: Option<String>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    unschedulable: Option<bool>,
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
        let annotations = object.metadata.annotations;
        let of_label = object.metadata.labels.and_then(|labels| labels.operating_system);
        let of_kubelet = status.node_info.and_then(|info| info.operating_system);
        Ok(Self {
            name: object.metadata.name,
            uid: object.metadata.uid,
            created: object.metadata.creation_timestamp,
            pod_networks,
            cordoned: spec.unschedulable.unwrap_or_default(),
            internal_addresses,
            operating_system: of_kubelet.filter(|system| !system.is_empty()).or(of_label),
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
                labels: None,
                annotations: record.flannel.as_ref().map(|lease| lease.annotations().clone()),
            },
            spec: Some(Spec {
                pod_cidr: None,
                pod_cidrs: Some(record.pod_networks.iter().map(ToString::to_string).collect()),
                unschedulable: Some(record.cordoned),
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
