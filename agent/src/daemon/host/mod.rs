//! The node's side of the network: keeps uplinks, routes, programs, pins and kernel switches as the
//! model wants them.

pub(super) mod links;
mod pins;
mod programs;
mod reconcile;
mod switches;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use podwire_core::model::Family;
use podwire_core::slice::Programs;

use crate::dataplane::attach::{UplinkAttachment, UplinkXdp};
use crate::dataplane::probe::Capabilities;
use crate::links::Changes;
use crate::lock::Lock;

pub(super) use programs::{NO_HOST_PROCESSES, load, tunnel_device};

/// What the agent did to the kernel, and when it last found the kernel as wanted.
pub(super) struct Upkeep {
    uplink_attachment: UplinkAttachment,
    /// The cgroup to which the programs for this node's own processes are attached, if any.
    cgroup: Option<PathBuf>,
    /// Lock of the folder of pins.
    bpf_lock: Lock,
    changes: Changes,
    /// When the agent last compared the kernel with what is wanted and repaired all differences.
    /// `None`: it has not done so yet, or the kernel may differ again.
    settled: Option<Instant>,
    /// Links of the host that have this process's programs, by ifindex.
    attached: BTreeMap<u32, (Programs, UplinkXdp)>,
    /// Whether the agent has looked for filters that an earlier agent left on other links.
    has_looked_for_filters: bool,
    /// When the agent last asked for the paths to the other nodes.
    paths_asked: Option<Instant>,
    /// Whether anything has changed since then.
    paths_doubtful: bool,
    /// Number of programs that were attached again.
    reattached: u64,
    /// Families of the pods for which the kernel switches are set.
    prepared: Vec<Family>,
    /// Number of kernel switches that were set again.
    switches_set_again: u64,
    /// Whether a round has succeeded since a condition last refused ADD.
    is_set_up: bool,
}

impl Upkeep {
    /// Creates the state before the first look. `changes` must listen before anything is listed, so
    /// that no change in between is missed.
    pub(super) fn new(capabilities: &Capabilities, bpf_lock: Lock, changes: Changes) -> Self {
        Self {
            uplink_attachment: capabilities.uplink_attachment(),
            cgroup: capabilities.host_processes().ok().map(Path::to_owned),
            bpf_lock,
            changes,
            settled: None,
            attached: BTreeMap::new(),
            has_looked_for_filters: false,
            paths_asked: None,
            paths_doubtful: true,
            reattached: 0,
            prepared: Vec::new(),
            switches_set_again: 0,
            is_set_up: false,
        }
    }

    /// Returns the number of programs that others had removed or replaced, and that the agent
    /// attached again.
    pub(super) fn reattached(&self) -> u64 {
        self.reattached
    }

    /// Returns the number of kernel switches that others had changed, and that the agent set again.
    pub(super) fn switches_set_again(&self) -> u64 {
        self.switches_set_again
    }

    /// Returns whether the kernel holds what was wanted last.
    pub(super) fn is_settled(&self) -> bool {
        self.settled.is_some()
    }

    /// Notes that the kernel may not hold what is wanted.
    pub(super) fn unsettle(&mut self) {
        self.settled = None;
    }

    /// Notes that a condition keeps ADD from being served.
    pub(super) fn note_refusal(&mut self) {
        self.is_set_up = false;
    }

    /// Makes the next round ask for the paths to the other nodes.
    pub(super) fn ask_paths_again(&mut self) {
        self.paths_asked = None;
    }
}
