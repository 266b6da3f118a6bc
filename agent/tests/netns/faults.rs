//! The fault matrix: the agent or the plugin stops at each numbered step of a pod's life. Nothing
//! may get lost, and nothing may be left.
//!
//! After every fault the runtime does what runtimes do. It repeats the call, or it deletes what it
//! has and starts again with another container. Then disk, maps, pins, routes, devices, programs
//! and the pod's own side are as after a run without a fault.

use std::fmt::Write as _;
use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use podwire_cni::fault::{Fault, Process, Step, VARIABLE};
use serde_json::{Value, json};
use xtask::lab::{CniOutput, Families, Lab, Node, Pod, is_soak, traffic};

use crate::footprint::Footprint;

/// The runtime's reaction to a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    /// It repeats the call.
    Same,
    /// It runs DEL, and then ADD of another container.
    Anew,
}

/// A line of the matrix.
struct Row {
    families: Families,
    step: Step,
    fault: Fault,
    retry: Retry,
    /// The answer to the runtime.
    answer: String,
    /// Differences from the outcome of a run without the fault.
    differences: Vec<String>,
}

/// A node, and its footprint with and without one pod.
struct Scene {
    families: Families,
    lab: Lab,
    with_pod: Footprint,
    without: Footprint,
}

#[test]
fn retry_ends_the_same_whatever_stops_at_any_step() {
    let kinds =
        [Fault::Kill, Fault::Fail].map(|fault| [Retry::Same, Retry::Anew].map(|retry| (fault, retry)));
    let mut kinds: Vec<_> =
        kinds.concat().into_iter().map(|(fault, retry)| (Families::Dual, fault, retry)).collect();
    // A pod of one family passes the same steps: one kind of fault shows that each family alone
    // does.
    if is_soak() {
        let alone = [Families::V4, Families::V6Only];
        kinds.extend(alone.map(|families| (families, Fault::Kill, Retry::Same)));
    }
    let number = kinds.len();
    let workers: Vec<_> = kinds
        .into_iter()
        .map(|(families, fault, retry)| thread::spawn(move || rows(families, fault, retry)))
        .collect();
    let mut rows: Vec<Row> = workers
        .into_iter()
        .flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        .collect();
    let order: Vec<Step> = Step::ADD.into_iter().chain(Step::DEL).collect();
    rows.sort_by_key(|row| order.iter().position(|step| *step == row.step));
    // Print past the test harness, which shows only the output of failed tests.
    std::io::stdout().write_all(table(&rows).as_bytes()).unwrap();
    assert_eq!(rows.len(), number * order.len() - 2);
    for row in rows {
        assert!(
            row.differences.is_empty(),
            "{:?} {} {}: {:#?}",
            row.families,
            row.step.name(),
            row.fault.name(),
            row.differences
        );
    }
}

fn rows(families: Families, fault: Fault, retry: Retry) -> Vec<Row> {
    let scene = Scene::new(families);
    // A printed result cannot fail any more.
    let adds = Step::ADD.into_iter().filter(|step| (*step, fault) != (Step::ResultPrinted, Fault::Fail));
    let adds = adds.map(|step| scene.interrupted_add(step, fault, retry));
    let dels = Step::DEL.into_iter().map(|step| scene.interrupted_del(step, fault, retry));
    adds.chain(dels).collect()
}

impl Scene {
    fn new(families: Families) -> Self {
        let lab = Lab::builder().nodes(1).families(families).build().unwrap();
        let node = lab.node(0);
        let pod = node.add_pod_with("reference", &wanted()).unwrap();
        let with_pod = Footprint::of(node, &[&pod]);
        pod.delete().unwrap();
        let without = Footprint::of(node, &[]);
        Self { families, lab, with_pod, without }
    }

    fn node(&self) -> &Node {
        self.lab.node(0)
    }

    fn interrupted_add(&self, step: Step, fault: Fault, retry: Retry) -> Row {
        let name = name_of(step);
        self.lab.add_namespace(&format!("node1-{name}")).unwrap();
        let answer = self.interrupted("ADD", &name, step, fault);
        let mut differences = Vec::new();
        if fault == Fault::Fail {
            // An ADD that was reported as failed has left nothing, even before the next call.
            differences.extend(Footprint::of(self.node(), &[]).differences(&self.without));
        }
        let pod = match retry {
            Retry::Same => self.node().add_pod_again(&name, &wanted()).unwrap(),
            Retry::Anew => {
                self.delete(&name);
                self.node().add_pod_with(&format!("{name}-anew"), &wanted()).unwrap()
            }
        };
        differences.extend(Footprint::of(self.node(), &[&pod]).differences(&self.with_pod));
        self.use_it(&pod);
        pod.delete().unwrap();
        differences.extend(self.left());
        Row { families: self.families, step, fault, retry, answer: shown(&answer), differences }
    }

