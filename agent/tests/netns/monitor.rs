//! The commands that ask the running agent: `podwire monitor` and `podwire log-level`.

use std::io::{BufRead as _, BufReader, Lines};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::lab::{Lab, Node, Pod};

use crate::sockets::{PATIENCE, udp};
use crate::sweep::metric;

/// A running `podwire monitor`. It ends with this value.
struct Monitor {
    child: Child,
    lines: Receiver<String>,
}

impl Monitor {
    fn start(node: &Node, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_podwire"))
            .args(["monitor", "--run-dir"])
            .arg(node.run_dir())
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let out: Lines<BufReader<ChildStdout>> = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || out.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// Sends a datagram to a group again and again until the monitor prints a line about it. The
    /// pod's kernel sends other packets that are dropped.
    fn line_about(&self, pod: &Pod, source: IpAddr) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            to_a_group(pod, source);
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) if line.contains("udp") => return line,
                Ok(_) | Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                error => panic!("podwire monitor does not print the drop: {error:?}"),
            }
        }
    }
}

impl Monitor {
    /// Returns the next line with a text, if it comes in time.
    fn line_with(&self, text: &str) -> Option<String> {
        let mut lines = std::iter::from_fn(|| self.lines.recv_timeout(PATIENCE).ok());
        lines.find(|line| line.contains(text))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
        let json = Monitor::start(node, &["--output", "json"]);
        let line = json.line_about(&pod, address);
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
        let text = Monitor::start(node, &[]);
        let line = text.line_about(&pod, address);
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
    let monitor = Monitor::start(node, &["--output", "json"]);
    monitor.line_about(&pod, pod.address());
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
