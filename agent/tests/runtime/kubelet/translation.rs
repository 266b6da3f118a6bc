//! Translates a pod's manifest into messages of the Container Runtime Interface.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{
    Container, EnvVar, PodSecurityContext, PodSpec, ResourceRequirements, SecurityContext,
};
use serde::Serialize;

use super::Kubelet;
use super::volumes::{TOKEN, Volumes};
use crate::cri::{
    Capability, ContainerConfig, ContainerMetadata, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, SeLinuxOption,
    SecurityProfile,
};

/// Where programs look for their pod's token.
const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The paths that the runtime hides in unprivileged containers for kubelet. `READ_ONLY` has those
/// that it makes read-only.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The fields that are translated below, or that matter only before a pod is on a node.
const OF_A_POD: [&str; 15] = [
    "affinity",
    "automountServiceAccountToken",
    "containers",
    "dnsPolicy",
    "hostNetwork",
    "imagePullSecrets",
    "initContainers",
    "nodeSelector",
    "priorityClassName",
    "securityContext",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "updateStrategy",
    "volumes",
];
const OF_ITS_SECURITY: [&str; 5] =
    ["appArmorProfile", "runAsGroup", "runAsUser", "seLinuxOptions", "seccompProfile"];
const OF_A_CONTAINER: [&str; 12] = [
    "args",
    "env",
    "image",
    "imagePullPolicy",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "volumeMounts",
];
const OF_THE_CONTAINERS_SECURITY: [&str; 3] =
    ["allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem"];

/// Checks that every field is translated.
pub fn refuse_what_is_not_known(spec: &PodSpec) -> Result<()> {
    only(spec, &OF_A_POD)?;
    only(&spec.security_context, &OF_ITS_SECURITY)?;
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        only(container, &OF_A_CONTAINER)?;
        only(&container.security_context, &OF_THE_CONTAINERS_SECURITY)?;
    }
    ensure!(spec.host_network == Some(true), "only pods in the node's network are known here");
    ensure!(spec.dns_policy.as_deref() == Some("Default"), "only the node's resolver is known here");
    Ok(())
}

fn only(value: &impl Serialize, known: &[&str]) -> Result<()> {
    let value = serde_json::to_value(value)?;
    for name in value.as_object().into_iter().flat_map(|fields| fields.keys()) {
        ensure!(known.contains(&name.as_str()), "{name} is not translated here");
    }
    Ok(())
}

impl Kubelet<'_> {
    pub(super) fn sandbox(&self, name: &str, namespace: &str, spec: &PodSpec) -> PodSandboxConfig {
        let security_context = LinuxSandboxSecurityContext { namespace_options: Some(namespaces(spec)) };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{name}-of-the-runtime-test"),
                namespace: namespace.to_owned(),
            }),
            log_directory: format!("/var/lib/pods/{name}"),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.runtime.cgroup(),
                security_context: Some(security_context),
            }),
            ..PodSandboxConfig::default()
        }
    }

    pub(super) fn container(
        &self,
        spec: &PodSpec,
        container: &Container,
        volumes: &Volumes,
    ) -> Result<ContainerConfig> {
        let image = container.image.as_deref().context("a container without an image")?;
        ensure!(self.cri.has_image(image)?, "the runtime has no image {image}");
        let variables = container.env.iter().flatten().map(|variable| self.variable(variable));
        let services = self.service_variables.iter().map(|(key, value)| Ok((key.clone(), value.clone())));
        let envs = services.chain(variables).map(|pair| pair.map(|(key, value)| KeyValue { key, value }));
        Ok(ContainerConfig {
            metadata: Some(ContainerMetadata { name: container.name.clone() }),
            image: Some(ImageSpec { image: image.to_owned() }),
            command: Vec::new(),
            args: container.args.clone().unwrap_or_default(),
            envs: envs.collect::<Result<_>>()?,
            mounts: mounts(container, volumes)?,
            log_path: format!("{}.log", container.name),
            linux: Some(LinuxContainerConfig {
                resources: Some(resources(container.resources.as_ref())?),
                security_context: Some(security(spec, container)?),
            }),
        })
    }

    fn variable(&self, variable: &EnvVar) -> Result<(String, String)> {
        let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
        let value = match (&variable.value, field.map(|field| field.field_path.as_str())) {
            (Some(value), None) => value.clone(),
            (None, Some("spec.nodeName")) => self.node.name().to_owned(),
            _ => bail!("the variable {} is of a kind that is not known here", variable.name),
        };
        Ok((variable.name.clone(), value))
    }
}

