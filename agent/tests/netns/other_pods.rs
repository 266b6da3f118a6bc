//! A node where pods of the reference plugins still exist when the agent starts.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use podwire::links::Links;
use podwire_cni::protocol::codes;
use podwire_core::other_pods::Neighbour;
use serde_json::{Value, json};
use xtask::lab::reference::{self, Join, Masquerade};
use xtask::lab::{Lab, Node, Ns, traffic};

use crate::sockets::{udp, wait_until};
use crate::sweep::{comes, conditions, goes};

const MEBIBYTE: u64 = 1 << 20;
const OF_OTHERS: &str = "addresses-of-others";

#[test]
fn addresses_of_others_are_not_given_out_until_they_are_free() {
    let lab = Lab::builder().agents(false).build().unwrap();
    let node = lab.node(0);
    let [(old, calls), (staying, _)] =
        [("old", "10.244.1.2"), ("staying", "10.244.1.3")].map(|(name, address)| {
            // The calls of `bridge` and `host-local`, without portmap.
            let mut calls = reference::calls(node, name, Join::Routes, Masquerade::Bridge, &json!({}));
            calls.truncate(1);
            let ns = Ns::create(&calls[0].container_id).unwrap();
            let added = reference::add(&mut calls).unwrap();
            assert!(
                added.success && added.answer["ips"][0]["address"] == format!("{address}/24"),
                "{added:?}"
            );
            traffic::tcp_exchange(node, &ns, address.parse().unwrap(), 8080, MEBIBYTE).unwrap();
            (ns, calls)
        });
    // Make the kernel soon doubt whether a neighbour is still there.
    for (switch, value) in [("base_reachable_time_ms", "1000"), ("delay_first_probe_time", "1")] {
        node.sysctl(&format!("net/ipv4/neigh/cni0/{switch}"), value).unwrap();
    }
    let address = "10.244.1.2".parse().unwrap();
    node.ip("link add other type bridge\naddress add 10.244.1.5/32 dev other\nlink set other up\nroute add 10.244.1.6/32 dev other")
        .unwrap();

    lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
    // Each pod has an address of each family.
    let held = "(host-local's network reference: 4, device other: 1, a route to device other: 1)";
    let told = comes(node, OF_OTHERS, held);
    assert!(told.contains(": 6 addresses"), "{told}");
    traffic::tcp_exchange(node, &old, address, 8080, MEBIBYTE).unwrap();
    let pods = ["one", "two", "three"].map(|name| node.add_pod(name).unwrap());
    assert_eq!(
        pods.each_ref().map(|pod| [0, 1].map(|family| pod.addresses()[family].to_string())),
        [
            ["10.244.1.4", "fd00:10:244:1::4"],
            ["10.244.1.7", "fd00:10:244:1::5"],
            ["10.244.1.8", "fd00:10:244:1::6"]
        ]
    );
    // This file appears between two looks of the agent. ADD sees it nevertheless.
    let networks = node.cni_state_dir().join("networks/reference");
    fs::write(networks.join("10.244.1.9"), "another\neth0").unwrap();
    assert_eq!(node.add_pod("four").unwrap().address().to_string(), "10.244.1.10");
    for (asked, holder) in [
        ("10.244.1.2", "host-local's network reference"),
        ("fd00:10:244:1::2", "host-local's network reference"),
        ("10.244.1.5", "device other"),
    ] {
        let refused = ask_for(node, asked);
        assert_eq!(refused["code"], codes::ADDRESS_UNAVAILABLE, "{refused}");
        let message = refused["msg"].as_str().unwrap();
        assert!(message.contains(asked) && message.contains(holder), "{message}");
    }
    traffic::tcp_exchange(&pods[0], &pods[1], pods[1].address(), 8080, MEBIBYTE).unwrap();

    // host-local's file is gone, but the pod is not: the kernel has just heard from it.
    fs::remove_file(networks.join("10.244.1.2")).unwrap();
    let refused = ask_for(node, "10.244.1.2");
    assert!(refused["msg"].as_str().unwrap().contains("a neighbour of device cni0"), "{refused}");
    reference::delete(&calls).unwrap();
    old.remove().unwrap();
    node.ip("link del other").unwrap();
    fs::remove_file(networks.join("10.244.1.9")).unwrap();
    // The bridge stays. So does the kernel's neighbour entry, until the kernel has asked in vain.
    comes(
        node,
        OF_OTHERS,
        ": 2 addresses of the podCIDR are not given to pods, as others have them (host-local's network reference: 2)",
    );
    let pod = node.add_pod_with("five", &json!({ "ips": ["10.244.1.2/24"] })).unwrap();
    traffic::tcp_exchange(node, &pod, address, 8080, MEBIBYTE).unwrap();
    // What the condition asks for. A near miss: host-local has assigned an address of another
    // network.
    staying.remove().unwrap();
    node.ip("link del cni0").unwrap();
    fs::remove_dir_all(&networks).unwrap();
    fs::create_dir(&networks).unwrap();
    fs::write(networks.join("10.99.0.2"), "another\neth0").unwrap();
    goes(node, OF_OTHERS);
    // The folder cannot be listed: the name leads to itself.
    let folder = node.cni_state_dir().join("networks");
    fs::remove_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink("networks", &folder).unwrap();
    comes(node, "host-local-unreadable", folder.to_str().unwrap());
    fs::remove_file(&folder).unwrap();
    goes(node, "host-local-unreadable");
    // A near miss: there is no such folder on most nodes.
    assert_eq!(conditions(node), [""; 0]);
}

