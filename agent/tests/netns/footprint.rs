//! All that pods leave on a node: disk, maps, pins, routes, devices, programs, and the pods' own
//! side.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use podwire_common::names::{ROUTE_PROTOCOL, VETH_PREFIX, maps};
use serde_json::{Value, json};
use xtask::lab::{Node, Ns, Pod};

/// Maps that are not compared:
///
/// - maps that change with every packet and belong to no pod in particular
/// - the map about sockets of the node's own processes
/// - the backends that clients keep
/// - counts that an agent leaves wrong when it is killed, until it counts again
const NOT_COMPARED: [&str; 11] = [
    maps::DROPS,
    maps::TRAFFIC,
    maps::GENERATION,
    maps::EPOCHS,
    maps::FLOWS,
    maps::FLOWS6,
    maps::BEGINNINGS,
    maps::REDIRECTED_SOCKETS,
    maps::AFFINITY,
    maps::HOLDERS,
    maps::ROOM,
];
/// Files that are compared by their names only: the running agent's lock, and the address that the
/// agent assigned last.
const NOT_READ: [&str; 2] = ["agent.lock", "last-address"];

/// The objects by kind and name, as text. Names replace values that are assigned by chance:
/// addresses, link addresses, numbers of links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint(BTreeMap<String, String>);

impl Footprint {
    /// Returns the footprint of a node. The values of these pods get names.
    pub fn of(node: &Node, pods: &[&Pod]) -> Self {
        let mut found = BTreeMap::new();
        let mut add = |kind: &str, name: &str, what: String| {
            found.insert(format!("{kind} {name}"), what);
        };
        for link in json_of(node, &["ip", "-json", "-details", "link"]) {
            let name = text(&link["ifname"]);
            if name.starts_with(VETH_PREFIX) {
                for direction in ["ingress", "egress"] {
                    let filters = json_of(node, &["tc", "-json", "filter", "show", "dev", name, direction]);
                    let programs =
                        filters.iter().filter(|filter| filter["options"].is_object()).map(|filter| {
                            json!([
                                filter["pref"],
                                filter["options"]["handle"],
                                filter["options"]["bpf_name"]
                            ])
                        });
                    add(
                        "programs",
                        &format!("{name} {direction}"),
                        json!(programs.collect::<Vec<_>>()).to_string(),
                    );
                }
                for queue in json_of(node, &["tc", "-json", "qdisc", "show", "dev", name]) {
                    let kind = text(&queue["kind"]);
                    add("queue", &format!("{name} {kind}"), queue["options"].to_string());
                }
            }
            let shown = json!([
                link["flags"],
                link["mtu"],
                link["operstate"],
                link["address"],
                link["linkinfo"]["info_kind"]
            ]);
            add("link", name, shown.to_string());
        }
        let protocol = ROUTE_PROTOCOL.to_string();
        let routes = node.exec(&["ip", "route", "show", "table", "all", "proto", &protocol]).unwrap();
        for route in routes.lines() {
            add("route", route.trim(), String::new());
        }
        // Each load of the programs has its pins in a folder of its own number, so only the count
        // of these pins is compared.
        let of_load = node.bpf_dir().join("programs");
        let (of_loads, pins): (Vec<_>, Vec<_>) =
            below(node.bpf_dir()).into_iter().partition(|pin| pin.starts_with(&of_load));
        add("pins", &of_load.display().to_string(), of_loads.len().to_string());
        for pin in pins {
            add("pin", &pin.display().to_string(), String::new());
        }
        // The agent saves the Node list some time after it has come, first as `nodes.tmp`.
        let is_node_list = |file: &PathBuf| file.ends_with("nodes.json") || file.ends_with("nodes.tmp");
        for file in below(node.state_dir()).into_iter().filter(|file| !is_node_list(file)) {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            let read = !NOT_READ.contains(&name.as_str());
            let content = if read { std::fs::read_to_string(&file).unwrap() } else { String::new() };
            add("file", &file.display().to_string(), content);
        }
        for map in maps::ALL.iter().filter(|map| !NOT_COMPARED.contains(map)) {
            for entry in node.map_dump(map).unwrap().as_array().unwrap() {
                let (key, mut value) = (&entry["formatted"]["key"], entry["formatted"]["value"].clone());
                if *map == maps::EGRESS_GUARDS {
                    // The programs write another time into `paid` with each packet.
                    value["paid"] = Value::Null;
                    let index = |pod: &Pod| node.ifindex(pod.host_interface()).unwrap();
                    let owner = pods.iter().find(|pod| key.as_u64() == Some(index(pod).into()));
                    add(map, owner.map_or("nobody", |pod| pod.host_interface()), value.to_string());
                    continue;
                }
                add(map, &key.to_string(), value.to_string());
            }
        }
        for pod in pods {
            let link = &json_of(pod, &["ip", "-json", "address", "show", "dev", "eth0"])[0];
            let addresses = link["addr_info"].as_array().unwrap().iter();
            let addresses = addresses.map(|entry| {
                json!([
                    entry["local"],
                    entry["prefixlen"],
                    entry["scope"],
                    entry["nodad"],
                    entry["tentative"]
                ])
            });
            add("pod", "addresses", json!([link["mtu"], addresses.collect::<Vec<_>>()]).to_string());
            for family in ["-4", "-6"] {
                add("pod routes", family, pod.exec(&["ip", family, "route"]).unwrap());
            }
            add("pod", "neighbours", pod.exec(&["ip", "neighbour"]).unwrap());
        }
        let names: Vec<_> =
            pods.iter().enumerate().flat_map(|(number, pod)| names_of(node, pod, number)).collect();
        let named =
            |text: &str| names.iter().fold(text.to_owned(), |text, (value, name)| text.replace(value, name));
        Self(found.iter().map(|(key, value)| (named(key), named(value))).collect())
    }

