//! A second agent that shares one of three things with the first: the state folder (`disk.rs`), the
//! folder of pins, or the socket.

use std::fs;
use std::path::Path;

use xtask::lab::{Lab, Node};

use crate::footprint::Footprint;
use crate::reach;
use crate::sockets::wait_until;

/// A port of its own: the first agent has the lab's.
const METRICS: (&str, &str) = ("--metrics-address", "127.0.0.1:9791");

#[test]
fn a_second_agent_on_one_folder_of_pins_is_refused() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let (pod, far) = (node.add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
    let own = tempfile::tempdir().unwrap();
    let [state, run, conf] = ["state", "run", "net.d"].map(|name| folder(own.path(), name));
    let options = [METRICS, ("--state-dir", &state), ("--run-dir", &run), ("--cni-conf-dir", &conf)];
    let refused = || {
        let before = Footprint::of(node, &[&pod]);
        let programs = overlay_programs(node);
        let ended = node.run_second_agent_in(node, &options).unwrap();
        let said = format!(
            "the folder of pins {} is in use by another agent, or by `podwire uninstall` (process {}",
            node.bpf_dir().display(),
            node.agent_pid().unwrap()
        );
        assert!(!ended.success() && node.agent_log().contains(&said), "{}", node.agent_log_tail(5));
        assert_eq!(Footprint::of(node, &[&pod]).differences(&before), [""; 0]);
        assert_eq!(overlay_programs(node), programs);
        reach(&pod, &far);
    };
    refused();
    // The first agent also holds the folder that it makes again.
    fs::remove_dir_all(node.bpf_dir()).unwrap();
    let pinned = || node.bpf_dir().join("links/to_uplink-eth0").exists().then_some(());
    assert!(wait_until(pinned).is_some(), "{}", node.agent_log_tail(10));
    refused();
    // A removal with another state folder does not remove the pins either.
    let removal = node
        .podwire(&[
            "uninstall",
            "--state-dir",
            &state,
            "--run-dir",
            &run,
            "--bpf-dir",
            &node.bpf_dir().display().to_string(),
        ])
        .unwrap();
    assert!(!removal.status.success() && node.bpf_dir().join("ENDPOINTS").exists(), "{removal:?}");
    assert!(String::from_utf8_lossy(&removal.stderr).contains("an agent runs on this node"), "{removal:?}");
}

#[test]
fn a_second_agent_on_one_socket_replaces_no_program() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let (pod, far) = (node.add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
    let own = tempfile::tempdir().unwrap();
    let [state, conf] = ["state", "net.d"].map(|name| folder(own.path(), name));
    let pins = format!("{}-second", node.bpf_dir().display());
    let options = [METRICS, ("--state-dir", &state), ("--bpf-dir", &pins), ("--cni-conf-dir", &conf)];
    let refused = || {
        let programs = overlay_programs(node);
        let ended = node.run_second_agent_in(node, &options).unwrap();
        let said = format!("the socket {} is in use by another agent", node.socket().display());
        assert!(!ended.success() && node.agent_log().contains(&said), "{}", node.agent_log_tail(5));
        assert_eq!(overlay_programs(node), programs);
        assert!(!Path::new(&pins).exists());
        reach(&pod, &far);
    };
    refused();
    let lock = format!("{}.lock", node.socket().display());
    fs::remove_file(&lock).unwrap();
    let held = || Path::new(&lock).exists().then_some(());
    assert!(wait_until(held).is_some(), "{}", node.agent_log_tail(10));
    refused();
    node.add_pod("served").unwrap();
}

fn folder(parent: &Path, name: &str) -> String {
    let folder = parent.join(name);
    fs::create_dir(&folder).unwrap();
    folder.display().to_string()
}

/// Returns the filters of the tunnel's device, with their programs' numbers.
fn overlay_programs(node: &Node) -> String {
    ["ingress", "egress"]
        .map(|direction| {
            node.exec(&["tc", "-j", "filter", "show", "dev", "podwire-vxlan", direction]).unwrap()
        })
        .concat()
}
