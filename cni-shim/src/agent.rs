//! One request to the node agent, with a deadline for all of it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podwire_cni::fault::{self, Step};
use podwire_cni::protocol::{self, Added, Attachment, Call, Failure, Gc, Reply, Request, codes};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::error::CniError;

/// Time for a request, from connecting to the last byte of the reply. An agent answers in
/// milliseconds. An agent that has not answered after this time is stuck. The runtime waits longer
/// (kubelet: minutes), so it can retry.
pub(crate) const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Time for the request that undoes a failed ADD. It is shorter, because the runtime waits for the
/// error.
pub(crate) const UNDO_DEADLINE: Duration = Duration::from_secs(3);

/// Why there is no answer, or only an unexpected one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error(
        "the podwire agent is not running, not ready or overloaded: no agent accepts connections on {}: \
         {source}; start the agent, or set \"socket\" in the network configuration",
        .socket.display()
    )]
    Absent { socket: PathBuf, source: io::Error },
    #[error("connect to the podwire agent on {}: {source}", .socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("the podwire agent on {} did not answer within {} s", .socket.display(), .deadline.as_secs_f32())]
    Stalled { socket: PathBuf, deadline: Duration },
    #[error("the podwire agent on {} closed the connection before it answered", .socket.display())]
    Closed { socket: PathBuf },
    #[error("talk to the podwire agent on {}: {source}", .socket.display())]
    Broken { socket: PathBuf, source: io::Error },
    #[error("the podwire agent on {} sent an answer that this plugin does not understand: {reason}", .socket.display())]
    Nonsense { socket: PathBuf, reason: String },
    #[error("{0}")]
    Refused(Failure),
}

impl AgentError {
    /// Returns whether the agent may have acted on the request, although no answer came.
    pub(crate) fn may_have_acted(&self) -> bool {
        match self {
            AgentError::Absent { .. } | AgentError::Connect { .. } | AgentError::Refused(_) => false,
            AgentError::Stalled { .. }
            | AgentError::Closed { .. }
            | AgentError::Broken { .. }
            | AgentError::Nonsense { .. } => true,
        }
    }
}

impl From<AgentError> for CniError {
    fn from(error: AgentError) -> Self {
        let code = match &error {
            AgentError::Absent { .. } | AgentError::Stalled { .. } | AgentError::Closed { .. } => {
                codes::TRY_AGAIN_LATER
            }
            AgentError::Connect { .. } | AgentError::Broken { .. } => codes::IO_FAILURE,
            AgentError::Nonsense { .. } => codes::DECODING_FAILURE,
            AgentError::Refused(failure) => failure.code,
        };
        CniError::new(code, error.to_string())
    }
}

/// The agent's socket, and the time that each request may take.
pub(crate) struct Agent<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) deadline: Duration,
}

