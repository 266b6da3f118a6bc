//! The kernel's capabilities: looked up once at start, and printed.

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
    /// The release, as `uname -r` prints it.
    pub kernel: String,
    /// Whether the kernel is at least the oldest one that the programs are tested on.
    pub is_tested: bool,
    /// Whether the kernel has type information (BTF). Without it `bpftool` shows no field names,
    /// and the programs cannot be loaded (`DataplaneError::SkbLayout`).
    pub btf: bool,
    /// Whether the kernel has TCX attachment (6.6).
    pub tcx: bool,
    /// Whether programs may call `bpf_redirect_peer` (5.10).
    pub redirect_peer: bool,
    /// Whether programs may call `bpf_redirect_neigh` (5.10).
    pub redirect_neigh: bool,
    /// Whether programs may call `bpf_probe_read_kernel`. A kernel in lockdown for confidentiality
    /// refuses it.
    pub read_kernel: bool,
    /// The root of the cgroup2 hierarchy, or why there is none to attach programs to.
    pub cgroup2: Result<PathBuf, String>,
    /// Whether the kernel has a number for this network namespace (5.14), or why not. Without the
    /// number, programs cannot tell processes of this namespace from others.
    pub netns_cookie: Result<(), String>,
    /// Whether this network namespace has connection tracking.
    pub conntrack: bool,
}

impl Capabilities {
    /// Asks the kernel for each capability.
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
                format!("the kernel gives no cookie of the network namespace (it needs Linux 5.14 or later): {error}")
            }),
            conntrack: Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists(),
        }
    }

    /// Writes the capabilities to the log in one line, and a warning for each capability that the
    /// data path needs and the kernel lacks.
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
                "the kernel refuses bpf_probe_read_kernel, so it will not load the programs: boot it without lockdown=confidentiality (lockdown=integrity is fine)"
            );
        }
    }

    /// Returns the cgroup for the programs of this node's own processes, or why they cannot be
    /// attached.
    pub fn host_processes(&self) -> Result<&Path, &str> {
        self.netns_cookie.as_ref().map_err(String::as_str)?;
        self.cgroup2.as_deref().map_err(String::as_str)
    }

    /// Returns how uplinks get their programs.
    pub fn uplink_attachment(&self) -> UplinkAttachment {
        if self.tcx { UplinkAttachment::Tcx } else { UplinkAttachment::Clsact }
    }
}

fn is_at_least(version: KernelVersion) -> bool {
    KernelVersion::current().is_ok_and(|current| current >= version)
}
