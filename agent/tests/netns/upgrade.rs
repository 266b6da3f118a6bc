//! An agent takes over the maps of an earlier layout from the agent of that layout, under traffic
//! of every kind. Nothing is lost, wherever the upgrade is cut short.

use std::fs;
use std::path::Path;

use serde_json::Value;
use xtask::lab::{Lab, Mode, Node};

use crate::flows::Flows;
use crate::restart::{die_before_attaching, loads};
use crate::sockets::wait_until;

/// The agent of the artificial layout 0, which `cargo xtask test` builds.
const EARLIER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/earlier-layout/podwire");
const EARLIER_TRANSLATIONS: &str = "TRANSLATIONS-0";
/// `STATE_FIN`, `STATE_REPLY_FIN`, `STATE_RESET` and `STATE_OUTSIDE_RESET`: the translation ends
/// soon.
const ENDING: u64 = 2 | 4 | 8 | 32;

#[test]
fn an_upgrade_of_the_layout_under_traffic_loses_nothing() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().node_file().agents(false).mode(mode).build().unwrap();
        lab.nodes().iter().for_each(|node| node.use_agent(Some(Path::new(EARLIER))));
        lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
        let flows = Flows::start(&lab);
        for node in lab.nodes() {
            assert_eq!(layout(node), "0");
            let translations = upgrade(node);
            // The second node has no translations: only pods of the first reach the world.
            assert_eq!(translations > 0, node.name() == "node1");
            flows.go_on();
            flows.begin_anew(&lab);
        }
        // A later start works like any other. An agent of the earlier release leaves the later maps
        // alone.
        let node = lab.node(0);
        node.restart_agent().unwrap();
        flows.go_on();
        node.kill_agent().unwrap();
        node.use_agent(Some(Path::new(EARLIER)));
        let refused = format!("{:#}", node.start_agent().unwrap_err());
        assert!(refused.contains("layout version 1"), "{refused}");
        flows.go_on();
        flows.finish("maps of an earlier layout taken over under traffic", mode);
    }
}

#[test]
fn an_upgrade_cut_short_or_rolled_back_loses_nothing() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().node_file().agents(false).mode(mode).build().unwrap();
        lab.nodes().iter().for_each(|node| node.use_agent(Some(Path::new(EARLIER))));
        lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
        let node = lab.node(0);
        let flows = Flows::start(&lab);
        // Roll back before one of the later programs is attached.
        node.kill_agent().unwrap();
        node.use_agent(None);
        die_before_attaching(node);
        flows.begin_anew(&lab);
        node.use_agent(Some(Path::new(EARLIER)));
        node.start_agent().unwrap();
        assert!(wait_until(|| (loads(node) == 1).then_some(())).is_some(), "{}", node.agent_log_tail(20));
        flows.begin_anew(&lab);
        let list = lab.node_list().unwrap().to_string();
        // Without a Node list an upgrade does not end: the programs are replaced, but the layout is
        // not.
        lab.write_node_list("{").unwrap();
        node.kill_agent().unwrap();
        node.use_agent(None);
        for _ in 0..2 {
            let before = programs(node);
            node.spawn_agent().unwrap();
            let is_replaced = |(now, before): (&String, &String)| now != before;
            let replaced = || programs(node).iter().zip(&before).all(is_replaced).then_some(());
            assert!(wait_until(replaced).is_some(), "{}", node.agent_log_tail(20));
            assert!(is_filled(node));
            assert!(loads(node) > 1, "the pins of the earlier programs are gone, but these may be attached");
            flows.go_on();
            flows.begin_anew(&lab);
            assert_eq!(layout(node), "0");
            node.kill_agent().unwrap();
            flows.go_on();
        }
        // Roll back: the earlier release finds its maps.
        lab.write_node_list(&list).unwrap();
        node.use_agent(Some(Path::new(EARLIER)));
        node.start_agent().unwrap();
        assert!(!is_filled(node) && !node.bpf_dir().join("TRANSLATIONS").exists());
        assert!(wait_until(|| (loads(node) == 1).then_some(())).is_some(), "other pins are left");
        flows.go_on();
        flows.begin_anew(&lab);
        // Upgrade again, to the end.
        assert!(upgrade(node) > 0);
        flows.go_on();
        flows.begin_anew(&lab);
        flows.finish("an upgrade of the layout cut short and rolled back", mode);
    }
}

/// Replaces the running agent of the earlier layout by today's. Returns the number of translations
/// that it had. All of them must be there afterwards.
fn upgrade(node: &Node) -> usize {
    node.kill_agent().unwrap();
    let before = node.map_dump(EARLIER_TRANSLATIONS).unwrap();
    let lasting = |entry: &&Value| value(entry)["state"].as_u64().unwrap() & ENDING == 0;
    let before: Vec<_> = before.as_array().unwrap().iter().filter(lasting).map(key).collect();
    node.use_agent(None);
    node.start_agent().unwrap();
    assert!(wait_until(|| (layout(node) == "1").then_some(())).is_some(), "{}", node.agent_log_tail(20));
    let after = node.map_dump("TRANSLATIONS").unwrap();
    let after: Vec<_> = after.as_array().unwrap().iter().map(key).collect();
    let missing: Vec<_> = before.iter().filter(|flow| !after.contains(flow)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let left = || !node.bpf_dir().join(EARLIER_TRANSLATIONS).exists() && !is_filled(node);
    assert!(wait_until(|| left().then_some(())).is_some());
    before.len()
}

fn layout(node: &Node) -> String {
    fs::read_link(node.bpf_dir().join("schema-version")).unwrap().display().to_string()
}

/// Returns whether the maps of an unfinished upgrade hold everything that the earlier maps held.
fn is_filled(node: &Node) -> bool {
    node.bpf_dir().join("upgrade").is_symlink()
}

/// Returns the numbers of the programs at the uplink and at the pods' links.
fn programs(node: &Node) -> Vec<String> {
    let links = node.exec(&["ip", "-json", "link", "show", "type", "veth"]).unwrap();
    let links: Value = serde_json::from_str(&links).unwrap();
    let names = links.as_array().unwrap().iter().filter_map(|link| link["ifname"].as_str());
    let pods = names.filter(|name| name.starts_with("pw"));
    let filters = pods.map(|pod| node.exec(&["tc", "filter", "show", "dev", pod, "ingress"]).unwrap());
    let pin = node.bpf_dir().join("links").join(format!("from_uplink-{}", node.uplink()));
    let uplink = node.exec(&["bpftool", "-j", "link", "show", "pinned", pin.to_str().unwrap()]).unwrap();
    let uplink: Value = serde_json::from_str(&uplink).unwrap();
    filters.chain([uplink["prog_id"].to_string()]).collect()
}

fn key(entry: &Value) -> String {
    entry["key"].to_string()
}

/// Returns an entry's value as fields.
fn value(entry: &Value) -> &Value {
    &entry["formatted"]["value"]
}
