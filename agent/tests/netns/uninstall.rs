//! `podwire uninstall`: it leaves a node as it was before its first agent.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use podwire::before::Before;
use podwire::dataplane::attach::{UplinkAttachment, UplinkXdp};
use podwire::dataplane::load;
use podwire_common::abi::{ASK_EACH_DESTINATION, Config, LINK_ADDRESSES_ANY, MODE_DIRECT};
use podwire_common::addr::Be16;
use podwire_common::names::maps;
use podwire_core::slice::Hooks;
use serde_json::{Value, json};
use xtask::lab::{Lab, Mode, Node, traffic};

use crate::reach;
use crate::sockets::wait_until;

const MEBIBYTE: u64 = 1 << 20;
const FORWARDING: &str = "net/ipv4/ip_forward";
const ACCEPT_RA: &str = "net/ipv6/conf/eth0/accept_ra";
/// Forwarding of each family.
const FORWARDING_OF_BOTH: [&str; 2] = [FORWARDING, "net/ipv6/conf/all/forwarding"];

#[test]
fn a_node_is_left_as_it_was_before_its_first_agent() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder()
            .mode(mode)
            .agents(false)
            .agent_arguments(&["--uplink-xdp", "generic"])
            .build()
            .unwrap();
        let node = lab.node(0);
        // The kernel would not set these values by itself when forwarding is switched off.
        for (name, value) in [
            (FORWARDING, "0"),
            ("net/ipv4/conf/all/accept_redirects", "0"),
            ("net/ipv4/conf/eth0/forwarding", "1"),
            ("net/ipv6/conf/default/forwarding", "1"),
        ] {
            node.sysctl(name, value).unwrap();
        }
        let before = Snapshot::of(node);
        lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
        assert_ne!(Snapshot::of(node), before);
        let pods = traffic_of_all_kinds(&lab);
        let list = node.state_dir().join("nodes.json");
        assert!(wait_until(|| list.exists().then_some(())).is_some(), "the node list is kept");
        let objects = objects(node);
        let during = Snapshot::of(node);
        let refused = node.uninstall().unwrap();
        assert!(!refused.status.success());
        let uses = format!("an agent runs on this node and uses {}:", node.state_dir().display());
        assert!(text(&refused).contains(&uses), "{}", text(&refused));
        assert_eq!(Snapshot::of(node), during, "something was touched under a running agent");

        node.kill_agent().unwrap();
        let done = node.uninstall().unwrap();
        assert!(done.status.success(), "{}", text(&done));
        assert_eq!(Snapshot::of(node), before, "{mode:?}: {}", text(&done));
        let left = wait_until(|| objects.iter().all(|object| !exists(object)).then_some(()));
        assert!(
            left.is_some(),
            "{mode:?}: {:?}",
            objects.iter().filter(|object| exists(object)).collect::<Vec<_>>()
        );
        let said = text(&done);
        let last: Vec<&str> = said.lines().rev().take(1 + pods.len()).collect();
        for pod in &pods {
            let named = |line: &&&str| line.contains("cut off") && line.contains(pod);
            assert_eq!(last.iter().filter(named).count(), 1, "{pod} in {last:?}");
        }

        let again = node.uninstall().unwrap();
        assert!(again.status.success() && !text(&again).contains("cut off"), "{}", text(&again));
        assert_eq!(Snapshot::of(node), before);
        node.start_agent().unwrap();
        let pod = node.add_pod("anew").unwrap();
        reach(node, &pod);
    }
}

