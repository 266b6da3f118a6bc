//! The manifests for kubectl, run as kubelet runs them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::rbac::v1::ClusterRole;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use xtask::api_server::Certificate;
use xtask::lab::traffic::{Datagrams, Route, ping};
use xtask::lab::{Lab, Node, Ns};

use crate::containerd::{Containerd, NETWORKS, PLUGINS};
use crate::cri::Cri;
use crate::kubelet::Kubelet;
use crate::{Pod, SERVE_DEADLINE, eventually, image, sandbox, wait_for_network};

/// The node's folders that Podwire writes to, at the paths that the manifests give.
const FOLDERS: [&str; 5] = [PLUGINS, NETWORKS, "/run/podwire", "/var/lib/podwire", "/sys/fs/bpf"];

/// The owner of CNI's folders on a node where another tool has made them.
const OTHER_OWNER: u32 = 999;

/// An address on the underlay: the API server runs on no node.
const API_SERVER: &str = "10.200.0.254";
const PORT: u16 = 6443;
const TOKEN: &str = "of-the-service-account-of-this-pod";

/// The kernel's report about an agent with the manifest's rights:
///
/// - CAP_DAC_OVERRIDE (1), CAP_NET_ADMIN (12), CAP_PERFMON (38) and CAP_BPF (39)
/// - a filter of system calls
/// - no way to get more rights
const RIGHTS: [(&str, &str); 5] = [
    ("CapEff", "000000c000001002"),
    ("CapPrm", "000000c000001002"),
    ("CapBnd", "000000c000001002"),
    ("Seccomp", "2"),
    ("NoNewPrivs", "1"),
];

#[test]
fn manifests_install_roll_and_uninstall_and_leave_nothing() -> Result<()> {
    let lab = Lab::builder().agents(false).build()?;
    let (node, neighbour) = (lab.node(0), lab.node(1));
    neighbour.start_agent()?;
    let runtime = Containerd::start(node)?;
    runtime.import(&image::podwire(runtime.folder())?)?;
    let cri = runtime.connect()?;
    let kubelet = kubelet(&cri, &runtime, &lab)?;
    for folder in [PLUGINS, NETWORKS] {
        let folder = runtime.file(folder)?;
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        chown(&folder, Some(OTHER_OWNER), Some(OTHER_OWNER))?;
    }
    let before = footprint(node, &runtime)?;
    ensure!(!cri.is_ready()?, "the runtime has a network although nothing was installed");

    declare_network_unavailable(&lab)?;
    let agent: DaemonSet = of_manifest("podwire.yaml", "DaemonSet")?;
    let first_agent = kubelet.start(&agent)?;
    wait_for_network(&cri)?;
    eventually("the condition NetworkUnavailable is no longer true", SERVE_DEADLINE, || {
        ensure!(!is_network_unavailable(&lab)?);
        Ok(())
    })?;
    let status = runtime.process_status("podwire")?;
    for (field, value) in RIGHTS {
        assert_eq!(status[field], value, "{field} of the agent");
    }
    let first = Pod::start(&cri, sandbox("first", &runtime))?;
    let elsewhere = neighbour.add_pod("elsewhere")?;
    let first_namespace = only_namespace(&runtime)?;
    let second = Pod::start(&cri, sandbox("second", &runtime))?;
    let reach_all = || -> Result<()> {
        let (nodes, world) = (neighbour.addresses(), lab.world_addresses());
        for address in [&second.addresses, elsewhere.addresses(), &nodes, &world].into_iter().flatten() {
            ping(&first_namespace, *address, 56).with_context(|| format!("the first pod to {address}"))?;
        }
        for from in [node as &Ns, neighbour, &elsewhere] {
            first.addresses.iter().try_for_each(|address| ping(from, *address, 56).map(drop))?;
        }
        Ok(())
    };
    reach_all()?;

    let start = |(port, address): (u16, &IpAddr)| {
        Datagrams::start(&elsewhere, &first_namespace, Route::to(*address, port))
    };
    let datagrams = (7000..).zip(&first.addresses).map(start).collect::<Result<Vec<_>>>()?;
    kubelet.stop(&first_agent)?;
    ensure!(cri.is_ready()?, "the network configuration went with the agent");
    reach_all()?;
    datagrams.iter().try_for_each(|datagrams| datagrams.wait_for(200))?;
    // The API server behaves like one that cannot begin a watch with a list, so the agent asks for
    // the list.
    lab.api_server()?.stream_lists(false);
    let second_agent = kubelet.start(&agent)?;
    datagrams.iter().try_for_each(|datagrams| datagrams.wait_for(200))?;
    for datagrams in datagrams {
        for count in datagrams.finish()? {
            ensure!(count.lost() == 0, "{} of {} datagrams were lost", count.lost(), count.sent);
        }
    }
    reach_all()?;
    Pod::start(&cri, sandbox("third", &runtime))?.remove()?;

    first.remove()?;
    second.remove()?;
    kubelet.stop(&second_agent)?;
    let uninstall: DaemonSet = of_manifest("uninstall.yaml", "DaemonSet")?;
    let uninstalled = kubelet.start(&uninstall)?;
    kubelet.stop(&uninstalled)?;
    assert_eq!(footprint(node, &runtime)?, before);
    compare_with_the_rights(&lab)
}

