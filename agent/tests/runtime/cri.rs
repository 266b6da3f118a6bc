//! The calls of the Container Runtime Interface that this test needs, as kubelet makes them
//! (`runtime.v1` of Kubernetes' `api.proto`).

mod messages;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

pub use messages::*;

/// A sandbox takes a second or two. A busy machine gets more time.
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

    /// Returns whether the runtime and its network are ready. Kubelet starts no pod before both
    /// are.
    pub fn is_ready(&self) -> Result<bool> {
        let answer: StatusResponse = self.call("RuntimeService/Status", Nothing {})?;
        let conditions = answer.status.unwrap_or_default().conditions;
        let holds =
            |kind: &str| conditions.iter().any(|condition| condition.kind == kind && condition.status);
        Ok(holds("RuntimeReady") && holds("NetworkReady"))
    }

    /// Returns whether the runtime has an image of that name.
    pub fn has_image(&self, name: &str) -> Result<bool> {
        let wanted = ImageStatusRequest { image: Some(ImageSpec { image: name.to_owned() }) };
        let answer: ImageStatusResponse = self.call("ImageService/ImageStatus", wanted)?;
        Ok(answer.image.is_some())
    }

    /// Makes a sandbox, which calls the plugin's ADD, and returns its id.
    pub fn run_sandbox(&self, config: &PodSandboxConfig) -> Result<String> {
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let answer: PodSandboxId = self.call("RuntimeService/RunPodSandbox", request)?;
        Ok(answer.pod_sandbox_id)
    }

    /// Returns the sandbox's addresses, as the runtime took them from the plugin's result.
    pub fn sandbox_addresses(&self, sandbox: &str) -> Result<Vec<String>> {
        let answer: PodSandboxStatusResponse = self
            .call("RuntimeService/PodSandboxStatus", PodSandboxId { pod_sandbox_id: sandbox.to_owned() })?;
        let network = answer.status.and_then(|status| status.network);
        let network = network.with_context(|| format!("the sandbox {sandbox} has no network"))?;
        let more = network.additional_ips.into_iter().map(|address| address.ip);
        Ok([network.ip].into_iter().chain(more).collect())
    }

    /// Makes a container in a sandbox, starts it, and returns its id.
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

    /// Runs a command in a container and returns its standard output. If the command fails, the
    /// error has all that it printed.
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

    /// Returns a container's exit code, if the container has ended.
    pub fn exit_code(&self, container: &str) -> Result<Option<i32>> {
        /// `CONTAINER_EXITED`.
        const EXITED: i32 = 2;
        let request = ContainerId { container_id: container.to_owned() };
        let answer: ContainerStatusResponse = self.call("RuntimeService/ContainerStatus", request)?;
        let status = answer.status.with_context(|| format!("the container {container} has no status"))?;
        Ok((status.state == EXITED).then_some(status.exit_code))
    }

    /// Stops a container at once and removes it.
    pub fn remove_container(&self, container: &str) -> Result<()> {
        self.end_container(container, 0)
    }

    /// Asks a container to end, kills it after `patience` seconds if it still runs, and removes it.
    pub fn end_container(&self, container: &str, patience: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout: patience };
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
