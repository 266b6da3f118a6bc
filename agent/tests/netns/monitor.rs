//! The commands that ask the running agent: `podwire monitor` and `podwire log-level`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use serde_json::{Value, json};
use xtask::lab::traffic::{self, uninterrupted};
use xtask::lab::{Families, Lab, Monitor, Node, Pod};

use crate::sockets::{PATIENCE, connect_from, listen, udp, wait_until};
use crate::sweep::metric;

/// Starts `podwire monitor` on a node.
fn start(node: &Node, arguments: &[&str]) -> Monitor {
    node.monitor(arguments).unwrap()
}

/// Sends a datagram to a group again and again until the monitor prints a line about it. The pod's
/// kernel sends other packets that are dropped.
fn line_about(monitor: &Monitor, pod: &Pod, source: IpAddr) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        to_a_group(pod, source);
        match monitor.lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) if line.contains("udp") => return line,
            Ok(_) | Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
            error => panic!("podwire monitor does not print the drop: {error:?}"),
        }
    }
}

/// Sends a datagram that `from_pod` drops as `multicast`.
fn to_a_group(pod: &Pod, source: IpAddr) {
    let group: IpAddr = match source {
        IpAddr::V4(_) => Ipv4Addr::new(239, 1, 2, 3).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0x123).into(),
    };
    let socket = udp(pod, SocketAddr::new(source, 40000));
    socket.send_to(b"podwire!", SocketAddr::new(group, 5000)).unwrap();
}

#[test]
fn drops_are_shown_with_names_while_they_happen() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("talker").unwrap();
    let (link, name) = (pod.host_interface(), format!("lab/{}", pod.call().container_id));
    let index = node.ifindex(link).unwrap();
    for address in pod.addresses().to_vec() {
        let json = start(node, &["--output", "json"]);
        let line = line_about(&json, &pod, address);
        let mut shown: Value = serde_json::from_str(&line).unwrap();
        let time: jiff::Timestamp = serde_json::from_value(shown["time"].take()).unwrap();
        assert!(time.duration_until(time_of_day()).abs().as_secs() < 60, "{time}");
        let (group, length) = match address {
            IpAddr::V4(_) => ("239.1.2.3", 14 + 20 + 8 + 8),
            IpAddr::V6(_) => ("ff05::123", 14 + 40 + 8 + 8),
        };
        let expected = json!({
            "time": null, "kind": "drop", "reason": "multicast", "hook": "from_pod",
            "link": { "index": index, "name": link }, "protocol": "udp",
            "source": { "address": address, "port": 40000, "pod": name },
            "destination": { "address": group, "port": 5000 }, "length": length,
        });
        assert_eq!(shown, expected);
        let text = start(node, &[]);
        let line = line_about(&text, &pod, address);
        let rest = line.split_once(' ').unwrap().1;
        let ends = format!("{} ({name}) > {}", SocketAddr::new(address, 40000), expected_end(group));
        assert_eq!(rest, format!("drop multicast at from_pod of {link}: udp {ends}, {length} bytes"));
    }
}

#[expect(clippy::disallowed_methods, reason = "the monitor shows the time of day")]
fn time_of_day() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

