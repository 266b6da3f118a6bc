//! This machine's devices, addresses and routes, as the kernel lists them, and which of them are uplinks. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use podwire_common::addr::Mac;
use podwire_common::names::{VETH_PREFIX, VXLAN_DEVICE};
use thiserror::Error;

use crate::model::Uplink;
use crate::slice::Route;

/// kube-proxy's, in its IPVS mode.
const IPVS_DEVICE: &str = "kube-ipvs0";

/// One look at the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// By ifindex.
    pub devices: BTreeMap<u32, Device>,
    /// IPv4 addresses, in the kernel's order: a device's primary one before its secondary ones.
    pub addresses: Vec<DeviceAddress>,
    /// IPv4 unicast routes of the main table that are not the agent's.
    pub foreign_routes: Vec<ForeignRoute>,
    /// Routes of the main table that bear the agent's protocol number.
    pub own_routes: BTreeMap<IpNet, Route>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// ifindex.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Bytes of IP packet.
    pub mtu: u32,
    /// Link address, where it has one of six bytes.
    pub mac: Option<Mac>,
    /// IFF_UP.
    pub up: bool,
    /// IFF_LOOPBACK.
    pub loopback: bool,
    /// What it is, as far as that matters.
    pub kind: DeviceKind,
}

/// Kinds of devices that the agent and the plugin make, and all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// One end of a veth pair.
    Veth,
    /// A VXLAN device.
    Vxlan,
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
    /// Scope global: may appear on the wire as a source.
    pub global: bool,
}

impl DeviceAddress {
    /// The address with its prefix length. `None`: the kernel does not give such a length.
    pub fn network(&self) -> Option<IpNet> {
        IpNet::new(self.address, self.prefix_length).ok()
    }
}

/// A route that somebody else made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRoute {
    /// Where to.
    pub destination: IpNet,
    /// One, or several of which the kernel chooses one for each flow.
    pub next_hops: Vec<NextHop>,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// ifindex.
    pub device: u32,
    /// The router, 0.0.0.0 for an IPv6 router; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// Why there is no uplink.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoUplink {
    /// `--uplink` names what is not there.
    #[error("uplink {0} does not exist: correct --uplink")]
    Unknown(String),
    /// Nothing leads out.
    #[error(
        "no device has this node's InternalIP {0} and there is no default route: configure one, or name the device with --uplink"
    )]
    NoneFound(IpAddr),
}

impl Host {
    /// The links that lead out: those named, or else the one that has the node's InternalIP and those of default
    /// routes. The one with the InternalIP comes first.
    ///
    /// # Errors
    /// [`NoUplink`].
    pub fn uplinks(&self, named: &[String], internal: IpAddr) -> Result<Vec<Uplink>, NoUplink> {
        let holder = self
            .addresses
            .iter()
            .find(|entry| entry.address == internal)
            .map(|entry| entry.device)
            .filter(|index| self.leads_out(*index));
        let mut chosen: Vec<u32> = if named.is_empty() {
            let devices = self.default_next_hops().map(|hop| hop.device);
            holder.into_iter().chain(devices.filter(|index| self.leads_out(*index))).collect()
        } else {
            let index = |name: &String| self.device(name).map(|device| device.index);
            named
                .iter()
                .map(|name| index(name).ok_or_else(|| NoUplink::Unknown(name.clone())))
                .collect::<Result<_, _>>()?
        };
        chosen.sort_by_key(|index| Some(*index) != holder);
        let mut seen = BTreeSet::new();
        let uplinks: Vec<_> = chosen
            .into_iter()
            .filter(|index| seen.insert(*index))
            .filter_map(|index| self.devices.get(&index))
            .map(|device| self.uplink(device, internal))
            .collect();
        if uplinks.is_empty() { Err(NoUplink::NoneFound(internal)) } else { Ok(uplinks) }
    }

    /// What this node is reached by and reaches others by: the networks of links that lead out, its addresses there, and the routers of default
    /// routes. Such are the link with its InternalIP, and those of default routes.
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

    /// The device of a name.
    pub fn device(&self, name: &str) -> Option<&Device> {
        self.devices.values().find(|device| device.name == name)
    }

