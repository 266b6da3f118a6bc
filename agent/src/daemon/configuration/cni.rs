//! The runtime's folder of network configurations. The agent puts its own there and keeps it there.
//! It leaves others alone and reports them.

use std::path::PathBuf;

use tracing::{info, warn};

use crate::cni_configuration::{self, FILE};
use crate::conditions::{ConditionName, Conditions};
use crate::config::Config;
use crate::files::FileError;

/// What the agent last saw in the folder, and has logged.
#[derive(Debug)]
pub(in crate::daemon) struct CniConfiguration {
    folder: PathBuf,
    text: String,
    /// Whether the agent has been able to serve at least once. Before that it writes no
    /// configuration, because the runtime would use it and pods would get no network. A
    /// configuration from an earlier agent stays.
    begun: bool,
    written: bool,
    /// The folder's configurations, by name.
    found: Vec<String>,
}

impl CniConfiguration {
    /// Returns `None` without `--cni-conf-dir`: then the installer writes the configuration.
    pub(in crate::daemon) fn new(config: &Config) -> Option<Self> {
        let folder = config.places.cni_conf_dir.clone()?;
        Some(Self::of(folder, cni_configuration::text(&config.places.socket())))
    }

    fn of(folder: PathBuf, text: String) -> Self {
        Self { folder, text, begun: false, written: false, found: Vec::new() }
    }

    /// Notes that the agent can serve. The first call writes the configuration.
    pub(in crate::daemon) fn begin(&mut self, conditions: &mut Conditions) {
        if !self.begun {
            self.begun = true;
            self.look(conditions);
        }
    }

    /// Writes the agent's configuration if it is missing or changed. Does nothing before
    /// [`Self::begin`]. Returns whether another tool had removed or changed the configuration.
    pub(in crate::daemon) fn look(&mut self, conditions: &mut Conditions) -> bool {
        let (written_again, failed) = match self.try_look() {
            Ok(written_again) => (written_again, None),
            Err(error) => (false, Some(error)),
        };
        if failed.is_some() {
            // Without a list, do not assume that the agent's configuration is the first.
            self.found.clear();
        }
        let problem =
            failed.map(|why| format!("the agent cannot keep its CNI configuration in --cni-conf-dir: {why}"));
        conditions.update(ConditionName::CniConfiguration, problem);
        let other = self.found.first().filter(|first| *first != FILE).map(|first| {
            format!(
                "{}/{first} comes before {FILE}: the runtime takes it, so new pods get that network instead of Podwire's",
                self.folder.display()
            )
        });
        conditions.update(ConditionName::OtherConfigurationFirst, other);
        written_again
    }

    /// Returns whether the agent's configuration is the first in the folder. The runtime takes the
    /// first one.
    pub(in crate::daemon) fn is_first(&self) -> bool {
        self.found.first().is_some_and(|first| first == FILE)
    }

    fn try_look(&mut self) -> Result<bool, FileError> {
        if !self.begun {
            return Ok(false);
        }
        let path = self.folder.join(FILE);
        let is_missing = !cni_configuration::is_there(&self.folder, &self.text)?;
        let written_again = is_missing && self.written;
        if is_missing {
            cni_configuration::write(&self.folder, &self.text)?;
            match self.written {
                false => info!(path = %path.display(), "network configuration written"),
                true => {
                    warn!(path = %path.display(), "network configuration written again: another tool removed or changed it")
                }
            }
        }
        self.written = true;
        let found = cni_configuration::list(&self.folder)?;
        if found != self.found {
            tell(&self.folder.display().to_string(), &found);
            self.found = found;
        }
        Ok(written_again)
    }
}

fn tell(folder: &str, found: &[String]) {
    let ours = found.iter().position(|name| name == FILE).unwrap_or_default();
    let (before, after) = (&found[..ours], found.get(ours + 1..).unwrap_or_default());
    for name in after {
        info!("{folder}/{name} is left alone: the runtime takes {FILE}, which comes before it");
    }
    for name in before.iter().skip(1) {
        info!("{folder}/{name} is left alone: the runtime takes {}, which comes before it", before[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_before_the_agent_serves() {
        let folder = tempfile::tempdir().unwrap();
        let ours = folder.path().join(FILE);
        let mut configuration = CniConfiguration::of(folder.path().into(), "{}".into());
        let mut conditions = Conditions::default();
        configuration.look(&mut conditions);
        assert!(!ours.exists() && !configuration.is_first());
        configuration.begin(&mut conditions);
        assert!(ours.exists() && configuration.is_first());
        std::fs::remove_dir_all(folder.path()).unwrap();
        configuration.look(&mut conditions);
        assert!(!configuration.is_first(), "it cannot be written, and the runtime has none");
        assert!(conditions.unready().is_some_and(|why| why.sentence.contains("--cni-conf-dir")));
        std::fs::create_dir(folder.path()).unwrap();
        configuration.look(&mut conditions);
        assert!(ours.exists() && conditions.unready().is_none());
        std::fs::write(folder.path().join("05-other.conf"), "{}").unwrap();
        configuration.look(&mut conditions);
        assert!(conditions.holds(ConditionName::OtherConfigurationFirst) && !configuration.is_first());
    }
}
