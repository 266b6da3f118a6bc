//! Configuration files: the runtime's folder of network configurations, the file of `--config` and
//! the file of `--non-masquerade-file`.

mod cni;

use std::collections::BTreeSet;

use ipnet::IpNet;
use tracing::info;

use super::state::State;
use crate::conditions::{ConditionName, Conditions};
use crate::config::Config;
use crate::events::{Repair, Unheeded};
use cni::CniConfiguration;

/// What the agent last saw of the runtime's folder.
pub(super) struct Configuration {
    cni: Option<CniConfiguration>,
}

impl Configuration {
    /// Creates the state before the first look.
    pub(super) fn new(config: &Config) -> Self {
        Self { cni: CniConfiguration::new(config) }
    }

    /// Announces the agent to runtimes, because it can serve.
    pub(super) fn announce(&mut self, conditions: &mut Conditions) {
        if let Some(cni) = &mut self.cni {
            cni.begin(conditions);
        }
    }

    /// Puts the agent's network configuration where it belongs.
    pub(super) fn tick(&mut self, state: &mut State) {
        if let Some(cni) = &mut self.cni {
            let written_again = cni.look(&mut state.conditions);
            state.count_repairs(Repair::CniConfiguration, written_again.into());
        }
    }

    /// Returns whether the runtime takes the agent's network configuration. `None`: the agent
    /// writes none.
    pub(super) fn is_cni_first(&self) -> Option<bool> {
        self.cni.as_ref().map(CniConfiguration::is_first)
    }
}

/// Takes the networks of `--non-masquerade-file`. Returns whether the model has changed.
pub(super) fn take_non_masquerade(state: &mut State, networks: Result<BTreeSet<IpNet>, String>) -> bool {
    match networks {
        Ok(networks) => {
            info!(networks = networks.len(), "the agent read the list of networks that are not masqueraded");
            state.conditions.clear(ConditionName::NonMasqueradeFile);
            state.model.non_masquerade = state.config.non_masquerade(networks);
            true
        }
        Err(reason) => {
            state.conditions.set(ConditionName::NonMasqueradeFile, reason);
            false
        }
    }
}

/// Reports options in the file of `--config` that the agent does not run with. The agent parses
/// options once, so a changed file takes effect at the next start.
pub(super) fn take_config_file(conditions: &mut Conditions, compared: Result<Unheeded, String>) {
    let unusable = compared.as_ref().err();
    conditions.update(
        ConditionName::ConfigFileUnusable,
        unusable
            .map(|reason| format!("{reason}; the agent continues, but cannot start again with this file")),
    );
    let Ok(Unheeded { changed, overridden }) = compared else { return };
    let sentence =
        |options: &[String], what| (!options.is_empty()).then(|| format!("{what}: {}", options.join(", ")));
    conditions.update(
        ConditionName::ConfigFileOverridden,
        sentence(&overridden, "these options of --config have no effect, because the command line or the environment, which take precedence, set them differently"),
    );
    conditions.update(
        ConditionName::ConfigFileDiffers,
        sentence(&changed, "these options of --config differ from what the agent runs with, and take effect at its next start"),
    );
    if changed.is_empty() {
        info!("the agent runs with all options of --config, except those that are overridden");
    }
}
