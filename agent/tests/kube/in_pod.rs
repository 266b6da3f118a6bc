//! An agent in a pod: the kubelet's variables give the API server's address, and the service
//! account's files prove both identities.

use std::path::Path;
use std::process::Command;

use clap::Parser;
use podwire::events::Readiness;
use podwire::objects::client::Access;
use podwire_core::cluster::NodeRecord;
use tempfile::TempDir;
use xtask::api_server::Certificate;

use crate::condition::unavailable;
use crate::watching::{LOOPBACKS, OWN, Watching, certificate_of, open_https, pace, server};

const NAME: &str = "in_pod::an_agent_in_a_pod_reaches_the_api_server";
/// The variable that tells the test's process that it is the agent in the pod.
pub const INSIDE: &str = "PODWIRE_IN_POD";
/// Puts files where a kubelet mounts them, then runs a command. Only this process and its children
/// see the mount. The first argument is the folder of the files.
const VIEW: &str = r#"
    cd "$1"
    shift
    mount -t tmpfs tmpfs /var/run
    folder=/var/run/secrets/kubernetes.io/serviceaccount
    mkdir -p "$folder"
    cp ca.crt namespace token "$folder"
    cd /
    exec "$@"
"#;
/// The addresses of Kubernetes' Service where kube-proxy does not run, so that no server answers.
const SERVICES: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];

/// The agent's options for the API server.
#[derive(Parser)]
pub struct Options {
    #[command(flatten)]
    pub api: Access,
}

/// Runs the agent's source in a process of its own: variables belong to a process.
#[tokio::test]
async fn an_agent_in_a_pod_reaches_the_api_server() {
    if std::env::var_os(INSIDE).is_some() {
        watch_and_write().await;
        return;
    }
    for (loopback, service) in LOOPBACKS.into_iter().zip(SERVICES) {
        let certificate = certificate_of(loopback);
        let server = server(2);
        server.only_tokens(&["of the pod"]);
        let address = open_https(&server, loopback, certificate.clone());
        let (port, url) = (address.port().to_string(), format!("https://{address}"));
        // A kubelet writes an IPv6 address without brackets.
        let as_kubelet_says = [("HOST", loopback.to_string()), ("PORT", port)];
        let past_kube_proxy = [("HOST", service.to_owned()), ("PORT", "443".to_owned())];
        for (variables, option) in [(as_kubelet_says, None), (past_kube_proxy, Some(&url))] {
            server.put(unavailable(1));
            let folder = service_account(&certificate);
            let mut agent = in_pod(NAME, folder.path());
            agent.envs(variables.map(|(name, value)| (format!("KUBERNETES_SERVICE_{name}"), value)));
            agent.envs(option.map(|url| ("PODWIRE_API_SERVER", url)));
            let output = agent.output().unwrap();
            assert!(output.status.success(), "{loopback}, option {option:?}: {output:?}");
            let conditions = server.node(OWN).unwrap()["status"]["conditions"].to_string();
            assert!(conditions.contains("PodwireIsReady"), "{loopback}, option {option:?}: {conditions}");
        }
    }
}

/// Gets the nodes, and removes the condition of a node without a network.
async fn watch_and_write() {
    let Options { api } = Options::parse_from(["agent"]);
    let mut watching = Watching::with(api, pace(), tempfile::tempdir().unwrap());
    assert_eq!(watching.names().await, ["node1", "node2"]);
    watching.readiness.send_replace(Readiness::Ready);
    let is_available = |record: &NodeRecord| !record.network_unavailable;
    watching.until(|list| list.records.iter().all(is_available)).await;
}

/// Returns the command that runs a test of this binary as the agent in a pod, with the files of a
/// service account.
pub fn in_pod(test: &str, service_account: &Path) -> Command {
    // A test that fails ends the agent, too.
    let mut agent = Command::new("setpriv");
    agent.args(["--pdeathsig", "KILL", "--", "unshare", "--user", "--map-root-user", "--mount"]);
    agent.args(["sh", "-euc", VIEW, "sh"]);
    agent.arg(service_account).arg(std::env::current_exe().unwrap());
    agent.args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    agent
}

/// Returns a folder with the files of a service account.
pub fn service_account(certificate: &Certificate) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("ca.crt", certificate.pem());
    write("namespace", "kube-system");
    write("token", "of the pod");
    folder
}
