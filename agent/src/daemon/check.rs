//! CHECK: an attachment compared with what the kernel has of it. Every fault is named at once.

use podwire_cni::protocol::{Added, Failure, codes};
use podwire_common::abi::{self, ENDPOINT_STACK_ONLY};
use podwire_common::names::programs;
use podwire_core::desired::{endpoint_entry, frontends};
use podwire_core::host::{Device, Host};
use podwire_core::model::{Attachment, Endpoint, format_mac};

use super::Daemon;
use super::calls::{failure, refuse};
use crate::error::Error;
use crate::wire;

impl Daemon {
    pub(super) async fn check(&mut self, attachment: &Attachment) -> Result<Added, Failure> {
        let Some(endpoint) = self.model.endpoint_of(attachment) else {
            let message = format!("the agent has no attachment of container {}", attachment.container_id);
            return Err(refuse(codes::UNKNOWN_CONTAINER, message));
        };
        let faults = self.faults(endpoint).await.map_err(|error| failure(&error))?;
        if faults.is_empty() {
            return Ok(wire::added(endpoint));
        }
        Err(refuse(codes::CHECK_FAILED, format!("{endpoint}: {}", faults.join("; "))))
    }

    async fn faults(&self, endpoint: &Endpoint) -> Result<Vec<String>, Error> {
        let host = self.links.host().await?;
        let mut faults = self.device_faults(endpoint, &host).await?;
        faults.extend(self.map_faults(endpoint)?);
        let (have, want) = (host.own_routes.get(&endpoint.address.into()), self.route_to(endpoint));
        if have != Some(&want) {
            let there =
                have.map_or_else(|| "is missing".into(), |route| format!("is {route:?}, not {want:?}"));
            faults.push(format!("the host's route to {} {there}", endpoint.address));
        }
        Ok(faults)
    }

    async fn device_faults(&self, endpoint: &Endpoint, host: &Host) -> Result<Vec<String>, Error> {
        let name = &endpoint.host_interface;
        let Some(device) = host.device(name) else {
            return Ok(vec![format!("{name} is gone on the node")]);
        };
        let mut faults = link_faults(endpoint, device);
        if let Some(limit) = endpoint.ingress_limit()
            && !self.links.queues().await?.limit(device.index, &limit)
        {
            faults.push(format!("the limit of what the pod receives is missing on {name}, or another one"));
        }
        let filters = self.links.filters(device.index).await?;
        for (program, direction, there) in
            [(programs::FROM_POD, "ingress", filters.ingress), (programs::TO_POD, "egress", filters.egress)]
        {
            match there {
                None => faults.push(format!("{program} is not attached to the {direction} of {name}")),
                // Another agent's, or one of before this agent: it may have other maps, and no one counts its drops.
                Some(there) if there.program != self.dataplane.program_id(program)? => {
                    faults.push(format!(
                        "the {direction} of {name} has program {}, not this agent's {program}",
                        there.program
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(faults)
    }

    fn map_faults(&self, endpoint: &Endpoint) -> Result<Vec<String>, Error> {
        let mut faults = match self.dataplane.maps.endpoint(endpoint.address)? {
            Some(have) => entry_faults(endpoint, have),
            None => vec![format!("ENDPOINTS has no entry for {}", endpoint.address)],
        };
        if let Some(want) = endpoint.guard()
            && self.dataplane.maps.guard(endpoint.ifindex)? != Some(want)
        {
            let name = &endpoint.host_interface;
            faults
                .push(format!("EGRESS_GUARDS has no entry for what the pod sends by {name}, or another one"));
        }
        for ((frontend, want), mapping) in frontends(endpoint).zip(&endpoint.port_mappings) {
            match self.dataplane.maps.backend(&frontend)? {
                Some(have) if have == want => {}
                Some(have) => faults.push(format!("the hostPort {mapping} leads to {have:?} in FRONTENDS")),
                None => faults.push(format!("the hostPort {mapping} is missing in FRONTENDS")),
            }
        }
        Ok(faults)
    }
}

fn link_faults(endpoint: &Endpoint, device: &Device) -> Vec<String> {
    let name = &device.name;
    let mut faults = Vec::new();
    if device.index != endpoint.ifindex {
        faults.push(format!("{name} is another device (ifindex {}, not {})", device.index, endpoint.ifindex));
    }
    if device.mac != Some(endpoint.host_mac) {
        let has = device.mac.map_or_else(|| "none".into(), format_mac);
        faults.push(format!("{name} has the MAC address {has}, not {}", format_mac(endpoint.host_mac)));
    }
    if !device.up {
        faults.push(format!("{name} is down on the node"));
    }
    if device.mtu != endpoint.mtu {
        faults.push(format!("{name} has MTU {}, not {}", device.mtu, endpoint.mtu));
    }
    faults
}

fn entry_faults(endpoint: &Endpoint, have: abi::Endpoint) -> Vec<String> {
    // Taken apart, so that a field that is added to the entry cannot be forgotten here.
    let abi::Endpoint { ifindex, id, flags, mtu, pod_mac, host_mac, gateway } = endpoint_entry(endpoint);
    // Set by a program when STACK_FLOWS was full: no fault.
    let flags_there = have.flags & !ENDPOINT_STACK_ONLY;
    let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
    [
        ("ifindex", text(&have.ifindex), text(&ifindex)),
        ("id", text(&have.id), text(&id)),
        ("flags", text(&flags_there), text(&flags)),
        ("mtu", text(&have.mtu), text(&mtu)),
        ("pod_mac", text(&have.pod_mac), text(&pod_mac)),
        ("host_mac", text(&have.host_mac), text(&host_mac)),
        ("gateway", text(&have.gateway), text(&gateway)),
    ]
    .into_iter()
    .filter(|(_, have, want)| have != want)
    .map(|(field, have, want)| format!("ENDPOINTS has {field} {have} for {}, not {want}", endpoint.address))
    .collect()
}
