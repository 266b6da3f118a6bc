//! Pods with limits. Everything that they receive and send passes the kernel's queues, on every
//! path. A limit changes nothing else about their packets.

use std::net::SocketAddr;

use podwire_common::names::maps;
use podwire_common::reason::{Drop, Path};
use serde_json::{Value, json};
use xtask::lab::traffic::{self, Route};
use xtask::lab::{CniOutput, Lab, Mode, Ns, Pod};

use crate::check::{self, Counted, Row};
use crate::sockets::{udp, unspecified, wait_until};
use crate::sweep::repairs;
use crate::{FAMILIES, Place as _, reach, world_end};

const MODES: [Mode; 2] = [Mode::Vxlan, Mode::Direct];
/// Bits per second, for both directions: fast enough for tests.
const RATE: u64 = 200_000_000;
const PORT: u16 = 8080;
const HOST_PORT: u16 = 9088;
const STREAM: u64 = 1 << 20;
/// The bytes that the server of an exchange sends back.
const ANSWER: u64 = 64 << 10;

#[test]
fn everything_to_and_from_a_limited_pod_passes_its_queues() {
    for mode in MODES {
        let places = Places::new(mode);
        let lab = &places.lab;
        let stack = [(0, Path::FromStack), (1, Path::FromStack)];
        for family in FAMILIES {
            let pod = places.pod.end(family);
            let others = [
                ("a pod of the node", places.near.end(family)),
                ("a pod of another node", places.far.end(family)),
            ];
            for (name, other) in others {
                for (client, server, payload) in
                    [(other, pod, [STREAM, ANSWER]), (pod, other, [ANSWER, STREAM])]
                {
                    let what = format!("{mode:?}, {name}, from {}", client.0.name());
                    let before = places.passed();
                    check::check(lab, &[Row::new(&what, client, server).avoids(&stack)]);
                    places.expect_passed(&before, payload, &format!("{what} to {}", server.1));
                }
            }
            let before = places.passed();
            let row = Row::new("the world", pod, world_end(lab, family)).seen_as(lab.node(0).end(family).1);
            check::check(lab, &[Row { learns_mtu: mode == Mode::Vxlan, ..row }]);
            places.expect_passed(&before, [ANSWER, STREAM], &format!("{mode:?}, to {}", row.destination));
        }
        assert_eq!(lab.node(0).map_dump(maps::STACK_FLOWS).unwrap(), json!([]), "{mode:?}");
    }
}

#[test]
fn smallest_limit_lets_packets_pass_and_less_is_refused() {
    const LEAST: u64 = 12_000;
    for mtu in [1500, 9000] {
        let lab = Lab::builder().nodes(1).underlay_mtu(mtu).build().unwrap();
        let node = lab.node(0);
        let limits = |rate: u64| json!({ "bandwidth": { "ingressRate": rate, "egressRate": rate } });
        let pod = node.add_pod_with("pod", &limits(LEAST)).unwrap();
        for address in node.addresses() {
            traffic::udp_exchange(&pod, node, address, PORT, 100).unwrap();
        }
        let refused = node.add_pod_with("refused", &limits(LEAST - 1)).unwrap_err().to_string();
        assert!(refused.contains("11999") && refused.contains("12000 at least"), "{refused}");
    }
}

#[test]
fn what_comes_by_a_host_port_passes_the_queues_too() {
    for mode in MODES {
        let places = Places::new(mode);
        let node = places.lab.node(0);
        let clients: [(&str, &Ns); 5] = [
            ("the world", places.lab.world()),
            ("another node", places.lab.node(1)),
            ("a pod of the node", &places.near),
            ("a pod of another node", &places.far),
            ("itself", &places.pod),
        ];
        for address in node.addresses() {
            let route = Route::translated(SocketAddr::new(address, HOST_PORT), PORT);
            for (name, client) in clients {
                let what = format!("{mode:?}, {name} to {address}");
                let before = places.passed();
                let counted = Counted::quiet(&places.lab);
                let exchange = traffic::tcp_exchange_on(client, &places.pod, route, STREAM);
                exchange.unwrap_or_else(|error| panic!("{what}: {error:#}"));
                places.expect_passed(&before, [STREAM, ANSWER], &what);
                let grown = Counted::quiet(&places.lab).since(&counted);
                let past_stack = grown.expect(&[], &[(0, Path::FromStack)]);
                past_stack.unwrap_or_else(|error| panic!("{what}: {error:#}"));
            }
        }
    }
}

