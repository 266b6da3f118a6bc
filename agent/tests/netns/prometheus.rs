//! A Prometheus in a pod reads the metrics of two agents, as in a cluster.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;

use podwire_common::names::maps;
use podwire_common::tables::Table;
use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::lab::{Lab, Node, Ns, Pod};
use xtask::prometheus::program;

use crate::idle_clients::{get, get_at};
use crate::sockets::wait_until;

/// Where Prometheus answers, in its own pod.
const SERVER: &str = "127.0.0.1:9090";
/// The port at which agents serve the metrics by default.
const PORT: u16 = 9790;
const VARIABLE: &str = "PODWIRE_METRICS_NODE_ADDRESSES";

/// Returns a lab with agents that serve the metrics at their nodes' addresses. They get these as the
/// chart gives them.
fn lab_with_metrics(nodes: usize) -> Lab {
    let lab = Lab::builder().nodes(nodes).agents(false).build().unwrap();
    for node in lab.nodes() {
        let addresses: Vec<String> = node.addresses().iter().map(ToString::to_string).collect();
        node.start_agent_with(&[(VARIABLE, &addresses.join(","))]).unwrap();
    }
    lab
}

fn metrics_of(node: &Node) -> Vec<SocketAddr> {
    node.addresses().into_iter().map(|address| SocketAddr::new(address, PORT)).collect()
}

/// A running Prometheus. It ends with this value.
struct Prometheus {
    child: Child,
    pod: Pod,
    folder: TempDir,
}

impl Prometheus {
    fn start(pod: Pod, targets: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        // YAML has JSON in it.
        let configuration = json!({
            "global": { "scrape_interval": "1s", "scrape_timeout": "1s" },
            "scrape_configs": [{ "job_name": "podwire", "static_configs": [{ "targets": targets }] }],
        });
        let (file, log) = (folder.path().join("prometheus.yaml"), folder.path().join("log"));
        fs::write(&file, configuration.to_string()).unwrap();
        let log = fs::File::create(log).unwrap();
        let mut command = Command::new(program("prometheus"));
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={SERVER}"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        pod.ip("link set lo up").unwrap();
        let child = pod.enter(|| command.spawn()).unwrap().unwrap();
        Self { child, pod, folder }
    }

    /// Returns `data` of an answer of the API, once Prometheus answers.
    fn ask(&self, path: &str) -> Option<Value> {
        let answer = get_at(&self.pod, SERVER.parse().unwrap(), path);
        let (_, body) = answer.split_once("\r\n\r\n")?;
        // The body may have the lengths of its chunks around it.
        let json = &body[body.find('{')?..=body.rfind('}')?];
        let mut answer: Value = serde_json::from_str(json).ok()?;
        (answer["status"] == "success").then(|| answer["data"].take())
    }

    /// Returns the series of a metric: labels and value.
    fn series(&self, metric: &str) -> Vec<(Value, f64)> {
        let data = self.ask(&format!("/api/v1/query?query={metric}")).unwrap();
        let series = data["result"].as_array().unwrap().iter().map(|one| {
            let value = one["value"][1].as_str().unwrap().parse().unwrap();
            (one["metric"].clone(), value)
        });
        series.collect()
    }

    /// Returns the value of a metric at a target, from its one series with these labels, once there
    /// is one. A read that fails on a busy machine ends all series of its target until the next.
    fn value(&self, target: SocketAddr, metric: &str, labels: &[(&str, &str)]) -> f64 {
        let instance = target.to_string();
        let is_it = |found: &Value| {
            found["instance"] == *instance && labels.iter().all(|(name, value)| found[name] == *value)
        };
        let found = wait_until(|| {
            let mut found = self.series(metric);
            found.retain(|(labels, _)| is_it(labels));
            (!found.is_empty()).then_some(found)
        });
        match found.unwrap_or_default()[..] {
            [(_, value)] => value,
            ref other => panic!("{metric} of {target}: {other:?}"),
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
        }
    }
}

