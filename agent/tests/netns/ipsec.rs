//! IPsec policies of the host hold for pods' traffic. The kernels of these tests have policies, but
//! neither ESP nor AH. A policy that blocks shows whether the kernel asked it.

use std::net::{IpAddr, SocketAddr};

use podwire::links::Links;
use podwire_common::reason::Drop;
use podwire_common::reason::Path::{
    DirectIn, DirectOut, FromStack, ToStack, TunnelIn, TunnelInDevice, TunnelOut, TunnelOutDevice,
    TunnelToStack,
};
use podwire_core::ipsec::{Direction, Policy};
use serde_json::json;
use xtask::lab::{Lab, Mode, Node, Ns, Pod, traffic};

use crate::check::{Counted, Counter};
use crate::refused::grown;
use crate::snat::ask;
use crate::sockets::{udp, wait_until};

#[test]
fn policies_between_nodes_hold_for_the_tunnel() {
    let lab = Lab::builder().build().unwrap();
    let [one, two] = [lab.node(0), lab.node(1)];
    let (near, far) = (one.add_pod("near").unwrap(), two.add_pod("far").unwrap());
    let (here, there) = (one.address(), two.address());
    let past = [(0, TunnelOut), (0, TunnelIn)];
    talks(&lab, &near, &far, &past, &[(0, TunnelOutDevice)]);
    // Policies that only let packets pass change nothing, and neither do policies about other
    // traffic.
    for policy in [
        format!("src {here}/32 dst {there}/32 dir out action allow"),
        format!("src {here}/32 dst 10.200.0.99/32 dir out action block"),
        format!("src {here}/32 dst {there}/32 dir out action block if_id 7"),
    ] {
        xfrm(one, &format!("add {policy}"));
        std::thread::sleep(std::time::Duration::from_secs(2));
        talks(&lab, &near, &far, &past, &[(0, TunnelOutDevice)]);
        one.exec(&["ip", "xfrm", "policy", "flush"]).unwrap();
    }
    for (policy, tells) in [
        (format!("src {here}/32 dst {there}/32 dir out"), "what this node sends"),
        (format!("src 10.200.0.0/24 dst {there}/32 proto udp dport 8472 dir out"), "its tunnel"),
        (format!("src {there}/32 dst {here}/32 dir in"), "what it receives"),
        ("src 0.0.0.0/0 dst 10.200.0.0/24 dir out".to_owned(), "anything to the nodes"),
    ] {
        xfrm(one, &format!("add {policy} action block"));
        ends(&near, &far, far.address(), tells);
        xfrm(one, &format!("delete {policy}"));
        begins(&near, &far, far.address(), tells);
    }
    let back = wait_until(|| {
        let before = Counted::quiet(&lab);
        traffic::tcp_exchange(&near, &far, far.address(), 8080, 1 << 20).unwrap();
        Counted::quiet(&lab).since(&before).expect(&past, &[(0, TunnelOutDevice)]).ok()
    });
    assert!(back.is_some(), "no packet goes past the stack again after the policies are gone");
    // This policy is about TCP, but the tunnel is UDP: no packet matches it. Before long all
    // packets take the device because there is a policy, and arrive.
    xfrm(one, &format!("add src {here}/32 dst {there}/32 proto tcp dir out action block"));
    let by_device = wait_until(|| {
        let before = Counted::quiet(&lab);
        traffic::tcp_exchange(&near, &far, far.address(), 8080, 1 << 20).unwrap();
        let ways = [(0, TunnelOutDevice), (0, TunnelInDevice)];
        Counted::quiet(&lab).since(&before).expect(&ways, &past).ok()
    });
    assert!(by_device.is_some(), "{}", one.agent_log_tail(20));
}

#[test]
fn policies_between_pods_hold_in_both_modes() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let one = lab.node(0);
        let (near, far) = (one.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
        let (ours, theirs) = (one.pod_cidr(), lab.node(1).pod_cidr());
        for policy in [
            format!("src {ours} dst {theirs} dir out"),
            format!("src {ours} dst {theirs} dir fwd"),
            format!("src {theirs} dst {ours} dir fwd"),
        ] {
            let tells = format!("{mode:?}: {policy}");
            xfrm(one, &format!("add {policy} action block"));
            ends(&near, &far, far.address(), &tells);
            xfrm(one, &format!("delete {policy}"));
            begins(&near, &far, far.address(), &tells);
        }
        xfrm(one, &format!("add src {ours} dst {theirs} proto sctp dir out action block"));
        let past = match mode {
            Mode::Vxlan => [(0, TunnelOut), (0, TunnelIn)],
            Mode::Direct => [(0, DirectOut), (0, DirectIn)],
        };
        let by_stack = wait_until(|| {
            let before = Counted::quiet(&lab);
            traffic::tcp_exchange(&near, &far, far.address(), 8080, 1 << 20).unwrap();
            let mut ways: Vec<Counter> = vec![(0, ToStack), (0, FromStack)];
            ways.extend((mode == Mode::Vxlan).then_some((0, TunnelToStack)));
            Counted::quiet(&lab).since(&before).expect(&ways, &past).ok()
        });
        assert!(by_stack.is_some(), "{mode:?}: {}", one.agent_log_tail(20));
    }
}

