//! Devices, addresses and routes: all communication with the kernel's routing socket.

mod changes;
mod disciplines;
mod ipsec;
mod neighbours;
mod notices;
mod queues;
mod removal;

use podwire_cni::protocol::codes;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use thiserror::Error;

use futures_util::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use podwire_common::addr::Mac;
use podwire_common::names::{ROUTE_PROTOCOL, VXLAN_DEVICE};
use rtnetlink::packet_core::{DecodeError, NetlinkBuffer, NetlinkDeserializable, NetlinkMessage};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoPortKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteProtocol,
    RouteScope, RouteType, RouteVia,
};
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVxlan, MulticastGroup, RouteMessageBuilder};

pub use changes::Changes;
pub use disciplines::Displaced;
pub use notices::Notices;

use podwire_core::host::{
    Device, DeviceAddress, DeviceKind, ForeignRoute, Host, Lifetime, LinkHeader, NextHop,
};
use podwire_core::model::Path;
use podwire_core::slice::Route;

use crate::files::FileError;

/// The metric of routes that count only if there is no other route to a network. A bridge of the
/// CNI plugin that ran here before has its own route, which leads to its pods. With the same
/// metric, the agent's route would replace it.
const LAST: u32 = u32::MAX;

/// `-ENODEV`, `-ENOENT`, `-ESRCH`: the kernel's answers if the object of a request does not exist.
const NOT_THERE: [i32; 3] = [-19, -2, -3];

/// `-ENETUNREACH`, `-EHOSTUNREACH`, `-EACCES` (`prohibit`), `-EINVAL` (`blackhole`): the kernel's
/// answers to a route lookup without a usable route.
const UNREACHABLE: [i32; 4] = [-101, -113, -13, -22];

/// `-EBUSY`.
const BUSY: i32 = -16;

/// `-EEXIST`, `-EADDRINUSE`: the kernel's answers if another device or socket has the port of a
/// VXLAN device.
const TAKEN: [i32; 2] = [-17, -98];

/// The filters on a device that have the priority and the handle of the agent's filters, by
/// direction. Another tool may have made them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// The filter for packets that the device receives.
    pub ingress: Option<Filter>,
    /// The filter for packets that the device sends.
    pub egress: Option<Filter>,
}

/// A classic filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The kernel's number of its program; 0 for a filter without one.
    pub program: u32,
    /// The program's name, as given by the maker of the filter.
    pub name: String,
}

impl Filters {
    /// Returns whether both filters exist.
    pub fn both(&self) -> bool {
        self.ingress.is_some() && self.egress.is_some()
    }
}

/// An error about the kernel's devices, addresses, routes, queues and filters.
#[derive(Debug, Error)]
pub enum LinkError {
    /// A request to the kernel's routing socket failed.
    #[error("{operation}: {source}")]
    Netlink {
        /// The operation and its object.
        operation: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A required device does not exist.
    #[error("device {name} does not exist")]
    NoDevice {
        /// Its name.
        name: String,
    },
    /// A property of a device is wrong.
    #[error("device {name}: {problem}")]
    Device {
        /// Its name.
        name: String,
        /// The problem, and what to do.
        problem: String,
    },
    /// The routing socket itself failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl LinkError {
    /// The CNI error code that the plugin gets for these errors.
    pub(crate) const CNI_CODE: u32 = codes::NETLINK_FAILURE;
}

/// A connection to the kernel's routing socket, in the network namespace of the thread that made
/// it.
#[derive(Clone, Debug)]
pub struct Links {
    handle: Handle,
}

impl Links {
    /// Connects to the routing socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`LinkError::File`] when the socket cannot be opened.
    pub fn new() -> Result<Self, LinkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(FileError::of("open", "the kernel's routing socket"))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Returns the current devices, addresses, routes and IPsec policies.
    ///
    /// # Errors
    /// [`LinkError::Netlink`]; [`LinkError::File`] when the IPsec policies cannot be read.
    pub async fn host(&self) -> Result<Host, LinkError> {
        let mut host = Host::default();
        let mut links = self.handle.link().get().execute();
        while let Some(message) = links.try_next().await.map_err(netlink("list devices"))? {
            let device = device(&message);
            host.devices.insert(device.index, device);
        }
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(netlink("list addresses"))? {
            host.addresses.extend(device_address(&message));
        }
        for message in self.routes().await? {
            sort_route(&mut host, &message);
        }
        host.policies = ipsec::policies().await?;
        Ok(host)
    }

