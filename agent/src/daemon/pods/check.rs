//! CHECK: compares an attachment with what the kernel has of it. Every operation that a repair
//! would need is a fault. The answer names all faults.

use std::net::IpAddr;

use podwire_cni::protocol::{Added, Failure, codes};
use podwire_common::abi;
use podwire_core::change::Change;
use podwire_core::features::{Scope, desired, frontend};
use podwire_core::host::Host;
use podwire_core::model::{Attachment, Endpoint, PortMapping, format_mac};
use podwire_core::plan::{Op, Removals, plan};
use podwire_core::slice::{Link, TableChange};

use super::{failure, refuse};
use crate::daemon::found::{Displaced, Found};
use crate::daemon::state::State;
use crate::error::Error;
use crate::wire;

/// Compares an attachment with the kernel.
///
/// # Errors
/// What is wrong, with a CNI code.
pub(in crate::daemon) async fn check(state: &State, attachment: &Attachment) -> Result<Added, Failure> {
    let Some(endpoint) = state.model.endpoint_of(attachment) else {
        let message = format!("the agent has no attachment of container {}", attachment.container_id);
        return Err(refuse(codes::UNKNOWN_CONTAINER, message));
    };
    let found = faults(state, endpoint).await.map_err(failure)?;
    if found.is_empty() {
        return Ok(wire::added(endpoint));
    }
    Err(refuse(codes::CHECK_FAILED, format!("{endpoint}: {}", found.join("; "))))
}

async fn faults(state: &State, endpoint: &Endpoint) -> Result<Vec<String>, Error> {
    let Endpoint { ifindex, host_interface, .. } = endpoint;
    let addresses: Vec<_> = endpoint.addresses().collect();
    let host = state.executor.links.host_of_pod(*ifindex, host_interface, &addresses).await?;
    let want = desired(&state.model, Scope::Endpoint(endpoint));
    let Found { have, displaced, .. } = state.executor.find_only(&want, &host).await?;
    let ops = plan(&want, &have, Removals::Withheld);
    let is_gone = !have.links.contains_key(&endpoint.ifindex);
    // No link is wanted for an endpoint that is known to have no device, so report the missing one
    // here.
    let is_missed = state.model.without_device.contains(&endpoint.attachment);
    let missed = if is_missed { link_faults(endpoint, None, &host) } else { Vec::new() };
    let faults = ops.iter().flat_map(|op| match op {
        Op::Programs(_) | Op::Queue(_) if is_gone => Vec::new(),
        Op::Programs(_) => displaced.iter().map(program_fault).collect(),
        Op::Link(change) => link_faults(endpoint, change.before.as_ref(), &host),
        Op::Table(change) => table_faults(endpoint, change),
        other => vec![fault(endpoint, other)],
    });
    Ok(missed.into_iter().chain(faults).collect())
}

fn program_fault(displaced: &Displaced) -> String {
    let Displaced { device, program, direction, found, .. } = displaced;
    match found {
        None => format!("{program} is not attached to the {direction} of {device}"),
        // Another agent attached this program, for example an earlier one. The program may use
        // other maps, and this agent does not count its drops.
        Some(found) => {
            format!("the {direction} of {device} has program {}, not this agent's {program}", found.program)
        }
    }
}

fn link_faults(endpoint: &Endpoint, found: Option<&Link>, host: &Host) -> Vec<String> {
    let name = &endpoint.host_interface;
    let Some(link) = found else {
        let fault = match host.device(name) {
            Some(other) => {
                format!("{name} is another device (ifindex {}, not {})", other.index, endpoint.ifindex)
            }
            None => format!("{name} is gone on the node"),
        };
        return vec![fault];
    };
    let mut faults = Vec::new();
    if link.name != *name {
        faults.push(format!("{name} is named {} on the node", link.name));
    }
    if link.mac != Some(endpoint.host_mac) {
        let has = link.mac.map_or_else(|| "none".into(), format_mac);
        faults.push(format!("{name} has the MAC address {has}, not {}", format_mac(endpoint.host_mac)));
    }
    if !link.up {
        faults.push(format!("{name} is down on the node"));
    }
    if link.mtu != endpoint.mtu {
        faults.push(format!("{name} has MTU {}, not {}", link.mtu, endpoint.mtu));
    }
    faults
}

fn table_faults(endpoint: &Endpoint, change: &TableChange) -> Vec<String> {
    match change {
        TableChange::Endpoints(Change { key, before: Some(have), now: Some(want) }) => {
            entry_faults(IpAddr::from(*key), *have, *want)
        }
        TableChange::Endpoints(Change { key, .. }) => {
            vec![format!("ENDPOINTS has no entry for {}", IpAddr::from(*key))]
        }
        TableChange::Guards(_) => vec![format!(
            "EGRESS_GUARDS has no entry, or a wrong one, for the pod's packets from {}",
            endpoint.host_interface
        )],
        TableChange::Frontends(Change { key, before, .. }) => {
            let is_of = |mapping: &&PortMapping| {
                endpoint.addresses().any(|address| frontend(mapping, address) == Some(*key))
            };
            let mapping = endpoint.port_mappings.iter().find(is_of).map(ToString::to_string);
            let mapping = mapping.unwrap_or_else(|| format!("{key:?}"));
            vec![match before {
                Some(have) => format!("the hostPort {mapping} leads to {have:?} in FRONTENDS"),
                None => format!("the hostPort {mapping} is missing in FRONTENDS"),
            }]
        }
        other => vec![format!("{} is not as it should be", other.table().name())],
    }
}

fn entry_faults(address: IpAddr, have: abi::Endpoint, want: abi::Endpoint) -> Vec<String> {
    // Destructured, so that a field that is added to the entry cannot be forgotten here.
    let abi::Endpoint {
        #[cfg(feature = "earlier-layout")]
            earlier: _,
        ifindex,
        id,
        flags,
        mtu,
        pod_mac,
        host_mac,
        gateway,
    } = want;
    let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
    [
        ("ifindex", text(&have.ifindex), text(&ifindex)),
        ("id", text(&have.id), text(&id)),
        ("flags", text(&have.flags), text(&flags)),
        ("mtu", text(&have.mtu), text(&mtu)),
        ("pod_mac", text(&have.pod_mac), text(&pod_mac)),
        ("host_mac", text(&have.host_mac), text(&host_mac)),
        ("gateway", text(&have.gateway), text(&gateway)),
    ]
    .into_iter()
    .filter(|(_, have, want)| have != want)
    .map(|(field, have, want)| format!("ENDPOINTS has {field} {have} for {address}, not {want}"))
    .collect()
}

fn fault(endpoint: &Endpoint, op: &Op) -> String {
    match op {
        Op::Queue(_) => format!(
            "the limit of what the pod receives is missing on {}, or is wrong",
            endpoint.host_interface
        ),
        Op::Route(Change { key, before: Some(have), now: Some(want) }) => {
            format!("the host's route to {} is {have:?}, not {want:?}", key.addr())
        }
        Op::Route(Change { key, .. }) => format!("the host's route to {} is missing", key.addr()),
        other => format!("{:?} is not as it should be", other.rank()),
    }
}
