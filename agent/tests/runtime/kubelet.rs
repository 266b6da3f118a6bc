//! What kubelet does with a pod of a DaemonSet, as far as Podwire's manifests need it. A pod that
//! asks for more is refused, so no field of a manifest goes unnoticed.

mod translation;
mod volumes;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use xtask::lab::Node;

use crate::containerd::Containerd;
use crate::cri::{Cri, PodSandboxConfig};
use crate::eventually;

/// The time within which an init container ends, and another container writes to its log.
const END_DEADLINE: Duration = Duration::from_secs(60);

/// The kubelet of a node.
pub struct Kubelet<'a> {
    pub cri: &'a Cri,
    pub runtime: &'a Containerd,
    pub node: &'a Node,
    /// The ConfigMaps of the cluster.
    pub config_maps: Vec<ConfigMap>,
    /// Variables that every container has: the addresses of services.
    pub service_variables: Vec<(String, String)>,
    /// The pod's service account token for the API server.
    pub token: String,
    /// The API server's certificate authority.
    pub authority: String,
}

/// A running pod.
pub struct NodePod {
    config: PodSandboxConfig,
    sandbox: String,
    containers: Vec<String>,
    patience: i64,
}

impl Kubelet<'_> {
    /// Starts a DaemonSet's pod, and returns when all its containers are ready.
    pub fn start(&self, daemon_set: &DaemonSet) -> Result<NodePod> {
        let name = daemon_set.metadata.name.as_deref().context("a DaemonSet without a name")?;
        let template = &daemon_set.spec.template;
        let spec = template.spec.as_ref().context("a DaemonSet without a pod")?;
        translation::refuse_what_is_not_known(spec)?;
        let config = self.sandbox(name, daemon_set.metadata.namespace.as_deref().unwrap_or("default"), spec);
        let sandbox = self.cri.run_sandbox(&config)?;
        let mut pod = NodePod {
            config,
            sandbox,
            containers: Vec::new(),
            patience: spec.termination_grace_period_seconds.unwrap_or(30),
        };
        let volumes = self.make_volumes(name, spec)?;
        for container in spec.init_containers.iter().flatten() {
            let id = self.run(&pod, spec, container, &volumes)?;
            let code = eventually("an init container has ended", END_DEADLINE, || {
                self.cri.exit_code(&id)?.with_context(|| format!("{} runs", container.name))
            })?;
            ensure!(code == 0, "{} ended with {code}:\n{}", container.name, self.log(&pod, container)?);
            self.cri.remove_container(&id)?;
        }
        for container in &spec.containers {
            let id = self.run(&pod, spec, container, &volumes)?;
            pod.containers.push(id.clone());
            // The kernel sends the first process of a container only the signals that it handles.
            // Wait until the program runs: otherwise a signal to end could come before the handler
            // is there.
            eventually("the container has said something", END_DEADLINE, || {
                ensure!(!self.log(&pod, container)?.is_empty());
                Ok(())
            })?;
            let probes = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
            for probe in probes.into_iter().flatten() {
                self.await_probe(probe, &id)
                    .with_context(|| self.log(&pod, container).unwrap_or_else(|error| error.to_string()))?;
            }
            ensure!(self.cri.exit_code(&id)?.is_none(), "{} has ended", container.name);
        }
        Ok(pod)
    }

    /// Ends a pod as the controller does before it starts the next one. Every container gets the
    /// time that the pod's manifest gives it.
    pub fn stop(&self, pod: &NodePod) -> Result<()> {
        for container in &pod.containers {
            self.cri.end_container(container, pod.patience)?;
        }
        self.cri.stop_sandbox(&pod.sandbox)?;
        self.cri.remove_sandbox(&pod.sandbox)
    }

    /// Returns the log of a pod's container.
    pub fn log(&self, pod: &NodePod, container: &Container) -> Result<String> {
        let path = format!("{}/{}.log", pod.config.log_directory, container.name);
        Ok(std::fs::read_to_string(self.runtime.file(&path)?)?)
    }

    fn run(
        &self,
        pod: &NodePod,
        spec: &PodSpec,
        container: &Container,
        volumes: &volumes::Volumes,
    ) -> Result<String> {
        let config = self.container(spec, container, volumes)?;
        self.cri.start_container(&pod.sandbox, &pod.config, config)
    }

    fn await_probe(&self, probe: &Probe, container: &str) -> Result<()> {
        let get = probe.http_get.as_ref().context("a probe that is no httpGet")?;
        let host = get.host.as_deref().context("a probe without a host")?;
        let (path, IntOrString::Int(port)) = (get.path.as_deref().unwrap_or("/"), &get.port) else {
            bail!("a probe of a port with a name")
        };
        let times = probe.failure_threshold.unwrap_or(3) * probe.period_seconds.unwrap_or(10);
        let patience = Duration::from_secs(u64::try_from(times)?);
        let ended = eventually(&format!("{path} answers well"), patience, || {
            let code = self.cri.exit_code(container)?;
            if code.is_some() {
                return Ok(code);
            }
            let answer = self.node.enter(|| ask(host, *port, path))??;
            let line = answer.lines().next().unwrap_or_default();
            // Kubelet accepts any status from 200 to 399.
            let is_well = matches!(line.split(' ').nth(1), Some(code) if code.starts_with(['2', '3']));
            ensure!(is_well, "{answer}");
            Ok(None)
        })?;
        ensure!(ended.is_none(), "the container has ended with {ended:?}");
        Ok(())
    }
}

fn ask(host: &str, port: i32, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect((host, u16::try_from(port)?))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
