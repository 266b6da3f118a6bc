//! The commands that show the tables: what they show is what packets did.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use xtask::lab::traffic;
use xtask::lab::{Lab, Mode, Node, Pod};

use crate::service::iptables_of;
use crate::sockets::{listen, udp, wait_until};

const PORT: u16 = 8080;
const HOST_PORT: u16 = 9080;

/// Returns what a command prints as text.
#[track_caller]
pub fn text(node: &Node, arguments: &[&str]) -> String {
    let output = node.show(arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the rows that a command prints as JSON.
#[track_caller]
pub fn rows(node: &Node, arguments: &[&str]) -> Vec<Value> {
    let text = text(node, &[arguments, &["--output", "json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn name(pod: &Pod) -> String {
    format!("lab/{}", pod.call().container_id)
}

fn web(node: &Node) -> Pod {
    let mapping = json!({ "hostPort": HOST_PORT, "containerPort": PORT, "protocol": "tcp" });
    node.add_pod_with("web", &json!({ "portMappings": [mapping] })).unwrap()
}

#[test]
fn endpoints_nodes_and_host_ports_are_shown_with_names() {
    // With a file of nodes, only the running agent knows their names.
    let lab = Lab::builder().node_file().build().unwrap();
    let (node, other) = (lab.node(0), lab.node(1));
    let (web, plain) = (web(node), node.add_pod("plain").unwrap());

    let endpoints = rows(node, &["endpoints", "--pod", &name(&web)]);
    let [endpoint] = &endpoints[..] else { panic!("{endpoints:?}") };
    assert_eq!(endpoint["pod"], name(&web));
    assert_eq!(endpoint["addresses"], json!(web.addresses()));
    let link = web.host_interface();
    assert_eq!(endpoint["link"], json!({ "index": node.ifindex(link).unwrap(), "name": link }));
    assert_eq!(endpoint["flags"], json!(["host-ports"]));
    assert_eq!(rows(node, &["endpoints", "--namespace", "lab"]).len(), 2);
    assert_eq!(rows(node, &["endpoints", "--namespace", "none"]), [] as [Value; 0]);
    let by_address = rows(node, &["endpoints", "--address", &plain.addresses()[1].to_string()]);
    assert_eq!(by_address.iter().map(|row| &row["pod"]).collect::<Vec<_>>(), [&json!(name(&plain))]);

    let nodes = rows(node, &["nodes"]);
    assert_eq!(nodes.iter().map(|row| &row["node"]).collect::<Vec<_>>(), [node.name(), other.name()]);
    assert_eq!(nodes[1]["pod_networks"], json!(other.pod_cidrs()));
    assert_eq!(nodes[1]["uplink"]["name"], node.uplink());
    let flags = nodes[0]["flags"].as_array().unwrap();
    assert!(flags.contains(&json!("this-node")), "{flags:?}");
    let of_pod = rows(node, &["nodes", "--address", &other.gateway().to_string()]);
    assert_eq!(of_pod.iter().map(|row| &row["node"]).collect::<Vec<_>>(), [other.name()]);

    let host_ports = rows(node, &["hostports", "--port", &HOST_PORT.to_string()]);
    assert_eq!(host_ports.len(), 2, "one for each family");
    for (row, (address, family)) in host_ports.iter().zip(web.addresses().iter().zip(["0.0.0.0", "::"])) {
        let backend = json!({ "address": address, "port": PORT, "pod": name(&web), "node": node.name() });
        assert_eq!(
            *row,
            json!({ "protocol": "tcp", "address": family, "port": HOST_PORT, "backend": backend })
        );
    }
    assert_eq!(rows(node, &["hostports", "--port", "9"]), [] as [Value; 0]);
}

#[test]
fn without_an_agent_the_tables_are_shown_with_kept_names() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let web = web(node);
    let commands = [&["endpoints"][..], &["nodes"], &["hostports"], &["flows", "--kind", "translation"]];
    let before = commands.map(|command| rows(node, command));
    node.stop_agent().unwrap();
    for (command, before) in commands.iter().zip(before) {
        assert_eq!(rows(node, command), before, "{command:?}");
    }
    assert_eq!(rows(node, &["endpoints"])[0]["pod"], name(&web));
    let status = node.show(&["status", "--output", "json"]).unwrap();
    assert_eq!(status.status.code(), Some(4));
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        (&status["agent"], &status["endpoints"], &status["nodes"]["used"]),
        (&Value::Null, &json!(1), &json!(2))
    );
    let said = String::from_utf8(node.show(&["status"]).unwrap().stdout).unwrap();
    assert!(said.contains("does not answer") && said.contains("operator.sock"), "{said}");
    node.uninstall().unwrap();
    let nothing = node.show(&["endpoints"]).unwrap();
    let said = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(!nothing.status.success() && said.contains("no agent has run on this node"), "{said}");
}

#[test]
fn yaml_and_text_show_the_same_rows() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let web = web(node);
    let yaml: Vec<Value> = serde_saphyr::from_str(&text(node, &["endpoints", "--output", "yaml"])).unwrap();
    assert_eq!(yaml, rows(node, &["endpoints"]));
    let text = text(node, &["endpoints"]);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("POD ") && lines[1].starts_with(&name(&web)), "{text}");
    assert!(!text.contains('\u{1b}'), "colour is for terminals");
}

/// A flow of a path, and what must be known of it.
struct Way<'a> {
    what: &'a str,
    client: &'a xtask::lab::Ns,
    server: &'a xtask::lab::Ns,
    to: IpAddr,
    port: u16,
    /// Kind and way of entries that the client's node must have. None: the host stack knows the way
    /// by itself, and nothing is remembered.
    known: &'a [(&'a str, &'a str)],
}

