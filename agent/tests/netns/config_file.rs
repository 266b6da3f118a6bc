//! Options from a file, which is mounted from a ConfigMap.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use podwire_common::names::maps;
use serde_json::json;
use xtask::lab::{Lab, Node};

use crate::sockets::wait_until;
use crate::sweep::{comes, condition, goes, told};

const DIFFERS: &str = "config-file-differs";
const NETWORKS: &str = "non-masquerade-file";
const OVERRIDDEN: &str = "config-file-overridden";
const UNUSABLE: &str = "config-file-unusable";

#[test]
fn command_line_comes_before_environment_file_and_default() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    fs::write(&file, "mtu: 1400\nnon-masquerade-cidrs: [192.0.2.0/24, 198.51.100.0/24]\n").unwrap();
    let by_file = ("PODWIRE_CONFIG", file.to_str().unwrap());
    let by_environment = ("PODWIRE_MTU", "1380");
    let mtus = |arguments: &[&str], environments: &[&[(&str, &str)]]| {
        let lab = Lab::builder().nodes(1).agents(false).agent_arguments(arguments).build().unwrap();
        let node = lab.node(0);
        let mtu = |environment: &&[(&str, &str)]| {
            node.start_agent_with(environment).unwrap();
            let networks = node.map_dump(maps::NETWORKS).unwrap().as_array().unwrap().len();
            assert_eq!(networks, if environment.contains(&by_file) { 2 } else { 0 });
            let pod = node.add_pod("pod").unwrap();
            let link = pod.exec(&["ip", "-o", "link", "show", "eth0"]).unwrap();
            pod.delete().unwrap();
            node.stop_agent().unwrap();
            link.split("mtu ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
        };
        environments.iter().map(mtu).collect::<Vec<_>>()
    };
    let environments: [&[_]; 4] = [&[], &[by_file], &[by_environment], &[by_file, by_environment]];
    assert_eq!(mtus(&[], &environments), ["1450", "1400", "1380", "1380"]);
    assert_eq!(mtus(&["--mtu", "1360"], &environments[2..]), ["1360", "1360"]);
}

#[test]
fn changed_config_map_is_told_and_its_networks_count_at_once() {
    let config_map = ConfigMap::new();
    let (config, networks) = (config_map.key("config.yaml"), config_map.key("non-masquerade"));
    let options = "vxlan-port: 8473\nmtu: 1400\nlog-level: info\n";
    config_map.set(&[("config.yaml", options)]);
    let arguments = ["--config", &config, "--non-masquerade-file", &networks, "--mtu", "1380"];
    let lab = Lab::builder().nodes(1).agent_arguments(&arguments).build().unwrap();
    let node = lab.node(0);
    let overridden = comes(node, OVERRIDDEN, "mtu");
    assert!(overridden.contains(": mtu ["), "not only mtu is overridden: {overridden}");
    assert_eq!([condition(node, DIFFERS), condition(node, NETWORKS)], [0, 0], "without networks");

    config_map.set(&[("config.yaml", options), ("non-masquerade", "192.0.2.0/24\n")]);
    wait_until(|| (excluded(node) == 1).then_some(())).unwrap_or_else(|| panic!("{}", node.agent_log()));
    // `mtu` is on the command line too: it stays, whatever the file says.
    let changed = "vxlan-port: 8474\nmtu: 1300\nsnat-ports: 40000-50000\n";
    config_map.set(&[("config.yaml", changed), ("non-masquerade", "192.0.2.0/24\n198.51.100.0/24\n")]);
    wait_until(|| (excluded(node) == 2).then_some(())).unwrap_or_else(|| panic!("{}", node.agent_log()));
    comes(node, DIFFERS, ": snat-ports, vxlan-port [");
    assert_eq!(told(node, OVERRIDDEN), [overridden]);

    config_map.set(&[("config.yaml", "mode: bridge"), ("non-masquerade", "")]);
    let unusable = comes(node, UNUSABLE, "mode: ");
    assert!(unusable.contains(&config) && unusable.contains("vxlan, direct"), "{unusable}");
    wait_until(|| (excluded(node) == 0).then_some(())).unwrap_or_else(|| panic!("{}", node.agent_log()));
    node.add_pod("pod").unwrap();

    // A value that is the same on the command line does not count as overridden.
    config_map.set(&[("config.yaml", "vxlan-port: 8473\nmtu: 1380\n")]);
    for name in [UNUSABLE, DIFFERS, OVERRIDDEN] {
        goes(node, name);
    }
}