/// The agent reads both families' neighbours, and asks a stale one that does not answer.
#[test]
fn neighbours_of_both_families_are_read_and_asked() {
    let lab = Lab::builder().agents(false).nodes(1).build().unwrap();
    let [host, peer] = ["host", "peer"].map(|name| lab.add_namespace(name).unwrap());
    host.ip(&format!("link add there type veth peer name here netns {}", peer.name())).unwrap();
    let addresses = ["10.9.0.2", "fd00:9::2"].map(|address| address.parse::<IpAddr>().unwrap());
    for (ns, link, number) in [(&host, "there", 1), (&peer, "here", 2)] {
        ns.sysctl(&format!("net/ipv6/conf/{link}/disable_ipv6"), "0").unwrap();
        ns.ip(&format!(
            "address add 10.9.0.{number}/24 dev {link}\naddress add fd00:9::{number}/64 dev {link} nodad\nlink set {link} up"
        ))
        .unwrap();
    }
    for family in ["ipv4", "ipv6"] {
        host.sysctl(&format!("net/{family}/neigh/there/delay_first_probe_time"), "1").unwrap();
    }
    let device = host.ifindex("there").unwrap();
    let read = || on_links(&host, async |links| links.neighbours().await.unwrap());
    for address in addresses {
        let receiver = udp(&peer, SocketAddr::new(address, 9));
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        udp(&host, any).send_to(b"there?", receiver.local_addr().unwrap()).unwrap();
        receiver.recv(&mut [0; 8]).unwrap();
        let is_it = |neighbour: &&Neighbour| (neighbour.device, neighbour.address) == (device, address);
        assert!(read().iter().find(is_it).is_some_and(|neighbour| !neighbour.is_stale), "{address}");
        peer.ip(&format!("address del {address}/{} dev here", if address.is_ipv4() { 24 } else { 64 }))
            .unwrap();
        host.ip(&format!("neighbour change {address} dev there nud stale")).unwrap();
        let stale = *read().iter().find(is_it).unwrap();
        assert!(stale.is_stale, "{address}");
        on_links(&host, async |links| links.ask_neighbour(&stale).await.unwrap());
        wait_until(|| (!read().iter().any(|neighbour| is_it(&neighbour))).then_some(())).unwrap();
    }
}

/// Runs a future with the routing socket of a namespace.
fn on_links<T: Send>(ns: &Ns, act: impl AsyncFnOnce(Links) -> T + Send) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { act(Links::new().unwrap()).await })
    };
    ns.enter(run).unwrap()
}

/// Returns the answer to an ADD that asks for an address.
fn ask_for(node: &Node, address: &str) -> Value {
    let call = node.cni_call("ADD", "asking", &json!({ "ips": [address] }));
    let ns = Ns::create(&call.container_id).unwrap();
    let output = call.run().unwrap();
    ns.remove().unwrap();
    assert!(!output.success, "{output:?}");
    output.answer
}
