//! The host's IPsec policies (`ip xfrm policy`).

use std::io;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_xfrm::constants::{
    XFRM_POLICY_BLOCK, XFRM_POLICY_FWD, XFRM_POLICY_IN, XFRM_POLICY_OUT, XFRM_USERPOLICY_BLOCK,
};
use netlink_packet_xfrm::policy::{DefaultMessage, DelGetMessage, ModifyMessage};
use netlink_packet_xfrm::{Address, Selector, UserPolicyDefault, XfrmAttrs, XfrmMessage};
use podwire_core::ipsec::{Direction, Policy};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_XFRM;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

use super::{LinkError, messages};
use crate::files::FileError;

/// Bytes for one datagram of the kernel's answer.
const ANSWER: usize = 1 << 16;
/// `EPROTONOSUPPORT`: the kernel has no xfrm.
const NOT_SUPPORTED: i32 = 93;
/// From linux/socket.h.
const AF_UNSPEC: u16 = 0;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Returns the policies of both families that block packets or require IPsec, sorted. The result is empty if
/// the kernel has no IPsec.
///
/// # Errors
/// [`LinkError::File`] when the kernel does not answer.
pub(super) async fn policies() -> Result<Vec<Policy>, LinkError> {
    match read().await {
        Err(error) if error.raw_os_error() == Some(NOT_SUPPORTED) => Ok(Vec::new()),
        outcome => Ok(outcome.map_err(FileError::of("read", "the host's IPsec policies"))?),
    }
}

async fn read() -> io::Result<Vec<Policy>> {
    let mut socket = TokioSocket::new(NETLINK_XFRM)?;
    socket.socket_mut().bind_auto()?;
    let mut policies = Vec::new();
    let all = XfrmMessage::GetPolicy(DelGetMessage::default());
    ask(&socket, all, NLM_F_REQUEST | NLM_F_DUMP, |answer| policies.extend(policy(&answer))).await?;
    let default = XfrmMessage::GetPolicyDefault(DefaultMessage::default());
    let asked =
        ask(&socket, default, NLM_F_REQUEST | NLM_F_ACK, |answer| policies.extend(defaults(&answer))).await;
    // Before Linux 5.15 there are no default policies: the kernel lets packets pass.
    if let Err(error) = asked
        && error.kind() != io::ErrorKind::InvalidInput
    {
        return Err(error);
    }
    policies.sort();
    policies.dedup();
    Ok(policies)
}

/// Asks the kernel, and calls `show` for every message of its answer.
async fn ask(
    socket: &TokioSocket,
    question: XfrmMessage,
    flags: u16,
    mut show: impl FnMut(XfrmMessage),
) -> io::Result<()> {
    let mut question = NetlinkMessage::from(question);
    question.header.flags = flags;
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0)).await?;
    loop {
        let mut answer = Vec::with_capacity(ANSWER);
        socket.recv(&mut answer).await?;
        for message in messages(&answer) {
            match message.map_err(io::Error::other)?.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(message) => show(message),
                _ => {}
            }
        }
    }
}

/// Returns the policies of a message. There are two if the selector has no family.
fn policy(message: &XfrmMessage) -> Vec<Policy> {
    let XfrmMessage::AddPolicy(ModifyMessage { user_policy_info: info, nlas }) = message else {
        return Vec::new();
    };
    let asks =
        nlas.iter().any(|attribute| matches!(attribute, XfrmAttrs::Template(list) if !list.is_empty()));
    // A policy of an xfrm interface concerns only packets that are sent to that interface.
    let is_of_interface = nlas.iter().any(|attribute| matches!(attribute, XfrmAttrs::IfId(id) if *id != 0));
    let has_effect = info.action == XFRM_POLICY_BLOCK || asks;
    if !has_effect || is_of_interface {
        return Vec::new();
    }
    let direction = match info.direction {
        XFRM_POLICY_IN => Direction::In,
        XFRM_POLICY_OUT => Direction::Out,
        XFRM_POLICY_FWD => Direction::Forward,
        // A policy of one socket.
        _ => return Vec::new(),
    };
    let ends = [AF_INET, AF_INET6].into_iter().filter_map(|family| ends(&info.selector, family));
    ends.map(|(source, destination)| Policy { direction, source, destination }).collect()
}

/// Returns a selector's networks of a family. `None` for a selector of the other family. The kernel
/// applies a selector without a family to both families.
fn ends(selector: &Selector, family: u16) -> Option<(IpNet, IpNet)> {
    if ![family, AF_UNSPEC].contains(&selector.family) {
        return None;
    }
    let network = |address: &Address, length| {
        let address = match family {
            AF_INET => IpAddr::V4(address.to_ipv4()),
            _ => IpAddr::V6(address.to_ipv6()),
        };
        // A prefix length that is too large for IPv4 belongs to IPv6.
        Some(IpNet::new(address, length).ok()?.trunc())
    };
    Some((network(&selector.saddr, selector.prefixlen_s)?, network(&selector.daddr, selector.prefixlen_d)?))
}

/// Returns the defaults that `ip xfrm policy setdefault` has set to block.
fn defaults(message: &XfrmMessage) -> Vec<Policy> {
    let XfrmMessage::GetPolicyDefault(DefaultMessage { user_policy }) = message else {
        return Vec::new();
    };
    let UserPolicyDefault { input, forward, output } = *user_policy;
    let any: [IpNet; 2] = [Ipv4Net::default().into(), Ipv6Net::default().into()];
    let all = [(input, Direction::In), (output, Direction::Out), (forward, Direction::Forward)];
    let blocked = all.into_iter().filter(|(action, _)| *action == XFRM_USERPOLICY_BLOCK);
    let of_both = |(_, direction)| any.map(|any| Policy { direction, source: any, destination: any });
    blocked.flat_map(of_both).collect()
}
