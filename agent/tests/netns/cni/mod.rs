//! The verbs of the CNI specification, run with the real plugin and the real agent as runtimes run
//! them.

mod asked;
mod captured;
mod chain;
mod faults;
mod gc;
mod orders;
mod purge;
mod status;

use podwire_cni::protocol::Attachment;
use serde_json::{Value, json};
use xtask::lab::{CniCall, CniOutput, Lab, Node, Ns};

// CNI specification, "Error", and the plugin's own from 100 on.
const INCOMPATIBLE_VERSION: u32 = 1;
const UNKNOWN_CONTAINER: u32 = 3;
const INVALID_CONFIGURATION: u32 = 7;
const TRY_AGAIN_LATER: u32 = 11;
pub const UNAVAILABLE: u32 = 50;
const UNAVAILABLE_AND_LIMITED: u32 = 51;
const CHECK_FAILED: u32 = 103;

/// The versions that the plugin speaks. CHECK came with 0.4.0, GC and STATUS with 1.1.0.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const NEWEST: &str = "1.1.0";

/// A container with a namespace, attached or not.
struct Container {
    ns: Ns,
    call: CniCall,
}

impl Container {
    fn new(node: &Node, name: &str) -> Self {
        let mut call = node.cni_call("ADD", name, &json!({}));
        call.config["cniVersion"] = json!(NEWEST);
        Self { ns: Ns::create(&call.container_id).unwrap(), call }
    }

    /// Returns a container on a node where an earlier one was added and deleted. The earlier one
    /// leaves a file for good, `last-address`, so every footprint of the test has it.
    fn after_another(node: &Node, name: &str) -> Self {
        let earlier = Self::new(node, "earlier");
        earlier.add();
        succeeded(earlier.run("DEL", None));
        Self::new(node, name)
    }

    /// Runs a verb, with the result of its ADD where the specification requires it.
    fn run(&self, verb: &str, previous: Option<&Value>) -> CniOutput {
        let mut call = self.call.with_command(verb);
        if let Some(previous) = previous {
            call.config["prevResult"] = previous.clone();
        }
        call.run().unwrap()
    }

    fn add(&self) -> Value {
        succeeded(self.run("ADD", None))
    }

    /// Returns the attachment as GC lists it.
    fn attachment(&self) -> Value {
        json!({ "containerID": self.call.container_id, "ifname": self.call.interface })
    }
}

/// Returns a node without an agent. Its podCIDR has room for one pod.
fn lab_for_one_pod() -> Lab {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let mut list = lab.node_list().unwrap();
    for item in list["items"].as_array_mut().unwrap() {
        item["spec"]["podCIDR"] = json!("10.244.1.0/30");
        item["spec"]["podCIDRs"] = json!(["10.244.1.0/30"]);
    }
    lab.write_node_list(&list.to_string()).unwrap();
    lab
}

fn gc(node: &Node, network: &str, valid: &[&Container]) -> CniOutput {
    let mut call = of_the_node(node, "GC");
    call.config["name"] = json!(network);
    call.config["cni.dev/valid-attachments"] = valid.iter().map(|container| container.attachment()).collect();
    call.run().unwrap()
}

pub fn status(node: &Node) -> CniOutput {
    of_the_node(node, "STATUS").run().unwrap()
}

/// Returns a call that concerns no pod. Its variables are empty, which counts as not set.
fn of_the_node(node: &Node, verb: &str) -> CniCall {
    let mut call = node.cni_call(verb, "", &json!({}));
    call.config["cniVersion"] = json!(NEWEST);
    (call.container_id, call.interface, call.args) = Default::default();
    call.netns = std::path::PathBuf::new();
    call
}

#[track_caller]
pub fn succeeded(output: CniOutput) -> Value {
    assert!(output.success, "{output:?}");
    output.answer
}

#[track_caller]
pub fn failed(output: &CniOutput, code: u32, says: &str) {
    assert!(!output.success && output.answer["code"] == code, "{code}: {output:?}");
    assert!(output.answer["msg"].as_str().unwrap().contains(says), "{says:?}: {output:?}");
}

/// Returns the pod's address in a result of any version.
fn address(result: &Value) -> String {
    let old = &result["ip4"]["ip"];
    let ips = result["ips"].as_array();
    let new = ips.and_then(|ips| ips.iter().find(|ip| !ip["gateway"].is_null())).map(|ip| &ip["address"]);
    let text = new.unwrap_or(old).as_str().unwrap_or_else(|| panic!("no address in {result}"));
    text.trim_end_matches("/32").to_owned()
}

/// Returns all of the pod's addresses in a result of 0.3.0 or later.
fn addresses(result: &Value) -> Vec<String> {
    let texts = result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap());
    texts.map(|text| text.split('/').next().unwrap().to_owned()).collect()
}

/// Returns the name of the container's link on the node.
fn host_side(container: &Container) -> String {
    let call = &container.call;
    Attachment { container_id: call.container_id.clone(), interface: call.interface.clone() }.host_interface()
}
