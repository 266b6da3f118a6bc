//! `podwire uninstall`: removes everything that agents and the plugin have made on this node.
//!
//! It looks at what is there, not at what an agent remembers. So it works after an interrupted
//! uninstall, and without the state folder or the pins. It logs what it cannot remove, and removes
//! the rest.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use clap::Args;
use podwire_common::names::VXLAN_DEVICE;
use podwire_core::host::{Device, DeviceKind, Host};
use podwire_core::model::Family;
use tracing::{error, info, warn};

use crate::before::Before;
use crate::claim::Claim;
use crate::cni_configuration;
use crate::config::{Logging, Places};
use crate::dataplane::pins;
use crate::error::Error;
use crate::files::{FileError, absent_is_fine};
use crate::install::{self, PLUGIN};
use crate::link_filters;
use crate::links::Links;
use crate::lock::ClaimError;
use crate::lock::Lock;
use crate::store;
use crate::sysctl::{Forwarding, Switches, has_changed_forwarding};
use crate::unix_socket;

/// The folder where runtimes look for network configurations by default.
const CONFIGURATIONS: &str = "/etc/cni/net.d";

/// Errors that leave a folder in place: it contains something else, it is mounted, or it is
/// read-only.
const LEFT: [io::ErrorKind; 3] =
    [io::ErrorKind::DirectoryNotEmpty, io::ErrorKind::ResourceBusy, io::ErrorKind::ReadOnlyFilesystem];

/// Options of `podwire uninstall`: where the agent had its files.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The same places as the agent's.
    #[command(flatten)]
    pub places: Places,
    /// Folder where `podwire install` has put the plugin, to remove the plugin as well. Default:
    /// the plugin stays.
    #[arg(long, env = "PODWIRE_CNI_BIN_DIR", value_name = "FOLDER")]
    pub cni_bin_dir: Option<PathBuf>,
    /// What the command logs.
    #[command(flatten)]
    pub logging: Logging,
}

/// The number of things that could not be removed.
#[derive(Debug, Default)]
struct Failures(usize);

impl Failures {
    /// Logs and counts the error of an attempt, if there is one.
    fn note<T, E: Display>(&mut self, outcome: Result<T, E>) -> Option<T> {
        outcome.inspect_err(|error| error!("{error}")).inspect_err(|_| self.0 += 1).ok()
    }
}

/// Removes everything. Returns the number of things that could not be removed; the log names each.
///
/// # Errors
/// [`Error::Claim`] if an agent runs, or if the pods are in another network namespace.
/// [`Error::File`] or [`Error::Link`] if the program cannot find out whether this is so, or which
/// devices and routes the node has. In these cases nothing was touched.
pub async fn run(options: &Options) -> Result<usize, Error> {
    let places = &options.places;
    let socket = places.socket();
    let mut failures = Failures::default();
    let lock = match store::hold(&places.state_dir) {
        Err(ClaimError::Locked { path, .. }) => return Err(ClaimError::AgentRuns { path }.into()),
        other => failures.note(other),
    };
    let other_locks = refuse_beside_an_agent(&socket, &places.bpf_dir)?;
    Claim::own(&places.bpf_dir)?.check(&places.state_dir)?;
    let links = Links::new()?;
    let host = links.host().await?;
    let (pods, unreadable) = store::peek(&places.state_dir);

    // First, so that the runtime no longer calls the plugin.
    if let Some(folder) = &places.cni_conf_dir {
        failures.note(cni_configuration::remove(folder));
    }
    let cut = remove_devices(&links, &host, &mut failures).await;
    if let Some(routes @ 1..) = failures.note(links.remove_own_routes().await) {
        info!(routes, "routes removed");
    }
    let uplinks = pins::uplinks(&places.bpf_dir);
    let uplinks = host.devices.values().filter(|device| uplinks.contains(&device.index));
    let uplinks = uplinks.map(|device| device.name.clone()).chain(host.default_devices()).collect();
    let before = failures.note(Before::load(&places.state_dir)).unwrap_or_default();
    let restored = failures
        .note(restore_forwarding(&places.switches(), &before, &host.other_devices(&uplinks)))
        .is_some();
    failures.note(places.switches().restore_conntrack(&before));
    for device in host.devices.values() {
        failures.note(link_filters::remove(&links, device.index, &device.name, &before).await);
    }
    for error in pins::remove_all(&places.bpf_dir) {
        failures.note(Err::<(), _>(error));
    }
    // Remove the plugin late, because until here it answers the runtime's DEL, and no other program
    // does. But remove it before the lock's file: without that file an agent may start, and bring
    // its own plugin and socket.
    if let Some(folder) = &options.cni_bin_dir {
        failures.note(install::remove(folder));
    }
    for socket in [socket, places.operator_socket()] {
        for file in [&socket, &unix_socket::lock_of(&socket)] {
            failures.note(absent_is_fine(fs::remove_file(file)).map_err(FileError::of("remove", file)));
        }
    }
    for error in store::erase(&places.state_dir, restored) {
        failures.note(Err::<(), _>(error));
    }
    drop((lock, other_locks));
    for folder in [&places.bpf_dir, &places.run_dir, &places.state_dir] {
        failures.note(remove_folder(folder));
    }
    name_what_is_left(options);

    for file in &unreadable {
        warn!(path = %file.path.display(), reason = file.reason, "the file cannot be used, so the name of its pod is unknown");
    }
    for device in cut.iter().filter(|device| !pods.iter().any(|pod| pod.host_interface == **device)) {
        warn!(device, "cut off: a pod without a file, so its name is unknown");
    }
    for pod in &pods {
        warn!(%pod, container = pod.attachment.container_id, "cut off");
    }
    info!(pods = pods.len(), "uninstalled");
    Ok(failures.0)
}

