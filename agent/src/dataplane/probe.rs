//! What the kernel can do: found out once at start, and printed.

use std::fs;
use std::path::{Path, PathBuf};

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use aya::util::KernelVersion;
use tracing::{info, warn};

use super::attach::UplinkAttachment;
use crate::{cgroup2, netns};

/// The oldest kernel that the programs are tested on (`cargo xtask test --kernel`).
const OLDEST: KernelVersion = KernelVersion::new(6, 1, 0);

/// The kernel's capabilities.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// As `uname -r` prints it.
    pub kernel: String,
    /// Whether the programs are tested on one as old.
    pub is_tested: bool,
    /// Type information, without which `bpftool` shows no field names.
    pub btf: bool,
    /// TCX attachment (6.6).
    pub tcx: bool,
    /// `bpf_redirect_peer` (5.10).
    pub redirect_peer: bool,
    /// `bpf_redirect_neigh` (5.10).
    pub redirect_neigh: bool,
    /// `bpf_probe_read_kernel`, which a kernel in lockdown for confidentiality refuses.
    pub read_kernel: bool,
    /// The root of the cgroup2 hierarchy; why there is none to attach programs to.
    pub cgroup2: Result<PathBuf, String>,
    /// The number of this network namespace (5.14), without which its processes cannot be told from others; why not.
    pub netns_cookie: Result<(), String>,
    /// Connection tracking, in this network namespace.
    pub conntrack: bool,
}

impl Capabilities {
    /// Asks the kernel.
    pub fn probe(cgroup_dir: Option<&Path>) -> Self {
        let classifier = |helper| is_helper_supported(ProgramType::SchedClassifier, helper).unwrap_or(false);
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            is_tested: is_at_least(OLDEST),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            tcx: is_at_least(KernelVersion::new(6, 6, 0)),
            redirect_peer: classifier(BpfHelper::BPF_FUNC_redirect_peer),
            redirect_neigh: classifier(BpfHelper::BPF_FUNC_redirect_neigh),
            read_kernel: classifier(BpfHelper::BPF_FUNC_probe_read_kernel),
            cgroup2: cgroup2::root(cgroup_dir),
            netns_cookie: netns::cookie().map(drop).map_err(|error| {
                format!("the kernel tells no number of the network namespace (Linux 5.14): {error}")
            }),
            conntrack: Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists(),
        }
    }

    /// One line in the log, and one more for what is missing that the data path needs.
    pub fn print(&self) {
        info!(
            kernel = self.kernel,
            btf = self.btf,
            tcx = self.tcx,
            redirect_peer = self.redirect_peer,
            redirect_neigh = self.redirect_neigh,
            read_kernel = self.read_kernel,
            cgroup2 = %self.cgroup2.as_deref().map_or("none".into(), |folder| folder.to_string_lossy()),
            netns_cookie = self.netns_cookie.is_ok(),
            conntrack = self.conntrack,
            "kernel capabilities"
        );
        if !self.is_tested {
            warn!(
                kernel = self.kernel,
                "this kernel is older than Linux 6.1, the oldest that Podwire is tested on: its verifier may refuse the programs; install a newer one"
            );
        }
        if !(self.redirect_peer && self.redirect_neigh) {
            warn!(
                "the kernel refuses bpf_redirect_peer or bpf_redirect_neigh: Podwire needs Linux 6.1 or later, root, and the capabilities BPF, NET_ADMIN and PERFMON"
            );
        } else if !self.read_kernel {
            warn!(
                "the kernel refuses bpf_probe_read_kernel, without which pods can forge their sources: boot it without lockdown=confidentiality (lockdown=integrity will do)"
            );
        }
    }

    /// Where the programs of this node's own processes are attached; why they cannot be.
    pub fn host_processes(&self) -> Result<&Path, &str> {
        self.netns_cookie.as_ref().map_err(String::as_str)?;
        self.cgroup2.as_deref().map_err(String::as_str)
    }

    /// How uplinks get their programs.
    pub fn uplink_attachment(&self) -> UplinkAttachment {
        if self.tcx { UplinkAttachment::Tcx } else { UplinkAttachment::Clsact }
    }
}

fn is_at_least(version: KernelVersion) -> bool {
    KernelVersion::current().is_ok_and(|current| current >= version)
}
