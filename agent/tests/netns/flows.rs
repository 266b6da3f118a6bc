//! Traffic of every kind at once. It goes on while something happens to the node, and both ends
//! count it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;
use xtask::lab::traffic::{Datagrams, Route, Stream};
use xtask::lab::{Lab, Mode, Pod, traffic};

use crate::service::{drop_invalid, iptables};

const HOST_PORT: u16 = 9088;
const PORT: u16 = 8080;
const OTHER_HOST_PORT: u16 = 9089;
const OTHER_PORT: u16 = 8081;
/// The pods' port behind services.
const SERVED: u16 = 8090;
const NEAR_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);
const FAR_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 21);

/// A TCP stream, and 1,000 UDP datagrams a second each way, on every kind of path.
pub struct Flows {
    paths: Vec<(&'static str, Stream, Datagrams)>,
    pods: [Pod; 4],
}

impl Flows {
    /// Starts the traffic of pods of the first node of two.
    pub fn start(lab: &Lab) -> Self {
        let [client, near] = ["client", "near"].map(|name| lab.node(0).add_pod(name).unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        let port = |host: u16, pod: u16, protocol: &str| json!({ "hostPort": host, "containerPort": pod, "protocol": protocol });
        let ports = [
            port(HOST_PORT, PORT, "tcp"),
            port(HOST_PORT, PORT, "udp"),
            port(OTHER_HOST_PORT, OTHER_PORT, "tcp"),
        ];
        let hosted = lab.node(0).add_pod_with("hosted", &json!({ "portMappings": ports })).unwrap();
        let host_port = Route::translated(SocketAddr::new(lab.node(0).address(), HOST_PORT), PORT);
        // A service in front of a pod of each node, and the rule that drops packets of connections
        // that connection tracking does not know.
        drop_invalid(lab);
        for (address, pod) in [(NEAR_SERVICE, &near), (FAR_SERVICE, &far)] {
            for protocol in ["tcp", "udp"] {
                let to = pod.address();
                iptables(
                    lab.node(0),
                    &format!(
                        "-t nat -A PREROUTING -d {address}/32 -p {protocol} --dport 80 -j DNAT --to-destination {to}:{SERVED}"
                    ),
                );
            }
        }
        let paths = [
            ("pod → pod of this node", &*client, &*near, Route::to(near.address(), PORT)),
            ("pod → pod of another node", &*client, &*far, Route::to(far.address(), PORT)),
            ("pod → world", &*client, lab.world(), Route::to(lab.world_address(), PORT)),
            ("world → hostPort", lab.world(), &*hosted, host_port),
            (
                "pod → service, pod of this node",
                &*client,
                &*near,
                Route::translated((NEAR_SERVICE, 80).into(), SERVED),
            ),
            (
                "pod → service, another node's",
                &*client,
                &*far,
                Route::translated((FAR_SERVICE, 80).into(), SERVED),
            ),
            ("node → pod", lab.node(0), &*near, Route::to(near.address(), PORT + 1)),
        ];
        let paths = paths.map(|(name, from, to, route)| {
            let stream = traffic::tcp_stream_on(from, to, route).unwrap();
            (name, stream, Datagrams::start(from, to, route).unwrap())
        });
        Self { paths: paths.into(), pods: [client, near, far, hosted] }
    }

    /// Waits until a fair amount of traffic has arrived on every path.
    pub fn go_on(&self) {
        for (name, stream, datagrams) in &self.paths {
            stream.wait_for(1 << 20).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            datagrams.wait_for(300).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        }
    }

    /// Makes new connections, to the world and to a hostPort.
    pub fn begin_anew(&self, lab: &Lab) {
        let [client, _, _, hosted] = &self.pods;
        let world = Route::to(lab.world_address(), PORT + 3);
        traffic::tcp_exchange_on(client, lab.world(), world, 1000).unwrap();
        let host_port =
            Route::translated(SocketAddr::new(lab.node(0).address(), OTHER_HOST_PORT), OTHER_PORT);
        traffic::tcp_exchange_on(lab.world(), hosted, host_port, 1000).unwrap();
    }

    /// Ends all traffic and prints what was sent and received. Asserts that no datagram is missing
    /// and no stream is broken.
    pub fn finish(self, title: &str, mode: Mode) {
        let mut text = format!("\n{title}, {mode:?}\n");
        writeln!(
            text,
            "| {:<31} | {:<9} | {:>12} | {:>12} | {:>5} |",
            "path", "", "sent", "received", "lost"
        )
        .unwrap();
        let mut lost = Vec::new();
        for (name, stream, datagrams) in self.paths {
            for (direction, count) in ["UDP →", "UDP ←"].into_iter().zip(datagrams.finish().unwrap()) {
                let (sent, received) = (count.sent, count.received);
                writeln!(
                    text,
                    "| {name:<31} | {direction:<9} | {sent:>12} | {received:>12} | {:>5} |",
                    count.lost()
                )
                .unwrap();
                if count.lost() > 0 {
                    lost.push(format!("{name}, {direction}: {count:?}"));
                }
            }
            // This fails if a byte is missing or wrong, or if the connection was reset.
            let bytes = stream.finish().unwrap_or_else(|error| panic!("{name}: {error:#}")).bytes;
            writeln!(text, "| {name:<31} | {:<9} | {bytes:>12} | {bytes:>12} | {:>5} |", "TCP bytes", 0)
                .unwrap();
        }
        // Print past the test harness, which shows only the output of failed tests.
        std::io::stdout().write_all(text.as_bytes()).unwrap();
        assert_eq!(lost, [] as [String; 0]);
    }
}
