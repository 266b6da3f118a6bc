//! A state folder that is full, read-only, spoilt, from a later release, or gone.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use podwire_cni::protocol::Attachment;
use podwire_common::abi::{ENDPOINT_EGRESS_LIMITED, ENDPOINT_INGRESS_LIMITED};
use podwire_common::names::maps;
use rustix::fs::{FileType, Mode};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use serde_json::{Value, json};
use xtask::lab::{Lab, Node, Pod, traffic};

use crate::cni::{UNAVAILABLE, failed, status, succeeded};
use crate::footprint::Footprint;
use crate::reach;
use crate::sockets::wait_until;
use crate::sweep::{comes, condition, conditions, goes, metric, readyz, told};

/// CNI specification, "Error": input or output failed.
const IO_FAILURE: u32 = 5;
const KIBIBYTE: u64 = 1024;

#[test]
fn a_full_disk_refuses_new_pods_and_deletes_old_ones() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    mount("tmpfs", node.state_dir(), "tmpfs", MountFlags::empty(), Some(c"size=256k")).unwrap();
    node.start_agent().unwrap();
    let [going, staying] = ["going", "staying"].map(|name| node.add_pod(name).unwrap());
    let before = Footprint::of(node, &[&going, &staying]);
    let filler = node.state_dir().join("filler");
    let error = fs::write(&filler, vec![0; 512 * KIBIBYTE as usize]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    refused(&lab, "new", "No space left on device");
    let with_filler = Footprint::of(node, &[&going, &staying]).differences(&before);
    assert!(
        with_filler.iter().all(|line| line.starts_with(&format!("file {}", filler.display()))),
        "{with_filler:?}"
    );
    reach(&staying, &going);
    going.delete().unwrap();
    fs::remove_file(filler).unwrap();
    let new = node.add_pod("later").unwrap();
    reach(&staying, &new);
}

#[test]
fn read_only_folder_refuses_new_pods_and_an_agent() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let [going, staying] = ["going", "staying"].map(|name| node.add_pod(name).unwrap());
    let address = going.address();
    mount_bind(node.state_dir(), node.state_dir()).unwrap();
    set_read_only(node.state_dir(), true);
    refused(&lab, "new", "Read-only file system");
    // DEL succeeds, and the pod is gone. Only its address is not free yet.
    going.delete().unwrap();
    let wanted = json!({ "ips": [address] });
    node.kill_agent().unwrap();
    let error = format!("{:#}", node.start_agent().unwrap_err());
    assert!(error.contains("Read-only file system") && error.contains("agent.lock"), "{error}");
    reach(&staying, node);
    set_read_only(node.state_dir(), false);
    node.start_agent().unwrap();
    let again = node.add_pod_with("again", &wanted).unwrap();
    assert_eq!(again.address(), address);
    traffic::tcp_exchange(&staying, &again, address, 8080, KIBIBYTE).unwrap();
}

#[test]
fn a_full_disk_is_told_before_an_add_fails() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    mount("tmpfs", node.state_dir(), "tmpfs", MountFlags::empty(), Some(c"size=256k")).unwrap();
    node.start_agent().unwrap();
    let filler = node.state_dir().join("filler");
    for _ in 0..2 {
        fs::write(&filler, vec![0; 512 * KIBIBYTE as usize]).unwrap_err();
        unavailable_until_mended(node, "No space left on device", || fs::remove_file(&filler).unwrap());
    }
    node.add_pod("pod").unwrap();
    assert_eq!(below_endpoints(node).len(), 1, "a trial of the disk left a file");
}

#[test]
fn a_read_only_disk_is_told_before_an_add_fails() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    mount_bind(node.state_dir(), node.state_dir()).unwrap();
    set_read_only(node.state_dir(), true);
    unavailable_until_mended(node, "Read-only file system", || set_read_only(node.state_dir(), false));
    node.add_pod("pod").unwrap();
}

#[test]
fn a_disk_that_hangs_is_told_and_the_agent_lives() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(16 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", image.path().to_str().unwrap()]);
    run("mount", &["-o", "loop", image.path().to_str().unwrap(), node.state_dir().to_str().unwrap()]);
    node.start_agent().unwrap();
    let frozen = Frozen::new(node.state_dir());
    let why = "the disk of the state folder";
    let said = |(status, text): &(u16, String)| *status == 503 && text.contains(why);
    assert!(wait_until(|| Some(readyz(node)).filter(said)).is_some(), "{}", node.agent_log_tail(10));
    failed(&status(node), UNAVAILABLE, why);
    drop(frozen);
    let ready = wait_until(|| Some(readyz(node)).filter(|(status, _)| *status == 200));
    assert!(ready.is_some(), "{:?}", readyz(node));
    node.add_pod("pod").unwrap().delete().unwrap();
    node.stop_agent().unwrap();
    run("umount", &[node.state_dir().to_str().unwrap()]);
}

