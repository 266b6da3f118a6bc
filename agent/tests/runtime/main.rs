//! A runtime that is not part of this project calls the plugin: Debian's containerd with runc,
//! driven through its Container Runtime Interface as kubelet drives it.
//!
//! Through this interface containerd makes the same calls as on a cluster's nodes
//! (`testdata/cni-calls`), with the same spelling of hostPorts and bandwidth. `ctr run --cni` would
//! pass neither capabilities nor `CNI_ARGS`, and podman calls plugins in a way of its own.
//!
//! Needs root, and what `cargo xtask setup` installs.

mod containerd;
mod cri;
mod footprint;
mod image;
mod kubelet;
mod manifest;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use xtask::lab::Lab;

use crate::containerd::Containerd;
use crate::cri::{
    ContainerConfig, ContainerMetadata, Cri, DnsConfig, ImageSpec, LinuxPodSandboxConfig, PodSandboxConfig,
    PodSandboxMetadata, PortMapping,
};
use crate::image::BUSYBOX;

const WEB_PORT: u16 = 8080;
/// The unspecified address of both families.
const WEB_LISTEN: &str = "[::]:8080";
/// How long a program may need to serve. Its container counts as started before that.
const SERVE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a container's last process may need to end after the runtime has answered the removal.
const GONE_DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn two_containerd_pods_reach_each_other_and_leave_nothing() -> Result<()> {
    let lab = Lab::builder().build()?;
    let node = lab.node(0);
    let runtime = Containerd::start(node)?;
    runtime.install_plugin(node)?;
    let cri = runtime.connect()?;
    wait_for_network(&cri)?;
    serve_in_the_world(&lab, &runtime)?;
    let before = (footprint::of_network(node)?, footprint::of_runtime(&runtime)?);

    let first = Pod::start(&cri, with_ports_and_bandwidth(sandbox("first", &runtime)))?;
    let second = Pod::start(&cri, sandbox("second", &runtime))?;
    let during = (footprint::of_network(node)?, footprint::of_runtime(&runtime)?);

    for pod in [&first, &second] {
        let shown = pod.exec(&[BUSYBOX, "ip", "address", "show", "dev", "eth0"])?;
        let networks = node.pod_cidrs();
        assert_eq!(pod.addresses.len(), networks.len(), "{:?}", pod.addresses);
        for (address, network) in pod.addresses.iter().zip(networks) {
            assert!(network.parse::<IpNet>()?.contains(address), "{address} is not of {network}");
            let host = IpNet::from(*address);
            assert!(shown.contains(&format!(" {host} ")), "{host} is not in {shown}");
        }
    }

    let elsewhere = lab.node(1).add_pod("elsewhere")?;
    for (index, world) in lab.world_addresses().into_iter().enumerate() {
        let [first_address, second_address] = [&first, &second].map(|pod| pod.addresses[index]);
        let (node_address, elsewhere_address) = (node.addresses()[index], elsewhere.addresses()[index]);
        assert_ne!(first_address, second_address);
        // Each server sees the client's own address.
        assert_eq!(peer_seen(second_address, |command| first.exec(command))?, first_address);
        assert_eq!(peer_seen(first_address, |command| second.exec(command))?, second_address);
        assert_eq!(peer_seen(second_address, |command| elsewhere.exec(command))?, elsewhere_address);
        // Kubelet's probes come from the node's address.
        assert_eq!(peer_seen(first_address, |command| node.exec(command))?, node_address);
        // The world sees only nodes' addresses.
        for pod in [&first, &second] {
            assert_eq!(peer_seen(world, |command| pod.exec(command))?, node_address);
        }
    }

    // While the pods ran, each kind of object had at least one more for each pod. So the comparison
    // below finds what is left of any kind.
    for (before, during) in [(&before.0, &during.0), (&before.1, &during.1)] {
        for (kind, found) in during {
            let new = found.len() - before[kind].len();
            assert!(new >= 2, "{new} more of the kind \"{kind}\" while two pods run: {found:#?}");
        }
    }
    first.remove()?;
    second.remove()?;
    // Compare at once, before the agent could sweep anything.
    assert_eq!(footprint::differences(&before.0, &footprint::of_network(node)?), [""; 0]);
    eventually("nothing of the runtime's is left", GONE_DEADLINE, || {
        let differences = footprint::differences(&before.1, &footprint::of_runtime(&runtime)?);
        ensure!(differences.is_empty(), "{differences:#?}");
        Ok(())
    })
}

