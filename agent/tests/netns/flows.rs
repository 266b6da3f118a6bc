//! Traffic of every kind at once. It goes on while something happens to the node, and both ends
//! count it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use podwire_core::model::Family;
use serde_json::json;
use xtask::lab::traffic::{Datagrams, Route, Stream};
use xtask::lab::{Lab, Mode, Pod, traffic};

use crate::service::{FAR, NEAR, drop_invalid, iptables_of};

const HOST_PORT: u16 = 9088;
const PORT: u16 = 8080;
const OTHER_HOST_PORT: u16 = 9089;
const OTHER_PORT: u16 = 8081;
/// The pods' port behind services.
const SERVED: u16 = 8090;

/// A TCP stream, and 1,000 UDP datagrams a second each way, on every kind of path.
pub struct Flows {
    paths: Vec<(String, Stream, Datagrams)>,
    pods: [Pod; 4],
}

impl Flows {
    /// Starts the traffic of pods of the first node of two.
    ///
    /// Between pods and from a node to a pod, there is a path of each family of the lab. The others
    /// are of the lab's first family: more would be too much for two cores.
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
        let mut paths = Vec::new();
        for (number, (to_near, to_far)) in (0..).zip(near.addresses().iter().zip(far.addresses())) {
            let family = Family::of(*to_near);
            // Servers listen for both families, so each needs ports of its own.
            let port = PORT + 100 * number;
            paths.extend([
                (format!("pod → pod of this node, {family}"), &*client, &*near, Route::to(*to_near, port)),
                (format!("pod → pod of another node, {family}"), &*client, &*far, Route::to(*to_far, port)),
                (format!("node → pod, {family}"), lab.node(0), &*near, Route::to(*to_near, port + 1)),
            ]);
        }
        serve(lab, [(NEAR, &near), (FAR, &far)]);
        let (world, family) = (lab.world_addresses()[0], Family::of(client.address()));
        let service = |of: [IpAddr; 2]| Route::translated((like(client.address(), of), 80).into(), SERVED);
        let of_first = [
            ("pod → world", &*client, lab.world(), Route::to(world, PORT)),
            ("world → hostPort", lab.world(), &*hosted, host_port(lab, HOST_PORT, PORT)),
            ("pod → service, pod of this node", &*client, &*near, service(NEAR)),
            ("pod → service, another node's", &*client, &*far, service(FAR)),
        ];
        paths.extend(of_first.map(|(name, from, to, route)| (format!("{name}, {family}"), from, to, route)));
        let started = paths.into_iter().map(|(name, from, to, route)| {
            let stream = traffic::tcp_stream_on(from, to, route).unwrap();
            (name, stream, Datagrams::start(from, to, route).unwrap())
        });
        Self { paths: started.collect(), pods: [client, near, far, hosted] }
    }

    /// Waits until a fair amount of traffic has arrived on every path.
    pub fn go_on(&self) {
        for (name, stream, datagrams) in &self.paths {
            stream.wait_for(1 << 20).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            datagrams.wait_for(300).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        }
    }

    /// Makes new connections: to a pod of the other node, to the world and to a hostPort.
    pub fn begin_anew(&self, lab: &Lab) {
        let [client, _, far, hosted] = &self.pods;
        for address in far.addresses() {
            traffic::tcp_exchange(client, far, *address, PORT + 3, 1000).unwrap();
        }
        let world = Route::to(lab.world_addresses()[0], PORT + 3);
        traffic::tcp_exchange_on(client, lab.world(), world, 1000).unwrap();
        let route = host_port(lab, OTHER_HOST_PORT, OTHER_PORT);
        traffic::tcp_exchange_on(lab.world(), hosted, route, 1000).unwrap();
    }

    /// Ends all traffic and prints what was sent and received. Asserts that no datagram is missing
    /// and no stream is broken.
    pub fn finish(self, title: &str, mode: Mode) {
        let mut text = format!("\n{title}, {mode:?}\n");
        writeln!(
            text,
            "| {:<38} | {:<9} | {:>12} | {:>12} | {:>5} |",
            "path", "", "sent", "received", "lost"
        )
        .unwrap();
        let mut lost = Vec::new();
        for (name, stream, datagrams) in self.paths {
            for (direction, count) in ["UDP →", "UDP ←"].into_iter().zip(datagrams.finish().unwrap()) {
                let (sent, received) = (count.sent, count.received);
                writeln!(
                    text,
                    "| {name:<38} | {direction:<9} | {sent:>12} | {received:>12} | {:>5} |",
                    count.lost()
                )
                .unwrap();
                if count.lost() > 0 {
                    lost.push(format!("{name}, {direction}: {count:?}"));
                }
            }
            // This fails if a byte is missing or wrong, or if the connection was reset.
            let bytes = stream.finish().unwrap_or_else(|error| panic!("{name}: {error:#}")).bytes;
            writeln!(text, "| {name:<38} | {:<9} | {bytes:>12} | {bytes:>12} | {:>5} |", "TCP bytes", 0)
                .unwrap();
        }
        // Print past the test harness, which shows only the output of failed tests.
        std::io::stdout().write_all(text.as_bytes()).unwrap();
        assert_eq!(lost, [] as [String; 0]);
    }
}

fn host_port(lab: &Lab, host: u16, pod: u16) -> Route {
    Route::translated(SocketAddr::new(lab.node(0).addresses()[0], host), pod)
}

/// Puts a service of the lab's first family in front of each pod, and adds the rule that drops
/// packets of connections that connection tracking does not know.
fn serve(lab: &Lab, services: [([IpAddr; 2], &Pod); 2]) {
    drop_invalid(lab);
    for (service, pod) in services {
        let service = like(pod.address(), service);
        let to = SocketAddr::new(pod.address(), SERVED);
        for protocol in ["tcp", "udp"] {
            let rule = format!(
                "-t nat -A PREROUTING -d {service} -p {protocol} --dport 80 -j DNAT --to-destination {to}"
            );
            iptables_of(service, lab.node(0), &rule);
        }
    }
}

/// Returns the address of the same family as another.
fn like(address: IpAddr, of: [IpAddr; 2]) -> IpAddr {
    Family::of(address).first_of(of).unwrap()
}
