//! Answers `podwire status`.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use podwire_common::reason::Drop;
use podwire_core::model::{Family, Mode, Model, Role};

use super::state::State;
use crate::conditions::Conditions;
use crate::dataplane::maps::Counters;
use crate::dataplane::probe::Capabilities;
use crate::housekeeping::INTERVAL;
use crate::packet_record::Link;
use crate::status::{Agent, Condition, Drops, Kernel, Modes, NodeLink, Pool};

/// What the agent remembers only for `podwire status`.
pub(super) struct Memory {
    pub(super) started: Timestamp,
    pub(super) capabilities: Capabilities,
    /// Dropped packets by reason, at each tick of the last minute, the oldest first.
    drops: VecDeque<BTreeMap<Drop, u64>>,
}

impl Memory {
    /// Creates the memory of an agent that starts now.
    #[expect(clippy::disallowed_methods, reason = "operators read the time of day")]
    pub(super) fn new(capabilities: &Capabilities) -> Self {
        Self { started: Timestamp::now(), capabilities: capabilities.clone(), drops: VecDeque::new() }
    }

    /// Remembers the counters at a tick.
    pub(super) fn tick(&mut self, counters: &Counters) {
        /// Ticks within a minute.
        const TICKS: usize = (60 / INTERVAL.as_secs()) as usize;
        if self.drops.len() > TICKS {
            self.drops.pop_front();
        }
        self.drops.push_back(counters.drops.iter().map(|(reason, count)| (*reason, count.packets)).collect());
    }

    /// Returns the reasons of dropped packets.
    pub(super) fn drops(&self, counters: &Counters) -> Vec<Drops> {
        let before = |reason: &Drop| self.drops.front().and_then(|drops| drops.get(reason)).copied();
        let drops = counters.drops.iter().filter(|(_, count)| count.packets > 0);
        let shown = drops.map(|(reason, count)| Drops {
            reason: reason.name().into(),
            packets: count.packets,
            bytes: count.bytes,
            last_minute: Some(count.packets.saturating_sub(before(reason).unwrap_or_default())),
        });
        shown.collect()
    }

    /// Describes the agent.
    pub(super) fn agent(&self, state: &State) -> Agent {
        Agent {
            version: env!("CARGO_PKG_VERSION").into(),
            node: state.config.node_name.clone(),
            started: self.started,
            ready: state.conditions.unready().is_none(),
        }
    }

    /// Describes the kernel.
    pub(super) fn kernel(&self) -> Kernel {
        let Capabilities {
            kernel,
            is_tested: _,
            btf,
            tcx,
            redirect_peer,
            redirect_neigh,
            read_kernel,
            cgroup2,
            netns_cookie,
            conntrack,
        } = &self.capabilities;
        let offers = [
            ("btf", *btf),
            ("tcx", *tcx),
            ("redirect-peer", *redirect_peer),
            ("redirect-neigh", *redirect_neigh),
            ("probe-read-kernel", *read_kernel),
            ("cgroup2", cgroup2.is_ok()),
            ("netns-cookie", netns_cookie.is_ok()),
            ("conntrack", *conntrack),
        ];
        let offers = offers.into_iter().map(|(name, has)| (name.into(), has)).collect();
        Kernel { release: kernel.clone(), offers }
    }
}

/// Describes the modes.
pub(super) fn modes(state: &State) -> Modes {
    let name = |family: Family| family.to_string();
    let is_vxlan = state.model.mode == Mode::Vxlan;
    Modes {
        mode: if is_vxlan { "vxlan" } else { "direct" }.into(),
        families: state.model.pod_families().map(name).collect(),
        tunnel_family: is_vxlan.then(|| name(state.model.tunnel_family)),
        vxlan_port: is_vxlan.then_some(state.config.vxlan_port),
        pod_mtu: state.pod_mtu,
    }
}

/// Lists the links with a role.
pub(super) fn links(model: &Model) -> Vec<NodeLink> {
    let link = |link: &podwire_core::model::NodeLink| NodeLink {
        link: Link { index: link.index, name: Some(link.name.clone()) },
        role: match link.role {
            Role::Uplink => "uplink",
            Role::Side => "side",
            Role::Inner => "inner",
        }
        .into(),
        programs: match () {
            () if model.without_programs.contains(&link.index) => "none",
            () if model.filtered_links.contains_key(&link.index) => "tc-filter",
            () => "tcx",
        }
        .into(),
        addresses: link.addresses.clone(),
        mtu: link.mtu,
    };
    model.links.iter().map(link).collect()
}

/// Lists the podCIDRs.
pub(super) fn pools(state: &State) -> Vec<Pool> {
    let pool = |pool: &podwire_core::ipam::Pool| {
        let used = pool.used();
        Pool { network: pool.network(), used, free: pool.size().saturating_sub(used) }
    };
    state.executor.pools.iter().map(pool).collect()
}

/// Lists the conditions, the most important first.
pub(super) fn conditions(conditions: &Conditions) -> Vec<Condition> {
    let condition = |condition: crate::conditions::Condition<'_>| Condition {
        condition: condition.name.name().into(),
        severity: condition.name.severity().name().into(),
        subject: condition.subject.into(),
        sentence: condition.sentence.into(),
        remedy: condition.name.remedy().into(),
    };
    conditions.iter().map(condition).collect()
}
