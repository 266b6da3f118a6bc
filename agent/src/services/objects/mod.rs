//! Service and EndpointSlice objects, as `kubectl get services,endpointslices -A -o json` (or
//! `-o yaml`) prints them.

mod service;
mod slice;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use podwire_core::services::list::ServiceProblem;
use podwire_core::services::{EndpointSlice, Protocol, Service, ServiceName};
use serde::{Deserialize, Serialize, Serializer};

use self::service::ServiceObject;
use self::slice::SliceObject;
use crate::objects::list;

/// The kinds of objects, as `kind` names them.
pub(super) const SERVICE: &str = "Service";
pub(super) const SLICE: &str = "EndpointSlice";

/// The most entries of a list: 10,000 services and 200,000 endpoints, of both families, take half.
const MAX_ENTRIES: usize = 100_000;
/// The entries of a list that were read.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) services: Vec<Arc<Service>>,
    pub(super) slices: Vec<Arc<EndpointSlice>>,
    pub(super) problems: Vec<ServiceProblem>,
    /// The number of entries that the agent has no use for.
    unused: usize,
}

impl Entries {
    fn add(&mut self, text: &str, entry: &str, kind: Option<&str>) -> Result<(), ServiceProblem> {
        let before = self.services.len() + self.slices.len();
        match kind {
            Some(SERVICE) => self.services.extend(service(text, entry).transpose()?),
            Some(SLICE) => self.slices.extend(slice(text, entry).transpose()?),
            Some(other) => {
                return Err(problem(entry, format!("it is a {other}, not a {SERVICE} or {SLICE}")));
            }
            None => return Err(problem(entry, "it has no `kind`")),
        }
        self.unused += usize::from(before == self.services.len() + self.slices.len());
        Ok(())
    }
}

impl list::Entries for Entries {
    const WHAT: &'static str = "the service list";
    const COMMAND: &'static str = "kubectl get services,endpointslices -A";
    const LISTS: &'static [&'static str] = &["List"];
    const OBJECTS: &'static [&'static str] = &[SERVICE, SLICE];
    const MOST: usize = MAX_ENTRIES;

    fn add_json(&mut self, text: &str) {
        #[derive(Default, Deserialize)]
        struct Kind {
            kind: Option<String>,
        }
        let Kind { kind } = serde_json::from_str(text).unwrap_or_default();
        let entry = format!("entry {}", self.len() + 1);
        if let Err(problem) = self.add(text, &entry, kind.as_deref()) {
            self.problems.push(problem);
        }
    }

    fn len(&self) -> usize {
        self.services.len() + self.slices.len() + self.problems.len() + self.unused
    }
}

/// Decodes a Service object. `None`: no proxy of the cluster's own serves it. `entry` names an
/// object without a name.
pub(super) fn service(text: &str, entry: &str) -> Option<Result<Arc<Service>, ServiceProblem>> {
    decode::<ServiceObject, _>(text, entry, "service", ServiceObject::service)
}

/// Decodes an EndpointSlice object. `None`: it belongs to no service that the agent serves.
pub(super) fn slice(text: &str, entry: &str) -> Option<Result<Arc<EndpointSlice>, ServiceProblem>> {
    decode::<SliceObject, _>(text, entry, "endpointslice", SliceObject::slice)
}

fn decode<'a, O: Deserialize<'a>, T>(
    text: &'a str,
    entry: &str,
    kind: &str,
    used: impl FnOnce(O) -> Result<Option<T>, String>,
) -> Option<Result<Arc<T>, ServiceProblem>> {
    let decoded = serde_json::from_str::<O>(text).map_err(|error| error.to_string());
    let outcome = decoded.and_then(used).map_err(|reason| {
        let name = name_of(text).map(|name| format!("{kind} {}/{}", name.namespace, name.name));
        problem(name.as_deref().unwrap_or(entry), reason)
    });
    outcome.transpose().map(|used| used.map(Arc::new))
}

fn problem(entry: impl Display, reason: impl Into<String>) -> ServiceProblem {
    ServiceProblem { entry: entry.to_string(), reason: reason.into() }
}

/// Returns the name of an object that does not decode.
fn name_of(text: &str) -> Option<ServiceName> {
    #[derive(Deserialize)]
    struct Named {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        namespace: String,
        name: String,
    }
    let Named { metadata } = serde_json::from_str(text).ok()?;
    Some(ServiceName { namespace: metadata.namespace.into(), name: metadata.name.into() })
}

/// Gives back what a list has reserved beyond its length: the agent keeps 20,000 objects with several
/// short lists each.
fn exact<T>(mut list: Vec<T>) -> Vec<T> {
    list.shrink_to_fit();
    list
}

/// Reads an address. An IPv4 address that is mapped to IPv6 is one of IPv4, as for kube-proxy.
fn address(field: &str, text: &str) -> Result<IpAddr, String> {
    let parsed = text.parse::<IpAddr>().map(|address| address.to_canonical());
    parsed.map_err(|_| format!("{field}: `{text}` is not an address"))
}

/// The fields of `metadata` that the agent reads; it skips all others.
#[derive(Default, Deserialize, Serialize)]
struct Metadata {
    namespace: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Labels>,
}

#[derive(Default, Deserialize, Serialize)]
struct Labels {
    #[serde(rename = "service.kubernetes.io/service-proxy-name", skip_serializing)]
    proxy: Option<String>,
    #[serde(rename = "service.kubernetes.io/headless", skip_serializing)]
    headless: Option<String>,
    #[serde(rename = "kubernetes.io/service-name", skip_serializing_if = "Option::is_none")]
    service: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(remote = "Protocol", rename_all = "UPPERCASE")]
enum ProtocolName {
    Tcp,
    Udp,
    Sctp,
}

fn tcp() -> Protocol {
    Protocol::Tcp
}

fn metadata(namespace: &str, name: &str, labels: Option<Labels>) -> Metadata {
    Metadata { namespace: namespace.to_owned(), name: name.to_owned(), labels }
}

/// An entry of the saved list.
pub(super) enum Item {
    Service(Arc<Service>),
    Slice(Arc<EndpointSlice>),
}

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Service(service) => ServiceObject::from(&**service).serialize(serializer),
            Self::Slice(slice) => SliceObject::from(&**slice).serialize(serializer),
        }
    }
}