    /// Returns all routes of both families.
    async fn routes(&self) -> Result<Vec<RouteMessage>, LinkError> {
        let mut found = Vec::new();
        for of_family in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let mut routes = self.handle.route().get(of_family).execute();
            while let Some(message) = routes.try_next().await.map_err(netlink("list routes"))? {
                found.push(message);
            }
        }
        Ok(found)
    }

    /// Returns the part of [`Self::host`] for one pod: the devices with its link's number or name,
    /// and the kernel's routes to its addresses.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn host_of_pod(&self, index: u32, name: &str, addresses: &[IpAddr]) -> Result<Host, LinkError> {
        let mut host = Host::default();
        for device in [self.device_at(index).await?, self.device(name).await?].into_iter().flatten() {
            host.devices.insert(device.index, device);
        }
        for address in addresses {
            let mut query = to(RouteMessageBuilder::<IpAddr>::new(), (*address).into()).build();
            // Without this flag, the kernel answers with the resolved path, which lacks the entry's
            // protocol and table.
            query.header.flags = RouteFlags::FibMatch;
            match self.handle.route().get(query).execute().try_next().await {
                Ok(route) => route.iter().for_each(|route| sort_route(&mut host, route)),
                Err(error) if code(&error).is_some_and(|code| UNREACHABLE.contains(&code)) => {}
                Err(error) => return Err(netlink(format!("look up the route to {address}"))(error)),
            }
        }
        Ok(host)
    }

    /// Returns the device with a name.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn device(&self, name: &str) -> Result<Option<Device>, LinkError> {
        Ok(self.link(name).await?.as_ref().map(device))
    }

    /// Returns the device with a number.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn device_at(&self, index: u32) -> Result<Option<Device>, LinkError> {
        if index == 0 {
            return Ok(None);
        }
        let mut answer = self.handle.link().get().match_index(index).execute();
        match answer.try_next().await {
            Ok(message) => Ok(message.as_ref().map(device)),
            Err(error) if code(&error).is_some_and(|code| NOT_THERE.contains(&code)) => Ok(None),
            Err(error) => Err(netlink(format!("look up device {index}"))(error)),
        }
    }

    /// Gives a device a name. Before Linux 6.2 the kernel does not rename a device that is up: then
    /// this sets the device down for a moment.
    ///
    /// # Errors
    /// [`LinkError::Netlink`], for example if another device has the name.
    pub async fn rename(&self, device: &Device, name: &str) -> Result<(), LinkError> {
        let rename = || {
            self.handle.link().change(LinkUnspec::new_with_index(device.index).name(name).build()).execute()
        };
        let failed = || netlink(format!("rename {} to {name}", device.name));
        match rename().await {
            Err(error) if code(&error) == Some(BUSY) => {}
            outcome => return outcome.map_err(failed()),
        }
        self.set_down(device.index, &device.name).await?;
        let renamed = rename().await;
        let up = LinkUnspec::new_with_index(device.index).up().build();
        self.handle.link().change(up).execute().await.map_err(netlink(format!("set {name} up")))?;
        renamed.map_err(failed())
    }

    /// Returns how the kernel routes to an address, policy rules included. `None`: the kernel has
    /// no way there.
    pub async fn path(&self, address: IpAddr, host: &Host) -> Option<Path> {
        let query = to(RouteMessageBuilder::<IpAddr>::new(), address.into()).build();
        let route = self.handle.route().get(query).execute().next().await?.ok()?;
        if route.header.kind != RouteType::Unicast {
            return None;
        }
        let index = output(&route)?;
        let mtu = host.devices.get(&index)?.mtu;
        Some(Path { device: index, mtu, gateway: gateway(&route.attributes) })
    }

    /// Adds or replaces one of the agent's routes.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn set_route(&self, destination: IpNet, route: Route) -> Result<(), LinkError> {
        let message = route_message(destination, route);
        let operation = format!("set the route to {destination}");
        self.handle.route().add(message).replace().execute().await.map_err(netlink(operation))
    }

    /// Removes one of the agent's routes. Does nothing if the route does not exist: the kernel
    /// removes a route with its device.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn remove_route(&self, destination: IpNet, route: Route) -> Result<(), LinkError> {
        let message = route_message(destination, route);
        let result = self.handle.route().del(message).execute().await;
        unless_absent(result, || format!("remove the route to {destination}"))
    }

    /// Removes every route with the agent's protocol number, from any table. Returns how many
    /// routes it removed.
    ///
    /// # Errors
    /// [`LinkError::Netlink`], after it has tried all routes.
    pub async fn remove_own_routes(&self) -> Result<usize, LinkError> {
        let (mut removed, mut failed) = (0, None);
        let is_own = |route: &RouteMessage| route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL);
        for message in self.routes().await?.into_iter().filter(is_own) {
            let operation = || format!("remove a route of protocol {ROUTE_PROTOCOL}");
            match unless_absent(self.handle.route().del(message).execute().await, operation) {
                Ok(()) => removed += 1,
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(removed), Err)
    }

    /// Gives a device an MTU and sets it up.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn set_mtu_and_up(&self, index: u32, name: &str, mtu: u32) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        let operation = format!("set {name} up with MTU {mtu}");
        self.handle.link().change(message).execute().await.map_err(netlink(operation))
    }

    /// Sets a device down. Does nothing if the device does not exist.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn set_down(&self, index: u32, name: &str) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index).down().build();
        let result = self.handle.link().change(message).execute().await;
        unless_absent(result, || format!("set {name} down"))
    }

    /// Returns the VXLAN device. Makes it if it does not exist, and replaces one with the wrong
    /// properties. Leaves a new device down, because it has no programs yet. The second value says
    /// whether an existing device was replaced.
    ///
    /// # Errors
    /// [`LinkError::Netlink`], [`LinkError::NoDevice`]; [`LinkError::Device`] when the port is
    /// taken; [`LinkError::File`] when the wrong device cannot be removed.
    pub async fn ensure_vxlan(&self, port: u16) -> Result<(Device, bool), LinkError> {
        let mut replaced = false;
        if let Some(message) = self.link(VXLAN_DEVICE).await? {
            if is_our_vxlan(&message, port) {
                return Ok((device(&message), false));
            }
            self.remove_device(message.header.index, VXLAN_DEVICE).await?;
            replaced = true;
        }
        // The device needs no VNI and no peers: with collect-metadata (`external`), the programs
        // give both with each packet.
        let message = LinkMessageBuilder::<LinkVxlan>::new(VXLAN_DEVICE)
            .port(port)
            .collect_metadata(true)
            // The programs send without the outer UDP checksum: the inner one covers what matters
            // (RFC 6935).
            .udp_zero_csum6_rx(true)
            .learning(false)
            .arp(false)
            .build();
        match self.handle.link().add(message).execute().await {
            Err(error) if code(&error).is_some_and(|code| TAKEN.contains(&code)) => {
                return Err(self.port_is_taken(port).await?);
            }
            other => other.map_err(netlink(format!("make {VXLAN_DEVICE}")))?,
        }
        let device = self.device(VXLAN_DEVICE).await?;
        Ok((device.ok_or_else(|| LinkError::NoDevice { name: VXLAN_DEVICE.into() })?, replaced))
    }

    /// Gives the VXLAN device an MTU and sets it up. The kernel opens the device's port only now.
    ///
    /// # Errors
    /// [`LinkError::Netlink`]; [`LinkError::Device`] when the port is taken.
    pub async fn set_up_vxlan(&self, index: u32, mtu: u32, port: u16) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        match self.handle.link().change(message).execute().await {
            Err(error) if code(&error).is_some_and(|code| TAKEN.contains(&code)) => {
                Err(self.port_is_taken(port).await?)
            }
            other => other.map_err(netlink(format!("set {VXLAN_DEVICE} up with MTU {mtu}"))),
        }
    }

    /// Finds the holders of the VXLAN device's port, and returns an error that says what to do.
    /// There may be a device for each family of the tunnel.
    async fn port_is_taken(&self, port: u16) -> Result<LinkError, LinkError> {
        let mut holders = Vec::new();
        let mut links = self.handle.link().get().execute();
        while let Some(message) = links.try_next().await.map_err(netlink("list devices"))? {
            let device = device(&message);
            if device.name != VXLAN_DEVICE && vxlan_data(&message).is_some_and(|data| has_port(data, port)) {
                holders.push(device.name);
            }
        }
        let delete = holders.iter().map(|holder| format!("`ip link delete {holder}`"));
        let delete = delete.collect::<Vec<_>>().join(" and ");
        let problem = match &holders[..] {
            [] => format!(
                "its UDP port {port} belongs to a socket: `ss -lunp sport = {port}` shows its process; stop that process, or set another --vxlan-port, the same on all nodes"
            ),
            [holder] => format!(
                "its UDP port {port} belongs to the VXLAN device {holder}: stop the program that made that device (flannel?) on this node, then remove the device: {delete}"
            ),
            holders => format!(
                "its UDP port {port} belongs to the VXLAN devices {}: stop the program that made them (flannel?) on this node, then remove them: {delete}",
                holders.join(" and ")
            ),
        };
        Ok(LinkError::Device { name: VXLAN_DEVICE.into(), problem })
    }

    /// Gives the VXLAN device an address of scope global. No other host has it, so the kernel does
    /// not look for duplicates: a tentative address could not be used for a second.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn add_address(&self, device: u32, address: IpNet) -> Result<(), LinkError> {
        let mut request = self.handle.address().add(device, address.addr(), address.prefix_len()).replace();
        if address.addr().is_ipv6() {
            request.message_mut().header.flags = AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(netlink(format!("give {VXLAN_DEVICE} the address {address}")))
    }

    /// Removes an address from a device. Does nothing if the device does not have it.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn remove_address(&self, device: u32, address: IpNet) -> Result<(), LinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.index = device;
        message.header.prefix_len = address.prefix_len();
        message.attributes.push(AddressAttribute::Local(address.addr()));
        let result = self.handle.address().del(message).execute().await;
        unless_absent(result.or_else(ignore_no_address), || format!("remove the address {address}"))
    }

    /// Returns a device's filters that have the priority and the handle of the agent's filters.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn filters(&self, device: u32) -> Result<Filters, LinkError> {
        let index = i32::try_from(device).unwrap_or_default();
        let mut filters = Filters::default();
        let mut ingress = self.handle.traffic_filter(index).get().ingress().execute();
        while let Some(message) = ingress.try_next().await.map_err(netlink("list filters"))? {
            filters.ingress = filters.ingress.or_else(|| filter(&message));
        }
        let mut egress = self.handle.traffic_filter(index).get().egress().execute();
        while let Some(message) = egress.try_next().await.map_err(netlink("list filters"))? {
            filters.egress = filters.egress.or_else(|| filter(&message));
        }
        Ok(filters)
    }

    async fn link(&self, name: &str) -> Result<Option<LinkMessage>, LinkError> {
        let mut answer = self.handle.link().get().match_name(name).execute();
        match answer.try_next().await {
            Ok(message) => Ok(message),
            Err(error) if code(&error).is_some_and(|code| NOT_THERE.contains(&code)) => Ok(None),
            Err(error) => Err(netlink(format!("look up device {name}"))(error)),
        }
    }
}

