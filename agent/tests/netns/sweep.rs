//! The agent puts back what others take away, and removes what has no owner.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use podwire_common::names::maps;
use podwire_common::reason::Path;
use serde_json::{Value, json};
use xtask::lab::traffic::Route;
use xtask::lab::{Lab, Node, Pod, traffic};

use crate::check::Counted;
use crate::reach;
use crate::sockets::wait_until;

const MEBIBYTE: u64 = 1 << 20;
/// Addresses of no pod in the podCIDRs of the first node.
const STRAYS: [&str; 2] = ["10.244.1.99", "fd00:10:244:1::99"];

#[test]
fn removed_or_replaced_programs_are_attached_again() {
    let lab = Lab::builder().agent_arguments(&["--uplink-xdp", "generic"]).build().unwrap();
    let node = lab.node(0);
    let filter = node.add_pod_with("filter", &host_port()).unwrap();
    let [qdisc, replaced] = ["qdisc", "replaced"].map(|name| node.add_pod(name).unwrap());
    let far = lab.node(1).add_pod("far").unwrap();
    let pin = |name: &str| node.bpf_dir().join("links").join(name).display().to_string();
    let stranger = node.bpf_dir().join("stranger").display().to_string();

    node.exec(&["tc", "filter", "del", "dev", filter.host_interface(), "egress"]).unwrap();
    node.exec(&["tc", "qdisc", "del", "dev", qdisc.host_interface(), "clsact"]).unwrap();
    bpftool(&["prog", "pin", "id", &program(node, replaced.host_interface(), "egress"), &stranger]);
    let place = ["dev", replaced.host_interface(), "ingress", "pref", "1", "handle", "1"];
    let by = ["bpf", "da", "object-pinned", &stranger];
    node.exec(&[&["tc", "filter", "replace"][..], &place, &by].concat()).unwrap();
    node.exec(&["tc", "filter", "del", "dev", "podwire-vxlan", "ingress"]).unwrap();
    bpftool(&["link", "detach", "pinned", &pin("from_uplink-eth0")]);
    bpftool(&["link", "detach", "pinned", &pin("uplink_xdp-eth0")]);
    let connect = links(node).into_iter().find(|name| name.starts_with("connect4-")).unwrap();
    bpftool(&["link", "detach", "pinned", &pin(&connect)]);
    std::fs::remove_file(&stranger).unwrap();

    let expected = [
        (filter.host_interface(), "to_pod", "no filter"),
        (qdisc.host_interface(), "from_pod", "no filter"),
        (qdisc.host_interface(), "to_pod", "no filter"),
        (replaced.host_interface(), "from_pod", "stranger"),
        ("podwire-vxlan", "from_overlay", "no filter"),
        ("eth0", "from_uplink", "no program"),
        ("eth0", "uplink_xdp", "no program"),
        ("cgroup-", "connect4", "no program"),
    ];
    let said = |(device, program, found): &(&str, &str, &str)| {
        let log = node.agent_log();
        let mut lines = log.lines().filter(|line| line.contains("attached again"));
        lines.any(|line| {
            line.contains(device)
                && line.contains(&format!("program=\"{program}\""))
                && line.contains(&format!("found=\"{found}"))
                || *found == "stranger" && line.contains(device) && line.contains("found=\"program ")
        })
    };
    let told = wait_until(|| expected.iter().all(said).then_some(()));
    assert!(told.is_some(), "the agent has not reported every program: {}", node.agent_log_tail(30));
    let before = Counted::quiet(&lab);
    for pod in [&filter, &qdisc, &replaced] {
        let mut check = pod.call().with_command("CHECK");
        check.config["prevResult"] = pod.result().clone();
        let checked = check.run().unwrap();
        assert!(checked.success, "{checked:?}");
        traffic::tcp_exchange(pod, &far, far.address(), 8080, MEBIBYTE).unwrap();
    }
    let (ways, others) = ([(0, Path::TunnelOut), (0, Path::TunnelIn)], [(0, Path::TunnelInDevice)]);
    Counted::quiet(&lab).since(&before).expect(&ways, &others).unwrap();
    assert_eq!(
        program(node, replaced.host_interface(), "ingress"),
        program(node, filter.host_interface(), "ingress")
    );
    let shown = node.exec(&["ip", "link", "show", "dev", "eth0"]).unwrap();
    assert!(shown.contains("xdpgeneric"), "{shown}");
    let route = Route::translated("127.0.0.1:9088".parse().unwrap(), 8080);
    traffic::tcp_exchange_on(node, &filter, route, MEBIBYTE).unwrap();
    assert_eq!(metric(node, "podwire_programs_reattached_total"), expected.len().to_string());
}

