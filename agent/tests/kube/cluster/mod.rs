//! A cluster's own API server, with an administrator's client and the agent's account.

mod door;
mod processes;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use podwire::objects::client::Access;
use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::envtest::Binaries;

use self::door::Door;
use self::processes::{Processes, free_address};
use crate::watching::{LOOPBACKS, by_kubeconfig};

const ADMIN_TOKEN: &str = "administrator";
/// The manifest that installs the agent.
const MANIFEST: &str = include_str!("../../../../manifests/podwire.yaml");
/// The agent's account, as the API server names it.
const AGENT: &str = "system:serviceaccount:kube-system:podwire";
const NODES: &str = "/api/v1/nodes";
const RIGHTS: &str = "/apis/rbac.authorization.k8s.io/v1";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// etcd and kube-apiserver, and the agent's account with the rights that the manifest gives.
pub struct Cluster {
    processes: Processes,
    door: Door,
    admin: Client,
    /// The agent's kubeconfig and token.
    folder: TempDir,
}

impl Cluster {
    /// Starts a server with the agent's account, which has no rights yet. Returns when it serves.
    pub async fn start(binaries: Binaries) -> Self {
        Self::start_at(binaries, LOOPBACKS[0]).await
    }

    /// Does the same at one of the loopback addresses. Services have the family of this address.
    pub async fn start_at(binaries: Binaries, loopback: IpAddr) -> Self {
        let processes = Processes::start(binaries, loopback);
        let admin = client(&processes, ADMIN_TOKEN).await;
        let mut door = Door::new(free_address(loopback), processes.address);
        door.open().await;
        let cluster = Self { processes, door, admin, folder: tempfile::tempdir().unwrap() };
        cluster.serves().await;
        // The API server creates these namespaces as well, but perhaps later than the test needs
        // them.
        for name in ["kube-system", "default"] {
            let namespace = json!({ "metadata": { "name": name } });
            let _ = cluster.ask(Method::POST, "/api/v1/namespaces", Some(&namespace)).await;
        }
        cluster.make("ServiceAccount", "/api/v1/namespaces/kube-system/serviceaccounts").await;
        cluster.make("ClusterRole", &format!("{RIGHTS}/clusterroles")).await;
        cluster.make("Role", &format!("{RIGHTS}/namespaces/default/roles")).await;
        cluster.write_token(&cluster.new_token().await);
        cluster
    }

