//! The plugin's entry to the agent: a Unix socket that only root may use, with one request per
//! connection.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podwire_cni::protocol::{self, Failure, Reply, Request, codes};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{interval, timeout};
use tracing::{debug, error, warn};

use crate::connections::{Connections, Place};
use crate::events::Event;
use crate::files::FileError;
use crate::housekeeping::INTERVAL;
use crate::lock::ClaimError;
use crate::lock::{Held, Lock};

/// The socket's name in the run folder.
pub const SOCKET: &str = "agent.sock";
const HELD: Held = Held { name: "the socket", option: "--socket or --run-dir" };
/// Longest time to read a request or to write a reply. The plugin sends its request at once, so a
/// slower peer is not the plugin.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// Longest time until the daemon answers. The plugin gives up earlier. Any other client that waits
/// as long gets an error as the reply.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Largest number of connections open at once. Further requests wait in the socket's queue. A
/// client that has sent no request loses its connection to a new one.
const CONNECTIONS: usize = 128;

/// The listening socket. Dropping it removes its file.
#[derive(Debug)]
pub struct CniServer {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file.
    file: (u64, u64),
    lock: Lock,
    /// The last logged reason why no plugin reaches the socket.
    unreachable: Option<String>,
}

impl CniServer {
    /// Listens on a socket that [`hold`] has locked. Replaces the socket of a dead agent.
    ///
    /// # Errors
    /// [`ClaimError::File`].
    pub fn bind(path: &Path, lock: Lock) -> Result<Self, ClaimError> {
        let (listener, file) = listen(path)?;
        Ok(Self { listener, path: path.into(), file, lock, unreachable: None })
    }

    /// Returns whether the file that plugins connect to is this socket's.
    fn has_its_file(&self) -> bool {
        identity(&self.path).is_ok_and(|file| file == self.file)
    }

    /// Listens again if the socket's file was removed or replaced, because plugins then no longer
    /// find this socket.
    ///
    /// # Errors
    /// [`ClaimError::File`] if the socket's folder was removed under its mount. Only a new mount
    /// helps, and a container gets one when it starts again. Other errors are logged, and the next
    /// check tries again.
    fn listen_again(&mut self) -> Result<(), ClaimError> {
        match self.try_listen_again() {
            Ok(again) => {
                if again {
                    warn!(socket = %self.path.display(), "another program removed or replaced the socket's file: the agent made a new one and listens on it");
                }
                self.unreachable = None;
            }
            Err(gone @ ClaimError::File(FileError::RemovedFolder { .. })) => return Err(gone),
            Err(error) => {
                let why = Some(error.to_string());
                if self.unreachable != why {
                    error!(
                        "the socket's file or its lock was removed or replaced, and the agent cannot make it again, so plugins may not reach this agent: {error}"
                    );
                    self.unreachable = why;
                }
            }
        }
        Ok(())
    }

    fn try_listen_again(&mut self) -> Result<bool, ClaimError> {
        if !self.lock.is_there() {
            self.lock = take_lock(&self.path)?;
        }
        if self.has_its_file() {
            return Ok(false);
        }
        refuse_a_foreign_server(&self.path)?;
        (self.listener, self.file) = listen(&self.path)?;
        Ok(true)
    }