#[test]
fn uninstall_removes_the_rest_whatever_is_gone_already() {
    type Damage = fn(&Node);
    let damages: [(&str, Damage); 5] = [
        ("the state folder", |node| std::fs::remove_dir_all(node.state_dir()).unwrap()),
        ("the pins", |node| std::fs::remove_dir_all(node.bpf_dir()).unwrap()),
        ("the version and the links", |node| {
            std::fs::remove_file(node.bpf_dir().join("schema-version")).unwrap();
            std::fs::remove_dir_all(node.bpf_dir().join("links")).unwrap();
        }),
        ("what files hold", |node| {
            for name in ["agent.lock", "last-address", "before.json"] {
                std::fs::write(node.state_dir().join(name), "\u{0}").unwrap();
            }
            for file in std::fs::read_dir(node.state_dir().join("endpoints")).unwrap() {
                std::fs::write(file.unwrap().path(), "{\"format\":").unwrap();
            }
        }),
        ("the devices", |node| {
            node.ip("link del podwire-vxlan").unwrap();
            let pods: Vec<_> = devices(node).into_iter().filter(|name| name.starts_with("pw")).collect();
            assert_eq!(pods.len(), 2);
            pods.iter().for_each(|pod| node.ip(&format!("link del {pod}")).unwrap());
        }),
    ];
    for (what, damage) in damages {
        let lab = Lab::builder().agents(false).build().unwrap();
        let node = lab.node(0);
        // If the file with the earlier values is gone, they stay as they are.
        FORWARDING_OF_BOTH.iter().for_each(|name| node.sysctl(name, "1").unwrap());
        let before = Snapshot::of(node);
        lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
        traffic_of_all_kinds(&lab);
        if what == "the state folder" {
            damage(node);
            let refused = node.uninstall().unwrap();
            let uses = format!("uses {}:", node.socket().display());
            assert!(!refused.status.success() && text(&refused).contains(&uses), "{}", text(&refused));
            node.stop_agent().unwrap();
        } else {
            node.stop_agent().unwrap();
            damage(node);
        }
        let done = node.uninstall().unwrap();
        assert!(done.status.success(), "{what}: {}", text(&done));
        assert_eq!(Snapshot::of(node), before, "{what}: {}", text(&done));
        assert!(text(&done).contains("cut off"), "{what}: {}", text(&done));
    }
}

#[test]
fn what_cannot_be_removed_is_named_and_all_else_goes() {
    let lab = Lab::builder().agents(false).build().unwrap();
    let node = lab.node(0);
    let before = Snapshot::of(node);
    lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
    traffic_of_all_kinds(&lab);
    node.stop_agent().unwrap();
    let endpoints = node.state_dir().join("endpoints");
    let run = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).arg(&endpoints).status().unwrap().success()
    };
    assert!(run("mount", &["-t", "tmpfs", "tmpfs"]));
    let failed = node.uninstall().unwrap();
    assert!(run("umount", &[]));
    assert!(!failed.status.success());
    assert!(text(&failed).contains(&format!("remove {}", endpoints.display())), "{}", text(&failed));
    assert_eq!(
        Snapshot { files: Vec::new(), ..Snapshot::of(node) },
        Snapshot { files: Vec::new(), ..before.clone() }
    );
    assert!(node.uninstall().unwrap().status.success());
    assert_eq!(Snapshot::of(node), before);
}

#[test]
fn connection_tracking_has_kube_proxys_limits_with_services() {
    const TIMES: [&str; 2] = [
        "net/netfilter/nf_conntrack_tcp_timeout_established",
        "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
    ];
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    let times = || TIMES.map(|name| node.exec(&["cat", &format!("/proc/sys/{name}")]).unwrap());
    let before = times();
    for (services, [established, close_wait]) in [("off", ["432000", "60"]), ("on", ["86400", "3600"])] {
        // Twice: the earlier values are those from before the first agent.
        for _ in 0..2 {
            node.start_agent_with(&[("PODWIRE_SERVICES", services)]).unwrap();
            assert_eq!(times().each_ref().map(|time| time.trim()), [established, close_wait], "{services}");
            node.stop_agent().unwrap();
        }
    }
    let done = node.uninstall().unwrap();
    assert!(done.status.success(), "{}", text(&done));
    assert_eq!(times(), before);
}

