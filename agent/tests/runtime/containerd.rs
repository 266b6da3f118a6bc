//! containerd with runc on a node of the lab, as it would run on a machine of its own.
//!
//! containerd has its own process and mount namespaces, and its own `/run` and `/var/lib`. So all
//! its processes, containers and mounts end with it, however the test ends. Runtimes keep files at
//! fixed places (`/run/containerd`, `/run/netns`, `/var/lib/cni`): this one neither uses the
//! machine's files there nor leaves any. Its network namespace is the node's, where the plugin
//! makes the host side of a pod's link.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use xtask::lab::Node;

use crate::cri::Cri;
use crate::{eventually, image};

/// containerd 1.x sets up every sandbox's loopback with this plugin, so it must lie beside
/// Podwire's.
const LOOPBACK: &str = "/usr/lib/cni/loopback";
/// Where Debian has programs for root. On another distribution root's path may lack these folders.
const PROGRAMS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The namespace that separates kubelet's containers from others.
const NAMESPACE: &str = "k8s.io";
/// First part of the name of a runtime's control group. The id of the test's process follows, and
/// the number of the runtime in it.
const CGROUP: &str = "podwire-runtime-test-";
/// The number of the next runtime: tests of one process run at the same time.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Where runtimes look for plugins by default.
pub const PLUGINS: &str = "/opt/cni/bin";
/// Where runtimes look for network configurations by default.
pub const NETWORKS: &str = "/etc/cni/net.d";
const START_DEADLINE: Duration = Duration::from_secs(60);

/// The script that gives the runtime its own `/var/lib`, `/opt`, `/run` and BPF file system, and
/// its own changes to `/etc`.
///
/// - The runtime's `/run` holds only the node's folder, with the agent's socket.
/// - The script unmounts what labs have mounted: it comes and goes, and the test compares mounts.
/// - The runtime shares its mounts with its containers, as on a machine with systemd.
/// - The shell is the first process of its namespace. It stays, to reap processes that lose their
///   parent.
const PRIVATE_FOLDERS: &str = r#"
node_folder=$1 folder=$2 loopback=$3
run=$folder/run
umount --lazy /run/netns
for mount in $(awk '$5 ~ "^/run/pwlab" { print $5 }' /proc/self/mountinfo); do
    umount --lazy "$mount" || echo "$mount has gone"
done
mkdir -p "$run/${node_folder#/run/}" "$folder/etc" "$folder/etc-work"
mount -t overlay -o "lowerdir=/etc,upperdir=$folder/etc,workdir=$folder/etc-work" overlay /etc
mount --bind "$node_folder" "$run/${node_folder#/run/}"
mount --rbind "$run" /run
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /opt
mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
mkdir -p /etc/cni/net.d /opt/cni/bin
cp "$loopback" /opt/cni/bin/loopback
containerd --config "$folder/containerd.toml"
exit $?
"#;

/// A running containerd. When it is dropped, it is killed with everything that it started.
pub struct Containerd {
    unshare: Child,
    folder: PathBuf,
    cgroup: String,
}

/// A process in the runtime's namespace.
pub struct Process {
    /// Its name.
    pub name: String,
    id: Pid,
    is_first: bool,
}

