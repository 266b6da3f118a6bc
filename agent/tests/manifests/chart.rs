//! The chart and the manifests rendered from it.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::manifests::{self, Release};

use crate::documents::{self, containers, find, rendered_with, words};

#[test]
fn the_manifests_for_kubectl_are_what_the_chart_renders() -> Result<()> {
    for (path, text) in manifests::for_kubectl()? {
        let there = fs::read_to_string(manifests::root().join(&path))?;
        assert!(there == text, "{} is stale: run `cargo xtask manifests`", path.display());
    }
    Ok(())
}

#[test]
fn a_hook_and_only_a_hook_is_left_to_the_manifest_of_its_own() -> Result<()> {
    for (path, text) in manifests::for_kubectl()? {
        for document in documents::parse(&text)? {
            let is_hook = !document["metadata"]["annotations"]["helm.sh/hook"].is_null();
            assert_eq!(is_hook, path.ends_with("uninstall.yaml"), "{}: {}", path.display(), document["kind"]);
        }
    }
    Ok(())
}

#[test]
fn values_reach_what_they_are_for() -> Result<()> {
    let [_, of_k3s, private, _] = &documents::other_releases()[..] else { panic!("four releases") };
    let documents = documents::rendered(of_k3s)?;
    let data = &find(&documents, "ConfigMap", "podwire")?["data"];
    let config: Value = serde_saphyr::from_str(data["config.yaml"].as_str().context("no config.yaml")?)?;
    assert_eq!(
        config,
        json!({ "mode": "direct", "uplink": ["eth0", "eth1"], "mtu": 1400, "log-level": "off" })
    );
    assert_eq!(data["non-masquerade"], "10.0.0.0/8\n172.16.0.0/12\n");
    for name in ["podwire", "podwire-uninstall"] {
        let daemon_set = find(&documents, "DaemonSet", name)?;
        let labels =
            json!({ "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "pod-network": "podwire" });
        assert_eq!(daemon_set["spec"]["template"]["spec"]["nodeSelector"], labels);
        let text = daemon_set.to_string();
        for start in ["\"", "="] {
            for place in ["/opt/cni", "/etc/cni"] {
                assert!(!text.contains(&format!("{start}{place}")), "{name}: {text}");
            }
        }
    }

    let agent = &find(&documents, "DaemonSet", "podwire")?["spec"]["template"]["spec"]["containers"][0];
    assert!(words(&agent["args"]).contains(&"--metrics-address=[::]:9790"));

    let documents = documents::rendered(private)?;
    for document in documents.iter().filter(|one| !one["metadata"]["namespace"].is_null()) {
        // Events about nodes are in the namespace `default`.
        let is_for_events = matches!(document["kind"].as_str(), Some("Role" | "RoleBinding"));
        let namespace = if is_for_events { "default" } else { "podwire-system" };
        assert_eq!(document["metadata"]["namespace"], namespace, "{}", document["kind"]);
    }
    for binding in ["ClusterRoleBinding", "RoleBinding"] {
        let subject = &find(&documents, binding, "podwire")?["subjects"][0];
        assert_eq!(subject["namespace"], "podwire-system", "{binding}");
    }
    for name in ["podwire", "podwire-uninstall"] {
        let daemon_set = find(&documents, "DaemonSet", name)?;
        assert_eq!(daemon_set["spec"]["template"]["spec"]["imagePullSecrets"], json!([{ "name": "own" }]));
        for container in containers(daemon_set)? {
            assert_eq!(container["image"], "registry.invalid/own/podwire:test");
            assert_eq!(container["imagePullPolicy"], "Always");
        }
    }
    let pod = &find(&documents, "DaemonSet", "podwire")?["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["seccompProfile"], json!({ "type": "Unconfined" }));
    let agent = &pod["containers"][0];
    assert!(words(&agent["args"]).contains(&"--metrics-address=0.0.0.0:19790"));
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(agent[probe]["httpGet"]["port"], 19790, "{probe}");
    }
    Ok(())
}

#[test]
fn a_prometheus_of_the_cluster_finds_the_agents() -> Result<()> {
    let releases = documents::other_releases();
    let documents = documents::rendered(releases.last().context("no release")?)?;
    let pod = &find(&documents, "DaemonSet", "podwire")?["spec"]["template"];
    let agent = &pod["spec"]["containers"][0];
    // kubelet's probes ask 127.0.0.1.
    assert!(words(&agent["args"]).contains(&"--metrics-address=127.0.0.1:9790"));
    let variables = agent["env"].as_array().context("no variables")?;
    let addresses = variables.iter().find(|one| one["name"] == "PODWIRE_METRICS_NODE_ADDRESSES");
    assert_eq!(
        addresses.context("no addresses")?["valueFrom"],
        json!({ "fieldRef": { "fieldPath": "status.hostIPs" } })
    );
    assert_eq!(agent["ports"], json!([{ "name": "metrics", "containerPort": 9790, "hostPort": 9790 }]));

    let monitor = find(&documents, "PodMonitor", "podwire")?;
    let service = find(&documents, "Service", "podwire-metrics")?;
    for selector in [&monitor["spec"]["selector"]["matchLabels"], &service["spec"]["selector"]] {
        let labels = selector.as_object().context("no labels")?;
        assert!(labels.iter().all(|(name, value)| pod["metadata"]["labels"][name] == *value), "{labels:?}");
        let uninstall = &find(&documents, "DaemonSet", "podwire-uninstall")?["spec"]["template"];
        let is_another = labels.iter().any(|(name, value)| uninstall["metadata"]["labels"][name] != *value);
        assert!(is_another, "{labels:?}");
    }
    assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["port"], "metrics");
    assert_eq!(monitor["metadata"]["labels"]["release"], "monitoring");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "metrics");
    assert_eq!(service["metadata"]["annotations"], json!({ "prometheus.io/scrape": "true" }));
    Ok(())
}