impl Agent<'_> {
    pub(crate) fn add(&self, add: protocol::Add) -> Result<Added, AgentError> {
        match self.ask(Call::Add(Box::new(add)))? {
            Reply::Added(added) => Ok(added),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Asks whether the agent would refuse an ADD because of its contents. The agent does nothing
    /// else.
    pub(crate) fn propose(&self, add: protocol::Add) -> Result<(), AgentError> {
        match self.ask(Call::Propose(Box::new(add)))? {
            Reply::Acceptable => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    pub(crate) fn del(&self, attachment: &Attachment) -> Result<(), AgentError> {
        match self.ask(Call::Del(attachment.clone()))? {
            Reply::Deleted => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    pub(crate) fn check(&self, attachment: &Attachment) -> Result<Added, AgentError> {
        match self.ask(Call::Check(attachment.clone()))? {
            Reply::Checked(added) => Ok(added),
            other => Err(self.unexpected(&other)),
        }
    }

    pub(crate) fn status(&self) -> Result<(), AgentError> {
        match self.ask(Call::Status)? {
            Reply::Serving => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Returns how many attachments the agent has released.
    pub(crate) fn gc(&self, gc: Gc) -> Result<u32, AgentError> {
        match self.ask(Call::Gc(gc))? {
            Reply::Collected(count) => Ok(count),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Returns the error for an answer that the plugin cannot use.
    pub(crate) fn nonsense(&self, reason: impl ToString) -> AgentError {
        AgentError::Nonsense { socket: self.socket.to_owned(), reason: reason.to_string() }
    }

    fn unexpected(&self, reply: &Reply) -> AgentError {
        match reply {
            Reply::Failed(failure) => AgentError::Refused(failure.clone()),
            Reply::Added(_) => self.nonsense("it answered \"added\" to another request"),
            Reply::Acceptable => self.nonsense("it answered \"acceptable\" to another request"),
            Reply::Deleted => self.nonsense("it answered \"deleted\" to another request"),
            Reply::Checked(_) => self.nonsense("it answered \"checked\" to another request"),
            Reply::Serving => self.nonsense("it answered \"serving\" to another request"),
            Reply::Collected(_) => self.nonsense("it answered \"collected\" to another request"),
        }
    }

    fn ask(&self, call: Call) -> Result<Reply, AgentError> {
        let end = Instant::now() + self.deadline;
        let asked = match call {
            Call::Add(_) => Some(Step::AddAsked),
            Call::Del(_) => Some(Step::DelAsked),
            _ => None,
        };
        let stream = self.connect()?;
        let mut stream = Timed { stream, end };
        protocol::write_frame(&mut stream, &Request::new(call))
            .and_then(|()| asked.map_or(Ok(()), fault::after))
            .and_then(|()| protocol::read_frame(&mut stream))
            .map_err(|error| self.broken(error))
    }

    /// Sets a send timeout before it connects, which `UnixStream::connect` cannot do. A connection
    /// to a listener with a full queue waits, and only that timeout ends the wait.
    fn connect(&self) -> Result<UnixStream, AgentError> {
        let connect = || {
            let address = SocketAddrUnix::new(self.socket)?;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            set_socket_timeout(&socket, Timeout::Send, Some(self.deadline))?;
            connect(&socket, &address)?;
            Ok(UnixStream::from(socket))
        };
        connect().map_err(|source: io::Error| {
            let socket = self.socket.to_owned();
            match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    AgentError::Absent { socket, source }
                }
                // Nothing was sent, so the agent cannot have acted. It may act on a later request.
                io::ErrorKind::WouldBlock => AgentError::Absent { socket, source },
                _ => AgentError::Connect { socket, source },
            }
        })
    }

    fn broken(&self, source: io::Error) -> AgentError {
        let socket = self.socket.to_owned();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                AgentError::Stalled { socket, deadline: self.deadline }
            }
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                AgentError::Closed { socket }
            }
            io::ErrorKind::InvalidData => self.nonsense(source),
            _ => AgentError::Broken { socket, source },
        }
    }
}

/// A stream with one end time for all reads and writes, however many there are.
struct Timed {
    stream: UnixStream,
    end: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.end.saturating_duration_since(Instant::now());
        // A timeout of zero would mean no timeout.
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const DEADLINE: Duration = Duration::from_millis(300);

    fn attachment() -> Attachment {
        Attachment { container_id: "c1".into(), interface: "eth0".into() }
    }

    /// Returns the outcome of a DEL when the agent treats the connection as `serve` does.
    fn check(serve: impl FnOnce(UnixStream) + Send + 'static) -> Result<(), AgentError> {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || serve(listener.accept().unwrap().0));
        let result = Agent { socket: &socket, deadline: DEADLINE }.del(&attachment());
        server.join().unwrap();
        result
    }

    fn answer(mut stream: UnixStream, reply: &Reply) {
        let request: Request = protocol::read_frame(&mut stream).unwrap();
        assert_eq!(request.version, protocol::VERSION);
        assert_eq!(request.call, Call::Del(attachment()));
        protocol::write_frame(&mut stream, reply).unwrap();
    }

    #[test]
    fn a_request_is_answered() {
        check(|stream| answer(stream, &Reply::Deleted)).unwrap();
    }

    #[test]
    fn a_refusal_keeps_its_code_and_words() {
        let failure = Failure { code: 102, message: "10.244.1.7 is taken".into() };
        let reply = Reply::Failed(failure);
        let error = check(move |stream| answer(stream, &reply)).unwrap_err();
        assert!(!error.may_have_acted());
        let error = CniError::from(error);
        assert_eq!((error.code, error.message.as_str()), (102, "10.244.1.7 is taken"));
    }

    #[test]
    fn an_agent_that_says_nothing_is_given_up_at_the_deadline() {
        // The server waits until the plugin hangs up. The plugin does so only when it gives up.
        let error = check(|mut stream| drop(stream.read_to_end(&mut Vec::new()))).unwrap_err();
        assert!(matches!(error, AgentError::Stalled { .. }), "{error}");
        assert!(error.may_have_acted());
        assert_eq!(CniError::from(error).code, codes::TRY_AGAIN_LATER);
    }

    #[test]
    fn an_agent_that_drips_is_given_up_at_the_same_deadline() {
        let error = check(|mut stream| {
            let _: Request = protocol::read_frame(&mut stream).unwrap();
            stream.write_all(&1000_u32.to_be_bytes()).unwrap();
            while stream.write_all(b" ").is_ok() {
                thread::sleep(DEADLINE / 10);
            }
        });
        assert!(matches!(error, Err(AgentError::Stalled { .. })), "{error:?}");
    }

    #[test]
    fn an_agent_that_hangs_up_is_worth_another_try() {
        let error = check(|mut stream| drop(protocol::read_frame::<Request>(&mut stream))).unwrap_err();
        assert!(matches!(error, AgentError::Closed { .. }), "{error}");
        assert_eq!(CniError::from(error).code, codes::TRY_AGAIN_LATER);
    }

    #[test]
    fn an_answer_that_is_none_does_not_decode() {
        let frames: [&[u8]; 3] = [b"\0\0\0\x02{}", b"\xff\xff\xff\xff", b"\0\0\0\x04\"no\""];
        for frame in frames {
            let error = check(move |mut stream| {
                let _: Request = protocol::read_frame(&mut stream).unwrap();
                stream.write_all(frame).unwrap();
            });
            assert_eq!(CniError::from(error.unwrap_err()).code, codes::DECODING_FAILURE);
        }
    }

    #[test]
    fn an_answer_to_something_else_is_nonsense() {
        let added = Added {
            addresses: vec![],
            gateways: vec![],
            mtu: 1500,
            pod_mac: String::new(),
            host_mac: String::new(),
            host_interface: String::new(),
        };
        let reply = Reply::Added(added);
        let error = check(move |stream| answer(stream, &reply)).unwrap_err();
        assert!(matches!(error, AgentError::Nonsense { .. }), "{error}");
    }

    #[test]
    fn nobody_listening_is_said_with_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.sock");
        let dead = folder.path().join("dead.sock");
        drop(UnixListener::bind(&dead).unwrap());
        for socket in [missing, dead] {
            let error = Agent { socket: &socket, deadline: DEADLINE }.del(&attachment()).unwrap_err();
            assert!(error.to_string().contains(socket.to_str().unwrap()), "{error}");
            assert!(error.to_string().contains("not running, not ready or overloaded"), "{error}");
            assert_eq!(CniError::from(error).code, codes::TRY_AGAIN_LATER);
        }
    }
}
