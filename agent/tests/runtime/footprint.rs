//! What a pod leaves on a node: in the kernel, in the maps, on disk and in the runtime.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use podwire_common::names::maps;
use serde_json::Value;
use xtask::lab::Node;

use crate::containerd::Containerd;

/// The objects of each kind. Two footprints are equal if no object came or went between them.
pub type Footprint = BTreeMap<&'static str, Vec<String>>;

/// Returns what the plugin and the agent make for a pod. All of it is gone when DEL is answered.
pub fn of_network(node: &Node) -> Result<Footprint> {
    Ok(sorted(Footprint::from([
        ("link", shown(node, &["link", "show"], "ifname")?),
        ("IPv4 route", shown(node, &["-4", "route", "show", "table", "all"], "dst")?),
        ("IPv6 route", shown(node, &["-6", "route", "show", "table", "all"], "dst")?),
        ("endpoint in the map", texts(&node.map_dump(maps::ENDPOINTS)?)?),
        ("endpoint on disk", names(&node.state_dir().join("endpoints"))?),
    ])))
}

/// Returns what the runtime makes for a pod.
pub fn of_runtime(runtime: &Containerd) -> Result<Footprint> {
    let cgroups = runtime.cgroup_folders()?;
    let mut footprint = Footprint::from([
        ("process", runtime.processes()?.into_iter().map(|process| process.name).collect()),
        ("mount", runtime.mounts()?),
        ("control group", cgroups.iter().map(|folder| folder.display().to_string()).collect()),
    ]);
    for (kind, folder) in [
        ("network namespace", "/run/netns"),
        ("CNI result", "/var/lib/cni/results"),
        ("task", "/run/containerd/io.containerd.runtime.v2.task/k8s.io"),
        ("runc container", "/run/containerd/runc/k8s.io"),
        ("sandbox", "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes"),
        ("container", "/var/lib/containerd/io.containerd.grpc.v1.cri/containers"),
    ] {
        footprint.insert(kind, names(&runtime.file(folder)?)?);
    }
    Ok(sorted(footprint))
}

/// Lists what came and what went between two footprints.
pub fn differences(before: &Footprint, after: &Footprint) -> Vec<String> {
    let mut differences = Vec::new();
    for (kind, before) in before {
        let after = &after[kind];
        let left = after.iter().filter(|name| !before.contains(name));
        let lost = before.iter().filter(|name| !after.contains(name));
        differences.extend(left.map(|name| format!("left: {kind} {name}")));
        differences.extend(lost.map(|name| format!("lost: {kind} {name}")));
        if after.len() != before.len() {
            differences.push(format!("{kind}: {} became {}", before.len(), after.len()));
        }
    }
    differences
}

fn sorted(mut footprint: Footprint) -> Footprint {
    footprint.values_mut().for_each(|found| found.sort());
    footprint
}

/// Returns one field of each object that `ip` lists.
fn shown(node: &Node, what: &[&str], field: &str) -> Result<Vec<String>> {
    let shown = node.exec(&[&["ip", "-json"], what].concat())?;
    let objects: Vec<Value> = serde_json::from_str(&shown)?;
    let names = objects.iter().map(|object| object[field].as_str().map(str::to_owned));
    names.collect::<Option<_>>().with_context(|| format!("an object without {field}: {shown}"))
}

fn texts(list: &Value) -> Result<Vec<String>> {
    Ok(list.as_array().context("the dump is no list")?.iter().map(Value::to_string).collect())
}

/// Lists a folder. A folder that does not exist counts as empty.
fn names(folder: &Path) -> Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("list {}", folder.display())),
    }
}
