//! An agent takes over the maps of the layout before, under traffic that the programs of that layout forward.
//!
//! Those programs are in `testdata/schema-2`: a node is turned back to them, maps and all.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, PinnedLink};
use podwire_common::abi;
use podwire_common::names::{self, VXLAN_DEVICE, maps, programs};
use serde_json::Value;
use xtask::lab::{Lab, Mode, Node};

use crate::flows::Flows;
use crate::old_object::{self, OldEndpoints, OldTranslations};

#[test]
fn maps_of_the_layout_before_are_taken_over_with_their_flows_and_nothing_is_lost() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().node_file().mode(mode).build().unwrap();
        let node = lab.node(0);
        let flows = Flows::start(&lab);
        node.kill_agent().unwrap();
        turn_back(node, mode);
        flows.go_on();
        flows.begin_anew(&lab);
        let turned_back = keys(node, maps::TRANSLATIONS);
        // One that only the old programs and maps have ever seen.
        let late = flows.another(&lab);
        let before = keys(node, maps::TRANSLATIONS);
        assert!(before.len() > turned_back.len(), "the old programs do not forward: {before:?}");
        assert!(!keys(node, maps::STACK_FLOWS).is_empty());
        // It may be long until the Node list comes: meanwhile all programs and maps have to fit each other.
        let list = lab.node_list().unwrap().to_string();
        lab.write_node_list("{").unwrap();
        node.spawn_agent().unwrap();
        wait_for_log(node, "the pinned maps have layout 2");
        wait_for_log(node, "not ready");
        flows.go_on();
        flows.begin_anew(&lab);
        assert_eq!(fs::read_link(node.bpf_dir().join("schema-version")).unwrap(), Path::new("2"));
        lab.write_node_list(&list).unwrap();
        wait_for_log(node, "the maps of layout 2 are taken over");
        flows.go_on();
        flows.begin_anew(&lab);
        late.wait_for(100).unwrap();
        let after = keys(node, maps::TRANSLATIONS);
        let missing: Vec<_> = before.iter().filter(|flow| !after.contains(flow)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        let one = &node.map_dump(maps::TRANSLATIONS).unwrap()[0]["formatted"]["value"];
        assert!(one["asked"].is_number(), "not the new layout: {one}");
        assert_eq!(fs::read_link(node.bpf_dir().join("schema-version")).unwrap(), Path::new("3"));
        assert!(!node.bpf_dir().join("next").exists());
        for count in late.finish().unwrap() {
            assert_eq!(count.lost(), 0, "{mode:?}");
        }
        // Again, as from any other start.
        node.restart_agent().unwrap();
        flows.go_on();
        flows.finish("maps of the layout before taken over under traffic", mode);
    }
}

/// The node as an agent of layout 2 left it: its programs on every device, its maps under their names with what is in today's.
fn turn_back(node: &Node, mode: Mode) {
    let folder = node.bpf_dir();
    let [endpoints, translations] =
        [maps::ENDPOINTS, maps::TRANSLATIONS].map(|map| raw_entries(&node.map_dump(map).unwrap()));
    for map in old_object::CHANGED {
        fs::remove_file(folder.join(map)).unwrap();
    }
    let mut old = old_object::load(folder, &config(node, mode));
    let mut old_endpoints: OldEndpoints = old_object::map(&mut old, maps::ENDPOINTS);
    for (key, value) in endpoints {
        let key: [u8; 16] = key.try_into().unwrap();
        old_endpoints.insert(key, old_object::old_endpoint(&value), 0).unwrap();
    }
    let mut old_translations: OldTranslations = old_object::map(&mut old, maps::TRANSLATIONS);
    for (key, value) in translations {
        let key: [u8; 40] = key.try_into().unwrap();
        old_translations.insert(key, old_object::old_translation(&value), 0).unwrap();
    }
    attach(node, &mut old, mode);
}

fn config(node: &Node, mode: Mode) -> abi::Config {
    match mode {
        Mode::Vxlan => old_object::config(abi::MODE_VXLAN, node.ifindex(VXLAN_DEVICE).unwrap()),
        Mode::Direct => old_object::config(abi::MODE_DIRECT, 0),
    }
}

/// In place of today's programs, each in one step, as an agent does.
fn attach(node: &Node, old: &mut Ebpf, mode: Mode) {
    let pins = node.bpf_dir().join("old");
    fs::create_dir(&pins).unwrap();
    let links = node.exec(&["ip", "-json", "link"]).unwrap();
    let links: Value = serde_json::from_str(&links).unwrap();
    let pods = links.as_array().unwrap().iter().filter_map(|link| link["ifname"].as_str());
    let pods: Vec<&str> = pods.filter(|name| name.starts_with(names::VETH_PREFIX)).collect();
    let overlay = if mode == Mode::Vxlan { vec![VXLAN_DEVICE] } else { Vec::new() };
    for (program, direction, devices) in [
        (programs::FROM_POD, "ingress", &pods),
        (programs::TO_POD, "egress", &pods),
        (programs::FROM_OVERLAY, "ingress", &overlay),
        (programs::TO_OVERLAY, "egress", &overlay),
    ] {
        let pin = pins.join(program);
        let classifier: &mut SchedClassifier = old.program_mut(program).unwrap().try_into().unwrap();
        classifier.load().unwrap();
        classifier.pin(&pin).unwrap();
        for device in devices {
            let filter = ["filter", "replace", "dev", device, direction, "prio", "1", "handle", "1", "bpf"];
            let object = ["da", "object-pinned", pin.to_str().unwrap()];
            node.exec(&[&["tc"][..], &filter, &object].concat()).unwrap();
        }
        fs::remove_file(pin).unwrap();
    }
    fs::remove_dir(&pins).unwrap();
    for program in [programs::FROM_UPLINK, programs::TO_UPLINK] {
        let pin = node.bpf_dir().join("links").join(format!("{program}-{}", node.uplink()));
        let classifier: &mut SchedClassifier = old.program_mut(program).unwrap().try_into().unwrap();
        classifier.load().unwrap();
        let link: FdLink = PinnedLink::from_pin(&pin).unwrap().into();
        let id = classifier.attach_to_link(link.try_into().unwrap()).unwrap();
        drop(classifier.take_link(id).unwrap());
    }
}

fn wait_for_log(node: &Node, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !node.agent_log().contains(text) {
        assert!(Instant::now() < deadline, "nobody said {text:?}:\n{}", node.agent_log_tail(20));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Keys and values as bytes.
fn raw_entries(dump: &Value) -> Vec<(Vec<u8>, Vec<u8>)> {
    let bytes = |value: &Value| -> Vec<u8> {
        let text = |byte: &Value| byte.as_str().unwrap().trim_start_matches("0x").to_owned();
        value.as_array().unwrap().iter().map(|byte| u8::from_str_radix(&text(byte), 16).unwrap()).collect()
    };
    dump.as_array().unwrap().iter().map(|entry| (bytes(&entry["key"]), bytes(&entry["value"]))).collect()
}

fn keys(node: &Node, map: &str) -> Vec<String> {
    let dump = node.map_dump(map).unwrap();
    dump.as_array().unwrap().iter().map(|entry| entry["key"].to_string()).collect()
}
