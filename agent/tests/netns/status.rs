//! `podwire status`: on a node that is well, and on nodes with faults that were put in on purpose.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use xtask::lab::{Lab, Node, traffic};

use crate::sockets::{udp, wait_until};
use crate::sweep::{self, condition, metric};

/// Exit codes of `podwire status`.
const WELL: i32 = 0;
const NOT_WELL: i32 = 3;

/// Returns exit code and output of `podwire status`.
fn status(node: &Node) -> (i32, Value) {
    let output = node.show(&["status", "--output", "json"]).unwrap();
    let told = serde_json::from_slice(&output.stdout);
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), told.unwrap_or_else(|error| panic!("{error}: {}", said())))
}

/// Returns the conditions of a status, by name.
fn conditions(status: &Value) -> Vec<&str> {
    status["conditions"].as_array().unwrap().iter().map(|one| one["condition"].as_str().unwrap()).collect()
}

/// Waits until a node is well. The waiting itself asks by HTTP: a command for each look would take
/// the time of the tests beside this one.
#[track_caller]
fn is_well(node: &Node, what: &str) {
    wait_until(|| sweep::conditions(node).is_empty().then_some(()));
    let is_well = || (status(node).0 == WELL).then_some(());
    wait_until(is_well)
        .unwrap_or_else(|| panic!("{what}: not well again: {:#}", status(node).1["conditions"]));
}

/// Waits until a condition holds. `meanwhile` runs before each look.
#[track_caller]
fn comes(node: &Node, name: &str, mut meanwhile: impl FnMut()) {
    let holds = wait_until(|| {
        meanwhile();
        (condition(node, name) > 0).then_some(())
    });
    assert!(holds.is_some(), "{name} does not come: {:#}", status(node).1["conditions"]);
}

/// Checks that the status names exactly one condition, with this text in its sentence and a remedy,
/// and that it goes with the cause.
#[track_caller]
fn is_named(node: &Node, name: &str, text: &str, remedy: impl FnOnce()) {
    comes(node, name, || ());
    let named = wait_until(|| {
        let (code, told) = status(node);
        (code == NOT_WELL && conditions(&told) == [name]).then_some(told)
    });
    let named = named.unwrap_or_else(|| panic!("{name} is not named: {:#}", status(node).1["conditions"]));
    let condition = &named["conditions"][0];
    assert!(condition["sentence"].as_str().unwrap().contains(text), "{condition}");
    assert!(!condition["remedy"].as_str().unwrap().is_empty());
    let shown = String::from_utf8(node.show(&["status"]).unwrap().stdout).unwrap();
    let remedy_shown = format!("do: {}", condition["remedy"].as_str().unwrap());
    assert!(shown.contains(text) && shown.contains(&remedy_shown), "{shown}");
    remedy();
    is_well(node, name);
}

#[test]
fn a_well_node_is_shown_on_one_screen() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("pod").unwrap();
    traffic::tcp_exchange(&pod, lab.world(), lab.world_address(), 8080, 1 << 16).unwrap();
    let (code, told) = status(node);
    assert_eq!((code, &told["conditions"]), (WELL, &json!([])));
    assert_eq!((&told["agent"]["node"], &told["agent"]["ready"]), (&json!(node.name()), &json!(true)));
    assert_eq!(told["modes"]["mode"], "vxlan");
    assert_eq!(told["modes"]["families"], json!(["IPv4", "IPv6"]));
    assert_eq!(told["kernel"]["offers"]["btf"], true);
    let [link] = &told["links"].as_array().unwrap()[..] else { panic!("{told:#}") };
    assert_eq!(
        (&link["name"], &link["role"], &link["programs"]),
        (&json!("eth0"), &json!("uplink"), &json!("tcx"))
    );
    assert_eq!(told["nodes"]["used"], 2);
    assert_eq!(told["nodes"]["age_seconds"], 0);
    assert_eq!(told["endpoints"], 1);
    let pools = told["addresses"].as_array().unwrap();
    assert_eq!(pools[0], json!({ "network": node.pod_cidr(), "used": 1, "free": 252 }));
    assert_eq!(pools.len(), 2);
    let share = &told["shares"][0];
    assert_eq!((&share["table"], &share["entries"]), (&json!("TRANSLATIONS"), &json!(2)), "{share}");
    assert!(share["holder"].as_str().unwrap().contains(&pod.call().container_id), "{share}");
    let shown = String::from_utf8(node.show(&["status"]).unwrap().stdout).unwrap();
    assert!(shown.lines().count() <= 24 && shown.contains("all is well"), "{shown}");
}

