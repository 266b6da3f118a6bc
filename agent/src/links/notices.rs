//! The kernel's notices of changes that others make.

use std::io;

use netlink_packet_xfrm::constants::XFRMNLGRP_POLICY;
use podwire_common::names::ROUTE_PROTOCOL;
use podwire_core::host::is_own_device;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::sys::protocols::{NETLINK_ROUTE, NETLINK_XFRM};
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

use super::{LinkError, mask, messages};
use crate::files::FileError;

/// Bytes for one datagram of notices: at most 8 kB (`NLMSG_GOODSIZE`, include/linux/netlink.h).
const NOTICES: usize = 1 << 14;
/// `ENOBUFS`.
const NO_BUFFER_SPACE: i32 = 105;
const WHAT: &str = "the kernel's notices of links";
const GROUPS: [MulticastGroup; 4] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route, MulticastGroup::Nexthop];

/// The kernel's notices of changed links, addresses, routes and IPsec policies.
pub struct Notices {
    routes: TokioSocket,
    /// `None`: the kernel has no IPsec.
    policies: Option<TokioSocket>,
}

impl Notices {
    /// Begins to listen, in the network namespace of the calling thread. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`LinkError::File`] when the socket cannot be opened.
    pub fn listen() -> Result<Self, LinkError> {
        let routes = open(NETLINK_ROUTE, mask(&GROUPS)).map_err(FileError::of("open", WHAT))?;
        let policies = open(NETLINK_XFRM, 1 << (XFRMNLGRP_POLICY - 1)).ok();
        Ok(Self { routes, policies })
    }

    /// Waits for notices, and returns whether any of them concerns an object that the agent does
    /// not own.
    ///
    /// # Errors
    /// [`LinkError::File`] when the socket cannot be read.
    pub async fn is_of_others(&self) -> Result<bool, LinkError> {
        let (mut bytes, mut policy) = (Vec::with_capacity(NOTICES), Vec::with_capacity(NOTICES));
        let outcome = tokio::select! {
            outcome = self.routes.recv(&mut bytes) => outcome,
            outcome = receive(self.policies.as_ref(), &mut policy) => outcome,
        };
        match outcome {
            Ok(()) => Ok(!policy.is_empty() || is_any_of_others(&bytes)),
            // The socket had no room for all notices.
            Err(error) if error.raw_os_error() == Some(NO_BUFFER_SPACE) => Ok(true),
            Err(error) => Err(FileError::of("read", WHAT)(error).into()),
        }
    }
}

fn open(protocol: isize, groups: u32) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

/// Receives from a socket. Without a socket, it never returns.
async fn receive(socket: Option<&TokioSocket>, bytes: &mut Vec<u8>) -> io::Result<()> {
    match socket {
        Some(socket) => socket.recv(bytes).await,
        None => std::future::pending().await,
    }
}

fn is_any_of_others(bytes: &[u8]) -> bool {
    messages(bytes).any(|notice| !notice.is_ok_and(|notice| is_own(&notice)))
}

/// Returns whether a notice concerns a pod's link, the tunnel and its addresses, or one of the
/// agent's routes.
fn is_own(notice: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    let NetlinkPayload::InnerMessage(message) = &notice.payload else {
        return true;
    };
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            name_of(link).is_some_and(is_own_device)
        }
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            let label = address.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Label(name) => Some(name.as_str()),
                _ => None,
            });
            label.is_some_and(is_own_device)
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
        }
        _ => false,
    }
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}
