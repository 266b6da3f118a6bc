//! Tests with one or more nodes in network namespaces and with real packets. They show what the
//! kernel's test run of one program cannot show.
//!
//! Needs root, and the tools that `cargo xtask setup` installs.

mod agent_away;
mod backends;
mod bandwidth;
mod bare_links;
mod bpftool;
mod capabilities;
mod changes;
mod check;
mod checksums;
mod cni;
mod commands;
mod config_file;
mod disciplines;
mod disk;
mod families;
mod faults;
mod flannel;
mod floods;
mod flow_list;
mod flows;
mod footprint;
mod forward_policy;
mod forwarded_tunnel;
mod forwarding_pod;
mod headers;
mod host_port_life;
mod host_ports;
mod host_processes;
mod icmp_errors;
mod idle_clients;
mod install;
mod internal_ip;
mod ipsec;
mod ipv6_router;
mod known_flows;
mod kube_proxy;
mod large;
mod life;
mod link_addresses;
mod links;
mod loopback;
mod lost_events;
mod monitor;
mod mtu;
mod mtu_table;
mod namespaces;
mod neighbour;
mod node_changes;
mod node_list;
mod offload;
mod other_pods;
#[path = "../prog/packets.rs"]
#[allow(dead_code, reason = "the packet tables use more of it")]
mod packets;
#[path = "../prog/packets6.rs"]
#[allow(dead_code, reason = "the packet tables use more of it")]
mod packets6;
mod paths;
mod plugin;
mod prometheus;
mod reference;
mod refusals;
mod refused;
mod restart;
mod seccomp;
mod second_agent;
mod service;
mod service_affinity;
mod service_health;
mod service_list;
mod service_load;
mod service_processes;
mod service_table;
mod service_zones;
mod services;
mod services_outside;
mod services_shown;
mod snat;
mod sockets;
mod stack_flows;
mod status;
mod storm;
mod strangers;
mod sweep;
mod switches;
mod sysctl_dir;
mod through_another_node;
mod uninstall;
mod upgrade;
mod wiped;
mod world;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use xtask::lab::{Lab, Node, Ns, Pod, traffic};

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is not IPv4"),
    }
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(address) => address,
        IpAddr::V4(address) => panic!("{address} is not IPv6"),
    }
}

/// The places of both families in the order of a lab that has both.
const FAMILIES: [usize; 2] = [0, 1];

/// The unspecified address of each family.
const ANY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// A pod or a node, which has an address of each family.
trait Place: Deref<Target = Ns> {
    fn all_addresses(&self) -> Vec<IpAddr>;

    /// Returns the namespace and its address of a family.
    fn end(&self, family: usize) -> (&Ns, IpAddr) {
        (self, self.all_addresses()[family])
    }
}

impl Place for Pod {
    fn all_addresses(&self) -> Vec<IpAddr> {
        self.addresses().to_vec()
    }
}

impl Place for Node {
    fn all_addresses(&self) -> Vec<IpAddr> {
        self.addresses()
    }
}

/// Returns the world and its address of a family.
fn world_end(lab: &Lab, family: usize) -> (&Ns, IpAddr) {
    (lab.world(), lab.world_addresses()[family])
}

/// Runs `iptables` or `ip6tables` in a namespace.
fn ip_tables(ns: &Ns, family: usize, rule: &str) {
    let tool = ["iptables", "ip6tables"][family];
    ns.exec(&[&[tool, "-w"], &rule.split_whitespace().collect::<Vec<_>>()[..]].concat()).unwrap();
}

/// Makes IPv6 sockets of these namespaces leave their port to IPv4 sockets, so that servers of both
/// families listen on one port.
fn keep_families_apart(namespaces: &[&Ns]) {
    namespaces.iter().for_each(|ns| ns.sysctl("net/ipv6/bindv6only", "1").unwrap());
}

/// Returns an address as it ends in a dumped map.
fn dumped(address: IpAddr) -> String {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    format!("{}]", octets.iter().map(u8::to_string).collect::<Vec<_>>().join(","))
}

/// Exchanges a stream with a pod or a node by each of its addresses. Asserts that the client's
/// address is not translated.
#[track_caller]
fn reach(client: &Ns, server: &impl Place) {
    for address in server.all_addresses() {
        let exchange = traffic::tcp_exchange(client, server, address, 8080, 1 << 20);
        let exchange = exchange.unwrap_or_else(|error| panic!("{} by {address}: {error:#}", server.name()));
        assert_eq!(exchange.peer_seen_by_server, exchange.client, "{} by {address}", server.name());
    }
}