    fn interrupted_del(&self, step: Step, fault: Fault, retry: Retry) -> Row {
        let name = name_of(step);
        let pod = self.node().add_pod_with(&name, &wanted()).unwrap();
        self.use_it(&pod);
        let answer = self.interrupted("DEL", &name, step, fault);
        let mut differences = Vec::new();
        if retry == Retry::Same {
            self.delete(&name);
            differences.extend(self.left());
        }
        // A runtime that gives up does not repeat DEL. The next pod must work even if the agent
        // does not know of this DEL.
        let next = self.node().add_pod_with(&format!("{name}-next"), &json!({})).unwrap();
        self.use_it_without_ports(&next);
        next.delete().unwrap();
        self.delete(&name);
        differences.extend(self.left());
        Row { families: self.families, step, fault, retry, answer: shown(&answer), differences }
    }

    /// Makes a call. The process of the step dies after the step, or sees the step fail. Afterwards
    /// an agent serves: a new one if the agent died, otherwise the same.
    fn interrupted(&self, command: &str, name: &str, step: Step, fault: Fault) -> CniOutput {
        let node = self.node();
        let fault_at = format!("{}:{}", step.name(), fault.name());
        let mut call = node.cni_call(command, name, &wanted());
        if step.process() == Process::Plugin {
            call.environment.push((VARIABLE.to_owned(), fault_at));
            return call.run().unwrap();
        }
        node.kill_agent().unwrap();
        node.start_agent_with(&[(VARIABLE, &fault_at)]).unwrap();
        let output = call.run().unwrap();
        if fault == Fault::Kill {
            node.wait_for_agent_end().unwrap();
            node.start_agent().unwrap();
        }
        output
    }

    /// Returns what is left after a DEL. It waits two seconds at most, fewer than the ten after which
    /// the agent looks for leftovers: DEL answers before a long purge of the pod's flows ends, and
    /// on a busy machine every purge may be long.
    fn left(&self) -> Vec<String> {
        let start = Instant::now();
        loop {
            let left = Footprint::of(self.node(), &[]).differences(&self.without);
            if left.is_empty() || start.elapsed() > Duration::from_secs(2) {
                return left;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn delete(&self, name: &str) {
        let deleted = self.node().cni_call("DEL", name, &wanted()).run().unwrap();
        assert!(deleted.success, "{deleted:?}");
    }

    /// Sends packets of all kinds that leave something behind: through the host's stack and to the
    /// hostPort.
    fn use_it(&self, pod: &Pod) {
        self.use_it_without_ports(pod);
        for address in self.node().addresses() {
            let route = traffic::Route::translated((address, 9088).into(), 8080);
            traffic::tcp_exchange_on(self.lab.world(), pod, route, 1000).unwrap();
        }
    }

    fn use_it_without_ports(&self, pod: &Pod) {
        for (address, world) in pod.addresses().iter().zip(self.lab.world_addresses()) {
            traffic::udp_exchange(self.node(), pod, *address, 8080, 100).unwrap();
            traffic::udp_exchange(pod, self.lab.world(), world, 8080, 100).unwrap();
        }
    }
}

/// Returns a hostPort and limits, so that a pod has something of every kind.
fn wanted() -> Value {
    json!({
        "portMappings": [{ "hostPort": 9088, "containerPort": 8080, "protocol": "tcp" }],
        "bandwidth": { "ingressRate": 100_000_000, "egressRate": 100_000_000 },
    })
}

fn name_of(step: Step) -> String {
    step.name().replace('-', "")
}

fn shown(output: &CniOutput) -> String {
    match (&output.answer, output.success) {
        (_, true) => "success".to_owned(),
        (Value::Object(answer), false) if answer.contains_key("code") => format!("code {}", answer["code"]),
        _ => "killed".to_owned(),
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "\n| {:<8} | {:<7} | {:<6} | {:<30} | {:<5} | {:<11} | {:<14} | {:<13} |\n",
        "families", "step", "of", "stops when", "fault", "runtime told", "then", "in the end"
    );
    for row in rows {
        let process = match row.step.process() {
            Process::Plugin => "plugin",
            Process::Agent => "agent",
        };
        let retry = match row.retry {
            Retry::Same => "the same call",
            Retry::Anew => "DEL, a new pod",
        };
        let end = if row.differences.is_empty() { "as without it" } else { "DIFFERS" };
        let (step, what, fault) = (row.step.name(), row.step.what(), row.fault.name());
        let families = format!("{:?}", row.families);
        writeln!(
            text,
            "| {families:<8} | {step:<7} | {process:<6} | {what:<30} | {fault:<5} | {:<12} | {retry:<14} | {end:<13} |",
            row.answer
        )
        .unwrap();
    }
    text
}