#[test]
fn what_nobody_owns_goes_and_a_stray_link_after_a_minute() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod_with("pod", &host_port()).unwrap();
    // The kernel reports changes of links, but none of maps.
    let endpoints = entries(node, maps::ENDPOINTS);
    let frontends = entries(node, maps::FRONTENDS);
    // The agent may look in this moment and remove a copy at once.
    let copied = wait_until(|| {
        copy_entry(node, maps::ENDPOINTS, |key| key[15] = 99);
        (entries(node, maps::ENDPOINTS) != endpoints).then_some(())
    });
    assert!(copied.is_some());
    copy_entry(node, maps::FRONTENDS, |key| key[17] ^= 1);
    let pin = node.bpf_dir().join("links/to_nowhere-eth9");
    let from = node.bpf_dir().join("links/to_uplink-eth0").display().to_string();
    let shown: Value = serde_json::from_str(&bpftool(&["-j", "link", "show", "pinned", &from])).unwrap();
    bpftool(&["link", "pin", "id", &shown["id"].to_string(), &pin.display().to_string()]);
    let stray = "pw00000000000a";
    let begun = Instant::now();
    node.ip(&format!(
        "link add {stray} type veth peer name peer\nlink add pw00000000000b type bridge\nlink set {stray} up\n\
         route add {} dev {stray} proto 112\nroute add {} dev {stray} proto 112",
        STRAYS[0], STRAYS[1]
    ))
    .unwrap();

    let swept = wait_until(|| {
        let routes = node.exec(&["ip", "route", "show", "table", "all", "proto", "112"]).unwrap();
        let clean = entries(node, maps::ENDPOINTS) == endpoints
            && entries(node, maps::FRONTENDS) == frontends
            && !pin.exists()
            && !STRAYS.iter().any(|address| routes.contains(address));
        clean.then_some(())
    });
    assert!(swept.is_some(), "{}", node.agent_log_tail(20));
    let is_there = |device: &str| node.exec(&["ip", "link", "show", "dev", device]).is_ok();
    assert!(
        begun.elapsed() > Duration::from_secs(60) || is_there(stray),
        "an ADD under way has lost its link"
    );
    std::thread::sleep(Duration::from_secs(60).saturating_sub(begun.elapsed()));
    assert!(wait_until(|| (!is_there(stray)).then_some(())).is_some(), "{}", node.agent_log_tail(20));
    assert!(is_there("pw00000000000b"), "the agent removed a bridge, which is not a pod's link");
    assert!(is_there(pod.host_interface()));
    reach(node, &pod);
}

#[test]
fn before_the_first_node_list_only_gone_pods_are_released() {
    let lab = Lab::builder().node_file().build().unwrap();
    let node = lab.node(0);
    let [staying, gone, going] = ["staying", "gone", "going"].map(|name| node.add_pod(name).unwrap());
    let list = lab.node_list().unwrap();
    node.kill_agent().unwrap();
    lab.write_node_list("no list").unwrap();
    node.ip(&format!("link del {}", gone.host_interface())).unwrap();
    for address in STRAYS {
        node.ip(&format!("route add {address} dev lo proto 112")).unwrap();
    }
    node.spawn_agent().unwrap();
    let file = |pod: &Pod| node.state_dir().join("endpoints").join(format!("{}.json", pod.host_interface()));
    assert!(wait_until(|| (!file(&gone).exists()).then_some(())).is_some(), "{}", node.agent_log_tail(20));
    node.ip(&format!("link del {}", going.host_interface())).unwrap();
    assert!(wait_until(|| (!file(&going).exists()).then_some(())).is_some(), "{}", node.agent_log_tail(20));
    assert!(file(&staying).exists());
    let routes = || node.exec(&["ip", "route", "show", "table", "all", "proto", "112"]).unwrap();
    for to in [&STRAYS[..], &["10.244.2.0/24", "fd00:10:244:2::/64"]].concat() {
        assert!(routes().contains(to), "{to}: {}", routes());
    }
    let peers = node.map_dump(maps::TUNNEL_PEERS).unwrap().as_array().unwrap().len();
    assert_eq!(peers, 2, "an address of each family of node 2");
    lab.write_node_list(&list.to_string()).unwrap();
    node.wait_ready().unwrap();
    let has_strays = || STRAYS.iter().any(|address| routes().contains(address));
    assert!(wait_until(|| (!has_strays()).then_some(())).is_some(), "{}", routes());
    reach(node, &staying);
}

