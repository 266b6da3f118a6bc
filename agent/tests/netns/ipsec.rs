//! IPsec policies of the host hold for pods' traffic. The kernels of these tests have policies, but
//! neither ESP nor AH. A policy that blocks shows whether the kernel asked it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

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
use crate::sockets::{udp, unspecified, wait_until};
use crate::{FAMILIES, Place as _};

/// Bits of an address of each family.
const LENGTHS: [u8; 2] = [32, 128];
/// The network of all addresses of each family, the network of the nodes, a host that is no node.
const ANY: [&str; 2] = ["0.0.0.0/0", "::/0"];
const NODES: [&str; 2] = ["10.200.0.0/24", "fd00:10:200::/64"];
const OTHER_HOST: [&str; 2] = ["10.200.0.99/32", "fd00:10:200::99/128"];
const WORLD: [&str; 2] = ["198.51.100.0/24", "2001:db8::/64"];

#[test]
fn policies_between_nodes_hold_for_the_tunnel() {
    for tunnel in FAMILIES {
        let arguments = ["--tunnel-family", ["ipv4", "ipv6"][tunnel]];
        let lab = Lab::builder().agent_arguments(&arguments).build().unwrap();
        let [one, two] = [lab.node(0), lab.node(1)];
        let (near, far) = (one.add_pod("near").unwrap(), two.add_pod("far").unwrap());
        let [here, there] =
            [one, two].map(|node| format!("{}/{}", node.addresses()[tunnel], LENGTHS[tunnel]));
        let past = [(0, TunnelOut), (0, TunnelIn)];
        // The programs leave IPv4 in a tunnel of IPv6 to the VXLAN device.
        let families = if tunnel == 0 { &FAMILIES[..] } else { &[1] };
        let all_talk = || {
            families
                .iter()
                .for_each(|family| talks(&lab, &near, far.end(*family), &past, &[(0, TunnelOutDevice)]))
        };
        all_talk();
        // Policies that only let packets pass change nothing, and neither do policies about other
        // traffic.
        for policy in [
            format!("src {here} dst {there} dir out action allow"),
            format!("src {here} dst {} dir out action block", OTHER_HOST[tunnel]),
            format!("src {here} dst {there} dir out action block if_id 7"),
        ] {
            xfrm(one, &format!("add {policy}"));
        }
        std::thread::sleep(Duration::from_secs(2));
        all_talk();
        one.exec(&["ip", "xfrm", "policy", "flush"]).unwrap();
        let nodes = NODES[tunnel];
        for (policy, tells) in [
            (format!("src {here} dst {there} dir out"), "what this node sends"),
            (format!("src {nodes} dst {there} proto udp dport 8472 dir out"), "its tunnel"),
            (format!("src {there} dst {here} dir in"), "what it receives"),
            (format!("src {} dst {nodes} dir out", ANY[tunnel]), "anything to the nodes"),
        ] {
            xfrm(one, &format!("add {policy} action block"));
            ends(&near, far.addresses(), tells);
            xfrm(one, &format!("delete {policy}"));
            begins(&near, &far, far.addresses(), tells);
        }
        let come = |family: &usize, takes: &[Counter], avoids: &[Counter]| {
            let came = wait_until(|| {
                let before = Counted::quiet(&lab);
                traffic::tcp_exchange(&near, &far, far.addresses()[*family], 8080, 1 << 20).unwrap();
                Counted::quiet(&lab).since(&before).expect(takes, avoids).ok()
            });
            assert!(came.is_some(), "{takes:?}: {}", one.agent_log_tail(20));
        };
        // The policies are gone.
        families.iter().for_each(|family| come(family, &past, &[(0, TunnelOutDevice)]));
        // This policy is about TCP, but the tunnel is UDP: no packet matches it. Before long all
        // packets take the device because there is a policy, and arrive.
        xfrm(one, &format!("add src {here} dst {there} proto tcp dir out action block"));
        families.iter().for_each(|family| come(family, &[(0, TunnelOutDevice), (0, TunnelInDevice)], &past));
    }
}

#[test]
fn policies_between_pods_hold_in_both_modes() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let one = lab.node(0);
        let (near, far) = (one.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
        let networks = FAMILIES.map(|family| (one.pod_cidrs()[family], lab.node(1).pod_cidrs()[family]));
        // A policy of one family sends both to the stack. So IPv6 comes first: no policy of IPv4 helps.
        for family in FAMILIES.into_iter().rev() {
            let (ours, theirs) = networks[family];
            let address = &far.addresses()[family..=family];
            for policy in [
                format!("src {ours} dst {theirs} dir out"),
                format!("src {ours} dst {theirs} dir fwd"),
                format!("src {theirs} dst {ours} dir fwd"),
            ] {
                let tells = format!("{mode:?}: {policy}");
                xfrm(one, &format!("add {policy} action block"));
                ends(&near, address, &tells);
                xfrm(one, &format!("delete {policy}"));
                begins(&near, &far, address, &tells);
            }
        }
        for (ours, theirs) in networks {
            xfrm(one, &format!("add src {ours} dst {theirs} proto sctp dir out action block"));
        }
        let past = match mode {
            Mode::Vxlan => [(0, TunnelOut), (0, TunnelIn)],
            Mode::Direct => [(0, DirectOut), (0, DirectIn)],
        };
        for address in far.addresses() {
            let by_stack = wait_until(|| {
                let before = Counted::quiet(&lab);
                traffic::tcp_exchange(&near, &far, *address, 8080, 1 << 20).unwrap();
                let mut ways: Vec<Counter> = vec![(0, ToStack), (0, FromStack)];
                ways.extend((mode == Mode::Vxlan).then_some((0, TunnelToStack)));
                Counted::quiet(&lab).since(&before).expect(&ways, &past).ok()
            });
            assert!(by_stack.is_some(), "{mode:?}, {address}: {}", one.agent_log_tail(20));
        }
    }
}

