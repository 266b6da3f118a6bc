//! The links of the node, and the paths to the other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use podwire_common::names::VXLAN_OVERHEAD_IPV6;
use podwire_core::host::{Device, DeviceKind, Host};
use podwire_core::model::{Model, Node, NodeLink, Path, Role, Roleless};
use podwire_core::node_links::node_links;
use podwire_core::slice::{Hooks, Programs};
use tracing::info;

use super::Upkeep;
use super::pins::make_room;
use crate::before::Before;
use crate::conditions::ConditionName;
use crate::daemon::attempts::Attempts;
use crate::daemon::state::State;
use crate::dataplane::attach::{UplinkAttachment, UplinkXdp};
use crate::error::Error;
use crate::link_filters;

impl Upkeep {
    /// Finds the roles of the links and the paths to the other nodes. Returns `false` if this node
    /// is not known or has no uplink. Then the agent can only restore programs.
    pub(super) async fn look_at_links(&mut self, state: &mut State, host: &Host) -> bool {
        let Some(own) = state.model.own.clone() else {
            return false;
        };
        let doubtful = self.paths_asked.is_none() || self.paths_doubtful && self.paths_are_old();
        if doubtful || host.routes_differ(&state.host) {
            state.model.paths = ask_paths(state, host).await;
            self.paths_asked = Some(Instant::now());
            self.paths_doubtful = false;
        }
        let to_nodes = links_to_nodes(&state.model, host);
        let links = node_links(host, &state.config.link_rules(), &own, &to_nodes);
        if !links.iter().any(|link| link.role == Role::Uplink) {
            let why = format!(
                "no link has this node's InternalIP {}, and there is no default route and no route to a node: configure one of these, or name the link with --uplink",
                own.first_address()
            );
            state.conditions.set(ConditionName::NoUplink, why);
            return false;
        }
        state.conditions.clear(ConditionName::NoUplink);
        if links != state.model.links {
            tell_links(&links, &state.model.links);
            state.model.links = links;
        }
        state.model.links_without_role = without_role(host, &state.model.links);
        tell_paths(state, host);
        let absent = own.first_addresses().filter(|address| !state.model.has_address(*address));
        let absent = absent.map(|absent| {
            let instead = state.model.present_address(absent);
            let why = format!("no link has this node's InternalIP {absent}: packets to other nodes leave with {instead} instead");
            (absent.to_string(), why)
        });
        let absent: Vec<_> = absent.collect();
        state.conditions.replace(ConditionName::InternalIpAbsent, absent);
        let mtu = state.model.pod_mtu();
        if mtu != state.pod_mtu {
            state.pod_mtu = mtu;
            tell_mtu(state);
        }
        let too_small = state.model.underlay_too_small().map(|mtu| {
            let largest = mtu.saturating_sub(VXLAN_OVERHEAD_IPV6);
            format!("a link to other nodes has an MTU of {mtu} bytes: IPv6 packets of pods to these nodes are dropped (tunnel-too-small) if they have more than {largest} bytes, because nobody may fragment them in a tunnel of IPv6")
        });
        state.conditions.update(ConditionName::UnderlayTooSmall, too_small);
        true
    }

    /// Attaches the programs of each link's role. If a link cannot have them, the others still get
    /// theirs, and the link is added to [`Model::without_programs`].
    pub(super) async fn attach_links(&mut self, state: &mut State) -> Result<(), Error> {
        let mut attempts = Attempts::default();
        for link in state.model.links.clone() {
            if !self.has_programs(state, &link)
                && let Err(error) = self.attach_link(state, &link).await
                && state
                    .executor
                    .links
                    .device(&link.name)
                    .await?
                    .is_some_and(|there| there.index == link.index)
            {
                attempts.note(Err(error));
            }
        }
        let without = state.model.links.iter().filter(|link| !self.has_programs(state, link));
        state.model.without_programs = without.map(|link| link.index).collect();
        attempts.outcome()
    }

    fn has_programs(&self, state: &State, link: &NodeLink) -> bool {
        self.attached.get(&link.index).is_some_and(|attached| *attached == wanted_programs(state, link))
    }

