//! Debian packages: their names, the files that prove they are installed, and their purpose.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// A package. Its proof is a file that it installs, because another system may get the same file
/// from another source.
pub(crate) struct Package {
    name: &'static str,
    proof: Proof,
    why: &'static str,
}

enum Proof {
    /// A program of this name in `PATH` or in root's folders.
    Program(&'static str),
    /// A file at this path.
    File(&'static str),
}

/// Packages that compile the BPF object without a nightly toolchain.
pub(crate) const BPF_TOOLCHAIN: [Package; 2] = [
    package("rustc-web", Proof::File("/usr/bin/rustc"), "a rustc whose LLVM has the BPF target"),
    package(
        "libstd-rust-web-dev-bpf",
        Proof::File("/usr/lib/rustlib/bpfel-unknown-none"),
        "the core library, compiled for BPF",
    ),
];

/// Packages that are needed to build bpf-linker.
pub(crate) const LINKER_BUILD: [Package; 2] = [
    package("llvm-22-dev", Proof::File("/usr/lib/llvm-22/bin/llvm-config"), "the LLVM that bpf-linker calls"),
    package("g++", Proof::Program("g++"), "links bpf-linker"),
];

/// Packages that the demonstration needs.
pub(crate) const DEMONSTRATION: [Package; 3] = [
    package("iproute2", Proof::Program("ip"), "makes the lab's namespaces and links"),
    package("iputils-ping", Proof::Program("ping"), "measures round-trip times"),
    package("bpftool", Proof::Program("bpftool"), "dumps maps as an operator does"),
];

/// Packages that the tests need in addition.
pub(crate) const TESTS: [Package; 11] = [
    package("iptables", Proof::Program("iptables"), "translates a ClusterIP as kube-proxy does"),
    package("nftables", Proof::Program("nft"), "makes a firewall that is not iptables'"),
    package("conntrack", Proof::Program("conntrack"), "empties connection tracking"),
    package("ethtool", Proof::Program("ethtool"), "switches segmentation and checksum offloads"),
    package("tcpdump", Proof::Program("tcpdump"), "shows what is on a wire"),
    package("containerd", Proof::Program("containerd"), "a runtime that calls the plugin"),
    package("runc", Proof::Program("runc"), "what containerd starts containers with"),
    package(
        "containernetworking-plugins",
        Proof::File("/usr/lib/cni/loopback"),
        "the reference plugins: containerd calls loopback, a test asks the others what it asks ours",
    ),
    package(
        "busybox-static",
        Proof::File("/usr/share/doc/busybox-static"),
        "what its containers are made of",
    ),
    package("golang-go", Proof::Program("go"), "renders the chart: helm's templates are Go's"),
    package(
        "golang-k8s-sigs-yaml-dev",
        Proof::File("/usr/share/gocode/src/sigs.k8s.io/yaml"),
        "reads and writes YAML as helm does",
    ),
];

/// Packages that measurements need in addition.
pub(crate) const MEASUREMENTS: [Package; 1] =
    [package("iperf3", Proof::Program("iperf3"), "measures streams")];

/// Packages that run tests on other kernels.
pub(crate) const EMULATION: [Package; 3] = [
    package(
        "qemu-system-x86",
        Proof::Program("qemu-system-x86_64"),
        "emulates a machine with another kernel",
    ),
    package("xz-utils", Proof::Program("xz"), "unpacks that kernel's modules"),
    package("busybox-static", Proof::File("/usr/share/doc/busybox-static"), "the first process there"),
];

impl Package {
    /// Returns whether the package's program or file exists.
    pub(crate) fn is_present(&self) -> bool {
        match self.proof {
            Proof::Program(name) => find_program(name).is_some(),
            Proof::File(path) => Path::new(path).exists(),
        }
    }
}

/// Installs the packages that are missing. Returns at once when none is missing.
///
/// # Errors
/// When a package is missing and cannot be installed: this is not Debian, the user is not root, or
/// apt failed. The message says what to do.
pub(crate) fn ensure(packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|package| !package.is_present()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        eprintln!("missing: {} ({})", package.name, package.why);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if !can_install() {
        bail!("install what is missing, on Debian as root:\n\n    {}\n", commands(&names));
    }
    run::step(&format!("apt-get install {}", names.join(" ")), || install(&names))?;
    if let Some(package) = missing.iter().find(|package| !package.is_present()) {
        bail!("{} was installed, but what it should bring is not there", package.name);
    }
    Ok(())
}

/// Returns whether this machine has apt and the user is root.
pub(crate) fn can_install() -> bool {
    run::is_root() && find_program("apt-get").is_some()
}

/// Fetches the package lists, then installs or upgrades the packages.
pub(crate) fn install(names: &[&str]) -> Result<()> {
    update()?;
    run::visibly(apt().args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(names))
}

/// Fetches a package and unpacks it into a folder that does not exist. Nothing is installed, so no
/// service of the package starts.
pub(crate) fn unpack(package: &str, to: &Path) -> Result<()> {
    let unfinished = to.with_extension("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(&unfinished).with_context(|| format!("create {}", unfinished.display()))?;
    let mut download = Command::new("apt-get");
    // Run as root: apt's own user may not write to this folder.
    download.args(["download", "--quiet", "--quiet", "-o", "APT::Sandbox::User=root", package]);
    run::visibly(download.current_dir(&unfinished))?;
    let archive = only(&unfinished, package)?;
    run::visibly(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&unfinished))?;
    fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
    fs::rename(&unfinished, to).with_context(|| format!("rename {}", unfinished.display()))
}

/// Returns the one file or folder in `folder` with a name that starts with `beginning`.
pub(crate) fn only(folder: &Path, beginning: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(beginning) {
            return Ok(entry.path());
        }
    }
    bail!("{} has no {beginning}*: remove {0}, and the next run fetches it again", folder.display())
}

/// Fetches the package lists, once in a run of this program.
pub(crate) fn update() -> Result<()> {
    static IS_DONE: AtomicBool = AtomicBool::new(false);
    if !IS_DONE.load(Ordering::Relaxed) {
        run::visibly(apt().args(["update", "--quiet"]))?;
        IS_DONE.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// Returns the command line with which a person installs the packages.
pub(crate) fn commands(names: &[&str]) -> String {
    format!("apt-get update && apt-get install --no-install-recommends {}", names.join(" "))
}

/// Finds a program, also in the folders that only root has in `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|file| file.is_file())
}

impl Package {
    /// Returns the package's name in Debian.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

const fn package(name: &'static str, proof: Proof, why: &'static str) -> Package {
    Package { name, proof, why }
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    // Without a terminal, dpkg writes no progress bars to the log.
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "Dpkg::Use-Pty=0"]);
    command
}
