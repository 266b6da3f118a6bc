//! An EndpointSlice object.

use std::collections::BTreeSet;
use std::num::NonZeroU16;

use podwire_core::services::{Endpoint, EndpointPort, EndpointSlice, Hints, Protocol, ServiceName};
use serde::{Deserialize, Serialize};

use super::{Labels, Metadata, ProtocolName, SLICE, address, exact, metadata, tcp};

/// The fields of an EndpointSlice object that the agent reads. The saved list holds slices in this
/// form, too.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SliceObject {
    #[serde(skip_deserializing)]
    kind: &'static str,
    metadata: Metadata,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    address_type: String,
    ports: Option<Vec<EndpointPortObject>>,
    endpoints: Option<Vec<EndpointObject>>,
}

#[derive(Deserialize, Serialize)]
struct EndpointPortObject {
    name: Option<String>,
    #[serde(default = "tcp", with = "ProtocolName")]
    protocol: Protocol,
    port: Option<u16>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointObject {
    addresses: Vec<String>,
    #[serde(default)]
    conditions: EndpointConditions,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hints: Option<HintsObject>,
}

#[derive(Default, Deserialize, Serialize)]
struct EndpointConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct HintsObject {
    #[serde(default)]
    for_zones: Vec<Hint>,
    #[serde(default)]
    for_nodes: Vec<Hint>,
}

#[derive(Deserialize, Serialize)]
struct Hint {
    name: String,
}

impl SliceObject {
    pub(super) fn slice(self) -> Result<Option<EndpointSlice>, String> {
        let Labels { proxy, headless, service } = self.metadata.labels.unwrap_or_default();
        let Some(service) = service.filter(|service| !service.is_empty()) else { return Ok(None) };
        if self.address_type == "FQDN" || headless.is_some() || proxy.is_some() {
            return Ok(None);
        }
        let port = |port: EndpointPortObject| {
            let number = port.port.and_then(NonZeroU16::new)?;
            Some(EndpointPort { name: port.name.unwrap_or_default(), protocol: port.protocol, port: number })
        };
        let endpoints = self.endpoints.unwrap_or_default().into_iter().map(EndpointObject::endpoint);
        let endpoints = endpoints.collect::<Result<_, _>>()?;
        Ok(Some(EndpointSlice {
            name: self.metadata.name,
            service: ServiceName { namespace: self.metadata.namespace.into(), name: service.into() },
            ports: exact(self.ports.unwrap_or_default().into_iter().filter_map(port).collect()),
            endpoints: exact(endpoints),
        }))
    }
}

impl EndpointObject {
    fn endpoint(self) -> Result<Endpoint, String> {
        let EndpointConditions { ready, serving, terminating } = self.conditions;
        let first = self.addresses.first().ok_or("endpoints: one has no address")?;
        let names = |hints: Vec<Hint>| hints.into_iter().map(|hint| hint.name).collect::<BTreeSet<_>>();
        let (zones, nodes) = self.hints.map(|hints| (hints.for_zones, hints.for_nodes)).unwrap_or_default();
        Ok(Endpoint {
            address: address("endpoints", first)?,
            is_ready: ready.unwrap_or(true),
            is_serving: serving.unwrap_or(true),
            is_terminating: terminating.unwrap_or(false),
            node: self.node_name.map(String::into_boxed_str),
            hints: Hints { zones: names(zones), nodes: names(nodes) }.boxed(),
        })
    }
}

impl From<&EndpointSlice> for SliceObject {
    fn from(slice: &EndpointSlice) -> Self {
        let labels = Labels { service: Some(slice.service.name.to_string()), ..Labels::default() };
        let port = |port: &EndpointPort| EndpointPortObject {
            name: Some(port.name.clone()),
            protocol: port.protocol,
            port: Some(port.port.get()),
        };
        let hints = |names: &BTreeSet<String>| names.iter().map(|name| Hint { name: name.clone() }).collect();
        let endpoint = |endpoint: &Endpoint| EndpointObject {
            addresses: vec![endpoint.address.to_string()],
            conditions: EndpointConditions {
                ready: Some(endpoint.is_ready),
                serving: Some(endpoint.is_serving),
                terminating: Some(endpoint.is_terminating),
            },
            node_name: endpoint.node.as_deref().map(str::to_owned),
            hints: endpoint
                .hints
                .as_ref()
                .map(|all| HintsObject { for_zones: hints(&all.zones), for_nodes: hints(&all.nodes) }),
        };
        Self {
            kind: SLICE,
            metadata: metadata(&slice.service.namespace, &slice.name, Some(labels)),
            address_type: String::new(),
            ports: Some(slice.ports.iter().map(port).collect()),
            endpoints: Some(slice.endpoints.iter().map(endpoint).collect()),
        }
    }
}
