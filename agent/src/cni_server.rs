//! The plugin's entry to the agent: a Unix socket that only root may use, with one request per
//! connection.

use std::io;
use std::time::{Duration, Instant};

use podwire_cni::protocol::{self, Failure, Reply, Request, codes};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;

use crate::connections::Place;
use crate::durations::{Durations, GIVEN_UP, outcome, verb};
use crate::events::Event;
use crate::lock::ClaimError;
use crate::unix_socket::ListeningSocket;

/// The socket's name in the run folder.
pub const SOCKET: &str = "agent.sock";
/// Longest time to read a request or to write a reply. The plugin sends its request at once, so a
/// slower peer is not the plugin.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// Longest time until the daemon answers. The plugin gives up earlier. Any other client that waits
/// as long gets an error as the reply.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Largest number of connections open at once. Further requests wait in the socket's queue. A
/// client that has sent no request loses its connection to a new one.
const CONNECTIONS: usize = 128;

/// Serves a socket until the receiver of the events is dropped. Notes how long each call takes.
///
/// # Errors
/// [`ClaimError::File`] if the socket's folder was removed under its mount.
pub async fn serve(
    socket: ListeningSocket,
    events: mpsc::Sender<Event>,
    durations: Durations,
) -> Result<(), ClaimError> {
    let closed = events.clone();
    let converse = |stream, place| {
        let (events, durations) = (events.clone(), durations.clone());
        async move {
            if let Err(error) = converse(stream, &events, &durations, &place).await {
                debug!("the connection of a plugin failed: {error}");
            }
        }
    };
    socket.serve("a plugin", CONNECTIONS, async move { closed.closed().await }, converse).await
}

async fn converse(
    mut stream: UnixStream,
    events: &mpsc::Sender<Event>,
    durations: &Durations,
    place: &Place,
) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let reply = match authorize(peer) {
        Err(failure) => Reply::Failed(failure),
        Ok(()) => match timeout(READ_DEADLINE, read_request(&mut stream)).await {
            Ok(Ok(request)) => {
                place.keep();
                let (verb, begun) = (verb(&request.call), Instant::now());
                tokio::select! {
                    // Checked first: do not begin a request if the plugin no longer waits for it.
                    biased;
                    () = hung_up(&mut stream) => {
                        durations.note_call(verb, GIVEN_UP, begun.elapsed());
                        return Ok(());
                    }
                    reply = ask(request, events) => {
                        durations.note_call(verb, outcome(&reply), begun.elapsed());
                        reply
                    }
                }
            }
            Ok(Err(failure)) => Reply::Failed(failure),
            Err(_) => Reply::Failed(refused(format!(
                "the plugin sent no complete request within {} s",
                READ_DEADLINE.as_secs()
            ))),
        },
    };
    let write = async {
        stream.write_all(&protocol::encode(&reply)?).await?;
        stream.shutdown().await
    };
    timeout(READ_DEADLINE, write).await?
}

/// Waits until the plugin closes its side, because it gave up or died. The plugin sends nothing
/// after its request.
async fn hung_up(stream: &mut UnixStream) {
    let _ = stream.read(&mut [0; 1]).await;
}

/// Allows only root, because requests give out addresses and attach programs.
fn authorize(uid: u32) -> Result<(), Failure> {
    if uid == 0 {
        return Ok(());
    }
    Err(refused(format!("user {uid} may not speak to the agent: only root may")))
}

async fn read_request(stream: &mut UnixStream) -> Result<Request, Failure> {
    let cut = |error: io::Error| refused(format!("read the request: {error}"));
    let mut header = [0; 4];
    stream.read_exact(&mut header).await.map_err(cut)?;
    let length = protocol::frame_length(header).map_err(|error| refused(error.to_string()))?;
    let mut json = vec![0; length];
    stream.read_exact(&mut json).await.map_err(cut)?;
    decode(&json)
}

fn decode(json: &[u8]) -> Result<Request, Failure> {
    /// The field that every version of the protocol has.
    #[derive(Deserialize)]
    struct AnyVersion {
        version: u32,
    }
    let bad = |error: serde_json::Error| refused(format!("the request does not decode: {error}"));
    let AnyVersion { version } = serde_json::from_slice(json).map_err(bad)?;
    if version != protocol::VERSION {
        return Err(refused(format!(
            "the plugin speaks version {version} of the protocol, this agent version {}: install both from one release",
            protocol::VERSION
        )));
    }
    serde_json::from_slice(json).map_err(bad)
}

async fn ask(request: Request, events: &mpsc::Sender<Event>) -> Reply {
    let (reply, answer) = oneshot::channel();
    let asked = events.send(Event::Call { call: Box::new(request.call), reply }).await;
    if asked.is_err() {
        return Reply::Failed(stopping());
    }
    match timeout(ANSWER_DEADLINE, answer).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(_)) => Reply::Failed(stopping()),
        Err(_) => Reply::Failed(Failure {
            code: codes::TRY_AGAIN_LATER,
            message: format!("the agent did not finish the request within {} s", ANSWER_DEADLINE.as_secs()),
        }),
    }
}