/// Locks the socket and the folder of pins, which an agent with another state folder may hold.
fn refuse_beside_an_agent(socket: &Path, bpf_dir: &Path) -> Result<[Option<Lock>; 2], ClaimError> {
    // The locks below also show an agent that runs, but not if its folders were removed.
    if UnixStream::connect(socket).is_ok() {
        return Err(ClaimError::AgentRuns { path: socket.into() });
    }
    let agent_runs = |error| match error {
        ClaimError::Locked { path, .. } => ClaimError::AgentRuns { path },
        other => other,
    };
    Ok([
        unix_socket::hold_if_there(socket).map_err(agent_runs)?,
        pins::hold_if_there(bpf_dir).map_err(agent_runs)?,
    ])
}

/// Removes the pods' links and the tunnel's, with their programs, addresses and routes. Returns the
/// names of the pods' links.
async fn remove_devices(links: &Links, host: &Host, failures: &mut Failures) -> BTreeSet<String> {
    let mut cut = BTreeSet::new();
    for device in host.pod_devices() {
        if failures.note(remove_device(links, device).await).is_some() {
            cut.insert(device.name.clone());
        }
    }
    match host.device(VXLAN_DEVICE) {
        Some(device) if device.kind == DeviceKind::Vxlan => {
            failures.note(remove_device(links, device).await);
        }
        Some(_) => warn!("{VXLAN_DEVICE} stays: it is not a VXLAN device, so no agent made it"),
        None => {}
    }
    cut
}

async fn remove_device(links: &Links, device: &Device) -> Result<(), Error> {
    links.remove_device(device.index, &device.name).await?;
    info!(device = device.name, "removed");
    Ok(())
}

fn restore_forwarding(switches: &Switches, before: &Before, others: &[String]) -> Result<(), Error> {
    if !others.is_empty() && has_changed_forwarding(before) {
        warn!(
            devices = others.join(", "),
            "forwarding (ip_forward) stays on, although the agent switched it on: this node may forward for these devices, too"
        );
        return Ok(());
    }
    for family in Family::ALL {
        match switches.restore_forwarding(family, before)? {
            Forwarding::NotChanged | Forwarding::AsBefore => {}
            Forwarding::ChangedSince => {
                info!("forwarding of {family} stays off: another program switched it off");
            }
        }
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> Result<(), FileError> {
    // In a container the folder is a mount in a read-only root. Only the runtime that made the
    // mount can remove it.
    match fs::remove_dir(folder) {
        Err(error) if LEFT.contains(&error.kind()) => {
            info!(path = %folder.display(), "the folder stays: {error}");
            Ok(())
        }
        other => absent_is_fine(other).map_err(FileError::of("remove", folder)),
    }
}

/// Logs what an operator copied to the node and must remove. Only the operator knows all copies.
fn name_what_is_left(options: &Options) {
    let folder = options.places.cni_conf_dir.as_deref().unwrap_or(Path::new(CONFIGURATIONS));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if fs::read_to_string(&path).is_ok_and(|text| text.contains(PLUGIN)) {
            warn!(path = %path.display(), "this network configuration stays, and the runtime calls the plugin while it is there: remove it");
        }
    }
    let plugin = if options.cni_bin_dir.is_none() { ", the plugin podwire-cni" } else { "" };
    info!(
        "these files stay, because an operator copied them: the program podwire{plugin}, and the node list if there is one"
    );
}
