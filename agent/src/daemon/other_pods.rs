//! Which addresses of the podCIDR others have: looked at with the kernel's routes, and host-local's files before each address that is given.

use ipnet::Ipv4Net;
use tracing::error;

use super::Daemon;
use crate::conditions::ConditionName;
use crate::error::Error;
use crate::host::Host;
use crate::host_local;
use crate::ipam::Pool;
use crate::other_pods::{self, Held};

/// What was last found.
#[derive(Debug, Default)]
pub(super) struct OtherPods {
    links: Held,
    neighbours: Held,
    host_local: Held,
}

impl Daemon {
    /// Where devices, routes or neighbours may have changed.
    pub(super) async fn look_for_other_pods(&mut self, host: &Host) {
        let Some(network) = self.pool.as_ref().map(Pool::network) else { return };
        self.other_pods.links = other_pods::held_by_links(host, network);
        match self.neighbours_within(host, network).await {
            Ok(held) => self.other_pods.neighbours = held,
            Err(error) => error!("addresses that others have: {error}"),
        }
        self.look_at_host_local();
    }

    /// The same while there are neighbours, of whose going the kernel does not tell.
    pub(super) async fn look_after_other_pods(&mut self) {
        if self.other_pods.neighbours.is_empty() {
            return self.look_at_host_local();
        }
        match self.links.host().await {
            Ok(host) => self.look_for_other_pods(&host).await,
            Err(error) => error!("addresses that others have: {error}"),
        }
    }

    async fn neighbours_within(&self, host: &Host, network: Ipv4Net) -> Result<Held, Error> {
        if !other_pods::may_have_neighbours(host, network) {
            return Ok(Held::new());
        }
        let neighbours = self.links.neighbours().await?;
        let held = other_pods::held_by_neighbours(host, &neighbours, network);
        for stale in neighbours.iter().filter(|neighbour| neighbour.is_stale) {
            // The kernel keeps the entry of a pod that is gone for as long as nobody sends to it.
            if held.contains_key(&stale.address) {
                self.links.ask_neighbour(stale).await?;
            }
        }
        Ok(held)
    }

    /// As little as a folder that is not there, on most nodes.
    pub(super) fn look_at_host_local(&mut self) {
        let Some(pool) = &mut self.pool else { return };
        let found = &mut self.other_pods;
        let unreadable = match host_local::held(&self.config.cni_state_dir, pool.network()) {
            Ok(held) => {
                found.host_local = held;
                None
            }
            // What it held stays held.
            Err(error) => {
                Some(format!("which addresses host-local has given is not known (--cni-state-dir): {error}"))
            }
        };
        self.conditions.update(ConditionName::HostLocalUnreadable, unreadable);
        // Of several that tell of one address the surest comes last.
        let mut held = found.neighbours.clone();
        held.extend(found.links.clone());
        held.extend(found.host_local.clone());
        held.retain(|address, _| pool.can_give(*address));
        let others = (!held.is_empty()).then(|| {
            let (count, holders) = (held.len(), other_pods::summary(&held));
            format!("{count} addresses of the podCIDR are not given to pods, as others have them ({holders})")
        });
        self.conditions.update(ConditionName::AddressesOfOthers, others);
        pool.set_held(held);
    }
}
