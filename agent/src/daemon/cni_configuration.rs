//! The runtime's folder of network configurations: ours is put there and kept there, others are left alone and told of.

use std::path::PathBuf;

use tracing::{info, warn};

use crate::cni_configuration::{self, FILE};
use crate::config::Config;
use crate::error::Error;

/// What was last seen and said of the folder.
#[derive(Debug)]
pub(super) struct CniConfiguration {
    folder: PathBuf,
    text: String,
    /// Whether the agent could ever serve: before, pods would get no network by it. What an earlier agent has written stays.
    begun: bool,
    written: bool,
    /// The folder's configurations, by name.
    found: Vec<String>,
    /// Why the last look failed, if it did.
    failed: Option<String>,
}

impl CniConfiguration {
    /// `None`: whoever installs the agent writes the configuration.
    pub(super) fn new(config: &Config) -> Option<Self> {
        let folder = config.places.cni_conf_dir.clone()?;
        Some(Self::of(folder, cni_configuration::text(&config.places.socket())))
    }

    fn of(folder: PathBuf, text: String) -> Self {
        Self { folder, text, begun: false, written: false, found: Vec::new(), failed: None }
    }

    /// The agent can serve.
    pub(super) fn begin(&mut self) {
        if !self.begun {
            self.begun = true;
            self.look();
        }
    }

    /// Puts ours where it belongs, once the agent could serve, and says what has changed since the last look.
    pub(super) fn look(&mut self) {
        self.failed = self.try_look().err().map(|error| error.to_string());
    }

    /// Why no runtime may know of the agent.
    pub(super) fn problem(&self) -> Option<String> {
        self.failed.as_ref().map(|why| format!("the runtime's network configuration (--cni-conf-dir): {why}"))
    }

    /// Whether a runtime that takes the first configuration takes ours.
    pub(super) fn is_first(&self) -> bool {
        self.failed.is_none() && self.found.first().is_some_and(|first| first == FILE)
    }

    fn try_look(&mut self) -> Result<(), Error> {
        if !self.begun {
            return Ok(());
        }
        let path = self.folder.join(FILE);
        if !cni_configuration::is_there(&self.folder, &self.text)? {
            cni_configuration::write(&self.folder, &self.text)?;
            match self.written {
                false => info!(path = %path.display(), "network configuration written"),
                true => {
                    warn!(path = %path.display(), "network configuration written again: somebody has removed or changed it")
                }
            }
        }
        self.written = true;
        let found = cni_configuration::list(&self.folder)?;
        if found != self.found {
            tell(&self.folder.display().to_string(), &found);
            self.found = found;
        }
        Ok(())
    }
}

fn tell(folder: &str, found: &[String]) {
    let ours = found.iter().position(|name| name == FILE).unwrap_or_default();
    let (before, after) = (&found[..ours], found.get(ours + 1..).unwrap_or_default());
    for name in after {
        info!("{folder}/{name} is left alone: the runtime takes {FILE}, which comes before it");
    }
    if let Some(first) = before.first() {
        warn!(
            "{folder}/{first} comes before {FILE}: the runtime takes it, and new pods get that network and not Podwire's; remove it, or rename it so that it comes after, and make its pods anew"
        );
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
        configuration.look();
        assert!(!ours.exists() && !configuration.is_first());
        configuration.begin();
        assert!(ours.exists() && configuration.is_first());
        std::fs::remove_dir_all(folder.path()).unwrap();
        configuration.look();
        assert!(!configuration.is_first(), "it cannot be written, and the runtime has none");
        assert!(configuration.problem().is_some_and(|why| why.contains("--cni-conf-dir")));
        std::fs::create_dir(folder.path()).unwrap();
        configuration.look();
        assert!(ours.exists() && configuration.problem().is_none());
    }
}
