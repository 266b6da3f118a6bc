//! Manifests as JSON values.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::manifests::Release;

/// Parses each document of a text.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).with_context(|| format!("parse:\n{text}"))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// Renders the chart with these values.
pub fn rendered_with(values: Value) -> Result<Vec<Value>> {
    rendered(&Release { values, ..Release::default() })
}

/// Renders each document of a release.
pub fn rendered(release: &Release) -> Result<Vec<Value>> {
    let mut documents = Vec::new();
    for (name, text) in release.render()? {
        documents.extend(parse(&text).with_context(|| format!("the template {name}"))?);
    }
    Ok(documents)
}

/// Returns the default release and three others: one for k3s, one with a private registry, one with
/// a Prometheus. Each of the three sets many values at once.
pub fn other_releases() -> Vec<Release> {
    let of_k3s = json!({
        "cni": {
            "binDir": "/var/lib/rancher/k3s/data/cni",
            "confDir": "/var/lib/rancher/k3s/agent/etc/cni/net.d",
        },
        "metrics": { "address": "::" },
        "config": { "mode": "direct", "uplink": ["eth0", "eth1"], "mtu": 1400, "log-level": "off" },
        "nonMasquerade": ["10.0.0.0/8", "172.16.0.0/12"],
        "maxUnavailable": 1,
        "nodeSelector": { "pod-network": "podwire" },
    });
    let private = json!({
        "image": { "repository": "registry.invalid/own/podwire", "tag": "test", "pullPolicy": "Always",
            "pullSecrets": [{ "name": "own" }] },
        "metrics": { "address": "0.0.0.0", "port": 19790 },
        "resources": { "limits": { "memory": "1Gi" } },
        "seccompProfile": "Unconfined",
    });
    let scraped = json!({
        "metrics": {
            "address": "node",
            "podMonitor": { "enabled": true, "labels": { "release": "monitoring" } },
            "service": { "enabled": true, "annotations": { "prometheus.io/scrape": "true" } },
        },
    });
    vec![
        Release::default(),
        Release { values: of_k3s, ..Release::default() },
        Release { values: private, namespace: "podwire-system".to_owned() },
        Release { values: scraped, ..Release::default() },
    ]
}

/// Returns the document of a kind and name.
pub fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let found = documents.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.with_context(|| format!("there is no {kind} {name}"))
}

/// Returns the containers of a DaemonSet, init containers first.
pub fn containers(daemon_set: &Value) -> Result<Vec<&Value>> {
    let pod = &daemon_set["spec"]["template"]["spec"];
    let lists = [&pod["initContainers"], &pod["containers"]];
    let containers: Vec<&Value> = lists.into_iter().filter_map(Value::as_array).flatten().collect();
    ensure!(!containers.is_empty(), "a DaemonSet without containers: {daemon_set}");
    Ok(containers)
}

/// Returns the strings of a list.
pub fn words(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Returns the folders that a container sees, with the names of their volumes.
pub fn mounts(container: &Value) -> BTreeMap<&str, &str> {
    let mounts = container["volumeMounts"].as_array().into_iter().flatten();
    mounts.filter_map(|mount| Some((mount["mountPath"].as_str()?, mount["name"].as_str()?))).collect()
}