/// A frozen file system: its writers wait.
struct Frozen(PathBuf);

impl Frozen {
    fn new(mount_point: &Path) -> Self {
        run("fsfreeze", &["--freeze", mount_point.to_str().unwrap()]);
        Self(mount_point.into())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        run("fsfreeze", &["--unfreeze", self.0.to_str().unwrap()]);
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

#[test]
fn a_removed_state_folder_comes_back_with_all_pods() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    // The agent saves the value that it finds here in the folder, too.
    node.sysctl("net/ipv4/ip_forward", "0").unwrap();
    node.start_agent().unwrap();
    assert!(node.state_dir().join("before.json").exists());
    let limit = json!({ "bandwidth": { "egressRate": 1_000_000_000 } });
    let pods = [node.add_pod("plain").unwrap(), node.add_pod_with("limited", &limit).unwrap()];
    let before = Footprint::of(node, &[&pods[0], &pods[1]]);
    let is_as_before =
        || Footprint::of(node, &[&pods[0], &pods[1]]).differences(&before).is_empty().then_some(());
    let removals: [fn(&Node); 2] = [
        |node| fs::remove_dir_all(node.state_dir()).unwrap(),
        |node| fs::remove_dir_all(node.state_dir().join("endpoints")).unwrap(),
    ];
    for remove in removals {
        remove(node);
        let back = wait_until(|| node.state_dir().join("endpoints").exists().then_some(()));
        assert!(back.is_some(), "{}", node.agent_log_tail(10));
        assert!(
            wait_until(is_as_before).is_some(),
            "{:?}",
            Footprint::of(node, &[&pods[0], &pods[1]]).differences(&before)
        );
        // The agent has locked the new folder as it had locked the first.
        assert!(!node.run_second_agent().unwrap().success());
    }
    node.restart_agent().unwrap();
    assert_eq!(Footprint::of(node, &[&pods[0], &pods[1]]).differences(&before), [""; 0]);
    // Every pod has its file, so the agent makes no new one.
    assert_eq!(conditions(node), [""; 0]);
    let next = node.add_pod("next").unwrap();
    assert_eq!(
        u32::from(crate::v4(next.address())),
        u32::from(crate::v4(pods[1].address())) + 1,
        "the agent did not go on after the last address"
    );
}

#[test]
fn pods_whose_files_are_spoilt_or_gone_keep_network_and_address() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let before = Footprint::of(node, &[]);
    let ports = json!({ "portMappings": [
        { "hostPort": 9088, "containerPort": 8080, "protocol": "tcp" },
        { "hostPort": 9089, "containerPort": 8081, "protocol": "udp", "hostIP": node.address() },
    ], "bandwidth": { "ingressRate": 1_000_000_000, "egressRate": 1_000_000_000 } });
    type Spoil = fn(&Path);
    let spoils: [(&str, Spoil); 4] = [
        ("sound", |_| {}),
        ("cut", |file| fs::write(file, &fs::read(file).unwrap()[..40]).unwrap()),
        ("empty", |file| fs::write(file, "").unwrap()),
        ("gone", |file| fs::remove_file(file).unwrap()),
    ];
    let pods = spoils.map(|(name, _)| {
        let wanted = if name == "cut" { ports.clone() } else { json!({}) };
        node.add_pod_with(name, &wanted).unwrap()
    });
    let endpoints = without_limits(node);
    let frontends = sorted(&node.map_dump(maps::FRONTENDS).unwrap());
    node.kill_agent().unwrap();
    for ((_, spoil), pod) in spoils.iter().zip(&pods) {
        spoil(&file_of(node, pod));
    }
    let (mut spoilt, mut recovered) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        node.restart_agent().unwrap();
        spoilt.extend(told(node, "endpoint-file"));
        recovered.extend(told(node, "endpoint-recovered"));
        assert_eq!(without_limits(node), endpoints);
        assert_eq!(sorted(&node.map_dump(maps::FRONTENDS).unwrap()), frontends);
        let [sound, others @ ..] = &pods;
        for pod in others {
            reach(sound, pod);
            reach(node, pod);
        }
        let route = traffic::Route::translated((node.address(), 9088).into(), 8080);
        traffic::tcp_exchange_on(lab.world(), &pods[1], route, KIBIBYTE).unwrap();
    }
    let [_, cut, empty, gone] = &pods;
    for pod in [cut, empty] {
        let aside = file_of(node, pod).with_extension("json.corrupt");
        assert!(spoilt.iter().any(|line| line.contains(&aside.display().to_string())), "{spoilt:?}");
        assert!(aside.exists());
        fs::remove_file(aside).unwrap();
    }
    assert_eq!(spoilt.len(), 2, "{spoilt:?}");
    let [unlimited] = &recovered[..] else { panic!("{recovered:?}") };
    assert!(
        unlimited.contains(cut.host_interface()) && unlimited.contains("its bandwidth is unknown"),
        "{unlimited}"
    );
    assert!(file_of(node, gone).exists(), "it has a file again");
    // The agent gives out all other addresses of the podCIDR before it reuses one. So ask for one
    // of them.
    let taken = node.add_pod_with("taken", &json!({ "ips": [gone.address()] })).map(drop).unwrap_err();
    assert!(format!("{taken:#}").contains("in use by another pod"), "{taken:#}");
    xtask::lab::Ns::open(&node.cni_call("ADD", "taken", &json!({})).container_id).unwrap().remove().unwrap();
    // The answer to a repeated ADD is the same address, for a pod with hostPorts and limits too.
    let again = node.add_pod_again("cut", &ports).unwrap();
    assert_eq!(again.address(), cut.address());
    // The files were removed above, and the next agent finds none. The recovered pods have files.
    assert_eq!(conditions(node), [""; 0]);
    pods.into_iter().for_each(|pod| pod.delete().unwrap());
    assert_eq!(Footprint::of(node, &[]).differences(&before), [] as [String; 0]);
}

