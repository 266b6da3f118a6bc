//! The messages, with the fields that are used. They are written by hand: generating them needs
//! `protoc`, and this test needs a few dozen. The protocol's numbers never change.

use std::collections::BTreeMap;

use prost::Message;

/// A message without fields, or with fields that the test does not read.
#[derive(Clone, PartialEq, Message)]
pub struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    pub conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RuntimeCondition {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(bool, tag = "2")]
    pub status: bool,
}

/// An image by name.
#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    /// Name and tag.
    #[prost(string, tag = "1")]
    pub image: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub image: Option<Nothing>,
}

/// A pod, before it has containers.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxConfig {
    /// The pod's name in Kubernetes.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    /// The folder with the containers' logs.
    #[prost(string, tag = "3")]
    pub log_directory: String,
    /// The pod's resolver. The runtime passes it to the plugin as the `dns` capability.
    #[prost(message, optional, tag = "4")]
    pub dns_config: Option<DnsConfig>,
    /// The pod's hostPorts. The runtime passes them to the plugin as the `portMappings` capability.
    #[prost(message, repeated, tag = "5")]
    pub port_mappings: Vec<PortMapping>,
    /// The runtime passes `kubernetes.io/ingress-bandwidth` and similar annotations to the plugin
    /// as the `bandwidth` capability.
    #[prost(btree_map = "string, string", tag = "7")]
    pub annotations: BTreeMap<String, String>,
    /// Settings that exist only on Linux.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

/// A pod's name. The runtime passes it to the plugin in `CNI_ARGS`.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxMetadata {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// An id that the cluster uses only once.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
}

/// A pod's resolver.
#[derive(Clone, PartialEq, Message)]
pub struct DnsConfig {
    /// Addresses of name servers.
    #[prost(string, repeated, tag = "1")]
    pub servers: Vec<String>,
}

/// A hostPort for TCP: that protocol's number is 0, so the field is not sent.
#[derive(Clone, PartialEq, Message)]
pub struct PortMapping {
    /// The pod's port.
    #[prost(int32, tag = "2")]
    pub container_port: i32,
    /// The node's port.
    #[prost(int32, tag = "3")]
    pub host_port: i32,
}

/// Settings of a pod that exist only on Linux.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandboxConfig {
    /// The pod's own control group.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    /// The sandbox's rights.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<LinuxSandboxSecurityContext>,
}

/// A sandbox's rights.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxSandboxSecurityContext {
    /// The namespaces that it is in.
    #[prost(message, optional, tag = "1")]
    pub namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    pub config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxId {
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    pub network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    pub ip: String,
    /// The addresses after the first.
    #[prost(message, repeated, tag = "2")]
    pub additional_ips: Vec<PodIp>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodIp {
    #[prost(string, tag = "1")]
    pub ip: String,
}

/// A container.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerConfig {
    /// The container's name in the pod.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ContainerMetadata>,
    /// The container's image.
    #[prost(message, optional, tag = "2")]
    pub image: Option<ImageSpec>,
    /// The command. Default: the image's.
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    /// The command's arguments.
    #[prost(string, repeated, tag = "4")]
    pub args: Vec<String>,
    /// The environment.
    #[prost(message, repeated, tag = "6")]
    pub envs: Vec<KeyValue>,
    /// Folders and files of the node in the container.
    #[prost(message, repeated, tag = "7")]
    pub mounts: Vec<Mount>,
    /// The path of the log, relative to the pod's folder.
    #[prost(string, tag = "11")]
    pub log_path: String,
    /// Settings that exist only on Linux.
    #[prost(message, optional, tag = "15")]
    pub linux: Option<LinuxContainerConfig>,
}

/// An environment variable.
#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    /// Name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A folder or file of the node in a container.
#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    /// The path in the container.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// The path on the node.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Whether the container cannot write there.
    #[prost(bool, tag = "3")]
    pub readonly: bool,
    /// `PRIVATE` 0, `HOST_TO_CONTAINER` 1, `BIDIRECTIONAL` 2.
    #[prost(int32, tag = "5")]
    pub propagation: i32,
}

