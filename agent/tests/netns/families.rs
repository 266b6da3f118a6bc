//! Nodes that have one family of addresses, the other, or both; and a node that gains and loses one
//! under running pods.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use podwire_common::abi::{NODE_LOCAL, NODE_TUNNEL_IPV6};
use podwire_common::names::{GATEWAY6, maps};
use podwire_common::reason::Drop as Reason;
use podwire_common::reason::Path::{ArpAnswered, Local};
use podwire_core::model::Family;
use serde_json::{Value, json};
use xtask::lab::frames::Capture;
use xtask::lab::{Families, Lab, Mode, Node, Ns, Pod, is_soak, traffic};

use crate::check::Counted;
use crate::headers::ends;
use crate::reach;
use crate::sockets::wait_until;
use crate::sweep::{comes, conditions, goes};

const PROBLEM: &str = "node-problem";
const OUTSIDE: &str = "pods-outside-pod-cidr";
const KIBIBYTE: u64 = 1024;
const BOTH: [Family; 2] = Family::ALL;

#[test]
fn a_node_that_gains_and_loses_ipv6_serves_its_pods() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).agents(false).build().unwrap();
        let (node, other, api) = (lab.node(0), lab.node(1), lab.api_server().unwrap());
        let whole = api.node(node.name()).unwrap();
        api.put(with_only(&whole, Family::V4));
        lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
        let far = other.add_pod("far").unwrap();
        let early = node.add_pod("early").unwrap();
        comes(node, PROBLEM, "this node, node1, has no IPv6 podCIDR, but node node2 has");
        assert_eq!(conditions(other), [""; 0]);
        assert_eq!(families(&early), [Family::V4]);

        api.put(whole.clone());
        goes(node, PROBLEM);
        reached(other, "fd00:10:244:1::/64");
        let [one, two] = ["one", "two"].map(|name| node.add_pod(name).unwrap());
        assert_eq!((families(&one), families(&two)), (BOTH.to_vec(), BOTH.to_vec()));
        for pod in [&one, &two] {
            reach(pod, &far);
            reach(&far, pod);
            reach(pod, &early);
        }
        let to_two = two.addresses().iter().zip(8081..);
        let to_two = to_two.map(|(to, port)| traffic::tcp_stream(&one, &two, *to, port).unwrap());
        let to_far = traffic::tcp_stream(&one, &far, far.address(), 8081).unwrap();
        let streams: Vec<_> = to_two.chain([to_far]).collect();
        let go_on = || streams.iter().for_each(|stream| stream.wait_for(1 << 20).unwrap());
        go_on();

        api.put(with_only(&whole, Family::V4));
        comes(node, PROBLEM, "this node, node1, has no IPv6 podCIDR");
        let told = comes(node, OUTSIDE, &one.addresses()[1].to_string());
        assert!(!told.contains(&early.address().to_string()), "{told}");
        go_on();
        reach(node, &one);
        let late = node.add_pod("late").unwrap();
        assert_eq!(families(&late), [Family::V4]);
        reach(&late, &early);
        // A pod's addresses are its own, whatever its node has when an agent starts.
        node.restart_agent().unwrap();
        go_on();
        reach(&two, &one);
        comes(node, OUTSIDE, &one.addresses()[1].to_string());

        api.put(whole);
        goes(node, PROBLEM);
        goes(node, OUTSIDE);
        reached(other, "fd00:10:244:1::/64");
        go_on();
        let again = node.add_pod("again").unwrap();
        assert_eq!(families(&again), BOTH);
        for pod in [&one, &again] {
            reach(pod, &far);
            reach(&far, pod);
        }
        streams.into_iter().for_each(|stream| assert!(stream.finish().unwrap().bytes > 0));
        assert_eq!(conditions(node), [""; 0]);
    }
}

