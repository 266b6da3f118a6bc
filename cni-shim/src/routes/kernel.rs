//! Adds a pod's routes to the kernel, and compares them with the kernel's.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Attributes, Route};
use crate::netlink::{Netlink, NetlinkError};

/// `RT_TABLE_COMPAT`: the table's number is too large for the header and is in an attribute.
const TABLE_COMPAT: u8 = 252;

/// Adds a route over the link with that index.
pub(crate) fn add(pod: &mut Netlink, index: u32, route: &Route) -> Result<(), NetlinkError> {
    let mut message = RouteMessage::default();
    let table = route.table();
    message.header.address_family = family(route.is_ipv4());
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.table = u8::try_from(table).unwrap_or(TABLE_COMPAT);
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::from(route.scope());
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Oif(index), RouteAttribute::Table(table)];
    if route.destination.prefix_len() != 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.addr().into()));
    }
    message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.extend(route.attributes.priority.map(RouteAttribute::Priority));
    let metrics: Vec<_> =
        [route.attributes.mtu.map(RouteMetric::Mtu), route.attributes.advmss.map(RouteMetric::Advmss)]
            .into_iter()
            .flatten()
            .collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    let operation = format!("add the route {route} in the pod");
    pod.change(&operation, RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Returns whether the pod delivers packets for this address to itself. The pod must have a default
/// route of the address's family: the kernel refuses to look up an address without any route.
pub(crate) fn is_local(pod: &mut Netlink, address: IpAddr) -> Result<bool, NetlinkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address.is_ipv4());
    message.header.destination_prefix_length = IpNet::from(address).prefix_len();
    message.attributes = vec![RouteAttribute::Destination(address.into())];
    let operation = format!("look up the route to {address} in the pod");
    let answer = pod.get(&operation, RouteNetlinkMessage::GetRoute(message))?;
    Ok(matches!(answer, Some(RouteNetlinkMessage::NewRoute(route)) if route.header.kind == RouteType::Local))
}

/// Returns a fault for each route of `wanted` that is missing or different.
pub(crate) fn faults<'a>(
    pod: &mut Netlink,
    interface: &str,
    index: u32,
    wanted: impl Iterator<Item = &'a Route>,
) -> Result<Vec<String>, NetlinkError> {
    let there = list(pod, index)?;
    let fault = |route: &Route| {
        let same_place = there.iter().find(|there| there.place() == route.place());
        match same_place {
            None => Some(format!("route {route} dev {interface} is missing")),
            Some(there) if route.is_same(there) => None,
            Some(there) => Some(format!("route {route} dev {interface} is {there}")),
        }
    };
    Ok(wanted.filter_map(fault).collect())
}

/// Returns the unicast routes over that link, from all tables.
fn list(pod: &mut Netlink, index: u32) -> Result<Vec<Route>, NetlinkError> {
    let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    let mut found = Vec::new();
    for answer in pod.dump("list the routes in the pod", request)? {
        if let RouteNetlinkMessage::NewRoute(message) = answer
            && message.header.kind == RouteType::Unicast
            && message.attributes.contains(&RouteAttribute::Oif(index))
        {
            found.extend(read(&message));
        }
    }
    Ok(found)
}

fn read(message: &RouteMessage) -> Option<Route> {
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let mut gateway = None;
    let mut attributes = Attributes {
        table: Some(message.header.table.into()),
        scope: Some(message.header.scope.into()),
        ..Attributes::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = address_of(address)?,
            RouteAttribute::Gateway(address) => gateway = address_of(address),
            RouteAttribute::Table(table) => attributes.table = Some(*table),
            RouteAttribute::Priority(priority) => attributes.priority = Some(*priority),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => attributes.mtu = Some(*mtu),
                        RouteMetric::Advmss(advmss) => attributes.advmss = Some(*advmss),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, gateway, attributes })
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn family(is_ipv4: bool) -> AddressFamily {
    if is_ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
