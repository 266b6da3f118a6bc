//! The messages, with the fields that are used: generating them needs `protoc`, and the plugin's test needs a few dozen of
//! them. Numbers are the protocol's and never change.

use std::collections::BTreeMap;

use prost::Message;

/// A message without fields, or whose fields are not looked at.
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
    /// Its name in Kubernetes.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    /// Where its containers' logs are.
    #[prost(string, tag = "3")]
    pub log_directory: String,
    /// Its resolver; goes to the plugin as the `dns` capability.
    #[prost(message, optional, tag = "4")]
    pub dns_config: Option<DnsConfig>,
    /// Its hostPorts; go to the plugin as the `portMappings` capability.
    #[prost(message, repeated, tag = "5")]
    pub port_mappings: Vec<PortMapping>,
    /// `kubernetes.io/ingress-bandwidth` and its like go to the plugin as the `bandwidth` capability.
    #[prost(btree_map = "string, string", tag = "7")]
    pub annotations: BTreeMap<String, String>,
    /// What only Linux has.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

/// A pod's name. Goes to the plugin in `CNI_ARGS`.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxMetadata {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Unique in the cluster's life.
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

/// A hostPort. TCP: the protocol's number is 0, which is not sent.
#[derive(Clone, PartialEq, Message)]
pub struct PortMapping {
    /// The pod's port.
    #[prost(int32, tag = "2")]
    pub container_port: i32,
    /// The node's port.
    #[prost(int32, tag = "3")]
    pub host_port: i32,
}

/// What only Linux has.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandboxConfig {
    /// The control group of the pod's own.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    /// What the sandbox may do.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<LinuxSandboxSecurityContext>,
}

/// What a sandbox may do.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxSandboxSecurityContext {
    /// Whose namespaces it is in.
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
}

/// A container.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerConfig {
    /// Its name in the pod.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ContainerMetadata>,
    /// What it is made of.
    #[prost(message, optional, tag = "2")]
    pub image: Option<ImageSpec>,
    /// What it runs. Default: the image's.
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    /// What that is told.
    #[prost(string, repeated, tag = "4")]
    pub args: Vec<String>,
    /// Its environment.
    #[prost(message, repeated, tag = "6")]
    pub envs: Vec<KeyValue>,
    /// What it sees of the node.
    #[prost(message, repeated, tag = "7")]
    pub mounts: Vec<Mount>,
    /// Its log, below the pod's folder.
    #[prost(string, tag = "11")]
    pub log_path: String,
    /// What only Linux has.
    #[prost(message, optional, tag = "15")]
    pub linux: Option<LinuxContainerConfig>,
}

/// A variable.
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
    /// There.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// Here.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Not to be written.
    #[prost(bool, tag = "3")]
    pub readonly: bool,
    /// `PRIVATE` 0, `HOST_TO_CONTAINER` 1, `BIDIRECTIONAL` 2.
    #[prost(int32, tag = "5")]
    pub propagation: i32,
}

/// What only Linux has.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxContainerConfig {
    /// What it may use.
    #[prost(message, optional, tag = "1")]
    pub resources: Option<LinuxContainerResources>,
    /// What it may do.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<LinuxContainerSecurityContext>,
}

/// What a container may use.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxContainerResources {
    /// Of a processor, in 1024ths.
    #[prost(int64, tag = "3")]
    pub cpu_shares: i64,
    /// Bytes.
    #[prost(int64, tag = "4")]
    pub memory_limit_in_bytes: i64,
}

/// What a container may do.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxContainerSecurityContext {
    /// Of root's powers.
    #[prost(message, optional, tag = "1")]
    pub capabilities: Option<Capability>,
    /// Whose namespaces it is in.
    #[prost(message, optional, tag = "3")]
    pub namespace_options: Option<NamespaceOption>,
    /// SELinux's label.
    #[prost(message, optional, tag = "4")]
    pub selinux_options: Option<SeLinuxOption>,
    /// User.
    #[prost(message, optional, tag = "5")]
    pub run_as_user: Option<Int64Value>,
    /// Its root file system is not to be written.
    #[prost(bool, tag = "7")]
    pub readonly_rootfs: bool,
    /// Nothing that it executes may have more rights than itself.
    #[prost(bool, tag = "11")]
    pub no_new_privs: bool,
    /// Group.
    #[prost(message, optional, tag = "12")]
    pub run_as_group: Option<Int64Value>,
    /// Not to be seen.
    #[prost(string, repeated, tag = "13")]
    pub masked_paths: Vec<String>,
    /// Not to be written.
    #[prost(string, repeated, tag = "14")]
    pub readonly_paths: Vec<String>,
    /// System calls.
    #[prost(message, optional, tag = "15")]
    pub seccomp: Option<SecurityProfile>,
    /// AppArmor.
    #[prost(message, optional, tag = "16")]
    pub apparmor: Option<SecurityProfile>,
}

/// Capabilities, without `CAP_`.
#[derive(Clone, PartialEq, Message)]
pub struct Capability {
    /// More than the runtime gives by itself.
    #[prost(string, repeated, tag = "1")]
    pub add_capabilities: Vec<String>,
    /// Less than that.
    #[prost(string, repeated, tag = "2")]
    pub drop_capabilities: Vec<String>,
}

/// Whose namespaces: `POD` 0, `CONTAINER` 1, `NODE` 2.
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

/// SELinux's label.
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
    /// Which.
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
