//! Questions to the kernel's connection tracking, over ctnetlink.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use podwire_common::abi::Flow;

/// Room for one answer: an entry with all its attributes is a few hundred bytes.
const ANSWER: usize = 8192;

/// A socket to connection tracking of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens the socket.
    ///
    /// # Errors
    /// The kernel's: without ctnetlink there is no such protocol.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Whether a connection has this TCP or UDP 5-tuple, in either direction, before or after translation.
    ///
    /// # Errors
    /// The kernel's, for anything but "no such connection".
    pub fn knows(&self, flow: &Flow) -> io::Result<bool> {
        let (source, destination) = (IpAddr::from(flow.source), IpAddr::from(flow.destination));
        let family = if source.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
        // The kernel finds an entry by either of its tuples, whichever attribute names it.
        let tuple = ConntrackAttribute::CtaTupleOrig(vec![
            Tuple::Ip(vec![IPTuple::SourceAddress(source), IPTuple::DestinationAddress(destination)]),
            Tuple::Proto(vec![
                ProtoTuple::Protocol(Protocol::from(flow.protocol)),
                ProtoTuple::SourcePort(flow.source_port.get()),
                ProtoTuple::DestinationPort(flow.destination_port.get()),
            ]),
        ]);
        let header = NetfilterHeader::new(family, 0, 0);
        let message = NetfilterMessage::new(header, ConntrackMessage::Get(vec![tuple]));
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        packet.header.flags = NLM_F_REQUEST;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answer = Vec::with_capacity(ANSWER);
        self.socket.recv(&mut answer, 0)?;
        let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&answer)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        match answer.payload {
            NetlinkPayload::InnerMessage(_) => Ok(true),
            NetlinkPayload::Error(error) if error.to_io().kind() == io::ErrorKind::NotFound => Ok(false),
            NetlinkPayload::Error(error) => Err(error.to_io()),
            other => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("an answer that was not expected: {other:?}"),
            )),
        }
    }
}
