//! Every verb, in every order that a runtime may use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use podwire_common::names::{VETH_PREFIX, maps};
use serde_json::{Value, json};
use xtask::lab::{Lab, Node};

use super::{
    Container, INCOMPATIBLE_VERSION, UNKNOWN_CONTAINER, VERSIONS, address, addresses, failed, gc, host_side,
    status, succeeded,
};
use crate::footprint::Footprint;
use crate::sockets::wait_until;
use crate::sweep::metric;

/// The possible steps. Only one of the two containers is deleted and checked by itself: they are
/// alike.
#[derive(Clone, Copy, Debug)]
enum Step {
    AddOne,
    AddOther,
    DelOne,
    CheckOne,
    GcKeepsNone,
    GcKeepsOne,
    GcKeepsOther,
    Status,
}

const STEPS: [Step; 8] = [
    Step::AddOne,
    Step::AddOther,
    Step::DelOne,
    Step::CheckOne,
    Step::GcKeepsNone,
    Step::GcKeepsOne,
    Step::GcKeepsOther,
    Step::Status,
];

/// A node with two containers that come and go, and one of another network that stays.
struct Model<'a> {
    node: &'a Node,
    containers: [Container; 2],
    /// The results of ADD for the attached containers.
    attached: [Option<Value>; 2],
    /// The last results of ADD, whether or not the containers are still attached.
    last: [Value; 2],
    /// The link of the container that stays, and its addresses.
    stays: (String, Vec<String>),
}

#[test]
fn any_three_verbs_in_a_row_leave_what_the_cni_spec_says() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let mut staying = Container::after_another(node, "stays");
    let before = Footprint::of(node, &[]);
    staying.call.config["name"] = json!("another-network");
    let stays = (host_side(&staying), addresses(&staying.add()));
    let containers = ["one", "other"].map(|name| Container::new(node, name));
    let last = [json!({}), json!({})];
    let mut model = Model { node, containers, attached: [None, None], last, stays };
    for (number, step) in every_three_in_a_row().into_iter().map(|step| STEPS[step]).enumerate() {
        model.take(step);
        model.compare(&format!("after step {number}, {step:?}"));
    }
    model.take(Step::GcKeepsNone);
    succeeded(staying.run("DEL", None));
    assert_eq!(Footprint::of(node, &[]), before);
}

impl Model<'_> {
    fn take(&mut self, step: Step) {
        match step {
            Step::AddOne => self.add(0),
            Step::AddOther => self.add(1),
            Step::DelOne => {
                let output = self.containers[0].run("DEL", Some(&self.last[0]));
                assert_eq!(succeeded(output), Value::Null, "DEL prints nothing");
                self.attached[0] = None;
            }
            Step::CheckOne => {
                let output = self.containers[0].run("CHECK", Some(&self.last[0]));
                match self.attached[0] {
                    Some(_) => assert_eq!(succeeded(output), Value::Null, "CHECK prints nothing"),
                    None => failed(&output, UNKNOWN_CONTAINER, &self.containers[0].call.container_id),
                }
            }
            Step::GcKeepsNone => self.gc(&[]),
            Step::GcKeepsOne => self.gc(&[0]),
            Step::GcKeepsOther => self.gc(&[1]),
            Step::Status => assert_eq!(succeeded(status(self.node)), Value::Null, "STATUS prints nothing"),
        }
    }

    fn add(&mut self, index: usize) {
        let result = self.containers[index].add();
        if let Some(before) = &self.attached[index] {
            let (now, before) = (addresses(&result), addresses(before));
            assert_eq!(now, before, "an ADD that is repeated answers the same addresses");
        }
        self.attached[index] = Some(result.clone());
        self.last[index] = result;
    }

    fn gc(&mut self, keeps: &[usize]) {
        let valid: Vec<_> = keeps.iter().map(|index| &self.containers[*index]).collect();
        assert_eq!(succeeded(gc(self.node, "podwire", &valid)), Value::Null, "GC prints nothing");
        for index in (0..2).filter(|index| !keeps.contains(index)) {
            self.attached[index] = None;
        }
    }

    /// Compares disk, map, devices, routes and the pods' own links.
    fn compare(&self, when: &str) {
        let mut wanted = BTreeMap::from([self.stays.clone()]);
        for (container, attached) in self.containers.iter().zip(&self.attached) {
            if let Some(result) = attached {
                wanted.insert(host_side(container), addresses(result));
            }
            let links = container.ns.exec(&["ip", "-brief", "link"]).unwrap();
            assert_eq!(links.contains("eth0"), attached.is_some(), "{when}: the pod has {links}");
        }
        let devices: BTreeSet<_> = wanted.keys().cloned().collect();
        let addresses: BTreeSet<_> = wanted.values().flatten().cloned().collect();
        assert_eq!(addresses.len(), 2 * wanted.len(), "{when}: {wanted:?}");
        assert_eq!(devices_of(self.node), devices, "{when}: devices");
        assert_eq!(files_of(self.node), devices, "{when}: files");
        assert_eq!(routed_by(self.node), addresses, "{when}: routes");
        assert_eq!(endpoints_of(self.node), addresses, "{when}: ENDPOINTS");
    }
}

