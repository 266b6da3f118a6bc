//! Kubernetes knows every field of the manifests. The tests decode each document into Kubernetes'
//! own types, which drop unknown fields.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use xtask::manifests;

use crate::documents;

/// The fields of Prometheus Operator's PodMonitor that the chart uses, by the operator's definition.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodMonitor {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: PodMonitorSpec,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodMonitorSpec {
    selector: LabelSelector,
    pod_metrics_endpoints: Vec<PodMetricsEndpoint>,
}

#[derive(Serialize, Deserialize)]
struct PodMetricsEndpoint {
    port: String,
    relabelings: Vec<RelabelConfig>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RelabelConfig {
    source_labels: Vec<String>,
    target_label: String,
}

#[test]
fn every_document_comes_through_kubernetes_types_without_a_loss() -> Result<()> {
    for (path, text) in manifests::for_kubectl()? {
        for document in documents::parse(&text)? {
            check(&document).with_context(|| format!("{}: {}", path.display(), document["kind"]))?;
        }
    }
    for release in documents::other_releases() {
        for document in documents::rendered(&release)? {
            check(&document).with_context(|| format!("{release:?}: {}", document["kind"]))?;
        }
    }
    Ok(())
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_named() -> Result<()> {
    let text = manifests::for_kubectl()?.into_values().next().context("no manifest")?;
    let mut agent = documents::find(&documents::parse(&text)?, "DaemonSet", "podwire")?.clone();
    agent["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] =
        json!(true);
    let refusal = check(&agent).unwrap_err().to_string();
    let path = "/spec/template/spec/containers/0/securityContext/readOnlyRootFileSystem";
    assert!(refusal.contains(path), "{refusal}");
    Ok(())
}

fn check(document: &Value) -> Result<()> {
    match (document["apiVersion"].as_str(), document["kind"].as_str()) {
        (Some("v1"), Some("ServiceAccount")) => round_trip::<ServiceAccount>(document),
        (Some("v1"), Some("ConfigMap")) => round_trip::<ConfigMap>(document),
        (Some("v1"), Some("Service")) => round_trip::<Service>(document),
        (Some("monitoring.coreos.com/v1"), Some("PodMonitor")) => round_trip::<PodMonitor>(document),
        (Some("apps/v1"), Some("DaemonSet")) => round_trip::<DaemonSet>(document),
        (Some("rbac.authorization.k8s.io/v1"), Some("ClusterRole")) => round_trip::<ClusterRole>(document),
        (Some("rbac.authorization.k8s.io/v1"), Some("ClusterRoleBinding")) => {
            round_trip::<ClusterRoleBinding>(document)
        }
        (Some("rbac.authorization.k8s.io/v1"), Some("Role")) => round_trip::<Role>(document),
        (Some("rbac.authorization.k8s.io/v1"), Some("RoleBinding")) => round_trip::<RoleBinding>(document),
        (Some("admissionregistration.k8s.io/v1"), Some("ValidatingAdmissionPolicy")) => {
            round_trip::<ValidatingAdmissionPolicy>(document)
        }
        (Some("admissionregistration.k8s.io/v1"), Some("ValidatingAdmissionPolicyBinding")) => {
            round_trip::<ValidatingAdmissionPolicyBinding>(document)
        }
        other => bail!("{other:?} is of no kind that is compared here"),
    }
}

fn round_trip<T: Serialize + DeserializeOwned>(document: &Value) -> Result<()> {
    let decoded: T = serde_json::from_value(document.clone())?;
    let differences = differences(document, &serde_json::to_value(decoded)?, "");
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// Lists the differences between two values, each with its path.
fn differences(given: &Value, kept: &Value, path: &str) -> Vec<String> {
    match (given, kept) {
        (Value::Object(given_fields), Value::Object(kept_fields)) => {
            let names: std::collections::BTreeSet<_> =
                given_fields.keys().chain(kept_fields.keys()).collect();
            let below = names.into_iter().map(|name| {
                let missing = Value::Null;
                let (given, kept) = (given.get(name), kept.get(name));
                let path = format!("{path}/{name}");
                differences(given.unwrap_or(&missing), kept.unwrap_or(&missing), &path)
            });
            below.flatten().collect()
        }
        (Value::Array(given), Value::Array(kept)) if given.len() == kept.len() => {
            let pairs = given.iter().zip(kept).enumerate();
            pairs
                .flat_map(|(index, (one, other))| differences(one, other, &format!("{path}/{index}")))
                .collect()
        }
        _ if given == kept => Vec::new(),
        _ => vec![format!("{path}: {given} becomes {kept}")],
    }
}