    async fn attach_link(&mut self, state: &mut State, link: &NodeLink) -> Result<(), Error> {
        let (programs, xdp) = wanted_programs(state, link);
        if self.uplink_attachment == UplinkAttachment::Clsact {
            if !make_room(state, programs.hooks, link.index, &link.name).await? {
                return Ok(());
            }
            if programs.hooks == Hooks::Inner {
                // The link may have had another role, with more programs.
                link_filters::detach(&state.executor.links, link.index, &link.name).await?;
            }
            if !state.executor.links.has_clsact(link.index).await? {
                let mut before = Before::load(&state.config.places.state_dir)?;
                before.without_clsact.insert(link.name.clone());
                before.save(&state.config.places.state_dir)?;
            }
        }
        let (index, how) = (link.index, self.uplink_attachment);
        state.executor.dataplane.attach_link(index, &link.name, programs.hooks, how, Some(xdp))?;
        info!(device = link.name, role = ?link.role, ?how, ?xdp, "programs attached to the link");
        self.attached.insert(index, (programs, xdp));
        Ok(())
    }

    /// Removes the programs from links without a role. On a kernel without TCX the programs are
    /// filters, and an earlier agent may have left some on other links. So this looks at all other
    /// links once.
    pub(super) async fn detach_links(&mut self, state: &mut State, host: &Host) -> Result<(), Error> {
        let has_role = |index: &u32| state.model.links.iter().any(|link| link.index == *index);
        let lost: BTreeSet<u32> = self.attached.keys().filter(|index| !has_role(index)).copied().collect();
        if self.uplink_attachment == UplinkAttachment::Clsact {
            let before = Before::load(&state.config.places.state_dir)?;
            let is_due = |index: &u32| lost.contains(index) || !self.has_looked_for_filters;
            for (index, device) in host.devices.iter().filter(|(index, _)| !has_role(index) && is_due(index))
            {
                if device.is_foreign() {
                    link_filters::remove(&state.executor.links, *index, &device.name, &before).await?;
                }
            }
            self.has_looked_for_filters = true;
        }
        self.attached.retain(|index, _| has_role(index));
        let links = &state.model.links;
        let is = |name: &str, uplink| {
            links.iter().any(|link| link.name == name && (link.role == Role::Uplink) == uplink)
        };
        state.conditions.retain(ConditionName::UplinkObstructed, |name| is(name, true));
        state.conditions.retain(ConditionName::LinkObstructed, |name| is(name, false));
        Ok(state.executor.dataplane.detach_other_links(&state.model.links)?)
    }
}

/// Returns the programs that a link should have.
fn wanted_programs(state: &State, link: &NodeLink) -> (Programs, UplinkXdp) {
    let xdp = match link.role {
        Role::Uplink if !link.is_bare => state.config.uplink_xdp,
        _ => UplinkXdp::Off,
    };
    (Programs { hooks: link.hooks(), device: link.name.clone() }, xdp)
}

/// Logs the links that are new or have changed, and those that have no role any more.
fn tell_links(now: &[NodeLink], before: &[NodeLink]) {
    for link in now.iter().filter(|link| !before.contains(link)) {
        let addresses: Vec<_> = link.addresses.iter().map(ToString::to_string).collect();
        info!(device = link.name, role = ?link.role, mtu = link.mtu, addresses = addresses.join(", "), "link");
    }
    for link in before.iter().filter(|link| !now.iter().any(|other| other.index == link.index)) {
        info!(device = link.name, was = ?link.role, "link has no role any more");
    }
}

/// Returns the links by which the kernel routes to other nodes. If a route has several next hops, a
/// node's path names only one of them. So this adds the links of all next hops.
fn links_to_nodes(model: &Model, host: &Host) -> BTreeSet<u32> {
    let next_hops = next_hops(model, model.remote.values());
    let leads_to_node = |network: &IpNet| {
        network.prefix_len() > 0 && next_hops.iter().any(|address| network.contains(address))
    };
    let several = host.foreign_routes.iter().filter(|route| route.next_hops.len() > 1);
    let several = several.filter(|route| leads_to_node(&route.destination));
    let of_several = several.flat_map(|route| &route.next_hops).map(|hop| hop.device);
    model.paths.values().map(|path| path.device).chain(of_several).collect()
}