#[test]
fn policies_about_the_world_hold_for_flows_that_are_there() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("pod").unwrap();
    let world = lab.world_addresses();
    let flows = FAMILIES.map(|family| {
        let server = udp(lab.world(), (world[family], 53));
        // The test waits for packets that do not come.
        server.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        (udp(&pod, (pod.addresses()[family], 40000)), server, SocketAddr::new(world[family], 53))
    });
    // By now the flows go past the host's rules.
    for (client, server, to) in &flows {
        for _ in 0..5 {
            ask(client, server, *to, "before");
        }
    }
    let towards_world =
        |family: usize| format!("src {} dst {} dir out", node.pod_cidrs()[family], WORLD[family]);
    let forwarded =
        |family: usize| format!("src {} dst {}/{} dir fwd", ANY[family], world[family], LENGTHS[family]);
    for policies in [FAMILIES.map(towards_world), FAMILIES.map(forwarded)] {
        policies.iter().for_each(|policy| xfrm(node, &format!("add {policy} action block")));
        for ((client, server, to), policy) in flows.iter().zip(&policies) {
            let stopped = wait_until(|| {
                client.send_to(b"after", to).unwrap();
                let mut place = [0; 16];
                server.recv_from(&mut place).is_err().then_some(())
            });
            assert!(stopped.is_some(), "{policy}: {}", node.agent_log_tail(20));
        }
        world.iter().for_each(|address| assert!(is_silent(&pod, *address, 8080), "{policies:?}"));
        policies.iter().for_each(|policy| xfrm(node, &format!("delete {policy}")));
        begins(&pod, lab.world(), &world, &format!("{policies:?}"));
    }
}

#[test]
fn what_snat_would_hide_from_a_policy_is_dropped() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let mapping = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let pod = node.add_pod_with("pod", &mapping).unwrap();
    let world = lab.world_addresses();
    for family in FAMILIES {
        let (own, world, length) = (node.addresses()[family], world[family], LENGTHS[family]);
        xfrm(node, &format!("add src {own}/{length} dst {world}/{length} dir out action block"));
    }
    ends(&pod, &world, "a pod, as the node");
    for address in &world {
        let before = Counted::quiet(&lab);
        udp(&pod, (unspecified(*address), 0)).send_to(b"?", (*address, 53)).unwrap();
        let out = grown(&lab, &before);
        assert_eq!(out.drops(0).get(Drop::IpsecPolicy.name()), Some(&1), "{address}: {out}");
    }
    for address in node.addresses() {
        let before = Counted::quiet(&lab);
        assert!(is_silent(lab.world(), address, 8080), "{address}");
        let reply = grown(&lab, &before);
        assert!(reply.drops(0).get(Drop::IpsecPolicy.name()).is_some(), "{address}: {reply}");
    }
    node.exec(&["ip", "xfrm", "policy", "flush"]).unwrap();
    begins(&pod, lab.world(), &world, "without the policy");
}

#[test]
fn a_default_that_blocks_is_a_policy_for_everything() {
    let lab = Lab::builder().build().unwrap();
    let one = lab.node(0);
    let (near, far) = (one.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
    one.exec(&["ip", "xfrm", "policy", "setdefault", "out", "block"]).unwrap();
    ends(&near, far.addresses(), "the default");
    for address in lab.world_addresses() {
        assert!(is_silent(&near, address, 8080), "{address}");
    }
    one.exec(&["ip", "xfrm", "policy", "setdefault", "out", "accept"]).unwrap();
    begins(&near, &far, far.addresses(), "the default");
}

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

/// Runs `ip xfrm policy <words>` on a node.
fn xfrm(node: &Node, words: &str) {
    let command: Vec<_> = ["ip", "xfrm", "policy"].into_iter().chain(words.split_whitespace()).collect();
    node.exec(&command).unwrap();
}

fn talks(lab: &Lab, near: &Pod, (far, address): (&Ns, IpAddr), takes: &[Counter], avoids: &[Counter]) {
    let before = Counted::quiet(lab);
    traffic::tcp_exchange(near, far, address, 8080, 1 << 20).unwrap();
    Counted::quiet(lab).since(&before).expect(takes, avoids).unwrap();
}

/// Waits until pings to none of the addresses get an answer.
fn ends(from: &Pod, addresses: &[IpAddr], why: &str) {
    // Three pings: one may get lost.
    let answers = |address: &IpAddr| {
        let pings = ["ping", "-n", "-c3", "-i0.2", "-W2", &address.to_string()];
        from.output(&pings).unwrap().status.success()
    };
    let all_end = || {
        std::thread::scope(|scope| {
            let pings: Vec<_> =
                addresses.iter().map(|address| scope.spawn(move || answers(address))).collect();
            pings.into_iter().all(|pings| !pings.join().unwrap())
        })
    };
    assert!(wait_until(|| all_end().then_some(())).is_some(), "{why}: the policy was not asked");
}

/// Waits until a TCP transfer to each address succeeds.
fn begins(from: &Pod, to: &Ns, addresses: &[IpAddr], why: &str) {
    for address in addresses {
        let begun = wait_until(|| traffic::tcp_exchange(from, to, *address, 8080, 1 << 16).ok());
        assert!(begun.is_some(), "{why}: no transfer to {address} succeeds again");
    }
}

/// Returns whether a connection attempt gets no answer: no server listens, so one that arrives is
/// refused.
fn is_silent(from: &Ns, address: IpAddr, port: u16) -> bool {
    let attempt = || TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_secs(2));
    from.enter(attempt).unwrap().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
}
