//! The operators' entry to the agent: a Unix socket that only root may use. A client writes its
//! question, a line of JSON. The agent answers with lines of JSON.

pub mod client;
mod monitor;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, info};

use crate::connections::Place;
use crate::events::{Event, Names};
use crate::frontends::Frontend;
use crate::lock::ClaimError;
use crate::log::Control;
use crate::monitor::Selection;
use crate::packet_events::Listeners;
use crate::packet_record::{Clocks, Record};
use crate::status::Status;
use crate::unix_socket::ListeningSocket;

/// The socket's name in the run folder.
pub const SOCKET: &str = "operator.sock";
/// Largest size of a question in bytes.
const LARGEST_QUESTION: u64 = 4096;
/// Longest time to read a question.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// Largest number of clients at once.
const CONNECTIONS: usize = 16;

/// What an operator asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// The selected events from now on, until the client hangs up.
    Monitor(Box<Selection>),
    /// The last drops that had an event.
    LastDrops,
    /// The names of addresses and links.
    Names,
    /// The state of the node's pod network.
    Status,
    /// The frontends of all services.
    Services,
    /// Another filter of the log.
    LogLevel(String),
}

/// A line of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// An event.
    Event(Box<Record>),
    /// The client was too slow: so many events are missing here.
    Missed {
        /// Number of events.
        missed: u64,
    },
    /// A packet.
    Packet {
        /// Its ends and the hook.
        packet: Box<Record>,
        /// Its first bytes, in hexadecimal digits.
        data: String,
    },
    /// The programs could not write so many of the selected events: the ring was full, or a reason's
    /// budget was used. Events that another listener wanted may be among them.
    Lost {
        /// Number of events.
        lost: u64,
        /// `drops`, `flows` or `packets`.
        of: String,
    },
    /// The names.
    Names {
        /// The names.
        names: Names,
    },
    /// The state of the node's pod network.
    Status {
        /// The state.
        status: Box<Status>,
    },
    /// A frontend of a service. [`Line::Done`] comes after the last one.
    Frontend {
        /// The frontend.
        frontend: Box<Frontend>,
    },
    /// What was asked for is done.
    Done {
        /// True.
        done: bool,
    },
    /// The question cannot be answered.
    Error {
        /// Why.
        error: String,
    },
}

/// Serves a socket until the receiver of the agent's events is dropped.
///
/// # Errors
/// [`ClaimError::File`] if the socket's folder was removed under its mount.
pub async fn serve(
    socket: ListeningSocket,
    events: mpsc::Sender<Event>,
    listeners: Listeners,
    log: Control,
) -> Result<(), ClaimError> {
    let log = Arc::new(log);
    let closed = events.clone();
    let converse = |stream, place| {
        let (events, listeners, log) = (events.clone(), listeners.clone(), Arc::clone(&log));
        async move {
            if let Err(error) = converse(stream, &events, &listeners, &log, &place).await {
                debug!("the connection of an operator ended: {error}");
            }
        }
    };
    socket.serve("an operator", CONNECTIONS, async move { closed.closed().await }, converse).await
}

async fn converse(
    mut stream: UnixStream,
    events: &mpsc::Sender<Event>,
    listeners: &Listeners,
    log: &Control,
    place: &Place,
) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader.take(LARGEST_QUESTION));
    let mut question = String::new();
    timeout(READ_DEADLINE, reader.read_line(&mut question)).await??;
    place.keep();
    match serde_json::from_str(&question) {
        Ok(Question::Monitor(selection)) => {
            // A client that monitors sends nothing more: the end of its input is its end.
            let mut rest = [0; 1];
            tokio::select! {
                told = monitor::answer(&mut writer, events, listeners, &selection) => told,
                _ = reader.read(&mut rest) => Ok(()),
            }
        }
        Ok(Question::LastDrops) => match ask(events, Event::Names).await {
            Some(names) => {
                let clocks = Clocks::now();
                for event in listeners.last_drops() {
                    let record = Record::new(&event, &names, clocks);
                    write(&mut writer, &Line::Event(Box::new(record))).await?;
                }
                Ok(())
            }
            None => Ok(()),
        },
        Ok(Question::Names) => match ask(events, Event::Names).await {
            Some(names) => write(&mut writer, &Line::Names { names }).await,
            None => Ok(()),
        },
        Ok(Question::Status) => match ask(events, Event::Status).await {
            Some(status) => write(&mut writer, &Line::Status { status }).await,
            None => Ok(()),
        },
        Ok(Question::Services) => match ask(events, Event::Frontends).await {
            Some(Some(snapshot)) => {
                for frontend in snapshot.frontends() {
                    write(&mut writer, &Line::Frontend { frontend: Box::new(frontend) }).await?;
                }
                write(&mut writer, &Line::Done { done: true }).await
            }
            Some(None) => {
                let error = "the agent reads no services, because --services is off".into();
                write(&mut writer, &Line::Error { error }).await
            }
            None => Ok(()),
        },
        Ok(Question::LogLevel(level)) => {
            let line = match log.set(&level) {
                Ok(()) => {
                    info!(level, "an operator has changed what is logged");
                    Line::Done { done: true }
                }
                Err(error) => Line::Error { error: error.to_string() },
            };
            write(&mut writer, &line).await
        }
        Err(error) => {
            let error = format!("the question does not decode: {error}");
            write(&mut writer, &Line::Error { error }).await
        }
    }
}

/// Asks the owner of state. `None`: the agent is stopping.
async fn ask<T>(
    events: &mpsc::Sender<Event>,
    question: impl FnOnce(oneshot::Sender<T>) -> Event,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    events.send(question(reply)).await.ok()?;
    answer.await.ok()
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    writer.write_all(text.as_bytes()).await
}
