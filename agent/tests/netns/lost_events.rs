//! Events that the programs could not write: the monitor and the metrics tell the same number.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xtask::lab::{Families, Lab};

use crate::sockets::{UdpSocket, udp, wait_until};
use crate::sweep::metric;

#[test]
fn flows_that_do_not_fit_the_ring_are_counted_in_a_metric() {
    /// More events than the ring has room for.
    const SENT: u16 = 20_000;
    const FIRST: u16 = 10_000;
    let lab = Lab::builder().nodes(1).families(Families::V4).build().unwrap();
    let node = lab.node(0);
    let (client, server) = (node.add_pod("client").unwrap(), node.add_pod("server").unwrap());
    let name = format!("lab/{}", client.call().container_id);
    let monitor =
        node.monitor(&["--output", "json", "--kind", "flow", "--protocol", "udp", "--pod", &name]).unwrap();
    let send = |from: &UdpSocket, port| {
        from.send_to(b"podwire!", (server.address(), port)).unwrap();
    };
    let listens = wait_until(|| {
        send(&udp(&client, (client.address(), 0)), 5005);
        monitor.lines.recv_timeout(Duration::from_millis(100)).ok()
    });
    assert!(listens.is_some());
    while monitor.lines.recv_timeout(Duration::from_millis(300)).is_ok() {}
    let metric = |kind: &str| {
        let name = format!(r#"podwire_monitor_events_lost_total{{kind="{kind}"}}"#);
        metric(node, &name).parse::<u64>().unwrap()
    };
    assert_eq!(["flow", "translation", "packet"].map(metric), [0; 3]);
    // Nobody reads the ring meanwhile.
    let agent = Pid::from_raw(node.agent_pid().unwrap().try_into().unwrap()).unwrap();
    kill_process(agent, Signal::STOP).unwrap();
    let socket = udp(&client, (client.address(), 0));
    (FIRST..FIRST + SENT).for_each(|port| send(&socket, port));
    kill_process(agent, Signal::CONT).unwrap();
    let (mut shown, mut lost, mut missed) = (0, 0, 0);
    let all = wait_until(|| {
        while let Ok(line) = monitor.lines.recv_timeout(Duration::from_millis(100)) {
            let line: Value = serde_json::from_str(&line).unwrap();
            let number = |name: &str| line[name].as_u64().unwrap_or(0);
            (lost, missed) = (lost + number("lost"), missed + number("missed"));
            shown += u64::from(line["kind"] == "flow");
        }
        (shown + lost + missed >= SENT.into()).then_some(())
    });
    let told = format!("{shown} shown, {lost} lost, {missed} missed");
    assert!(all.is_some() && shown + lost + missed == u64::from(SENT) && lost > 0, "{told}");
    assert_eq!(["flow", "translation", "packet"].map(metric), [lost, 0, 0], "{told}");
}
