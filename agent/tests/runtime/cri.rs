//! What this test needs of the Container Runtime Interface, `runtime.v1` of Kubernetes' `api.proto`: calls as kubelet
//! makes them.
//!
//! The messages are written out here, with the fields that are used: generating them needs `protoc`, and the plugin's
//! test needs a dozen of them. Numbers are the protocol's and never change.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// A busy machine gets more than the second or two that a sandbox takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// A connection to a runtime.
pub struct Cri {
    tokio: Runtime,
    channel: Channel,
}

impl Cri {
    /// Connects to the runtime's socket.
    pub fn connect(socket: &Path) -> Result<Self> {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?.timeout(DEADLINE);
        let channel = tokio
            .block_on(endpoint.connect())
            .with_context(|| format!("connect to the runtime at {}", socket.display()))?;
        Ok(Self { tokio, channel })
    }

    /// Whether the runtime itself and its network are ready: kubelet starts no pod before both are.
    pub fn is_ready(&self) -> Result<bool> {
        let answer: StatusResponse = self.call("RuntimeService/Status", Nothing {})?;
        let conditions = answer.status.unwrap_or_default().conditions;
        let holds =
            |kind: &str| conditions.iter().any(|condition| condition.kind == kind && condition.status);
        Ok(holds("RuntimeReady") && holds("NetworkReady"))
    }

    /// Whether the runtime has an image of that name.
    pub fn has_image(&self, name: &str) -> Result<bool> {
        let wanted = ImageStatusRequest { image: Some(ImageSpec { image: name.to_owned() }) };
        let answer: ImageStatusResponse = self.call("ImageService/ImageStatus", wanted)?;
        Ok(answer.image.is_some())
    }

    /// Makes a sandbox, which calls the plugin's ADD, and gives its id.
    pub fn run_sandbox(&self, config: &PodSandboxConfig) -> Result<String> {
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let answer: PodSandboxId = self.call("RuntimeService/RunPodSandbox", request)?;
        Ok(answer.pod_sandbox_id)
    }

    /// The sandbox's address, as the runtime took it from the plugin's result.
    pub fn sandbox_address(&self, sandbox: &str) -> Result<String> {
        let answer: PodSandboxStatusResponse = self
            .call("RuntimeService/PodSandboxStatus", PodSandboxId { pod_sandbox_id: sandbox.to_owned() })?;
        let network = answer.status.and_then(|status| status.network);
        Ok(network.with_context(|| format!("the sandbox {sandbox} has no network"))?.ip)
    }

    /// Makes a container in a sandbox and starts it. Gives its id.
    pub fn start_container(
        &self,
        sandbox: &str,
        sandbox_config: &PodSandboxConfig,
        config: ContainerConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config.clone()),
        };
        let container: ContainerId = self.call("RuntimeService/CreateContainer", request)?;
        let Nothing {} = self.call("RuntimeService/StartContainer", container.clone())?;
        Ok(container.container_id)
    }

    /// Runs a command in a container and gives its standard output; an error with all that it printed when it fails.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 20,
        };
        let answer: ExecSyncResponse = self.call("RuntimeService/ExecSync", request)?;
        let output = String::from_utf8_lossy(&answer.stdout);
        ensure!(
            answer.exit_code == 0,
            "`{}` in the container {container} ended with {}: {}{output}",
            command.join(" "),
            answer.exit_code,
            String::from_utf8_lossy(&answer.stderr),
        );
        Ok(output.into_owned())
    }

    /// Stops a container at once and removes it.
    pub fn remove_container(&self, container: &str) -> Result<()> {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout: 0 };
        let Nothing {} = self.call("RuntimeService/StopContainer", request)?;
        let container = ContainerId { container_id: container.to_owned() };
        let Nothing {} = self.call("RuntimeService/RemoveContainer", container)?;
        Ok(())
    }

    /// Stops a sandbox, which calls the plugin's DEL.
    pub fn stop_sandbox(&self, sandbox: &str) -> Result<()> {
        let sandbox = PodSandboxId { pod_sandbox_id: sandbox.to_owned() };
        let Nothing {} = self.call("RuntimeService/StopPodSandbox", sandbox)?;
        Ok(())
    }

    /// Removes a sandbox.
    pub fn remove_sandbox(&self, sandbox: &str) -> Result<()> {
        let sandbox = PodSandboxId { pod_sandbox_id: sandbox.to_owned() };
        let Nothing {} = self.call("RuntimeService/RemovePodSandbox", sandbox)?;
        Ok(())
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.{method}"))?;
        let mut client = Grpc::new(self.channel.clone());
        let answer = self.tokio.block_on(async {
            client.ready().await.context("the connection was closed")?;
            let codec: ProstCodec<Q, A> = ProstCodec::default();
            client
                .unary(tonic::Request::new(request), path, codec)
                .await
                .map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))
        });
        Ok(answer.with_context(|| format!("call the runtime's {method}"))?.into_inner())
    }
}

/// A message without fields, or whose fields are not looked at.
#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeCondition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    status: bool,
}

/// An image by name.
#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    /// Name and tag.
    #[prost(string, tag = "1")]
    pub image: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Nothing>,
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
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxId {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    ip: String,
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
    /// What it runs.
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    /// Its log, below the pod's folder.
    #[prost(string, tag = "11")]
    pub log_path: String,
}

/// A container's name.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerMetadata {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerId {
    #[prost(string, tag = "1")]
    container_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct StopContainerRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(int64, tag = "2")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    exit_code: i32,
}