#[test]
fn segments_that_a_queue_has_cut_arrive_as_they_were_sent() {
    for mode in MODES {
        let lab = Lab::builder().mode(mode).build().unwrap();
        // At this rate, 20 ms of traffic are less than half of the largest segment.
        let slow = json!({ "bandwidth": { "ingressRate": 10_000_000, "egressRate": 10_000_000 } });
        let pod = lab.node(0).add_pod_with("pod", &slow).unwrap();
        let [near, far] = [(0, "near"), (1, "far")].map(|(node, name)| lab.node(node).add_pod(name).unwrap());
        for family in FAMILIES {
            for other in [near.end(family), far.end(family)] {
                let pod = pod.end(family);
                for ((client, _), (server, to)) in [(other, pod), (pod, other)] {
                    let what = |error| panic!("{mode:?}, from {} to {to}: {error:#}", client.name());
                    traffic::tcp_exchange(client, server, to, PORT, STREAM).unwrap_or_else(what);
                    traffic::udp_segments(client, server, to, PORT, 1000, 40).unwrap_or_else(what);
                }
            }
            let (world, address) = world_end(&lab, family);
            traffic::tcp_exchange(&pod, world, address, PORT, STREAM).unwrap();
        }
    }
}

/// The world's links have a larger MTU than pods' links.
#[test]
fn host_port_datagram_larger_than_the_pods_link_arrives() {
    for mode in MODES {
        let lab = Lab::builder().mode(mode).nodes(1).build().unwrap();
        let mut wanted = both();
        wanted["portMappings"] = json!([{ "hostPort": 9089, "containerPort": PORT, "protocol": "udp" }]);
        let pod = lab.node(0).add_pod_with("pod", &wanted).unwrap();
        for address in lab.node(0).addresses() {
            let route = Route::translated((address, 9089).into(), PORT);
            for size in [1400, 1430, 1472, 3000] {
                let exchange = traffic::udp_exchange_on(lab.world(), &pod, route, size);
                exchange.unwrap_or_else(|error| panic!("{mode:?}, {size} bytes to {address}: {error:#}"));
            }
        }
    }
}

#[test]
fn a_limit_of_one_direction_leaves_the_other_alone() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let limited = |name: &str, key: &str| {
        lab.node(0).add_pod_with(name, &json!({ "bandwidth": { key: RATE } })).unwrap()
    };
    let (receives, sends) = (limited("receives", "ingressRate"), limited("sends", "EgressRate"));
    let free = lab.node(0).add_pod("free").unwrap();
    let here = |pod: &Pod| queue(lab.node(0), pod.host_interface());
    assert!(here(&receives).is_some() && queue(&receives, "eth0").is_none());
    assert!(here(&sends).is_none() && queue(&sends, "eth0").is_some());
    assert!(here(&free).is_none() && queue(&free, "eth0").is_none());
    reach(&sends, &receives);
    reach(&free, &sends);
}

#[test]
fn a_limit_outlives_the_agent_and_goes_with_its_pod() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let places = ["pod", "other"].map(|name| node.add_pod_with(name, &both()).unwrap());
    let [pod, other] = &places;
    let configured = || (queue(node, pod.host_interface()).unwrap(), node.map_dump(maps::ENDPOINTS).unwrap());
    let before = configured();
    node.kill_agent().unwrap();
    reach(other, pod);
    node.start_agent().unwrap();
    let after = configured();
    assert_eq!((&before.0["options"], &before.1), (&after.0["options"], &after.1));
    assert!(
        after.0["bytes"].as_u64().unwrap() > before.0["bytes"].as_u64().unwrap() + 2 * STREAM,
        "{after:?}"
    );
    reach(other, pod);
    checked(pod, &both()).unwrap();
    let addresses = pod.addresses().to_vec();
    for pod in places {
        pod.delete().unwrap();
    }
    let left = tc(node, &["qdisc", "show"]);
    assert!(!left.to_string().contains("tbf"), "{left}");
    for map in [maps::ENDPOINTS, maps::EGRESS_GUARDS] {
        assert_eq!(node.map_dump(map).unwrap(), json!([]), "{map}");
    }
    // The next pod with the same addresses has no limit.
    let free = node.add_pod_with("free", &json!({ "ips": addresses })).unwrap();
    assert_eq!(free.addresses(), addresses);
    assert!(queue(node, free.host_interface()).is_none());
}

