//! Many pods at once, as on a node that is drained and filled again.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::Write as _;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use podwire_cni::protocol::Attachment;
use podwire_common::names::maps;
use xtask::lab::{Lab, Node, Ns, Pod, is_soak};

use crate::footprint::Footprint;
use crate::sockets::udp;

/// The pods of a round, for which the node has 253 addresses.
const PODS: usize = 200;
/// Enough rounds that addresses leaked in an earlier round would be missing.
const ROUNDS: usize = 2;
const AT_ONCE: usize = 8;

#[test]
fn two_hundred_pods_come_and_go_and_leave_nothing() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    // The first pod leaves a file for good: `last-address`.
    node.add_pod("first").unwrap().delete().unwrap();
    let before = Footprint::of(node, &[]);
    for round in 0..if is_soak() { 10 } else { ROUNDS } {
        let pods = Mutex::new(Vec::new());
        at_once(PODS, |number| {
            let pod = node.add_pod(&format!("pod{round}x{number}")).unwrap();
            receive_at_once(node, &pod);
            pods.lock().unwrap().push(pod);
        });
        let pods: Vec<Pod> = pods.into_inner().unwrap();
        let addresses: BTreeSet<IpAddr> = pods.iter().flat_map(Pod::addresses).copied().collect();
        assert_eq!(addresses.len(), 2 * PODS, "an address was given twice");
        let gateway = node.gateway();
        assert!(!addresses.contains(&gateway), "the gateway's address was given to a pod");
        assert_eq!(node.map_dump(maps::ENDPOINTS).unwrap().as_array().unwrap().len(), 2 * PODS);
        let pods = Mutex::new(pods);
        at_once(PODS, |_| {
            let pod = pods.lock().unwrap().pop().unwrap();
            pod.delete().unwrap();
        });
        assert_eq!(Footprint::of(node, &[]).differences(&before), [] as [String; 0]);
    }
}

/// One ADD waits for the disk while others go on.
#[test]
fn pods_without_a_written_file_are_undone_while_others_come() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    node.add_pod("first").unwrap().delete().unwrap();
    let before = Footprint::of(node, &[]);
    let file = |pod: &str| {
        let container_id = node.cni_call("ADD", pod, &serde_json::json!({})).container_id;
        let name = Attachment { container_id, interface: "eth0".into() }.host_interface();
        node.state_dir().join("endpoints").join(name)
    };
    let pods = Mutex::new(Vec::new());
    at_once(4 * AT_ONCE, |number| {
        if number % 2 == 1 {
            let name = format!("refused{number}");
            // The agent writes the file here, before the file gets its name.
            let obstacle = file(&name).with_extension("tmp");
            std::fs::create_dir(&obstacle).unwrap();
            let refused = format!("{:#}", node.add_pod(&name).map(drop).unwrap_err());
            let named = file(&name).with_extension("json");
            assert!(refused.contains(&format!("write {}", named.display())), "{refused}");
            std::fs::remove_dir(&obstacle).unwrap();
        }
        let pod = node.add_pod(&format!("pod{number}")).unwrap();
        receive_at_once(node, &pod);
        pods.lock().unwrap().push(pod);
    });
    let pods: Vec<Pod> = pods.into_inner().unwrap();
    let addresses: BTreeSet<IpAddr> = pods.iter().map(Pod::address).collect();
    assert_eq!(addresses.len(), 4 * AT_ONCE, "an address was given twice");
    pods.into_iter().for_each(|pod| pod.delete().unwrap());
    assert_eq!(Footprint::of(node, &[]).differences(&before), [] as [String; 0]);
}

/// The calls of a round, ADD and DEL together.
const CALLS: usize = 500;

/// Agents and plugins are killed at random while pods come and go. Afterwards the added pods are as
/// they should be, and no address was given twice. When all pods are deleted, nothing is left.
#[test]
fn five_hundred_calls_among_random_kills_leave_nothing() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let reference = node.add_pod("reference").unwrap();
    let with_pod = Footprint::of(node, &[&reference]);
    reference.delete().unwrap();
    let before = Footprint::of(node, &[]);
    let mut told = Told::default();
    for round in 0..if is_soak() { 20 } else { 1 } {
        let (calls, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let pods = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                let mut killed = 0;
                while !over.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(random(800)));
                    node.restart_agent().unwrap();
                    killed += 1;
                }
                killed
            });
            let workers: Vec<_> = (0..AT_ONCE)
                .map(|worker| {
                    let (calls, pods) = (&calls, &pods);
                    scope.spawn(move || storm(node, calls, pods, &format!("{round}x{worker}")))
                })
                .collect();
            for worker in workers {
                told += worker.join().unwrap();
            }
            over.store(true, Ordering::Relaxed);
            told.agents_killed += killer.join().unwrap();
        });
        // The next agent releases the pods that were deleted without an agent.
        node.restart_agent().unwrap();
        let pods: Vec<Pod> = pods.into_inner().unwrap();
        let addresses: BTreeSet<IpAddr> = pods.iter().map(Pod::address).collect();
        assert_eq!(addresses.len(), pods.len(), "an address was given twice");
        let mut pods = pods.into_iter();
        let last = pods.next().unwrap();
        receive_at_once(node, &last);
        for pod in pods {
            receive_at_once(node, &pod);
            pod.delete().unwrap();
        }
        last.delete().unwrap();
        let next = node.add_pod(&format!("next{round}")).unwrap();
        assert_eq!(Footprint::of(node, &[&next]).differences(&with_pod), [] as [String; 0]);
        next.delete().unwrap();
        assert_eq!(Footprint::of(node, &[]).differences(&before), [] as [String; 0]);
    }
    std::io::stdout().write_all(format!("\n{told:?}\n").as_bytes()).unwrap();
    // Without kills the test would show nothing.
    assert!(told.agents_killed > 0 && told.plugins_killed > 0 && told.try_again > 0, "{told:?}");
}