fn netlink(operation: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    let operation = operation.into();
    move |source| LinkError::Netlink { operation, source }
}

/// Returns the negative errno of the kernel's answer.
fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| code.get()),
        _ => None,
    }
}

/// Returns the multicast groups as the bit mask that a socket binds to.
fn mask(groups: &[MulticastGroup]) -> u32 {
    groups.iter().fold(0, |mask, group| mask | 1 << (*group as u32 - 1))
}

/// Returns the messages of one datagram, in order. An item is an error if its bytes are no message.
fn messages<T: NetlinkDeserializable>(
    mut bytes: &[u8],
) -> impl Iterator<Item = Result<NetlinkMessage<T>, DecodeError>> {
    std::iter::from_fn(move || {
        let length = NetlinkBuffer::new_checked(bytes).ok()?.length() as usize;
        let message = NetlinkMessage::deserialize(bytes);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn unless_absent(
    result: Result<(), rtnetlink::Error>,
    operation: impl FnOnce() -> String,
) -> Result<(), LinkError> {
    match result {
        Err(error) if code(&error).is_some_and(|code| NOT_THERE.contains(&code)) => Ok(()),
        other => other.map_err(netlink(operation())),
    }
}

fn ignore_no_address(error: rtnetlink::Error) -> Result<(), rtnetlink::Error> {
    const ADDRESS_NOT_AVAILABLE: i32 = -99;
    if code(&error) == Some(ADDRESS_NOT_AVAILABLE) { Ok(()) } else { Err(error) }
}

fn device(message: &LinkMessage) -> Device {
    let mut is_of_vrf = false;
    let mut device = Device {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        kind: DeviceKind::Other,
        link_header: link_header(message.header.link_layer_type),
        port_of: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                device.mac = bytes.as_slice().try_into().ok().map(|bytes| Mac { bytes });
            }
            LinkAttribute::LinkInfo(infos) => {
                device.kind = infos.iter().find_map(device_kind).unwrap_or_default();
                is_of_vrf = infos.iter().any(|info| matches!(info, LinkInfo::PortKind(InfoPortKind::Vrf)));
            }
            LinkAttribute::Controller(index) => device.port_of = Some(*index),
            _ => {}
        }
    }
    device.port_of = device.port_of.filter(|_| !is_of_vrf);
    device
}

/// Returns the kind of link header. [`LinkHeader::None`] is for the types that the kernel sends
/// without one (`dev_is_mac_header_xmit`, include/linux/if_arp.h).
fn link_header(kind: LinkLayerType) -> LinkHeader {
    match kind {
        LinkLayerType::Ether | LinkLayerType::Loopback => LinkHeader::Ethernet,
        LinkLayerType::None
        | LinkLayerType::Rawip
        | LinkLayerType::Ppp
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre
        | LinkLayerType::Void => LinkHeader::None,
        _ => LinkHeader::Other,
    }
}

fn device_kind(info: &LinkInfo) -> Option<DeviceKind> {
    let LinkInfo::Kind(kind) = info else {
        return None;
    };
    Some(match kind {
        InfoKind::Veth => DeviceKind::Veth,
        InfoKind::Vxlan => DeviceKind::Vxlan,
        InfoKind::Bridge => DeviceKind::Bridge,
        InfoKind::Tun => DeviceKind::Tun,
        InfoKind::Dummy => DeviceKind::Dummy,
        InfoKind::Vrf => DeviceKind::Vrf,
        InfoKind::BareUdp
        | InfoKind::Geneve
        | InfoKind::GreTap
        | InfoKind::GreTap6
        | InfoKind::GreTun
        | InfoKind::GreTun6
        | InfoKind::IpIp
        | InfoKind::Ip6Tnl
        | InfoKind::SitTun
        | InfoKind::Vti
        | InfoKind::Vti6
        | InfoKind::ErSpan
        | InfoKind::Ip6ErSpan
        | InfoKind::Amt
        | InfoKind::Xfrm => DeviceKind::OtherTunnel,
        _ => DeviceKind::Other,
    })
}

/// Returns the filter of a message, if it has the agent's priority and handle.
fn filter(message: &TcMessage) -> Option<Filter> {
    if message.header.info >> 16 != 1 || u32::from(message.header.handle) != 1 {
        return None;
    }
    let mut filter = Filter::default();
    let options = message.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    for option in options.flatten() {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = *id,
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name.clone_from(name),
            _ => {}
        }
    }
    Some(filter)
}