#[test]
fn each_drop_of_a_flood_is_shown_or_counted_as_lost() {
    const SENT: u64 = 400;
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("flood").unwrap();
    let monitor = start(node, &["--output", "json"]);
    line_about(&monitor, &pod, pod.address());
    let (before, lost) = (dropped(node), lost(node));
    let socket = udp(&pod, SocketAddr::new(pod.address(), 40000));
    for _ in 0..SENT {
        socket.send_to(b"podwire!", "239.1.2.3:5001").unwrap();
    }
    assert_eq!(dropped(node) - before, SENT);
    let lost = self::lost(node) - lost;
    assert!(0 < lost && lost < SENT, "{lost} lost");
    // The datagrams that `line_about` has sent went to another port.
    for shown in 0..SENT - lost {
        monitor.line_with(r#""port":5001}"#).unwrap_or_else(|| panic!("{shown} shown, {lost} lost"));
    }
}

fn dropped(node: &Node) -> u64 {
    node.drops().unwrap().get("multicast").copied().unwrap_or(0)
}

fn lost(node: &Node) -> u64 {
    let name = r#"podwire_events_lost_total{reason="multicast"}"#;
    metric(node, name).parse().unwrap()
}

fn expected_end(group: &str) -> String {
    SocketAddr::new(group.parse().unwrap(), 5000).to_string()
}

/// Returns the next line of JSON with a text, if it comes in time.
fn shown(monitor: &Monitor, text: &str) -> Value {
    let line = monitor.line_with(text).unwrap_or_else(|| panic!("no line with {text}"));
    serde_json::from_str(&line).unwrap()
}

#[test]
fn new_flows_are_shown_with_names_and_known_ones_are_not() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let (client, server) = (node.add_pod("client").unwrap(), node.add_pod("server").unwrap());
    let [client_name, server_name] = [&client, &server].map(|pod| format!("lab/{}", pod.call().container_id));
    let json = start(node, &["--output", "json", "--kind", "flow,translation", "--pod", &client_name]);
    let text = start(node, &["--kind", "flow,translation", "--protocol", "tcp", "--port", "5002"]);
    // The monitors listen when they show something.
    let link = client.host_interface();
    for (own, other) in client.addresses().iter().zip(server.addresses()) {
        let listener = listen(&server, SocketAddr::new(*other, 5002));
        let connect = || {
            let connected = connect_from(&client, SocketAddr::new(*own, 0), listener.local_addr().unwrap());
            connected.unwrap()
        };
        while text.lines.recv_timeout(Duration::from_millis(200)).is_ok() {}
        let line = wait_until(|| {
            drop(connect());
            text.lines.recv_timeout(Duration::from_millis(100)).ok()
        });
        let (line, ends) = (line.unwrap(), format!("{} ({server_name}), ", SocketAddr::new(*other, 5002)));
        assert!(line.contains(&format!(" flow local at from_pod of {link}: tcp ")), "{line}");
        assert!(line.contains(&format!(" ({client_name}) > {ends}")), "{line}");
        // One connection, with data and its end, is one line.
        while json.lines.recv_timeout(Duration::from_millis(200)).is_ok() {}
        let mut stream = connect();
        let (mut accepted, from) = accept_from(&listener, stream.local_addr().unwrap());
        for _ in 0..3 {
            stream.write_all(b"podwire!").unwrap();
            accepted.read_exact(&mut [0; 8]).unwrap();
            accepted.write_all(b"podwire!").unwrap();
            stream.read_exact(&mut [0; 8]).unwrap();
        }
        drop((stream, accepted));
        let mut line: Value = shown(&json, &format!(r#""port":{}"#, from.port()));
        line["time"].take();
        line["length"].take();
        let expected = json!({
            "time": null, "kind": "flow", "path": "local", "hook": "from_pod",
            "link": { "index": node.ifindex(link).unwrap(), "name": link }, "protocol": "tcp",
            "source": { "address": own, "port": from.port(), "pod": client_name },
            "destination": { "address": other, "port": 5002, "pod": server_name }, "length": null,
        });
        assert_eq!(line, expected);
        assert_eq!(json.lines.recv_timeout(Duration::from_millis(300)).ok(), None);
    }
}

/// Accepts connections until one comes from an address.
fn accept_from(listener: &TcpListener, from: SocketAddr) -> (TcpStream, SocketAddr) {
    loop {
        let (stream, address) = uninterrupted(|| listener.accept()).unwrap();
        if address == from {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            return (stream, address);
        }
    }
}

#[test]
fn translations_are_shown_with_what_they_make_of_a_flow() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    let name = format!("lab/{}", pod.call().container_id);
    let monitor = start(node, &["--output", "json", "--kind", "translation", "--pod", &name]);
    let nobody = start(node, &["--output", "json", "--pod", "nobody"]);
    for (own, world) in pod.addresses().iter().zip(lab.world_addresses()) {
        let family = if own.is_ipv4() { "." } else { ":" };
        let socket = udp(&pod, SocketAddr::new(*own, 0));
        let line = wait_until(|| {
            let socket = udp(&pod, SocketAddr::new(*own, 0));
            socket.send_to(b"podwire!", SocketAddr::new(world, 5003)).unwrap();
            let line = monitor.lines.recv_timeout(Duration::from_millis(100)).ok()?;
            line.contains(&format!(r#""address":"{own}""#)).then_some(line)
        });
        drop(socket);
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let of_node =
            node.addresses().into_iter().find(|address| address.to_string().contains(family)).unwrap();
        assert_eq!(
            [&line["kind"], &line["path"], &line["translation"], &line["hook"], &line["source"]["pod"]],
            ["translation", "snat-out", "snat", "to_uplink", &name]
        );
        let translated = &line["translated"];
        let node_end = [&translated["source"]["address"], &translated["source"]["node"]];
        assert_eq!(node_end, [&of_node.to_string(), node.name()]);
        assert_eq!(translated["destination"], line["destination"]);
        assert_eq!(line["destination"], json!({ "address": world, "port": 5003 }));
    }
    assert_eq!(nobody.lines.try_recv().ok(), None);
}

#[test]
fn a_selected_pod_is_followed_when_it_comes_again() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let name = node.cni_call("ADD", "again", &Value::Null).container_id;
    let monitor = start(node, &["--output", "json", "--kind", "drop", "--protocol", "udp", "--pod", &name]);
    let other = node.add_pod("other").unwrap();
    let mut addresses = Vec::new();
    for _ in 0..2 {
        let pod = node.add_pod("again").unwrap();
        let line = wait_until(|| {
            to_a_group(&other, other.address());
            to_a_group(&pod, pod.address());
            monitor.lines.recv_timeout(Duration::from_millis(100)).ok()
        });
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(line["source"]["address"], json!(pod.address()));
        addresses.push(pod.address());
        pod.delete().unwrap();
        while monitor.lines.recv_timeout(Duration::from_millis(300)).is_ok() {}
    }
    assert_ne!(addresses[0], addresses[1]);
}

#[test]
fn of_100_000_connections_each_is_shown_or_counted() {
    const CONNECTIONS: u64 = 100_000;
    const PORT: u16 = 5004;
    let lab = Lab::builder().nodes(1).families(Families::V4).build().unwrap();
    let node = lab.node(0);
    let (client, server) = (node.add_pod("client").unwrap(), node.add_pod("server").unwrap());
    let name = format!("lab/{}", client.call().container_id);
    let arguments = ["--output", "json", "--kind", "flow", "--protocol", "tcp", "--pod", &name];
    let monitor = start(node, &arguments);
    let address = SocketAddr::new(server.address(), PORT);
    let marker = listen(&server, SocketAddr::new(server.address(), PORT + 1));
    let mark = || {
        // A closed port would do: the first packet counts.
        drop(
            connect_from(&client, SocketAddr::new(client.address(), 0), marker.local_addr().unwrap())
                .unwrap(),
        );
        drop(uninterrupted(|| marker.accept()).unwrap());
    };
    let is_marker = |line: &str| line.contains(&format!(r#""port":{},"#, PORT + 1));
    let first = wait_until(|| {
        mark();
        monitor.lines.recv_timeout(Duration::from_millis(100)).ok()
    });
    assert!(is_marker(&first.unwrap()));
    while monitor.lines.recv_timeout(Duration::from_millis(300)).is_ok() {}
    let (memory, again) = (memory_of(node), retransmissions(&client));
    let listener = listen(&server, address);
    // Otherwise the client would often wait a second to send its first packet again.
    rustix::net::listen(&listener, 4096).unwrap();
    let accepting = std::thread::spawn(move || {
        (0..CONNECTIONS).for_each(|_| drop(uninterrupted(|| listener.accept()).unwrap()));
    });
    let connecting = client.enter(|| {
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(address).unwrap();
            // Without a time in which the port cannot be used again.
            sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        }
    });
    connecting.unwrap();
    accepting.join().unwrap();
    let sent = CONNECTIONS + retransmissions(&client) - again;
    let grown = memory_of(node).saturating_sub(memory);
    let (mut shown, mut missing, mut last) = (0, 0, jiff::Timestamp::UNIX_EPOCH);
    let counted = wait_until(|| {
        while let Ok(line) = monitor.lines.recv_timeout(Duration::from_millis(100)) {
            let line: Value = serde_json::from_str(&line).unwrap();
            let number = |name: &str| line[name].as_u64().unwrap_or(0);
            missing += number("lost") + number("missed");
            if let Some(time) = line["time"].as_str() {
                let time: jiff::Timestamp = time.parse().unwrap();
                assert!(last < time, "{last} is shown before {time}");
                assert_eq!([&line["source"]["pod"], &line["path"]], [&*name, "local"], "{line}");
                last = time;
                shown += 1;
            }
        }
        (shown + missing >= sent).then_some(())
    });
    println!("{shown} shown, {missing} lost or missed, {grown} KiB more memory of the agent");
    assert_eq!(counted.map(|()| shown + missing), Some(sent), "{shown} shown, {missing} lost or missed");
    assert!(shown > 0 && grown < 8 << 10, "the agent has grown by {grown} KiB");
}

/// Returns the memory of the agent that is in use, KiB.
fn memory_of(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.agent_pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Returns how many times a pod has sent the first packet of a connection again.
fn retransmissions(pod: &Pod) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let text = pod.enter(read).unwrap();
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "TCPSynRetrans");
    found.unwrap().1.parse().unwrap()
}

#[test]
fn without_an_agent_the_monitor_says_so() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let run = lab.node(0).run_dir().to_string_lossy().into_owned();
    let output = lab.node(0).podwire(&["monitor", "--run-dir", &run]).unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("operator.sock") && said.contains("does it run on this node?"), "{said}");
}