/// udev and networkd are known to change link addresses.
#[test]
fn pod_with_a_changed_link_address_keeps_its_network() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let (pod, far) = (node.add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
    node.kill_agent().unwrap();
    node.ip(&format!("link set {} address 02:00:00:00:00:99", pod.host_interface())).unwrap();
    node.start_agent().unwrap();
    reach(&pod, &far);
    let mut check = pod.call().with_command("CHECK");
    check.config["prevResult"] = pod.result().clone();
    let checked = check.run().unwrap();
    assert!(
        !checked.success && checked.answer["msg"].as_str().unwrap().contains("MAC address"),
        "{checked:?}"
    );
    assert!(node.agent_log().contains("has given"), "{}", node.agent_log_tail(20));
    let mac = pod.host_mac().map(|byte| format!("{byte:02x}")).join(":");
    node.ip(&format!("link set {} address {mac}", pod.host_interface())).unwrap();
    let checked = check.run().unwrap();
    assert!(checked.success, "{checked:?}");
    reach(&pod, node);
}

#[test]
fn a_renamed_link_gets_its_name_back() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let (pod, far) = (node.add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
    let name = pod.host_interface().to_owned();
    let index = node.ifindex(&name).unwrap();
    let has_its_name = || (node.ifindex(&name).ok() == Some(index)).then_some(());
    let serves = || {
        reach(&pod, &far);
        reach(node, &pod);
    };
    let rename = || node.ip(&format!("link set {name} name elsewhere")).unwrap();
    rename();
    assert!(wait_until(has_its_name).is_some(), "{}", node.agent_log_tail(20));
    assert_eq!(repairs(node, "link-name"), 1);
    serves();
    // Rename it while no agent looks.
    node.kill_agent().unwrap();
    rename();
    node.start_agent().unwrap();
    assert!(has_its_name().is_some(), "{}", node.agent_log_tail(20));
    assert_eq!(repairs(node, "link-name"), 1);
    serves();
    // Rename it and remove the maps, which hold its ifindex.
    node.kill_agent().unwrap();
    rename();
    std::fs::remove_dir_all(node.bpf_dir()).unwrap();
    node.start_agent().unwrap();
    assert!(has_its_name().is_some(), "{}", node.agent_log_tail(20));
    serves();
    assert_eq!(repairs(node, "link-name"), 1);
    assert_eq!(metric(node, "podwire_endpoints"), "1");
}

#[test]
fn a_renamed_link_serves_while_another_has_its_name() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let (pod, far) = (node.add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
    let name = pod.host_interface().to_owned();
    node.ip(&format!("link set {name} name elsewhere\nlink add {name} type veth peer name squatter"))
        .unwrap();
    node.exec(&["tc", "filter", "del", "dev", "elsewhere", "egress"]).unwrap();
    let attached =
        || node.exec(&["tc", "filter", "show", "dev", "elsewhere", "egress"]).unwrap().contains("to_pod");
    assert!(wait_until(|| attached().then_some(())).is_some(), "{}", node.agent_log_tail(20));
    let squatters = node.exec(&["tc", "filter", "show", "dev", &name, "egress"]).unwrap();
    assert!(!squatters.contains("to_pod"), "{squatters}");
    reach(&pod, &far);
    node.restart_agent().unwrap();
    reach(node, &pod);
    pod.delete().unwrap();
    assert_eq!(node.map_dump(maps::ENDPOINTS).unwrap(), json!([]));
    assert!(node.exec(&["ip", "link", "show", "dev", "elsewhere"]).is_err(), "the pod's link is left");
}

fn host_port() -> Value {
    json!({ "portMappings": [{ "hostPort": 9088, "containerPort": 8080, "protocol": "tcp" }] })
}