#[test]
fn policies_about_the_world_hold_for_flows_that_are_there() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("pod").unwrap();
    let server = udp(lab.world(), (lab.world_address(), 53));
    let client = udp(&pod, ("0.0.0.0", 40000));
    let to = SocketAddr::new(lab.world_address(), 53);
    // By now the flow goes past the host's rules.
    for _ in 0..5 {
        ask(&client, &server, to, "before");
    }
    for policy in [
        format!("src {} dst 198.51.100.0/24 dir out", node.pod_cidr()),
        format!("src 0.0.0.0/0 dst {}/32 dir fwd", lab.world_address()),
    ] {
        xfrm(node, &format!("add {policy} action block"));
        let stopped = wait_until(|| {
            client.send_to(b"after", to).unwrap();
            let mut place = [0; 16];
            server.recv_from(&mut place).is_err().then_some(())
        });
        assert!(stopped.is_some(), "{policy}: {}", node.agent_log_tail(20));
        assert!(
            traffic::tcp_exchange(&pod, lab.world(), lab.world_address(), 8080, 1 << 10).is_err(),
            "{policy}"
        );
        xfrm(node, &format!("delete {policy}"));
        begins(&pod, lab.world(), lab.world_address(), &policy);
    }
}

#[test]
fn what_snat_would_hide_from_a_policy_is_dropped() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let mapping = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let pod = node.add_pod_with("pod", &mapping).unwrap();
    let world = lab.world_address();
    xfrm(node, &format!("add src {}/32 dst {world}/32 dir out action block", node.address()));
    ends(&pod, lab.world(), world, "a pod, as the node");
    let before = Counted::quiet(&lab);
    udp(&pod, ("0.0.0.0", 0)).send_to(b"?", (world, 53)).unwrap();
    let out = grown(&lab, &before);
    assert_eq!(out.drops(0).get(Drop::IpsecPolicy.name()), Some(&1), "{out}");
    let before = Counted::quiet(&lab);
    let route = traffic::Route::translated((node.address(), 8080).into(), 80);
    assert!(traffic::tcp_exchange_on(lab.world(), &pod, route, 1 << 10).is_err());
    let reply = grown(&lab, &before);
    assert!(reply.drops(0).get(Drop::IpsecPolicy.name()).is_some(), "{reply}");
    node.exec(&["ip", "xfrm", "policy", "flush"]).unwrap();
    begins(&pod, lab.world(), world, "without the policy");
}

#[test]
fn a_default_that_blocks_is_a_policy_for_everything() {
    let lab = Lab::builder().build().unwrap();
    let one = lab.node(0);
    let (near, far) = (one.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
    one.exec(&["ip", "xfrm", "policy", "setdefault", "out", "block"]).unwrap();
    ends(&near, &far, far.address(), "the default");
    assert!(traffic::tcp_exchange(&near, lab.world(), lab.world_address(), 8080, 1 << 10).is_err());
    one.exec(&["ip", "xfrm", "policy", "setdefault", "out", "accept"]).unwrap();
    begins(&near, &far, far.address(), "the default");
}

/// Runs `ip xfrm policy <words>` on a node.
#[test]
fn policies_of_both_families_are_read() {
    let lab = Lab::builder().agents(false).nodes(1).build().unwrap();
    let node = lab.node(0);
    for policy in [
        "src 10.1.0.0/16 dst 10.2.0.7/32 dir fwd action block",
        "src fd00:1::/64 dst fd00:2::7/128 dir out action block",
        "src fd00:3::/64 dst fd00:4::/64 dir out action allow",
    ] {
        xfrm(node, &format!("add {policy}"));
    }
    xfrm(node, "setdefault in block");
    let read = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { Links::new().unwrap().host().await.unwrap().policies })
    };
    let policy = |direction, source: &str, destination: &str| Policy {
        direction,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    };
    let expected = [
        policy(Direction::In, "0.0.0.0/0", "0.0.0.0/0"),
        policy(Direction::In, "::/0", "::/0"),
        policy(Direction::Out, "fd00:1::/64", "fd00:2::7/128"),
        policy(Direction::Forward, "10.1.0.0/16", "10.2.0.7/32"),
    ];
    assert_eq!(node.enter(read).unwrap(), expected);
}

fn xfrm(node: &Node, words: &str) {
    let command: Vec<_> = ["ip", "xfrm", "policy"].into_iter().chain(words.split_whitespace()).collect();
    node.exec(&command).unwrap();
}

fn talks(lab: &Lab, near: &Pod, far: &Pod, takes: &[Counter], avoids: &[Counter]) {
    let before = Counted::quiet(lab);
    traffic::tcp_exchange(near, far, far.address(), 8080, 1 << 20).unwrap();
    Counted::quiet(lab).since(&before).expect(takes, avoids).unwrap();
}

/// Waits until a ping gets no answer.
fn ends(from: &Pod, _to: &Ns, address: IpAddr, why: &str) {
    let ended = wait_until(|| traffic::ping(from, address, 56).is_err().then_some(()));
    assert!(ended.is_some(), "{why}: the policy was not asked");
    assert!(traffic::ping(from, address, 56).is_err(), "{why}: only one ping got no answer");
}

/// Waits until a TCP transfer succeeds.
fn begins(from: &Pod, to: &Ns, address: IpAddr, why: &str) {
    let begun = wait_until(|| traffic::tcp_exchange(from, to, address, 8080, 1 << 16).ok());
    assert!(begun.is_some(), "{why}: no transfer succeeds again");
}