#[test]
fn flows_show_what_packets_did_on_each_path() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let node = lab.node(0);
        let (client, web, remote) =
            (node.add_pod("client").unwrap(), web(node), lab.node(1).add_pod("remote").unwrap());
        let out = if mode == Mode::Vxlan { "tunnel-out" } else { "direct-out" };
        for family in 0..2 {
            let from = client.addresses()[family];
            let world = lab.world_addresses()[family];
            let service: IpAddr = ["10.96.0.77", "fd00:10:96::77"][family].parse().unwrap();
            let backend = SocketAddr::new(remote.addresses()[family], PORT);
            let dnat = format!("-t nat -A PREROUTING -d {service} -p tcp -j DNAT --to-destination {backend}");
            iptables_of(service, node, &dnat);
            let ways = [
                Way {
                    what: "service",
                    client: &client,
                    server: &remote,
                    to: service,
                    port: 80,
                    known: &[("stack", "host-stack")],
                },
                Way {
                    what: "pod here",
                    client: &client,
                    server: &web,
                    to: web.addresses()[family],
                    port: PORT,
                    known: &[("known", "local")],
                },
                Way {
                    what: "pod there",
                    client: &client,
                    server: &remote,
                    to: remote.addresses()[family],
                    port: PORT,
                    known: &[("known", out)],
                },
                Way {
                    what: "node",
                    client: &client,
                    server: node,
                    to: node.addresses()[family],
                    port: PORT,
                    known: &[],
                },
                Way {
                    what: "world",
                    client: &client,
                    server: lab.world(),
                    to: world,
                    port: PORT,
                    known: &[("translation", "snat"), ("known", "snat-in")],
                },
                Way {
                    what: "hostPort",
                    client: &client,
                    server: &web,
                    to: node.addresses()[family],
                    port: HOST_PORT,
                    known: &[("translation", "host-port")],
                },
            ];
            for way in &ways {
                let route = traffic::Route::translated(SocketAddr::new(way.to, way.port), PORT);
                let exchange = traffic::tcp_exchange_on(way.client, way.server, route, 1 << 20).unwrap();
                let own = exchange.client.port().to_string();
                let shown =
                    rows(node, &["flows", "--pod", &name(&client), "--port", &own, "--protocol", "tcp"]);
                let what = format!("{} at {}: {shown:#?}", way.what, way.to);
                assert!(!way.known.is_empty() || shown.is_empty(), "{what}");
                for (kind, path) in way.known {
                    let is_it = |row: &&Value| row["kind"] == *kind && row["way"] == *path;
                    let row =
                        shown.iter().find(is_it).unwrap_or_else(|| panic!("no {kind} {path} for {what}"));
                    let ends = ["source", "destination", "translated_destination"].map(|end| &row[end]);
                    assert!(
                        ends.iter().any(|end| end["address"] == json!(from) && end["pod"] == name(&client)),
                        "{what}"
                    );
                    if *kind == "translation" {
                        assert_eq!(row["destination"]["address"], json!(way.to), "{what}");
                        let closed = ["closed", "closing", "established"];
                        assert!(closed.contains(&row["state"].as_str().unwrap()), "{what}");
                        assert!(
                            row["timeout_seconds"].as_u64().unwrap() >= 65 && row["idle_seconds"].is_u64(),
                            "{what}"
                        );
                    }
                }
                let snat = shown.iter().find(|row| row["way"] == "snat");
                assert_eq!(snat.is_some(), way.what == "world", "{what}");
                if let Some(row) = snat {
                    let seen = json!({ "address": exchange.peer_seen_by_server.ip(), "port": exchange.peer_seen_by_server.port(), "node": node.name() });
                    assert_eq!(row["translated_source"], seen, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_deleted_flow_is_gone_from_all_tables_and_goes_on() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let client = node.add_pod("client").unwrap();
    for (address, world) in client.addresses().iter().zip(lab.world_addresses()) {
        let server = udp(lab.world(), (world, 53));
        let socket = udp(&client, (*address, 40000));
        let exchange = || {
            let mut buffer = [0; 16];
            socket.send_to(b"ask", (world, 53)).unwrap();
            let (_, peer) = server.recv_from(&mut buffer).unwrap();
            server.send_to(b"answer", peer).unwrap();
            socket.recv_from(&mut buffer).unwrap();
        };
        (0..5).for_each(|_| exchange());
        let filters = ["--address", &world.to_string(), "--protocol", "udp"].map(str::to_owned);
        let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
        let flows = || rows(node, &[&["flows"][..], &filters].concat());
        assert!(flows().iter().any(|row| row["kind"] == "translation"), "{:?}", flows());
        let said = text(node, &[&["flows", "--delete"][..], &filters].concat());
        assert!(said.starts_with("deleted: udp ") && said.contains(&name(&client)), "{said}");
        assert_eq!(flows(), [] as [Value; 0]);
        exchange();
        assert!(
            wait_until(|| flows().iter().any(|row| row["kind"] == "translation").then_some(())).is_some()
        );
    }
}

#[test]
fn delete_refuses_filters_that_do_not_name_one_flow() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let client = node.add_pod("client").unwrap();
    let world = lab.world_address();
    let refused = |arguments: &[&str]| {
        let output = node.show(&[&["flows", "--delete"], arguments].concat()).unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(&["--address", &world.to_string()]);
    assert!(said.contains("no flow matches the filters"), "{said}");
    let _server = listen(lab.world(), (world, 443));
    let connect = || client.enter(|| std::net::TcpStream::connect((world, 443)).unwrap()).unwrap();
    let streams = [connect(), connect()];
    let said = refused(&["--address", &world.to_string(), "--kind", "translation"]);
    assert!(said.contains("2 flows match") && said.contains(&name(&client)), "{said}");
    assert_eq!(rows(node, &["flows", "--kind", "translation"]).len(), 2);
    assert_eq!(rows(node, &["flows", "--kind", "translation", "--limit", "1"]).len(), 1);
    drop(streams);
}
