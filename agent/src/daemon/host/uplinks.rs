//! The links that lead out, and the ways to the other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use podwire_core::host::Host;
use podwire_core::model::{Node, Path};
use podwire_core::slice::Hooks;
use tracing::info;

use super::Upkeep;
use super::pins::make_room;
use crate::before::Before;
use crate::conditions::ConditionName;
use crate::daemon::state::State;
use crate::dataplane::attach::UplinkAttachment;
use crate::error::Error;

impl Upkeep {
    /// Finds the uplinks and the ways to the other nodes. `false`: there is no uplink, and nothing can be done.
    pub(super) async fn look_at_uplinks(&mut self, state: &mut State, host: &Host) -> bool {
        let Some(own) = state.model.own.clone() else {
            return false;
        };
        let uplinks = match host.uplinks(&state.config.uplinks, own.address) {
            Ok(uplinks) => uplinks,
            Err(why) => {
                state.conditions.set(ConditionName::NoUplink, why.to_string());
                return false;
            }
        };
        state.conditions.clear(ConditionName::NoUplink);
        if uplinks != state.model.uplinks {
            for uplink in &uplinks {
                let addresses: Vec<_> = uplink.addresses.iter().map(ToString::to_string).collect();
                info!(device = uplink.name, mtu = uplink.mtu, addresses = addresses.join(", "), "uplink");
            }
            state.model.uplinks = uplinks;
        }
        let absent = Some(own.address).filter(|address| !state.model.has_address(*address));
        let absent = absent.map(|absent| {
            let instead = state.model.underlay_address(&own);
            format!("no link has this node's InternalIP {absent}: packets to other nodes leave with {instead} instead")
        });
        state.conditions.update(ConditionName::InternalIpAbsent, absent);
        let doubtful = self.paths_asked.is_none() || self.paths_doubtful && self.paths_are_old();
        if doubtful || host.routes_differ(&state.host) {
            state.model.paths = ask_paths(state, host).await;
            self.paths_asked = Some(Instant::now());
            self.paths_doubtful = false;
        }
        let mtu = state.model.pod_mtu();
        if mtu != state.pod_mtu {
            state.pod_mtu = mtu;
            tell_mtu(state);
        }
        true
    }

    /// Programs on each uplink, and on no other link.
    pub(super) async fn attach_uplinks(&mut self, state: &mut State) -> Result<(), Error> {
        for uplink in state.model.uplinks.clone() {
            if self.attached.get(&uplink.index) == Some(&uplink.name) {
                continue;
            }
            if self.uplink_attachment == UplinkAttachment::Clsact {
                if !make_room(state, Hooks::Uplink, uplink.index, &uplink.name).await? {
                    continue;
                }
                if !state.executor.links.has_clsact(uplink.index).await? {
                    let mut before = Before::load(&state.config.places.state_dir)?;
                    before.without_clsact.insert(uplink.name.clone());
                    before.save(&state.config.places.state_dir)?;
                }
            }
            state.executor.dataplane.attach_uplink(
                &uplink.name,
                self.uplink_attachment,
                state.config.uplink_xdp,
            )?;
            info!(device = uplink.name, how = ?self.uplink_attachment, xdp = ?state.config.uplink_xdp, "programs attached to the uplink");
            self.attached.insert(uplink.index, uplink.name.clone());
        }
        self.attached.retain(|index, _| state.model.uplinks.iter().any(|uplink| uplink.index == *index));
        let is_uplink = |name: &str| state.model.uplinks.iter().any(|uplink| uplink.name == name);
        state.conditions.retain(ConditionName::UplinkObstructed, is_uplink);
        Ok(state.executor.dataplane.detach_other_uplinks(&state.model.uplinks)?)
    }
}

fn tell_mtu(state: &mut State) {
    let (Some(mtu), Some(fitting)) = (state.pod_mtu, state.model.fitting_mtu()) else {
        return;
    };
    info!(mtu, "MTU of new pods");
    let too_large = format!(
        "--mtu {mtu} is more than the {fitting} bytes that fit this node's uplinks: pods will be told so packet by packet"
    );
    state.conditions.update(ConditionName::MtuTooLarge, (mtu > fitting).then_some(too_large));
}

async fn ask_paths(state: &mut State, host: &Host) -> BTreeMap<IpAddr, Path> {
    let mut paths = BTreeMap::new();
    let mut reports = Vec::new();
    for node in state.model.remote.values() {
        let (path, report) = ask_path(state, node, host).await;
        paths.extend(path.map(|path| (node.address, path)));
        reports.extend(report.map(|(name, sentence)| (name, node.name.clone(), sentence)));
    }
    for name in [ConditionName::NoRouteToNode, ConditionName::RoutePastUplinks] {
        let of_name = reports.iter().filter(|(of, ..)| *of == name);
        let of_name = of_name.map(|(_, node, sentence)| (node.clone(), sentence.clone()));
        state.conditions.replace(name, of_name);
    }
    paths
}

/// Asks for the ways to these nodes, and forgets those to where nodes were before.
pub(in crate::daemon) async fn renew_paths(state: &mut State, before: &[Node], now: &[Node]) {
    let asked: BTreeSet<&str> = before.iter().chain(now).map(|node| node.name.as_str()).collect();
    for node in before {
        state.model.paths.remove(&node.address);
    }
    let mut reports = Vec::new();
    for node in now {
        let (path, report) = ask_path(state, node, &state.host).await;
        state.model.paths.extend(path.map(|path| (node.address, path)));
        reports.extend(report.map(|(name, sentence)| (name, node, sentence)));
    }
    for name in [ConditionName::NoRouteToNode, ConditionName::RoutePastUplinks] {
        let of_name = reports.iter().filter(|(of, ..)| *of == name);
        let still: BTreeSet<&str> = of_name.map(|(_, node, _)| node.name.as_str()).collect();
        state.conditions.retain(name, |node| !asked.contains(node) || still.contains(node));
    }
    for (name, node, sentence) in reports {
        state.conditions.set_for(name, &node.name, sentence);
    }
}

/// The way to a node, and what an operator has to know of it.
async fn ask_path(
    state: &State,
    node: &Node,
    host: &Host,
) -> (Option<Path>, Option<(ConditionName, String)>) {
    let path = state.executor.links.path(node.address, host).await;
    let report = match path {
        Some(path) if state.model.uplinks.iter().any(|uplink| uplink.index == path.device) => None,
        Some(path) => {
            let device = host.devices.get(&path.device).map_or("?", |device| &device.name);
            let why = format!(
                "the route to node {} ({}) leaves by {device}, which is no uplink",
                node.name, node.address
            );
            Some((ConditionName::RoutePastUplinks, why))
        }
        None => {
            let why = format!(
                "there is no route to node {} (InternalIP {}): its pods are out of reach",
                node.name, node.address
            );
            Some((ConditionName::NoRouteToNode, why))
        }
    };
    (path, report)
}
