//! `podwire monitor`: prints the programs' events while they happen.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::builder::TypedValueParser as _;
use clap::{Args, ValueEnum};
use podwire_common::addr::Addr;
use podwire_common::event::{self, FAMILY_BIT_IPV4, FAMILY_BIT_IPV6};
use podwire_common::flow::protocol;
use podwire_common::names::programs;
use rustix::process::setpriority_process;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::cmd::selection::{self, Family};
use crate::config::Logging;
use crate::events::Names;
use crate::operator::client::{self, Error, Place};
use crate::operator::{Line, Question};
use crate::packet_filter::Filter;
use crate::packet_record::Record;
use crate::pcapng::{Direction, Packet, Writer};

/// The nice value of the command.
const LOW_PRIORITY: i32 = 10;

/// Options of `podwire monitor`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    podwire monitor --kind drop --pod default/web\n  \
    podwire monitor --output json --port 53 | jq 'select(.kind == \"translation\")'\n  \
    podwire monitor --pcap - --pod default/web | tcpdump -r -")]
pub struct Options {
    /// Where the agent is.
    #[command(flatten)]
    pub place: Place,
    /// Which events.
    #[command(flatten)]
    pub selection: Selection,
    /// Write the packets that come to the programs to this file, in the format pcapng; `-` is the
    /// standard output.
    ///
    /// The file has the first 192 bytes of each packet as it came to a program, before the program
    /// changed it. Its comment names the program, the pods and the nodes. The other options select
    /// packets.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kinds", "reasons", "output"])]
    pub pcap: Option<PathBuf>,
    /// Format of the events: a line of text, or a JSON object on a line.
    #[arg(long, short, default_value = "text")]
    pub output: Output,
    /// Options of every command.
    #[command(flatten)]
    pub logging: Logging,
}

/// The events that are wanted. An event must match each of the options that are given. An option
/// with several values matches with one of them.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Kinds of events.
    #[arg(long = "kind", value_delimiter = ',')]
    pub kinds: Vec<Kind>,
    /// Pods of this node at either end: NAMESPACE/NAME, or NAME in any namespace.
    ///
    /// A pod may come later, and its addresses may change.
    #[arg(long = "pod", value_delimiter = ',', value_name = "POD")]
    pub pods: Vec<String>,
    /// Addresses of either end, before or after a translation.
    #[arg(long = "address", value_delimiter = ',', value_name = "ADDRESS")]
    pub addresses: Vec<IpAddr>,
    /// Ports of either end, before or after a translation.
    #[arg(long = "port", value_delimiter = ',', value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,
    /// Transport protocols: tcp, udp, sctp, icmp, icmpv6, or numbers.
    #[arg(long = "protocol", value_delimiter = ',', value_name = "PROTOCOL", value_parser = protocol_number)]
    pub protocols: Vec<u8>,
    /// Family of the packet.
    #[arg(long)]
    pub family: Option<Family>,
    /// Packets instead of events.
    #[arg(skip)]
    #[serde(default)]
    pub packets: bool,
    /// Reasons for drops, as podwire_dropped_packets_total names them. Only drops match.
    #[arg(long = "reason", value_delimiter = ',', value_name = "REASON", value_parser = selection::reason().map(|reason| reason as u16), hide_possible_values = true)]
    pub reasons: Vec<u16>,
}

/// A kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Kind {
    /// A dropped packet.
    Drop,
    /// The first packet of a flow, with its path.
    Flow,
    /// The first packet of a flow that the programs translate, with the new addresses and ports.
    Translation,
}

/// A format of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

fn protocol_number(text: &str) -> Result<u8, String> {
    match text {
        "icmp" => Ok(protocol::ICMP),
        "tcp" => Ok(protocol::TCP),
        "udp" => Ok(protocol::UDP),
        "icmpv6" => Ok(protocol::ICMPV6),
        "sctp" => Ok(protocol::SCTP),
        _ => text.parse().map_err(|_| "neither a known protocol nor a number up to 255".to_owned()),
    }
}

