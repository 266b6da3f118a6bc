//! A runtime's calls, byte for byte: with the default socket and its own namespace paths.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use xtask::lab::{Lab, Node, Ns, traffic};

use crate::footprint::Footprint;

const CALLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/cni-calls");

#[test]
fn the_captured_calls_work_as_they_are() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    node.add_pod("earlier").unwrap().delete().unwrap();
    let before = Footprint::of(node, &[]);
    for name in ["plain", "hostports-and-bandwidth"] {
        let pod = lab.add_namespace(name).unwrap();
        let result: Value = serde_json::from_slice(&call(node, &pod, name, "add").stdout).unwrap();
        assert_eq!(result["cniVersion"], "1.0.0");
        assert_eq!(result["dns"]["nameservers"][0], "10.96.0.10");
        let address: IpAddr = super::address(&result).parse().unwrap();
        traffic::ping(node, address, 56).unwrap();
        lab.world_addresses().iter().for_each(|world| _ = traffic::ping(&pod, *world, 56).unwrap());
        if name != "plain" {
            for address in node.addresses() {
                let to = |port| SocketAddr::new(address, port);
                let tcp = traffic::Route::translated(to(9088), 8080);
                traffic::tcp_exchange_on(lab.world(), &pod, tcp, 1000).unwrap();
                let udp = traffic::Route::translated(to(9089), 8081);
                traffic::udp_exchange_on(lab.world(), &pod, udp, 1000).unwrap();
            }
            // This hostPort is for the node's own processes only.
            let local = traffic::Route::translated(SocketAddr::new([127, 0, 0, 1].into(), 9090), 8080);
            traffic::tcp_exchange_on(node, &pod, local, 1000).unwrap();
        }
        assert!(call(node, &pod, name, "del").stdout.is_empty());
        assert_eq!(Footprint::of(node, &[]).differences(&before), [] as [String; 0], "{name}");
    }
}

/// Runs the plugin with a call's input and environment. In its view of the file system,
/// `/run/podwire` is the node's run folder, and the call's namespace path leads to the pod's
/// namespace.
fn call(node: &Node, pod: &Ns, name: &str, verb: &str) -> Output {
    let read = |kind: &str| std::fs::read(format!("{CALLS}/{name}.{verb}.{kind}")).unwrap();
    let environment = String::from_utf8(read("env")).unwrap();
    let path = environment.lines().find_map(|line| line.strip_prefix("CNI_NETNS=")).unwrap();
    let plugin = node.cni_call("ADD", name, &Value::Null);
    let socket = node.socket();
    let mut command = Command::new("unshare");
    // `unshare` makes mounts private: they are not visible outside, and end with the process.
    command.args(["--mount", "sh", "-eu", "-c", VIEW, "sh"]);
    command.arg(node.state_dir().with_file_name("view")).arg(socket.parent().unwrap());
    command.arg(pod.path()).arg(Path::new(path).file_name().unwrap()).arg(plugin.plugin());
    command.args(environment.lines());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = node.enter(|| command.spawn()).unwrap().unwrap();
    child.stdin.take().unwrap().write_all(&read("json")).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{name}, {verb}: {output:?}");
    output
}

/// Arguments: a folder for the view, the node's run folder, the pod's namespace, its name for the
/// runtime, the plugin. The environment follows.
const VIEW: &str = r#"
view=$1 run=$2 netns=$3 name=$4 plugin=$5
shift 5
mkdir -p "$view"
mount -t tmpfs view "$view"
mkdir "$view/podwire" "$view/netns"
mount --bind "$run" "$view/podwire"
touch "$view/netns/$name"
mount --bind "$netns" "$view/netns/$name"
mount --rbind "$view" /run
exec env -i "$@" "$plugin"
"#;
