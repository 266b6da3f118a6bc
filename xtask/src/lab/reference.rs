//! The network that Podwire replaces: the reference plugins `bridge`, `host-local` and `portmap`,
//! and flannel's set-up around them.
//!
//! Its nodes and pods have the families of the lab.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::lab::{CniCall, CniOutput, Lab, Node};

/// The folder of Debian's containernetworking-plugins.
const PLUGINS: &str = "/usr/lib/cni";
const BRIDGE: &str = "cni0";
/// The names of flannel's devices, with IPv4 and with IPv6 outside. The lab makes them with
/// flannel's defaults: VNI 1 and port 8472.
pub const VXLAN: &str = "flannel.1";
/// See [`VXLAN`].
pub const VXLAN6: &str = "flannel-v6.1";

/// The differences between the families.
#[derive(Debug)]
struct Family {
    /// The network that contains all podCIDRs.
    cluster: &'static str,
    /// The length of an address, bits.
    bits: u8,
    any: &'static str,
    multicast: &'static str,
    iptables: &'static str,
    /// The family's word in nftables, and the name of flannel's table.
    nft: &'static str,
    table: &'static str,
    /// Flannel's device. Flannel has one for each family, with outer headers of the same family.
    device: &'static str,
    /// Flannel's annotations of a device and of its address.
    annotations: [&'static str; 2],
    /// The bytes that VXLAN adds to a packet.
    overhead: u32,
    /// Switches of a node with a bridge, and their values. Kubernetes requires those with 1.
    sysctls: &'static [(&'static str, &'static str)],
}

const IPV4: Family = Family {
    cluster: "10.244.0.0/16",
    bits: 32,
    any: "0.0.0.0/0",
    multicast: "224.0.0.0/4",
    iptables: "iptables",
    nft: "ip",
    table: "flannel-ipv4",
    device: VXLAN,
    annotations: ["backend-data", "public-ip"],
    overhead: 50,
    sysctls: &[("net/bridge/bridge-nf-call-iptables", "1")],
};

const IPV6: Family = Family {
    cluster: "fd00:10:244::/48",
    bits: 128,
    any: "::/0",
    multicast: "ff00::/8",
    iptables: "ip6tables",
    nft: "ip6",
    table: "flannel-ipv6",
    device: VXLAN6,
    annotations: ["backend-v6-data", "public-ipv6"],
    overhead: 70,
    sysctls: &[
        ("net/bridge/bridge-nf-call-ip6tables", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        // Otherwise the bridge's address could not be used for a second.
        ("net/ipv6/conf/default/accept_dad", "0"),
    ],
};

/// What a node has of a family.
#[derive(Debug)]
struct Side<'a> {
    family: &'static Family,
    /// The InternalIP.
    address: IpAddr,
    pod_cidr: &'a str,
}

impl Side<'_> {
    /// Returns the address of flannel's device: the first one of the podCIDR.
    fn network_address(&self) -> &str {
        self.pod_cidr.split('/').next().unwrap_or_default()
    }
}

/// Returns the sides of a node, in the order of the lab's families.
fn sides(node: &Node) -> Vec<Side<'_>> {
    let side = |(address, pod_cidr): (IpAddr, _)| {
        let family = if address.is_ipv4() { &IPV4 } else { &IPV6 };
        Side { family, address, pod_cidr }
    };
    node.addresses().into_iter().zip(node.pod_cidrs()).map(side).collect()
}

/// The connection between the nodes' bridges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// A route for each node, as flannel's `host-gw` has it.
    Routes,
    /// One kernel VXLAN device, as flannel's `vxlan` has it. Each node has a route, a neighbour
    /// entry and an FDB entry, all permanent.
    Vxlan,
}

/// The component that masquerades what pods send to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// The plugin `bridge`, with its `ipMasq`.
    Bridge,
    /// Flannel's rules, written with `iptables`.
    Iptables,
    /// Flannel's rules, written with nftables.
    Nftables,
}

/// Joins the nodes of a lab without agents, and writes flannel's rules.
///
/// # Errors
/// When the kernel or a tool refuses.
pub fn set_up(lab: &Lab, join: Join, masquerade: Masquerade) -> Result<()> {
    for node in lab.nodes() {
        set_up_node(node, join, masquerade)?;
    }
    for node in lab.nodes() {
        for other in lab.nodes().iter().filter(|other| other.name() != node.name()) {
            match join {
                Join::Routes => add_routes(node, other)?,
                Join::Vxlan => add_peer(node, other, &macs(other)?)?,
            }
        }
    }
    Ok(())
}

