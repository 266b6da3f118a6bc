//! How a command asks the agent of its node.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::Args;
use thiserror::Error;

use super::{Line, Question, SOCKET};

/// Bytes of an answer that are read at once.
const AT_ONCE: usize = 64 << 10;

/// Where the agent is.
#[derive(Args, Clone, Debug)]
pub struct Place {
    /// Folder of the agent's sockets.
    #[arg(long, env = "PODWIRE_RUN_DIR", default_value = "/run/podwire", value_name = "FOLDER")]
    pub run_dir: PathBuf,
}

/// Why there is no answer.
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
    #[error("{0}")]
    Refused(String),
    /// The connection broke.
    #[error("the connection to the agent: {0}")]
    Connection(#[from] io::Error),
    /// The agent answers something that this program does not understand.
    #[error("the agent's answer does not decode, so it is of another release: {0}")]
    Answer(#[from] serde_json::Error),
}

/// Asks the agent, and returns the one answer that `pick` finds.
///
/// # Errors
/// See [`Error`].
pub fn ask_for<T>(
    place: &Place,
    question: &Question,
    mut pick: impl FnMut(Line) -> Option<T>,
) -> Result<T, Error> {
    let mut answer = None;
    ask(place, question, |_, line, _| {
        answer = pick(line).or(answer.take());
        Ok(())
    })?;
    answer.ok_or_else(|| io::Error::other("the agent stopped before it answered").into())
}

/// Asks the agent, and hands each line of the answer to `take`: as it came, decoded, and whether
/// more of the answer is here already. Ends with the answer, or when the output is closed.
///
/// # Errors
/// See [`Error`].
pub fn ask(
    place: &Place,
    question: &Question,
    mut take: impl FnMut(&str, Line, bool) -> io::Result<()>,
) -> Result<(), Error> {
    let path = place.run_dir.join(SOCKET);
    let connect = || {
        let mut stream = UnixStream::connect(&path)?;
        stream.write_all((serde_json::to_string(question)? + "\n").as_bytes())?;
        Ok(stream)
    };
    let stream = connect().map_err(|source| Error::NoAgent { path: path.clone(), source })?;
    let (mut reader, mut line) = (BufReader::with_capacity(AT_ONCE, stream), String::new());
    while reader.read_line(&mut line)? > 0 {
        let taken = match decode(line.trim_end())? {
            Line::Error { error } => return Err(Error::Refused(error)),
            decoded => take(line.trim_end(), decoded, !reader.buffer().is_empty()),
        };
        line.clear();
        match taken {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            taken => taken?,
        }
    }
    Ok(())
}

/// Decodes a line. Most lines of a long answer are events: an attempt at one first costs less than
/// the copy that an untagged enum makes of every field.
fn decode(line: &str) -> serde_json::Result<Line> {
    match serde_json::from_str(line) {
        Ok(record) => Ok(Line::Event(record)),
        Err(_) => serde_json::from_str(line),
    }
}