#[test]
fn a_limit_that_somebody_took_away_is_found_out_and_set_again() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod_with("pod", &both()).unwrap();
    checked(&pod, &both()).unwrap();
    let options = |ns: &Ns, device: &str| queue(ns, device).map(|queue| queue["options"].clone());
    let as_it_was = options(node, pod.host_interface());

    // `EGRESS_GUARDS` stops a pod that bypasses its queue. CHECK finds that the entry is missing.
    let guards = node.bpf_dir().join(maps::EGRESS_GUARDS).display().to_string();
    let link = node.ifindex(pod.host_interface()).unwrap().to_ne_bytes().map(|byte| byte.to_string());
    let key: Vec<_> = link.iter().map(String::as_str).collect();
    node.exec(&[&["bpftool", "map", "delete", "pinned", &guards, "key"][..], &key].concat()).unwrap();
    let missing = checked(&pod, &both()).unwrap_err();
    assert!(missing.contains("EGRESS_GUARDS has no entry"), "{missing}");

    // The agent does not set the queue on the pod's side again: the pod's own processes may change
    // it.
    pod.exec(&["tc", "qdisc", "del", "dev", "eth0", "root"]).unwrap();
    let missing = checked(&pod, &both()).unwrap_err();
    assert!(missing.contains("limit of 200000000 bits/s for what it sends is missing"), "{missing}");

    let other =
        format!("tc qdisc replace dev {} root tbf rate 1gbit burst 1mb limit 1mb", pod.host_interface());
    let gone = format!("tc qdisc del dev {} root", pod.host_interface());
    for command in [other, gone] {
        node.exec(&command.split(' ').collect::<Vec<_>>()).unwrap();
        let missing = checked(&pod, &both()).unwrap_err();
        assert!(missing.contains("the limit of what the pod receives is missing"), "{command}: {missing}");
        let again = wait_until(|| (options(node, pod.host_interface()) == as_it_was).then_some(()));
        assert!(again.is_some(), "{command}: the agent has not set it again\n{}", node.agent_log_tail(5));
    }
    assert_eq!(repairs(node, "link-limit"), 2);
}

#[test]
fn who_goes_around_the_pods_queue_is_stopped_on_the_node() {
    for mode in MODES {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let pod =
            lab.node(0).add_pod_with("pod", &json!({ "bandwidth": { "egressRate": 10_000_000 } })).unwrap();
        let [near, far] = [(0, "near"), (1, "far")].map(|(node, name)| lab.node(node).add_pod(name).unwrap());
        let others = FAMILIES.map(|family| [near.end(family), far.end(family), world_end(&lab, family)]);
        let others = others.as_flattened();
        let dropped = || check::drops(lab.node(0));
        for (other, address) in others {
            traffic::tcp_exchange(&pod, other, *address, PORT, STREAM).unwrap();
        }
        assert!(dropped().is_empty(), "{mode:?}: packets through the queue were dropped: {:?}", dropped());
        pod.exec(&["tc", "qdisc", "del", "dev", "eth0", "root"]).unwrap();
        let name = Drop::EgressLimitExceeded.name();
        for (other, address) in others {
            let before = dropped().get(name).copied().unwrap_or_default();
            let unspecified = unspecified(*address);
            let (_server, socket) = (udp(other, (unspecified, PORT)), udp(&pod, (unspecified, 0)));
            let stopped = wait_until(|| {
                // Two seconds' worth of traffic.
                for _ in 0..2500 {
                    socket.send_to(&[0; 1000], (*address, PORT)).unwrap();
                }
                (dropped().get(name).copied().unwrap_or_default() > before).then_some(())
            });
            assert!(stopped.is_some(), "{mode:?}: no packet to {address} was dropped: {:?}", dropped());
            // TCP gets through with the rest of the rate.
            traffic::tcp_exchange(&pod, other, *address, PORT + 1, STREAM / 4).unwrap();
        }
    }
}

#[test]
fn another_limit_is_refused_while_the_attachment_is_there() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let pod = lab.node(0).add_pod_with("pod", &both()).unwrap();
    let add = |bandwidth: Value| {
        let mut call = pod.call().clone();
        call.interface = "eth0".into();
        call.config["runtimeConfig"] = json!({ "bandwidth": bandwidth });
        call.run().unwrap()
    };
    let refused = |output: &CniOutput, said: &str| {
        assert!(!output.success && output.answer["code"] == 7, "{output:?}");
        assert!(output.answer["msg"].as_str().unwrap().contains(said), "{output:?}");
    };
    refused(&add(json!({ "ingressRate": 1 })), "runtimeConfig.bandwidth.ingressRate is \"1\"");
    refused(&add(json!({ "EgressBurst": 1 })), "runtimeConfig.bandwidth.egressBurst is \"1\"");
    refused(&add(json!({ "ingressRate": RATE })), "another bandwidth than");
    refused(&add(json!({})), "another bandwidth than");
}

