//! `podwire nodes`: the nodes that the programs know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use clap::Args;
use ipnet::IpNet;
use podwire_common::abi::{
    NODE_ADDRESS, NODE_IPSEC_PODS, NODE_IPSEC_TUNNEL, NODE_LOCAL, NODE_ON_LINK, NODE_OVERLAY,
    NODE_POD_NETWORK, NODE_TUNNEL_IPV6, NODE_VTEP,
};
use serde::Serialize;

use super::Error;
use super::output::{self, Row, list};
use super::selection::Addresses;
use super::view::{self, Common, View};
use crate::packet_record::Link;

/// Options of `podwire nodes`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example: podwire nodes --address 10.244.3.7")]
pub struct Options {
    /// Show only this node.
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// Filters by address: of the node, or of its pods.
    #[command(flatten)]
    pub addresses: Addresses,
    /// Options of every command that shows something.
    #[command(flatten)]
    pub common: Common,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct NodeRow {
    /// Name, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Its podCIDRs.
    pod_networks: Vec<IpNet>,
    /// Its own addresses.
    addresses: Vec<IpAddr>,
    /// Where packets to it go: the tunnel's other ends, or the next hops by direct routing.
    endpoints: BTreeSet<IpAddr>,
    /// The link towards it; none for this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    uplink: Option<Link>,
    /// The largest IP packet that a pod may send to its pods, bytes. 0 for this node.
    mtu: u32,
    /// What is special about it.
    flags: BTreeSet<&'static str>,
}

impl Row for NodeRow {
    const HEADINGS: &'static [&'static str] =
        &["NODE", "POD NETWORKS", "ADDRESSES", "ENDPOINTS", "UPLINK", "MTU", "FLAGS"];

    fn cells(&self) -> Vec<String> {
        let mtu = if self.mtu == 0 { String::new() } else { self.mtu.to_string() };
        vec![
            self.node.clone().unwrap_or_default(),
            list(&self.pod_networks),
            list(&self.addresses),
            list(&self.endpoints),
            self.uplink.as_ref().map(ToString::to_string).unwrap_or_default(),
            mtu,
            list(&self.flags),
        ]
    }
}

/// Prints the nodes.
///
/// # Errors
/// See [`Error`].
pub fn run(options: &Options) -> Result<(), Error> {
    options.common.printing.repeat(|printing| {
        let is_wanted = |row: &NodeRow| {
            let pods = row.pod_networks.iter().any(|network| covers(&options.addresses, network));
            let own = row.addresses.iter().any(|address| options.addresses.admit(*address));
            options.node.as_ref().is_none_or(|node| row.node.as_ref() == Some(node)) && (pods || own)
        };
        let rows: Vec<_> =
            rows(&View::open(&options.common.folders)?).into_iter().filter(is_wanted).collect();
        Ok(output::print(&rows, printing.output)?)
    })
}

/// Returns whether a network has addresses that the filters admit.
fn covers(filters: &Addresses, network: &IpNet) -> bool {
    let overlaps = |wanted: IpNet| network.contains(&wanted) || wanted.contains(network);
    let any = Addresses { address: None, ..filters.clone() };
    filters.address.is_none_or(overlaps) && any.admit(network.addr())
}

fn rows(view: &View) -> Vec<NodeRow> {
    let mut rows: BTreeMap<u32, NodeRow> = BTreeMap::new();
    for (prefix, entry) in &view.tables.nodes {
        let row = rows.entry(entry.node_id).or_default();
        row.node = row.node.take().or_else(|| view.node_with(entry.tunnel_endpoint).map(Into::into));
        row.endpoints.insert(entry.tunnel_endpoint.into());
        if entry.uplink != 0 {
            row.uplink = Some(view.link(entry.uplink));
        }
        row.flags.extend(names_of(entry.flags));
        if entry.flags & NODE_POD_NETWORK != 0 {
            row.pod_networks.extend(view::network(prefix));
            row.mtu = if row.mtu == 0 { entry.mtu } else { row.mtu.min(entry.mtu) };
        } else if entry.flags & NODE_ADDRESS != 0 {
            row.addresses.push(prefix.address.into());
        }
    }
    let mut rows: Vec<_> = rows.into_values().collect();
    rows.sort_by(|one, other| one.node.cmp(&other.node));
    rows
}

fn names_of(flags: u32) -> impl Iterator<Item = &'static str> {
    let names = [
        (NODE_LOCAL, "this-node"),
        (NODE_ON_LINK, "on-link"),
        (NODE_OVERLAY, "overlay"),
        (NODE_VTEP, "flannel"),
        (NODE_IPSEC_TUNNEL, "ipsec-tunnel"),
        (NODE_IPSEC_PODS, "ipsec-pods"),
        (NODE_TUNNEL_IPV6, "tunnel-ipv6"),
    ];
    names.into_iter().filter(move |(bit, _)| flags & bit != 0).map(|(_, name)| name)
}
