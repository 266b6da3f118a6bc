//! A Unix socket that only root may use. One agent holds it, by a lock beside the socket's file.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::interval;
use tracing::{error, warn};

use crate::connections::{Connections, Place};
use crate::files::FileError;
use crate::housekeeping::INTERVAL;
use crate::lock::{ClaimError, Held, Lock};

const HELD: Held = Held { name: "the socket", option: "--socket or --run-dir" };

/// The listening socket. Dropping it removes its file.
#[derive(Debug)]
pub struct ListeningSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file.
    file: (u64, u64),
    lock: Lock,
    /// The last logged reason why no client reaches the socket.
    unreachable: Option<String>,
}

impl ListeningSocket {
    /// Listens on a socket that [`hold`] has locked. Replaces the socket of a dead agent.
    ///
    /// # Errors
    /// [`ClaimError::File`].
    pub fn bind(path: &Path, lock: Lock) -> Result<Self, ClaimError> {
        let (listener, file) = listen(path)?;
        Ok(Self { listener, path: path.into(), file, lock, unreachable: None })
    }

    /// Returns whether the file that clients connect to is this socket's.
    fn has_its_file(&self) -> bool {
        identity(&self.path).is_ok_and(|file| file == self.file)
    }

    /// Listens again if the socket's file was removed or replaced, because clients then no longer
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
                        "the socket's file or its lock was removed or replaced, and the agent cannot make it again, so clients of {} may not reach this agent: {error}",
                        self.path.display()
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

    /// Serves connections until `closed` is ready. `who` sends requests, for messages.
    ///
    /// # Errors
    /// [`ClaimError::File`] if the socket's folder was removed under its mount.
    pub(crate) async fn serve<F>(
        mut self,
        who: &str,
        most: usize,
        closed: impl Future<Output = ()>,
        serve: impl Fn(UnixStream, Place) -> F,
    ) -> Result<(), ClaimError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let connections = Connections::new(most);
        let mut looks = interval(INTERVAL);
        let mut closed = pin!(closed);
        loop {
            connections.room().await;
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = &mut closed => return Ok(()),
                _ = looks.tick() => {
                    self.listen_again()?;
                    continue;
                }
            };
            match accepted {
                Ok((stream, _)) => connections.spawn(|place| serve(stream, place)),
                Err(error) => {
                    // The process is probably out of file descriptors. Wait until others are
                    // closed.
                    warn!("cannot accept a connection of {who}: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for ListeningSocket {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    fn served(path: &Path) -> ListeningSocket {
        ListeningSocket::bind(path, hold(path).unwrap()).unwrap()
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
}
