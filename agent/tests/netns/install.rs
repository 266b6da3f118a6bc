//! What is installed on a node and removed again: the plugin, and the configuration with which the
//! runtime calls it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::mem::MaybeUninit;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::inotify;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use xtask::lab::{Lab, Node, Ns};

use crate::sockets::wait_until;
use crate::sweep::{comes, condition, metric, readyz, repairs};

const OURS: &str = "10-podwire.conflist";
const FIRST: &str = "podwire_cni_configuration_first";
const CONFIGURATION: &str = "cni-configuration";
const OTHER_FIRST: &str = "other-configuration-first";

#[test]
fn the_configuration_comes_when_the_agent_serves_and_stays() {
    let (lab, folder) = lab_with_configuration();
    let node = lab.node(0);
    let ours = folder.join(OURS);
    let list = lab.node_list().unwrap().to_string();
    lab.write_node_list("{}").unwrap();
    node.spawn_agent().unwrap();
    comes(node, "own-node-missing", node.name());
    assert!(!ours.exists(), "pods would be sent to an agent that cannot serve them");
    lab.write_node_list(&list).unwrap();
    wait_until(|| ours.exists().then_some(())).unwrap();
    let (written, inode) = (fs::read_to_string(&ours).unwrap(), inode(&ours));
    let configuration: Value = serde_json::from_str(&written).unwrap();
    assert_eq!(configuration["plugins"][0]["socket"], json!(node.socket()));
    assert_eq!(configuration["name"], "podwire");

    node.restart_agent().unwrap();
    node.stop_agent().unwrap();
    assert_eq!(
        (fs::read_to_string(&ours).unwrap(), self::inode(&ours)),
        (written.clone(), inode),
        "the agent has written the file again"
    );
    node.start_agent().unwrap();
    for damage in [|ours: &Path| fs::remove_file(ours), |ours: &Path| fs::write(ours, "{}")] {
        damage(&ours).unwrap();
        let back = || fs::read_to_string(&ours).is_ok_and(|text| text == written).then_some(());
        wait_until(back).unwrap_or_else(|| panic!("{}", node.agent_log()));
    }
    assert_eq!(repairs(node, CONFIGURATION), 2);
}

#[test]
fn unwritable_configuration_keeps_the_agent_from_being_ready() {
    let (lab, folder) = lab_with_configuration();
    let node = lab.node(0);
    assert!(run("mount", &["-t", "tmpfs", "-o", "ro", "tmpfs"], &folder));
    node.spawn_agent().unwrap();
    let said = comes(node, CONFIGURATION, "--cni-conf-dir");
    assert!(said.contains(OURS) && said.contains("Read-only file system"), "{said}");
    let (status, text) = readyz(node);
    assert!(status == 503 && text.contains(OURS), "{status} {text}");
    assert_eq!(metric(node, "podwire_ready"), "0");
    // A runtime that calls the plugin by a configuration of another name is served.
    node.add_pod("pod").unwrap().delete().unwrap();
    assert!(run("mount", &["-o", "remount,rw"], &folder));
    node.wait_ready().unwrap();
    assert!(folder.join(OURS).exists());
    assert!(run("mount", &["-o", "remount,ro"], &folder));
    node.restart_agent().unwrap();
    assert_eq!(condition(node, CONFIGURATION), 0, "the file is already right: {}", node.agent_log());
    node.stop_agent().unwrap();
    assert!(run("umount", &[], &folder));
}

#[test]
fn configurations_of_others_are_left_alone_and_told_of() {
    let (lab, folder) = lab_with_configuration();
    let node = lab.node(0);
    let others = ["05-other.conf", "10-flannel.conflist", "87-podman.conflist"].map(|name| folder.join(name));
    for other in &others {
        fs::write(other, "whatever it holds").unwrap();
    }
    let before = others.clone().map(|other| fs::metadata(other).unwrap().mtime_nsec());
    node.start_agent().unwrap();
    comes(node, OTHER_FIRST, "05-other.conf comes before");
    assert_eq!(metric(node, FIRST), "0");
    assert_eq!(metric(node, "podwire_ready"), "1", "the agent still serves the pods that the node has");
    assert!(lines(node, "87-podman.conflist is left alone")[0].contains("INFO"), "{}", node.agent_log());
    fs::rename(&others[0], folder.join("95-other.conf")).unwrap();
    comes(node, OTHER_FIRST, "10-flannel.conflist comes before");
    fs::remove_file(&others[1]).unwrap();
    wait_until(|| (metric(node, FIRST) == "1").then_some(()))
        .unwrap_or_else(|| panic!("{}", node.agent_log()));
    assert_eq!(condition(node, OTHER_FIRST), 0);

    node.stop_agent().unwrap();
    let done = node.uninstall().unwrap();
    assert!(done.status.success(), "{}", text(&done));
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(fs::metadata(&others[2]).unwrap().mtime_nsec(), before[2]);
}

