//! Links: the veth pair between node and pod, and the kernel's view of a link.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, State,
};

use crate::mac::Mac;
use crate::netlink::{Netlink, NetlinkError};
use crate::netns::Netns;

/// The kernel's link watch runs at least once a second.
const RUNNING_DEADLINE: Duration = Duration::from_secs(5);

/// A veth pair before it is made.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) host_interface: String,
    pub(crate) pod_interface: String,
    pub(crate) host_mac: Mac,
    pub(crate) pod_mac: Mac,
}

/// The kernel's view of a link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    /// The index of its other end, in the namespace of that end.
    pub(crate) peer: Option<u32>,
    pub(crate) up: bool,
    /// The link has a carrier and a queue (RFC 2863: `up`).
    pub(crate) running: bool,
    pub(crate) mtu: Option<u32>,
    pub(crate) mac: Option<Mac>,
    /// `veth`, `bridge` and so on; empty for a physical device.
    pub(crate) kind: String,
}

impl Pair {
    /// Plans a pair with the given names. The pod side has the given address, if any; all other
    /// addresses are random.
    pub(crate) fn new(
        host_interface: String,
        pod_interface: String,
        pod_mac: Option<Mac>,
    ) -> Result<Self, NetlinkError> {
        let random =
            || Mac::random().map_err(|error| NetlinkError::new("choose a random Ethernet address", error));
        let pod_mac = pod_mac.map_or_else(random, Ok)?;
        Ok(Pair { host_interface, pod_interface, host_mac: random()?, pod_mac })
    }

    /// Creates both ends in one request. The pod's end is created in the pod's namespace, so it
    /// never appears on the node.
    ///
    /// The request sets the addresses, because udev and networkd replace the first addresses of a
    /// new link. The host side is down until the agent has attached its programs. It is NOARP,
    /// because it has no address with which it could resolve others.
    pub(crate) fn create(&self, host: &mut Netlink, pod: &Netns) -> Result<(), NetlinkError> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(self.pod_interface.clone()),
            LinkAttribute::Address(self.pod_mac.0.to_vec()),
            LinkAttribute::NetNsFd(pod.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp;
        message.attributes = vec![
            LinkAttribute::IfName(self.host_interface.clone()),
            LinkAttribute::Address(self.host_mac.0.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        let operation =
            format!("create the veth pair {} with {} in the pod", self.host_interface, self.pod_interface);
        host.change(&operation, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }
}

/// Returns the link with that name, if there is one.
pub(crate) fn find(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes =
        vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    let operation = format!("look up the link {name}");
    match netlink.get(&operation, RouteNetlinkMessage::GetLink(message)) {
        Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(Link::from(&link))),
        Ok(_) => Ok(None),
        Err(error) if error.is_no_device() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until the host side carries what the node sends.
///
/// Both ends are up, but the kernel gives a link its queue only when its link watch has run, a
/// moment later. Until then the kernel drops everything that the host's stack sends to the pod.
/// From Linux 6.8 on, the query itself makes the link watch run, so the first answer is enough.
pub(crate) fn wait_until_running(host: &mut Netlink, name: &str) -> Result<(), NetlinkError> {
    let deadline = Instant::now() + RUNNING_DEADLINE;
    loop {
        match find(host, name)? {
            Some(link) if link.running => return Ok(()),
            _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            link => {
                let state = if link.is_some() { "it does not run" } else { "it is gone" };
                let error =
                    io::Error::new(io::ErrorKind::TimedOut, format!("{state}, but both ends are set up"));
                return Err(NetlinkError::new(format!("wait for the link {name}"), error));
            }
        }
    }
}

/// Removes the host side of a pair, and so the pod's side too. Returns true when there was a pair.
pub(crate) fn delete(host: &mut Netlink, name: &str) -> Result<bool, NetlinkError> {
    let Some(link) = find(host, name)? else { return Ok(false) };
    if link.kind != "veth" {
        let error = io::Error::new(io::ErrorKind::AlreadyExists, "it is not a veth; remove it by hand");
        return Err(NetlinkError::new(format!("remove the link {name}"), error));
    }
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    match host.change(&format!("remove the link {name}"), RouteNetlinkMessage::DelLink(message), 0) {
        Ok(()) => Ok(true),
        // The pod's namespace has gone since the lookup, or the agent was faster.
        Err(error) if error.is_no_device() => Ok(true),
        Err(error) => Err(error),
    }
}

impl Link {
    /// Returns whether the two links are ends of one pair.
    pub(crate) fn is_peer_of(&self, other: &Link) -> bool {
        self.peer == Some(other.index) && other.peer == Some(self.index)
    }
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mut link = Link {
            index: message.header.index,
            peer: None,
            up: message.header.flags.contains(LinkFlags::Up),
            running: false,
            mtu: None,
            mac: None,
            kind: String::new(),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::OperState(state) => link.running = *state == State::Up,
                LinkAttribute::Link(index) => link.peer = Some(*index),
                LinkAttribute::Mtu(mtu) => link.mtu = Some(*mtu),
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            link.kind = kind.to_string();
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}
