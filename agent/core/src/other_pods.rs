//! Addresses of this node's podCIDR that others hold: most likely pods of the CNI plugin that ran
//! here before. The agent does not hand such addresses out while others hold them. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::host::{Host, is_own_device};

/// Addresses and their holders.
pub type Held = BTreeMap<IpAddr, Holder>;

/// The holder of an address, as far as this node can tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// The plugin host-local has given the address to a container of the network with this name.
    HostLocal(String),
    /// The device itself has the address.
    Device(String),
    /// A route to this address alone leads to the device.
    Route(String),
    /// A neighbour behind the device uses the address.
    Neighbour(String),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostLocal(network) => write!(f, "host-local's network {network}"),
            Self::Device(device) => write!(f, "device {device}"),
            Self::Route(device) => write!(f, "a route to device {device}"),
            Self::Neighbour(device) => write!(f, "a neighbour of device {device}"),
        }
    }
}

/// An entry of the kernel's neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// ifindex.
    pub device: u32,
    /// Its address.
    pub address: IpAddr,
    /// Whether the entry is stale: the kernel has not heard from the neighbour for some time, and
    /// does not ask for it until a packet is sent to it.
    pub is_stale: bool,
}

/// Returns the addresses of a network that devices and routes hold.
pub fn held_by_links(host: &Host, network: IpNet) -> Held {
    let name = |index: &u32| host.devices.get(index).map(|device| device.name.clone());
    let foreign = |index: &u32| name(index).filter(|name| !is_own_device(name));
    let is_of_one_address = |to: &IpNet| to.prefix_len() == to.max_prefix_len();
    let routes = host.foreign_routes.iter().filter(|route| is_of_one_address(&route.destination));
    let routes = routes.flat_map(|route| route.next_hops.iter().map(|hop| (route.destination, hop.device)));
    let routes = routes.filter_map(|(to, device)| Some((to.network(), Holder::Route(foreign(&device)?))));
    let addresses = host.addresses.iter();
    let addresses =
        addresses.filter_map(|entry| Some((entry.address, Holder::Device(foreign(&entry.device)?))));
    routes.chain(addresses).filter(|(address, _)| network.contains(address)).collect()
}

/// Returns the addresses of a network that neighbours hold.
pub fn held_by_neighbours(host: &Host, neighbours: &[Neighbour], network: IpNet) -> Held {
    let inside = neighbours.iter().filter(|neighbour| network.contains(&neighbour.address));
    let holder = |neighbour: &Neighbour| {
        let name = &host.devices.get(&neighbour.device)?.name;
        (!is_own_device(name)).then(|| (neighbour.address, Holder::Neighbour(name.clone())))
    };
    inside.filter_map(holder).collect()
}

/// Returns whether neighbours can have addresses of the network. They can only if a route leads to
/// a part of it without a router, and the agent did not make that route. Default routes do not
/// count. If this returns `false`, the caller need not list the neighbours: a node may have
/// thousands.
pub fn may_have_neighbours(host: &Host, network: IpNet) -> bool {
    host.foreign_routes.iter().any(|route| {
        let to = route.destination;
        let overlaps = to.contains(&network.network()) || network.contains(&to.network());
        route.next_hops.iter().any(|hop| hop.gateway.is_none()) && to.prefix_len() > 0 && overlaps
    })
}

