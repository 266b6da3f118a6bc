//! A test program in a virtual machine. The machine boots from a root file system in memory; the
//! program's output goes to a serial port.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::initramfs::Initramfs;
use super::{Files, Kernel};
use crate::{packages, run};

/// Kernel modules with which the tests make links and attach programs. The guest loads the modules
/// that they depend on first.
const MODULES: [&str; 5] = ["bridge", "veth", "vxlan", "sch_ingress", "cls_bpf"];
/// Programs that the tests call.
const TOOLS: [&str; 5] = ["ip", "bpftool", "ethtool", "ping", "tcpdump"];
/// Programs that the lab starts, in the folder of cargo's `dev` profile.
const BINARIES: [&str; 2] = ["podwire", "podwire-cni"];
/// The certificates that the agent reads before it asks the API server.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Files that the packet tables read. Files that do not exist are left out.
const DATA: [&str; 5] = [
    "target/bpf/podwire-ebpf-count-helpers",
    "target/bpf/podwire-ebpf-earlier-layout",
    "target/bpf/toolchain",
    "agent/tests/prog/costs.json",
    RECORD,
];
/// The file that the packet tables write when a new record is requested.
const RECORD: &str = "agent/tests/prog/kernels.json";
/// The processor. Without these two features, the guest's kernel copies memory by plain loads and
/// stores. QEMU emulates `rep movsb` byte by byte, and the tests would take a fifth longer.
const CPU: &str = "max,-erms,-fsrm";
/// Files that the tests may open. The packet tables keep loaded programs and their maps for later
/// tests; the kernel's default is 1024.
const DESCRIPTORS: u32 = 65_536;
const BUSYBOX: &str = "/bin/busybox";
/// The guest's users. tcpdump runs as the user `tcpdump`, and exits if there is none.
const USERS: (&str, &str) = ("/etc/passwd", "root:x:0:0::/:\ntcpdump:x:100:100::/:\n");
/// Applets of Busybox that the guest's first process calls.
const APPLETS: [&str; 6] = ["cat", "insmod", "mount", "poweroff", "sh", "stty"];
/// The start of the lines that the guest's first process prints. Lines of the tests have another
/// start.
const MARK: &str = "podwire-guest: ";
const RECORD_BEGINS: &str = "record begins";
const RECORD_ENDS: &str = "record ends";

/// A virtual machine that has not been started.
pub(crate) struct Guest {
    kernel: Kernel,
    files: Files,
}

/// The output of a guest's first process.
#[derive(Default)]
pub(crate) struct Report {
    /// The exit status of the test program.
    status: Option<String>,
    record: String,
    is_in_record: bool,
}

impl Guest {
    /// Fetches the kernel and QEMU if they are missing.
    ///
    /// # Errors
    /// Those of [`Kernel::fetch`].
    pub(crate) fn prepare(kernel: Kernel) -> Result<Self> {
        Ok(Self { kernel, files: kernel.fetch()? })
    }

    /// Returns a command that starts QEMU. Its standard output has the lines of the test program
    /// and those for [`Report`].
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub(crate) fn command(
        &self,
        program: &Path,
        folder: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Command> {
        let initramfs = self.path("initramfs");
        let archive = self.initramfs(program, &init(program, folder, arguments, environment))?.archive();
        fs::write(&initramfs, archive).with_context(|| format!("write {}", initramfs.display()))?;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2", "-m", "3G"])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-serial")
            .arg(format!("file:{}", self.path("console").display()))
            .args(["-serial", "stdio", "-append"])
            // With `panic=-1` a panic reboots the machine, and `-no-reboot` makes QEMU exit
            // instead. With `no_timer_check` the kernel does not check its timer, which is late on
            // a busy machine.
            .arg("console=ttyS0 quiet panic=-1 no_timer_check mitigations=off")
            .arg("-kernel")
            .arg(&self.files.image)
            .arg("-initrd")
            .arg(&initramfs)
            .stdin(std::process::Stdio::null());
        Ok(command)
    }

    /// Checks the exit status, and stores a new record if there is one.
    ///
    /// # Errors
    /// When the program failed, when the machine ended before the program, or when the record
    /// cannot be written.
    pub(crate) fn finish(&self, report: &Report) -> Result<()> {
        let console = self.path("console");
        let said = || String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()).into_owned();
        let status = report.status.as_deref().with_context(|| {
            format!("the machine ended before the tests did; its kernel said:\n{}", said())
        })?;
        if !report.record.is_empty() {
            let record = run::root().join(RECORD);
            fs::write(&record, &report.record).with_context(|| format!("write {}", record.display()))?;
        }
        ensure!(status == "0", "the tests ended with status {status}");
        Ok(())
    }

    fn path(&self, what: &str) -> PathBuf {
        run::target_dir().join(format!("kernels/{}.{what}", self.kernel))
    }

    fn initramfs(&self, program: &Path, init: &str) -> Result<Initramfs> {
        let mut initramfs = Initramfs::default();
        for folder in ["/proc", "/sys", "/dev", "/run", "/tmp"] {
            initramfs.add_folder(Path::new(folder));
        }
        initramfs.add_file(Path::new("/init"), init.as_bytes().to_vec());
        initramfs.add_file(Path::new(USERS.0), USERS.1.as_bytes().to_vec());
        initramfs.add_own_file(Path::new(BUSYBOX))?;
        initramfs.add_own_file(Path::new(CERTIFICATES))?;
        let mut executables = vec![program.to_owned()];
        executables.extend(BINARIES.map(|name| run::target_dir().join("debug").join(name)));
        for name in TOOLS {
            let tool = packages::find_program(name);
            executables
                .push(tool.with_context(|| format!("there is no program {name}: run `cargo xtask setup`"))?);
        }
        for executable in &executables {
            initramfs.add_own_file(executable)?;
            for library in libraries(executable)? {
                initramfs.add_own_file(&library)?;
            }
        }
        for data in DATA.map(|data| run::root().join(data)).iter().filter(|data| data.exists()) {
            initramfs.add_own_file(data)?;
        }
        for (number, module) in (10..).zip(modules(&self.files.modules)?) {
            initramfs.add_file(Path::new(&format!("/modules/{number}.ko")), module);
        }
        Ok(initramfs)
    }
}

