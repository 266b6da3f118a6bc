//! Debian packages: which, what proves that one is there, and why.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::run;

/// A package that is looked for by what it brings: another system may have the same from elsewhere.
pub(crate) struct Package {
    name: &'static str,
    proof: Proof,
    why: &'static str,
}

enum Proof {
    /// A program of this name.
    Program(&'static str),
    /// This file.
    File(&'static str),
}

/// What compiles and links the BPF object where no nightly toolchain does.
pub(crate) const BPF_TOOLCHAIN: [Package; 2] = [
    package("rustc-web", Proof::File("/usr/bin/rustc"), "a rustc whose LLVM has the BPF target"),
    package(
        "libstd-rust-web-dev-bpf",
        Proof::File("/usr/lib/rustlib/bpfel-unknown-none"),
        "the core library, compiled for BPF",
    ),
];

/// What bpf-linker is built with.
pub(crate) const LINKER_BUILD: [Package; 2] = [
    package("llvm-22-dev", Proof::File("/usr/lib/llvm-22/bin/llvm-config"), "the LLVM that bpf-linker calls"),
    package("g++", Proof::Program("g++"), "links bpf-linker"),
];

/// What demonstration and tests call.
pub(crate) const TOOLS: [Package; 14] = [
    package("iproute2", Proof::Program("ip"), "makes the lab's namespaces and links"),
    package("iputils-ping", Proof::Program("ping"), "measures round-trip times"),
    package("bpftool", Proof::Program("bpftool"), "dumps maps as an operator does"),
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

/// What measurements call besides.
pub(crate) const MEASUREMENTS: [Package; 1] =
    [package("iperf3", Proof::Program("iperf3"), "measures streams")];

/// What runs tests on other kernels.
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
    /// Whether what it brings is there.
    pub(crate) fn is_present(&self) -> bool {
        match self.proof {
            Proof::Program(name) => find_program(name).is_some(),
            Proof::File(path) => Path::new(path).exists(),
        }
    }
}

/// Sees to it that these are there. Does nothing, quickly, when they are.
///
/// # Errors
/// When something is missing and cannot be installed: not Debian, not root, or apt failed. The message says what to do.
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

/// Whether apt is here and this is root.
pub(crate) fn can_install() -> bool {
    run::is_root() && find_program("apt-get").is_some()
}

/// Fetches the package lists and installs, or upgrades, these.
pub(crate) fn install(names: &[&str]) -> Result<()> {
    update()?;
    run::visibly(
        apt().args(["install", "--yes", "--quiet", "--quiet", "--no-install-recommends"]).args(names),
    )
}

/// Fetches the package lists.
pub(crate) fn update() -> Result<()> {
    run::visibly(apt().args(["update", "--quiet", "--quiet"]))
}

/// What a person types to install these.
pub(crate) fn commands(names: &[&str]) -> String {
    format!("apt-get update && apt-get install --no-install-recommends {}", names.join(" "))
}

/// A program, also in the folders that only root has in `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|file| file.is_file())
}

impl Package {
    /// Its name in Debian.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

const fn package(name: &'static str, proof: Proof, why: &'static str) -> Package {
    Package { name, proof, why }
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    // Without a terminal dpkg draws no progress bars into the log.
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "Dpkg::Use-Pty=0"]);
    command
}
