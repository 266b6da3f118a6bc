//! This machine's devices, addresses and routes, as the kernel lists them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use podwire_common::addr::Mac;
use podwire_common::names::{VETH_PREFIX, VXLAN_DEVICE};

use crate::ipsec::Policy;
use crate::slice::Route;

/// kube-proxy's device in IPVS mode.
const IPVS_DEVICE: &str = "kube-ipvs0";

/// A snapshot of the kernel's devices, addresses, routes and IPsec policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Devices by ifindex.
    pub devices: BTreeMap<u32, Device>,
    /// Addresses of both families in the kernel's order: a device's primary address comes before
    /// its secondary ones. An IPv6 address that is tentative, or that another host has, is left
    /// out.
    pub addresses: Vec<DeviceAddress>,
    /// Unicast routes of the main table that the agent did not make, without those to link-local
    /// addresses: every IPv6 link has such a route.
    pub foreign_routes: Vec<ForeignRoute>,
    /// IPsec policies that block packets or ask for IPsec.
    pub policies: Vec<Policy>,
    /// Routes of the main table with the agent's protocol number.
    pub own_routes: BTreeMap<IpNet, Route>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// ifindex.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU: bytes of an IP packet.
    pub mtu: u32,
    /// Link address, if the device has one of six bytes.
    pub mac: Option<Mac>,
    /// IFF_UP.
    pub up: bool,
    /// IFF_LOOPBACK.
    pub loopback: bool,
    /// Kind of the device, as far as it matters.
    pub kind: DeviceKind,
    /// Header that precedes the IP header of its packets.
    pub link_header: LinkHeader,
    /// ifindex of the bridge, bond or team that the device is a port of. Devices of a VRF are not
    /// its ports, because they route.
    pub port_of: Option<u32>,
}

impl Device {
    /// Returns whether the device is neither loopback nor one that the agent or the plugin made.
    pub fn is_foreign(&self) -> bool {
        !self.loopback && !is_own_device(&self.name)
    }
}

/// Header that precedes the IP header of a device's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkHeader {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// No header.
    None,
    /// Another header, for example InfiniBand's.
    Other,
}

/// Kinds of devices, as far as the agent tells them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    /// One end of a veth pair.
    Veth,
    /// A VXLAN device.
    Vxlan,
    /// Another device that encapsulates IP or Ethernet in the kernel: Geneve, GRE, IP in IP and the
    /// like.
    OtherTunnel,
    /// A bridge.
    Bridge,
    /// A tun or tap.
    Tun,
    /// A dummy.
    Dummy,
    /// A VRF.
    Vrf,
    /// Any other.
    #[default]
    Other,
}

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAddress {
    /// ifindex.
    pub device: u32,
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix_length: u8,
    /// Whether the scope is global: the address may appear on the wire as a source.
    pub global: bool,
    /// For how long flows may have it as their source.
    pub lifetime: Lifetime,
}

/// For how long an address may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifetime {
    /// Until someone removes it.
    #[default]
    Lasting,
    /// No new flow should use it (RFC 4862 section 5.5.4). It still belongs to the node.
    Deprecated,
    /// Another one replaces it within a day (RFC 8981). It is for the node's own connections.
    Temporary,
}

impl DeviceAddress {
    /// Returns the address with its prefix length. `None` for an invalid length, which the kernel
    /// does not report.
    pub fn network(&self) -> Option<IpNet> {
        IpNet::new(self.address, self.prefix_length).ok()
    }
}

/// A route that the agent did not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRoute {
    /// Destination of the route.
    pub destination: IpNet,
    /// One next hop, or several. Of several, the kernel chooses one for each flow.
    pub next_hops: Vec<NextHop>,
}

/// A next hop of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// ifindex.
    pub device: u32,
    /// The router; an IPv4 route may have an IPv6 router. `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
}

impl Host {
    /// Returns the networks and addresses by which this node is reached and reaches others:
    ///
    /// - the networks of links that lead out,
    /// - this node's addresses on these links,
    /// - the routers of default routes.
    ///
    /// A link leads out if it has one of the `internal` addresses or is a next hop of a default
    /// route.
    pub fn underlay(&self, internal: &[IpAddr]) -> Vec<IpNet> {
        let mut devices: BTreeSet<u32> = self.default_next_hops().map(|hop| hop.device).collect();
        let ours = self.addresses.iter().filter(|entry| internal.contains(&entry.address));
        devices.extend(ours.map(|entry| entry.device));
        let there = self.addresses.iter().filter(|entry| entry.global && devices.contains(&entry.device));
        let networks = |entry: &DeviceAddress| {
            entry.network().map(|network| network.trunc()).into_iter().chain([entry.address.into()])
        };
        let routers = self.default_next_hops().filter_map(|hop| hop.gateway);
        let routers = routers.filter(|gateway| !gateway.is_unspecified()).map(IpNet::from);
        there.flat_map(networks).chain(routers).collect()
    }

