//! The host's IPsec policies (`ip xfrm policy`).

use std::io;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_xfrm::constants::{
    XFRM_POLICY_BLOCK, XFRM_POLICY_FWD, XFRM_POLICY_IN, XFRM_POLICY_OUT, XFRM_USERPOLICY_BLOCK,
};
use netlink_packet_xfrm::policy::{DefaultMessage, DelGetMessage, ModifyMessage};
use netlink_packet_xfrm::{Selector, UserPolicyDefault, XfrmAttrs, XfrmMessage};
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
/// From linux/in.h.
const AF_INET: u16 = 2;

/// Returns the IPv4 policies that block packets or require IPsec, sorted. The result is empty if
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

fn policy(message: &XfrmMessage) -> Option<Policy> {
    let XfrmMessage::AddPolicy(ModifyMessage { user_policy_info: info, nlas }) = message else {
        return None;
    };
    let asks =
        nlas.iter().any(|attribute| matches!(attribute, XfrmAttrs::Template(list) if !list.is_empty()));
    // A policy of an xfrm interface concerns only packets that are sent to that interface.
    let is_of_interface = nlas.iter().any(|attribute| matches!(attribute, XfrmAttrs::IfId(id) if *id != 0));
    let has_effect = info.action == XFRM_POLICY_BLOCK || asks;
    if !has_effect || is_of_interface {
        return None;
    }
    let direction = match info.direction {
        XFRM_POLICY_IN => Direction::In,
        XFRM_POLICY_OUT => Direction::Out,
        XFRM_POLICY_FWD => Direction::Forward,
        // A policy of one socket.
        _ => return None,
    };
    let (source, destination) = ends(&info.selector)?;
    Some(Policy { direction, source, destination })
}

/// Returns the networks of a selector. `None` for another family. The kernel applies a selector
/// without a family to both families.
fn ends(selector: &Selector) -> Option<(IpNet, IpNet)> {
    if selector.family != AF_INET
        && (selector.family != 0 || selector.prefixlen_s.max(selector.prefixlen_d) > 32)
    {
        return None;
    }
    let network = |address: IpAddr, length| Some(IpNet::new(address, length).ok()?.trunc());
    Some((
        network(selector.saddr.to_ipv4().into(), selector.prefixlen_s)?,
        network(selector.daddr.to_ipv4().into(), selector.prefixlen_d)?,
    ))
}

/// Returns the defaults that `ip xfrm policy setdefault` has set to block.
fn defaults(message: &XfrmMessage) -> Vec<Policy> {
    let XfrmMessage::GetPolicyDefault(DefaultMessage { user_policy }) = message else {
        return Vec::new();
    };
    let UserPolicyDefault { input, forward, output } = *user_policy;
    let any = IpNet::from(Ipv4Net::default());
    let all = [(input, Direction::In), (output, Direction::Out), (forward, Direction::Forward)];
    let blocked = all.into_iter().filter(|(action, _)| *action == XFRM_USERPOLICY_BLOCK);
    blocked.map(|(_, direction)| Policy { direction, source: any, destination: any }).collect()
}