fn bpftool(arguments: &[&str]) -> String {
    let output = Command::new("bpftool").args(arguments).output().unwrap();
    assert!(output.status.success(), "bpftool {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the number of the program in a device's filter at priority 1.
fn program(node: &Node, device: &str, direction: &str) -> String {
    let shown = node.exec(&["tc", "-j", "filter", "show", "dev", device, direction, "pref", "1"]).unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let mut ids =
        shown.as_array().unwrap().iter().filter_map(|filter| filter["options"]["prog"]["id"].as_u64());
    ids.next_back().unwrap_or_else(|| panic!("no program: {shown}")).to_string()
}

/// Returns the names of pinned links.
fn links(node: &Node) -> Vec<String> {
    let entries = std::fs::read_dir(node.bpf_dir().join("links")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Returns the entries in a fixed order: a hash map has none.
fn entries(node: &Node, map: &str) -> Vec<String> {
    let dump = node.map_dump(map).unwrap();
    let mut entries: Vec<String> = dump.as_array().unwrap().iter().map(Value::to_string).collect();
    entries.sort();
    entries
}

/// Adds an entry like the first one, with another key.
fn copy_entry(node: &Node, map: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let dump = node.map_dump(map).unwrap();
    let bytes = |value: &Value| -> Vec<u8> {
        let byte =
            |byte: &Value| u8::from_str_radix(byte.as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
        value.as_array().unwrap().iter().map(byte).collect()
    };
    let (mut key, value) = (bytes(&dump[0]["key"]), bytes(&dump[0]["value"]));
    change(&mut key);
    let pin = node.bpf_dir().join(map).display().to_string();
    let text = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>();
    let mut arguments = vec!["map".to_owned(), "update".into(), "pinned".into(), pin, "key".into()];
    arguments.extend(text(&key));
    arguments.push("value".into());
    arguments.extend(text(&value));
    bpftool(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Returns status and body of /readyz.
pub fn readyz(node: &Node) -> (u16, String) {
    let text = get(node, "/readyz");
    let status = text.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status.unwrap_or_else(|| panic!("no status in {text}")), body.unwrap_or_default())
}

fn get(node: &Node, path: &str) -> String {
    try_get(node, path).unwrap()
}

fn try_get(node: &Node, path: &str) -> io::Result<String> {
    let mut stream = node.enter(|| TcpStream::connect("127.0.0.1:9790")).unwrap()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Returns for how many subjects a condition holds, according to /metrics.
pub fn condition(node: &Node, name: &str) -> usize {
    let text = get(node, "/metrics");
    let start = format!("podwire_condition{{condition=\"{name}\",");
    let line = text.lines().find(|line| line.starts_with(&start));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Returns the lines of /readyz about a condition.
pub fn told(node: &Node, name: &str) -> Vec<String> {
    let start = format!("{name} (");
    conditions(node).into_iter().filter(|line| line.starts_with(&start)).collect()
}

/// Returns the lines of /readyz about all conditions.
pub fn conditions(node: &Node) -> Vec<String> {
    try_conditions(node).unwrap()
}

fn try_conditions(node: &Node) -> io::Result<Vec<String>> {
    let text = try_get(node, "/readyz?verbose")?;
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    Ok(body.lines().skip(1).map(str::to_owned).collect())
}

/// Waits until a condition is reported with these words. The agent may just have been started.
#[track_caller]
pub fn comes(node: &Node, name: &str, words: &str) -> String {
    let start = format!("{name} (");
    let is_it = |line: &String| line.starts_with(&start) && line.contains(words);
    let line = || try_conditions(node).ok()?.into_iter().find(is_it);
    wait_until(line).unwrap_or_else(|| panic!("no {name} with {words}\n{}", node.agent_log_tail(20)))
}

/// Waits until a condition no longer holds.
#[track_caller]
pub fn goes(node: &Node, name: &str) {
    let is_gone = || (condition(node, name) == 0).then_some(());
    wait_until(is_gone).unwrap_or_else(|| panic!("{:?}\n{}", told(node, name), node.agent_log_tail(20)));
}

/// Returns how often this agent has put back something that others had changed.
pub fn repairs(node: &Node, what: &str) -> u64 {
    metric(node, &format!("podwire_repairs_total{{what=\"{what}\"}}")).parse().unwrap()
}

/// Returns a value of /metrics.
pub fn metric(node: &Node, name: &str) -> String {
    let text = get(node, "/metrics");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in\n{text}")).to_owned()
}

#[test]
fn pods_that_go_while_the_agent_looks_are_no_fault_of_the_node() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let limit = json!({ "bandwidth": { "ingressRate": 10_000_000 } });
    let pods: Vec<_> = (0..40).map(|n| node.add_pod_with(&format!("pod{n}"), &limit).unwrap()).collect();
    thread::scope(|scope| {
        let going = scope.spawn(|| {
            for pod in &pods {
                node.ip(&format!("link del {}", pod.host_interface())).unwrap();
                thread::sleep(Duration::from_millis(30));
            }
        });
        // A change of its own Node object makes the agent look at the kernel.
        let api = lab.api_server().unwrap();
        let mut own = api.node(node.name()).unwrap();
        while !going.is_finished() {
            own["spec"]["unschedulable"] = json!(own["spec"]["unschedulable"] != true);
            api.put(own.clone());
            thread::sleep(Duration::from_millis(15));
        }
    });
    let log = node.agent_log();
    let faults: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(faults.is_empty(), "{faults:#?}");
}