#[test]
fn the_plugin_that_is_installed_serves_and_goes_with_uninstall() {
    let (lab, _) = lab_with_configuration();
    let node = lab.node(0);
    // The folder is within the lab's folder: the lab unmounts what a failed test leaves there.
    let folder = node.cni_state_dir().join("bin");
    fs::create_dir(&folder).unwrap();
    let plugin = folder.join("podwire-cni");
    let bin_dir = ["--cni-bin-dir", &folder.to_string_lossy()].map(str::to_owned);
    let bin_dir = bin_dir.each_ref().map(String::as_str);
    let install = || node.podwire(&[&["install"][..], &bin_dir].concat()).unwrap();
    // The disk is too small for the plugin.
    let mount = |options: &str| assert!(run("mount", &["-t", "tmpfs", "-o", options, "tmpfs"], &folder));
    mount("size=64k");
    fs::write(&plugin, "the one before").unwrap();
    let refused = install();
    assert!(!refused.status.success());
    assert!(text(&refused).contains("podwire-cni: No space left on device"), "{}", text(&refused));
    assert_eq!(files(&folder), BTreeMap::from([("podwire-cni".to_owned(), b"the one before".len())]));
    assert!(run("mount", &["-o", "remount,ro"], &folder));
    let refused = install();
    assert!(text(&refused).contains("Read-only file system"), "{}", text(&refused));
    assert!(run("umount", &[], &folder));

    let installed = install();
    assert!(installed.status.success(), "{}", text(&installed));
    node.start_agent().unwrap();
    let ns = Ns::create(&node.cni_call("ADD", "pod", &json!({})).container_id).unwrap();
    let add = node.cni_call("ADD", "pod", &json!({}));
    let add = add.of_plugin(&plugin, add.config.clone());
    let added = add.run().unwrap();
    assert!(added.success, "{added:?}");
    let address = added.answer["ips"][0]["address"].as_str().unwrap();
    node.exec(&["ping", "-c", "1", "-W", "5", address.split('/').next().unwrap()]).unwrap();
    // Install again while the agent runs. The new file must serve the pod's DEL.
    assert!(install().status.success());
    assert!(add.with_command("DEL").run().unwrap().success);
    ns.remove().unwrap();

    node.stop_agent().unwrap();
    fs::write(folder.join("loopback"), "another's").unwrap();
    fs::write(folder.join("podwire-cni.tmp"), "half").unwrap();
    let done = node.uninstall_with(&bin_dir).unwrap();
    assert!(done.status.success(), "{}", text(&done));
    assert_eq!(files(&folder), BTreeMap::from([("loopback".to_owned(), 9)]));
    assert!(!text(&done).contains("the plugin podwire-cni"), "{}", text(&done));
}

