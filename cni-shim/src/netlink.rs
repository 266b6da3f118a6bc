//! Blocking rtnetlink: one request at a time, and the caller waits for each answer.

use std::io;

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use podwire_cni::protocol::codes;
use rustix::io::Errno;

use crate::error::CniError;

/// `NLMSGERR_ATTR_MSG`: the kernel's own message about a refusal.
const ERROR_ATTRIBUTE_MESSAGE: u16 = 1;
/// Length of the refused request's header, which stands before the attributes of an error.
const MESSAGE_HEADER_LENGTH: usize = 16;

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {source}{}", .reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default())]
pub(crate) struct NetlinkError {
    operation: String,
    source: io::Error,
    /// The kernel's own message, if there is one.
    reason: Option<String>,
}

impl NetlinkError {
    pub(crate) fn new(operation: impl Into<String>, source: io::Error) -> Self {
        NetlinkError { operation: operation.into(), source, reason: None }
    }

    /// Returns whether the kernel says that there is no such link.
    pub(crate) fn is_no_device(&self) -> bool {
        self.source.raw_os_error() == Some(Errno::NODEV.raw_os_error())
    }
}

impl From<NetlinkError> for CniError {
    fn from(error: NetlinkError) -> Self {
        CniError::new(codes::NETLINK_FAILURE, error.to_string())
    }
}

/// A socket of the network namespace in which it was opened. It stays there when the process enters
/// another one.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the process's current network namespace.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_ext_ack(true)?;
            // The error then contains no copy of the refused request, so its attributes follow the
            // header directly.
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|error| NetlinkError::new("open a netlink socket", error))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sends a request for a change. `operation` names it in the error. `flags` are flags beyond
    /// request and acknowledgement.
    pub(crate) fn change(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.exchange(operation, message, NLM_F_ACK | flags).map(drop)
    }

    /// Requests one object.
    pub(crate) fn get(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        // With an acknowledgement, the exchange ends in the same way with or without an object.
        Ok(self.exchange(operation, message, NLM_F_ACK)?.into_iter().next())
    }

    /// Requests all objects of a kind.
    pub(crate) fn dump(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.exchange(operation, message, NLM_F_DUMP)
    }

    fn exchange(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let failed = |error| NetlinkError::new(operation, error);
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(failed)?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(failed)?;
            for part in Parts(&datagram) {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(part)
                    .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        let reason = reason(&error);
                        return Err(NetlinkError { reason, ..failed(error.to_io()) });
                    }
                    _ => {}
                }
            }
        }
    }
}

fn reason(error: &ErrorMessage) -> Option<String> {
    let attributes = error.header.get(MESSAGE_HEADER_LENGTH..)?;
    let message = NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == ERROR_ATTRIBUTE_MESSAGE)?;
    Some(String::from_utf8_lossy(message.value()).trim_end_matches('\0').to_owned())
}

/// The messages in a datagram, each with its header.
struct Parts<'a>(&'a [u8]);

impl<'a> Iterator for Parts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_ne_bytes(*self.0.first_chunk()?) as usize;
        // With an impossible length, the rest is one part: the decoder then reports the error.
        let valid = (MESSAGE_HEADER_LENGTH..=self.0.len()).contains(&length);
        let length = if valid { length } else { self.0.len() };
        let part = &self.0[..length];
        self.0 = &self.0[length.next_multiple_of(4).min(self.0.len())..];
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use super::*;

    #[test]
    fn a_datagram_is_split_at_its_messages() {
        let message = |length: u32| {
            let mut bytes = vec![0; (length as usize).next_multiple_of(4)];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes
        };
        let datagram = [message(16), message(18), message(20)].concat();
        let lengths: Vec<_> = Parts(&datagram).map(<[u8]>::len).collect();
        assert_eq!(lengths, [16, 18, 20]);
    }

    #[test]
    fn a_length_that_cannot_be_ends_the_split() {
        for length in [0, 15, 4096_u32] {
            let mut datagram = vec![0; 32];
            datagram[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Parts(&datagram).map(<[u8]>::len).collect::<Vec<_>>(), [32]);
        }
    }

    #[test]
    fn the_kernels_own_words_are_found_in_a_refusal() {
        let mut error = ErrorMessage::default();
        error.code = NonZeroI32::new(-22);
        error.header = [&[0; 16][..], &[8, 0, 1, 0], b"odd\0"].concat();
        assert_eq!(reason(&error).as_deref(), Some("odd"));
        error.header.truncate(16);
        assert_eq!(reason(&error), None);
    }
}