impl Report {
    /// Takes a line of the guest's first process. Returns `false` for a line of the test program.
    pub(crate) fn takes(&mut self, line: &str) -> bool {
        match line.strip_prefix(MARK) {
            Some(RECORD_BEGINS) => self.is_in_record = true,
            Some(RECORD_ENDS) => self.is_in_record = false,
            Some(status) => self.status = Some(status.to_owned()),
            None if self.is_in_record => self.record += &format!("{line}\n"),
            None => return false,
        }
        true
    }
}

/// Returns the script of the first process. It prepares the machine for tests, runs them, and
/// switches the machine off.
fn init(program: &Path, folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let link = APPLETS.map(|applet| format!("{BUSYBOX} ln -s {BUSYBOX} /bin/{applet}\n")).concat();
    let environment: String =
        environment.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect();
    let arguments: String = arguments.iter().map(|argument| format!(" {}", quoted(argument))).collect();
    let record = quoted(&run::root().join(RECORD).to_string_lossy());
    format!(
        "#!{BUSYBOX} sh
set -e
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
{link}trap 'poweroff -f' EXIT
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs run /run
for module in /modules/*; do insmod $module; done
ip link set lo up
ulimit -n {DESCRIPTORS}
{environment}cd {folder}
exec > /dev/ttyS1 2>&1
stty raw < /dev/ttyS1
set +e
{program}{arguments}
status=$?
if [ -n \"$PODWIRE_RECORD\" ]; then
    echo '{MARK}{RECORD_BEGINS}'
    cat {record}
    echo '{MARK}{RECORD_ENDS}'
fi
echo \"{MARK}$status\"
",
        folder = quoted(&folder.to_string_lossy()),
        program = quoted(&program.to_string_lossy()),
    )
}

/// Quotes a text so that a shell takes it as one word.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Returns the libraries that a program is linked with, including the loader.
fn libraries(executable: &Path) -> Result<Vec<PathBuf>> {
    let printed = run::captured(Command::new("ldd").arg(executable))?;
    Ok(printed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// Reads [`MODULES`] and the modules that they depend on. Each comes after those it depends on.
fn modules(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let found = run::captured(Command::new("find").arg(folder).args(["-name", "*.ko*"]))?;
    let files: Vec<(String, &Path)> =
        found.lines().map(|file| (module_name(Path::new(file)), Path::new(file))).collect();
    let mut loaded = Vec::new();
    let mut modules = Vec::new();
    for name in MODULES {
        add_module(&files, name, &mut loaded, &mut modules)?;
    }
    Ok(modules)
}

fn add_module(
    files: &[(String, &Path)],
    name: &str,
    loaded: &mut Vec<String>,
    modules: &mut Vec<Vec<u8>>,
) -> Result<()> {
    // A module without a file is built into the kernel.
    let Some((_, file)) = files.iter().find(|(other, _)| other == name) else { return Ok(()) };
    if loaded.iter().any(|other| other == name) {
        return Ok(());
    }
    loaded.push(name.to_owned());
    let content = match file.extension().is_some_and(|extension| extension == "xz") {
        true => unpacked(file)?,
        false => fs::read(file).with_context(|| format!("read {}", file.display()))?,
    };
    for dependency in dependencies(&content) {
        add_module(files, &dependency, loaded, modules)?;
    }
    modules.push(content);
    Ok(())
}

fn unpacked(file: &Path) -> Result<Vec<u8>> {
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output()?;
    ensure!(output.status.success(), "xz cannot unpack {}", file.display());
    Ok(output.stdout)
}

/// Returns `vxlan` for `…/vxlan.ko.xz`. Module names have underscores where file names may have
/// hyphens.
fn module_name(file: &Path) -> String {
    let file = file.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

/// Returns the modules in `depends=udp_tunnel,ip6_udp_tunnel` of a module's section `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_depends_on() {
        let module = b"\x7fELF\0license=GPL\0depends=udp_tunnel,ip6-udp-tunnel\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["udp_tunnel", "ip6_udp_tunnel"]);
        assert!(dependencies(b"\0depends=\0name=veth\0").is_empty());
        assert_eq!(module_name(Path::new("/x/nf-tables.ko.xz")), "nf_tables");
    }

    #[test]
    fn the_guests_own_lines_are_told_from_the_tests() {
        let mut report = Report::default();
        let lines = ["test a ... ok", "podwire-guest: record begins", "{", "podwire-guest: record ends"];
        assert_eq!(lines.map(|line| report.takes(line)), [false, true, true, true]);
        assert_eq!((report.record.as_str(), &report.status), ("{\n", &None));
        assert!(report.takes("podwire-guest: 101") && report.status.as_deref() == Some("101"));
    }

    #[test]
    fn a_word_of_the_shell_stays_one() {
        let output = Command::new("sh").args(["-c", &format!("printf %s {}", quoted("it's $HOME"))]).output();
        assert_eq!(output.unwrap().stdout, b"it's $HOME");
    }
}