#[test]
fn odd_entries_keep_no_agent_from_starting() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pods = ["one", "two"].map(|name| node.add_pod(name).unwrap());
    node.kill_agent().unwrap();
    let at = |name: &str| node.state_dir().join("endpoints").join(name);
    std::os::unix::fs::symlink("nowhere", at("pw000000000001.json")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", at("pw000000000002.json")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("pw000000000003.json"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    drop(UnixListener::bind(at("pw000000000004.json")).unwrap());
    fs::File::create(at("pw000000000005.json")).unwrap().set_len(1 << 33).unwrap();
    fs::create_dir(at("pw000000000006.tmp")).unwrap();
    fs::create_dir(at("pw000000000007.json")).unwrap();
    fs::create_dir_all(at("pw000000000007.json.corrupt").join("full")).unwrap();
    std::os::unix::fs::symlink("itself.json", at("itself.json")).unwrap();
    node.start_agent().unwrap();
    let spoilt = told(node, "endpoint-file");
    let aside = (1..=5).map(|number| format!("pw00000000000{number}.json.corrupt"));
    let left = ["pw000000000006.tmp", "pw000000000007.json", "itself.json.corrupt"].map(str::to_owned);
    for name in aside.chain(left) {
        let path = at(&name);
        let is_told = spoilt.iter().any(|line| line.contains(&path.display().to_string()));
        assert!(is_told && path.symlink_metadata().is_ok(), "{name}: {spoilt:#?}");
    }
    traffic::tcp_exchange(&pods[0], &pods[1], pods[1].address(), 8080, KIBIBYTE).unwrap();
    node.restart_agent().unwrap();
    node.add_pod("next").unwrap();
    assert_ne!(told(node, "endpoint-file"), [""; 0], "entries that were left are named again");
    // Only files with the name of a pod's link are left.
    for entry in fs::read_dir(at("")).unwrap() {
        let path = entry.unwrap().path();
        let is_file = path.symlink_metadata().unwrap().is_file();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else if !is_file || path.extension().is_none_or(|end| end != "json") {
            fs::remove_file(path).unwrap();
        }
    }
    node.restart_agent().unwrap();
    assert_eq!(told(node, "endpoint-file"), [""; 0]);
}

