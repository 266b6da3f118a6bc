//! Lists of plugins with ours first or later, and with the reference plugins that Debian has.

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};
use xtask::lab::{CniCall, Lab, Ns, reference, traffic};

use super::{Container, INVALID_CONFIGURATION, addresses, failed, succeeded};
use crate::commands::rows;
use crate::footprint::Footprint;
use crate::sockets::wait_until;

const PLUGINS: &str = "/usr/lib/cni";
/// The newest version that Debian's plugins speak.
const VERSION: &str = "1.0.0";

#[test]
fn plugins_after_ours_build_on_its_result() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let far = lab.node(1).add_pod("far").unwrap();
    let container = Container::after_another(node, "pod");
    let before = Footprint::of(node, &[]);
    let portmap = json!({
        "snat": true,
        "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": [{"hostPort": 9080, "containerPort": 8080, "protocol": "tcp"}]},
    });
    let tuning = json!({"sysctl": {"net.core.somaxconn": "500"}});
    let mut calls =
        [ours(&container), other(&container, "tuning", &tuning), other(&container, "portmap", &portmap)];
    let result = succeeded(reference::add(&mut calls).unwrap());
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 2, "{result}");
    assert_eq!(container.ns.exec(&["cat", "/proc/sys/net/core/somaxconn"]).unwrap().trim(), "500");
    // Leave out portmap itself: Debian's also looks for its IPv4 rules among those of IPv6.
    check(&calls[..2], &result);
    reach_in_both_families(&far, &container, &addresses(&result));
    // The packets pass the rules of portmap, which took the pod's addresses from our result.
    for address in node.addresses() {
        let route = traffic::Route::translated((address, 9080).into(), 8080);
        traffic::tcp_exchange_on(lab.world(), &container.ns, route, 100_000).unwrap();
        // The answers to another node's pod must take portmap's rules too.
        let exchange = traffic::tcp_exchange_on(&far, &container.ns, route, 100_000).unwrap();
        let port = exchange.client.port().to_string();
        let shown = rows(node, &["flows", "--protocol", "tcp", "--port", &port]);
        let [row] = &shown[..] else { panic!("{shown:#?}") };
        assert_eq!((&row["kind"], &row["way"]), (&json!("stack"), &json!("host-stack")), "{row:#}");
        let name = format!("lab/{}", container.call.container_id);
        assert_eq!((&row["source"]["pod"], &row["source"]["port"]), (&json!(name), &json!(8080)), "{row:#}");
        assert_eq!(row["destination"]["address"], json!(exchange.client.ip()), "{row:#}");
    }
    reference::delete(&calls).unwrap();
    assert_eq!(Footprint::of(node, &[]), before);
}

#[test]
fn ours_may_come_later_where_nobody_has_made_the_pods_interface() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let far = lab.node(1).add_pod("far").unwrap();
    let container = Container::after_another(node, "pod");
    let before = Footprint::of(node, &[]);
    let tuning = json!({"sysctl": {"net.core.somaxconn": "500"}});
    let mut calls =
        [other(&container, "loopback", &json!({})), ours(&container), other(&container, "tuning", &tuning)];
    let result = succeeded(reference::add(&mut calls).unwrap());
    let names: Vec<_> = result["interfaces"].as_array().unwrap().iter().map(|link| &link["name"]).collect();
    assert_eq!((names[0], names[2]), (&json!("lo"), &json!("eth0")), "{result}");
    let mut ours = result.clone();
    ours["ips"].as_array_mut().unwrap().retain(|ip| ip["interface"] == 2);
    assert_eq!(ours["ips"][0]["gateway"], json!(node.gateway()));
    check(&calls, &result);
    reach_in_both_families(&far, &container, &addresses(&ours));
    reference::delete(&calls).unwrap();
    assert_eq!(Footprint::of(node, &[]), before);
}

#[test]
fn after_another_main_plugin_ours_refuses_and_leaves_nothing() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let container = Container::after_another(node, "pod");
    let before = Footprint::of(node, &[]);
    let ptp = json!({
        "ipam": {"type": "host-local", "dataDir": node.state_dir().with_file_name("host-local"), "ranges": [[{"subnet": "10.88.0.0/24"}]]},
    });
    let mut calls = [other(&container, "ptp", &ptp), ours(&container)];
    let refused = reference::add(&mut calls).unwrap();
    failed(&refused, INVALID_CONFIGURATION, "prevResult.interfaces[1].name is \"eth0\"");
    failed(
        &refused,
        INVALID_CONFIGURATION,
        "take that plugin out of the list, or put podwire-cni into a list of its own",
    );
    // A runtime deletes what an ADD has begun.
    reference::delete(&calls).unwrap();
    // For a moment, the other plugin's link was one of the node's links. The agent may keep pins
    // and an entry of `LINKS` for it until the next comparison.
    let left = wait_until(|| (Footprint::of(node, &[]) == before).then_some(()));
    assert!(left.is_some(), "{:?}", Footprint::of(node, &[]));
}

/// Exchanges a stream with the container by each of its addresses.
#[track_caller]
fn reach_in_both_families(client: &Ns, container: &Container, addresses: &[String]) {
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    assert!(addresses.len() == 2 && addresses[0].is_ipv4() && addresses[1].is_ipv6(), "{addresses:?}");
    for address in addresses {
        traffic::tcp_exchange(client, &container.ns, address, 8080, 100_000).unwrap();
    }
}

fn ours(container: &Container) -> CniCall {
    let mut call = container.call.clone();
    call.config["cniVersion"] = json!(VERSION);
    call
}

fn other(container: &Container, plugin: &str, keys: &Value) -> CniCall {
    let mut config = json!({"cniVersion": VERSION, "name": "podwire", "type": plugin});
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    container.call.of_plugin(&Path::new(PLUGINS).join(plugin), config)
}

/// Runs CHECK of each plugin, with the result of the whole list.
#[track_caller]
fn check(calls: &[CniCall], result: &Value) {
    for call in calls {
        let mut call = call.with_command("CHECK");
        call.config["prevResult"] = result.clone();
        succeeded(call.run().unwrap());
    }
}