#[test]
fn drops_of_the_last_minute_are_told_apart_from_earlier_ones() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("pod").unwrap();
    let socket = udp(&pod, (pod.address(), 40000));
    for _ in 0..3 {
        socket.send_to(b"podwire!", "239.1.2.3:5000").unwrap();
    }
    let reason = |told: &Value| {
        told["drops"].as_array().unwrap().iter().find(|drops| drops["reason"] == "multicast").cloned()
    };
    let drops = reason(&status(node).1).unwrap();
    assert_eq!((&drops["packets"], &drops["last_minute"]), (&json!(3), &json!(3)));
    // The counters are pinned: the next agent finds them, and they are not of its last minute.
    node.restart_agent().unwrap();
    let drops = reason(&status(node).1).unwrap();
    assert_eq!((&drops["packets"], &drops["last_minute"]), (&json!(3), &json!(0)));
    let drops = crate::commands::rows(node, &["drops", "--reason", "multicast"]);
    assert_eq!(drops.iter().map(|drops| &drops["packets"]).collect::<Vec<_>>(), [3]);
    // The restarted agent keeps no packets of the one before.
    let packets = |of: &str| crate::commands::rows(node, &["drops", "--reason", "multicast", "--pod", of]);
    let name = format!("lab/{}", pod.call().container_id);
    assert_eq!(packets(&name), [] as [Value; 0]);
    socket.send_to(b"podwire!", "239.1.2.3:5000").unwrap();
    let last = wait_until(|| packets(&name).pop()).unwrap();
    assert_eq!((&last["reason"], &last["destination"]["port"]), (&json!("multicast"), &json!(5000)));
    assert_eq!(last["source"]["pod"], name);
    assert_eq!(packets("lab/another"), [] as [Value; 0]);
    let unknown = node.show(&["drops", "--reason", "bad-luck"]).unwrap();
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("source-not-owned"));
}

#[test]
fn faults_of_the_cluster_are_named_with_what_to_do() {
    let lab = Lab::builder().agent_arguments(&["--exclude-uplink", "eth9"]).build().unwrap();
    let (node, other) = (lab.node(0), lab.node(1));
    let api = lab.api_server().unwrap();
    let event = |reason: &str| {
        let is_told = |event: &Value| event["reason"] == reason && event["regarding"]["name"] == node.name();
        wait_until(|| api.events().into_iter().find(is_told)).unwrap_or_else(|| panic!("{:#?}", api.events()))
    };
    is_well(node, "at first");

    node.ip("route add unreachable 10.200.0.77\naddress add 10.200.0.52/24 dev eth0\n").unwrap();
    is_well(node, "an unreachable host that is no node, and one address more");

    let unreachable = format!("unreachable {}", other.address());
    node.ip(&format!("route add {unreachable}\n")).unwrap();
    is_named(node, "no-route-to-node", other.name(), || {
        let event = event("NoRouteToNode");
        assert!(event["note"].as_str().unwrap().contains(other.name()), "{event}");
        node.ip(&format!("route delete {unreachable}\n")).unwrap();
    });
    event("NoRouteToNodeOver");

    node.ip("link add eth9 type veth peer name eth10\nlink set eth9 up\nlink set eth10 up\n").unwrap();
    // A near miss: a route of its own, by the uplink.
    node.ip(&format!("route add {} dev eth0\n", other.address())).unwrap();
    is_well(node, "a route by the uplink");
    node.ip(&format!("route replace {} dev eth9\n", other.address())).unwrap();
    is_named(node, "route-past-uplinks", "leaves by eth9", || {
        node.ip(&format!("route delete {}\n", other.address())).unwrap()
    });

    api.stop();
    is_named(node, "node-list-stale", "the last good state stays", || api.start().unwrap());

    let (internal, moved) = (node.address(), "10.200.0.51");
    let replace = |gone: &str, comes: &str| {
        node.ip(&format!("address delete {gone}/24 dev eth0\naddress add {comes}/24 dev eth0\n")).unwrap();
        node.ip("route replace default via 10.200.0.254 dev eth0\n").unwrap();
    };
    replace(&internal.to_string(), moved);
    is_named(node, "internal-ip-absent", moved, || replace(moved, &internal.to_string()));

    let list = lab.node_list().unwrap();
    let mut spoilt = list["items"][1].clone();
    spoilt["spec"]["podCIDRs"] = json!(["10.244.2.0/33"]);
    api.put(spoilt);
    is_named(node, "node-problem", "10.244.2.0/33", || api.put(list["items"][1].clone()));
}

