//! A Node object from the API server: the parts that the agent reads, or why it cannot read them.

use std::borrow::Cow;

use kube::api::ObjectMeta;
use kube::core::ClusterResourceScope;
use podwire_core::cluster::{NodeProblem, NodeRecord};
use serde::de::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::super::objects::Entries;

/// One Node object. If it does not decode, the rest of the list is still used.
#[derive(Clone, Debug)]
pub(super) struct WatchedNode {
    /// Only name and resource version: the other fields are most of a Node object.
    metadata: ObjectMeta,
    pub(super) decoded: Result<NodeRecord, NodeProblem>,
}

impl WatchedNode {
    pub(super) fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for WatchedNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, serde::Deserialize)]
        struct Object {
            #[serde(default)]
            metadata: Metadata,
        }
        #[derive(Default, serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            name: Option<String>,
            resource_version: Option<String>,
        }

        let text = Box::<RawValue>::deserialize(deserializer)?;
        let Object { metadata } = serde_json::from_str(text.get()).unwrap_or_default();
        let mut entries = Entries::default();
        entries.add_json(text.get());
        Ok(Self {
            metadata: ObjectMeta {
                name: metadata.name,
                resource_version: metadata.resource_version,
                ..ObjectMeta::default()
            },
            // One entry went in, so there is either a record or a problem.
            decoded: match (entries.records.pop(), entries.problems.pop()) {
                (Some(record), _) => Ok(record),
                (None, Some(problem)) => Err(problem),
                (None, None) => {
                    return Err(serde::de::Error::custom("a Node object is neither read nor refused"));
                }
            },
        })
    }
}

impl kube::Resource for WatchedNode {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Node".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "nodes".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
