//! Clients that connect and send nothing. All other clients are still served.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use xtask::lab::{Lab, Node, Ns};

/// A low soft limit, which the agent raises by itself.
const DESCRIPTORS: &str = "prlimit --nofile=64:1024";
const METRICS: &str = "127.0.0.1:9790";

#[test]
fn idle_clients_of_the_metrics_keep_nobody_from_being_served() {
    nobody_waits_for_idle_clients_at(METRICS);
}

#[test]
fn idle_clients_at_the_nodes_address_keep_nobody_waiting() {
    nobody_waits_for_idle_clients_at("[fd00:10:200::1]:9790");
}

fn nobody_waits_for_idle_clients_at(server: &str) {
    const CLIENTS: usize = 1100;
    raise_descriptors(2 * CLIENTS);
    let lab = Lab::builder()
        .nodes(1)
        .agent_wrapper(&words(DESCRIPTORS))
        .agent_arguments(&["--metrics-node-addresses", "10.200.0.1,fd00:10:200::1"])
        .build()
        .unwrap();
    let node = lab.node(0);
    let connect = || TcpStream::connect(server).unwrap();
    let mut clients = node.enter(|| (0..CLIENTS).map(|_| connect()).collect::<Vec<_>>()).unwrap();
    // These clients begin a request that does not end.
    for client in clients.iter_mut().rev().take(32) {
        let _ = client.write_all(b"GET /metrics HTTP/1.1\r\nHost: ");
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Clients keep coming: each new connection replaces an earlier one.
        scope.spawn(|| {
            node.enter(|| {
                while !done.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                    clients.push(connect());
                    clients.swap_remove(0);
                }
            })
            .unwrap();
        });
        let asked = std::panic::catch_unwind(|| {
            for number in 0..10 {
                node.add_pod(&format!("pod{number}")).unwrap();
                for path in ["/healthz", "/readyz", "/metrics"] {
                    let answer = get(node, path);
                    assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
                }
            }
        });
        done.store(true, Ordering::Relaxed);
        asked.unwrap();
    });
    assert!(!node.agent_log().contains("Too many open files"), "{}", node.agent_log_tail(20));
}

#[test]
fn idle_clients_of_the_socket_keep_no_pod_from_being_added() {
    const CLIENTS: usize = 600;
    raise_descriptors(CLIENTS);
    let lab = Lab::builder().nodes(1).agent_wrapper(&words(DESCRIPTORS)).build().unwrap();
    let node = lab.node(0);
    let connect = || UnixStream::connect(node.socket()).unwrap();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| connect()).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
                clients.push(connect());
                clients.swap_remove(0);
            }
        });
        let added = std::panic::catch_unwind(|| {
            for number in 0..30 {
                node.add_pod(&format!("pod{number}")).unwrap();
            }
        });
        done.store(true, Ordering::Relaxed);
        added.unwrap();
    });
}

/// Raises the limit of open files, since this process holds the clients.
fn raise_descriptors(clients: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    assert!(limit.maximum.is_none_or(|maximum| maximum > clients as u64 + 1000), "raise `ulimit -Hn`");
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Returns the agent's answer by HTTP, with its head.
pub fn get(node: &Node, path: &str) -> String {
    get_at(node, METRICS.parse().unwrap(), path)
}

/// Returns the answer by HTTP of a server that a namespace reaches, with its head.
pub fn get_at(ns: &Ns, server: SocketAddr, path: &str) -> String {
    try_get_at(ns, server, path).unwrap()
}

/// Does the same of a server that may close its port meanwhile: that resets the connection.
pub fn try_get_at(ns: &Ns, server: SocketAddr, path: &str) -> io::Result<String> {
    let Ok(mut stream) = ns.enter(|| TcpStream::connect(server)).unwrap() else {
        return Ok("nobody listens".into());
    };
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn words(command: &str) -> Vec<&str> {
    command.split(' ').collect()
}