fn is_our_vxlan(message: &LinkMessage, wanted_port: u16) -> bool {
    vxlan_data(message).is_some_and(|data| {
        has_port(data, wanted_port)
            && data.iter().any(|info| matches!(info, InfoVxlan::CollectMetadata(true)))
            && data.iter().any(|info| matches!(info, InfoVxlan::UDPZeroCsumRX(true)))
    })
}

/// Returns the properties of a VXLAN device. `None` for any other device.
fn vxlan_data(message: &LinkMessage) -> Option<&[InfoVxlan]> {
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    let is_vxlan = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Vxlan)));
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data.as_slice()),
        _ => None,
    });
    data.filter(|_| is_vxlan)
}

fn has_port(data: &[InfoVxlan], wanted: u16) -> bool {
    data.iter().any(|info| matches!(info, InfoVxlan::Port(port) if *port == wanted))
}

fn device_address(message: &AddressMessage) -> Option<DeviceAddress> {
    // Local is the device's own address. On point-to-point links, Address is the peer's. In IPv6,
    // Local is there only then.
    let own = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    };
    let first = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    };
    let local = message.attributes.iter().find_map(own);
    let address = local.or_else(|| message.attributes.iter().find_map(first))?;
    let has = |flags: AddressHeaderFlags| message.header.flags.intersects(flags);
    // Not usable yet, or never: another host has it.
    let is_unusable = has(AddressHeaderFlags::Tentative) && !has(AddressHeaderFlags::Optimistic)
        || has(AddressHeaderFlags::Dadfailed);
    let lifetime = match address {
        // The same bit means "secondary" in IPv4 and "temporary" in IPv6 (`IFA_F_TEMPORARY`).
        IpAddr::V6(_) if has(AddressHeaderFlags::Secondary) => Lifetime::Temporary,
        _ if has(AddressHeaderFlags::Deprecated) => Lifetime::Deprecated,
        _ => Lifetime::Lasting,
    };
    (!is_unusable).then(|| DeviceAddress {
        device: message.header.index,
        address,
        prefix_length: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
        lifetime,
    })
}

