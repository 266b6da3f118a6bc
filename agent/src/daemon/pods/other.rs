//! Finds the addresses of the podCIDR that others hold. The agent looks at links and neighbours
//! when it looks at the kernel's routes, and at host-local's files before it gives an address.

use ipnet::IpNet;
use podwire_core::host::Host;
use podwire_core::other_pods::{self, Held};
use tracing::error;

use crate::conditions::ConditionName;
use crate::daemon::state::State;
use crate::error::Error;
use crate::host_local;

/// What the last look found.
#[derive(Debug, Default)]
pub(in crate::daemon) struct OtherPods {
    links: Held,
    neighbours: Held,
    host_local: Held,
}

impl OtherPods {
    /// Looks again after devices, routes or neighbours may have changed.
    pub(in crate::daemon) async fn look(&mut self, state: &mut State, host: &Host) {
        let networks: Vec<_> = state.executor.pools.networks().collect();
        self.links = networks.iter().flat_map(|network| other_pods::held_by_links(host, *network)).collect();
        match neighbours_within(state, host, &networks).await {
            Ok(held) => self.neighbours = held,
            Err(error) => error!("could not find the podCIDR's addresses that other tools use: {error}"),
        }
        self.look_at_host_local(state);
    }

    /// Looks again as long as there are neighbours, because the kernel does not report when one
    /// leaves. Otherwise looks at host-local's files only.
    pub(in crate::daemon) async fn tick(&mut self, state: &mut State) {
        if self.neighbours.is_empty() {
            return self.look_at_host_local(state);
        }
        match state.executor.links.host().await {
            Ok(host) => self.look(state, &host).await,
            Err(error) => error!("could not find the podCIDR's addresses that other tools use: {error}"),
        }
    }

    /// Looks at host-local's files. On most nodes this only finds that there is no such folder.
    pub(super) fn look_at_host_local(&mut self, state: &mut State) {
        let networks: Vec<_> = state.executor.pools.networks().collect();
        let found = self;
        let unreadable = match host_local::held(&state.config.cni_state_dir, &networks) {
            Ok(held) => {
                found.host_local = held;
                None
            }
            // Keep the addresses of the last successful look.
            Err(error) => {
                Some(format!("the agent cannot read host-local's addresses (--cni-state-dir): {error}"))
            }
        };
        state.conditions.update(ConditionName::HostLocalUnreadable, unreadable);
        // If several sources name one address, the surest comes last and wins.
        let mut held = found.neighbours.clone();
        held.extend(found.links.clone());
        held.extend(found.host_local.clone());
        let held = state.executor.pools.set_held(held);
        let others = (!held.is_empty()).then(|| {
            let (count, holders) = (held.len(), other_pods::summary(&held));
            format!("{count} addresses of the podCIDR are not given to pods, as others have them ({holders})")
        });
        state.conditions.update(ConditionName::AddressesOfOthers, others);
    }
}

async fn neighbours_within(state: &State, host: &Host, networks: &[IpNet]) -> Result<Held, Error> {
    let may_have = |network: &&IpNet| other_pods::may_have_neighbours(host, **network);
    let networks: Vec<_> = networks.iter().filter(may_have).collect();
    if networks.is_empty() {
        return Ok(Held::new());
    }
    let neighbours = state.executor.links.neighbours().await?;
    let held: Held = networks
        .into_iter()
        .flat_map(|network| other_pods::held_by_neighbours(host, &neighbours, *network))
        .collect();
    for stale in neighbours.iter().filter(|neighbour| neighbour.is_stale) {
        // The kernel keeps the entry of a pod that is gone until a packet is sent to it. So make
        // the kernel check the neighbour.
        if held.contains_key(&stale.address) {
            state.executor.links.ask_neighbour(stale).await?;
        }
    }
    Ok(held)
}