#[test]
fn state_or_maps_of_a_later_release_are_refused_untouched() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let (pod, far) = (node.add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
    node.kill_agent().unwrap();
    let file = file_of(node, &pod);
    let ours = fs::read_to_string(&file).unwrap();
    let version = node.bpf_dir().join("schema-version");
    let schema = fs::read_link(&version).unwrap();
    let later_state: &dyn Fn() =
        &|| fs::write(&file, ours.replace("\"format\": 2", "\"format\": 99")).unwrap();
    let later_maps: &dyn Fn() = &|| {
        fs::remove_file(&version).unwrap();
        std::os::unix::fs::symlink("99", &version).unwrap();
    };
    fs::write(file.with_file_name("pw000000000001.json"), "{").unwrap();
    for (make_later, says) in [(later_state, "format 99"), (later_maps, "layout version 99")] {
        make_later();
        node.sysctl("net/ipv4/ip_forward", "0").unwrap();
        node.ip("link set podwire-vxlan mtu 1400").unwrap();
        let before = Footprint::of(node, &[&pod]);
        let error = format!("{:#}", node.start_agent().unwrap_err());
        assert!(error.contains(says), "{error}");
        assert_eq!(Footprint::of(node, &[&pod]), before);
        assert_eq!(node.exec(&["cat", "/proc/sys/net/ipv4/ip_forward"]).unwrap().trim(), "0");
        node.sysctl("net/ipv4/ip_forward", "1").unwrap();
        reach(&pod, &far);
        fs::write(&file, &ours).unwrap();
    }
    fs::remove_file(&version).unwrap();
    std::os::unix::fs::symlink(schema, &version).unwrap();
    node.start_agent().unwrap();
    reach(&pod, &far);
}

/// A pod that the agent cannot remove completely keeps its address. Otherwise two files could name
/// the same address.
#[test]
fn an_address_whose_file_cannot_be_removed_is_given_to_nobody() {
    let lab = Lab::builder().node_file().nodes(1).build().unwrap();
    let node = lab.node(0);
    let going = node.add_pod("going").unwrap();
    let file = file_of(node, &going);
    mount_bind(node.state_dir(), node.state_dir()).unwrap();
    set_read_only(node.state_dir(), true);
    let link = going.host_interface().to_owned();
    going.delete().unwrap();
    comes(node, "not-released", &link);
    comes(node, "state-folder", "Read-only file system");
    // No other condition is reported.
    assert_eq!(conditions(node).len(), 2, "{:?}", conditions(node));
    set_read_only(node.state_dir(), false);
    assert!(wait_until(|| (!file.exists()).then_some(())).is_some(), "{}", node.agent_log_tail(20));
    goes(node, "not-released");

    // The agent can neither complete nor undo this ADD.
    let container_id = node.cni_call("ADD", "stuck", &json!({})).container_id;
    let stuck = Attachment { container_id, interface: "eth0".into() }.host_interface();
    let file = file_of_name(node, &stuck);
    fs::create_dir(&file).unwrap();
    refused(&lab, "stuck", "Is a directory");
    let address = json!({ "ips": ["10.244.1.3/24"] });
    lab.add_namespace("node1-next").unwrap();
    let next = node.cni_call("ADD", "next", &address).run().unwrap();
    assert!(!next.success && next.answer["msg"].as_str().unwrap().contains("in use"), "{next:?}");
    fs::remove_dir(&file).unwrap();
    let added = || node.cni_call("ADD", "next", &address).run().unwrap().success;
    assert!(wait_until(|| added().then_some(())).is_some(), "{}", node.agent_log_tail(20));
}

/// Like [`an_address_whose_file_cannot_be_removed_is_given_to_nobody`], when an agent starts.
#[test]
fn an_agent_serves_though_it_cannot_remove_a_file() {
    let lab = Lab::builder().node_file().nodes(1).build().unwrap();
    let node = lab.node(0);
    let going = node.add_pod("going").unwrap();
    let (file, link) = (file_of(node, &going), going.host_interface().to_owned());
    node.kill_agent().unwrap();
    node.ip(&format!("link delete {link}\n")).unwrap();
    mount_bind(&file, &file).unwrap();
    node.start_agent().unwrap();
    comes(node, "not-released", &link);
    assert_eq!(condition(node, "state-folder"), 0, "the folder itself takes files");
    let staying = node.add_pod("staying").unwrap();
    assert_ne!(staying.address(), going.address());
    reach(&staying, node);
    unmount(&file, UnmountFlags::empty()).unwrap();
    goes(node, "not-released");
    assert!(!file.exists(), "{}", node.agent_log_tail(20));
    let wanted = json!({ "ips": [going.address()] });
    assert_eq!(node.add_pod_with("again", &wanted).unwrap().address(), going.address());
}