fn mounts(container: &Container, volumes: &Volumes) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let host_path =
            volumes.get(&mount.name).with_context(|| format!("there is no volume {}", mount.name))?;
        mounts.push(Mount {
            container_path: mount.mount_path.clone(),
            host_path: host_path.clone(),
            readonly: mount.read_only.unwrap_or_default(),
            propagation: match mount.mount_propagation.as_deref() {
                None | Some("None") => 0,
                Some("HostToContainer") => 1,
                other => bail!("the propagation {other:?} is not known here"),
            },
        });
    }
    if let Some(host_path) = volumes.get(TOKEN) {
        mounts.push(Mount {
            container_path: TOKEN_FOLDER.to_owned(),
            host_path: host_path.clone(),
            readonly: true,
            propagation: 0,
        });
    }
    Ok(mounts)
}

fn security(spec: &PodSpec, container: &Container) -> Result<LinuxContainerSecurityContext> {
    let (of_pod, own) = (PodSecurityContext::default(), SecurityContext::default());
    let of_pod = spec.security_context.as_ref().unwrap_or(&of_pod);
    let own = container.security_context.as_ref().unwrap_or(&own);
    let capabilities = own.capabilities.as_ref();
    let label = of_pod.se_linux_options.clone().unwrap_or_default();
    let number = |value: Option<i64>| value.map(|value| Int64Value { value });
    Ok(LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: capabilities.and_then(|them| them.add.clone()).unwrap_or_default(),
            drop_capabilities: capabilities.and_then(|them| them.drop.clone()).unwrap_or_default(),
        }),
        namespace_options: Some(namespaces(spec)),
        selinux_options: Some(SeLinuxOption {
            user: label.user.unwrap_or_default(),
            role: label.role.unwrap_or_default(),
            kind: label.type_.unwrap_or_default(),
            level: label.level.unwrap_or_default(),
        }),
        run_as_user: number(of_pod.run_as_user),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or_default(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        run_as_group: number(of_pod.run_as_group),
        masked_paths: MASKED.map(str::to_owned).to_vec(),
        readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
        seccomp: profile(of_pod.seccomp_profile.as_ref().map(|profile| profile.type_.as_str()))?,
        apparmor: profile(of_pod.app_armor_profile.as_ref().map(|profile| profile.type_.as_str()))?,
    })
}

/// Returns the namespaces of a pod: the node's network if the pod asks for it, otherwise its own.
fn namespaces(spec: &PodSpec) -> NamespaceOption {
    NamespaceOption { network: if spec.host_network == Some(true) { 2 } else { 0 }, pid: 1, ipc: 0 }
}

fn profile(kind: Option<&str>) -> Result<Option<SecurityProfile>> {
    Ok(match kind {
        None => None,
        Some("RuntimeDefault") => Some(SecurityProfile { profile_type: 0 }),
        Some("Unconfined") => Some(SecurityProfile { profile_type: 1 }),
        Some(other) => bail!("the profile {other} is not known here"),
    })
}

fn resources(wanted: Option<&ResourceRequirements>) -> Result<LinuxContainerResources> {
    let amount = |of: &str, which: fn(&ResourceRequirements) -> Option<_>| -> Option<String> {
        let amounts: Option<std::collections::BTreeMap<_, _>> = which(wanted?);
        let quantity: k8s_openapi::apimachinery::pkg::api::resource::Quantity = amounts?.remove(of)?;
        Some(quantity.0)
    };
    let cpu = amount("cpu", |wanted| wanted.requests.clone());
    let memory = amount("memory", |wanted| wanted.limits.clone());
    Ok(LinuxContainerResources {
        cpu_shares: match cpu.as_deref().map(|cpu| cpu.strip_suffix('m').context("a share in whole CPUs")) {
            // Kubelet converts in this way, with the same minimum.
            Some(thousandths) => (thousandths?.parse::<i64>()? * 1024 / 1000).max(2),
            None => 2,
        },
        memory_limit_in_bytes: match memory.as_deref() {
            Some(memory) => {
                memory.strip_suffix("Mi").context("a limit that is not in Mi")?.parse::<i64>()? << 20
            }
            None => 0,
        },
    })
}
