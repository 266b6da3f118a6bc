//! ADD: the agent answers only when disk, maps and programs agree.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use podwire_cni::fault::Step;
use podwire_cni::protocol::{Add, Failure, Reply, codes};
use podwire_common::tables::Table;
use podwire_core::features::{Scope, desired};
use podwire_core::host_ports::{self, Unavailable};
use podwire_core::ipam::IpamError;
use podwire_core::model::{Endpoint, Family, Mode, PodAddress, PortMapping, format_mac, parse_mac};
use podwire_core::plan::{Removals, plan};
use podwire_core::slice::{Link, Slice};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{Pods, answer, failure, forget, look_at_host_addresses, refuse};
use crate::conditions::ConditionName;
use crate::daemon::executor::{Started, step};
use crate::daemon::state::State;
use crate::error::Error;
use crate::files::FileError;
use crate::links::LinkError;
use crate::wire;

/// An ADD that waits for its endpoint's file to be written.
pub(super) struct Adding {
    endpoint: Endpoint,
    /// Resources that exist so far.
    reached: Slice,
    /// Result of all other operations.
    done: Result<(), Error>,
    reply: oneshot::Sender<Reply>,
}

impl Pods {
    /// Serves an ADD. Unless it is refused, [`Self::finish_joined`] answers it later.
    pub(in crate::daemon) async fn add(
        &mut self,
        state: &mut State,
        add: &Add,
        reply: oneshot::Sender<Reply>,
    ) {
        let mut prepared = self.prepare(state, add).await;
        if prepared.is_err() && self.is_anything_under_way() {
            // The failure may be temporary: another ADD may hold the address or hostPort and then
            // fail, or a DEL may be about to release it.
            self.finish_all_joined(state).await;
            prepared = self.prepare(state, add).await;
        }
        match prepared {
            Ok((endpoint, there)) => self.connect(state, endpoint, there, reply).await,
            Err(failure) => answer(reply, Err(failure)),
        }
    }

    /// Returns the endpoint that the ADD asks for, with its address, and its existing resources.
    /// Adds the endpoint to the model.
    async fn prepare(&mut self, state: &mut State, add: &Add) -> Result<(Endpoint, Slice), Failure> {
        let mut endpoint = proposed(state, add)?;
        endpoint.ifindex = checked_device(state, &endpoint).await?;
        let mut there = Slice::default();
        match state.model.endpoint_of(&endpoint.attachment).cloned() {
            Some(known) => {
                endpoint.pod_addresses.clone_from(&known.pod_addresses);
                there = desired(&state.model, Scope::Endpoint(&known));
                // The plugin has replaced the link. Everything on the earlier link went with it.
                (there.programs, there.queues, there.links, there.routes) = Default::default();
                state.model.endpoints.remove(&known.attachment);
            }
            None => endpoint.pod_addresses = self.allocate(state, &add.addresses)?,
        }
        there.links.insert(endpoint.ifindex, Link::down(&endpoint));
        state.model.without_device.remove(&endpoint.attachment);
        state.model.endpoints.insert(endpoint.attachment.clone(), endpoint.clone());
        Ok((endpoint, there))
    }

    fn allocate(&mut self, state: &mut State, asked: &[IpNet]) -> Result<Vec<PodAddress>, Failure> {
        self.other.look_at_host_local(state);
        let Some(own) = state.model.own.as_ref().filter(|_| !state.executor.pools.is_empty()) else {
            return Err(refuse(
                codes::TRY_AGAIN_LATER,
                "the agent is not ready: this node's podCIDR is not known".into(),
            ));
        };
        let asked: Vec<_> = asked.iter().map(IpNet::addr).collect();
        let given = state.executor.pools.allocate(&asked).map_err(|error| {
            let code = match error {
                IpamError::Exhausted { .. } | IpamError::NoRoom(_) => codes::ADDRESSES_EXHAUSTED,
                _ => codes::ADDRESS_UNAVAILABLE,
            };
            refuse(code, error.to_string())
        })?;
        let with_gateway = given.into_iter().filter_map(|address| {
            let gateway = own.overlay_address(Family::of(address))?;
            Some(PodAddress { address, gateway })
        });
        Ok(with_gateway.collect())
    }

    /// Makes all resources of an endpoint. The ADD is answered when the endpoint's file is on disk;
    /// the agent serves ADDs of other pods meanwhile.
    async fn connect(
        &mut self,
        state: &mut State,
        endpoint: Endpoint,
        there: Slice,
        reply: oneshot::Sender<Reply>,
    ) {
        let want = desired(&state.model, Scope::Endpoint(&endpoint));
        let ops = plan(&want, &there, Removals::Allowed);
        let mut reached = there;
        // The pools have given the addresses already, whether or not the operations succeed.
        reached.addresses.extend(endpoint.addresses().map(|address| (address, ())));
        let Started { waits, done, .. } = state.executor.start(ops, &mut reached).await;
        let adding = Adding { endpoint, reached, done, reply };
        match waits {
            true => drop(self.adding.insert(adding.endpoint.host_interface.clone(), adding)),
            false => self.finish(state, adding).await,
        }
    }

