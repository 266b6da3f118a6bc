//! The pod's side: sets up the agent's answer inside the pod's namespace, and compares it later.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::tc::TcMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podwire_cni::protocol::{Added, Limit, codes};
use podwire_cni::token_bucket;
use podwire_common::token_bucket::TokenBucket;

use crate::config_error::ConfigError;
use crate::error::CniError;
use crate::ipv6;
use crate::mac::{Mac, NotAMac};
use crate::netlink::{Netlink, NetlinkError};
use crate::netns::Netns;
use crate::routes::{self, Asked, Route};
use crate::veth;

/// The index of `lo` in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK_INDEX: u32 = 1;
const LOOPBACK: &str = "lo";
/// Pause between two looks at an address that the kernel does not serve yet.
const POLL: Duration = Duration::from_micros(200);
/// Time after which a pod is used although the kernel does not serve its address yet. The kernel
/// takes less than 1 ms, unless the node is overloaded.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(1);

/// How a pod's link must look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodNetwork {
    pub(crate) addresses: Vec<Address>,
    pub(crate) mtu: u32,
    pub(crate) pod_mac: Mac,
    pub(crate) host_mac: Mac,
    pub(crate) host_interface: String,
}

/// A pod's address, and its only next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) address: IpAddr,
    pub(crate) gateway: IpAddr,
}

/// An answer of the agent that cannot be used to configure a link.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("no address")]
    NoAddress,
    #[error("{0} does not have the full prefix length of a pod's address")]
    Prefix(IpNet),
    #[error("{0} has no gateway of its family")]
    NoGateway(IpAddr),
    #[error("two addresses of one family: {0} is the second")]
    SecondOfFamily(IpAddr),
    #[error(transparent)]
    Mac(#[from] NotAMac),
}

/// An MTU with which the kernel takes IPv6 off the pod's link.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the pod's address {address} needs a link with an MTU of at least {} bytes (RFC 8200 section 5), not {mtu}: raise mtu \
     in the network configuration, or the MTU of the node's uplinks",
    ipv6::MIN_MTU
)]
pub(crate) struct MtuTooSmall {
    address: IpAddr,
    mtu: u32,
}

impl From<MtuTooSmall> for CniError {
    fn from(error: MtuTooSmall) -> Self {
        CniError::new(codes::INVALID_CONFIGURATION, error.to_string())
    }
}

impl TryFrom<Added> for PodNetwork {
    type Error = Unusable;

    fn try_from(added: Added) -> Result<Self, Unusable> {
        let mut addresses: Vec<Address> = Vec::new();
        for net in &added.addresses {
            let address = net.addr();
            if net.prefix_len() != net.max_prefix_len() {
                return Err(Unusable::Prefix(*net));
            }
            if addresses.iter().any(|other| other.address.is_ipv4() == address.is_ipv4()) {
                return Err(Unusable::SecondOfFamily(address));
            }
            let gateway = added.gateways.iter().find(|gateway| gateway.is_ipv4() == address.is_ipv4());
            addresses.push(Address { address, gateway: *gateway.ok_or(Unusable::NoGateway(address))? });
        }
        if addresses.is_empty() {
            return Err(Unusable::NoAddress);
        }
        Ok(PodNetwork {
            addresses,
            mtu: added.mtu,
            pod_mac: added.pod_mac.parse()?,
            host_mac: added.host_mac.parse()?,
            host_interface: added.host_interface,
        })
    }
}

impl PodNetwork {
    /// Returns the pod's routes, including those of the configuration.
    pub(crate) fn routes(&self, asked: &[Asked]) -> Result<Vec<Route>, ConfigError> {
        let gateways: Vec<_> = self.addresses.iter().map(|pair| pair.gateway).collect();
        routes::of_pod(&gateways, self.mtu, asked)
    }

    pub(crate) fn has_ipv4(&self) -> bool {
        self.addresses.iter().any(|pair| pair.address.is_ipv4())
    }

    pub(crate) fn has_ipv6(&self) -> bool {
        self.ipv6().is_some()
    }

    /// Returns an error if the link's MTU is too small for the pod's addresses.
    pub(crate) fn require_mtu(&self) -> Result<(), MtuTooSmall> {
        match self.ipv6() {
            Some(address) if self.mtu < ipv6::MIN_MTU => Err(MtuTooSmall { address, mtu: self.mtu }),
            _ => Ok(()),
        }
    }

    fn ipv6(&self) -> Option<IpAddr> {
        self.addresses.iter().map(|pair| pair.address).find(IpAddr::is_ipv6)
    }
}