#[test]
fn a_node_that_loses_ipv4_pods_gives_ipv6_addresses_only() {
    let lab = Lab::builder().build().unwrap();
    let (node, other, api) = (lab.node(0), lab.node(1), lab.api_server().unwrap());
    let (old, far) = (node.add_pod("old").unwrap(), other.add_pod("far").unwrap());
    let whole = api.node(node.name()).unwrap();
    let mut without = whole.clone();
    set_pod_cidrs(&mut without, &["fd00:10:244:1::/64"]);
    api.put(without);
    comes(node, PROBLEM, "this node, node1, has no IPv4 podCIDR, but node node2 has");
    comes(node, OUTSIDE, &old.address().to_string());
    let new = node.add_pod("new").unwrap();
    assert_eq!(families(&new), [Family::V6]);
    reach(&old, &new);
    reach(&far, &new);
    reach(node, &old);
    api.put(whole);
    goes(node, OUTSIDE);
    reached(other, "10.244.1.0/24");
    reach(&far, &old);
}

/// Without a tunnel, a node's InternalIP is the next hop to its pods.
#[test]
fn an_internal_ip_that_is_missing_is_named_where_it_is_needed() {
    for (mode, kept) in [(Mode::Vxlan, Family::V4), (Mode::Vxlan, Family::V6), (Mode::Direct, Family::V4)] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let (node, other, api) = (lab.node(0), lab.node(1), lab.api_server().unwrap());
        let (pod, far) = (node.add_pod("pod").unwrap(), other.add_pod("far").unwrap());
        let whole = api.node(node.name()).unwrap();
        let mut without = whole.clone();
        keep_addresses(&mut without, kept);
        api.put(without);
        let name = "node node1 has the podCIDR fd00:10:244:1::/64, but no IPv6 address of type InternalIP";
        if mode == Mode::Direct {
            lab.nodes().iter().for_each(|node| drop(comes(node, PROBLEM, name)));
        } else {
            // The tunnel takes the family that is left.
            let is_taken = || (tunnels(other) == [kept].into()).then_some(());
            assert!(wait_until(is_taken).is_some(), "{kept}: {:?}", tunnels(other));
            reach(&far, &pod);
        }
        let new = node.add_pod("new").unwrap();
        assert_eq!(families(&new), BOTH);
        reach(&new, &pod);
        traffic::tcp_exchange(&far, &new, new.address(), 8080, KIBIBYTE).unwrap();
        api.put(whole);
        lab.nodes().iter().for_each(|node| goes(node, PROBLEM));
        if mode == Mode::Direct {
            reached(other, "fd00:10:244:1::/64 via fd00:10:200::1");
        }
        reach(&far, &new);
        lab.nodes().iter().for_each(|node| assert_eq!(conditions(node), [""; 0], "{mode:?}"));
    }
}

#[test]
fn nodes_of_three_kinds_talk_in_the_families_they_share() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).nodes(3).agents(false).build().unwrap();
        let [both, only4, only6] = [0, 1, 2].map(|index| lab.node(index));
        let api = lab.api_server().unwrap();
        // The links have one family, too: packets to and from these nodes can travel in no other.
        for (node, family, other) in [(only4, Family::V4, "-6"), (only6, Family::V6, "-4")] {
            api.put(with_only(&api.node(node.name()).unwrap(), family));
            node.exec(&["ip", other, "address", "flush", "dev", "eth0", "scope", "global"]).unwrap();
        }
        lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
        let pods = lab.nodes().iter().map(|node| node.add_pod("pod").unwrap()).collect::<Vec<_>>();
        let [of_both, of4, of6] = &pods[..] else { panic!("three nodes have three pods") };
        assert_eq!((families(of_both), families(of4)), (BOTH.to_vec(), vec![Family::V4]));
        assert_eq!(families(of6), [Family::V6]);
        let talk = |client: &Ns, server: &Pod, family: Family| {
            let address = server.addresses().iter().find(|address| Family::of(**address) == family);
            let exchange = traffic::tcp_exchange(client, server, *address.unwrap(), 8080, 1 << 20).unwrap();
            assert_eq!(exchange.peer_seen_by_server, exchange.client, "{mode:?}");
        };
        for (one, other, family) in [(0, 1, Family::V4), (0, 2, Family::V6)] {
            talk(&pods[one], &pods[other], family);
            talk(&pods[other], &pods[one], family);
            talk(lab.node(one), &pods[other], family);
            talk(lab.node(other), &pods[one], family);
        }
        assert_eq!(conditions(both), [""; 0], "{mode:?}");
        for (node, family) in [(only4, Family::V6), (only6, Family::V4)] {
            let name = format!("this node, {}, has no {family} podCIDR, but node", node.name());
            comes(node, PROBLEM, &name);
        }
        for (node, other) in [(only4, only6), (only6, only4)] {
            // A tunnel needs both ends of one family. Direct routing has no pods to lead to.
            let name = format!("node {} has no InternalIP of a family that this node has", other.name());
            if mode == Mode::Vxlan {
                comes(node, PROBLEM, &name);
            }
            let number = if mode == Mode::Vxlan { 2 } else { 1 };
            assert_eq!(conditions(node).len(), number, "{mode:?}: {:?}", conditions(node));
        }
    }
}