#[test]
fn nothing_of_prometheus_is_made_unless_asked_for() -> Result<()> {
    for release in &documents::other_releases()[..3] {
        let documents = documents::rendered(release)?;
        for kind in ["PodMonitor", "Service"] {
            assert!(documents.iter().all(|one| one["kind"] != kind), "{kind}: {release:?}");
        }
    }
    let documents = rendered_with(json!({}))?;
    let daemon_set = find(&documents, "DaemonSet", "podwire")?;
    let agent = &daemon_set["spec"]["template"]["spec"]["containers"][0];
    assert!(agent["ports"].is_null() && !agent.to_string().contains("NODE_ADDRESSES"), "{agent}");
    for one in ["podMonitor", "service"] {
        let values = json!({ "metrics": { (one): { "enabled": true } } });
        let refusal = Release { values, ..Release::default() }.render().unwrap_err().to_string();
        assert!(refusal.contains("metrics.address=node"), "{one}: {refusal}");
    }
    Ok(())
}

#[test]
fn the_lines_for_kubectl_do_what_the_values_do() -> Result<()> {
    let [bin, conf] = ["/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/agent/etc/cni/net.d"];
    let k3s = format!("s#/opt/cni/bin#{bin}#g; s#/etc/cni/net.d#{conf}#g");
    let both = &["podwire", "podwire-uninstall"][..];
    for (script, names, values) in [
        (&*k3s, both, json!({ "cni": { "binDir": bin, "confDir": conf } })),
        (
            "s#podwire/podwire:#REGISTRY/podwire:#",
            both,
            json!({ "image": { "repository": "REGISTRY/podwire" } }),
        ),
        ("s#IfNotPresent#Never#", both, json!({ "image": { "pullPolicy": "Never" } })),
        ("s#RuntimeDefault#Unconfined#", &["podwire"], json!({ "seccompProfile": "Unconfined" })),
    ] {
        let rendered = rendered_with(values)?;
        for name in names {
            let file = format!("manifests/{}.yaml", name.trim_start_matches("podwire-"));
            let edited = documents::parse(&edited("docs/install.md", script, &file)?)?;
            assert_eq!(find(&edited, "DaemonSet", name)?, find(&rendered, "DaemonSet", name)?, "{script}");
        }
    }
    Ok(())
}

#[test]
fn lines_for_a_part_of_flannels_nodes_choose_them() -> Result<()> {
    for (script, file, name, label, value) in [
        (
            "s#kubernetes.io/os: linux#pod-network: podwire#",
            "manifests/podwire.yaml",
            "podwire",
            "pod-network",
            "podwire",
        ),
        (
            "s#kubernetes.io/os: linux#kubernetes.io/hostname: NODE#",
            "manifests/uninstall.yaml",
            "podwire-uninstall",
            "kubernetes.io/hostname",
            "NODE",
        ),
    ] {
        let documents = documents::parse(&edited("agent/src/migrate_flannel/steps.txt", script, file)?)?;
        let chosen = &find(&documents, "DaemonSet", name)?["spec"]["template"]["spec"]["nodeSelector"];
        assert_eq!(*chosen, json!({ label: value, "kubernetes.io/arch": "amd64" }));
    }
    Ok(())
}

