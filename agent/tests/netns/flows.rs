//! Traffic of every kind at once, which goes on while something happens to the node, and is counted at both ends.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;

use serde_json::json;
use xtask::lab::traffic::{Datagrams, Route, Stream};
use xtask::lab::{Lab, Mode, Pod, traffic};

const HOST_PORT: u16 = 9088;
const PORT: u16 = 8080;

/// A TCP stream and 1,000 UDP datagrams a second each way, on every kind of path.
pub struct Flows {
    paths: Vec<(&'static str, Stream, Datagrams)>,
    _pods: [Pod; 4],
}

impl Flows {
    /// Of pods of the first node of two.
    pub fn start(lab: &Lab) -> Self {
        let [client, near] = ["client", "near"].map(|name| lab.node(0).add_pod(name).unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        let ports = ["tcp", "udp"]
            .map(|protocol| json!({ "hostPort": HOST_PORT, "containerPort": PORT, "protocol": protocol }));
        let hosted = lab.node(0).add_pod_with("hosted", &json!({ "portMappings": ports })).unwrap();
        let host_port = Route::translated(SocketAddr::new(lab.node(0).address(), HOST_PORT), PORT);
        let paths = [
            ("pod → pod of this node", &*client, &*near, Route::to(near.address(), PORT)),
            ("pod → pod of another node", &*client, &*far, Route::to(far.address(), PORT)),
            ("pod → world", &*client, lab.world(), Route::to(lab.world_address(), PORT)),
            ("world → hostPort", lab.world(), &*hosted, host_port),
            ("node → pod", lab.node(0), &*near, Route::to(near.address(), PORT + 1)),
        ];
        let paths = paths.map(|(name, from, to, route)| {
            let stream = traffic::tcp_stream_on(from, to, route).unwrap();
            (name, stream, Datagrams::start(from, to, route).unwrap())
        });
        Self { paths: paths.into(), _pods: [client, near, far, hosted] }
    }

    /// Waits until a fair amount of everything has arrived.
    pub fn go_on(&self) {
        for (name, stream, datagrams) in &self.paths {
            stream.wait_for(1 << 20).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            datagrams.wait_for(300).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        }
    }

    /// Ends all, and prints what was sent and what has arrived. No datagram may be missing, and no stream broken.
    pub fn finish(self, title: &str, mode: Mode) {
        let mut text = format!("\n{title}, {mode:?}\n");
        writeln!(
            text,
            "| {:<27} | {:<9} | {:>12} | {:>12} | {:>5} |",
            "path", "", "sent", "received", "lost"
        )
        .unwrap();
        let mut lost = Vec::new();
        for (name, stream, datagrams) in self.paths {
            for (direction, count) in ["UDP →", "UDP ←"].into_iter().zip(datagrams.finish().unwrap()) {
                let (sent, received) = (count.sent, count.received);
                writeln!(
                    text,
                    "| {name:<27} | {direction:<9} | {sent:>12} | {received:>12} | {:>5} |",
                    count.lost()
                )
                .unwrap();
                if count.lost() > 0 {
                    lost.push(format!("{name}, {direction}: {count:?}"));
                }
            }
            // Fails when a byte is missing or wrong, or the connection was reset.
            let bytes = stream.finish().unwrap_or_else(|error| panic!("{name}: {error:#}")).bytes;
            writeln!(text, "| {name:<27} | {:<9} | {bytes:>12} | {bytes:>12} | {:>5} |", "TCP bytes", 0)
                .unwrap();
        }
        // Past the test harness, which shows only what a failed test has printed.
        std::io::stdout().write_all(text.as_bytes()).unwrap();
        assert_eq!(lost, [] as [String; 0]);
    }
}