/// Returns the links without a role to which a route may lead.
fn without_role(host: &Host, links: &[NodeLink]) -> BTreeMap<u32, Roleless> {
    let has_role: BTreeSet<u32> = links.iter().map(|link| link.index).collect();
    let others = host.devices.values().filter(|device| {
        device.is_foreign() && device.port_of.is_none() && !has_role.contains(&device.index)
    });
    let is_sink = |device: &Device| device.kind == DeviceKind::Dummy;
    others.map(|device| (device.index, Roleless { mtu: device.mtu, is_sink: is_sink(device) })).collect()
}

fn tell_mtu(state: &mut State) {
    let (Some(mtu), Some(fitting)) = (state.pod_mtu, state.model.fitting_mtu()) else {
        return;
    };
    info!(mtu, "MTU of new pods");
    let too_large = format!(
        "--mtu {mtu} is more than the {fitting} bytes that fit this node's uplinks: pods get the ICMP error `fragmentation needed` for larger packets"
    );
    state.conditions.update(ConditionName::MtuTooLarge, (mtu > fitting).then_some(too_large));
}

/// Asks the kernel for the paths to all nodes.
async fn ask_paths(state: &State, host: &Host) -> BTreeMap<IpAddr, Path> {
    let mut paths = BTreeMap::new();
    for address in next_hops(&state.model, state.model.remote.values()) {
        let path = state.executor.links.path(address, host).await;
        paths.extend(path.map(|path| (address, path)));
    }
    paths
}

/// Returns the addresses of other nodes to which this node needs a path.
fn next_hops<'a>(model: &'a Model, nodes: impl IntoIterator<Item = &'a Node>) -> Vec<IpAddr> {
    let Some(own) = &model.own else { return Vec::new() };
    nodes.into_iter().flat_map(|node| model.next_hops(own, node)).collect()
}

/// Asks the kernel for the paths to the nodes in `now`, and forgets the paths to those in `before`.
/// Returns `false` if a path leads by a link that is no uplink yet.
pub(in crate::daemon) async fn renew_paths(state: &mut State, before: &[Node], now: &[Node]) -> bool {
    for address in next_hops(&state.model, before) {
        state.model.paths.remove(&address);
    }
    let mut by_uplinks = true;
    for address in next_hops(&state.model, now) {
        let path = state.executor.links.path(address, &state.host).await;
        by_uplinks &= path.is_none_or(|path| state.model.is_uplink(path.device));
        state.model.paths.extend(path.map(|path| (address, path)));
    }
    for node in before {
        state.conditions.clear_for(ConditionName::NoRouteToNode, &node.name);
        state.conditions.clear_for(ConditionName::RoutePastUplinks, &node.name);
    }
    for node in now {
        if let Some((name, sentence)) = report(&state.model, &state.host, node) {
            state.conditions.set_for(name, &node.name, sentence);
        }
    }
    by_uplinks
}

/// Reports what an operator has to know of the paths to all nodes.
fn tell_paths(state: &mut State, host: &Host) {
    let (model, mut reports) = (&state.model, Vec::new());
    for node in model.remote.values() {
        reports.extend(report(model, host, node).map(|report| (node.name.clone(), report)));
    }
    for name in [ConditionName::NoRouteToNode, ConditionName::RoutePastUplinks] {
        let of_name = reports.iter().filter(|(_, (of, _))| *of == name);
        let of_name = of_name.map(|(node, (_, sentence))| (node.clone(), sentence.clone()));
        state.conditions.replace(name, of_name);
    }
}

/// Returns what an operator has to know of the paths to a node.
fn report(model: &Model, host: &Host, node: &Node) -> Option<(ConditionName, String)> {
    next_hops(model, [node]).into_iter().find_map(|address| report_path(model, host, node, address))
}

fn report_path(model: &Model, host: &Host, node: &Node, address: IpAddr) -> Option<(ConditionName, String)> {
    match model.paths.get(&address) {
        Some(path) if model.is_uplink(path.device) => None,
        Some(path) => {
            let device = host.devices.get(&path.device).map_or("?", |device| &device.name);
            let why = format!(
                "the route to node {} ({address}) leaves by {device}, which is not an uplink",
                node.name
            );
            Some((ConditionName::RoutePastUplinks, why))
        }
        None => {
            let why = format!(
                "there is no route to node {} (InternalIP {address}): this node's pods cannot reach its pods",
                node.name
            );
            Some((ConditionName::NoRouteToNode, why))
        }
    }
}
