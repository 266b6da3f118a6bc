//! `podwire services`: where clients reach services, who serves them, and which backends they reach.

use std::net::IpAddr;
use std::num::NonZeroU32;

use clap::Args;
use podwire_common::abi;
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;
use podwire_core::features::{Clients, NotServed};

use super::Error;
use super::output::{self, Row};
use super::selection::{Addresses, Pods};
use super::view::{Common, View};
use crate::frontends::{Backend, Frontend, Reach, Server};
use crate::operator::client::{self, Place};
use crate::operator::{Line, Question};
use crate::packet_record::protocol_name;

/// The agent wants a frontend in the tables, and it is not there yet.
const NOT_WRITTEN: &str = "not-written";

/// Options of `podwire services`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example: podwire services --namespace shop --service web")]
pub struct Options {
    /// Show only this service, by its name or by NAMESPACE/NAME.
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub service: Option<String>,
    /// Show only services of this namespace.
    #[arg(long, short, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Filters by address: of the service, or of a backend.
    #[command(flatten)]
    pub addresses: Addresses,
    /// Show only this port of a service, or services that lead to this port of a backend.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Show only this protocol: tcp, udp or sctp.
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Option<String>,
    /// Options of every command that shows something.
    #[command(flatten)]
    pub common: Common,
}

impl Options {
    fn admit(&self, row: &Frontend) -> bool {
        // Services have names of the same form as pods.
        let names = Pods { pod: self.service.clone(), namespace: self.namespace.clone() };
        let is_protocol = |wanted: &String| wanted.eq_ignore_ascii_case(&row.protocol);
        let mut addresses = row.backends.iter().map(|backend| backend.end.address).chain([row.address]);
        let has_port = |port| row.port == port || row.backends.iter().any(|to| to.end.port == Some(port));
        names.admit(row.service.as_deref())
            && self.protocol.as_ref().is_none_or(is_protocol)
            && addresses.any(|address| self.addresses.admit(address))
            && self.port.is_none_or(has_port)
    }
}

impl Row for Frontend {
    const HEADINGS: &'static [&'static str] = &[
        "SERVICE",
        "KIND",
        "PROTOCOL",
        "ADDRESS",
        "PORT",
        "AFFINITY",
        "SERVED BY",
        "BACKEND",
        "INSIDE",
        "OUTSIDE",
    ];

    fn cells(&self) -> Vec<String> {
        let server = |server: &Option<Server>| {
            let Some(Server { served_by, because, answer, leaves_processes, .. }) = server else {
                return String::new();
            };
            let why = because.as_ref().or(answer.as_ref()).map_or(String::new(), |why| format!(": {why}"));
            let processes = if leaves_processes.is_some() { ", processes kube-proxy" } else { "" };
            format!("{served_by}{why}{processes}")
        };
        let (inside, outside) = (server(&self.inside), server(&self.outside));
        let served_by = match outside.is_empty() || inside == outside {
            true => inside,
            false => format!("inside {inside}, outside {outside}"),
        };
        vec![
            self.service.clone().unwrap_or_default(),
            self.kind.clone().unwrap_or_default(),
            self.protocol.clone(),
            self.address.to_string(),
            self.port.to_string(),
            self.affinity.map(|seconds| format!("{seconds}s")).unwrap_or_default(),
            served_by,
        ]
    }

    /// Returns a line for each backend, or one for a frontend without any.
    fn lines(&self) -> Vec<Vec<String>> {
        let own = self.cells();
        let reach = |reach: &Option<Reach>| match reach {
            Some(Reach { used: true, why }) => why.clone(),
            Some(Reach { used: false, why }) => format!("not used: {why}"),
            None => String::new(),
        };
        let line = |to: &Backend| [to.end.to_string(), reach(&to.inside), reach(&to.outside)];
        let mut ends: Vec<_> = self.backends.iter().map(line).collect();
        if ends.is_empty() {
            ends.push([const { String::new() }; 3]);
        }
        ends.into_iter().map(|end| own.iter().cloned().chain(end).collect()).collect()
    }
}