/// Sets up one node: flannel's rules, and with [`Join::Vxlan`] flannel's devices.
///
/// # Errors
/// When the kernel or a tool refuses.
pub fn set_up_node(node: &Node, join: Join, masquerade: Masquerade) -> Result<()> {
    for side in sides(node) {
        let Family { device, bits, sysctls, .. } = side.family;
        sysctls.iter().try_for_each(|(sysctl, value)| node.sysctl(sysctl, value))?;
        match masquerade {
            Masquerade::Bridge => {}
            Masquerade::Iptables => iptables_rules(node, &side)?,
            Masquerade::Nftables => nftables_rules(node, &side)?,
        }
        if join == Join::Vxlan {
            node.ip(&format!(
                "link add name {device} type vxlan id 1 dstport 8472 local {} dev {} nolearning\naddress add {}/{bits} dev {device}\nlink set dev {device} up\n",
                side.address,
                node.uplink(),
                side.network_address()
            ))?;
        }
    }
    Ok(())
}

/// Adds the routes of flannel's `host-gw` to another node's pods.
///
/// # Errors
/// When the kernel refuses.
pub fn add_routes(node: &Node, other: &Node) -> Result<()> {
    let route = |side: Side<'_>| format!("route add {} via {}\n", side.pod_cidr, side.address);
    node.ip(&sides(other).into_iter().map(route).collect::<String>())
}

/// Adds the entries that flannel adds on a node when it learns of another node. `macs` are the link
/// addresses of the other node's devices; flannel reads them from that node's annotations.
///
/// # Errors
/// When the kernel refuses.
pub fn add_peer(node: &Node, other: &Node, macs: &[[u8; 6]]) -> Result<()> {
    for (side, mac) in sides(other).iter().zip(macs) {
        let (mac, gateway, device) = (format_mac(*mac), side.network_address(), side.family.device);
        node.ip(&format!(
            "neighbour add {gateway} lladdr {mac} dev {device} nud permanent\nroute add {} via {gateway} dev {device} onlink\n",
            side.pod_cidr
        ))?;
        let address = side.address.to_string();
        let entry = ["bridge", "fdb", "add", &mac, "dev", device, "dst", &address, "self", "permanent"];
        node.exec(&entry)?;
    }
    Ok(())
}

/// Returns the link addresses of a node's devices, in the order of its families.
///
/// # Errors
/// When a device is missing.
pub fn macs(node: &Node) -> Result<Vec<[u8; 6]>> {
    sides(node).iter().map(|side| node.mac(side.family.device)).collect()
}

/// Returns the annotations that flannel writes to a Node object. `macs` are the link addresses of
/// the node's devices, in the order of its families.
pub fn annotations(node: &Node, macs: &[[u8; 6]]) -> Value {
    let mut annotations = json!({
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
    });
    for (Side { family, address, .. }, mac) in sides(node).iter().zip(macs) {
        let [data, public] = family.annotations.map(|name| format!("flannel.alpha.coreos.com/{name}"));
        annotations[data] = json!({ "VNI": 1, "VtepMAC": format_mac(*mac) }).to_string().into();
        annotations[public] = json!(address);
    }
    annotations
}

/// Returns a link address as `ip` prints it.
pub fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Returns the calls that add a pod, in order. Their MTU is 1500 bytes of the uplink less the
/// overhead of `join`. Flannel's figure with both families is that of IPv4, although its IPv6
/// device takes 20 bytes less.
pub fn calls(
    node: &Node,
    pod: &str,
    join: Join,
    masquerade: Masquerade,
    runtime_config: &Value,
) -> Vec<CniCall> {
    let ours = node.cni_call("ADD", pod, runtime_config);
    let addresses = node.cni_state_dir().join("networks");
    let sides = sides(node);
    let overhead = sides.iter().map(|side| side.family.overhead).min().unwrap_or_default();
    let ranges: Vec<_> = sides.iter().map(|side| json!([{ "subnet": side.pod_cidr }])).collect();
    let routes: Vec<_> = sides.iter().map(|side| json!({ "dst": side.family.any })).collect();
    let bridge = json!({
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": true,
        "ipMasq": masquerade == Masquerade::Bridge,
        "hairpinMode": true,
        "mtu": if join == Join::Vxlan { 1500 - overhead } else { 1500 },
        "ipam": {
            "type": "host-local",
            "dataDir": addresses,
            "ranges": ranges,
            "routes": routes,
        },
    });
    let portmap = json!({
        "type": "portmap",
        "snat": true,
        "capabilities": { "portMappings": true },
        "runtimeConfig": runtime_config,
    });
    [bridge, portmap]
        .map(|mut config| {
            config["cniVersion"] = json!("1.0.0");
            config["name"] = json!("reference");
            let plugin = Path::new(PLUGINS).join(config["type"].as_str().unwrap_or_default());
            ours.of_plugin(&plugin, config)
        })
        .into()
}