/// Settings of a container that exist only on Linux.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxContainerConfig {
    /// The container's resources.
    #[prost(message, optional, tag = "1")]
    pub resources: Option<LinuxContainerResources>,
    /// The container's rights.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<LinuxContainerSecurityContext>,
}

/// A container's resources.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxContainerResources {
    /// The share of a CPU, in 1024ths.
    #[prost(int64, tag = "3")]
    pub cpu_shares: i64,
    /// The memory limit, in bytes.
    #[prost(int64, tag = "4")]
    pub memory_limit_in_bytes: i64,
}

/// A container's rights.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxContainerSecurityContext {
    /// Its capabilities.
    #[prost(message, optional, tag = "1")]
    pub capabilities: Option<Capability>,
    /// The namespaces that it is in.
    #[prost(message, optional, tag = "3")]
    pub namespace_options: Option<NamespaceOption>,
    /// The SELinux label.
    #[prost(message, optional, tag = "4")]
    pub selinux_options: Option<SeLinuxOption>,
    /// The user's id.
    #[prost(message, optional, tag = "5")]
    pub run_as_user: Option<Int64Value>,
    /// Whether the container cannot write its root file system.
    #[prost(bool, tag = "7")]
    pub readonly_rootfs: bool,
    /// Whether no program that it executes can have more rights than the container itself.
    #[prost(bool, tag = "11")]
    pub no_new_privs: bool,
    /// The group's id.
    #[prost(message, optional, tag = "12")]
    pub run_as_group: Option<Int64Value>,
    /// Paths that the container cannot see.
    #[prost(string, repeated, tag = "13")]
    pub masked_paths: Vec<String>,
    /// Paths that the container cannot write.
    #[prost(string, repeated, tag = "14")]
    pub readonly_paths: Vec<String>,
    /// The filter of system calls.
    #[prost(message, optional, tag = "15")]
    pub seccomp: Option<SecurityProfile>,
    /// The AppArmor profile.
    #[prost(message, optional, tag = "16")]
    pub apparmor: Option<SecurityProfile>,
}

/// Capabilities, without `CAP_`.
#[derive(Clone, PartialEq, Message)]
pub struct Capability {
    /// Capabilities in addition to the runtime's default.
    #[prost(string, repeated, tag = "1")]
    pub add_capabilities: Vec<String>,
    /// Capabilities of the runtime's default that the container does not get.
    #[prost(string, repeated, tag = "2")]
    pub drop_capabilities: Vec<String>,
}

/// The namespaces to use: `POD` 0, `CONTAINER` 1, `NODE` 2.
#[derive(Clone, PartialEq, Message)]
pub struct NamespaceOption {
    /// Network.
    #[prost(int32, tag = "1")]
    pub network: i32,
    /// Processes.
    #[prost(int32, tag = "2")]
    pub pid: i32,
    /// Inter-process communication.
    #[prost(int32, tag = "3")]
    pub ipc: i32,
}

/// An SELinux label.
#[derive(Clone, PartialEq, Message)]
pub struct SeLinuxOption {
    /// User.
    #[prost(string, tag = "1")]
    pub user: String,
    /// Role.
    #[prost(string, tag = "2")]
    pub role: String,
    /// Type.
    #[prost(string, tag = "3")]
    pub kind: String,
    /// Level.
    #[prost(string, tag = "4")]
    pub level: String,
}

/// A number that may be absent.
#[derive(Clone, PartialEq, Message)]
pub struct Int64Value {
    /// The number.
    #[prost(int64, tag = "1")]
    pub value: i64,
}

/// A profile: `RuntimeDefault` 0, `Unconfined` 1.
#[derive(Clone, PartialEq, Message)]
pub struct SecurityProfile {
    /// The profile's number.
    #[prost(int32, tag = "1")]
    pub profile_type: i32,
}

/// A container's name.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerMetadata {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    pub config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pub sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerId {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct StopContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(int64, tag = "2")]
    pub timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, repeated, tag = "2")]
    pub cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    pub timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<ContainerStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerStatus {
    #[prost(int32, tag = "3")]
    pub state: i32,
    #[prost(int32, tag = "7")]
    pub exit_code: i32,
}
