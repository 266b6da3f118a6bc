//! The network namespace of a node in these tests.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use xtask::lab::Ns;

/// A network namespace that the calling thread enters. It is removed when this value is dropped.
pub struct Namespace {
    pub ns: Ns,
}

impl Namespace {
    /// Makes a namespace and moves the calling thread there.
    pub fn enter() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("pwprog-{}-{number}", std::process::id());
        let ns = Ns::create_as_the_kernel_does(&name).expect("make a namespace (are we root?)");
        let namespace = Self { ns };
        namespace.ns.move_this_thread().unwrap();
        namespace
    }

    /// Runs commands of `ip` in the namespace, one per line. All run in one process: on an emulated
    /// processor, a process takes longer than a test of a few packets.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        self.ns.ip(lines).unwrap();
    }

    /// Returns a link's ifindex.
    pub fn ifindex(&self, link: &str) -> u32 {
        self.ns.ifindex(link).unwrap()
    }

    /// Removes all links but the loopback link, with the programs on them.
    pub fn remove_links(&self) {
        const TRIES: usize = 10;
        for _ in 0..TRIES {
            let links = self.links();
            if links.is_empty() {
                return;
            }
            // The other end of a veth pair goes with the first.
            let first = links.iter().filter(|name| !name.ends_with("-p"));
            // A link whose other end was in a namespace that was removed may just have gone.
            drop(self.ns.ip(&first.map(|name| format!("link del {name}\n")).collect::<String>()));
        }
        panic!("links remain: {:?}", self.links());
    }

    /// Returns the names of the namespace's links, without the loopback link.
    fn links(&self) -> Vec<String> {
        let shown = self.ns.exec(&["ip", "-o", "link", "show"]).unwrap();
        let names = shown.lines().filter_map(|line| line.split([' ', '@', ':']).nth(2).map(str::to_owned));
        names.filter(|name| name != "lo").collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.ns);
    }
}

/// Removes a namespace in which no process runs. [`Ns::remove`] would look for processes first.
pub fn remove(ns: &Ns) {
    let _ = Command::new("ip").args(["netns", "del", ns.name()]).status();
}