/// Runs an ADD by a chain of plugins. Each plugin gets the answer of the one before it (CNI
/// specification, "Section 3"). Returns the last answer, or the first failure.
///
/// # Errors
/// When a plugin cannot be run.
pub fn add(calls: &mut [CniCall]) -> Result<CniOutput> {
    let mut previous = Value::Null;
    let mut last = None;
    let mut took = Duration::ZERO;
    for call in calls {
        if !previous.is_null() {
            call.config["prevResult"] = previous;
        }
        let mut output = call.run()?;
        took += output.took;
        output.took = took;
        previous = output.answer.clone();
        let failed = !output.success;
        last = Some(output);
        if failed {
            break;
        }
    }
    last.context("an empty chain")
}

/// Runs a DEL by a chain of plugins, in reverse order.
///
/// # Errors
/// When one of them fails. The plugins before it in the chain are not called then.
pub fn delete(calls: &[CniCall]) -> Result<()> {
    for call in calls.iter().rev() {
        let output = call.with_command("DEL").run()?;
        ensure!(output.success, "DEL failed: {}\n{}", output.answer, output.stderr);
    }
    Ok(())
}

/// Writes flanneld's rules for `--ip-masq`, which its manifest sets. They masquerade packets from
/// pods to the world, and packets from outside the pod network to pods of other nodes. They also
/// accept all forwarded packets from and to pods.
fn iptables_rules(node: &Node, side: &Side<'_>) -> Result<()> {
    let (own, Family { cluster, multicast, iptables, .. }) = (side.pod_cidr, side.family);
    for rule in [
        "-t nat -N FLANNEL-POSTRTG".to_owned(),
        "-t nat -A POSTROUTING -j FLANNEL-POSTRTG".to_owned(),
        format!("-t nat -A FLANNEL-POSTRTG -s {own} -d {cluster} -j RETURN"),
        format!("-t nat -A FLANNEL-POSTRTG -s {cluster} -d {own} -j RETURN"),
        format!("-t nat -A FLANNEL-POSTRTG ! -s {cluster} -d {own} -j RETURN"),
        format!("-t nat -A FLANNEL-POSTRTG -s {cluster} ! -d {multicast} -j MASQUERADE --random-fully"),
        format!("-t nat -A FLANNEL-POSTRTG ! -s {cluster} -d {cluster} -j MASQUERADE --random-fully"),
        format!("-A FORWARD -s {cluster} -j ACCEPT"),
        format!("-A FORWARD -d {cluster} -j ACCEPT"),
    ] {
        let command: Vec<&str> = [*iptables, "-w"].into_iter().chain(rule.split(' ')).collect();
        node.exec(&command)?;
    }
    Ok(())
}

/// Writes the same rules in one nftables table.
fn nftables_rules(node: &Node, side: &Side<'_>) -> Result<()> {
    let (own, Family { cluster, multicast, nft, table, .. }) = (side.pod_cidr, side.family);
    node.exec(&[
        "nft",
        &format!(
            "table {nft} {table} {{
                chain postrtg {{
                    type nat hook postrouting priority srcnat;
                    {nft} saddr {own} {nft} daddr {cluster} return
                    {nft} saddr {cluster} {nft} daddr {own} return
                    {nft} saddr != {cluster} {nft} daddr {own} return
                    {nft} saddr {cluster} {nft} daddr != {multicast} masquerade fully-random
                    {nft} saddr != {cluster} {nft} daddr {cluster} masquerade fully-random
                }}
                chain forward {{
                    type filter hook forward priority filter;
                    {nft} saddr {cluster} accept
                    {nft} daddr {cluster} accept
                }}
            }}"
        ),
    ])?;
    Ok(())
}
