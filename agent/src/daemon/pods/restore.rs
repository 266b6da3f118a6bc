//! Takes over the endpoints of an earlier agent.

use std::net::IpAddr;

use podwire_common::abi::{self, ENDPOINT_EGRESS_LIMITED, ENDPOINT_INGRESS_LIMITED};
use podwire_core::features::{Scope, desired};
use podwire_core::host::{Device, DeviceKind, Host, is_pods_device};
use podwire_core::model::{Endpoint, format_mac};
use podwire_core::plan::{Op, Removals, plan};
use podwire_core::recovery::recovered;
use podwire_core::slice::{Slice, Tables};
use tracing::{error, info, warn};

use super::{DEVICE_GONE, Pods, not_released};
use crate::conditions::ConditionName;
use crate::daemon::state::State;
use crate::error::Error;
use crate::store::Corrupt;

impl Pods {
    /// Takes over what an earlier agent left: the endpoints in the state folder, and those that
    /// only maps and devices show.
    ///
    /// # Errors
    /// [`Error::Dataplane`], [`Error::File`], [`Error::Link`].
    pub(in crate::daemon) async fn restore(
        &mut self,
        state: &mut State,
        endpoints: Vec<Endpoint>,
        corrupt: &[Corrupt],
    ) -> Result<(), Error> {
        let spoilt = corrupt.iter().map(|Corrupt { path, reason }| {
            let path = path.display().to_string();
            let why =
                format!("the agent does not use {path}, because it is not an endpoint file or does not decode: {reason}");
            (path, why)
        });
        state.conditions.replace(ConditionName::EndpointFile, spoilt);
        let (mut there, mut gone) = (Vec::new(), Vec::new());
        for mut endpoint in endpoints {
            let mut entry = None;
            for address in endpoint.addresses() {
                entry = entry.or(state.executor.dataplane.maps.endpoint(address)?);
            }
            match device_of(&endpoint, entry, &state.host) {
                Some(ifindex) => {
                    endpoint.ifindex = ifindex;
                    there.push(endpoint);
                }
                None => gone.push(endpoint),
            }
        }
        let mut due = Vec::new();
        for endpoint in gone {
            // Two files may have the same address, for example after the folder was restored from a
            // copy. Then the map entries and routes belong to the other endpoint.
            match there.iter().find(|other| other.shares_address(&endpoint)) {
                Some(other) => {
                    warn!(pod = %endpoint, "endpoint file removed: the device of this pod is gone, and {other} has its address");
                    state.executor.store.remove(&endpoint)?;
                }
                None => due.push(endpoint),
            }
        }
        for (mut endpoint, outcome) in self.release_all(state, due, DEVICE_GONE).await {
            if let Err(failure) = outcome {
                not_released(state, &endpoint, &failure.message);
                // The sweep tries again. No device has the ifindex 0.
                endpoint.ifindex = 0;
                self.miss(state, endpoint.attachment.clone());
                there.push(endpoint);
            }
        }
        info!(restored = there.len(), "endpoints restored");
        let there = there.into_iter().map(|endpoint| (endpoint.attachment.clone(), endpoint));
        state.model.endpoints.extend(there);
        let contents = state.executor.dataplane.maps.contents()?;
        recover(state, &contents);
        restore_tables(state, contents)
    }
}

/// Writes the entries of the endpoints into the tables. Programs may use the tables already, so
/// nothing is removed.
fn restore_tables(state: &mut State, contents: Tables) -> Result<(), Error> {
    let maps = &mut state.executor.dataplane.maps;
    let tables = |tables| Slice { tables, ..Slice::default() };
    let want = tables(desired(&state.model, Scope::All).tables);
    for op in plan(&want, &tables(contents), Removals::Withheld) {
        if let Op::Table(change) = op {
            maps.apply(&change)?;
        }
    }
    Ok(())
}

/// Takes over endpoints that the maps and devices show, but that have no file.
fn recover(state: &mut State, contents: &Tables) {
    let known = state.model.endpoints.values().flat_map(Endpoint::addresses).collect();
    for endpoint in recovered(contents, &state.host, &known) {
        warn!(pod = %endpoint, "no file describes this pod, but its link exists: the pod keeps its network and its address");
        let limits = ENDPOINT_INGRESS_LIMITED | ENDPOINT_EGRESS_LIMITED;
        let is_limited = |address: IpAddr| contents.endpoints[&address.into()].flags & limits != 0;
        if endpoint.addresses().any(is_limited) {
            let why = format!("no file describes {endpoint}: its bandwidth is unknown");
            state.conditions.set_for(ConditionName::EndpointRecovered, &endpoint.host_interface, why);
        }
        if let Err(error) = state.executor.store.save(&endpoint) {
            error!(pod = %endpoint, "only the maps describe this pod, and a reboot clears them: {error}");
        }
        state.model.endpoints.insert(endpoint.attachment.clone(), endpoint);
    }
}

/// Returns the host side's ifindex, if it is still the device that the pod got. The device is
/// recognised by its link address or its ifindex. A renamed device is recognised by its link
/// address only.
fn device_of(endpoint: &Endpoint, entry: Option<abi::Endpoint>, host: &Host) -> Option<u32> {
    let renamed = || {
        // A device with the name of another pod's device is that pod's.
        let is_renamed = |device: &&Device| device.kind == DeviceKind::Veth && !is_pods_device(&device.name);
        let mut renamed = host.devices.values().filter(is_renamed);
        renamed.find(|device| device.mac == Some(endpoint.host_mac)).map(|device| device.index)
    };
    host.device(&endpoint.host_interface)
        .and_then(|device| known_device(endpoint, entry, device))
        .or_else(renamed)
}

fn known_device(endpoint: &Endpoint, entry: Option<abi::Endpoint>, device: &Device) -> Option<u32> {
    if device.mac == Some(endpoint.host_mac) {
        return Some(device.index);
    }
    let is_same =
        entry.is_some_and(|entry| entry.ifindex == device.index && entry.host_mac == endpoint.host_mac);
    if is_same {
        warn!(
            pod = %endpoint,
            "another tool has given {} a different link address: set it to {} again, and keep other tools (udev, networkd) off devices named pw*",
            device.name, format_mac(endpoint.host_mac)
        );
    }
    is_same.then_some(device.index)
}
