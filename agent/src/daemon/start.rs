//! From nothing, or from what an earlier agent left, to an agent that can take events.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use podwire_common::abi::{self, ENDPOINT_EGRESS_LIMITED, ENDPOINT_INGRESS_LIMITED};
use podwire_common::names::VXLAN_DEVICE;
use podwire_core::features::{Scope, desired};
use podwire_core::host::{Device, DeviceKind, Host, is_pods_device};
use podwire_core::model::{Endpoint, Mode, Model, format_mac};
use podwire_core::plan::{Op, Removals, plan};
use podwire_core::recovery::recovered;
use podwire_core::slice::Slice;
use podwire_core::strays::Strays;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::Daemon;
use super::cni_configuration::CniConfiguration;
use super::executor::Executor;
use super::firewall::Firewall;
use super::nodes::NodeListState;
use super::other_pods::OtherPods;
use super::state_folder::StateFolder;
use crate::before::Before;
use crate::claim::Claim;
use crate::conditions::{ConditionName, Conditions};
use crate::config::Config;
use crate::dataplane::conversions::CONVERSIONS;
use crate::dataplane::flows::Collected;
use crate::dataplane::probe::Capabilities;
use crate::dataplane::{Dataplane, load, pins};
use crate::error::Error;
use crate::events::Readiness;
use crate::links::{Changes, Links};
use crate::lock::Lock;
use crate::store::{Corrupt, Store};
use crate::sysctl::Switch;

/// What a node lacks without the programs of its own processes.
const NO_HOST_PROCESSES: &str =
    "this node's own processes do not reach pods' hostPorts by the node's addresses, 127.0.0.1 included";

impl Daemon {
    /// Loads the programs, puts them in place of an earlier agent's, and takes over its endpoints. Nothing is deleted
    /// but what belonged to pods whose device is gone.
    ///
    /// # Errors
    /// Whatever keeps the data path from being there.
    pub async fn start(
        config: Config,
        capabilities: &Capabilities,
        store: Store,
        bpf_lock: Lock,
    ) -> Result<Self, Error> {
        // First what may refuse: another release's maps or state. The latter last: what it finds spoilt it sets aside.
        pins::check(&config.places.bpf_dir, CONVERSIONS)?;
        let (endpoints, corrupt) = store.load()?;
        Claim::own(&config.places.bpf_dir)?.save(&config.places.state_dir)?;
        // Before anything is listed: what changes meanwhile is told.
        let changes = Changes::listen()?;
        let links = Links::new()?;
        config.places.switches().enable_forwarding(&config.places.state_dir)?;
        let mut model = Model::new(config.mode, config.mtu);
        model.vxlan = tunnel_device(&config, &links).await?;
        model.non_masquerade = config.non_masquerade(BTreeSet::new());
        let dataplane = load(&config, model.vxlan)?;
        dataplane.maps.print_sizes(&config.map_sizes())?;
        let why = format!("{} has not been read yet", config.node_source());
        let host = Arc::new(links.host().await?);
        let mut daemon = Self {
            uplink_attachment: capabilities.uplink_attachment(),
            cgroup: capabilities.host_processes().ok().map(Path::to_owned),
            executor: Executor::new(links, dataplane, store, &config),
            state_folder: StateFolder::default(),
            before: Before::load(&config.places.state_dir)?,
            bpf_lock,
            host,
            collected: Collected::default(),
            changes,
            settled: None,
            model,
            attached: BTreeMap::new(),
            skipped: BTreeMap::new(),
            complete: false,
            list: NodeListState::default(),
            pod_mtu: None,
            paths_asked: None,
            paths_doubtful: true,
            strays: Strays::default(),
            reattached: 0,
            switches_set_again: 0,
            conditions: Conditions::at_start(why.clone()),
            firewall: Firewall::new(&config),
            other_pods: OtherPods::default(),
            cni_configuration: CniConfiguration::new(&config),
            missed: BTreeMap::new(),
            adding: BTreeMap::new(),
            is_set_up: false,
            readiness: watch::Sender::new(Readiness::Waiting(why)),
            config,
        };
        if let Err(why) = capabilities.host_processes() {
            daemon.conditions.set(ConditionName::HostProcesses, format!("{NO_HOST_PROCESSES}: {why}"));
        }
        daemon.restore_endpoints(endpoints, &corrupt).await?;
        let host = Arc::clone(&daemon.host);
        if daemon.put_names_back(&host).await {
            daemon.host = Arc::new(daemon.executor.links.host().await?);
        }
        daemon.replace_programs().await?;
        daemon.firewall.look(&mut daemon.conditions);
        Ok(daemon)
    }