fn sort_route(host: &mut Host, message: &RouteMessage) {
    let unspecified: IpAddr = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return,
    };
    if message.header.table != RouteHeader::RT_TABLE_MAIN {
        return;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip_of(address),
        _ => None,
    });
    let length = message.header.destination_prefix_length;
    let Ok(destination) = IpNet::new(address.unwrap_or(unspecified), length) else {
        return;
    };
    if message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL) {
        let source = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(address) => ip_of(address),
            _ => None,
        });
        let route = match (message.header.kind, output(message)) {
            (RouteType::Unicast, Some(device)) => {
                Route::Link { device, gateway: gateway(&message.attributes), source }
            }
            _ => Route::Unreachable,
        };
        host.own_routes.insert(destination, route);
    } else if !is_link_local(destination.addr()) {
        let next_hops = match message.header.kind {
            RouteType::Unicast => next_hops(message),
            // It leads nowhere, but it may end another route to a node.
            RouteType::Unreachable | RouteType::BlackHole | RouteType::Prohibit => Vec::new(),
            _ => return,
        };
        host.foreign_routes.push(ForeignRoute { destination, next_hops });
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Returns the next hops of a route. This includes routes with a next hop object: the kernel also
/// lists the next hops of the object, unless `net.ipv4.nexthop_compat_mode` is 0.
fn next_hops(message: &RouteMessage) -> Vec<NextHop> {
    let several = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(next_hops) => Some(next_hops),
        _ => None,
    });
    if let Some(several) = several {
        let next_hop =
            |hop: &RouteNextHop| NextHop { device: hop.interface_index, gateway: gateway(&hop.attributes) };
        return several.iter().map(next_hop).collect();
    }
    let device = output(message);
    device.map(|device| NextHop { device, gateway: gateway(&message.attributes) }).into_iter().collect()
}

fn output(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip_of(address),
        // An IPv4 route over an IPv6 router.
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

fn route_message(destination: IpNet, route: Route) -> RouteMessage {
    let builder =
        to(RouteMessageBuilder::<IpAddr>::new(), destination).protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
    match route {
        Route::Unreachable => builder.kind(RouteType::Unreachable).priority(LAST).build(),
        Route::Link { device, gateway, source } => {
            let mut builder = builder.output_interface(device);
            let gateway = gateway.map(|gateway| RouteAttribute::Gateway(gateway.into()));
            if gateway.is_none() {
                builder = builder.scope(RouteScope::Link);
            }
            let source = source.map(|source| RouteAttribute::PrefSource(source.into()));
            builder.get_mut().attributes.extend(gateway.into_iter().chain(source));
            builder.build()
        }
    }
}

/// Gives a route, or a route lookup, a destination of either family.
fn to(mut builder: RouteMessageBuilder<IpAddr>, network: IpNet) -> RouteMessageBuilder<IpAddr> {
    let message = builder.get_mut();
    message.header.address_family = family(network.addr());
    message.header.destination_prefix_length = network.prefix_len();
    message.attributes.push(RouteAttribute::Destination(network.network().into()));
    builder
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
