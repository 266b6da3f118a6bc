//! Queries to the kernel's connection tracking, over ctnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use podwire_common::abi::Flow;
use podwire_common::addr::{Addr, Be16};
use podwire_common::flow::protocol;

/// Buffer size in bytes for one part of a list: more than the kernel puts into one part
/// (`nlk->max_recvmsg_len`, 32 KiB).
const PART: usize = 1 << 16;
/// Buffer size in bytes for one answer: an entry with all its attributes is a few hundred bytes.
const ANSWER: usize = 8192;

/// A socket to the connection tracking of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens the socket, and asks the kernel a first question.
    ///
    /// # Errors
    /// The kernel's error. Without ctnetlink, the kernel either does not know this protocol or
    /// answers no question: nftables uses the same protocol.
    pub fn open() -> io::Result<Self> {
        let conntrack = Self::connect()?;
        let any = Addr::from(Ipv4Addr::UNSPECIFIED);
        conntrack.knows(&Flow::new(any, any, Be16::new(0), Be16::new(0), protocol::TCP))?;
        Ok(conntrack)
    }

    fn connect() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Returns whether a connection has this TCP or UDP 5-tuple, in either direction, before or
    /// after translation.
    ///
    /// # Errors
    /// The kernel's error, except "no such connection".
    pub fn knows(&self, flow: &Flow) -> io::Result<bool> {
        let (source, destination) = (IpAddr::from(flow.source), IpAddr::from(flow.destination));
        let family = if source.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
        // The kernel finds an entry by the tuple of either direction, whichever attribute carries
        // it.
        let tuple = ConntrackAttribute::CtaTupleOrig(vec![
            Tuple::Ip(vec![IPTuple::SourceAddress(source), IPTuple::DestinationAddress(destination)]),
            Tuple::Proto(vec![
                ProtoTuple::Protocol(Protocol::from(flow.protocol)),
                ProtoTuple::SourcePort(flow.source_port.get()),
                ProtoTuple::DestinationPort(flow.destination_port.get()),
            ]),
        ]);
        self.ask(family, vec![tuple], NLM_F_REQUEST)?;
        let mut answer = Vec::with_capacity(ANSWER);
        self.socket.recv(&mut answer, 0)?;
        let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&answer).map_err(invalid)?;
        match answer.payload {
            NetlinkPayload::InnerMessage(_) => Ok(true),
            NetlinkPayload::Error(error) if error.to_io().kind() == io::ErrorKind::NotFound => Ok(false),
            NetlinkPayload::Error(error) => Err(error.to_io()),
            other => Err(invalid(format!("unexpected answer: {other:?}"))),
        }
    }

    /// Returns both directions of every connection of either family, each as its packets arrive at
    /// the host stack, before translation. The ports of a protocol without ports are 0.
    ///
    /// # Errors
    /// The kernel's error, or an answer that does not decode.
    pub fn flows() -> io::Result<Vec<Flow>> {
        // Use a separate socket. After a list that fails, its remaining messages would be taken for
        // the answer to the next query.
        let list = Self::connect()?;
        list.ask(NetfilterProtoFamily::Unspec, Vec::new(), NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut flows = Vec::new();
        let mut part = Vec::with_capacity(PART);
        loop {
            part.clear();
            list.socket.recv(&mut part, 0)?;
            let mut rest = &part[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(invalid)?;
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(flows),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(NetfilterMessage {
                        inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                        ..
                    }) => flows.extend(attributes.iter().filter_map(flow_of)),
                    _ => {}
                }
            }
        }
    }

    fn ask(
        &self,
        family: NetfilterProtoFamily,
        attributes: Vec<ConntrackAttribute>,
        flags: u16,
    ) -> io::Result<()> {
        let header = NetfilterHeader::new(family, 0, 0);
        let message = NetfilterMessage::new(header, ConntrackMessage::Get(attributes));
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        packet.header.flags = flags;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }
}

/// Returns the 5-tuple of an attribute, if it has one.
fn flow_of(attribute: &ConntrackAttribute) -> Option<Flow> {
    let (ConntrackAttribute::CtaTupleOrig(tuple) | ConntrackAttribute::CtaTupleReply(tuple)) = attribute
    else {
        return None;
    };
    let (mut source, mut destination, mut number) = (None, None, None);
    let (mut source_port, mut destination_port) = (0, 0);
    for part in tuple {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(address) => source = Some(Addr::from(*address)),
                        IPTuple::DestinationAddress(address) => destination = Some(Addr::from(*address)),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(fields) => {
                for field in fields {
                    match field {
                        ProtoTuple::Protocol(protocol) => number = Some(u8::from(*protocol)),
                        ProtoTuple::SourcePort(port) => source_port = *port,
                        ProtoTuple::DestinationPort(port) => destination_port = *port,
                        _ => {}
                    }
                }
            }
            Tuple::Other(_) => {}
            _ => {}
        }
    }
    Some(Flow::new(source?, destination?, Be16::new(source_port), Be16::new(destination_port), number?))
}

fn invalid(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}