#[test]
fn a_prometheus_in_a_pod_reads_two_agents() {
    let lab = lab_with_metrics(2);
    let targets: Vec<SocketAddr> = lab.nodes().iter().flat_map(metrics_of).collect();
    assert_eq!(targets.len(), 4);
    let prometheus = Prometheus::start(lab.node(0).add_pod("prometheus").unwrap(), &targets);
    let states = || {
        let targets = prometheus.ask("/api/v1/targets")?["activeTargets"].take();
        Some(
            targets.as_array()?.iter().map(|one| (one["health"].clone(), one["lastError"].clone())).collect(),
        )
    };
    let are_up = |states: &Vec<(Value, Value)>| {
        states.len() == targets.len() && states.iter().all(|(health, _)| health == "up")
    };
    wait_until(|| states().filter(are_up)).unwrap_or_else(|| panic!("{:?}", states()));

    for (target, pods) in targets.iter().zip([1., 1., 0., 0.]) {
        let value = |metric: &str, labels: &[(&str, &str)]| prometheus.value(*target, metric, labels);
        assert_eq!(value("podwire_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.);
        assert_eq!(value("podwire_ready", &[]), 1.);
        assert_eq!(value("podwire_endpoints", &[]), pods);
        let added = [("verb", "add"), ("outcome", "ok")];
        assert_eq!(value("podwire_cni_call_duration_seconds_count", &added), pods);
        assert!(value("podwire_node_list_sync_duration_seconds_count", &[("outcome", "ok")]) >= 1.);
        assert!(value("podwire_reconcile_duration_seconds_sum", &[("outcome", "ok")]) > 0.);
        assert!(value("process_resident_memory_bytes", &[]) > 1e6);
    }
    // The size of this map does not change. The kernel counts nothing for some maps without entries.
    let pin = lab.node(0).bpf_dir().join(maps::FLOWS);
    let shown = lab.node(0).exec(&["bpftool", "-j", "map", "show", "pinned", pin.to_str().unwrap()]).unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let counted = prometheus.value(targets[0], "podwire_table_memory_bytes", &[("table", maps::FLOWS)]);
    assert_eq!(counted, shown["bytes_memlock"].as_f64().unwrap(), "{shown}");
    let tables = || prometheus.series("podwire_table_memory_bytes").len();
    let expected = targets.len() * Table::ALL.len();
    wait_until(|| (tables() == expected).then_some(())).unwrap_or_else(|| panic!("{}", tables()));
    let known = prometheus.ask("/api/v1/metadata").unwrap();
    for (name, metadata) in known.as_object().unwrap() {
        for one in metadata.as_array().unwrap() {
            assert!(one["type"] != "unknown" && one["help"] != "", "{name}: {one}");
        }
    }
    assert_eq!(known["podwire_dropped_packets_total"][0]["type"], "counter");
}

#[test]
fn promtool_finds_no_fault_in_the_metrics() {
    let lab = lab_with_metrics(1);
    let node = lab.node(0);
    node.add_pod("pod").unwrap();
    for target in metrics_of(node) {
        let answer = get_at(node, target, "/metrics");
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        let mut promtool = Command::new(program("promtool"))
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        assert!(output.status.success() && said == ["", ""], "{said:?}\n{text}");
    }
}

#[test]
fn addresses_of_the_node_serve_the_metrics_alone() {
    let lab = lab_with_metrics(1);
    let (node, world) = (lab.node(0), lab.world());
    let status = |ns: &Ns, server: SocketAddr, path: &str| {
        let answer = get_at(ns, server, path);
        answer.strip_prefix("HTTP/1.1 ").map_or(answer.clone(), |rest| rest[..3].to_owned())
    };
    for target in metrics_of(node) {
        assert_eq!(status(world, target, "/metrics"), "200", "{target}");
        for path in ["/healthz", "/readyz", "/readyz?verbose"] {
            assert_eq!(status(world, target, path), "404", "{target} {path}");
        }
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert!(get(node, path).starts_with("HTTP/1.1 200"), "{path}");
    }
    // The node has these addresses, too, but they were not asked for.
    for address in node.overlay_addresses() {
        assert_eq!(status(node, SocketAddr::new(address, PORT), "/metrics"), "nobody listens", "{address}");
    }
}