    /// Answers an ADD after its endpoint was written to disk, or could not be.
    pub(super) async fn finish_saved(
        &mut self,
        state: &mut State,
        name: String,
        saved: Result<(), FileError>,
    ) {
        // Wait for the write even if the other operations failed: it must not create the file after
        // the undo.
        self.has_disk_failed |= saved.is_err();
        if let Some(mut adding) = self.adding.remove(&name) {
            adding.done = adding.done.and(saved.map_err(Error::from));
            self.finish(state, adding).await;
        }
    }

    async fn finish(&mut self, state: &mut State, adding: Adding) {
        let Adding { endpoint, reached, done, reply } = adding;
        if let Err(error) = done.and_then(|()| step(Step::Agreed)) {
            undo(state, &endpoint, reached).await;
            return answer(reply, Err(failure(error)));
        }
        if reply.is_closed() {
            warn!(pod = %endpoint, "ADD undone: its plugin has stopped waiting, or is dead");
            return undo(state, &endpoint, reached).await;
        }
        info!(pod = %endpoint, container = endpoint.attachment.container_id, "added");
        for is_over in [ConditionName::EndpointRecovered, ConditionName::NotReleased] {
            state.conditions.clear_for(is_over, &endpoint.host_interface);
        }
        if !endpoint.port_mappings.is_empty() {
            let host = Arc::clone(&state.host);
            look_at_host_addresses(state, &host);
        }
        answer(reply, Ok(Reply::Added(wire::added(&endpoint))));
    }
}

/// Reverses what an ADD has done. The device stays: the plugin made it and removes it.
async fn undo(state: &mut State, endpoint: &Endpoint, mut reached: Slice) {
    let links = BTreeMap::from([(endpoint.ifindex, Link::down(endpoint))]);
    let before = Slice { links, ..Slice::default() };
    let ops = plan(&before, &reached, Removals::Allowed);
    match state.executor.run_all(ops, &mut reached).await {
        Ok(()) => forget(state, endpoint),
        Err(error) => {
            error!(pod = %endpoint, "could not undo a failed ADD: {error}; the agent keeps the pod's address until it has undone the ADD");
        }
    }
}

/// Returns the endpoint that the ADD asks for, still without addresses and device.
///
/// # Errors
/// The reason why an ADD would be refused.
pub(in crate::daemon) fn proposed(state: &State, add: &Add) -> Result<Endpoint, Failure> {
    if let Some(why) = state.conditions.refusal() {
        return Err(refuse(codes::TRY_AGAIN_LATER, format!("the agent is not ready: {}", why.sentence)));
    }
    let attachment = wire::attachment(&add.attachment);
    let expected = attachment.host_interface();
    if add.host_interface != expected {
        let message = format!(
            "the agent expects a host side named {expected}, but the plugin made {}: install plugin and agent from one release",
            add.host_interface
        );
        return Err(refuse(codes::DECODING_FAILURE, message));
    }
    let mac = |text: &String| {
        parse_mac(text)
            .filter(|mac| !mac.is_group())
            .ok_or_else(|| refuse(codes::DECODING_FAILURE, format!("`{text}` is not a unicast link address")))
    };
    let known = state.model.endpoint_of(&attachment);
    if let Some(known) = known
        && let Some(other) =
            add.addresses.iter().find(|asked| !known.addresses().any(|of| of == asked.addr()))
    {
        let there: Vec<_> = known.addresses().map(|address| address.to_string()).collect();
        let message = format!(
            "ADD asks for address {other}, but the attachment already has {}: DEL it first",
            there.join(" and ")
        );
        return Err(refuse(codes::ADDRESS_UNAVAILABLE, message));
    }
    let port_mappings = wire::port_mappings(&add.port_mappings);
    check_host_ports(state, &port_mappings, &expected, known)?;
    let bandwidth = wire::bandwidth(add.bandwidth);
    if known.is_some_and(|known| !known.is_recovered() && known.bandwidth != bandwidth) {
        let message = "the attachment has another bandwidth than this ADD asks for: DEL it first".into();
        return Err(refuse(codes::INVALID_CONFIGURATION, message));
    }
    let Some(fitting) = state.pod_mtu.filter(|_| known.is_some() || state.model.own.is_some()) else {
        return Err(refuse(
            codes::TRY_AGAIN_LATER,
            "the agent is not ready: this node is not known yet".into(),
        ));
    };
    let has_ipv6 = state.model.pod_families().any(|family| family == Family::V6);
    Ok(Endpoint {
        attachment,
        netns: add.netns.clone(),
        host_interface: expected,
        ifindex: 0,
        id: known.map_or_else(|| free_id(state), |known| known.id),
        pod_mac: mac(&add.pod_mac)?,
        host_mac: mac(&add.host_mac)?,
        pod_addresses: Vec::new(),
        mtu: wanted_mtu(add.mtu, fitting, has_ipv6)?,
        port_mappings,
        pod: add.pod.as_ref().map(wire::pod_name),
        network: Some(add.network.clone()),
        bandwidth,
    })
}

