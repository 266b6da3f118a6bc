//! The answer to `podwire monitor`: selected events of packets, with names.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::{Line, ask, write};
use crate::events::Event;
use crate::monitor::Selection;
use crate::packet_events::{Listeners, Lost};
use crate::packet_record::{Clocks, Record};

/// Names of pods and nodes may be this old, and so may be the addresses of a selected pod.
const NAMES_AGE: Duration = Duration::from_secs(1);
/// Bytes that are written together at most, as long as there are events.
const TOGETHER: usize = 64 << 10;

/// Writes events until the client is gone, or the agent stops.
pub(super) async fn answer(
    writer: &mut (impl AsyncWrite + Unpin),
    events: &mpsc::Sender<Event>,
    listeners: &Listeners,
    selection: &Selection,
) -> io::Result<()> {
    let clocks = Clocks::now();
    let Some(mut names) = ask(events, Event::Names).await else { return Ok(()) };
    let mut listener = match listeners.listen(selection.filter(&names)) {
        Ok(listener) => listener,
        Err(error) => return write(writer, &Line::Error { error: error.to_string() }).await,
    };
    let mut look_again = interval(NAMES_AGE);
    look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look_again.tick().await;
    let mut lines = Vec::new();
    loop {
        let mut told = tokio::select! {
            told = listener.next() => match told {
                None => return Ok(()),
                told => told,
            },
            _ = look_again.tick() => {
                let Some(now) = ask(events, Event::Names).await else { return Ok(()) };
                names = now;
                if let Err(error) = listener.set_filter(selection.filter(&names)) {
                    return write(writer, &Line::Error { error: error.to_string() }).await;
                }
                listener.next_now()
            }
        };
        while let Some(one) = told {
            let line = match one {
                Ok(record) => {
                    let named = Box::new(Record::new(&record.event, &names, clocks));
                    match record.data.is_empty() {
                        true => Line::Event(named),
                        false => Line::Packet { packet: named, data: digits(&record.data) },
                    }
                }
                Err(missed) => Line::Missed { missed },
            };
            push(&mut lines, &line)?;
            told = if lines.len() < TOGETHER { listener.next_now() } else { None };
        }
        let Lost { drops, flows, packets } = listener.lost().map_err(io::Error::other)?;
        for (lost, of) in [(drops, "drops"), (flows, "flows"), (packets, "packets")] {
            if lost != 0 {
                push(&mut lines, &Line::Lost { lost, of: of.into() })?;
            }
        }
        writer.write_all(&lines).await?;
        lines.clear();
    }
}

fn digits(data: &[u8]) -> String {
    let mut text = String::with_capacity(2 * data.len());
    for byte in data {
        // Writing into a text does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn push(lines: &mut Vec<u8>, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *lines, line)?;
    lines.push(b'\n');
    Ok(())
}
