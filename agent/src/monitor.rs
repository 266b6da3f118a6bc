//! `podwire monitor`: prints the programs' events while they happen.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use thiserror::Error;

use crate::config::Logging;
use crate::operator::{Line, Question, SOCKET};

/// Options of `podwire monitor`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example: podwire monitor --output json | jq 'select(.reason == \"source-not-owned\")'"
)]
pub struct Options {
    /// Folder of the agent's sockets.
    #[arg(long, env = "PODWIRE_RUN_DIR", default_value = "/run/podwire", value_name = "FOLDER")]
    pub run_dir: PathBuf,
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

/// Why there are no events.
#[derive(Debug, Error)]
pub enum Error {
    /// Nobody listens on the socket.
    #[error("cannot ask the agent at {}: {source}: does it run on this node? (--run-dir)", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The agent refuses the question.
    #[error("the agent refuses the question: {0}")]
    Refused(String),
    /// The connection broke.
    #[error("the connection to the agent: {0}")]
    Connection(#[from] io::Error),
    /// The agent answers something that this program does not understand.
    #[error("the agent's answer does not decode, so it is of another release: {0}")]
    Answer(#[from] serde_json::Error),
}

/// Prints events until the agent stops or the output is closed.
///
/// # Errors
/// See [`Error`].
pub fn run(options: &Options) -> Result<(), Error> {
    let stream = ask(&options.run_dir.join(SOCKET))?;
    let mut out = io::stdout().lock();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let text = match serde_json::from_str(&line)? {
            Line::Error { error } => return Err(Error::Refused(error)),
            _ if options.output == Output::Json => line,
            Line::Event(record) => record.to_string(),
            Line::Missed { missed } => format!("{missed} events are missing here: this reader is too slow"),
        };
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    Ok(())
}

fn ask(path: &Path) -> Result<UnixStream, Error> {
    let connect = || {
        let mut stream = UnixStream::connect(path)?;
        let question = serde_json::to_string(&Question::Monitor)? + "\n";
        stream.write_all(question.as_bytes())?;
        Ok(stream)
    };
    connect().map_err(|source| Error::NoAgent { path: path.into(), source })
}