fn check_host_ports(
    state: &State,
    wanted: &[PortMapping],
    host_interface: &str,
    known: Option<&Endpoint>,
) -> Result<(), Failure> {
    // Existing flows know the previous ports, and only DEL ends them.
    if let Some(known) = known
        && sorted(&known.port_mappings) != sorted(wanted)
    {
        let message = "ADD asks for other portMappings than the attachment has: DEL it first".into();
        return Err(refuse(codes::INVALID_CONFIGURATION, message));
    }
    let tunnel_port = (state.config.mode == Mode::Vxlan).then_some(state.config.vxlan_port);
    let others = state.model.endpoints.values().filter(|other| other.host_interface != host_interface);
    let capacity = state.executor.dataplane.maps.capacity(Table::Frontends);
    let families: Vec<_> = match known {
        Some(known) => known.addresses().map(Family::of).collect(),
        None => state.model.pod_families().collect(),
    };
    host_ports::check(wanted, &families, others, tunnel_port, capacity).map_err(|unavailable| {
        let code = match unavailable {
            Unavailable::Contradiction(..) => codes::INVALID_CONFIGURATION,
            _ => codes::HOST_PORT_UNAVAILABLE,
        };
        refuse(code, unavailable.to_string())
    })
}

/// Returns the smallest number that no endpoint has.
fn free_id(state: &State) -> u32 {
    let mut used: Vec<_> = state.model.endpoints.values().map(|endpoint| endpoint.id).collect();
    used.sort_unstable();
    (1..).zip(used).find(|(free, used)| free != used).map_or_else(
        || u32::try_from(state.model.endpoints.len()).unwrap_or(u32::MAX).saturating_add(1),
        |(free, _)| free,
    )
}

/// Returns the device's ifindex, if the device is what the plugin says it made.
async fn checked_device(state: &State, endpoint: &Endpoint) -> Result<u32, Failure> {
    let name = endpoint.host_interface.clone();
    let device = state.executor.links.device(&name).await.map_err(failure)?;
    let Some(device) = device else {
        return Err(failure(LinkError::NoDevice { name }));
    };
    if device.mac != Some(endpoint.host_mac) {
        let has = device.mac.map_or_else(|| "none".into(), format_mac);
        let problem = format!(
            "its link address is {has}, but the plugin made it with {}: keep other tools (udev, networkd) off devices named pw*",
            format_mac(endpoint.host_mac)
        );
        return Err(failure(LinkError::Device { name, problem }));
    }
    Ok(device.index)
}

fn sorted(mappings: &[PortMapping]) -> Vec<PortMapping> {
    let mut mappings = mappings.to_vec();
    mappings.sort_unstable();
    mappings
}

fn wanted_mtu(configured: Option<u32>, fitting: u32, has_ipv6: bool) -> Result<u32, Failure> {
    let family = if has_ipv6 { Family::V6 } else { Family::V4 };
    let least = family.least_mtu();
    match configured {
        None => Ok(fitting),
        Some(mtu) if mtu > fitting => {
            let message = format!(
                "mtu: {mtu} is more than the {fitting} bytes that fit this node's uplinks: lower it or leave it out"
            );
            Err(refuse(codes::INVALID_CONFIGURATION, message))
        }
        Some(mtu) if mtu < least => Err(refuse(
            codes::INVALID_CONFIGURATION,
            format!("mtu: {mtu} is less than the minimum of {family}, {least} bytes"),
        )),
        Some(mtu) => Ok(mtu),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_mtu_has_to_fit() {
        assert_eq!(wanted_mtu(None, 1450, true), Ok(1450));
        assert_eq!(wanted_mtu(Some(1400), 1450, true), Ok(1400));
        let failure = wanted_mtu(Some(1500), 1450, true).unwrap_err();
        assert_eq!(failure.code, codes::INVALID_CONFIGURATION);
        assert!(failure.message.contains("1500") && failure.message.contains("1450"), "{failure}");
        assert_eq!(wanted_mtu(Some(68), 1450, false), Ok(68));
        for (mtu, has_ipv6) in [(67, false), (1279, true)] {
            let failure = wanted_mtu(Some(mtu), 1450, has_ipv6).unwrap_err();
            assert_eq!(failure.code, codes::INVALID_CONFIGURATION);
        }
    }
}
