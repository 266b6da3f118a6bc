//! `podwire endpoints`: the pods of this node that have a network.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::Args;
use podwire_common::abi::{
    self, ENDPOINT_EGRESS_LIMITED, ENDPOINT_HAS_HOST_PORTS, ENDPOINT_INGRESS_LIMITED, ENDPOINT_STACK_ONLY,
};
use podwire_core::model::format_mac;
use serde::Serialize;

use super::Error;
use super::output::{self, Row, list};
use super::selection::{Addresses, Pods};
use super::view::{Common, View};
use crate::packet_record::Link;

/// Options of `podwire endpoints`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example: podwire endpoints --namespace shop --output json")]
pub struct Options {
    /// Filters by pod.
    #[command(flatten)]
    pub pods: Pods,
    /// Filters by address.
    #[command(flatten)]
    pub addresses: Addresses,
    /// Options of every command that shows something.
    #[command(flatten)]
    pub common: Common,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct EndpointRow {
    /// Namespace and name, if they are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    /// Its addresses.
    addresses: Vec<IpAddr>,
    /// The host side of its veth pair.
    link: Link,
    /// The link address of the pod's side.
    mac: String,
    /// The largest IP packet that its link takes, bytes.
    mtu: u32,
    /// The agent's number for it.
    id: u32,
    /// What is special about it.
    flags: Vec<&'static str>,
}

impl Row for EndpointRow {
    const HEADINGS: &'static [&'static str] = &["POD", "ADDRESSES", "LINK", "MAC", "MTU", "ID", "FLAGS"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.pod.clone().unwrap_or_default(),
            list(&self.addresses),
            self.link.to_string(),
            self.mac.clone(),
            self.mtu.to_string(),
            self.id.to_string(),
            self.flags.join(", "),
        ]
    }
}

/// Prints the endpoints.
///
/// # Errors
/// See [`Error`].
pub fn run(options: &Options) -> Result<(), Error> {
    options.common.printing.repeat(|printing| {
        let rows: Vec<_> = rows(&View::open(&options.common.folders)?)
            .into_iter()
            .filter(|row| options.pods.admit(row.pod.as_deref()))
            .filter(|row| row.addresses.iter().any(|address| options.addresses.admit(*address)))
            .collect();
        Ok(output::print(&rows, printing.output)?)
    })
}

fn rows(view: &View) -> Vec<EndpointRow> {
    let mut by_link: BTreeMap<u32, Vec<(IpAddr, &abi::Endpoint)>> = BTreeMap::new();
    for (address, endpoint) in &view.tables.endpoints {
        by_link.entry(endpoint.ifindex).or_default().push(((*address).into(), endpoint));
    }
    let row = |(index, entries): (u32, Vec<(IpAddr, &abi::Endpoint)>)| {
        let addresses: Vec<IpAddr> = entries.iter().map(|(address, _)| *address).collect();
        let (_, endpoint) = entries.first()?;
        let flags = entries.iter().fold(0, |flags, (_, entry)| flags | entry.flags);
        Some(EndpointRow {
            pod: addresses.iter().find_map(|address| view.pod(*address)).map(Into::into),
            addresses,
            link: view.link(index),
            mac: format_mac(endpoint.pod_mac),
            mtu: endpoint.mtu,
            id: endpoint.id,
            flags: names_of(flags),
        })
    };
    let mut rows: Vec<_> = by_link.into_iter().filter_map(row).collect();
    rows.sort_by(|one, other| one.pod.cmp(&other.pod));
    rows
}

fn names_of(flags: u32) -> Vec<&'static str> {
    let names = [
        (ENDPOINT_STACK_ONLY, "stack-only"),
        (ENDPOINT_HAS_HOST_PORTS, "host-ports"),
        (ENDPOINT_INGRESS_LIMITED, "ingress-limited"),
        (ENDPOINT_EGRESS_LIMITED, "egress-limited"),
    ];
    names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect()
}