#[test]
fn faults_of_the_host_are_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let excluded = folder.path().join("excluded");
    fs::write(&excluded, "").unwrap();
    let options = ["--exclude-uplink", "eth9", "--max-translations", "1024", "--non-masquerade-file"];
    let options = [&options[..], &[excluded.to_str().unwrap()]].concat();
    let lab = Lab::builder().nodes(1).agent_arguments(&options).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("pod").unwrap();
    is_well(node, "at first");

    node.exec(&["iptables-nft", "-P", "FORWARD", "DROP"]).unwrap();
    is_named(node, "firewall-drops", "FORWARD", || {
        drop(node.exec(&["iptables-nft", "-P", "FORWARD", "ACCEPT"]).unwrap());
    });

    fs::write(&excluded, "198.51.100.x\n").unwrap();
    is_named(node, "non-masquerade-file", "198.51.100.x", || fs::write(&excluded, "").unwrap());

    let other = node.cni_conf_dir().join("05-other.conf");
    fs::write(&other, "whatever it holds").unwrap();
    is_named(node, "other-configuration-first", "05-other.conf", || fs::remove_file(&other).unwrap());

    node.ip("link add eth9 type veth peer name eth10\nlink set eth9 up\nlink set eth10 up\n").unwrap();
    node.ip("address add 192.168.77.1/24 dev eth9\n").unwrap();
    is_well(node, "a link without programs to which no pod sends");
    let send = || {
        let socket = udp(&pod, (pod.address(), 0));
        socket.send_to(b"podwire!", "192.168.77.2:5000").unwrap();
    };
    comes(node, "link-without-programs", send);
    is_named(node, "link-without-programs", "eth9", || node.ip("link delete eth9\n").unwrap());

    let with_host_ip = |name, address| {
        let mapping = json!({ "hostPort": 9080, "containerPort": 80, "protocol": "tcp", "hostIP": address });
        node.add_pod_with(name, &json!({ "portMappings": [mapping] })).unwrap()
    };
    let present = with_host_ip("present", node.address().to_string());
    is_well(node, "a hostIP that the node has");
    present.delete().unwrap();
    let with_host_ip = with_host_ip("absent", "10.200.0.99".to_owned());
    is_named(node, "host-ip-absent", "10.200.0.99", || with_host_ip.delete().unwrap());

    // A pod may have half of the table. Three pods fill more than three quarters.
    let others = ["second", "third"].map(|name| node.add_pod(name).unwrap());
    let sockets = [&pod, &others[0], &others[1]].map(|pod| udp(pod, (pod.address(), 0)));
    let fill = |pods: usize, flows: u16| {
        for (socket, port) in
            sockets[..pods].iter().flat_map(|socket| (0..flows).map(move |port| (socket, port)))
        {
            drop(socket.send_to(b"podwire!", (lab.world_address(), 20_000 + port)));
        }
        // The agent counts every ten seconds.
        std::thread::sleep(Duration::from_millis(500));
    };
    fill(1, 100);
    let counted = || metric(node, "podwire_translations").parse::<u32>().unwrap() >= 200;
    assert!(wait_until(|| counted().then_some(())).is_some(), "{}", metric(node, "podwire_translations"));
    is_well(node, "a pod with a part of its share");
    comes(node, "holder-crowded", || fill(1, 700));
    assert_eq!(conditions(&status(node).1), ["holder-crowded"]);
    comes(node, "translations-nearly-full", || fill(3, 700));
    assert!(conditions(&status(node).1).contains(&"translations-nearly-full"));
    // The flows were never answered: under pressure they leave after seconds.
    is_well(node, "translations-nearly-full");

    node.stop_agent().unwrap();
    node.start_agent_with(&[("PODWIRE_MTU", "1450")]).unwrap();
    is_well(node, "the largest MTU that fits");
    node.stop_agent().unwrap();
    node.start_agent_with(&[("PODWIRE_MTU", "1451")]).unwrap();
    is_named(node, "mtu-too-large", "--mtu 1451", || node.restart_agent().unwrap());
}