fn stopping() -> Failure {
    Failure { code: codes::TRY_AGAIN_LATER, message: "the agent is stopping".into() }
}

fn refused(message: String) -> Failure {
    Failure { code: codes::DECODING_FAILURE, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwire_cni::protocol::{Attachment, Call, MAX_FRAME};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as BlockingStream;
    use std::path::Path;

    use crate::events::Figures;
    use crate::metrics;
    use crate::unix_socket::hold;

    fn served(path: &Path) -> ListeningSocket {
        ListeningSocket::bind(path, hold(path).unwrap()).unwrap()
    }

    fn request() -> Request {
        let attachment = Attachment { container_id: "c".into(), interface: "eth0".into() };
        Request::new(Call::Del(attachment))
    }

    /// Sends raw bytes to a server with a daemon that answers `Deleted`, and returns the answer.
    fn answer_to(bytes: Vec<u8>) -> Reply {
        with_server(move |path| {
            let mut stream = BlockingStream::connect(path).unwrap();
            stream.write_all(&bytes).unwrap();
            protocol::read_frame(&mut stream).unwrap()
        })
    }

    fn with_server<T: Send + 'static>(client: impl FnOnce(&Path) -> T + Send + 'static) -> T {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = served(&path);
            let (sender, mut events) = mpsc::channel(8);
            tokio::spawn(serve(server, sender, Durations::default()));
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    if let Event::Call { reply, .. } = event {
                        reply.send(Reply::Deleted).unwrap();
                    }
                }
            });
            tokio::task::spawn_blocking(move || client(&path)).await.unwrap()
        })
    }

    fn framed(json: &[u8]) -> Vec<u8> {
        [&u32::try_from(json.len()).unwrap().to_be_bytes()[..], json].concat()
    }

    fn check_refused(bytes: Vec<u8>, says: &str) {
        match answer_to(bytes) {
            Reply::Failed(failure) => {
                assert_eq!(failure.code, codes::DECODING_FAILURE);
                assert!(failure.message.contains(says), "{failure}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_reaches_the_daemon_and_its_reply_the_plugin() {
        assert_eq!(answer_to(protocol::encode(&request()).unwrap()), Reply::Deleted);
    }

    #[test]
    fn unknown_version_is_refused_even_if_the_rest_is_unknown_too() {
        check_refused(framed(br#"{"version":9,"verb":"add"}"#), "version 9");
        check_refused(framed(br#"{"version":0,"verb":"add"}"#), "version 0");
    }

    #[test]
    fn the_next_version_is_refused() {
        let later = Request { version: protocol::VERSION + 1, ..request() };
        check_refused(protocol::encode(&later).unwrap(), "version 2");
    }

    #[test]
    fn what_does_not_decode_is_named() {
        check_refused(framed(b"hello"), "does not decode");
        check_refused(framed(br#"{"version":1,"call":{"steal":{}}}"#), "steal");
        check_refused(framed(br#"{"version":1,"call":{"del":{"container_id":"c"}}}"#), "interface");
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_it_is_read() {
        let length = u32::try_from(MAX_FRAME + 1).unwrap();
        check_refused(length.to_be_bytes().to_vec(), "1048577");
    }

    #[test]
    fn a_frame_that_ends_early_is_refused() {
        let reply = with_server(|path| {
            let mut stream = BlockingStream::connect(path).unwrap();
            stream.write_all(&[0, 0, 0, 9, b'{']).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            protocol::read_frame(&mut stream).unwrap()
        });
        assert!(matches!(&reply, Reply::Failed(failure) if failure.message.contains("read the request")));
    }

    #[test]
    fn nobody_is_answered_who_has_hung_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, mut events) = mpsc::channel(8);
            let durations = Durations::default();
            tokio::spawn(serve(served(&path), sender, durations.clone()));
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(&protocol::encode(&request()).unwrap()).await.unwrap();
            let Some(Event::Call { mut reply, .. }) = events.recv().await else { panic!("no call") };
            assert!(!reply.is_closed());
            drop(stream);
            timeout(READ_DEADLINE, reply.closed()).await.unwrap();
            let figures = Figures { durations, ..Figures::default() };
            let text = metrics::text(&figures, None, true).unwrap();
            let counted = r#"cni_call_duration_seconds_count{verb="del",outcome="given-up"} 1"#;
            assert!(text.contains(counted), "{text}");
        });
    }

    #[test]
    fn only_root_may_ask() {
        assert_eq!(authorize(0), Ok(()));
        assert!(authorize(1000).unwrap_err().message.contains("user 1000"));
    }

    #[test]
    fn one_connection_carries_one_request() {
        with_server(|path| {
            let mut stream = BlockingStream::connect(path).unwrap();
            stream.write_all(&protocol::encode(&request()).unwrap()).unwrap();
            let reply: Reply = protocol::read_frame(&mut stream).unwrap();
            assert_eq!(reply, Reply::Deleted);
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        });
    }
}