#[test]
fn pod_cidrs_of_every_usual_size_serve_pods() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let (node, api) = (lab.node(0), lab.api_server().unwrap());
    let mut object = api.node(node.name()).unwrap();
    for (number, length) in [64, 112, 120, 126].into_iter().enumerate() {
        let network = format!("fd00:10:244:{}::", 0x10 + number);
        // The IPv6 podCIDR comes first here.
        set_pod_cidrs(&mut object, &[&format!("{network}/{length}"), "10.244.1.0/24"]);
        api.put(object.clone());
        reached(node, &format!("unreachable {network}/{length}"));
        let pod = node.add_pod(&format!("first{length}")).unwrap();
        assert_eq!(pod.addresses()[0], format!("{network}2").parse::<IpAddr>().unwrap());
        assert_eq!(families(&pod), [Family::V6, Family::V4]);
        assert_eq!(pod.result()["routes"][0]["dst"], "::/0");
        reach(node, &pod);
        let second = node.add_pod(&format!("second{length}"));
        if length == 126 {
            let refused = format!("{:#}", second.map(drop).unwrap_err());
            let why = format!("all 1 addresses of podCIDR {network}/126 are in use");
            assert!(refused.contains(&why), "{refused}");
        } else {
            let second = second.unwrap();
            reach(&pod, &second);
            second.delete().unwrap();
        }
        pod.delete().unwrap();
    }
}

/// The nodes have routes to each other's podCIDRs. Only others on their link would take such pods
/// for hosts of the link.
#[test]
fn pod_cidrs_inside_the_network_of_the_nodes_serve_pods() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).agents(false).build().unwrap();
        let api = lab.api_server().unwrap();
        for (number, node) in (1..).zip(lab.nodes()) {
            let mut object = api.node(node.name()).unwrap();
            set_pod_cidrs(
                &mut object,
                &[&format!("fd00:10:200:0:{number}::/80"), &format!("10.244.{number}.0/24")],
            );
            api.put(object);
            node.start_agent().unwrap();
        }
        let pods = lab.nodes().iter().map(|node| node.add_pod("pod").unwrap()).collect::<Vec<_>>();
        assert!(pods[0].address().to_string().starts_with("fd00:10:200:0:1:"), "{}", pods[0].address());
        for (one, other) in [(0, 1), (1, 0)] {
            reach(&pods[one], &pods[other]);
            reach(lab.node(one), &pods[other]);
        }
        assert_eq!(conditions(lab.node(0)), [""; 0], "{mode:?}");
    }
}

#[test]
fn addresses_asked_for_are_given_or_their_fault_is_named() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let asking = |name: &str, addresses: &[&str]| node.add_pod_with(name, &json!({ "ips": addresses }));
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let six = asking("six", &["fd00:10:244:1::77/64"]).unwrap();
    assert_eq!(six.addresses(), [ip("10.244.1.2"), ip("fd00:10:244:1::77")]);
    let two = asking("two", &["fd00:10:244:1::78", "10.244.1.77/24"]).unwrap();
    assert_eq!(two.addresses(), [ip("10.244.1.77"), ip("fd00:10:244:1::78")]);
    let four = asking("four", &["10.244.1.78"]).unwrap();
    assert_eq!(four.addresses(), [ip("10.244.1.78"), ip("fd00:10:244:1::2")]);
    for pod in [&six, &two] {
        reach(pod, &four);
        reach(&four, pod);
    }
    for (name, addresses, why) in [
        ("taken", &["10.244.1.99", "fd00:10:244:1::77"][..], "fd00:10:244:1::77 is in use by another pod"),
        ("foreign", &["fd00:10:244:2::77"], "outside this node's podCIDR fd00:10:244:1::/64"),
        ("gateway", &["fd00:10:244:1::1"], "is the network's, the gateway's or the broadcast address"),
        ("twice", &["fd00:10:244:1::8", "fd00:10:244:1::9"], "a pod has one address of each family at most"),
    ] {
        let refused = format!("{:#}", asking(name, addresses).map(drop).unwrap_err());
        assert!(refused.contains(why), "{name}: {refused}");
    }
    // The refused ADD has kept no address of the other family.
    assert_eq!(asking("free", &["10.244.1.99"]).unwrap().address(), ip("10.244.1.99"));
}

