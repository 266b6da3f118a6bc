//! The node's side of the network: uplinks, routes, programs, pins and kernel switches are kept as the model wants them.

pub(super) mod links;
mod pins;
mod programs;
mod reconcile;
mod switches;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use podwire_core::slice::Programs;

use crate::dataplane::attach::{UplinkAttachment, UplinkXdp};
use crate::dataplane::probe::Capabilities;
use crate::links::Changes;
use crate::lock::Lock;

pub(super) use programs::{NO_HOST_PROCESSES, load, tunnel_device};

/// What was done to the kernel, and when it was last found as it is wanted.
pub(super) struct Upkeep {
    uplink_attachment: UplinkAttachment,
    /// Where the programs of this node's own processes are attached, if anywhere.
    cgroup: Option<PathBuf>,
    /// Of the folder of pins.
    bpf_lock: Lock,
    changes: Changes,
    /// When the kernel was last found, or made, as it is wanted; `None`: not yet, or no longer.
    settled: Option<Instant>,
    /// Links of the host that have this process's programs, by ifindex.
    attached: BTreeMap<u32, (Programs, UplinkXdp)>,
    /// Whether filters that an agent before has left on other links were looked for.
    has_looked_for_filters: bool,
    /// When the ways to the other nodes were last asked for.
    paths_asked: Option<Instant>,
    /// Whether anything has changed since then.
    paths_doubtful: bool,
    /// Programs that were attached again.
    reattached: u64,
    /// Kernel switches that were set again.
    switches_set_again: u64,
    /// Whether the kernel was made as it is wanted since a condition last kept ADD from being served.
    is_set_up: bool,
}

impl Upkeep {
    /// Nothing was looked at yet. `changes` listens before anything is listed: what changes meanwhile is told.
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
            switches_set_again: 0,
            is_set_up: false,
        }
    }

    /// Programs that something else had removed or replaced, and that were attached again.
    pub(super) fn reattached(&self) -> u64 {
        self.reattached
    }

    /// Kernel switches that something else had changed, and that were set again.
    pub(super) fn switches_set_again(&self) -> u64 {
        self.switches_set_again
    }

    /// Whether the kernel holds what was wanted last.
    pub(super) fn is_settled(&self) -> bool {
        self.settled.is_some()
    }

    /// The kernel may not hold what is wanted.
    pub(super) fn unsettle(&mut self) {
        self.settled = None;
    }

    /// Something keeps ADD from being served.
    pub(super) fn note_refusal(&mut self) {
        self.is_set_up = false;
    }

    /// The ways to the other nodes are asked for with the next round.
    pub(super) fn ask_paths_again(&mut self) {
        self.paths_asked = None;
    }
}
