//! `podwire flows`: clients outside that reach pods at the pods' own addresses, and every way of a
//! translation.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Lab, Ns};

use crate::commands::rows;
use crate::snat::ask;
use crate::sockets::udp;
use crate::{ANY, FAMILIES, Place as _, world_end};

/// The ends that a row of `podwire flows` has after translation.
const TRANSLATED: [&str; 2] = ["translated_source", "translated_destination"];

#[test]
fn flows_show_clients_outside_that_reach_pods() {
    let lab = Lab::builder().build().unwrap();
    let [node, other] = [lab.node(0), lab.node(1)];
    let (near, far) = (node.add_pod("near").unwrap(), other.add_pod("far").unwrap());
    let name = format!("lab/{}", near.call().container_id);
    for (family, pods) in FAMILIES.into_iter().zip(["10.244.0.0/16", "fd00:10:244::/48"]) {
        lab.underlay().ip(&format!("route add {pods} via {}\n", node.addresses()[family])).unwrap();
        let (world, client) = world_end(&lab, family);
        // Each row is the whole list of the flow.
        let flows = |server: IpAddr, port: u16| {
            let filters =
                ["--protocol", "tcp", "--address", &server.to_string(), "--port", &port.to_string()];
            rows(node, &[&["flows"][..], &filters].concat())
        };

        // The pod's address is what the client sees: nothing is translated.
        let (_, address) = near.end(family);
        let exchange = traffic::tcp_exchange(world, &near, address, 8080, 1 << 20).unwrap();
        let port = exchange.client.port();
        let shown = flows(address, port);
        let [row] = &shown[..] else { panic!("{shown:#?}") };
        assert_eq!((&row["kind"], &row["way"]), (&json!("inbound"), &json!("untranslated")), "{row:#}");
        let pod = json!({ "address": address, "port": 8080, "pod": name, "node": node.name() });
        assert_eq!(row["source"], pod, "{row:#}");
        assert_eq!(row["destination"], json!({ "address": client, "port": port }), "{row:#}");
        assert_eq!(TRANSLATED.map(|end| &row[end]), [&Value::Null; 2], "{row:#}");

        // Towards the other node, the client gets an address that this node knows.
        let (_, address) = far.end(family);
        let exchange = traffic::tcp_exchange(world, &far, address, 8080, 1 << 20).unwrap();
        let port = exchange.client.port();
        let shown = flows(address, port);
        let [row] = &shown[..] else { panic!("{shown:#?}") };
        assert_eq!((&row["kind"], &row["way"]), (&json!("translation"), &json!("tunnel-snat")), "{row:#}");
        assert_eq!(row["source"], json!({ "address": client, "port": port }), "{row:#}");
        let pod = json!({ "address": address, "port": 8080, "node": other.name() });
        assert_eq!(row["destination"], pod, "{row:#}");
        let seen = exchange.peer_seen_by_server;
        assert_eq!(seen.ip(), node.overlay_addresses()[family]);
        let seen = json!({ "address": seen.ip(), "port": seen.port(), "node": node.name() });
        assert_eq!(TRANSLATED.map(|end| &row[end]), [&seen, &Value::Null], "{row:#}");
        assert_eq!(row["link"]["name"], "podwire-vxlan", "{row:#}");
        assert_eq!(row["through_stack"], true, "{row:#}");
        assert!(["closing", "closed"].contains(&row["state"].as_str().unwrap()), "{row:#}");
    }
}

#[test]
fn flows_show_every_way_of_a_translation() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let mapping = json!({ "hostPort": 9080, "containerPort": 8080, "protocol": "tcp" });
    let web = node.add_pod_with("web", &json!({ "portMappings": [mapping] })).unwrap();
    let far = lab.node(1).add_pod("far").unwrap();
    let gateway = node.overlay_addresses();
    for family in FAMILIES {
        let ((world, outside), (_, own)) = (world_end(&lab, family), web.end(family));
        let address = node.addresses()[family];
        let translations = |filters: &[&str]| {
            let of_family = ["flows", "--kind", "translation", "--family", ["ipv4", "ipv6"][family]];
            rows(node, &[&of_family[..], filters].concat())
        };
        let end = |row: &Value, name: &str| (row[name]["address"].clone(), row[name]["port"].clone());
        // The client, and the source that the pod sees instead of it.
        let clients: [(&Ns, Option<IpAddr>); 3] =
            [(world, None), (&far, None), (&web, Some(gateway[family]))];
        for (client, source) in clients {
            let route = Route::translated(SocketAddr::new(address, 9080), 8080);
            let exchange = traffic::tcp_exchange_on(client, &web, route, 1 << 16).unwrap();
            let from = exchange.client;
            let shown = translations(&["--protocol", "tcp", "--port", &from.port().to_string()]);
            let [row] = &shown[..] else { panic!("{shown:#?}") };
            let way = if source.is_some() { "host-port-hairpin" } else { "host-port" };
            assert_eq!(row["way"], way, "{row:#}");
            assert_eq!(end(row, "source"), (json!(from.ip()), json!(from.port())), "{row:#}");
            assert_eq!(end(row, "destination"), (json!(address), json!(9080)), "{row:#}");
            assert_eq!(end(row, "translated_destination"), (json!(own), json!(8080)), "{row:#}");
            assert_eq!(row["translated_source"]["address"], json!(source), "{row:#}");
        }

        // Both send from one port, so the second one gets another.
        let server = udp(world, (ANY[family], 53));
        let to = SocketAddr::new(outside, 53);
        let seen = [&*web, &**node].map(|ns| ask(&udp(ns, (ANY[family], 40000)), &server, to, "port 40000"));
        let shown = translations(&["--protocol", "udp", "--port", "40000"]);
        for (way, from, seen) in [("snat", own, seen[0]), ("host-snat", address, seen[1])] {
            let row = shown.iter().find(|row| row["way"] == way);
            let row = row.unwrap_or_else(|| panic!("no {way}: {shown:#?}"));
            assert_eq!(end(row, "source"), (json!(from), json!(40000)), "{row:#}");
            let translated = (json!(seen.ip()), json!(seen.port()));
            assert_eq!(end(row, "translated_source"), translated, "{row:#}");
        }

        // No lookup of sockets finds an echo, so the programs reserve its identifier.
        traffic::ping(node, outside, 56).unwrap();
        let shown = translations(&["--address", &outside.to_string()]);
        let row = shown.iter().find(|row| row["way"] == "reservation");
        let row = row.unwrap_or_else(|| panic!("{shown:#?}"));
        assert_eq!(row["source"]["address"], json!(outside), "{row:#}");
        assert_eq!(row["destination"]["address"], json!(address), "{row:#}");
    }
}