    /// Serves until the receiver of the events is dropped.
    ///
    /// # Errors
    /// [`ClaimError::File`] if the socket's folder was removed under its mount.
    pub async fn serve(mut self, events: mpsc::Sender<Event>) -> Result<(), ClaimError> {
        let connections = Connections::new(CONNECTIONS);
        let mut looks = interval(INTERVAL);
        loop {
            connections.room().await;
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = events.closed() => return Ok(()),
                _ = looks.tick() => {
                    self.listen_again()?;
                    continue;
                }
            };
            let events = events.clone();
            match accepted {
                Ok((stream, _)) => connections.spawn(async move |place| {
                    if let Err(error) = converse(stream, &events, &place).await {
                        debug!("the connection of a plugin failed: {error}");
                    }
                }),
                Err(error) => {
                    // The process is probably out of file descriptors. Wait until others are
                    // closed.
                    warn!("cannot accept a plugin's connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for CniServer {
    fn drop(&mut self) {
        if self.has_its_file() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Locks a socket against other agents, before the agent touches anything on the node. Makes the
/// socket's folder if it is missing.
///
/// # Errors
/// [`ClaimError::Locked`] with the agent that serves the socket; [`ClaimError::SocketInUse`] if
/// another program serves it; [`ClaimError::File`].
pub fn hold(socket: &Path) -> Result<Lock, ClaimError> {
    let lock = take_lock(socket)?;
    refuse_a_foreign_server(socket)?;
    Ok(lock)
}

fn take_lock(socket: &Path) -> Result<Lock, ClaimError> {
    if let Some(folder) = socket.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
        made.map_err(FileError::of("create", folder))?;
    }
    Lock::by_file(&lock_of(socket), HELD, socket)
}

fn refuse_a_foreign_server(socket: &Path) -> Result<(), ClaimError> {
    match BlockingStream::connect(socket) {
        Ok(_) => Err(ClaimError::SocketInUse { path: socket.into() }),
        Err(_) => Ok(()),
    }
}

/// Returns a listening socket and the identity of its file. The file has mode 0600 from the moment
/// it gets its name.
fn listen(path: &Path) -> Result<(UnixListener, (u64, u64)), ClaimError> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary).map_err(|error| match (error.kind(), path.parent()) {
        // The folder existed a moment ago, so it was removed under its mount.
        (io::ErrorKind::NotFound, Some(folder)) => FileError::RemovedFolder { path: folder.into() },
        _ => FileError::of("listen on", &temporary)(error),
    })?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(FileError::of("listen on", path))?;
    let file = identity(path).map_err(FileError::of("look up", path))?;
    Ok((listener, file))
}

/// Locks a socket if an agent has ever used it. Returns `None` if no agent has.
///
/// # Errors
/// [`ClaimError::Locked`], [`ClaimError::File`].
pub(crate) fn hold_if_there(socket: &Path) -> Result<Option<Lock>, ClaimError> {
    let path = lock_of(socket);
    if path.exists() { Lock::by_file(&path, HELD, socket).map(Some) } else { Ok(None) }
}

/// Returns the path of the file that an agent locks while it serves a socket.
pub(crate) fn lock_of(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

async fn converse(mut stream: UnixStream, events: &mpsc::Sender<Event>, place: &Place) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let reply = match authorize(peer) {
        Err(failure) => Reply::Failed(failure),
        Ok(()) => match timeout(READ_DEADLINE, read_request(&mut stream)).await {
            Ok(Ok(request)) => {
                place.keep();
                tokio::select! {
                    // Checked first: do not begin a request if the plugin no longer waits for it.
                    biased;
                    () = hung_up(&mut stream) => return Ok(()),
                    reply = ask(request, events) => reply,
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
    use std::os::fd::AsRawFd as _;

    fn served(path: &Path) -> CniServer {
        CniServer::bind(path, hold(path).unwrap()).unwrap()
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
            tokio::spawn(server.serve(sender));
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
            tokio::spawn(served(&path).serve(sender));
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(&protocol::encode(&request()).unwrap()).await.unwrap();
            let Some(Event::Call { mut reply, .. }) = events.recv().await else { panic!("no call") };
            assert!(!reply.is_closed());
            drop(stream);
            timeout(READ_DEADLINE, reply.closed()).await.unwrap();
        });
    }

    #[test]
    fn only_root_may_ask() {
        assert_eq!(authorize(0), Ok(()));
        assert!(authorize(1000).unwrap_err().message.contains("user 1000"));
    }

    #[test]
    fn the_socket_is_roots_alone_and_goes_with_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/agent.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let server = served(&path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(hold(&path), Err(ClaimError::Locked { .. })));
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_agents_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        served(&path);
    }

    #[test]
    fn removed_or_replaced_socket_file_is_listened_on_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/agent.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let mut server = served(&path);
        server.listen_again().unwrap();
        let first = server.file;
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        server.listen_again().unwrap();
        BlockingStream::connect(&path).unwrap();
        // The socket of a process that has ended.
        fs::remove_file(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        server.listen_again().unwrap();
        BlockingStream::connect(&path).unwrap();
        assert!(server.has_its_file() && first.0 == server.file.0);
        // The socket of another live server stays, even when this server is dropped.
        fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        server.listen_again().unwrap();
        drop(server);
        assert!(path.exists());
    }

    #[test]
    fn a_folder_that_was_removed_under_its_mount_ends_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let held = fs::File::open(folder.path()).unwrap();
        // Like a mount, this path reaches the folder even after the folder has lost its name.
        let path = PathBuf::from(format!("/proc/self/fd/{}/agent.sock", held.as_raw_fd()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let mut server = served(&path);
        server.listen_again().unwrap();
        folder.close().unwrap();
        assert!(matches!(server.listen_again(), Err(ClaimError::File(FileError::RemovedFolder { .. }))));
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