#[test]
fn faults_that_the_agent_mends_are_no_conditions() {
    let lab = Lab::builder().build().unwrap();
    let (node, other) = (lab.node(0), lab.node(1));
    let (pod, far) = (node.add_pod("pod").unwrap(), other.add_pod("far").unwrap());
    is_well(node, "at first");
    let reach = |what: &str| {
        let exchange = traffic::tcp_exchange(&pod, &far, far.address(), 8080, 1 << 16);
        exchange.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        is_well(node, what);
    };
    let mended = |what: &str, is_mended: &dyn Fn() -> bool| {
        assert!(wait_until(|| is_mended().then_some(())).is_some(), "{what}: {}", node.agent_log_tail(20));
        reach(what);
    };
    let route = || node.exec(&["ip", "route", "show", other.pod_cidr()]).unwrap();
    let before = route();
    node.ip(&format!("route delete {}\n", other.pod_cidr())).unwrap();
    mended("a route removed", &|| route() == before);

    let pin = node.bpf_dir().join("links/from_uplink-eth0");
    let detached = Command::new("bpftool").args(["link", "detach", "pinned"]).arg(&pin).status().unwrap();
    assert!(detached.success());
    mended("a program detached", &|| metric(node, "podwire_programs_reattached_total") == "1");

    fs::remove_file(&pin).unwrap();
    mended("a pin removed", &|| pin.exists());

    for (switch, well) in [("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/podwire-vxlan/rp_filter", "2")] {
        node.sysctl(switch, if well == "1" { "0" } else { "1" }).unwrap();
        let is = || node.enter(|| fs::read_to_string(Path::new("/proc/sys").join(switch)).unwrap()).unwrap();
        mended(switch, &|| is().trim() == well);
    }

    let configuration = node.cni_conf_dir().join("10-podwire.conflist");
    fs::remove_file(&configuration).unwrap();
    mended("the runtime's configuration removed", &|| configuration.exists());

    node.ip(&format!("link set {} down\n", pod.host_interface())).unwrap();
    let is_up = || node.exec(&["ip", "link", "show", pod.host_interface()]).unwrap().contains("state UP");
    mended("a pod's link down", &is_up);

    // The programs take tunnel packets before a firewall sees them.
    node.exec(&[
        "nft",
        "add table inet host { chain input { type filter hook input priority 0; udp dport 8472 drop; }; }",
    ])
    .unwrap();
    reach("a firewall on the tunnel's port");

    assert!(!node.run_second_agent().unwrap().success());
    reach("a second agent, which did not start");
}

#[test]
fn a_podcidr_without_a_free_address_is_named() {
    let lab = Lab::builder().nodes(1).agents(false).node_file().build().unwrap();
    let node = lab.node(0);
    let mut list = lab.node_list().unwrap();
    // Of /30, the network's, the gateway's and the broadcast address are taken.
    list["items"][0]["spec"] = json!({ "podCIDR": "10.244.1.0/30", "podCIDRs": ["10.244.1.0/30"] });
    lab.write_node_list(&list.to_string()).unwrap();
    node.start_agent().unwrap();
    is_well(node, "one address is free");
    let pod = node.add_pod("last").unwrap();
    is_named(node, "no-free-address", "10.244.1.0/30", || pod.delete().unwrap());
}
