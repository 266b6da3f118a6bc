//! Pods of this node: their addresses, files, links, map entries and routes.

use std::net::IpAddr;

use podwire_common::abi;

use super::Scope;
use crate::model::{Endpoint, Family, Model};
use crate::slice::{Hooks, Link, Programs, Route, Slice};

pub(super) fn desired(model: &Model, scope: Scope<'_>) -> Slice {
    let mut slice = Slice::default();
    for endpoint in scope.endpoints(model) {
        slice.files.insert(endpoint.host_interface.clone(), endpoint.clone());
        for of_family in &endpoint.pod_addresses {
            slice.addresses.insert(of_family.address, ());
            slice.flows.insert(of_family.address, ());
            let entry = endpoint_entry(endpoint, of_family.gateway);
            slice.tables.endpoints.insert(of_family.address.into(), entry);
        }
        // Without a device there is nothing to attach programs to, and no route can lead there.
        if !model.without_device.contains(&endpoint.attachment) {
            add_link(&mut slice, model, endpoint);
        }
    }
    slice
}

fn add_link(slice: &mut Slice, model: &Model, endpoint: &Endpoint) {
    let device = endpoint.host_interface.clone();
    let programs = Programs { hooks: Hooks::Pod, device: device.clone() };
    slice.programs.insert(endpoint.ifindex, programs);
    let link = Link { mtu: endpoint.mtu, up: true, ..Link::down(endpoint) };
    slice.links.insert(endpoint.ifindex, link);
    for (own, address) in model.own.iter().flat_map(|own| endpoint.addresses().map(move |of| (own, of))) {
        let source = model.route_source(own, Family::of(address));
        let route = Route::Link { device: endpoint.ifindex, gateway: None, source };
        slice.routes.insert(address.into(), route);
    }
}

/// Returns an endpoint's entry in `ENDPOINTS` for the address with this gateway.
pub fn endpoint_entry(endpoint: &Endpoint, gateway: IpAddr) -> abi::Endpoint {
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    abi::Endpoint {
        #[cfg(feature = "earlier-layout")]
        earlier: [0; 8],
        ifindex: endpoint.ifindex,
        id: endpoint.id,
        flags: flag(!endpoint.port_mappings.is_empty(), abi::ENDPOINT_HAS_HOST_PORTS)
            | flag(endpoint.bandwidth.ingress.is_some(), abi::ENDPOINT_INGRESS_LIMITED)
            | flag(endpoint.bandwidth.egress.is_some(), abi::ENDPOINT_EGRESS_LIMITED),
        mtu: endpoint.mtu,
        pod_mac: endpoint.pod_mac,
        host_mac: endpoint.host_mac,
        gateway: gateway.into(),
    }
}