fn both() -> Value {
    // Runtimes ask for this burst.
    let burst = u32::MAX;
    json!({ "bandwidth": {
        "IngressRate": RATE, "IngressBurst": burst, "EgressRate": RATE, "EgressBurst": burst,
    }})
}

/// Runs CHECK as a runtime does.
fn checked(pod: &Pod, runtime_config: &Value) -> Result<(), String> {
    let mut call = pod.call().with_command("CHECK");
    call.config["prevResult"] = pod.result().clone();
    call.config["runtimeConfig"] = runtime_config.clone();
    let output = call.run().unwrap();
    if output.success { Ok(()) } else { Err(output.answer["msg"].as_str().unwrap_or_default().to_owned()) }
}

/// Returns a device's token bucket filter as `tc` shows it.
fn queue(ns: &Ns, device: &str) -> Option<Value> {
    let queues = tc(ns, &["qdisc", "show", "dev", device]);
    queues.as_array().unwrap().iter().find(|queue| queue["kind"] == "tbf").cloned()
}

fn tc(ns: &Ns, arguments: &[&str]) -> Value {
    let printed = ns.exec(&[&["tc", "-s", "-j"], arguments].concat()).unwrap();
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// A pod with limits and a hostPort, and the pods that it talks to.
struct Places {
    pod: Pod,
    near: Pod,
    far: Pod,
    lab: Lab,
}

impl Places {
    fn new(mode: Mode) -> Self {
        let lab = Lab::builder().mode(mode).build().unwrap();
        // Send no large packets: the queue counts the segments of one, but the link counts it as
        // one packet.
        for ns in lab.nodes().iter().map(|node| &**node).chain([lab.world()]) {
            ns.ip("link set dev eth0 gso_max_segs 1\n").unwrap();
        }
        let mut wanted = both();
        wanted["portMappings"] = json!([{ "hostPort": HOST_PORT, "containerPort": PORT, "protocol": "tcp" }]);
        let pod = lab.node(0).add_pod_with("pod", &wanted).unwrap();
        let [near, far] = [(0, "near"), (1, "far")].map(|(node, name)| lab.node(node).add_pod(name).unwrap());
        for pod in [&pod, &near, &far] {
            pod.ip("link set dev eth0 gso_max_segs 1\n").unwrap();
        }
        Self { pod, near, far, lab }
    }

    /// Returns the packets that went into the pod and out of it, and those that passed the queues.
    /// Reads both again if a packet has passed in the meantime, for example one that looks for a
    /// neighbour.
    fn passed(&self) -> [Passed; 2] {
        let link = || {
            let shown = self.pod.exec(&["ip", "-s", "-j", "link", "show", "dev", "eth0"]).unwrap();
            serde_json::from_str::<Value>(&shown).unwrap()[0]["stats64"].clone()
        };
        let settled = wait_until(|| {
            let before = link();
            let queues = [(&**self.lab.node(0), self.pod.host_interface()), (&*self.pod, "eth0")];
            let queues = queues.map(|(ns, device)| queue(ns, device).unwrap());
            (link() == before).then_some((before, queues))
        });
        let (stats, [received, sent]) = settled.expect("packets pass all the time");
        let count = |queue: &Value, direction: &str| {
            let number = |from: &Value, key: &str| from[key].as_u64().unwrap();
            Passed {
                queue: number(queue, "packets"),
                link: number(&stats[direction], "packets"),
                bytes: number(queue, "bytes"),
            }
        };
        [count(&received, "rx"), count(&sent, "tx")]
    }

    /// Asserts that every packet since `before` passed a queue, and that the pod received and sent
    /// at least the bytes of `payload`.
    #[track_caller]
    fn expect_passed(&self, before: &[Passed; 2], payload: [u64; 2], what: &str) {
        let after = self.passed();
        for (at, direction) in ["received", "sent"].iter().enumerate() {
            let (before, after) = (&before[at], &after[at]);
            let (queue, link) = (after.queue - before.queue, after.link - before.link);
            assert_eq!(queue, link, "{what}: packets {direction}, through the queue and in all");
            assert!(after.bytes - before.bytes >= payload[at], "{what}: bytes {direction}");
        }
    }
}

/// Counts since the pod was made.
struct Passed {
    /// Packets that have passed the queue.
    queue: u64,
    /// Packets that have passed the pod's link.
    link: u64,
    /// Bytes of the packets that have passed the queue.
    bytes: u64,
}