impl Containerd {
    /// Starts containerd on a node, with the test's image and without a network configuration.
    pub fn start(node: &Node) -> Result<Self> {
        for file in [LOOPBACK, image::BUSYBOX] {
            ensure!(Path::new(file).exists(), "there is no {file}: run `cargo xtask setup`");
        }
        for program in ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "unshare"] {
            let found = PROGRAMS.split(':').any(|folder| Path::new(folder).join(program).exists());
            ensure!(found, "there is no {program} in {PROGRAMS}: run `cargo xtask setup`");
        }
        remove_cgroups(is_orphan)?;
        // The lab removes this folder, also on Ctrl-C.
        let node_folder = node.state_dir().parent().context("the state folder has no parent")?;
        let folder = node_folder.join("runtime");
        configure(&folder)?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-ec", PRIVATE_FOLDERS, "sh"])
            .args([node_folder, &folder, Path::new(LOOPBACK)])
            .env("PATH", PROGRAMS)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.join("log"))?)
            // Ctrl-C must not reach the runtime: the test ends the runtime with all its processes.
            .process_group(0);
        let unshare = node.enter(|| command.spawn())?.context("start unshare (Debian package util-linux)")?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("{CGROUP}{}-{number}", std::process::id());
        let runtime = Self { unshare, folder, cgroup };
        eventually("containerd serves", START_DEADLINE, || {
            runtime.ctr(&["version"]).with_context(|| runtime.log_tail())
        })?;
        runtime.import(&image::write(&runtime.folder)?)?;
        Ok(runtime)
    }

    /// Installs the lab's plugin by hand, with a configuration that names the node's own agent.
    pub fn install_plugin(&self, node: &Node) -> Result<()> {
        symlink(binary("podwire-cni")?, self.file(PLUGINS)?.join("podwire-cni"))?;
        let network = json!({
            "cniVersion": "1.0.0",
            "name": "podwire",
            "plugins": [{
                "type": "podwire-cni",
                "capabilities": { "bandwidth": true, "dns": true, "ips": true, "mac": true, "portMappings": true },
                "socket": node.socket(),
            }],
        });
        fs::write(self.file(NETWORKS)?.join("10-podwire.conflist"), network.to_string())?;
        Ok(())
    }

    /// Returns the folder of its files on this machine. The lab removes it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Loads an image's archive.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.ctr(&["image", "import", &archive.to_string_lossy()])
    }

    /// Connects to the runtime, and waits until it knows the image.
    pub fn connect(&self) -> Result<Cri> {
        let cri = Cri::connect(&self.socket())?;
        eventually("the runtime knows the image", START_DEADLINE, || {
            ensure!(cri.has_image(image::NAME)?);
            Ok(())
        })?;
        Ok(cri)
    }

    /// Returns the control group of its pods, relative to the root of each hierarchy.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.cgroup)
    }

    /// Returns the folder on this machine that the web server of [`image`] serves.
    pub fn web_folder(&self) -> PathBuf {
        self.folder.join("root").join(image::WEB_FOLDER.trim_start_matches('/'))
    }

    /// Returns the path of one of the runtime's files, as seen from outside.
    pub fn file(&self, path: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root{path}", self.first()?)))
    }

    /// Returns the places where it has mounted file systems.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.first()?))?;
        Ok(mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect())
    }

    /// Returns all its running processes: its own, those that it started, and its containers'.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let namespace = fs::read_link(format!("/proc/{}/ns/pid_for_children", self.unshare.id()))
            .context("the runtime has ended")?;
        // The test kills the first process of this namespace at the end. So the namespace must not
        // be this machine's.
        let own = fs::read_link("/proc/self/ns/pid")?;
        ensure!(namespace != own, "the runtime has not been started yet");
        Ok(subfolders(Path::new("/proc"))?.iter().filter_map(|folder| process(folder, &namespace)).collect())
    }

    /// Returns `/proc/…/status` of the only process with that name in its containers.
    pub fn process_status(&self, name: &str) -> Result<BTreeMap<String, String>> {
        for folder in subfolders(Path::new("/proc"))? {
            // Files of a process that ends meanwhile read as empty, so it does not match.
            let read = |file| fs::read_to_string(folder.join(file)).unwrap_or_default();
            if read("comm").trim_end() == name && read("cgroup").contains(&self.cgroup) {
                let status = read("status");
                let fields = status.lines().filter_map(|line| line.split_once(':'));
                return Ok(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect());
            }
        }
        bail!("no container runs {name}")
    }

    /// Returns the folders of control groups below the pods' own, in every hierarchy.
    pub fn cgroup_folders(&self) -> Result<Vec<PathBuf>> {
        let mut folders = Vec::new();
        for parent in self.cgroup_parents()? {
            folders.extend(subfolders(&parent)?);
        }
        Ok(folders)
    }

    fn first(&self) -> Result<Pid> {
        let first = self.processes()?.into_iter().find(|process| process.is_first);
        Ok(first.context("the runtime has ended")?.id)
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("run/containerd/containerd.sock")
    }

    fn ctr(&self, arguments: &[&str]) -> Result<()> {
        let mut ctr = Command::new("ctr");
        ctr.env("PATH", PROGRAMS);
        ctr.args(["--timeout", "60s", "--namespace", NAMESPACE, "--address"])
            .arg(self.socket())
            .args(arguments);
        let output = ctr.output().context("run ctr (Debian package containerd)")?;
        ensure!(output.status.success(), "{ctr:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("containerd's log ends\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    }

    /// Kills the first process of the namespace, and thereby all others. Its parent ends after
    /// them.
    fn end(&mut self) -> Result<()> {
        match self.first() {
            Ok(first) => kill_process(first, Signal::KILL)?,
            Err(_) => self.unshare.kill()?,
        }
        self.unshare.wait()?;
        remove_cgroups(|name| name == self.cgroup)
    }

    fn cgroup_parents(&self) -> Result<Vec<PathBuf>> {
        let folders = hierarchies()?.into_iter().map(|hierarchy| hierarchy.join(&self.cgroup));
        Ok(folders.filter(|folder| folder.exists()).collect())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Cargo prints this when the test fails.
        eprintln!("--- {}", self.log_tail());
        if let Err(error) = self.end() {
            eprintln!("end the runtime: {error:#}");
        }
    }
}

/// Writes containerd's own configuration.
fn configure(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(
        folder.join("containerd.toml"),
        format!(
            r#"
version = 2
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
# Root in a container, as on many CI machines, may lack CAP_SYS_RESOURCE.
restrict_oom_score_adj = true
sandbox_image = "{}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "{NETWORKS}"
"#,
            image::NAME,
        ),
    )?;
    Ok(())
}

/// Returns the path of one of the two programs, from the folder that the lab uses.
pub fn binary(name: &str) -> Result<PathBuf> {
    let folder = match std::env::var_os("PODWIRE_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let agent = Path::new(env!("CARGO_BIN_EXE_podwire"));
            agent.parent().context("the agent's binary has no folder")?.to_owned()
        }
    };
    let binary = folder.join(name);
    ensure!(binary.exists(), "there is no {}: `cargo xtask build` builds it", binary.display());
    Ok(binary)
}

