//! `podwire monitor`: prints the programs' events while they happen.

use std::io::{self, Write as _};

use clap::{Args, ValueEnum};

use crate::config::Logging;
use crate::operator::client::{self, Error, Place};
use crate::operator::{Line, Question};

/// Options of `podwire monitor`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example: podwire monitor --output json | jq 'select(.reason == \"source-not-owned\")'"
)]
pub struct Options {
    /// Where the agent is.
    #[command(flatten)]
    pub place: Place,
    /// Format of the events: a line of text, or a JSON object on a line.
    #[arg(long, short, default_value = "text")]
    pub output: Output,
    /// Options of every command.
    #[command(flatten)]
    pub logging: Logging,
}

/// A format of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Prints events until the agent stops or the output is closed.
///
/// # Errors
/// See [`Error`].
pub fn run(options: &Options) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    client::ask(&options.place, &Question::Monitor, |line, decoded| {
        match decoded {
            Line::Event(record) if options.output == Output::Text => writeln!(out, "{record}"),
            Line::Missed { missed } if options.output == Output::Text => {
                writeln!(out, "{missed} events are missing here: this reader is too slow")
            }
            _ => writeln!(out, "{line}"),
        }?;
        out.flush()
    })
}