#[test]
fn forwarding_that_others_rely_on_or_have_changed_stays() {
    let shown = |node: &Node, name: &str| node.exec(&["cat", &format!("/proc/sys/{name}")]).unwrap();
    let forwarding = |node: &Node| FORWARDING_OF_BOTH.map(|name| shown(node, name)).concat();
    let set = |node: &Node, value: &str| {
        FORWARDING_OF_BOTH.iter().for_each(|name| node.sysctl(name, value).unwrap());
    };
    let life = |docker: bool, before: &str, since: Option<&str>| {
        let lab = Lab::builder().nodes(1).docker(docker).agents(false).build().unwrap();
        let node = lab.node(0);
        set(node, before);
        let accepted = shown(node, ACCEPT_RA);
        node.start_agent().unwrap();
        assert_eq!(forwarding(node), "1\n1\n");
        // The value that the first agent found counts, not the one that the first agent has set.
        node.restart_agent().unwrap();
        node.stop_agent().unwrap();
        if let Some(since) = since {
            set(node, since);
        }
        let done = node.uninstall().unwrap();
        assert!(done.status.success(), "{}", text(&done));
        // While a node forwards, its uplink needs the agent's value.
        if forwarding(node) == "0\n0\n" {
            assert_eq!(shown(node, ACCEPT_RA), accepted, "{}", text(&done));
        }
        (forwarding(node), text(&done))
    };
    assert_eq!(life(false, "0", None).0, "0\n0\n");
    assert_eq!(life(false, "1", None).0, "1\n1\n", "it was on before");
    assert_eq!(life(false, "0", Some("0")).0, "0\n0\n");
    // Another tool switches forwarding off while the agent runs, and the agent puts it back. After
    // the removal it is off, even if it was on before the agent. If it was on, eth0 gets back the
    // value that the kernel set when the other tool switched forwarding off.
    for (before, uplink) in [("0", "1\n"), ("1", "0\n")] {
        let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
        let node = lab.node(0);
        set(node, before);
        let of_uplink = ["ipv4", "ipv6"].map(|family| format!("net/{family}/conf/eth0/forwarding"));
        of_uplink.iter().for_each(|name| node.sysctl(name, "1").unwrap());
        node.start_agent().unwrap();
        set(node, "0");
        let is_on = || (forwarding(node) == "1\n1\n").then_some(());
        assert!(wait_until(is_on).is_some(), "{}", node.agent_log());
        node.stop_agent().unwrap();
        let done = node.uninstall().unwrap();
        assert!(done.status.success() && forwarding(node) == "0\n0\n", "{before}: {}", text(&done));
        for name in of_uplink {
            assert_eq!(shown(node, &name), uplink, "{before}: {name} after the removal");
        }
    }
    let (value, said) = life(true, "0", None);
    assert!(value == "1\n1\n" && said.contains("devices=\"docker0\""), "{said}");
    let (value, said) = life(true, "1", None);
    assert!(value == "1\n1\n" && !said.contains("docker0"), "the agent has not switched it: {said}");
}

#[test]
fn without_tcx_an_uplink_keeps_only_what_others_have_put_on_it() {
    let program = ["bpf", "direct-action", "bytecode", "1,6 0 0 0"];
    let others = [&["tc", "filter", "add", "dev", "eth0", "egress", "pref", "2"][..], &program].concat();
    for (was_there, other) in [(false, false), (true, false), (false, true)] {
        let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
        let node = lab.node(0);
        if was_there {
            node.exec(&["tc", "qdisc", "add", "dev", "eth0", "clsact"]).unwrap();
        }
        let bare = Snapshot::of(node);
        let mut before = Before::load(node.state_dir()).unwrap();
        if !was_there {
            before.without_clsact.insert("eth0".into());
        }
        before.save(node.state_dir()).unwrap();
        let index = node.ifindex("eth0").unwrap();
        let attach = || {
            let config = Config {
                mode: MODE_DIRECT,
                link_addresses: LINK_ADDRESSES_ANY,
                vni: 0,
                vxlan_ifindex: 0,
                vxlan_port: Be16::new(0),
                snat_port_first: 32768,
                snat_port_last: 65535,
                node_port_first: 30000,
                node_port_last: 32767,
                ask: ASK_EACH_DESTINATION,
                services: 0,
                reserved: 0,
                netns_cookie: 0,
            };
            let mut dataplane = load::load(&config, &[], None).unwrap();
            dataplane
                .attach_link(index, "eth0", Hooks::Uplink, UplinkAttachment::Clsact, Some(UplinkXdp::Off))
                .unwrap();
        };
        node.enter(attach).unwrap();
        let shown = |direction| node.exec(&["tc", "filter", "show", "dev", "eth0", direction]).unwrap();
        assert!(shown("ingress").contains("from_uplink") && shown("egress").contains("to_uplink"));
        if other {
            node.exec(&others).unwrap();
        }
        let done = node.uninstall().unwrap();
        assert!(done.status.success(), "{}", text(&done));
        if other {
            assert_eq!(shown("ingress"), "");
            assert!(shown("egress").contains("pref 2 bpf") && !shown("egress").contains("to_uplink"));
        } else {
            assert_eq!(Snapshot::of(node), bare, "{}", text(&done));
        }
    }
}