/// Returns the process of a folder in `/proc`, if it is in that namespace and still runs.
fn process(folder: &Path, namespace: &Path) -> Option<Process> {
    if fs::read_link(folder.join("ns/pid")).ok()? != namespace {
        return None;
    }
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let inner_id = field("NSpid:")?.rsplit('\t').next()?;
    Some(Process {
        name: field("Name:")?.to_owned(),
        id: Pid::from_raw(field("Pid:")?.parse().ok()?)?,
        is_first: inner_id == "1",
    })
}

/// Returns the hierarchies of control groups: `/sys/fs/cgroup` itself (version 2), or its folders,
/// one for each controller (version 1).
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let mut hierarchies = subfolders(&root)?;
    hierarchies.push(root);
    Ok(hierarchies)
}

/// Removes the control groups with a matching name, and those in them, from every hierarchy.
fn remove_cgroups(is_meant: impl Fn(&str) -> bool) -> Result<()> {
    for hierarchy in hierarchies()? {
        for parent in subfolders(&hierarchy)? {
            if !parent.file_name().and_then(|name| name.to_str()).is_some_and(&is_meant) {
                continue;
            }
            for folder in subfolders(&parent)?.into_iter().chain([parent]) {
                fs::remove_dir(&folder).with_context(|| format!("remove {}", folder.display()))?;
            }
        }
    }
    Ok(())
}

/// Returns whether the process of a control group is gone. A process that was killed could not
/// remove its group.
fn is_orphan(cgroup: &str) -> bool {
    let owner = cgroup.strip_prefix(CGROUP).and_then(|rest| rest.split('-').next());
    owner.is_some_and(|process| !Path::new("/proc").join(process).exists())
}

fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        // An entry that disappears meanwhile is not a folder.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}