    /// Returns the device with a name.
    pub fn device(&self, name: &str) -> Option<&Device> {
        self.devices.values().find(|device| device.name == name)
    }

    /// Returns this node's global addresses on all links, without these:
    ///
    /// - loopback addresses (127.0.0.0/8);
    /// - temporary IPv6 addresses: translated flows would outlive them;
    /// - addresses of pods' links and of the tunnel, which the agent sets;
    /// - addresses of `kube-ipvs0`: kube-proxy puts every service's address there, and a service's
    ///   port is no hostPort.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let is_nodes = |index| {
            let device = self.devices.get(&index);
            device.is_some_and(|device| !is_own_device(&device.name) && device.name != IPVS_DEVICE)
        };
        self.addresses
            .iter()
            .filter(|entry| entry.global && entry.lifetime != Lifetime::Temporary)
            .filter(|entry| !entry.address.is_loopback() && is_nodes(entry.device))
            .map(|entry| entry.address)
            .collect()
    }

    /// Returns the other devices that the host may forward for: those that are up and are neither
    /// loopback, nor the agent's or the plugin's, nor `uplinks`.
    pub fn other_devices(&self, uplinks: &BTreeSet<String>) -> Vec<String> {
        let others = self
            .devices
            .values()
            .filter(|device| device.up && device.is_foreign() && !uplinks.contains(&device.name));
        others.map(|device| device.name.clone()).collect()
    }

    /// Returns the names of the devices of default routes.
    pub fn default_devices(&self) -> impl Iterator<Item = String> {
        self.default_next_hops().filter_map(|hop| Some(self.devices.get(&hop.device)?.name.clone()))
    }

    /// Returns the next hops of default routes.
    fn default_next_hops(&self) -> impl Iterator<Item = &NextHop> {
        let default = self.foreign_routes.iter().filter(|route| route.destination.prefix_len() == 0);
        default.flat_map(|route| &route.next_hops)
    }

    /// Returns whether a route lookup, or an IPsec policy, may now answer differently than in
    /// `before`. Pods' devices do not matter. One more port of a bridge does not matter if the
    /// bridge already had a port of that kind.
    pub fn routes_differ(&self, before: &Self) -> bool {
        fn is_own(host: &Host, index: u32) -> bool {
            host.devices.get(&index).is_some_and(|device| is_own_device(&device.name))
        }
        fn addresses(host: &Host) -> impl Iterator<Item = &DeviceAddress> {
            host.addresses.iter().filter(|entry| !is_own(host, entry.device))
        }
        /// Returns the devices that are not ports. The kernel routes to a bridge or bond and not to
        /// its ports: only the kinds of a bridge's ports matter.
        fn links(host: &Host) -> impl Iterator<Item = &Device> {
            let others = host.devices.values().filter(|device| !is_own_device(&device.name));
            others.filter(|device| device.port_of.is_none())
        }
        /// Returns the routes that do not lead to the agent's or the plugin's devices. The kernel
        /// itself adds one with the tunnel's IPv6 address.
        fn routes(host: &Host) -> impl Iterator<Item = &ForeignRoute> {
            host.foreign_routes.iter().filter(|route| {
                route.next_hops.is_empty() || route.next_hops.iter().any(|hop| !is_own(host, hop.device))
            })
        }
        fn ports(host: &Host) -> BTreeSet<(u32, DeviceKind)> {
            host.devices.values().filter_map(|device| Some((device.port_of?, device.kind))).collect()
        }
        self.policies != before.policies
            || !routes(self).eq(routes(before))
            || !addresses(self).eq(addresses(before))
            || !links(self).eq(links(before))
            || ports(self) != ports(before)
    }

    /// Returns the host sides of pods' veth pairs, recognised by their names.
    pub fn pod_devices(&self) -> impl Iterator<Item = &Device> {
        let veths = self.devices.values().filter(|device| device.kind == DeviceKind::Veth);
        veths.filter(|device| is_pods_device(&device.name))
    }

    /// Returns the current name of a pod's device: `given`, unless another tool has renamed it.
    pub fn name_of<'a>(&'a self, index: u32, given: &'a str) -> &'a str {
        self.devices.get(&index).map_or(given, |device| &device.name)
    }
}

/// Returns whether the agent or the plugin made the device, judged by its name.
pub fn is_own_device(name: &str) -> bool {
    name == VXLAN_DEVICE || is_pods_device(name)
}