#[test]
fn owner_of_anothers_folder_is_named_and_what_helps() {
    let lab = Lab::builder()
        .nodes(1)
        .agents(false)
        .agent_wrapper(&["setpriv", "--no-new-privs", "--inh-caps=-all", crate::capabilities::NEEDED])
        .build()
        .unwrap();
    let node = lab.node(0);
    let (plugins, configurations) = (node.cni_state_dir().join("bin"), node.cni_conf_dir());
    fs::create_dir(&plugins).unwrap();
    let of = |user: u32| {
        for folder in [&plugins, configurations] {
            chown(folder, Some(user), Some(user)).unwrap();
        }
    };
    let explained = |said: &str, path: &Path| {
        let [path, folder] = [path, path.parent().unwrap()].map(Path::display);
        let way_out = format!("{folder} belongs to user 4711");
        said.contains(&format!("{path}: permission denied: {way_out}"))
            && said.contains(&format!("chown root:root {folder}`"))
    };
    let plugin = plugins.join("podwire-cni");
    let bin_dir = ["--cni-bin-dir", &plugins.to_string_lossy()].map(str::to_owned);
    let bin_dir = bin_dir.each_ref().map(String::as_str);
    let install = || node.podwire(&[&["install"][..], &bin_dir].concat()).unwrap();

    of(4711);
    let refused = install();
    assert!(!refused.status.success() && explained(&text(&refused), &plugin), "{}", text(&refused));
    node.spawn_agent().unwrap();
    let said = comes(node, CONFIGURATION, "--cni-conf-dir");
    assert!(explained(&said, &configurations.join(OURS)), "{said}");

    of(0);
    assert!(install().status.success());
    node.wait_ready().unwrap();
    node.stop_agent().unwrap();
    of(4711);
    let refused = node.uninstall_with(&bin_dir).unwrap();
    let left = [plugin, configurations.join(OURS)];
    assert!(!refused.status.success());
    assert!(left.iter().all(|path| explained(&text(&refused), path)), "{}", text(&refused));
    of(0);
    let done = node.uninstall_with(&bin_dir).unwrap();
    assert!(done.status.success() && !left.iter().any(|path| path.exists()), "{}", text(&done));
}

/// An agent that starts as soon as the lock is free puts its own plugin and socket there. So both
/// must be removed before the lock.
#[test]
fn uninstall_keeps_agents_away_until_plugin_and_socket_go() {
    let (lab, _) = lab_with_configuration();
    let node = lab.node(0);
    let plugins = node.cni_state_dir().join("bin");
    fs::create_dir(&plugins).unwrap();
    node.start_agent().unwrap();
    node.kill_agent().unwrap();
    fs::write(plugins.join("podwire-cni"), "").unwrap();
    let run_dir = node.socket().parent().unwrap().to_owned();
    let removed = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    for folder in [&plugins, &run_dir, node.state_dir()] {
        inotify::add_watch(&removed, folder, inotify::WatchFlags::DELETE).unwrap();
    }
    let done = node.uninstall_with(&["--cni-bin-dir", &plugins.to_string_lossy()]).unwrap();
    assert!(done.status.success(), "{}", text(&done));
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut events = inotify::Reader::new(&removed, &mut buffer);
    let mut order = Vec::new();
    while let Ok(event) = events.next() {
        order.extend(event.file_name().map(|name| name.to_str().unwrap().to_owned()));
    }
    let place = |name: &str| {
        order.iter().position(|removed| removed == name).unwrap_or_else(|| panic!("{name}: {order:?}"))
    };
    for name in ["podwire-cni", "agent.sock"] {
        assert!(place(name) < place("agent.lock"), "{order:?}");
    }
}

#[test]
fn waiting_ends_with_the_signal_and_not_before() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut waiting =
            Command::new(env!("CARGO_BIN_EXE_podwire")).arg("wait").stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut stderr = BufReader::new(waiting.stderr.take().unwrap());
        stderr.read_line(&mut said).unwrap();
        assert!(said.contains("waiting"), "{said}");
        assert!(waiting.try_wait().unwrap().is_none());
        kill_process(Pid::from_child(&waiting), signal).unwrap();
        assert!(waiting.wait().unwrap().success());
    }
}

/// Returns a lab of one node, and the folder of its network configurations.
fn lab_with_configuration() -> (Lab, PathBuf) {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let folder = lab.node(0).cni_conf_dir().to_owned();
    (lab, folder)
}

fn lines(node: &Node, with: &str) -> Vec<String> {
    node.agent_log().lines().filter(|line| line.contains(with)).map(str::to_owned).collect()
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

/// Returns names and sizes.
fn files(folder: &Path) -> BTreeMap<String, usize> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len() as usize))
        .collect()
}

fn run(program: &str, arguments: &[&str], folder: &Path) -> bool {
    Command::new(program).args(arguments).arg(folder).status().unwrap().success()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