    /// Makes the tunnel's device and everything that refers to it anew, when somebody removed it.
    pub(super) async fn rebuild_tunnel(&mut self) -> Result<(), Error> {
        warn!("device {VXLAN_DEVICE} was removed or replaced: it is made anew");
        let vxlan = tunnel_device(&self.config, &self.executor.links).await?;
        // The programs know the device by its number, which is written into them at load.
        self.executor.dataplane = load(&self.config, vxlan)?;
        // What fails after this is attached by the next round; had this been known before, no round would load them.
        self.model.vxlan = vxlan;
        self.replace_programs().await?;
        self.attached.clear();
        self.host = Arc::new(self.executor.links.host().await?);
        Ok(())
    }

    /// Those of everything that is known: what an earlier agent's did from here on is done by these.
    async fn replace_programs(&mut self) -> Result<(), Error> {
        self.executor.dataplane.take_over_uplinks()?;
        if self.model.vxlan.is_some() {
            self.executor.dataplane.attach_overlay(VXLAN_DEVICE)?;
        }
        self.attach_host_processes();
        let pods = self.model.endpoints.values().filter(|pod| !self.missed.contains_key(&pod.attachment));
        let pods: Vec<Endpoint> = pods.cloned().collect();
        for pod in pods {
            let host = Arc::clone(&self.host);
            let device = host.name_of(pod.ifindex, &pod.host_interface);
            if let Err(error) = self.executor.dataplane.attach_pod(device) {
                // A plugin has deleted its pod meanwhile, as it does without an agent: no other pod is to pay for that.
                if self.executor.is_gone(pod.ifindex, device).await? {
                    self.model.without_device.insert(pod.attachment.clone());
                    self.missed.insert(pod.attachment, Instant::now());
                } else {
                    // It keeps the programs that it has; the next look at the kernel tries again.
                    error!(%pod, "{error}");
                }
            }
        }
        Ok(())
    }

    /// Pods do without: what fails here is told and no more.
    pub(super) fn attach_host_processes(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            let failed = self.executor.dataplane.attach_host_processes(cgroup).err();
            let failed = failed.map(|error| format!("{NO_HOST_PROCESSES}: {error}"));
            self.conditions.update(ConditionName::HostProcesses, failed);
        }
    }

    async fn restore_endpoints(
        &mut self,
        endpoints: Vec<Endpoint>,
        corrupt: &[Corrupt],
    ) -> Result<(), Error> {
        for file in corrupt {
            warn!(path = %file.path.display(), reason = file.reason, "left alone: no endpoint's file, or one that does not decode");
        }
        let (mut there, mut gone) = (Vec::new(), Vec::new());
        for mut endpoint in endpoints {
            let entry = self.executor.dataplane.maps.endpoint(endpoint.address)?;
            match device_of(&endpoint, entry, &self.host) {
                Some(ifindex) => {
                    endpoint.ifindex = ifindex;
                    there.push(endpoint);
                }
                None => gone.push(endpoint),
            }
        }
        for endpoint in gone {
            // Two files with one address: a folder that was put back from a copy, for example. What the maps and routes have is the other's.
            match there.iter().find(|other| other.address == endpoint.address) {
                Some(other) => {
                    warn!(pod = %endpoint, "its file is removed: its device is gone, and its address is that of {other}");
                    self.executor.store.remove(&endpoint)?;
                }
                None => {
                    self.release(&endpoint).await?;
                    info!(pod = %endpoint, "released: its device is gone");
                }
            }
        }
        info!(restored = there.len(), "endpoints restored");
        let there = there.into_iter().map(|endpoint| (endpoint.attachment.clone(), endpoint));
        self.model.endpoints.extend(there);
        self.recover_endpoints()?;
        self.restore_tables()
    }

    /// The tables as the endpoints want them. Programs may use them already; nothing goes.
    fn restore_tables(&mut self) -> Result<(), Error> {
        let maps = &mut self.executor.dataplane.maps;
        let tables = |tables| Slice { tables, ..Slice::default() };
        let want = tables(desired(&self.model, Scope::All).tables);
        for op in plan(&want, &tables(maps.contents()?), Removals::Withheld) {
            if let Op::Table(change) = op {
                maps.apply(&change)?;
            }
        }
        Ok(())
    }

    /// Takes over what the maps and devices tell of and no file does.
    fn recover_endpoints(&mut self) -> Result<(), Error> {
        let known = self.model.endpoints.values().map(|endpoint| endpoint.address).collect();
        let contents = self.executor.dataplane.maps.contents()?;
        for endpoint in recovered(&contents, &self.host, &known) {
            warn!(pod = %endpoint, "no file tells of this pod, but its link is there: it keeps its network and its address");
            let limits = ENDPOINT_INGRESS_LIMITED | ENDPOINT_EGRESS_LIMITED;
            if contents.endpoints[&endpoint.address.into()].flags & limits != 0 {
                warn!(pod = %endpoint, "how fast it may be is not known any more: make the pod anew to limit it");
            }
            if let Err(error) = self.executor.store.save(&endpoint) {
                error!(pod = %endpoint, "only the maps tell of it, and a reboot ends them: {error}");
            }
            self.model.endpoints.insert(endpoint.attachment.clone(), endpoint);
        }
        Ok(())
    }
}

