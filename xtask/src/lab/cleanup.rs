//! Removal of everything that a lab leaves outside its process. The lab's name identifies it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::process;

/// The prefix of a lab's name, if the lab belongs to a process. The process id follows.
pub(crate) const PREFIX: &str = "pwlab";
const NAMESPACES: &str = "/run/netns";
/// Exit status of a process that ended on Ctrl-C: 128 plus the signal's number.
const INTERRUPTED: i32 = 130;

/// Names of this process's labs that still exist.
static REGISTERED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A lab's claim to its name. When it is dropped, and on Ctrl-C, everything with this name is
/// removed.
#[derive(Debug)]
pub(crate) struct Registration {
    name: String,
}

impl Registration {
    /// Claims a name. Also removes the labs of killed processes.
    pub(crate) fn new(name: String) -> Result<Self> {
        prepare_process()?;
        ensure!(
            namespaces(&name)?.is_empty() && registered().insert(name.clone()),
            "a lab named {name} is there already; `cargo xtask demo --remove` removes a kept demonstration"
        );
        Ok(Self { name })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Gives up the claim without removing anything.
    pub(crate) fn keep(&self) {
        registered().remove(&self.name);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if registered().remove(&self.name)
            && let Err(error) = remove(&self.name)
        {
            eprintln!("remove the lab {}: {error:#}", self.name);
        }
    }
}

/// Removes a lab by name: its processes, namespaces (with all devices in them), pins and folder.
/// Returns whether anything was removed.
///
/// # Errors
/// The first removal that failed, after all have been tried.
pub fn remove(name: &str) -> Result<bool> {
    let namespaces = namespaces(name)?;
    let found = !namespaces.is_empty() || folder(name).exists() || bpf_folder(name).exists();
    let mut outcomes: Vec<Result<()>> =
        namespaces.iter().map(|namespace| remove_namespace(namespace)).collect();
    outcomes.push(unmount_below(&folder(name)));
    outcomes.push(remove_folder(&bpf_folder(name)));
    outcomes.push(remove_folder(&folder(name)));
    outcomes.into_iter().collect::<Result<()>>()?;
    Ok(found)
}

/// Removes a namespace, and kills the processes in it: they were started there.
pub(crate) fn remove_namespace(namespace: &str) -> Result<()> {
    kill_inside(namespace)?;
    process::ip_batch(&format!("netns del {namespace}\n"))
}

/// Returns the folder for state, sockets and logs. It is in memory, and only root can write to
/// `/run`.
pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new("/run").join(name)
}

/// Returns the folder for pins.
pub(crate) fn bpf_folder(name: &str) -> PathBuf {
    Path::new("/sys/fs/bpf").join(name)
}

/// Handles Ctrl-C and removes orphaned labs, once in each process.
fn prepare_process() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut outcome = Ok(());
    ONCE.call_once(|| {
        outcome = ctrlc::set_handler(|| {
            let names: Vec<String> = registered().iter().cloned().collect();
            for name in names {
                eprintln!("interrupted: removing the lab {name}");
                if let Err(error) = remove(&name) {
                    eprintln!("remove the lab {name}: {error:#}");
                }
            }
            #[expect(clippy::disallowed_methods, reason = "every lab has just been removed")]
            std::process::exit(INTERRUPTED);
        })
        .context("handle Ctrl-C");
        if let Err(error) = remove_orphans() {
            eprintln!("remove what an earlier lab left: {error:#}");
        }
    });
    outcome
}

fn registered() -> MutexGuard<'static, BTreeSet<String>> {
    REGISTERED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn namespaces(name: &str) -> Result<Vec<String>> {
    let prefix = format!("{name}-");
    Ok(all_namespaces()?.into_iter().filter(|namespace| namespace.starts_with(&prefix)).collect())
}

fn all_namespaces() -> Result<Vec<String>> {
    match std::fs::read_dir(NAMESPACES) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        // The folder does not exist before the first `ip netns add`.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("list {NAMESPACES}")),
    }
}

fn kill_inside(namespace: &str) -> Result<()> {
    let output = process::output(
        Command::new("ip").args(["netns", "pids", namespace]),
        None,
        Duration::from_secs(60),
    )?;
    for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
        let pid = Pid::from_raw(pid.parse().with_context(|| format!("{pid:?} is no process id"))?);
        if let Some(pid) = pid.filter(|pid| *pid != rustix::process::getpid()) {
            // The process may have ended in the meantime.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Unmounts everything that a test has mounted below a folder.
fn unmount_below(folder: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    // Unmount in reverse order: a mount may lie on top of an earlier one.
    for place in places.filter(|place| place.starts_with(folder)).collect::<Vec<_>>().into_iter().rev() {
        rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH)
            .with_context(|| format!("unmount {}", place.display()))?;
    }
    Ok(())
}

/// Removes labs of processes that no longer exist. They were killed before they could remove their
/// labs.
fn remove_orphans() -> Result<()> {
    let names: BTreeSet<String> = all_namespaces()?
        .iter()
        .filter_map(|namespace| namespace.split_once('-'))
        .filter(|(name, _)| owner(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()))
        .map(|(name, _)| name.to_owned())
        .collect();
    names.iter().try_for_each(|name| remove(name).map(|_| ()))
}

/// Returns the process id in a lab's name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('x')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_says_in_its_name_which_process_it_belongs_to() {
        assert_eq!(owner("pwlab4711x0"), Some(4711));
        assert_eq!(owner("podwire-demo"), None);
        assert_eq!(owner("pwlabx0"), None);
    }
}