#[test]
fn an_agent_does_not_start_with_a_file_that_is_wrong() {
    let config_map = ConfigMap::new();
    config_map.set(&[("config.yaml", "vxlan-prt: 8473\n")]);
    let config = config_map.key("config.yaml");
    let lab = Lab::builder().nodes(1).agents(false).agent_arguments(&["--config", &config]).build().unwrap();
    assert!(!lab.node(0).run_second_agent().unwrap().success());
    let log = lab.node(0).agent_log();
    assert!(log.contains(&config) && log.contains("the nearest is `vxlan-port`"), "{log}");
    assert_eq!(lab.node(0).output(&["ip", "link", "show", "podwire-vxlan"]).unwrap().status.code(), Some(1));
}

#[test]
fn files_are_read_again_when_their_folder_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let write = |folder: &str, mtu: u32, networks: &str| {
        fs::create_dir(at(folder)).unwrap();
        fs::write(at(folder).join("config.yaml"), format!("mtu: {mtu}\n")).unwrap();
        fs::write(at(folder).join("networks"), networks).unwrap();
    };
    write("etc", 1400, "");
    let [config, networks] =
        ["etc/config.yaml", "etc/networks"].map(|name| at(name).to_str().unwrap().to_owned());
    let arguments = ["--config", &config, "--non-masquerade-file", &networks];
    let lab = Lab::builder().nodes(1).agent_arguments(&arguments).build().unwrap();
    let node = lab.node(0);
    let runs_with_it = || condition(node, DIFFERS) == 0;
    assert!(runs_with_it());

    fs::remove_dir_all(at("etc")).unwrap();
    write("etc", 1300, "192.0.2.0/24\n");
    wait_until(|| (excluded(node) == 1 && !runs_with_it()).then_some(()))
        .unwrap_or_else(|| panic!("{}", node.agent_log()));
    // Now the folder is a link, which another link replaces.
    write("other", 1400, "192.0.2.0/24\n198.51.100.0/24\n");
    fs::rename(at("etc"), at("before")).unwrap();
    symlink("other", at("etc")).unwrap();
    wait_until(|| (excluded(node) == 2 && runs_with_it()).then_some(()))
        .unwrap_or_else(|| panic!("{}", node.agent_log()));
    symlink("before", at("swapped")).unwrap();
    fs::rename(at("swapped"), at("etc")).unwrap();
    wait_until(|| (excluded(node) == 1 && !runs_with_it()).then_some(()))
        .unwrap_or_else(|| panic!("{}", node.agent_log()));
}

#[test]
fn a_config_that_is_no_regular_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    assert!(Command::new("mkfifo").arg(&config).status().unwrap().success());
    let config = config.to_str().unwrap();
    let lab = Lab::builder().nodes(1).agents(false).agent_arguments(&["--config", config]).build().unwrap();
    assert!(!lab.node(0).run_second_agent().unwrap().success());
    let log = lab.node(0).agent_log();
    assert!(log.contains(config) && log.contains("no regular file"), "{log}");
}

/// A folder as a kubelet mounts it from a ConfigMap. Each key is a link into `..data`. `..data` is
/// a link to a folder with a whole state, and the next state replaces that link.
struct ConfigMap {
    folder: tempfile::TempDir,
}

impl ConfigMap {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn key(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn set(&self, keys: &[(&str, &str)]) {
        let path = |name: &str| self.folder.path().join(name);
        let before = fs::read_link(path("..data")).ok();
        let number = before.as_ref().map_or(0, |before| before.to_str().unwrap()[7..].parse().unwrap());
        let next = PathBuf::from(format!("..2026_{}", number + 1));
        fs::create_dir(self.folder.path().join(&next)).unwrap();
        for (name, text) in keys {
            fs::write(self.folder.path().join(&next).join(name), text).unwrap();
        }
        symlink(&next, path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
        for (name, _) in keys.iter().filter(|(name, _)| !path(name).is_symlink()) {
            symlink(Path::new("..data").join(name), path(name)).unwrap();
        }
        for name in ["config.yaml", "non-masquerade"] {
            if path(name).is_symlink() && !keys.iter().any(|(kept, _)| *kept == name) {
                fs::remove_file(path(name)).unwrap();
            }
        }
        if let Some(before) = before {
            fs::remove_dir_all(self.folder.path().join(before)).unwrap();
        }
    }
}

/// Returns how many networks see pods' own addresses.
fn excluded(node: &Node) -> usize {
    node.map_dump(maps::NETWORKS).unwrap().as_array().unwrap_or(&vec![json!(0)]).len()
}