fn load(config: &Config, vxlan: Option<u32>) -> Result<Dataplane, Error> {
    let (constants, sizes, pins) =
        (config.for_programs(vxlan), config.map_sizes(), Some(config.places.bpf_dir.as_path()));
    match &config.bpf_object {
        Some(file) => load::load_file(file, &constants, &sizes, pins),
        None => load::load(&constants, &sizes, pins),
    }
}

/// The VXLAN device's ifindex; in direct mode none, and one that an earlier mode left is removed.
async fn tunnel_device(config: &Config, links: &Links) -> Result<Option<u32>, Error> {
    if config.mode == Mode::Direct {
        if let Some(device) = links.device(VXLAN_DEVICE).await? {
            info!("device {VXLAN_DEVICE} is removed: direct routing has no tunnel");
            links.remove_device(device.index, VXLAN_DEVICE).await?;
        }
        return Ok(None);
    }
    let (device, replaced) = links.ensure_vxlan(config.vxlan_port).await?;
    if replaced {
        warn!("device {VXLAN_DEVICE} was not as configured: it is made anew");
    }
    for switch in Switch::of_tunnel(VXLAN_DEVICE) {
        config.places.switches().put_right(&switch)?;
    }
    Ok(Some(device.index))
}

/// The host side's ifindex, if it is still the device that the pod was given: by its link address, or by its number. A device
/// that somebody has renamed is known by its link address.
fn device_of(endpoint: &Endpoint, entry: Option<abi::Endpoint>, host: &Host) -> Option<u32> {
    let renamed = || {
        // A device with the name of another pod's is that pod's.
        let is_renamed = |device: &&Device| device.kind == DeviceKind::Veth && !is_pods_device(&device.name);
        let mut renamed = host.devices.values().filter(is_renamed);
        renamed.find(|device| device.mac == Some(endpoint.host_mac)).map(|device| device.index)
    };
    host.device(&endpoint.host_interface)
        .and_then(|device| known_device(endpoint, entry, device))
        .or_else(renamed)
}

fn known_device(endpoint: &Endpoint, entry: Option<abi::Endpoint>, device: &Device) -> Option<u32> {
    if device.mac == Some(endpoint.host_mac) {
        return Some(device.index);
    }
    let is_same =
        entry.is_some_and(|entry| entry.ifindex == device.index && entry.host_mac == endpoint.host_mac);
    if is_same {
        warn!(
            pod = %endpoint,
            "somebody has given {} another link address: give it {} again, and keep other tools (udev, networkd) off devices named pw*",
            device.name, format_mac(endpoint.host_mac)
        );
    }
    is_same.then_some(device.index)
}
