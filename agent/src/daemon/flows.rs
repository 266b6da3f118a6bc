//! Takes the results of the collector of flows.

use std::net::{IpAddr, SocketAddr};

use podwire_common::abi::Holder;
use podwire_common::addr::Addr;
use podwire_core::model::{Model, Node};
use tracing::error;

use super::state::State;
use crate::conditions::ConditionName;
use crate::conntrack::Conntrack;
use crate::dataplane::flows::{Collected, Collector};
use crate::error::Error;

/// Returns the collector, which removes stale entries from the tables. It runs in a thread of its
/// own.
///
/// # Errors
/// [`Error::Dataplane`].
pub(super) fn collector(state: &mut State) -> Result<Collector, Error> {
    let conntrack = Conntrack::open().map_err(|error| {
        let sentence = format!(
            "the agent cannot query connection tracking, so flows through the host stack expire after fixed times: {error}"
        );
        state.conditions.set(ConditionName::ConntrackUnavailable, sentence);
    });
    Ok(state.executor.dataplane.maps.collector(conntrack.ok())?)
}

/// Reports tables and holders under pressure, and links without programs at which pods' packets
/// were dropped. Lets pods go past the host stack again when there is room for their flows.
pub(super) fn take(state: &mut State, collected: &Collected) {
    let is_nearly_full = "the table of translations is nearly full: the agent removes finished flows sooner";
    state
        .conditions
        .update(ConditionName::TranslationsNearlyFull, collected.pressure.then(|| is_nearly_full.to_owned()));
    let crowded = collected.crowded.iter().map(|holder| {
        let sentence = format!(
            "{} has nearly used its share of the table of translations: the agent removes its finished and not yet established flows sooner, and new flows may be dropped (translation-share-used)",
            name_of(&state.model, holder)
        );
        let Holder { address, port, protocol, .. } = holder;
        (format!("{address:?} {port:?} {protocol}"), sentence)
    });
    let crowded: Vec<_> = crowded.collect();
    state.conditions.replace(ConditionName::HolderCrowded, crowded);
    let refused = collected.refused.iter().map(|index| {
        let device = state.host.devices.get(index).map_or_else(|| format!("link {index}"), |link| link.name.clone());
        let sentence = format!(
            "a route leads pods' packets to the world by {device}, which has no programs of Podwire: the packets were dropped (link-without-programs)"
        );
        (device, sentence)
    });
    let refused: Vec<_> = refused.collect();
    state.conditions.replace(ConditionName::LinkWithoutPrograms, refused);
    if let Err(error) = state.executor.dataplane.maps.clear_stack_only(&collected.recorded) {
        error!("could not let pods' flows go past the host stack again: {error}");
    }
}

/// Returns the name of a holder of table entries, for the log.
fn name_of(model: &Model, holder: &Holder) -> String {
    let is_holder = |address: IpAddr| Addr::from(address) == holder.address;
    let pod = model.endpoints.values().find(|endpoint| endpoint.addresses().any(is_holder));
    let is_overlay = model.own.iter().flat_map(Node::overlay_addresses).any(is_holder);
    match pod {
        None if is_overlay => "the masquerading into the tunnel".to_owned(),
        None if holder.address == Addr::UNSPECIFIED => "this node".to_owned(),
        None if holder.protocol != 0 => {
            let to = SocketAddr::new(holder.address.into(), holder.port.get());
            format!("clients outside that reach {to} by a service")
        }
        None => format!("{:?}, an address that no pod has any more,", holder.address),
        Some(pod) if holder.protocol == 0 => pod.to_string(),
        Some(pod) => {
            format!(
                "clients outside that reach port {} of {pod} by a hostPort or a service",
                holder.port.get()
            )
        }
    }
}
