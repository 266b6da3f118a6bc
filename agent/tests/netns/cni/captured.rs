//! A runtime's calls, byte for byte: with the default socket and its own namespace paths.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use xtask::lab::{Lab, Node, Ns, traffic};

use crate::footprint::Footprint;

const CALLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/cni-calls");
/// What a dual-stack cluster's runtime called, and what the reference plugins answered there.
const DUAL_CALLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/dual-stack/cni-calls");
const NAMES: [&str; 2] = ["plain", "hostports-and-bandwidth"];

#[test]
fn the_captured_calls_work_as_they_are() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    node.add_pod("earlier").unwrap().delete().unwrap();
    let before = Footprint::of(node, &[]);
    for name in NAMES {
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

#[test]
fn a_dual_stack_clusters_runtime_gets_the_parts_that_it_knows() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    for name in NAMES {
        let read = |kind: &str| std::fs::read_to_string(format!("{DUAL_CALLS}/{name}.add.{kind}")).unwrap();
        let (environment, reference) = (read("env"), read("result.json"));
        let pod = lab.add_namespace(name).unwrap();
        // The network configuration is Podwire's: that of the captured calls is another plugin's.
        let json = std::fs::read(format!("{CALLS}/{name}.add.json")).unwrap();
        let answer = call_with(node, &pod, name, &environment, &json).stdout;
        let result: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(parts(&result), parts(&serde_json::from_str(&reference).unwrap()), "{name}");
        let del = environment.replace("CNI_COMMAND=ADD", "CNI_COMMAND=DEL");
        assert!(call_with(node, &pod, name, &del, &json).stdout.is_empty());
    }
}

/// Returns what a runtime reads of a result: for each address its family, and name and namespace of
/// its interface, and whether there is a gateway of that family; the routes' destinations.
fn parts(result: &Value) -> Value {
    let family = |text: &Value| text.as_str().unwrap().contains(':');
    let address = |ip: &Value| {
        let interface = &result["interfaces"][ip["interface"].as_u64().unwrap() as usize];
        let (is_ipv6, gateway_is_ipv6) = (family(&ip["address"]), family(&ip["gateway"]));
        json!([is_ipv6, gateway_is_ipv6, interface["name"], interface["sandbox"]])
    };
    let of = |list: &str, part: &dyn Fn(&Value) -> Value| {
        result[list].as_array().unwrap().iter().map(part).collect::<Value>()
    };
    json!([result["cniVersion"], of("ips", &address), of("routes", &|route| route["dst"].clone())])
}

/// Runs the plugin with a call's input and environment. In its view of the file system,
/// `/run/podwire` is the node's run folder, and the call's namespace path leads to the pod's
/// namespace.
fn call(node: &Node, pod: &Ns, name: &str, verb: &str) -> Output {
    let read = |kind: &str| std::fs::read(format!("{CALLS}/{name}.{verb}.{kind}")).unwrap();
    call_with(node, pod, name, &String::from_utf8(read("env")).unwrap(), &read("json"))
}

fn call_with(node: &Node, pod: &Ns, name: &str, environment: &str, json: &[u8]) -> Output {
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
    child.stdin.take().unwrap().write_all(json).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{name}: {environment}\n{output:?}");
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
