//! etcd and kube-apiserver as child processes of the test.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use xtask::api_server::Certificate;
use xtask::envtest::Binaries;
use xtask::lab::traffic::reserved_address;

use super::ADMIN_TOKEN;
use crate::watching::certificate_of;

/// Logs every request on arrival, except the administrator's.
const AUDIT_POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
  "omitStages": ["ResponseStarted", "ResponseComplete", "Panic"],
  "rules": [{ "level": "None", "users": ["admin"] }, { "level": "Metadata" }]
}"#;

/// A process that ends when this value is dropped, or when the thread that started it ends.
struct Process(Child);

impl Process {
    fn start(program: &Path, arguments: &[String], log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("start {} by setpriv: {error}", program.display()));
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// etcd and the API server in front of it, on loopback, with their files in one folder.
pub(super) struct Processes {
    // Fields are dropped in order: the API server ends before its store.
    api_server: Option<Process>,
    _etcd: Process,
    binaries: Binaries,
    etcd_url: String,
    pub(super) address: SocketAddr,
    pub(super) certificate: Certificate,
    folder: TempDir,
}

impl Processes {
    /// Starts both processes and does not wait until they serve.
    pub(super) fn start(binaries: Binaries, loopback: IpAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let [client, peer] = [(); 2].map(|()| format!("http://{}", free_address(loopback)));
        let etcd = [
            option("data-dir", path("etcd")),
            option("listen-client-urls", &client),
            option("advertise-client-urls", &client),
            option("listen-peer-urls", &peer),
            option("initial-advertise-peer-urls", &peer),
            option("initial-cluster", format!("default={peer}")),
        ];
        let certificate = certificate_of(loopback);
        fs::write(path("server.crt"), certificate.pem()).unwrap();
        fs::write(path("server.key"), certificate.key_pem()).unwrap();
        fs::write(path("tokens.csv"), format!("{ADMIN_TOKEN},admin,admin,system:masters\n")).unwrap();
        fs::write(path("audit.json"), AUDIT_POLICY).unwrap();
        let mut processes = Self {
            api_server: None,
            _etcd: Process::start(&binaries.etcd, &etcd, &path("etcd.log")),
            binaries,
            etcd_url: client,
            address: free_address(loopback),
            certificate,
            folder,
        };
        processes.start_api_server();
        processes
    }

    /// Starts the API server at the same address as before. It loses what it had in memory; etcd
    /// keeps its data.
    pub(super) fn start_api_server(&mut self) {
        let path = |name: &str| self.folder.path().join(name);
        // Their family must be that of the advertised address.
        let services = if self.address.is_ipv4() { "10.0.0.0/24" } else { "fd00:10:96::/112" };
        let arguments = [
            option("etcd-servers", &self.etcd_url),
            option("bind-address", self.address.ip().to_string()),
            option("advertise-address", self.address.ip().to_string()),
            option("secure-port", self.address.port().to_string()),
            option("tls-cert-file", path("server.crt")),
            option("tls-private-key-file", path("server.key")),
            option("cert-dir", path("certificates")),
            option("token-auth-file", path("tokens.csv")),
            option("authorization-mode", "RBAC"),
            option("service-account-issuer", format!("https://{}", self.address)),
            option("service-account-key-file", path("server.crt")),
            option("service-account-signing-key-file", path("server.key")),
            option("service-cluster-ip-range", services),
            // Without a reconciler the API server does not write its own endpoints. Such writes
            // would increase versions, as the tests' own writes do.
            option("endpoint-reconciler-type", "none"),
            option("audit-policy-file", path("audit.json")),
            option("audit-log-path", path("audit.log")),
        ];
        let log = path("kube-apiserver.log");
        self.api_server = Some(Process::start(&self.binaries.kube_apiserver, &arguments, &log));
    }

    pub(super) fn stop_api_server(&mut self) {
        self.api_server = None;
    }

    /// Returns the log, with one request a line as JSON.
    pub(super) fn audit_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("audit.log")).unwrap_or_default()
    }

    /// Returns the end of the API server's log, for a test that gives up.
    pub(super) fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("kube-apiserver.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// Returns the address with a port on which no socket listens.
pub(super) fn free_address(loopback: IpAddr) -> SocketAddr {
    reserved_address(loopback).unwrap()
}

fn option(name: &str, value: impl AsRef<OsStr>) -> String {
    format!("--{name}={}", value.as_ref().display())
}