/// Edits a manifest with a `sed` script, and returns the result. Fails unless the document `text`
/// tells operators to run this script on this manifest.
fn edited(text: &str, script: &str, file: &str) -> Result<String> {
    let told = fs::read_to_string(manifests::root().join(text))?;
    // One line may name both manifests.
    let line = told.lines().find(|line| line.contains(&format!("sed '{script}'")) && line.contains(file));
    line.with_context(|| format!("{text} lacks: sed '{script}' {file}"))?;
    let output = Command::new("sed").args([script, file]).current_dir(manifests::root()).output()?;
    ensure!(output.status.success(), "sed {script} {file}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn no_agent_and_no_removal_are_on_one_node() -> Result<()> {
    let documents = rendered_with(json!({}))?;
    let agent = &find(&documents, "DaemonSet", "podwire")?["spec"]["template"]["metadata"]["labels"];
    let uninstall = &find(&documents, "DaemonSet", "podwire-uninstall")?["spec"]["template"];
    let kept_off =
        &uninstall["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(kept_off[0]["topologyKey"], "kubernetes.io/hostname");
    let chosen = kept_off[0]["labelSelector"]["matchLabels"].as_object().context("no labels to match")?;
    let own = &uninstall["metadata"]["labels"];
    assert!(chosen.iter().all(|(name, value)| agent[name] == *value), "{chosen:?}");
    assert!(chosen.iter().any(|(name, value)| own[name] != *value), "an uninstall pod keeps off another");
    Ok(())
}

#[test]
fn a_word_that_helms_yaml_takes_for_a_boolean_stays_a_word() -> Result<()> {
    let list = fs::read_to_string(manifests::chart().join("config.yaml"))?;
    assert!(list.contains("\n#uplink-xdp: \"off\"\n"), "{list}");
    let documents = rendered_with(json!({ "config": { "uplink-xdp": "off" } }))?;
    let data = &find(&documents, "ConfigMap", "podwire")?["data"];
    let text = data["config.yaml"].as_str().context("no config.yaml")?;
    assert!(text.ends_with("\nuplink-xdp: \"off\"\n"), "{text}");
    // Without quotes helm reads `off` as a boolean, which the schema refuses. So no option may be a
    // boolean.
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(manifests::chart().join("values.schema.json"))?)?;
    let kinds = &schema["properties"]["config"]["additionalProperties"]["type"];
    assert_eq!(*kinds, json!(["string", "integer", "array"]));
    Ok(())
}

#[test]
fn new_configuration_rolls_the_pods_and_new_exclusions_do_not() -> Result<()> {
    let annotations = |values| -> Result<Value> {
        let documents = rendered_with(values)?;
        let agent = find(&documents, "DaemonSet", "podwire")?;
        Ok(agent["spec"]["template"]["metadata"]["annotations"].clone())
    };
    let before = annotations(json!({}))?;
    assert_ne!(annotations(json!({ "config": { "mtu": 1400 } }))?, before);
    assert_eq!(annotations(json!({ "nonMasquerade": ["10.0.0.0/8"] }))?, before);
    Ok(())
}

#[test]
fn a_value_that_is_missing_is_an_error() {
    let release = Release { values: json!({ "cni": "none" }), ..Release::default() };
    let refusal = release.render().unwrap_err().to_string();
    assert!(refusal.contains("binDir"), "{refusal}");
}

#[test]
fn the_schema_knows_every_value_and_no_other() -> Result<()> {
    let read = |name| fs::read_to_string(manifests::chart().join(name));
    let values: Value = serde_saphyr::from_str(&read("values.yaml")?)?;
    let mut schema: Value = serde_json::from_str(&read("values.schema.json")?)?;
    // Helm gives every chart this value, whether or not the chart uses it.
    schema["properties"].as_object_mut().context("no properties")?.remove("global");
    compare(&values, &schema, "")
}

/// Compares the keys of values and schema. Where the schema has no `properties`, the operator
/// chooses the keys.
fn compare(values: &Value, schema: &Value, path: &str) -> Result<()> {
    let Some(properties) = schema["properties"].as_object() else { return Ok(()) };
    let values = values.as_object().with_context(|| format!("{path} is no mapping"))?;
    assert_eq!(values.keys().collect::<Vec<_>>(), properties.keys().collect::<Vec<_>>(), "{path}");
    assert_eq!(schema["additionalProperties"], false, "{path}");
    for (name, schema) in properties {
        compare(&values[name], schema, &format!("{path}/{name}"))?;
    }
    Ok(())
}
