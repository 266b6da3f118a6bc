//! An object from the API server: the parts that the agent keeps.

use std::borrow::Cow;
use std::fmt;

use kube::api::ObjectMeta;
use kube::core::DynamicResourceScope;
use serde::de::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// A kind of objects that the agent watches.
pub(crate) trait Kind: Clone + fmt::Debug + Send + Sync + 'static {
    /// The kind's name.
    const KIND: &'static str;
    /// The API group; empty for the core group.
    const GROUP: &'static str;
    /// The version of the group.
    const VERSION: &'static str;
    /// The kind's name in a URL.
    const PLURAL: &'static str;
    /// The part of an object that the agent keeps, or why the object does not decode.
    type Kept: Clone + fmt::Debug + Send + Sync;

    /// Decodes an object. `None`: the agent has no use for it.
    fn decode(text: &str) -> Option<Self::Kept>;
}

/// Namespace and name of an object. The namespace is empty where the kind has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// One object. If it does not decode, the rest of the list is still used.
#[derive(Clone, Debug)]
pub(crate) struct Watched<K: Kind> {
    /// Only names and resource version: the other fields are most of an object.
    metadata: ObjectMeta,
    pub(super) kept: Option<K::Kept>,
}

impl<K: Kind> Watched<K> {
    pub(super) fn name(&self) -> ObjectName {
        ObjectName {
            namespace: self.metadata.namespace.clone().unwrap_or_default(),
            name: self.metadata.name.clone().unwrap_or_default(),
        }
    }
}

impl<'de, K: Kind> Deserialize<'de> for Watched<K> {
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
            namespace: Option<String>,
            resource_version: Option<String>,
        }

        let text = Box::<RawValue>::deserialize(deserializer)?;
        let Object { metadata } = serde_json::from_str(text.get()).unwrap_or_default();
        Ok(Self {
            metadata: ObjectMeta {
                name: metadata.name,
                namespace: metadata.namespace,
                resource_version: metadata.resource_version,
                ..ObjectMeta::default()
            },
            kept: K::decode(text.get()),
        })
    }
}

impl<K: Kind> kube::Resource for Watched<K> {
    type DynamicType = ();
    type Scope = DynamicResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        K::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        K::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        K::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
