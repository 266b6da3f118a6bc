//! `podwire hostports`: the hostPorts of this node's pods.

use std::net::IpAddr;

use clap::Args;
use serde::Serialize;

use super::Error;
use super::output::{self, Row};
use super::selection::{Addresses, Pods};
use super::view::{Common, View};
use crate::packet_record::{End, protocol_name};

/// Options of `podwire hostports`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example: podwire hostports --port 8080")]
pub struct Options {
    /// Filters by pod.
    #[command(flatten)]
    pub pods: Pods,
    /// Filters by address: of the hostPort, or of the pod.
    #[command(flatten)]
    pub addresses: Addresses,
    /// Show only this hostPort, or hostPorts that lead to this port of a pod.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Options of every command that shows something.
    #[command(flatten)]
    pub common: Common,
}

/// A hostPort.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct HostPortRow {
    /// `tcp` or `udp`.
    protocol: String,
    /// The node's address; `0.0.0.0` and `::` are all of a family.
    address: IpAddr,
    /// The hostPort.
    port: u16,
    /// The pod that gets its packets.
    backend: End,
}

impl Row for HostPortRow {
    const HEADINGS: &'static [&'static str] = &["PROTOCOL", "ADDRESS", "PORT", "POD", "TO"];

    fn cells(&self) -> Vec<String> {
        let pod = self.backend.pod.clone().unwrap_or_default();
        let to = End { pod: None, node: None, ..self.backend.clone() };
        vec![self.protocol.clone(), self.address.to_string(), self.port.to_string(), pod, to.to_string()]
    }
}

/// Prints the hostPorts.
///
/// # Errors
/// See [`Error`].
pub fn run(options: &Options) -> Result<(), Error> {
    options.common.printing.repeat(|printing| {
        let is_wanted = |row: &HostPortRow| {
            options.pods.admit(row.backend.pod.as_deref())
                && [row.address, row.backend.address].iter().any(|end| options.addresses.admit(*end))
                && options.port.is_none_or(|port| row.port == port || row.backend.port == Some(port))
        };
        let rows: Vec<_> =
            rows(&View::open(&options.common.folders)?).into_iter().filter(is_wanted).collect();
        Ok(output::print(&rows, printing.output)?)
    })
}

fn rows(view: &View) -> Vec<HostPortRow> {
    let row =
        |(frontend, backend): (&podwire_common::abi::Frontend, &podwire_common::abi::Backend)| HostPortRow {
            protocol: protocol_name(frontend.protocol).into_owned(),
            address: frontend.address.into(),
            port: frontend.port.get(),
            backend: view.end(backend.address, backend.port.get()),
        };
    let mut rows: Vec<_> = view.tables.frontends.iter().map(row).collect();
    rows.sort_by_key(|row| (row.port, row.address));
    rows
}
