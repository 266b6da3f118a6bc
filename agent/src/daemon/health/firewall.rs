//! Looks at the host's firewall from time to time.

use std::io;

use podwire_core::forward_policy::Place;
use podwire_core::model::Mode;

use crate::conditions::{ConditionName, Conditions};
use crate::config::Config;
use crate::firewall;

/// Ticks between two looks while the firewall drops nothing. Otherwise each tick looks, so that an
/// operator who changes a rule soon sees whether it helped.
const TICKS: u32 = 6;

/// When to look at the firewall, and the port that the warnings name.
#[derive(Debug)]
pub(super) struct Firewall {
    ticks: u32,
    /// The tunnel's port, if there is a tunnel.
    vxlan_port: Option<u16>,
}

impl Firewall {
    /// Creates the state before the first look.
    pub(super) fn new(config: &Config) -> Self {
        let vxlan_port = (config.mode == Mode::Vxlan).then_some(config.vxlan_port);
        Self { ticks: 0, vxlan_port }
    }

    /// Reports the places that may drop pods' packets.
    pub(super) fn look(&mut self, conditions: &mut Conditions) {
        self.ticks = 0;
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
        // Pods have only IPv4 addresses so far.
        let in_the_way = found.iter().filter(|place| place.sees_ipv4());
        conditions.replace(ConditionName::FirewallDrops, in_the_way.map(said));
    }

    /// Looks at the firewall if a look is due.
    pub(super) fn tick(&mut self, conditions: &mut Conditions) {
        self.ticks += 1;
        if conditions.holds(ConditionName::FirewallDrops) || self.ticks >= TICKS {
            self.look(conditions);
        }
    }
}
