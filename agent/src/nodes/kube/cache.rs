//! The last good node list on disk, for an agent that starts while the API server does not answer.
//!
//! `--nodes` can read the file. The file's time says when the list was last confirmed.

#![expect(
    clippy::disallowed_methods,
    reason = "a file's time is wall-clock time; after a jump only a reported age is wrong"
)]

use std::fs::File;
use std::io::{BufReader, Seek as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use podwire_core::cluster::{NodeList, NodeRecord};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tracing::{error, warn};

use super::super::file;
use super::super::objects::{Entries, NodeObject};
use crate::before;
use crate::files;
use crate::files::FileError;

#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    /// Whether the file is still the one of an earlier agent, and this agent has not read it.
    pub(super) is_unread: bool,
    /// Whether there is a list that is newer than the file.
    pub(super) is_old: bool,
    confirmed: Option<tokio::time::Instant>,
    saving: Option<JoinHandle<Result<(), FileError>>>,
    /// Why the last attempt failed.
    failure: Option<String>,
    /// The time between two confirmations that the list is still good.
    interval: Duration,
}

impl Cache {
    pub(super) fn new(path: PathBuf, interval: Duration) -> Self {
        Self { path, is_unread: true, is_old: false, confirmed: None, saving: None, failure: None, interval }
    }

    /// Reads the list of an earlier agent. `None` if there is no usable list; the log says why it
    /// cannot be used.
    pub(super) fn load(&mut self) -> Option<NodeList> {
        self.is_unread = false;
        match read(&self.path) {
            Ok(list) => list,
            Err(reason) => {
                warn!(path = %self.path.display(), "the last good node list cannot be used: {reason}");
                None
            }
        }
    }

    pub(super) fn is_saving(&self) -> bool {
        self.saving.is_some()
    }

    /// Begins to write the list if it is newer than the file's list. Otherwise sets the file's time
    /// to now once in each interval: the time says until when the file was good. Both happen on a
    /// separate thread, because a disk can be slow.
    pub(super) fn save<'a>(&mut self, records: impl Iterator<Item = &'a NodeRecord>) {
        let is_due = self.confirmed.is_none_or(|since| since.elapsed() >= self.interval);
        if !self.is_old && !is_due {
            return;
        }
        let path = self.path.clone();
        let text = self.is_old.then(|| encode(records));
        // A list that comes from now on is newer than the one being written.
        self.is_old = false;
        self.saving = Some(tokio::task::spawn_blocking(move || match text {
            Some(text) => files::replace(&path, &text),
            None => File::open(&path)
                .and_then(|file| file.set_modified(SystemTime::now()))
                .map_err(FileError::of("set the time of", &path)),
        }));
    }

    /// Waits until the current write has ended. Without a current write, it never returns.
    pub(super) async fn saved(&mut self) {
        let Some(saving) = &mut self.saving else { return std::future::pending().await };
        let outcome = match saving.await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(panic) => Err(panic.to_string()),
        };
        self.saving = None;
        match outcome {
            Ok(()) => {
                self.is_unread = false;
                self.failure = None;
                self.confirmed = Some(tokio::time::Instant::now());
            }
            Err(failure) => {
                // The next attempt must write the whole list.
                self.is_old = true;
                if self.failure.as_ref() != Some(&failure) {
                    error!("cannot save the node list for a restart without the API server: {failure}");
                    self.failure = Some(failure);
                }
            }
        }
    }
}

fn encode<'a>(records: impl Iterator<Item = &'a NodeRecord>) -> Vec<u8> {
    #[derive(Serialize)]
    struct List {
        kind: &'static str,
        #[serde(rename = "bootID")]
        boot: String,
        items: Vec<NodeObject>,
    }
    let list = List {
        kind: "NodeList",
        boot: before::boot().unwrap_or_default(),
        items: records.map(NodeObject::from).collect(),
    };
    // This cannot fail: JSON has all types of these values, and all keys are text.
    serde_json::to_vec(&list).unwrap_or_default()
}

/// Reads the list, if it is from this boot. After a reboot, kubelet gets the agent's pod from the
/// API server before it starts the agent, so the agent does not need the file. And the node may
/// have another object by then.
pub(super) fn read(path: &Path) -> Result<Option<NodeList>, String> {
    #[derive(Deserialize)]
    struct Boot {
        #[serde(rename = "bootID")]
        boot: Option<String>,
    }

    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let written =
        file.metadata().and_then(|metadata| metadata.modified()).map_err(|error| error.to_string())?;
    // If the clock was set back, a minimal age is better than a wrong one. It is not zero, because
    // zero stands for a current list.
    let age = SystemTime::now().duration_since(written).unwrap_or_default().max(Duration::from_nanos(1));
    let Boot { boot } = serde_json::from_reader(BufReader::new(&file)).map_err(|error| error.to_string())?;
    if boot.is_some_and(|boot| Ok(boot) != before::boot().map_err(|_| ())) {
        return Ok(None);
    }
    (&file).rewind().map_err(|error| error.to_string())?;
    let Entries { records, problems } = file::parse(path, file).map_err(|error| error.to_string())?;
    Ok(Some(NodeList { records, problems, age }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwire_core::cluster::flannel::Lease;
    use serde_json::json;

    fn record(name: &str) -> NodeRecord {
        let annotations = json!({
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": r#"{"VNI":1,"VtepMAC":"6a:00:00:00:00:01"}"#,
        });
        let flannel = Lease::from_annotations(serde_json::from_value(annotations).unwrap());
        assert!(!flannel.as_ref().unwrap().vtep_macs().is_empty());
        NodeRecord {
            name: name.into(),
            uid: Some("0c11".into()),
            created: Some("2026-11-01T10:00:00Z".into()),
            pod_networks: vec!["10.244.2.0/24".parse().unwrap()],
            cordoned: true,
            internal_addresses: vec!["10.200.0.2".parse().unwrap()],
            operating_system: Some("linux".into()),
            network_unavailable: false,
            flannel,
        }
    }

    #[test]
    fn what_is_kept_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.json");
        let records = [record("node2"), NodeRecord { name: "bare".into(), ..NodeRecord::default() }];
        std::fs::write(&path, encode(records.iter())).unwrap();
        let list = Cache::new(path, Duration::ZERO).load().unwrap();
        assert_eq!(list.records, records);
        assert_eq!(list.problems, []);
        assert!(!list.age.is_zero(), "a cached list has an age, and only a current list has none");
    }

    #[test]
    fn what_another_boot_has_left_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.json");
        let text = String::from_utf8(encode([record("node2")].iter())).unwrap();
        let boot = before::boot().unwrap();
        assert!(text.contains(&boot), "{text}");
        std::fs::write(&path, text.replace(&boot, "another")).unwrap();
        assert!(Cache::new(path, Duration::ZERO).load().is_none());
    }

    #[test]
    fn nothing_and_half_a_file_are_no_list() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.json");
        assert!(Cache::new(path.clone(), Duration::ZERO).load().is_none());
        std::fs::write(&path, &encode([record("node2")].iter())[..40]).unwrap();
        assert!(Cache::new(path, Duration::ZERO).load().is_none());
    }
}