/// Returns the number of addresses of each holder, for a line in the log.
pub fn summary(held: &Held) -> String {
    let mut counts = BTreeMap::<&Holder, usize>::new();
    held.values().for_each(|holder| *counts.entry(holder).or_default() += 1);
    counts.iter().map(|(holder, count)| format!("{holder}: {count}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Device, DeviceAddress, DeviceKind, ForeignRoute, NextHop};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// Returns a host with eth0, another plugin's bridge, a device of a plugin without a bridge, a
    /// pod's device and the tunnel's.
    fn host() -> Host {
        let device = |index, name: &str| Device {
            index,
            name: name.into(),
            mtu: 1500,
            mac: None,
            up: true,
            loopback: false,
            kind: DeviceKind::Other,
            link_header: crate::host::LinkHeader::Ethernet,
            port_of: None,
        };
        let devices = [(2, "eth0"), (3, "cni0"), (4, "cali1"), (5, "pw0123456789ab"), (6, "podwire-vxlan")];
        let address = |device, address| DeviceAddress {
            device,
            address: ip(address),
            prefix_length: 24,
            global: true,
            lifetime: crate::host::Lifetime::Lasting,
        };
        let route = |destination, device, gateway| ForeignRoute {
            destination: net(destination),
            next_hops: vec![NextHop { device, gateway }],
        };
        Host {
            devices: devices.into_iter().map(|(index, name)| (index, device(index, name))).collect(),
            addresses: vec![
                address(2, "10.200.0.1"),
                address(3, "10.244.1.9"),
                address(3, "fd00:10:244:1::9"),
                address(6, "10.244.1.1"),
                address(6, "fd00:10:244:1::1"),
            ],
            foreign_routes: vec![
                route("0.0.0.0/0", 2, Some(ip("10.200.0.254"))),
                route("10.244.1.77/32", 4, None),
                route("10.244.1.78/32", 5, None),
                route("10.244.2.7/32", 4, None),
                route("10.244.1.128/25", 4, None),
                route("::/0", 2, Some(ip("fe80::1"))),
                route("fe80::/64", 2, None),
                route("fd00:10:244:1::77/128", 4, None),
                route("fd00:10:244:1::78/128", 5, None),
                route("fd00:10:244:2::7/128", 4, None),
                route("fd00:10:244:1:8000::/65", 4, None),
            ],
            policies: Vec::new(),
            own_routes: BTreeMap::new(),
        }
    }

    #[test]
    fn devices_and_routes_to_one_address_hold_it_but_not_ours() {
        let expected = [
            (ip("10.244.1.9"), Holder::Device("cni0".into())),
            (ip("10.244.1.77"), Holder::Route("cali1".into())),
        ];
        assert_eq!(held_by_links(&host(), net("10.244.1.0/24")), expected.into());
        let expected = [
            (ip("fd00:10:244:1::9"), Holder::Device("cni0".into())),
            (ip("fd00:10:244:1::77"), Holder::Route("cali1".into())),
        ];
        assert_eq!(held_by_links(&host(), net("fd00:10:244:1::/64")), expected.into());
    }

    #[test]
    fn neighbours_of_others_hold_addresses_of_the_network() {
        let neighbour = |device, address| Neighbour { device, address: ip(address), is_stale: false };
        let all = [
            neighbour(3, "10.244.1.2"),
            neighbour(5, "10.244.1.3"),
            neighbour(2, "10.200.0.254"),
            neighbour(99, "10.244.1.4"),
            neighbour(3, "fd00:10:244:1::2"),
            neighbour(5, "fd00:10:244:1::3"),
            neighbour(3, "fe80::2"),
        ];
        for (network, address) in
            [("10.244.1.0/24", "10.244.1.2"), ("fd00:10:244:1::/64", "fd00:10:244:1::2")]
        {
            let held = held_by_neighbours(&host(), &all, net(network));
            assert_eq!(held, [(ip(address), Holder::Neighbour("cni0".into()))].into());
        }
        let held = held_by_neighbours(&host(), &all, net("10.244.1.0/24"));
        assert_eq!(summary(&held), "a neighbour of device cni0: 1");
    }

    #[test]
    fn neighbours_are_asked_for_only_on_links_that_overlap() {
        assert!(may_have_neighbours(&host(), net("10.244.1.0/24")));
        assert!(!may_have_neighbours(&host(), net("10.244.3.0/24")));
        assert!(may_have_neighbours(&host(), net("fd00:10:244:1::/64")));
        assert!(!may_have_neighbours(&host(), net("fd00:10:244:3::/64")));
        let mut flat = host();
        let destination = net("10.244.0.0/16");
        let next_hops = vec![NextHop { device: 3, gateway: None }];
        flat.foreign_routes.push(ForeignRoute { destination, next_hops });
        assert!(may_have_neighbours(&flat, net("10.244.3.0/24")));
        let routed = |hop: &mut NextHop| hop.gateway = Some(ip("10.200.0.2"));
        flat.foreign_routes.iter_mut().flat_map(|route| &mut route.next_hops).for_each(routed);
        assert!(!may_have_neighbours(&flat, net("10.244.3.0/24")));
    }
}