#[test]
fn one_family_that_is_asked_of_a_node_without_it_is_named() {
    for (families, asked, family) in
        [(Families::V4, "fd00:10:244:1::7", Family::V6), (Families::V6, "10.244.1.7", Family::V4)]
    {
        let lab = Lab::builder().nodes(1).families(families).build().unwrap();
        let refused = lab.node(0).add_pod_with("pod", &json!({ "ips": [asked] })).map(drop).unwrap_err();
        let refused = format!("{refused:#}");
        assert!(refused.contains("of a family of which this node has no podCIDR"), "{family}: {refused}");
    }
}

/// The kernel looks for duplicates of an address for a second, and lets nobody bind to it meanwhile
/// (RFC 4862 section 5.4).
#[test]
fn no_address_of_pods_and_of_the_tunnel_is_tentative() {
    let lab = Lab::builder().agents(false).build().unwrap();
    lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
    let node = lab.node(0);
    assert_eq!(tentative(node, "podwire-vxlan"), [json!("fd00:10:244:1::1")], "{}", node.agent_log());
    for number in 0..3 {
        let pod = node.add_pod(&format!("pod{number}")).unwrap();
        assert_eq!(tentative(&pod, "eth0"), [json!(pod.addresses()[1])]);
        assert_eq!(tentative(node, pod.host_interface()), [] as [Value; 0]);
    }
}

/// The programs answer for the gateway alone, so a pod's kernel finds no duplicate of an address.
#[test]
fn no_duplicate_is_found_and_the_gateway_is_when_asked_for() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let [pod, other] = ["pod", "other"].map(|name| node.add_pod(name).unwrap());
    let chatter = || node.drops().unwrap().get(Reason::NeighbourChatter.name()).copied().unwrap_or_default();
    let (before, capture) = (chatter(), Capture::start(node, pod.host_interface()).unwrap());
    pod.ip("address add fd00:10:244:1::77/64 dev eth0\n").unwrap();
    let settled = || {
        let shown = pod.exec(&["ip", "-6", "address", "show", "dev", "eth0"]).unwrap();
        (!shown.contains("tentative")).then_some(shown)
    };
    let settled = wait_until(settled).expect("the address stays tentative");
    assert!(settled.contains("fd00:10:244:1::77") && !settled.contains("dadfailed"), "{settled}");
    // Only a solicitation has these ends (RFC 4862 section 5.4.2).
    let asked = ["::", "ff02::1:ff00:77"].map(|end| end.parse::<IpAddr>().unwrap());
    let frames = capture.finish().unwrap();
    let solicited = frames.iter().filter(|frame| ends(frame) == Some(asked.into())).count() as u64;
    assert!(solicited > 0 && chatter() >= before + solicited, "{before}, {solicited}, {}", chatter());

    // The kernel would send from it, as the closest to the other pod's address.
    pod.ip("address delete fd00:10:244:1::77/64 dev eth0\n").unwrap();
    let entry = |gateway: &IpAddr| pod.exec(&["ip", "neighbour", "show", &gateway.to_string()]).unwrap();
    for (gateway, address) in [pod.gateway(), Ipv6Addr::from(GATEWAY6).into()].iter().zip(other.addresses()) {
        assert!(entry(gateway).contains("PERMANENT"), "{}", entry(gateway));
        pod.ip(&format!("neighbour delete {gateway} dev eth0\n")).unwrap();
        let before = Counted::quiet(&lab);
        traffic::tcp_exchange(&pod, &other, *address, 8080, 1 << 20).unwrap();
        Counted::quiet(&lab).since(&before).expect(&[(0, ArpAnswered), (0, Local)], &[]).unwrap();
        let mac = pod.host_mac().map(|byte| format!("{byte:02x}")).join(":");
        let learned = entry(gateway);
        assert!(learned.contains(&mac) && !learned.contains("PERMANENT"), "{learned}");
    }
}

