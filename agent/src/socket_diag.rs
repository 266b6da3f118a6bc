//! Queries to the kernel about sockets, over sock_diag.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, IPPROTO_UDP, SockDiagDestroy, SockDiagMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

/// Buffer size in bytes for one part of a list: more than the kernel puts into one part
/// (`nlk->max_recvmsg_len`, 32 KiB).
const PART: usize = 1 << 16;

/// A connected UDP socket of the agent's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    family: u8,
    id: SocketId,
}

impl Connected {
    /// Returns all of both families.
    ///
    /// # Errors
    /// The kernel's error, or an answer that does not decode.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        for (family, any) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let socket = open()?;
            let request = SockDiagMessage::InetRequest(request(family, any));
            send(&socket, request.into(), NLM_F_REQUEST | NLM_F_DUMP)?;
            receive(&socket, |message| {
                if let SockDiagMessage::InetResponse(found) = message {
                    all.push(Self { family: found.header.family, id: found.header.socket_id });
                }
            })?;
        }
        Ok(all)
    }

    /// Returns the kernel's number of the socket.
    pub fn cookie(&self) -> u64 {
        // The kernel sends the lower half first.
        let [low, high] = [0, 4].map(|at| {
            let half = self.id.cookie[at..at + 4].try_into().expect("four of eight bytes");
            u64::from(u32::from_ne_bytes(half))
        });
        high << 32 | low
    }

    /// Returns the address that its datagrams leave for. A socket of IPv6 may be connected to an IPv4
    /// address.
    pub fn peer(&self) -> std::net::SocketAddr {
        let SocketId { destination_address, destination_port, .. } = &self.id;
        std::net::SocketAddr::new(destination_address.to_canonical(), *destination_port)
    }

    /// Ends the connection. A process that waits for a datagram gets `ECONNABORTED`, one that sends
    /// gets `EDESTADDRREQ`. Returns whether the socket was still connected there.
    ///
    /// # Errors
    /// The kernel's error; `Unsupported` if it was built without `INET_DIAG_DESTROY`.
    pub fn abort(&self) -> io::Result<bool> {
        let socket = open()?;
        let request = SockDiagMessage::InetRequest(request(self.family, self.id.clone()));
        send(&socket, SockDiagDestroy::new(request).into(), NLM_F_REQUEST | NLM_F_ACK)?;
        match receive(&socket, |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn request(family: u8, socket_id: SocketId) -> InetRequest {
    InetRequest {
        family,
        protocol: IPPROTO_UDP,
        extensions: ExtensionFlags::empty(),
        // UDP uses the name for a connected socket.
        states: StateFlags::ESTABLISHED,
        socket_id,
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn send<T: NetlinkSerializable>(socket: &Socket, payload: NetlinkPayload<T>, flags: u16) -> io::Result<()> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map(drop)
}

/// Takes the messages of an answer, until its end or its acknowledgement.
fn receive(socket: &Socket, mut take: impl FnMut(SockDiagMessage)) -> io::Result<()> {
    let mut part = Vec::with_capacity(PART);
    loop {
        part.clear();
        socket.recv(&mut part, 0)?;
        let mut rest = &part[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(invalid)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(message) => take(message),
                _ => {}
            }
        }
    }
}

fn invalid(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

    use super::*;

    #[test]
    fn sockets_are_listed_and_aborted() {
        let servers = [
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
            UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap(),
        ];
        for server in &servers {
            let to = server.local_addr().unwrap();
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let [client, other] = [0; 2].map(|_| UdpSocket::bind(any).unwrap());
            [&client, &other].into_iter().for_each(|socket| socket.connect(to).unwrap());
            let from = client.local_addr().unwrap().port();
            let is_client = |found: &&Connected| found.id.source_port == from && found.peer() == to;
            let found = Connected::all().unwrap().iter().find(is_client).cloned().unwrap();
            assert_eq!(found.cookie(), rustix::net::sockopt::socket_cookie(&client).unwrap());
            assert!(found.abort().unwrap());
            assert_eq!(client.send(b"lost").unwrap_err().raw_os_error(), Some(libc::EDESTADDRREQ));
            let error = client.recv(&mut [0; 16]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
            assert!(!found.abort().unwrap(), "it is no longer connected");
            other.send(b"arrives").unwrap();
            assert_eq!(server.recv(&mut [0; 16]).unwrap(), 7);
        }
    }

    #[test]
    fn a_socket_of_both_families_has_an_ipv4_peer() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = server.local_addr().unwrap();
        let client = UdpSocket::bind("[::]:0").unwrap();
        client.connect((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), to.port())).unwrap();
        let from = client.local_addr().unwrap().port();
        let is_client = |found: &&Connected| found.id.source_port == from && found.peer() == to;
        let found = Connected::all().unwrap().iter().find(is_client).cloned().unwrap();
        assert!(found.abort().unwrap());
        assert_eq!(client.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    }
}
