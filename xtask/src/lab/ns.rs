//! A network namespace.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::lab::{cleanup, process};

/// A named network namespace, as `ip netns` makes it. Clones are the same namespace.
#[derive(Clone, Debug)]
pub struct Ns {
    name: String,
    file: Arc<File>,
}

impl Ns {
    /// Makes a namespace with loopback up and IPv6 off. The caller removes it; [`super::Lab`]
    /// removes its own namespaces.
    ///
    /// # Errors
    /// When a namespace with this name exists, or when the kernel refuses.
    pub fn create(name: &str) -> Result<Self> {
        let ns = Self::create_as_the_kernel_does(name)?;
        ns.enter(|| {
            // A kernel without IPv6 does not have these files.
            drop(std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"));
            drop(std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"));
        })?;
        Ok(ns)
    }

    /// Makes a namespace as [`Ns::create`] does, but with the kernel's settings of IPv6.
    ///
    /// # Errors
    /// Those of [`Ns::create`].
    pub fn create_as_the_kernel_does(name: &str) -> Result<Self> {
        process::ip_batch(&format!("netns add {name}\n"))?;
        let ns = Self::open(name)?;
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// Opens an existing namespace.
    ///
    /// # Errors
    /// When there is no namespace with this name.
    pub fn open(name: &str) -> Result<Self> {
        Ok(Self { name: name.to_owned(), ..Self::at(&path_of(name))? })
    }

    /// Opens a namespace by its file, for example the namespace of a pod that a runtime made.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn at(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open the namespace {}", path.display()))?;
        Ok(Self { name: path.display().to_string(), file: Arc::new(file) })
    }

    /// Removes the namespace, and kills the processes in it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(self) -> Result<()> {
        cleanup::remove_namespace(&self.name)
    }

    /// Returns the name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the path of the namespace's file, as a runtime gives it in `CNI_NETNS`.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Runs an action in the namespace, on a thread of its own. Processes that it starts stay in
    /// the namespace.
    ///
    /// # Errors
    /// When the thread cannot enter the namespace.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.move_this_thread()?;
                Ok(action())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts an action in the namespace, on a thread of its own.
    pub fn spawn<T: Send + 'static>(
        &self,
        action: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let ns = self.clone();
        std::thread::spawn(move || {
            ns.move_this_thread()?;
            action()
        })
    }

    /// Runs a command in the namespace, for a minute at most, and returns its standard output.
    ///
    /// # Errors
    /// When the command cannot be run, takes too long or fails, with its output.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        let output = self.output(command)?;
        if !output.status.success() {
            bail!(
                "`{}` in {} failed ({}): {}{}",
                command.join(" "),
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&output.stdout),
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command in the namespace, for a minute at most. Any exit status is accepted.
    ///
    /// # Errors
    /// When the command cannot be run or takes too long.
    pub fn output(&self, command: &[&str]) -> Result<Output> {
        let (program, arguments) = command.split_first().context("an empty command")?;
        self.enter(|| {
            process::output(Command::new(program).args(arguments), None, process::COMMAND_DEADLINE)
        })?
        .with_context(|| format!("run `{}` in {}", command.join(" "), self.name))
    }

    /// Runs commands of `ip` in the namespace, one per line, all in one process.
    ///
    /// # Errors
    /// At the first line that fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.enter(|| process::ip_batch(lines))?.with_context(|| format!("in the namespace {}", self.name))
    }

    /// Sets a sysctl, given as a path below `/proc/sys` (`net/ipv4/ip_forward`).
    ///
    /// # Errors
    /// When there is no such sysctl, or when it refuses the value.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        self.enter(|| std::fs::write(format!("/proc/sys/{path}"), value))?
            .with_context(|| format!("set {path} to {value} in {}", self.name))
    }

    /// Returns the index of a link.
    ///
    /// # Errors
    /// When there is no link with this name.
    pub fn ifindex(&self, link: &str) -> Result<u32> {
        let find = || {
            let socket =
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
            rustix::net::netdevice::name_to_index(&socket, link)
        };
        self.enter(find)?.with_context(|| format!("find the link {link} in {}", self.name))
    }

    /// Returns the Ethernet address of a link.
    ///
    /// # Errors
    /// When there is no link with this name.
    pub fn mac(&self, link: &str) -> Result<[u8; 6]> {
        let shown = self.exec(&["ip", "-json", "link", "show", "dev", link])?;
        let links: serde_json::Value = serde_json::from_str(&shown)?;
        let text = links[0]["address"].as_str().context("a link without an address")?;
        parse_mac(text)
    }

    /// Adds an address with its prefix length to a link. An IPv6 address can be used at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_address(&self, link: &str, address: IpAddr, prefix: u8) -> Result<()> {
        let at_once = if address.is_ipv6() { "nodad" } else { "" };
        self.ip(&format!("address add {address}/{prefix} dev {link} {at_once}"))
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn move_this_thread(&self) -> Result<()> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("enter the namespace {}", self.name))
    }
}

/// Returns the six bytes of `aa:bb:cc:dd:ee:ff`.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    let bytes = bytes.with_context(|| format!("{text:?} is no Ethernet address"))?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("{text:?} is no Ethernet address"))
}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}
