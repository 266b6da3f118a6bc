//! Looks at the host's firewall from time to time.

use std::io;

use podwire_core::forward_policy::Place;
use podwire_core::model::Mode;

use crate::conditions::{ConditionName, Conditions};
use crate::config::Config;
use crate::firewall;

/// Ticks between two looks while nothing is in the way. While something is, each tick looks: who changes a rule is
/// told soon whether it helped.
const TICKS: u32 = 6;

/// When to look, and for what.
#[derive(Debug)]
pub(super) struct Firewall {
    ticks: u32,
    /// The tunnel's, if there is one.
    vxlan_port: Option<u16>,
}

impl Firewall {
    /// Nothing was looked at yet.
    pub(super) fn new(config: &Config) -> Self {
        let vxlan_port = (config.mode == Mode::Vxlan).then_some(config.vxlan_port);
        Self { ticks: 0, vxlan_port }
    }

    /// Says which places may drop pods' packets.
    pub(super) fn look(&mut self, conditions: &mut Conditions) {
        self.ticks = 0;
        let found = match firewall::look() {
            Ok(found) => found,
            // Others change the rules at this moment: the next look is soon enough.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => {
                let why = format!("whether the host's firewall drops pods' packets cannot be told: {error}");
                return conditions.set(ConditionName::FirewallUnreadable, why);
            }
        };
        conditions.clear(ConditionName::FirewallUnreadable);
        let said = |place: &Place| (place.label(), place.warning(self.vxlan_port));
        conditions.replace(ConditionName::FirewallDrops, found.iter().map(said));
    }

    /// Looks when it is time.
    pub(super) fn tick(&mut self, conditions: &mut Conditions) {
        self.ticks += 1;
        if conditions.holds(ConditionName::FirewallDrops) || self.ticks >= TICKS {
            self.look(conditions);
        }
    }
}