/// A worker of the kernel adds the local route of an IPv6 address some time after the address. ADD
/// waits for it: the pod would drop the first packets.
#[test]
fn the_first_packet_to_a_new_pod_arrives() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    for number in 0..if is_soak() { 1000 } else { 40 } {
        let pod = lab.node(0).add_pod(&format!("pod{number}")).unwrap();
        let shown = pod.exec(&["ip", "-6", "route", "show", "table", "local", "type", "local"]).unwrap();
        assert!(shown.contains(&pod.addresses()[1].to_string()), "{number}: {shown}");
        for address in pod.addresses() {
            traffic::udp_exchange(lab.node(0), &pod, *address, 8080, 100).unwrap();
        }
        pod.delete().unwrap();
    }
}

/// Returns the IPv6 addresses of a link. Asserts that none is or was tentative.
fn tentative(ns: &Ns, link: &str) -> Vec<Value> {
    let shown = ns.exec(&["ip", "-json", "-6", "address", "show", "dev", link]).unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let addresses = shown.as_array().unwrap().iter().flat_map(|link| link["addr_info"].as_array().unwrap());
    let check = |address: &Value| {
        assert_eq!((&address["tentative"], &address["nodad"]), (&Value::Null, &json!(true)), "{address}");
        address["local"].clone()
    };
    addresses.map(check).collect()
}

/// Returns the families of a pod's addresses, in their order.
fn families(pod: &Pod) -> Vec<Family> {
    pod.addresses().iter().map(|address| Family::of(*address)).collect()
}

/// Returns a Node object with what is of one family: podCIDR and InternalIP.
fn with_only(node: &Value, family: Family) -> Value {
    let mut node = node.clone();
    let networks = node["spec"]["podCIDRs"].as_array().unwrap().clone();
    let networks: Vec<_> = networks.iter().map(|network| network.as_str().unwrap()).collect();
    let of_family = |network: &&&str| network.contains(':') == (family == Family::V6);
    let kept: Vec<_> = networks.iter().filter(of_family).copied().collect();
    set_pod_cidrs(&mut node, &kept);
    keep_addresses(&mut node, family);
    node
}

fn keep_addresses(node: &mut Value, family: Family) {
    let addresses = node["status"]["addresses"].as_array_mut().unwrap();
    addresses.retain(|entry| {
        let address = entry["address"].as_str().unwrap().parse::<IpAddr>();
        address.map_or(true, |address| Family::of(address) == family)
    });
}

/// Returns the families of the tunnels to other nodes.
fn tunnels(node: &Node) -> BTreeSet<Family> {
    let dump = node.map_dump(maps::NODES).unwrap();
    let entries = dump.as_array().unwrap().iter();
    let flags = entries.map(|entry| entry["formatted"]["value"]["flags"].as_u64().unwrap() as u32);
    let others = flags.filter(|flags| flags & NODE_LOCAL == 0);
    others.map(|flags| if flags & NODE_TUNNEL_IPV6 == 0 { Family::V4 } else { Family::V6 }).collect()
}

fn set_pod_cidrs(node: &mut Value, networks: &[&str]) {
    node["spec"] = json!({ "podCIDR": networks[0], "podCIDRs": networks });
}

/// Waits until the node's routes show this.
#[track_caller]
fn reached(node: &Node, route: &str) {
    let leads = || {
        let shown = ["-4", "-6"].map(|family| node.exec(&["ip", family, "route"]).unwrap());
        shown.iter().any(|shown| shown.contains(route)).then_some(())
    };
    assert!(wait_until(leads).is_some(), "no route {route}: {}", node.agent_log_tail(20));
}
