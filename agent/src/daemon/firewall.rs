//! What was last said about the host's firewall.

use std::collections::BTreeSet;
use std::io;

use podwire_core::forward_policy::Place;
use podwire_core::model::Mode;
use tracing::{info, warn};

use crate::config::Config;
use crate::firewall;

/// Ticks between two looks while nothing is in the way. While something is, each tick looks: who changes a rule is
/// told soon whether it helped.
const TICKS: u32 = 6;

/// The places of the host's firewall that may drop pods' packets, as they were last reported.
#[derive(Debug)]
pub(super) struct Firewall {
    in_the_way: BTreeSet<Place>,
    /// Why the last look failed, if it did.
    unreadable: Option<String>,
    ticks: u32,
    /// The tunnel's, if there is one.
    vxlan_port: Option<u16>,
}

impl Firewall {
    /// Nothing was looked at yet.
    pub(super) fn new(config: &Config) -> Self {
        let vxlan_port = (config.mode == Mode::Vxlan).then_some(config.vxlan_port);
        Self { in_the_way: BTreeSet::new(), unreadable: None, ticks: 0, vxlan_port }
    }

    /// Reports what changed since the last look.
    pub(super) fn look(&mut self) {
        self.ticks = 0;
        let found = match firewall::look() {
            Ok(found) => found,
            // Others change the rules at this moment: the next look is soon enough.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => {
                let why = error.to_string();
                if self.unreadable.as_ref() != Some(&why) {
                    warn!("whether the host's firewall drops pods' packets cannot be told: {why}");
                }
                self.unreadable = Some(why);
                return;
            }
        };
        self.unreadable = None;
        for place in found.difference(&self.in_the_way) {
            warn!("{}", place.warning(self.vxlan_port));
        }
        for place in self.in_the_way.difference(&found) {
            info!("no longer in the way of pods' packets to services and the world: {}", place.label());
        }
        self.in_the_way = found;
    }

    /// Looks when it is time.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        if !self.in_the_way.is_empty() || self.ticks >= TICKS {
            self.look();
        }
    }

    /// Labels of the places.
    pub(super) fn labels(&self) -> Vec<String> {
        self.in_the_way.iter().map(Place::label).collect()
    }
}