/// Adds pods, lets them talk, and reaches one by a hostPort. Returns the names that messages use
/// for the node's pods.
fn traffic_of_all_kinds(lab: &Lab) -> Vec<String> {
    let node = lab.node(0);
    let host_port =
        json!({ "portMappings": [{ "hostPort": 9088, "containerPort": 8080, "protocol": "tcp" }] });
    let [one, two] = ["one", "two"].map(|name| {
        (name, node.add_pod_with(name, &if name == "one" { host_port.clone() } else { json!({}) }).unwrap())
    });
    let far = lab.node(1).add_pod("far").unwrap();
    for (server, address) in
        [(&*two.1, two.1.address()), (&*far, far.address()), (lab.world(), lab.world_address())]
    {
        traffic::tcp_exchange(&one.1, server, address, 8080, MEBIBYTE).unwrap();
    }
    let route = traffic::Route::translated("127.0.0.1:9088".parse().unwrap(), 8080);
    traffic::tcp_exchange_on(node, &one.1, route, MEBIBYTE).unwrap();
    [one, two]
        .map(|(name, pod)| {
            format!("pod=lab/{} ({}", node.cni_call("ADD", name, &json!({})).container_id, pod.address())
        })
        .to_vec()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns the kernel objects of the node's agent: kind and number.
fn objects(node: &Node) -> Vec<[String; 2]> {
    let shown = |kind: &str, pin: &Path| -> Value {
        let output = Command::new("bpftool").args(["-j", kind, "show", "pinned"]).arg(pin).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let mut objects: Vec<_> = maps::ALL
        .iter()
        .map(|map| ["map".into(), shown("map", &node.bpf_dir().join(map))["id"].to_string()])
        .collect();
    let links = std::fs::read_dir(node.bpf_dir().join("links")).unwrap();
    for pin in links.map(|link| link.unwrap().path()) {
        let link = shown("link", &pin);
        objects.push(["link".into(), link["id"].to_string()]);
        objects.push(["prog".into(), link["prog_id"].to_string()]);
    }
    for device in devices(node) {
        let filters = node.exec(&["tc", "-j", "filter", "show", "dev", &device, "ingress"]).unwrap();
        let filters: Value = serde_json::from_str(&filters).unwrap_or_default();
        let ids = filters
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|filter| filter["options"]["prog"]["id"].as_u64());
        objects.extend(ids.map(|id| ["prog".into(), id.to_string()]));
    }
    assert!(objects.len() > maps::ALL.len() + 10, "{objects:?}");
    objects
}

/// Returns the names of the node's devices.
fn devices(node: &Node) -> Vec<String> {
    let shown: Value = serde_json::from_str(&node.exec(&["ip", "-j", "link"]).unwrap()).unwrap();
    let links = shown.as_array().unwrap().iter();
    links.map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

fn exists([kind, id]: &[String; 2]) -> bool {
    Command::new("bpftool").args([kind, "show", "id", id]).output().unwrap().status.success()
}

/// All that an agent could leave on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Snapshot {
    network: Vec<String>,
    switches: BTreeMap<String, String>,
    files: Vec<String>,
}

impl Snapshot {
    fn of(node: &Node) -> Self {
        // The kernel looks for duplicates of a link's own address before it uses the address.
        let tentative = || node.exec(&["ip", "-6", "address", "show", "tentative"]).unwrap();
        assert!(wait_until(|| tentative().is_empty().then_some(())).is_some(), "{}", tentative());
        let commands = [
            "ip -d -o link",
            "ip -o address",
            "ip route show table all",
            "ip -6 route show table all",
            "ip rule",
            "ip -6 rule",
            "tc qdisc",
            "tc filter show dev eth0 ingress",
            "tc filter show dev eth0 egress",
            "tc filter show dev eth0 root",
        ];
        let shown = |command: &&str| {
            format!("{command}: {}", node.exec(&command.split(' ').collect::<Vec<_>>()).unwrap())
        };
        let mut switches = BTreeMap::new();
        let collect = || {
            ["net/ipv4", "net/ipv6", "net/core"]
                .map(|part| switches_below(&Path::new("/proc/sys").join(part)))
        };
        node.enter(collect).unwrap().into_iter().for_each(|part| switches.extend(part));
        let mut files = below(node.bpf_dir());
        files.extend(below(node.state_dir()));
        files.extend(below(node.cni_conf_dir()));
        files.extend(below(node.socket().parent().unwrap()));
        files.retain(|file| !file.ends_with("agent.log"));
        Self { network: commands.iter().map(shown).collect(), switches, files }
    }
}

fn switches_below(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(switches_below(&path));
        } else if let Ok(value) = std::fs::read_to_string(&path) {
            found.insert(path.display().to_string(), value);
        }
    }
    found
}

/// Lists every file below a folder.
fn below(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() && !path.is_symlink() {
            found.extend(below(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}