#[test]
fn what_is_logged_changes_while_the_agent_runs() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let run = node.run_dir().to_string_lossy().into_owned();
    let set = |level: &str| node.podwire(&["log-level", level, "--run-dir", &run]).unwrap();
    let debug_lines = || node.agent_log().lines().filter(|line| line.contains("DEBUG")).count();
    assert_eq!(debug_lines(), 0);
    let refused = set("podwire=loud");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("podwire=loud"), "{said}");
    assert!(set("warn,podwire::daemon::executor=debug").status.success());
    node.add_pod("seen").unwrap().delete().unwrap();
    let log = node.agent_log();
    assert!(log.contains("DEBUG podwire::daemon::executor"), "{log}");
    assert!(set("info").status.success());
    let before = debug_lines();
    node.add_pod("unseen").unwrap().delete().unwrap();
    assert_eq!(debug_lines(), before);
}

#[test]
fn packets_are_captured_at_each_hook_where_tcpdump_sees_none() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let (client, server) = (node.add_pod("client").unwrap(), node.add_pod("server").unwrap());
    let far = lab.node(1).add_pod("far").unwrap();
    let folder = tempfile::tempdir().unwrap();
    for family in 0..2 {
        let [here, near, there] = [&client, &server, &far].map(|pod| pod.addresses()[family]);
        let path = folder.path().join(format!("{family}.pcapng"));
        let name = format!("lab/{}", client.call().container_id);
        let arguments =
            ["--pcap", path.to_str().unwrap(), "--pod", &name, "--port", "8080", "--protocol", "tcp"];
        let monitor = start(node, &arguments);
        // The agent answers a listener only when it has something to tell.
        let listens = || {
            traffic::tcp_exchange(&client, &server, near, 8080, 1000).unwrap();
            fs::metadata(&path).is_ok_and(|file| file.len() > 1000).then_some(())
        };
        assert!(wait_until(listens).is_some());
        traffic::tcp_exchange(&client, &far, there, 8080, 1 << 16).unwrap();
        traffic::tcp_exchange(&server, &far, there, 8080, 1 << 16).unwrap();
        let shown = || {
            let output = Command::new("tcpdump").args(["-nn", "-r"]).arg(&path).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let end = |address: IpAddr, port: &str| format!("{address}.{port}");
        // Deliveries by `bpf_redirect_peer` pass no hook of the receiver's link: the sender's hook
        // sees them, in both directions.
        let all = wait_until(|| {
            let shown = shown();
            let has = |from: String, to: String| {
                shown.lines().any(|line| line.contains(&from) && line.contains(&to))
            };
            let is_complete = has(end(here, ""), end(near, "8080"))
                && has(end(near, "8080"), end(here, ""))
                && has(end(here, ""), end(there, "8080"))
                && has(end(there, "8080"), end(here, ""));
            is_complete.then_some(shown)
        });
        let all = all.unwrap_or_else(|| panic!("{}", shown()));
        let other = format!("{}.", server.addresses()[family]);
        let strange = |line: &&str| line.contains(&other) && !line.contains(&format!("{here}."));
        assert_eq!(all.lines().find(strange), None, "a packet of another pod");
        let file = fs::read(&path).unwrap();
        let has = |text: &str| file.windows(text.len()).any(|bytes| bytes == text.as_bytes());
        assert!(has(&format!("from_pod of {}: tcp", client.host_interface())));
        assert!(has("from_uplink of eth0: udp") && has(" around tcp ") && has(&name));
        drop(monitor);
    }
    // With nobody listening, the programs write nothing more: see `costs.json`.
    traffic::tcp_exchange(&client, &far, far.address(), 8080, 1 << 16).unwrap();
}
