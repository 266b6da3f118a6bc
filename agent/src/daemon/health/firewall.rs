//! Looks at the host's firewall from time to time.

use std::io;

use podwire_core::forward_policy::Place;
use podwire_core::model::{Family, Mode};

use crate::conditions::ConditionName;
use crate::config::Config;
use crate::daemon::state::State;
use crate::firewall;

/// Ticks between two looks while the firewall drops nothing. Otherwise each tick looks, so that an
/// operator who changes a rule soon sees whether it helped.
const TICKS: u32 = 6;

/// When to look at the firewall, and the port that the warnings name.
#[derive(Debug)]
pub(super) struct Firewall {
    ticks: u32,
    /// The families of the pods at the last look: IPv4, IPv6.
    families: [bool; 2],
    /// The tunnel's port, if there is a tunnel.
    vxlan_port: Option<u16>,
}

impl Firewall {
    /// Creates the state before the first look.
    pub(super) fn new(config: &Config) -> Self {
        let vxlan_port = (config.mode == Mode::Vxlan).then_some(config.vxlan_port);
        Self { ticks: 0, families: [false; 2], vxlan_port }
    }

    /// Reports the places that may drop pods' packets.
    pub(super) fn look(&mut self, state: &mut State) {
        self.ticks = 0;
        let State { model, conditions, .. } = state;
        let found = match firewall::look() {
            Ok(found) => found,
            // Another tool is changing the rules at this moment: the next look is soon enough.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => {
                let why =
                    format!("the agent cannot tell whether the host's firewall drops pods' packets: {error}");
                return conditions.set(ConditionName::FirewallUnreadable, why);
            }
        };
        conditions.clear(ConditionName::FirewallUnreadable);
        let said = |place: &Place| (place.label(), place.warning(self.vxlan_port));
        self.families = Family::ALL.map(|family| model.has_pods_of(family));
        let [ipv4, ipv6] = self.families;
        let sees_pods = |place: &&Place| ipv4 && place.sees_ipv4() || ipv6 && place.sees_ipv6();
        let matters = |place: &&Place| self.vxlan_port.is_some() || !place.sees_tunnel_only();
        let in_the_way = found.iter().filter(sees_pods).filter(matters);
        conditions.replace(ConditionName::FirewallDrops, in_the_way.map(said));
    }

    /// Looks at the firewall if a look is due.
    pub(super) fn tick(&mut self, state: &mut State) {
        self.ticks += 1;
        let families = Family::ALL.map(|family| state.model.has_pods_of(family));
        if state.conditions.holds(ConditionName::FirewallDrops)
            || self.ticks >= TICKS
            || families != self.families
        {
            self.look(state);
        }
    }
}