    /// Lists the differences, one a line. An empty list means that the two are equal.
    pub fn differences(&self, wanted: &Self) -> Vec<String> {
        let keys: BTreeSet<_> = self.0.keys().chain(wanted.0.keys()).collect();
        let differs = keys.into_iter().filter(|key| self.0.get(*key) != wanted.0.get(*key));
        differs
            .map(|key| format!("{key}: {:?} and should be {:?}", self.0.get(key), wanted.0.get(key)))
            .collect()
    }
}

/// Returns a pod's values and their names. A value that contains another comes first.
fn names_of(node: &Node, pod: &Pod, number: usize) -> Vec<(String, String)> {
    let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    let list = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
    let ifindex = node.ifindex(pod.host_interface()).unwrap();
    let of_pod = [
        (pod.host_interface().to_owned(), "LINK"),
        (pod.call().container_id.clone(), "CONTAINER"),
        (mac(pod.eth0_mac()), "MAC"),
        (mac(pod.host_mac()), "HOST-MAC"),
        (list(&pod.eth0_mac()), "MAC"),
        (list(&pod.host_mac()), "HOST-MAC"),
        (format!("\"ifindex\":{ifindex},"), "IFINDEX"),
    ];
    let of_pod = of_pod.map(|(value, name)| (value, name.to_owned()));
    let of_addresses = pod.addresses().iter().flat_map(|address| {
        let (bytes, name) = match address {
            IpAddr::V4(address) => (list(&address.octets()), "IPV4"),
            IpAddr::V6(address) => (list(&address.octets()), "IPV6"),
        };
        [
            (format!("{bytes}]"), format!("{name}]")),
            (format!("{address}/"), format!("{name}/")),
            (format!("{address} "), format!("{name} ")),
            (format!("\"{address}\""), format!("\"{name}\"")),
        ]
    });
    let all = of_pod.into_iter().chain(of_addresses);
    all.map(|(value, name)| (value, format!("{name}-{number}"))).collect()
}

fn json_of(ns: &Ns, command: &[&str]) -> Vec<Value> {
    let text = ns.exec(command).unwrap();
    // `tc` prints nothing when there is nothing to list.
    if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).unwrap() }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Lists every file below a folder.
fn below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(below(&path));
        } else {
            found.insert(path);
        }
    }
    found
}