/// Sets the IPv6 switches inside a pod that has an IPv6 address. The link is still down.
pub(crate) fn switch_ipv6_on(netns: &Netns, interface: &str) -> Result<(), CniError> {
    netns.inside(|| {
        ipv6::set(interface, &ipv6::OF_PAIR)?;
        ipv6::set(LOOPBACK, &ipv6::OF_LOOPBACK)
    })??;
    Ok(())
}

/// Returns each difference from what [`switch_ipv6_on`] has set.
fn ipv6_faults(netns: &Netns, interface: &str) -> Result<Vec<String>, CniError> {
    let faults = netns.inside(|| {
        let own = ipv6::faults(interface, &ipv6::OF_PAIR)?;
        let loopback = ipv6::faults(LOOPBACK, &ipv6::OF_LOOPBACK)?;
        Ok::<_, ipv6::SwitchError>([own, loopback].concat())
    })??;
    Ok(faults.into_iter().map(|fault| format!("{fault} in the pod")).collect())
}

/// Sets up `interface` inside the pod. `egress`: how fast the pod may send.
pub(crate) fn configure(
    pod: &mut Netlink,
    interface: &str,
    network: &PodNetwork,
    routes: &[Route],
    egress: Option<Limit>,
) -> Result<(), NetlinkError> {
    let link = veth::find(pod, interface)?.ok_or_else(|| {
        let gone = std::io::Error::new(std::io::ErrorKind::NotFound, "it is gone");
        NetlinkError::new(format!("look up {interface} in the pod"), gone)
    })?;
    set_up(pod, "set lo up in the pod", LOOPBACK_INDEX, None)?;
    if let Some(limit) = egress {
        set_limit(pod, interface, link.index, token_bucket::of_limit(limit, network.mtu))?;
    }
    let operation = format!("set {interface} up in the pod with MTU {}", network.mtu);
    set_up(pod, &operation, link.index, Some(network.mtu))?;
    for address in &network.addresses {
        add_address(pod, interface, link.index, address.address)?;
        add_neighbour(pod, link.index, address.gateway, network.host_mac)?;
    }
    routes.iter().try_for_each(|route| routes::add(pod, link.index, route))?;
    network.ipv6().map_or(Ok(()), |address| await_delivery(pod, address))
}

/// Waits until the kernel delivers packets for an IPv6 address. A worker of the kernel adds the
/// address's local route later, even without duplicate address detection (`addrconf_dad_work`,
/// net/ipv6/addrconf.c). Until then the pod drops what it receives.
fn await_delivery(pod: &mut Netlink, address: IpAddr) -> Result<(), NetlinkError> {
    let begun = Instant::now();
    while !routes::is_local(pod, address)? && begun.elapsed() < DELIVERY_PATIENCE {
        thread::sleep(POLL);
    }
    Ok(())
}

/// Returns each difference from the state that [`configure`] and [`switch_ipv6_on`] made. Other
/// links, addresses and routes belong to other plugins.
pub(crate) fn faults<'a>(
    netns: &Netns,
    pod: &mut Netlink,
    interface: &str,
    network: &PodNetwork,
    wanted: impl Iterator<Item = &'a Route>,
    egress: Option<(Limit, TokenBucket)>,
) -> Result<Vec<String>, CniError> {
    let Some(link) = veth::find(pod, interface)? else {
        return Ok(vec![format!("{interface} is missing in the pod")]);
    };
    let mut faults = Vec::new();
    let mut expect = |good: bool, fault: String| {
        if !good {
            faults.push(fault);
        }
    };
    expect(link.up, format!("{interface} is down"));
    let mac = link.mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string());
    expect(
        link.mac == Some(network.pod_mac),
        format!("{interface} has the MAC address {mac}, not {}", network.pod_mac),
    );
    let mtu = link.mtu.unwrap_or_default();
    expect(mtu == network.mtu, format!("{interface} has MTU {mtu}, not {}", network.mtu));
    if let Some((limit, bucket)) = egress {
        expect(
            has_limit(pod, link.index, bucket)?,
            format!("the limit of {} bits/s for what it sends is missing on {interface}", limit.rate),
        );
    }

    let addresses = addresses_of(pod, link.index)?;
    let neighbours = permanent_neighbours_of(pod, link.index)?;
    for Address { address, gateway } in &network.addresses {
        expect(
            addresses.contains(address),
            format!("address {} is missing on {interface}", IpNet::from(*address)),
        );
        expect(
            neighbours.contains(&(*gateway, network.host_mac)),
            format!("permanent neighbour {gateway} at {} is missing on {interface}", network.host_mac),
        );
    }
    faults.extend(routes::faults(pod, interface, link.index, wanted)?);
    if network.has_ipv6() {
        faults.extend(ipv6_faults(netns, interface)?);
    }
    Ok(faults)
}