    /// This node's global addresses, on whatever link. Not those of pods' links and of the tunnel's, which the agent sets, nor those of
    /// `kube-ipvs0`: kube-proxy puts every service's address there, and a service's port is no hostPort.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let is_nodes = |index| {
            let device = self.devices.get(&index);
            device.is_some_and(|device| !is_own_device(&device.name) && device.name != IPVS_DEVICE)
        };
        self.addresses
            .iter()
            .filter(|entry| entry.global && !entry.address.is_loopback() && is_nodes(entry.device))
            .map(|entry| entry.address)
            .collect()
    }

    /// Devices that are up and neither loopback, nor the agent's or the plugin's, nor `uplinks`: what else may be forwarded for.
    pub fn other_devices(&self, uplinks: &BTreeSet<String>) -> Vec<String> {
        let others = self.devices.values().filter(|device| {
            device.up && !device.loopback && !is_own_device(&device.name) && !uplinks.contains(&device.name)
        });
        others.map(|device| device.name.clone()).collect()
    }

    /// Names of the devices of default routes.
    pub fn default_devices(&self) -> impl Iterator<Item = String> {
        self.default_next_hops().filter_map(|hop| Some(self.devices.get(&hop.device)?.name.clone()))
    }

    /// The next hops of default routes.
    fn default_next_hops(&self) -> impl Iterator<Item = &NextHop> {
        let default = self.foreign_routes.iter().filter(|route| route.destination.prefix_len() == 0);
        default.flat_map(|route| &route.next_hops)
    }

    /// Whether a route lookup may now answer otherwise than it did in `before`. Pods come and go without that.
    pub fn routes_differ(&self, before: &Self) -> bool {
        fn underlay(host: &Host) -> impl Iterator<Item = &Device> {
            host.devices.values().filter(|device| !is_own_device(&device.name))
        }
        self.foreign_routes != before.foreign_routes
            || self.addresses != before.addresses
            || !underlay(self).eq(underlay(before))
    }

    /// Host sides of pods' veth pairs, by their name.
    pub fn pod_devices(&self) -> impl Iterator<Item = &Device> {
        let veths = self.devices.values().filter(|device| device.kind == DeviceKind::Veth);
        veths.filter(|device| is_pods_device(&device.name))
    }

    /// The name that a pod's device has now, which is `given` unless somebody has renamed it.
    pub fn name_of<'a>(&'a self, index: u32, given: &'a str) -> &'a str {
        self.devices.get(&index).map_or(given, |device| &device.name)
    }

    fn leads_out(&self, index: u32) -> bool {
        self.devices.get(&index).is_some_and(|device| !device.loopback && !is_own_device(&device.name))
    }

    fn uplink(&self, device: &Device, internal: IpAddr) -> Uplink {
        let mut addresses: Vec<_> = self
            .addresses
            .iter()
            .filter(|entry| entry.device == device.index && entry.global)
            .map(|entry| entry.address)
            .collect();
        addresses.sort_by_key(|address| *address != internal);
        Uplink { index: device.index, name: device.name.clone(), mtu: device.mtu, addresses }
    }
}

/// Whether the agent or the plugin made the device, by its name.
pub fn is_own_device(name: &str) -> bool {
    name == VXLAN_DEVICE || is_pods_device(name)
}

/// Whether the device is the host side of a pod's veth pair, by its name.
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

    /// lo, eth0 with the InternalIP, eth1 with the default route, a pod's device.
    fn host() -> Host {
        let device = |index, name: &str, loopback| Device {
            index,
            name: name.into(),
            mtu: 1500,
            mac: None,
            up: true,
            loopback,
            kind: DeviceKind::Other,
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
            own_routes: BTreeMap::new(),
        }
    }

    fn names(uplinks: Result<Vec<Uplink>, NoUplink>) -> Vec<String> {
        uplinks.unwrap().into_iter().map(|uplink| uplink.name).collect()
    }

    #[test]
    fn devices_of_internal_address_and_default_route_are_uplinks() {
        let uplinks = host().uplinks(&[], ip("10.200.0.1"));
        assert_eq!(names(uplinks.clone()), ["eth0", "eth1"]);
        assert_eq!(uplinks.unwrap()[0].addresses, [ip("10.200.0.1"), ip("192.0.2.7")]);
    }

    #[test]
    fn a_device_that_is_both_is_one_uplink() {
        assert_eq!(names(host().uplinks(&[], ip("198.51.100.1"))), ["eth1"]);
    }

    #[test]
    fn each_next_hop_of_a_default_route_has_an_uplink() {
        let mut host = host();
        let gateway = Some(ip("10.200.0.254"));
        host.foreign_routes[0].next_hops.push(NextHop { device: 2, gateway });
        // The InternalIP is on no link that leads out, as where every router is told of it.
        assert_eq!(names(host.uplinks(&[], ip("203.0.113.1"))), ["eth1", "eth0"]);
        assert_eq!(host.default_devices().collect::<Vec<_>>(), ["eth1", "eth0"]);
        let routers = ["198.51.100.254/32", "10.200.0.254/32"].map(|router| router.parse().unwrap());
        let underlay = host.underlay(&[]);
        assert!(routers.iter().all(|router| underlay.contains(router)), "{underlay:?}");
    }

    #[test]
    fn named_uplinks_are_used_alone_and_have_to_exist() {
        let named = ["eth1".to_owned()];
        assert_eq!(names(host().uplinks(&named, ip("10.200.0.1"))), ["eth1"]);
        let named = ["eth1".to_owned(), "eth0".to_owned()];
        assert_eq!(names(host().uplinks(&named, ip("10.200.0.1"))), ["eth0", "eth1"]);
        let error = host().uplinks(&["eth9".to_owned()], ip("10.200.0.1"));
        assert_eq!(error, Err(NoUplink::Unknown("eth9".into())));
    }

    #[test]
    fn without_either_there_is_no_uplink() {
        let mut host = host();
        host.foreign_routes.clear();
        assert_eq!(host.uplinks(&[], ip("203.0.113.1")), Err(NoUplink::NoneFound(ip("203.0.113.1"))));
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
            });
        };
        add(4, "pw0123456789ab", "192.0.2.8", true);
        add(5, VXLAN_DEVICE, "10.244.1.1", true);
        add(6, "kube-ipvs0", "10.96.0.1", true);
        add(7, "docker0", "172.17.0.1", true);
        add(8, "link", "169.254.0.1", false);
        add(1, "lo", "127.0.0.2", true);
        add(1, "lo", "203.0.113.1", true);
        let own = ["10.200.0.1", "172.17.0.1", "192.0.2.7", "198.51.100.1", "203.0.113.1"].map(ip);
        assert_eq!(host.own_addresses(), own.into());
    }

    #[test]
    fn pods_that_come_and_go_change_no_route() {
        let before = host();
        let mut after = before.clone();
        after.devices.remove(&4);
        assert!(!after.routes_differ(&before));
        after.devices.get_mut(&2).unwrap().mtu = 1400;
        assert!(after.routes_differ(&before));
    }
}
