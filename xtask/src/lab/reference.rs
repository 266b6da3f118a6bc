//! The network that Podwire replaces: the reference plugins `bridge`, `host-local` and `portmap`,
//! and flannel's set-up around them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::lab::{CniCall, CniOutput, Lab, Node};

/// The folder of Debian's containernetworking-plugins.
const PLUGINS: &str = "/usr/lib/cni";
const BRIDGE: &str = "cni0";
/// The network that contains all podCIDRs.
const CLUSTER: &str = "10.244.0.0/16";
/// The name of flannel's device. The lab makes it with flannel's defaults: VNI 1 and port 8472.
pub const VXLAN: &str = "flannel.1";
/// The bytes that VXLAN over IPv4 adds to a packet.
const VXLAN_OVERHEAD: u32 = 50;

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
                Join::Routes => {
                    node.ip(&format!("route add {} via {}\n", other.pod_cidr(), other.address()))?;
                }
                Join::Vxlan => add_peer(node, other, other.mac(VXLAN)?)?,
            }
        }
    }
    Ok(())
}

/// Sets up one node: flannel's rules, and with [`Join::Vxlan`] flannel's device.
///
/// # Errors
/// When the kernel or a tool refuses.
pub fn set_up_node(node: &Node, join: Join, masquerade: Masquerade) -> Result<()> {
    // Kubernetes requires this setting on a node with a bridge.
    node.sysctl("net/bridge/bridge-nf-call-iptables", "1")?;
    match masquerade {
        Masquerade::Bridge => {}
        Masquerade::Iptables => iptables_rules(node)?,
        Masquerade::Nftables => nftables_rules(node)?,
    }
    if join == Join::Vxlan {
        node.ip(&format!(
            "link add name {VXLAN} type vxlan id 1 dstport 8472 local {} dev {} nolearning\naddress add {}/32 dev {VXLAN}\nlink set dev {VXLAN} up\n",
            node.address(),
            node.uplink(),
            network_address(node)
        ))?;
    }
    Ok(())
}

/// Adds the entries that flannel adds on a node when it learns of another node. `mac` is the link
/// address of the other node's device; flannel reads it from that node's annotation.
///
/// # Errors
/// When the kernel refuses.
pub fn add_peer(node: &Node, other: &Node, mac: [u8; 6]) -> Result<()> {
    let (mac, gateway) = (format_mac(mac), network_address(other));
    node.ip(&format!(
        "neighbour add {gateway} lladdr {mac} dev {VXLAN} nud permanent\nroute add {} via {gateway} dev {VXLAN} onlink\n",
        other.pod_cidr()
    ))?;
    let address = other.address().to_string();
    let entry = ["bridge", "fdb", "add", &mac, "dev", VXLAN, "dst", &address, "self", "permanent"];
    node.exec(&entry)?;
    Ok(())
}

/// Returns the annotations that flannel writes to a Node object. `mac` is the link address of the
/// node's device.
pub fn annotations(node: &Node, mac: [u8; 6]) -> Value {
    let data = json!({ "VNI": 1, "VtepMAC": format_mac(mac) }).to_string();
    json!({
        "flannel.alpha.coreos.com/backend-data": data,
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/public-ip": node.address(),
    })
}

fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Returns the calls that add a pod, in order. Their MTU is 1500 bytes of the uplink less the
/// overhead of `join`.
pub fn calls(
    node: &Node,
    pod: &str,
    join: Join,
    masquerade: Masquerade,
    runtime_config: &Value,
) -> Vec<CniCall> {
    let ours = node.cni_call("ADD", pod, runtime_config);
    let addresses = node.cni_state_dir().join("networks");
    let bridge = json!({
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": true,
        "ipMasq": masquerade == Masquerade::Bridge,
        "hairpinMode": true,
        "mtu": if join == Join::Vxlan { 1500 - VXLAN_OVERHEAD } else { 1500 },
        "ipam": {
            "type": "host-local",
            "dataDir": addresses,
            "ranges": [[{ "subnet": node.pod_cidr() }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
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

/// Returns the address of flannel's device: the first one of the podCIDR.
fn network_address(node: &Node) -> &str {
    node.pod_cidr().split('/').next().unwrap_or_default()
}

/// Writes flanneld's rules for `--ip-masq`, which its manifest sets. They masquerade packets from
/// pods to the world, and packets from outside the pod network to pods of other nodes. They also
/// accept all forwarded packets from and to pods.
fn iptables_rules(node: &Node) -> Result<()> {
    let own = node.pod_cidr();
    for rule in [
        "-t nat -N FLANNEL-POSTRTG".to_owned(),
        "-t nat -A POSTROUTING -j FLANNEL-POSTRTG".to_owned(),
        format!("-t nat -A FLANNEL-POSTRTG -s {own} -d {CLUSTER} -j RETURN"),
        format!("-t nat -A FLANNEL-POSTRTG -s {CLUSTER} -d {own} -j RETURN"),
        format!("-t nat -A FLANNEL-POSTRTG ! -s {CLUSTER} -d {own} -j RETURN"),
        format!("-t nat -A FLANNEL-POSTRTG -s {CLUSTER} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully"),
        format!("-t nat -A FLANNEL-POSTRTG ! -s {CLUSTER} -d {CLUSTER} -j MASQUERADE --random-fully"),
        format!("-A FORWARD -s {CLUSTER} -j ACCEPT"),
        format!("-A FORWARD -d {CLUSTER} -j ACCEPT"),
    ] {
        let command: Vec<&str> = ["iptables", "-w"].into_iter().chain(rule.split(' ')).collect();
        node.exec(&command)?;
    }
    Ok(())
}

/// Writes the same rules in one nftables table.
fn nftables_rules(node: &Node) -> Result<()> {
    let own = node.pod_cidr();
    node.exec(&[
        "nft",
        &format!(
            "table ip flannel-ipv4 {{
                chain postrtg {{
                    type nat hook postrouting priority srcnat;
                    ip saddr {own} ip daddr {CLUSTER} return
                    ip saddr {CLUSTER} ip daddr {own} return
                    ip saddr != {CLUSTER} ip daddr {own} return
                    ip saddr {CLUSTER} ip daddr != 224.0.0.0/4 masquerade fully-random
                    ip saddr != {CLUSTER} ip daddr {CLUSTER} masquerade fully-random
                }}
                chain forward {{
                    type filter hook forward priority filter;
                    ip saddr {CLUSTER} accept
                    ip daddr {CLUSTER} accept
                }}
            }}"
        ),
    ])?;
    Ok(())
}