/// A sandbox with one container, which serves the client's address.
struct Pod<'a> {
    cri: &'a Cri,
    sandbox: String,
    container: String,
    addresses: Vec<IpAddr>,
}

impl<'a> Pod<'a> {
    fn start(cri: &'a Cri, config: PodSandboxConfig) -> Result<Self> {
        let sandbox = cri.run_sandbox(&config)?;
        let addresses = cri.sandbox_addresses(&sandbox)?;
        let addresses: Result<_, _> = addresses.iter().map(|address| address.parse()).collect();
        let addresses = addresses.context("read the sandbox's addresses")?;
        let serve = [BUSYBOX, "httpd", "-f", "-p", WEB_LISTEN, "-h", image::WEB_FOLDER];
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "server".into() }),
            image: Some(ImageSpec { image: image::NAME.into() }),
            command: serve.map(str::to_owned).to_vec(),
            log_path: "server.log".into(),
            ..ContainerConfig::default()
        };
        let container = cri.start_container(&sandbox, &config, container)?;
        Ok(Self { cri, sandbox, container, addresses })
    }

    fn exec(&self, command: &[&str]) -> Result<String> {
        self.cri.exec(&self.container, command)
    }

    /// Removes the pod as kubelet does: it stops the sandbox, and its network with it, before it
    /// removes the sandbox.
    fn remove(self) -> Result<()> {
        self.cri.remove_container(&self.container)?;
        self.cri.stop_sandbox(&self.sandbox)?;
        self.cri.remove_sandbox(&self.sandbox)
    }
}

fn sandbox(name: &str, runtime: &Containerd) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: format!("{name}-of-the-runtime-test"),
            namespace: "default".into(),
        }),
        log_directory: format!("/var/lib/pods/{name}"),
        dns_config: Some(DnsConfig { servers: vec!["10.96.0.10".into()] }),
        port_mappings: Vec::new(),
        annotations: BTreeMap::new(),
        linux: Some(LinuxPodSandboxConfig { cgroup_parent: runtime.cgroup(), security_context: None }),
    }
}

/// Adds a hostPort and a bandwidth limit, which the runtime passes to the plugin in its own
/// spelling.
fn with_ports_and_bandwidth(config: PodSandboxConfig) -> PodSandboxConfig {
    PodSandboxConfig {
        port_mappings: vec![PortMapping { container_port: WEB_PORT.into(), host_port: 9088 }],
        annotations: BTreeMap::from([("kubernetes.io/ingress-bandwidth".to_owned(), "50M".to_owned())]),
        ..config
    }
}

/// Starts the containers' web server in the world. It goes into the background when it listens, and
/// ends with the lab.
fn serve_in_the_world(lab: &Lab, runtime: &Containerd) -> Result<()> {
    let folder = runtime.web_folder();
    lab.world().exec(&[BUSYBOX, "httpd", "-p", WEB_LISTEN, "-h", &folder.to_string_lossy()])?;
    Ok(())
}

/// Asks the web server at an address for the client's address: TCP in both directions. Busybox's
/// `wget` is no choice: Debian's static one crashes.
fn peer_seen(server: IpAddr, execute: impl Fn(&[&str]) -> Result<String>) -> Result<IpAddr> {
    let request = format!("printf 'GET {} HTTP/1.0\\r\\n\\r\\n'", image::PEER_PAGE);
    let command = format!("{request} | {BUSYBOX} nc -w 5 {server} {WEB_PORT}");
    eventually("the web server answers", SERVE_DEADLINE, || {
        let answer = execute(&[BUSYBOX, "sh", "-c", &command])?;
        // Busybox writes an IPv6 address in brackets, and a client of IPv4 v4-mapped.
        let peer = answer.lines().last().unwrap_or_default().trim_matches(['[', ']']);
        let peer: Result<IpAddr, _> = peer.parse();
        let peer = peer.with_context(|| format!("the web server at {server} answered {answer:?}"))?;
        Ok(peer.to_canonical())
    })
}

/// Waits until the runtime has read the network configuration and can start pods.
fn wait_for_network(cri: &Cri) -> Result<()> {
    eventually("the runtime's network is ready", SERVE_DEADLINE, || {
        ensure!(cri.is_ready()?);
        Ok(())
    })
}

/// Tries until it succeeds. After the deadline it returns the last error.
fn eventually<T>(what: &str, deadline: Duration, attempt: impl Fn() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > deadline => {
                return Err(error).with_context(|| format!("wait {} s until {what}", deadline.as_secs()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