/// Prints the frontends.
///
/// # Errors
/// See [`Error`].
pub fn run(options: &Options) -> Result<(), Error> {
    options.common.printing.repeat(|printing| {
        // The agent answers after it has written the tables: read later, they hold what it tells.
        let told = told(&options.common.folders.place)?;
        let mut rows = rows(&View::open(&options.common.folders)?, told);
        rows.retain(|row| options.admit(row));
        Ok(output::print(&rows, printing.output)?)
    })
}

/// Returns what the agent knows; nothing if no agent answers.
fn told(place: &Place) -> Result<Vec<Frontend>, client::Error> {
    let mut told = Vec::new();
    let done = client::ask_for(place, &Question::Services, |line| match line {
        Line::Frontend { frontend } => {
            told.push(*frontend);
            None
        }
        Line::Done { done } => Some(done),
        _ => None,
    });
    match done {
        Err(client::Error::NoAgent { .. }) => Ok(Vec::new()),
        done => done.map(|_| told),
    }
}

/// Returns a row for each frontend: those that the agent knows, then the others of the tables. The
/// tables say what the programs serve.
fn rows(view: &View, told: Vec<Frontend>) -> Vec<Frontend> {
    let mut served = view.tables.services.clone();
    // Entries for the ports that no service has.
    served.retain(|frontend, _| frontend.port != Be16::ZERO);
    let mut rows = told;
    for row in &mut rows {
        for clients in Clients::ALL {
            let entry = key(row, clients).filter(|_| !is_of_other(row.server(clients)));
            let server = row.server(clients);
            match entry.and_then(|key| served.remove(&key)) {
                Some(service) => *server = Some(Server::podwire(Some(&service))),
                None if server.as_ref().is_some_and(|server| server.because.is_none()) => {
                    *server = Some(Server::kube_proxy(NOT_WRITTEN));
                }
                None => {}
            }
        }
        for backend in &mut row.backends {
            backend.end.pod = view.pod(backend.end.address).map(Into::into);
        }
    }
    rows.extend(served.iter().map(|(frontend, service)| nameless(view, frontend, service)));
    rows
}

/// Returns whether the entry at a frontend's address is another service's.
fn is_of_other(server: &Option<Server>) -> bool {
    let because = server.as_ref().and_then(|server| server.because.as_deref());
    because == Some(NotServed::OtherService.name())
}

/// Returns the row's key in the table `SERVICES`.
fn key(row: &Frontend, clients: Clients) -> Option<abi::Frontend> {
    let protocol = [protocol::TCP, protocol::UDP, protocol::SCTP];
    let protocol = protocol.into_iter().find(|number| protocol_name(*number) == row.protocol)?;
    let clients = clients.number();
    Some(abi::Frontend { address: row.address.into(), port: Be16::new(row.port), protocol, clients })
}

/// Returns the row of an entry that no agent names.
fn nameless(view: &View, frontend: &abi::Frontend, service: &abi::Service) -> Frontend {
    let entry = |index| view.tables.backends.get(&abi::BackendKey { list: service.list, index, reserved: 0 });
    let backend = |backend: &abi::Backend| Backend {
        end: view.end(backend.address, backend.port.get()),
        inside: None,
        outside: None,
    };
    let server = Some(Server::podwire(Some(service)));
    let is_outside = frontend.clients == abi::CLIENTS_OUTSIDE;
    Frontend {
        service: None,
        port_name: None,
        kind: None,
        protocol: protocol_name(frontend.protocol).into_owned(),
        address: IpAddr::from(frontend.address),
        port: frontend.port.get(),
        affinity: NonZeroU32::new(service.affinity),
        inside: server.clone().filter(|_| !is_outside),
        outside: server.filter(|_| is_outside),
        backends: (0..service.backends).filter_map(entry).map(backend).collect(),
    }
}
