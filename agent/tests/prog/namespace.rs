//! The network namespace of a node in these tests.

use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use podwire_common::addr::Mac;

/// A network namespace that the calling thread enters. It is removed when this value is dropped.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    /// Makes a namespace and moves the calling thread there.
    pub fn enter() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("pwprog-{}-{number}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let namespace = Self { name };
        let file = std::fs::File::open(format!("/run/netns/{}", namespace.name)).unwrap();
        rustix::thread::move_into_link_name_space(
            file.as_fd(),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )
        .expect("enter the test's network namespace (are we root?)");
        namespace
    }

    /// Runs `ip` in the namespace.
    pub fn ip(&self, arguments: &str) {
        let arguments: Vec<&str> = ["-n", &self.name].into_iter().chain(arguments.split(' ')).collect();
        run("ip", &arguments);
    }

    /// Removes all links but the loopback link, with the programs on them.
    pub fn remove_links(&self) {
        for link in links(&self.name) {
            // The link goes with the other end of its veth pair.
            let _ = Command::new("ip").args(["-n", &self.name, "link", "del", &link]).output();
        }
        assert_eq!(links(&self.name), [""; 0]);
    }

    /// Adds one end of a veth pair; returns its ifindex.
    pub fn add_link(&self, name: &str, mac: [u8; 6]) -> u32 {
        let mac = Mac { bytes: mac };
        self.ip(&format!("link add {name} address {mac:?} type veth peer name {name}-p"));
        self.ip(&format!("link set {name} up"));
        self.ip(&format!("link set {name}-p up"));
        let index = run("ip", &["-n", &self.name, "-o", "link", "show", name]);
        index.split(':').next().unwrap().trim().parse().unwrap()
    }
}

/// Returns the names of the namespace's links, without the loopback link.
fn links(name: &str) -> Vec<String> {
    let shown = run("ip", &["-n", name, "-o", "link", "show"]);
    let names = shown.lines().filter_map(|line| line.split([' ', '@', ':']).nth(2).map(str::to_owned));
    names.filter(|name| name != "lo").collect()
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {error}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}