/// A node is drained while its agent is replaced: without an agent the plugin removes the links
/// itself.
#[test]
fn an_agent_starts_while_pods_go() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    node.add_pod("first").unwrap().delete().unwrap();
    let before = Footprint::of(node, &[]);
    for round in 0..if is_soak() { 10 } else { 1 } {
        let pods = (0..40).map(|number| node.add_pod(&format!("going{round}x{number}")));
        let pods: Vec<Pod> = pods.collect::<Result<_, _>>().unwrap();
        node.kill_agent().unwrap();
        node.spawn_agent().unwrap();
        // Remove the links in the order in which the agent replaces their programs, so that some
        // links go while the agent is at work on them.
        let mut names: Vec<&str> = pods.iter().map(Pod::host_interface).collect();
        names.sort_unstable();
        for name in names {
            node.ip(&format!("link del {name}")).unwrap();
        }
        node.wait_ready().unwrap();
        pods.into_iter().for_each(|pod| pod.delete().unwrap());
    }
    assert_eq!(Footprint::of(node, &[]).differences(&before), [] as [String; 0]);
}

/// The runtime's calls in storms, and what it was told.
#[derive(Debug, Default)]
struct Told {
    calls: usize,
    try_again: usize,
    plugins_killed: usize,
    agents_killed: usize,
}

impl std::ops::AddAssign for Told {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.try_again += other.try_again;
        self.plugins_killed += other.plugins_killed;
        self.agents_killed += other.agents_killed;
    }
}

/// Runs one of the runtime's threads. It adds pods, deletes every other one and those that could
/// not be added, and leaves some.
fn storm(node: &Node, calls: &AtomicUsize, pods: &Mutex<Vec<Pod>>, name: &str) -> Told {
    let (mut told, mut left) = (Told::default(), 0);
    for number in 0.. {
        // On a busy machine agents serve only a small part of the time. At least one pod must be
        // left.
        if calls.load(Ordering::Relaxed) >= CALLS && !pods.lock().unwrap().is_empty() {
            break;
        }
        let name = format!("storm{name}x{number}");
        let mut call = node.cni_call("ADD", &name, &serde_json::json!({}));
        let ns = Ns::create(&call.container_id).unwrap();
        if random(4) == 0 {
            call.deadline = Duration::from_millis(random(20));
        }
        let added = call.run();
        told.calls += 1;
        match &added {
            Ok(output) if output.success => {}
            // CNI specification, "Error": 11 is "try again later".
            Ok(output) => {
                assert_eq!(output.answer["code"], 11, "{output:?}");
                told.try_again += 1;
                // A runtime waits before it tries again. So agents and plugins are killed in the
                // middle of calls.
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(_) => told.plugins_killed += 1,
        }
        let mut deadline = Some(Duration::from_millis(random(20))).filter(|_| random(4) == 0);
        if added.is_ok_and(|output| output.success) && random(2) == 0 && left < 12 {
            // Repeat the ADD. The answer must be the same as before, from whichever agent runs
            // then.
            if let Ok(pod) = node.add_pod_again(&name, &serde_json::json!({})) {
                pods.lock().unwrap().push(pod);
                left += 1;
                told.calls += 1;
                calls.fetch_add(2, Ordering::Relaxed);
                continue;
            }
        }
        loop {
            let mut del = node.cni_call("DEL", &name, &serde_json::json!({}));
            del.deadline = deadline.take().unwrap_or(del.deadline);
            let killed = del.run().map(|output| assert!(output.success, "{output:?}")).is_err();
            told.calls += 1;
            told.plugins_killed += usize::from(killed);
            calls.fetch_add(1, Ordering::Relaxed);
            if !killed {
                break;
            }
        }
        calls.fetch_add(1, Ordering::Relaxed);
        ns.remove().unwrap();
    }
    told
}

/// Returns a random number below a bound.
fn random(bound: u64) -> u64 {
    RandomState::new().build_hasher().finish() % bound
}

/// Asserts that packets of the node arrive as soon as ADD has answered, the first one included.
fn receive_at_once(node: &Node, pod: &Pod) {
    let (client, server) = (udp(node, "0.0.0.0:0"), udp(pod, "0.0.0.0:8080"));
    client.send_to(b"at once", (pod.address(), 8080)).unwrap();
    let received = server.recv(&mut [0; 100]);
    assert_eq!(received.ok(), Some(7), "the node's first packet to {} was lost", pod.address());
}

/// Runs an action this many times, eight at a time.
fn at_once(count: usize, action: impl Fn(usize) + Sync) {
    let action = &action;
    std::thread::scope(|scope| {
        for first in 0..AT_ONCE {
            scope.spawn(move || (first..count).step_by(AT_ONCE).for_each(action));
        }
    });
}