#[test]
fn a_pods_life_is_the_same_in_every_version() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let mut container = Container::after_another(node, "pod");
    let before = Footprint::of(node, &[]);
    for version in VERSIONS {
        container.call.config["cniVersion"] = json!(version);
        succeeded(container.run("DEL", None));
        let result = container.add();
        assert_eq!(result["cniVersion"], version);
        let again = container.add();
        assert_eq!(address(&again), address(&result), "{version}");
        let pinged = node.exec(&["ping", "-c", "1", "-W", "5", &address(&again)]);
        assert!(pinged.is_ok(), "{version}: {pinged:?}");
        let has_check = version >= "0.4.0";
        let check = || container.run("CHECK", Some(&again));
        match has_check {
            true => assert_eq!(succeeded(check()), Value::Null),
            false => failed(&check(), INCOMPATIBLE_VERSION, "CHECK needs cniVersion 0.4.0"),
        }
        succeeded(container.run("DEL", Some(&again)));
        succeeded(container.run("DEL", Some(&again)));
        if has_check {
            failed(&check(), UNKNOWN_CONTAINER, &container.call.container_id);
        }
        assert_eq!(Footprint::of(node, &[]), before, "{version}");
    }
}

#[test]
fn attachment_added_again_keeps_its_address_while_agent_looks() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = Container::new(node, "pod");
    let mut others = 0;
    // A change of its own Node object makes the agent look at the kernel.
    let mut look = || {
        others += 1;
        let mut list: Value = serde_json::from_str(&lab.node_list_with(others).unwrap()).unwrap();
        list["items"][0]["spec"]["unschedulable"] = json!(others % 2 == 1);
        lab.write_node_list(&list.to_string()).unwrap();
        let nodes = (others + 1).to_string();
        let applied = wait_until(|| (metric(node, "podwire_nodes") == nodes).then_some(()));
        assert!(applied.is_some(), "the Node list with {others} other nodes is not applied");
    };
    let before = address(&pod.add());
    // The plugin begins with this when it adds an attachment again.
    node.ip(&format!("link del {}", host_side(&pod))).unwrap();
    look();
    look();
    assert_eq!(address(&pod.add()), before);
    node.ip(&format!("link del {}", host_side(&pod))).unwrap();
    let released = wait_until(|| endpoints_of(node).is_empty().then_some(()));
    assert!(released.is_some(), "the device is gone for good, but the endpoint is not released");
}

/// Returns indices of [`STEPS`] in which every sequence of three steps occurs once. This is a de
/// Bruijn sequence, with its first two elements repeated at the end.
fn every_three_in_a_row() -> Vec<usize> {
    fn extend(word: &mut [usize; 4], length: usize, period: usize, sequence: &mut Vec<usize>) {
        if length > 3 {
            if 3 % period == 0 {
                sequence.extend(&word[1..=period]);
            }
            return;
        }
        word[length] = word[length - period];
        extend(word, length + 1, period, sequence);
        for step in word[length - period] + 1..STEPS.len() {
            word[length] = step;
            extend(word, length + 1, length, sequence);
        }
    }
    let mut sequence = Vec::new();
    extend(&mut [0; 4], 1, 1, &mut sequence);
    sequence.extend_from_within(..2);
    let triples: BTreeSet<_> = sequence.windows(3).collect();
    assert_eq!(triples.len(), STEPS.len().pow(3));
    sequence
}

pub fn devices_of(node: &Node) -> BTreeSet<String> {
    let links = node.exec(&["ip", "-brief", "link"]).unwrap();
    let names = links.lines().filter_map(|line| line.split(['@', ' ']).next());
    names.filter(|name| name.starts_with(VETH_PREFIX)).map(str::to_owned).collect()
}

fn files_of(node: &Node) -> BTreeSet<String> {
    let files = std::fs::read_dir(node.state_dir().join("endpoints")).unwrap();
    files
        .map(|file| file.unwrap().file_name().into_string().unwrap().trim_end_matches(".json").to_owned())
        .collect()
}

fn routed_by(node: &Node) -> BTreeSet<String> {
    let routes = node.exec(&["ip", "route", "show", "table", "all", "proto", "112"]).unwrap();
    let destinations = routes.lines().filter_map(|line| line.split_whitespace().next());
    destinations.filter(|text| text.parse::<IpAddr>().is_ok()).map(str::to_owned).collect()
}

fn endpoints_of(node: &Node) -> BTreeSet<String> {
    let dump = node.map_dump(maps::ENDPOINTS).unwrap();
    let address = |entry: &Value| -> String {
        let bytes: Vec<u8> = entry["key"]
            .as_array()
            .unwrap()
            .iter()
            .map(|byte| u8::from_str_radix(byte.as_str().unwrap().trim_start_matches("0x"), 16).unwrap())
            .collect();
        Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap()).to_canonical().to_string()
    };
    dump.as_array().unwrap().iter().map(address).collect()
}