    /// Binds the agent's account to its roles.
    pub async fn bind_role(&self) {
        self.make("ClusterRoleBinding", &format!("{RIGHTS}/clusterrolebindings")).await;
        self.make("RoleBinding", &format!("{RIGHTS}/namespaces/default/rolebindings")).await;
        // The API server learns of a binding by a watch of its own.
        while !self.may_write_events().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn may_write_events(&self) -> bool {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": AGENT,
                "resourceAttributes": {
                    "group": "events.k8s.io", "resource": "events", "verb": "create", "namespace": "default",
                },
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        self.ask(Method::POST, path, Some(&review)).await.unwrap()["status"]["allowed"] == true
    }

    /// Returns the agent's access through the door.
    pub fn access(&self) -> Access {
        self.access_by(self.door.address)
    }

    /// Returns the agent's access to the server's own address, past the door. During a restart the
    /// agent then meets the server itself: it refuses the connection, or is not ready yet.
    pub fn direct_access(&self) -> Access {
        self.access_by(self.processes.address)
    }

    fn access_by(&self, address: SocketAddr) -> Access {
        let [config, token] = ["config", "token"].map(|name| self.folder.path().join(name));
        by_kubeconfig(&config, address, &self.processes.certificate, &token)
    }

    /// Creates or updates a Node object.
    pub async fn put(&self, node: &Value) {
        // A Node object that a kubelet registers includes its status as well.
        let created = self.ask(Method::POST, NODES, Some(node)).await;
        if !matches!(created, Err(StatusCode::CONFLICT)) {
            created.unwrap_or_else(|status| panic!("create {node}: {status}"));
            return;
        }
        // The status is a resource of its own: an update of the object itself does not change it.
        let path = format!("{NODES}/{}", node["metadata"]["name"].as_str().unwrap());
        for path in [path.clone(), format!("{path}/status")] {
            let updated = self.ask(Method::PUT, &path, Some(node)).await;
            updated.unwrap_or_else(|status| panic!("update {path} to {node}: {status}"));
        }
    }

    pub async fn delete(&self, name: &str) {
        let deleted = self.ask(Method::DELETE, &format!("{NODES}/{name}"), None).await;
        deleted.unwrap_or_else(|status| panic!("delete {name}: {status}"));
    }

    pub async fn node(&self, name: &str) -> Option<Value> {
        self.ask(Method::GET, &format!("{NODES}/{name}"), None).await.ok()
    }

    /// Returns the agent's Events, the oldest first.
    pub async fn events(&self) -> Vec<Value> {
        let list = self.ask(Method::GET, EVENTS, None).await.unwrap();
        let mut events = list["items"].as_array().unwrap().clone();
        events.retain(|event| event["reportingController"] == "podwire");
        events.sort_by_key(|event| event["eventTime"].as_str().map(str::to_owned));
        events
    }

    /// Returns the number of Events that `kubectl describe node` shows. It asks for these fields.
    pub async fn described(&self, node: &str) -> usize {
        let fields = ["name", "kind", "namespace", "uid"].map(|field| format!("involvedObject.{field}"));
        let fields = [(&fields[0], node), (&fields[1], "Node"), (&fields[2], ""), (&fields[3], node)];
        let selector = fields.map(|(field, value)| format!("{field}%3D{value}")).join("%2C");
        let list = self.ask(Method::GET, &format!("/api/v1/events?fieldSelector={selector}"), None).await;
        list.unwrap()["items"].as_array().unwrap().len()
    }

    /// Returns the agent's requests so far: method, path, query. The administrator's are left out.
    pub fn requests(&self) -> Vec<String> {
        let log = self.processes.audit_log();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let agents = lines.filter(|line| line["user"]["username"] == AGENT);
        agents
            .map(|line| format!("{} {}", method(&line["verb"]), line["requestURI"].as_str().unwrap()))
            .collect()
    }

    /// Shuts the door between the agent and the API server.
    pub async fn stop(&mut self) {
        self.door.shut().await;
    }

    /// Opens the door between the agent and the API server.
    pub async fn start_again(&mut self) {
        self.door.open().await;
    }

    /// Replaces the API server's process. The new process has the same address. Its watch cache is
    /// empty and begins after all versions that exist now, so it answers 410 to a watch from an
    /// earlier version.
    pub async fn restart(&mut self) {
        // etcd has one version for all objects. The new object raises it above the agent's version.
        let other = json!({ "metadata": { "generateName": "other-" } });
        self.ask(Method::POST, "/api/v1/namespaces", Some(&other)).await.unwrap();
        self.processes.stop_api_server();
        self.processes.start_api_server();
        self.serves().await;
    }

    /// Invalidates the agent's token. The restart empties the API server's cache of valid tokens.
    pub async fn revoke_token(&mut self) {
        let accounts = "/api/v1/namespaces/kube-system/serviceaccounts";
        self.ask(Method::DELETE, &format!("{accounts}/podwire"), None).await.unwrap();
        self.make("ServiceAccount", accounts).await;
        self.restart().await;
    }

    /// Gives the agent a new token, as a kubelet gives it to a pod.
    pub async fn renew_token(&self) {
        self.write_token(&self.new_token().await);
    }

    /// Returns the API server's status for a request of the agent's own account.
    pub async fn answer_to_agent(&self, method: Method, path: &str, kind: &str, body: &Value) -> StatusCode {
        let token = std::fs::read_to_string(self.folder.path().join("token")).unwrap();
        let agent = client(&self.processes, &token).await;
        send(&agent, method, path, kind, body.to_string()).await.err().unwrap_or(StatusCode::OK)
    }

    /// Waits until every part of the API server is ready.
    async fn serves(&self) {
        let ready = async || send(&self.admin, Method::GET, "/readyz", JSON, String::new()).await.is_ok();
        for _ in 0..600 {
            if ready().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("kube-apiserver does not serve:\n{}", self.processes.last_words());
    }

    /// Creates the manifest's object of a kind.
    async fn make(&self, kind: &str, path: &str) {
        let documents: Vec<Value> = serde_saphyr::from_multiple(MANIFEST).unwrap();
        let of_kind = |one: &&Value| one["kind"] == kind && one["metadata"]["name"] == "podwire";
        let document = documents.iter().find(of_kind).unwrap_or_else(|| panic!("no {kind} in the manifest"));
        let made = self.ask(Method::POST, path, Some(document)).await;
        made.unwrap_or_else(|status| panic!("make the {kind}: {status}"));
    }

    async fn new_token(&self) -> String {
        let path = "/api/v1/namespaces/kube-system/serviceaccounts/podwire/token";
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
        let made = self.ask(Method::POST, path, Some(&request)).await.unwrap();
        made["status"]["token"].as_str().unwrap().to_owned()
    }

    fn write_token(&self, token: &str) {
        std::fs::write(self.folder.path().join("token"), token).unwrap();
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, StatusCode> {
        let body = body.map_or(String::new(), Value::to_string);
        let answer = send(&self.admin, method, path, JSON, body).await?;
        Ok(serde_json::from_str(&answer).unwrap())
    }
}

const JSON: &str = "application/json";

/// Returns a client with the token's identity, which connects past the door.
async fn client(processes: &Processes, token: &str) -> Client {
    let folder = tempfile::tempdir().unwrap();
    let [config, file] = ["config", "token"].map(|name| folder.path().join(name));
    std::fs::write(&file, token).unwrap();
    by_kubeconfig(&config, processes.address, &processes.certificate, &file);
    let config = Kubeconfig::read_from(&config).unwrap();
    let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// Returns the answer's text, or the status of a refusal. Without any answer the status is 503.
async fn send(
    client: &Client,
    method: Method,
    path: &str,
    kind: &str,
    body: String,
) -> Result<String, StatusCode> {
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let answer = client.request_text(request.body(body.into_bytes()).unwrap()).await;
    answer.map_err(|error| match error {
        kube::Error::Api(status) => StatusCode::from_u16(status.code).unwrap(),
        _ => StatusCode::SERVICE_UNAVAILABLE,
    })
}

fn method(verb: &Value) -> &'static str {
    match verb.as_str() {
        Some("get" | "list" | "watch") => "GET",
        Some("patch") => "PATCH",
        Some("create") => "POST",
        _ => "another method",
    }
}