/// Returns whether the device is the host side of a pod's veth pair, judged by its name.
pub fn is_pods_device(name: &str) -> bool {
    let digits = name.strip_prefix(VETH_PREFIX);
    digits.is_some_and(|digits| digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Returns a host with lo, eth0 with the InternalIP, eth1 with the default route, and a pod's
    /// device.
    fn host() -> Host {
        let device = |index, name: &str, loopback| Device {
            index,
            name: name.into(),
            mtu: 1500,
            mac: None,
            up: true,
            loopback,
            kind: DeviceKind::Other,
            link_header: LinkHeader::Ethernet,
            port_of: None,
        };
        let devices = [
            device(1, "lo", true),
            device(2, "eth0", false),
            device(3, "eth1", false),
            device(4, "pw0123456789ab", false),
        ];
        let address = |device, address: &str, global| DeviceAddress {
            device,
            address: ip(address),
            prefix_length: 24,
            global,
            lifetime: Lifetime::Lasting,
        };
        Host {
            devices: devices.into_iter().map(|device| (device.index, device)).collect(),
            addresses: vec![
                address(1, "127.0.0.1", false),
                address(2, "192.0.2.7", true),
                address(2, "10.200.0.1", true),
                address(3, "198.51.100.1", true),
            ],
            foreign_routes: vec![ForeignRoute {
                destination: IpNet::default(),
                next_hops: vec![NextHop { device: 3, gateway: Some(ip("198.51.100.254")) }],
            }],
            policies: Vec::new(),
            own_routes: BTreeMap::new(),
        }
    }

    #[test]
    fn own_addresses_are_global_and_no_pods_and_no_services() {
        let mut host = host();
        let mut add = |index, name: &str, address, global| {
            let device = Device { index, name: name.into(), ..host.devices[&2].clone() };
            host.devices.insert(index, device);
            host.addresses.push(DeviceAddress {
                device: index,
                address: ip(address),
                prefix_length: 32,
                global,
                lifetime: Lifetime::Lasting,
            });
        };
        add(4, "pw0123456789ab", "192.0.2.8", true);
        add(5, VXLAN_DEVICE, "10.244.1.1", true);
        add(6, "kube-ipvs0", "10.96.0.1", true);
        add(7, "docker0", "172.17.0.1", true);
        add(8, "link", "169.254.0.1", false);
        add(1, "lo", "127.0.0.2", true);
        add(1, "lo", "203.0.113.1", true);
        add(2, "eth0", "2001:db8::7", true);
        add(2, "eth0", "2001:db8::8", true);
        for (address, lifetime) in
            [("2001:db8::7", Lifetime::Deprecated), ("2001:db8::8", Lifetime::Temporary)]
        {
            let mut addresses = host.addresses.iter_mut();
            addresses.find(|entry| entry.address == ip(address)).unwrap().lifetime = lifetime;
        }
        let own =
            ["10.200.0.1", "172.17.0.1", "192.0.2.7", "198.51.100.1", "203.0.113.1", "2001:db8::7"].map(ip);
        assert_eq!(host.own_addresses(), own.into());
    }

    #[test]
    fn pods_that_come_and_go_change_no_route() {
        let before = host();
        let mut after = before.clone();
        after.devices.remove(&4);
        assert!(!after.routes_differ(&before));
        after.devices.insert(9, Device { index: 9, name: VXLAN_DEVICE.into(), ..before.devices[&2].clone() });
        after.addresses.push(DeviceAddress { device: 9, ..before.addresses[1] });
        let mut own = before.foreign_routes[0].clone();
        own.next_hops = vec![NextHop { device: 9, gateway: None }];
        after.foreign_routes.push(own.clone());
        assert!(!after.routes_differ(&before), "the agent gave the tunnel its address");
        own.next_hops[0].device = 2;
        after.foreign_routes.push(own);
        assert!(after.routes_differ(&before), "a route by an uplink");
        after.foreign_routes.last_mut().unwrap().next_hops.clear();
        assert!(after.routes_differ(&before), "a route to nowhere");
        after.foreign_routes.pop();
        let port =
            Device { index: 7, port_of: Some(3), kind: DeviceKind::Veth, ..before.devices[&2].clone() };
        after.devices.insert(7, port.clone());
        assert!(after.routes_differ(&before), "the bridge leads to containers now");
        let mut more = after.clone();
        more.devices.insert(8, Device { index: 8, ..port });
        assert!(!more.routes_differ(&after), "one more container");
        after.devices.get_mut(&2).unwrap().mtu = 1400;
        assert!(after.routes_differ(&before));
    }
}