fn kubelet<'a>(cri: &'a Cri, runtime: &'a Containerd, lab: &'a Lab) -> Result<Kubelet<'a>> {
    let certificate = Certificate::new(&[API_SERVER])?;
    let underlay = lab.underlay().clone();
    let bind = move || underlay.enter(|| TcpListener::bind((API_SERVER, PORT))).map_err(io::Error::other)?;
    let authority = certificate.pem().to_owned();
    lab.api_server()?.listen(bind, Some(certificate))?;
    lab.api_server()?.only_tokens(&[TOKEN]);
    Ok(Kubelet {
        cri,
        runtime,
        node: lab.node(0),
        config_maps: vec![of_manifest("podwire.yaml", "ConfigMap")?],
        service_variables: vec![
            ("KUBERNETES_SERVICE_HOST".to_owned(), API_SERVER.to_owned()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), PORT.to_string()),
        ],
        token: TOKEN.to_owned(),
        authority,
    })
}

/// Sets the condition that a cloud provider sets on a new node.
fn declare_network_unavailable(lab: &Lab) -> Result<()> {
    let server = lab.api_server()?;
    let mut node = server.node(lab.node(0).name()).context("the node is not there")?;
    let conditions = node["status"]["conditions"].as_array_mut().context("a node without conditions")?;
    conditions.push(json!({ "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated" }));
    server.put(node);
    Ok(())
}

fn is_network_unavailable(lab: &Lab) -> Result<bool> {
    let node = lab.api_server()?.node(lab.node(0).name()).context("the node is not there")?;
    let conditions = node["status"]["conditions"].as_array().context("a node without conditions")?;
    Ok(conditions.iter().any(|one| one["type"] == "NetworkUnavailable" && one["status"] == "True"))
}

/// Asserts that the manifest's role allows the agent's requests and nothing else. Resources and
/// verbs are derived from requests as the API server derives them.
fn compare_with_the_rights(lab: &Lab) -> Result<()> {
    let role: ClusterRole = of_manifest("podwire.yaml", "ClusterRole")?;
    let rules = role.rules.context("a role without rules")?;
    let name = lab.node(0).name();
    let mut used = BTreeSet::new();
    for request in lab.api_server()?.requests() {
        let (method, target) = request.split_once(' ').context("a request without a target")?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        used.insert(match (method, path) {
            ("GET", "/api/v1/nodes") if query.contains("watch=") => ("nodes", "watch"),
            ("GET", "/api/v1/nodes") => ("nodes", "list"),
            ("PATCH", path) if path == format!("/api/v1/nodes/{name}/status") => ("nodes/status", "patch"),
            // Only a condition that lasts has Events. The layer `kube` compares their Role.
            (_, path) if path.starts_with("/apis/events.k8s.io/v1/namespaces/default/events") => continue,
            _ => bail!("{request}: the test does not know its right"),
        });
    }
    let granted: BTreeSet<(&str, &str)> = rules
        .iter()
        .flat_map(|rule| {
            let resources = rule.resources.iter().flatten();
            resources.flat_map(|resource| rule.verbs.iter().map(move |verb| (&**resource, &**verb)))
        })
        .collect();
    assert_eq!(granted, used);
    Ok(())
}

/// Returns the only document of a kind in a manifest.
fn of_manifest<T: DeserializeOwned>(file: &str, kind: &str) -> Result<T> {
    let path = xtask::manifests::root().join("manifests").join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    let found = documents.into_iter().find(|document| document["kind"] == kind);
    Ok(serde_json::from_value(found.with_context(|| format!("{file} has no {kind}"))?)?)
}

/// Returns the network namespace of the runtime's only pod that has its own.
fn only_namespace(runtime: &Containerd) -> Result<Ns> {
    let folder = runtime.file("/run/netns")?;
    let found: Vec<PathBuf> = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let [path] = &found[..] else { bail!("{} pods have a namespace", found.len()) };
    Ns::at(path)
}

/// Lists a node's objects of the kinds that an agent or a plugin makes.
fn footprint(node: &Node, runtime: &Containerd) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found = BTreeMap::new();
    for command in [
        &["ip", "-oneline", "link", "show"][..],
        &["ip", "-oneline", "address", "show"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "rule", "show"],
        &["tc", "filter", "show", "dev", "eth0", "ingress"],
        &["tc", "qdisc", "show"],
        &["bpftool", "net", "show"],
        &["sysctl", "net.ipv4.ip_forward", "net.ipv4.conf.eth0", "net.ipv4.conf.all"],
        &["sysctl", "net.ipv6.conf.all.forwarding", "net.ipv6.conf.eth0.forwarding"],
        &["sysctl", "net.ipv6.conf.all.accept_ra", "net.ipv6.conf.eth0.accept_ra"],
    ] {
        found.insert(command.join(" "), node.exec(command)?.lines().map(str::to_owned).collect());
    }
    for folder in FOLDERS {
        let mut files = Vec::new();
        collect(&runtime.file(folder)?, &mut files)?;
        files.sort();
        found.insert(folder.to_owned(), files);
    }
    Ok(found)
}

/// Adds the files and folders below a folder. A folder that does not exist adds none.
fn collect(folder: &Path, files: &mut Vec<String>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("list {}", folder.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        files.push(entry.path().display().to_string());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        }
    }
    Ok(())
}