impl Selection {
    /// Returns the filter for the pods that have these names now.
    pub fn filter(&self, names: &Names) -> Filter {
        let is_selected = |pod: &str| {
            self.pods
                .iter()
                .any(|wanted| pod == wanted || pod.split_once('/').is_some_and(|(_, name)| name == wanted))
        };
        let pods = || {
            let selected = names.pods.iter().filter(|(_, pod)| is_selected(pod));
            selected.map(|(address, _)| Addr::from(*address)).collect()
        };
        let kinds = self.kinds.iter().map(|kind| match kind {
            Kind::Drop => event::Kind::Drop,
            Kind::Flow => event::Kind::Flow,
            Kind::Translation => event::Kind::Translation,
        });
        let packets = self.packets.then_some(event::Kind::Packet);
        Filter {
            kinds: kinds.chain(packets).collect(),
            reasons: self.reasons.iter().copied().collect(),
            families: match self.family {
                None => 0,
                Some(Family::Ipv4) => FAMILY_BIT_IPV4,
                Some(Family::Ipv6) => FAMILY_BIT_IPV6,
            },
            protocols: self.protocols.iter().copied().collect(),
            ports: self.ports.iter().copied().collect(),
            addresses: self.addresses.iter().map(|address| Addr::from(*address)).collect(),
            pods: (!self.pods.is_empty()).then(pods),
        }
    }
}

/// Prints events until the agent stops or the output is closed.
///
/// # Errors
/// See [`Error`].
pub fn run(options: &Options) -> Result<(), Error> {
    // What is shown must not take the processor from what happens. An event that is too late is
    // counted as missing.
    let _ = setpriority_process(None, LOW_PRIORITY);
    match &options.pcap {
        Some(file) => capture(options, file),
        None => print(options),
    }
}

fn print(options: &Options) -> Result<(), Error> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let question = Question::Monitor(Box::new(options.selection.clone()));
    client::ask(&options.place, &question, |line, decoded, has_more| {
        match decoded {
            Line::Event(record) if options.output == Output::Text => writeln!(out, "{record}"),
            Line::Missed { missed } if options.output == Output::Text => {
                writeln!(out, "{missed} events are missing here: this reader is too slow")
            }
            Line::Lost { lost, of } if options.output == Output::Text => {
                writeln!(out, "{lost} events of {of} are missing here: there were too many")
            }
            _ => writeln!(out, "{line}"),
        }?;
        // A write for each line would cost more than the line.
        if has_more { Ok(()) } else { out.flush() }
    })
}

/// Writes packets to a file.
fn capture(options: &Options, path: &Path) -> Result<(), Error> {
    let out: Box<dyn io::Write> = match path == Path::new("-") {
        true => Box::new(io::stdout().lock()),
        false => {
            let named = |error| io::Error::other(format!("create {}: {error}", path.display()));
            Box::new(File::create(path).map_err(named)?)
        }
    };
    let mut file = Writer::new(out)?;
    let selection = Selection { packets: true, ..options.selection.clone() };
    client::ask(&options.place, &Question::Monitor(Box::new(selection)), |_, line, _| {
        match line {
            Line::Packet { packet, data } => return write_packet(&mut file, &packet, &data),
            Line::Missed { missed } => warn!(missed, "packets are missing: this reader is too slow"),
            Line::Lost { lost, .. } => warn!(lost, "packets are missing: there were too many"),
            _ => {}
        }
        Ok(())
    })
}

fn write_packet(file: &mut Writer<impl io::Write>, packet: &Record, data: &str) -> io::Result<()> {
    let byte = |at: usize| data.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let bytes: Option<Vec<u8>> = (0..data.len()).step_by(2).map(byte).collect();
    let data = bytes.ok_or_else(|| io::Error::other("the agent's packet does not decode"))?;
    let nanoseconds = packet.time.as_nanosecond();
    file.packet(&Packet {
        link: &packet.link.to_string(),
        has_link_header: packet.hook != programs::TO_BARE_UPLINK,
        time: u64::try_from(nanoseconds).unwrap_or_default(),
        direction: match packet.hook.starts_with("from_") {
            true => Direction::Inbound,
            false => Direction::Outbound,
        },
        comment: &packet.description(),
        length: packet.length,
        data: &data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_found_by_its_name() {
        let names = Names {
            pods: [("10.244.1.2", "a/web"), ("10.244.1.3", "b/web"), ("10.244.1.4", "a/webs")]
                .map(|(address, pod)| (address.parse().unwrap(), pod.to_owned()))
                .into(),
            ..Names::default()
        };
        let found = |pod: &str| {
            let selection = Selection { pods: vec![pod.to_owned()], ..Selection::default() };
            selection
                .filter(&names)
                .pods
                .unwrap()
                .into_iter()
                .map(|address| address.v4()[3])
                .collect::<Vec<_>>()
        };
        assert_eq!(found("web"), [2, 3]);
        assert_eq!(found("a/web"), [2]);
        assert_eq!(found("c/web"), [0; 0]);
        assert_eq!(Selection::default().filter(&names), Filter::default());
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        assert_eq!(protocol_number("tcp"), Ok(6));
        assert_eq!(protocol_number("89"), Ok(89));
        assert!(protocol_number("256").is_err() && protocol_number("tcpp").is_err());
    }
}