#[test]
fn file_with_anothers_address_and_no_device_costs_it_nothing() {
    let lab = Lab::builder().node_file().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("pod").unwrap();
    let stream = traffic::tcp_stream(&pod, lab.world(), lab.world_address(), 8080).unwrap();
    stream.wait_for(KIBIBYTE).unwrap();
    node.kill_agent().unwrap();
    let (ghost, container_id) = ("pwffffffffffff", node.cni_call("ADD", "pod", &json!({})).container_id);
    let text = fs::read_to_string(file_of(node, &pod)).unwrap();
    let text = text.replace(pod.host_interface(), ghost).replace(&container_id, "ghost");
    fs::write(file_of_name(node, ghost), text).unwrap();
    let (endpoints, list) = (node.map_dump(maps::ENDPOINTS).unwrap(), lab.node_list().unwrap());
    // The agent repairs nothing before the Node list has come.
    lab.write_node_list("{").unwrap();
    node.spawn_agent().unwrap();
    comes(node, "node-list-unread", "decode the node list");
    assert!(!file_of_name(node, ghost).exists());
    assert_eq!(node.map_dump(maps::ENDPOINTS).unwrap(), endpoints);
    let sent = stream.finish().unwrap().bytes;
    assert!(sent > 0);
    reach(node, &pod);
    lab.write_node_list(&list.to_string()).unwrap();
    node.wait_ready().unwrap();
}

#[test]
fn second_agent_on_a_state_folder_is_told_the_firsts_number() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("pod").unwrap();
    let before = Footprint::of(node, &[&pod]);
    let pid = node.agent_pid().unwrap();
    let second = node.run_second_agent().unwrap();
    assert!(!second.success(), "it runs beside the first");
    let log = node.agent_log();
    assert!(log.contains(&format!("(process {pid}; the number")), "{log}");
    assert_eq!(Footprint::of(node, &[&pod]), before);
    reach(node, &pod);
    node.add_pod("served").unwrap();
}

fn file_of(node: &Node, pod: &Pod) -> PathBuf {
    file_of_name(node, pod.host_interface())
}

fn file_of_name(node: &Node, host_interface: &str) -> PathBuf {
    node.state_dir().join("endpoints").join(format!("{host_interface}.json"))
}

/// Asserts that an ADD fails with the disk's error and leaves no file.
#[track_caller]
fn refused(lab: &Lab, name: &str, says: &str) {
    let node = lab.node(0);
    lab.add_namespace(&format!("node1-{name}")).unwrap();
    let output = node.cni_call("ADD", name, &json!({})).run().unwrap();
    assert!(!output.success && output.answer["code"] == IO_FAILURE, "{output:?}");
    let message = output.answer["msg"].as_str().unwrap();
    let folder = node.state_dir().join("endpoints");
    assert!(message.contains(says) && message.contains(&folder.display().to_string()), "{output:?}");
}

/// Asserts that the node reports that no pod can be added and why, and reports success after the
/// repair.
#[track_caller]
fn unavailable_until_mended(node: &Node, why: &str, mend: impl FnOnce()) {
    let said = |(status, text): &(u16, String)| *status == 503 && text.contains(why);
    let unready = wait_until(|| Some(readyz(node)).filter(said));
    assert!(unready.is_some(), "{:?}\n{}", readyz(node), node.agent_log_tail(10));
    failed(&status(node), UNAVAILABLE, why);
    assert_eq!(metric(node, "podwire_ready"), "0");
    mend();
    let ready = wait_until(|| Some(readyz(node)).filter(|(status, _)| *status == 200));
    assert!(ready.is_some(), "{:?}", readyz(node));
    succeeded(status(node));
}

fn below_endpoints(node: &Node) -> Vec<PathBuf> {
    let entries = fs::read_dir(node.state_dir().join("endpoints")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn set_read_only(folder: &Path, read_only: bool) {
    let flags = if read_only { MountFlags::BIND | MountFlags::RDONLY } else { MountFlags::BIND };
    mount_remount(folder, flags, "").unwrap();
}

/// Returns the entries of `ENDPOINTS` without the flags about limits: only a pod's file has its
/// rates.
fn without_limits(node: &Node) -> Vec<String> {
    let mut dump = node.map_dump(maps::ENDPOINTS).unwrap();
    for entry in dump.as_array_mut().unwrap() {
        let value = &mut entry["formatted"]["value"];
        let flags = value["flags"].as_u64().unwrap() as u32;
        value["flags"] = (flags & !(ENDPOINT_INGRESS_LIMITED | ENDPOINT_EGRESS_LIMITED)).into();
        entry["value"] = Value::Null;
    }
    sorted(&dump)
}

/// Returns the entries in a fixed order: a hash map has none.
fn sorted(dump: &Value) -> Vec<String> {
    let mut entries: Vec<String> = dump.as_array().unwrap().iter().map(Value::to_string).collect();
    entries.sort();
    entries
}