fn set_up(pod: &mut Netlink, operation: &str, index: u32, mtu: Option<u32>) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = mtu.map(LinkAttribute::Mtu).into_iter().collect();
    pod.change(operation, RouteNetlinkMessage::SetLink(message), 0)
}

/// Limits the pod's egress in its own namespace. There the queue makes the sender's socket wait. A
/// limit further along the path could only drop the packets.
fn set_limit(
    pod: &mut Netlink,
    interface: &str,
    index: u32,
    bucket: TokenBucket,
) -> Result<(), NetlinkError> {
    let operation = format!("limit the rate of {interface} in the pod (needs the kernel's tbf queue)");
    let request = RouteNetlinkMessage::NewQueueDiscipline(token_bucket::message(&bucket, index));
    pod.change(&operation, request, NLM_F_CREATE | NLM_F_REPLACE)
}

fn has_limit(pod: &mut Netlink, index: u32, bucket: TokenBucket) -> Result<bool, NetlinkError> {
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(index as i32));
    let answers = pod.dump("list the queues in the pod", request)?;
    Ok(answers.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(message) => token_bucket::is_told_by(&bucket, message, index),
        _ => false,
    }))
}

fn add_address(pod: &mut Netlink, interface: &str, index: u32, address: IpAddr) -> Result<(), NetlinkError> {
    let net = IpNet::from(address);
    let mut message = AddressMessage::default();
    message.header.family = family_of(address);
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    if address.is_ipv6() {
        // The agent gives each address to one pod only, so duplicate address detection would only
        // delay the pod.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    let operation = format!("add the address {net} to {interface} in the pod");
    pod.change(&operation, RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Adds a permanent entry, so that the pod never has to ask for its gateway's link address.
fn add_neighbour(pod: &mut Netlink, index: u32, gateway: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(gateway);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(match gateway {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    let operation = format!("add the permanent neighbour {gateway} at {mac} in the pod");
    pod.change(&operation, RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}

fn addresses_of(pod: &mut Netlink, index: u32) -> Result<Vec<IpAddr>, NetlinkError> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut found = Vec::new();
    for answer in pod.dump("list the addresses in the pod", request)? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        if message.header.index == index {
            found.extend(message.attributes.iter().filter_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            }));
        }
    }
    Ok(found)
}

fn permanent_neighbours_of(pod: &mut Netlink, index: u32) -> Result<Vec<(IpAddr, Mac)>, NetlinkError> {
    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let mut found = Vec::new();
    for answer in pod.dump("list the neighbours in the pod", request)? {
        let RouteNetlinkMessage::NewNeighbour(message) = answer else { continue };
        if message.header.ifindex != index || message.header.state != NeighbourState::Permanent {
            continue;
        }
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some((*v4).into()),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some((*v6).into()),
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = bytes.as_slice().try_into().ok().map(Mac)
                }
                _ => {}
            }
        }
        found.extend(address.zip(mac));
    }
    Ok(found)
}

fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(addresses: &[&str], gateways: &[&str]) -> Added {
        Added {
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            gateways: gateways.iter().map(|text| text.parse().unwrap()).collect(),
            mtu: 1450,
            pod_mac: "02:00:00:00:00:01".into(),
            host_mac: "02:00:00:00:00:02".into(),
            host_interface: "pw0123456789ab".into(),
        }
    }

    #[test]
    fn each_address_gets_the_gateway_of_its_family() {
        let added = added(&["10.244.1.7/32", "fd00::7/128"], &["fd00::1", "10.244.1.1"]);
        let network = PodNetwork::try_from(added).unwrap();
        let pairs: Vec<_> = network.addresses.iter().map(|pair| (pair.address, pair.gateway)).collect();
        assert_eq!(
            pairs,
            [("10.244.1.7", "10.244.1.1"), ("fd00::7", "fd00::1")]
                .map(|(address, gateway)| (address.parse().unwrap(), gateway.parse().unwrap()))
        );
    }

    #[test]
    fn an_answer_that_no_link_can_be_configured_with_is_named() {
        for (addresses, gateways, said) in [
            (&[][..], &["10.244.1.1"][..], "no address"),
            (&["10.244.1.7/24"], &["10.244.1.1"], "10.244.1.7/24 does not have the full prefix length"),
            (&["10.244.1.7/32"], &["fd00::1"], "10.244.1.7 has no gateway"),
            (&["10.244.1.7/32", "10.244.1.8/32"], &["10.244.1.1"], "10.244.1.8 is the second"),
        ] {
            let error = PodNetwork::try_from(added(addresses, gateways)).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
        let broken = Added { pod_mac: "eth0".into(), ..added(&["10.244.1.7/32"], &["10.244.1.1"]) };
        assert!(matches!(PodNetwork::try_from(broken), Err(Unusable::Mac(_))));
    }
}
