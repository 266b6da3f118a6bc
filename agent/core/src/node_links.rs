//! The role of each link of this machine. Pure.
//!
//! | role | which links | what the programs do there |
//! |---|---|---|
//! | [`Role::Uplink`] | has the InternalIP, is a next hop of a default route or of a route to a node, or matches `--uplink` | everything |
//! | [`Role::Side`] | any other link with a global address or a route of its own | hostPorts are answered, SNAT translates pods' sources, tunnel packets are dropped |
//! | [`Role::Inner`] | a bridge with such an address or route, and with no ports other than veths and taps | hostPorts are answered, tunnel packets are dropped |
//! | none | Podwire's own, `lo`, dummies, ports of bridges and bonds, VRF devices, others' tunnels, links of an earlier pod network, links with a link header that is not Ethernet's, and links that match `--exclude-uplink` | no programs run there: `from_pod` drops pods' packets to the world that the host routes there, except at a dummy |
//!
//! Others' tunnels are devices that encapsulate IP or Ethernet in the kernel: VXLAN, Geneve, GRE,
//! IP in IP. They belong to another pod network. WireGuard, tun and ppp devices belong to a VPN,
//! and other pod networks masquerade pods' packets to a VPN. So these devices get a role like any
//! other link.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;
use wildmatch::WildMatch;

use crate::host::{Device, DeviceKind, ForeignRoute, Host, Lifetime, LinkHeader};
use crate::model::{Node, NodeLink, Role};

/// Longest name of a link, in bytes: `IFNAMSIZ` without the final zero.
const LONGEST_NAME: usize = 15;

/// The operator's rules for links, by their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinkRules {
    /// Links that are uplinks in addition to those that the agent finds.
    pub uplinks: Vec<LinkPattern>,
    /// Links that have no role.
    pub excluded: Vec<LinkPattern>,
}

/// A pattern for names of links: `*` stands for any characters, `?` for one.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkPattern(WildMatch);

impl LinkPattern {
    /// Returns whether the pattern matches the name of a link.
    pub fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }
}

/// Error for a pattern that no link's name can match.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "no link can have this name: names have 1 to 15 characters, no space and no /; * and ? are wildcards"
)]
pub struct NoLinkName;

impl FromStr for LinkPattern {
    type Err = NoLinkName;

    fn from_str(text: &str) -> Result<Self, NoLinkName> {
        let literal = text.chars().filter(|character| *character != '*').map(char::len_utf8).sum::<usize>();
        let is_odd = |character: char| character.is_whitespace() || character == '/';
        if text.is_empty() || literal > LONGEST_NAME || text.contains(is_odd) {
            return Err(NoLinkName);
        }
        Ok(Self(WildMatch::new(text)))
    }
}

/// Returns the links that have a role: first uplinks, then side links, then inner links. The uplink
/// with the InternalIP comes first.
///
/// `to_nodes`: the links by which the kernel routes to the other nodes, by ifindex.
pub fn node_links(host: &Host, rules: &LinkRules, own: &Node, to_nodes: &BTreeSet<u32>) -> Vec<NodeLink> {
    let view = View::new(host, rules, own, to_nodes);
    let roles = host.devices.values().filter_map(|device| Some((device, view.role(device)?)));
    let mut links: Vec<_> = roles.map(|(device, role)| link(host, device, role, own)).collect();
    let has_internal = |link: &NodeLink| own.first_addresses().any(|of| link.addresses.contains(&of));
    links.sort_by_key(|link| (link.role, !has_internal(link), link.index));
    links
}

fn link(host: &Host, device: &Device, role: Role, own: &Node) -> NodeLink {
    let mut addresses: Vec<_> = host
        .addresses
        .iter()
        .filter(|entry| entry.device == device.index && entry.global && entry.lifetime == Lifetime::Lasting)
        .map(|entry| entry.address)
        .collect();
    addresses.sort_by_key(|address| !own.first_addresses().any(|internal| internal == *address));
    let is_bare = device.link_header == LinkHeader::None;
    NodeLink { index: device.index, name: device.name.clone(), mtu: device.mtu, addresses, role, is_bare }
}

/// Facts that determine the roles of links, by ifindex.
struct View<'a> {
    rules: &'a LinkRules,
    to_nodes: &'a BTreeSet<u32>,
    /// Links that have the first InternalIP of a family.
    internal: BTreeSet<u32>,
    /// Links that are a next hop of a default route.
    default: BTreeSet<u32>,
    /// Links that have a global address, or are a next hop of another route.
    routed: BTreeSet<u32>,
    /// Links that have an address or a route within this node's podCIDRs.
    of_pods: BTreeSet<u32>,
    /// Kinds of the ports of each bridge.
    ports: BTreeMap<u32, BTreeSet<DeviceKind>>,
}

impl<'a> View<'a> {
    fn new(host: &Host, rules: &'a LinkRules, own: &Node, to_nodes: &'a BTreeSet<u32>) -> Self {
        let is_default = |route: &&ForeignRoute| route.destination.prefix_len() == 0;
        let devices = |routes: &mut dyn Iterator<Item = &ForeignRoute>| -> BTreeSet<u32> {
            routes.flat_map(|route| &route.next_hops).map(|hop| hop.device).collect()
        };
        let is_of_pods = |network: &IpNet| own.pod_networks.iter().any(|own| own.contains(network));
        let (routes, addresses) = (&host.foreign_routes, &host.addresses);
        let global = addresses.iter().filter(|entry| entry.global);
        let of_pods = addresses.iter().filter(|entry| is_of_pods(&entry.address.into()));
        let mut view = Self {
            rules,
            to_nodes,
            internal: global
                .clone()
                .filter(|entry| own.first_addresses().any(|internal| internal == entry.address))
                .map(|entry| entry.device)
                .collect(),
            default: devices(&mut routes.iter().filter(is_default)),
            routed: devices(&mut routes.iter().filter(|route| !is_default(route))),
            of_pods: devices(&mut routes.iter().filter(|route| is_of_pods(&route.destination))),
            ports: BTreeMap::new(),
        };
        view.routed.extend(global.map(|entry| entry.device));
        view.of_pods.extend(of_pods.map(|entry| entry.device));
        for device in host.devices.values() {
            if let Some(bridge) = device.port_of {
                view.ports.entry(bridge).or_default().insert(device.kind);
            }
        }
        view
    }

    fn role(&self, device: &Device) -> Option<Role> {
        let index = &device.index;
        let matches = |patterns: &[LinkPattern]| patterns.iter().any(|pattern| pattern.matches(&device.name));
        if !device.is_foreign()
            || device.port_of.is_some()
            || device.link_header == LinkHeader::Other
            || matches(&self.rules.excluded)
        {
            return None;
        }
        if matches(&self.rules.uplinks) {
            return Some(Role::Uplink);
        }
        if matches!(device.kind, DeviceKind::Dummy | DeviceKind::Vrf) {
            return None;
        }
        if self.internal.contains(index) {
            return Some(Role::Uplink);
        }
        if self.of_pods.contains(index) {
            return None;
        }
        if self.default.contains(index) || self.to_nodes.contains(index) {
            return Some(Role::Uplink);
        }
        match device.kind {
            DeviceKind::Vxlan | DeviceKind::OtherTunnel => None,
            _ if !self.routed.contains(index) => None,
            DeviceKind::Bridge if self.leads_to_this_host(*index) => Some(Role::Inner),
            _ => Some(Role::Side),
        }
    }

    /// Returns whether a bridge has no port that leads out of this host.
    fn leads_to_this_host(&self, bridge: u32) -> bool {
        let inner = [DeviceKind::Veth, DeviceKind::Tun].into();
        self.ports.get(&bridge).is_none_or(|kinds| kinds.is_subset(&inner))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::host::{DeviceAddress, NextHop};

    /// Name, kind, name of the device that it is a port of, addresses, routes.
    type Row = (&'static str, DeviceKind, &'static str, &'static str, &'static str);

    /// Node 1 of an ordinary cluster: its InternalIP is on eth0, and so is the default route.
    const ETH0: Row = ("eth0", DeviceKind::Other, "", "10.200.0.1/24", "0.0.0.0/0");
    const UPLINK: Option<Role> = Some(Role::Uplink);
    const SIDE: Option<Role> = Some(Role::Side);
    const INNER: Option<Role> = Some(Role::Inner);

    fn host(rows: &[Row]) -> Host {
        let mut host = Host::default();
        let index = |name: &str| rows.iter().position(|row| row.0 == name).map(|place| place as u32 + 1);
        for (name, kind, port_of, addresses, routes) in rows {
            let index_of_row = index(name).unwrap();
            let device = Device {
                index: index_of_row,
                name: (*name).into(),
                mtu: 1500,
                mac: None,
                up: true,
                loopback: *name == "lo",
                kind: *kind,
                link_header: match *name {
                    "ib0" => LinkHeader::Other,
                    "tun0" | "wg0" | "ppp0" => LinkHeader::None,
                    _ => LinkHeader::Ethernet,
                },
                port_of: index(port_of),
            };
            host.devices.insert(index_of_row, device);
            for network in addresses.split_whitespace() {
                let network: IpNet = network.parse().unwrap();
                let (address, prefix_length) = (network.addr(), network.prefix_len());
                let global = !address.is_loopback();
                host.addresses.push(DeviceAddress {
                    device: index_of_row,
                    address,
                    prefix_length,
                    global,
                    lifetime: Lifetime::Lasting,
                });
            }
            for destination in routes.split_whitespace() {
                let next_hops = vec![NextHop { device: index_of_row, gateway: None }];
                host.foreign_routes
                    .push(ForeignRoute { destination: destination.parse().unwrap(), next_hops });
            }
        }
        host
    }

    fn own() -> Node {
        Node {
            name: "node1".into(),
            uid: None,
            pod_networks: vec!["10.244.1.0/24".parse().unwrap()],
            internal_addresses: vec!["10.200.0.1".parse().unwrap()],
            cordoned: false,
            vtep_macs: BTreeMap::new(),
        }
    }

    fn patterns(text: &str) -> Vec<LinkPattern> {
        text.split_whitespace().map(|pattern| pattern.parse().unwrap()).collect()
    }

    /// Returns names and roles, in order.
    fn roles(rows: &[Row], uplinks: &str, excluded: &str, to_nodes: &[&str]) -> Vec<(String, Role)> {
        let host = host(rows);
        let rules = LinkRules { uplinks: patterns(uplinks), excluded: patterns(excluded) };
        let to_nodes = to_nodes.iter().map(|name| host.device(name).unwrap().index).collect();
        let links = node_links(&host, &rules, &own(), &to_nodes);
        links.into_iter().map(|link| (link.name, link.role)).collect()
    }

    #[test]
    fn each_link_of_a_node_has_the_role_of_what_is_behind_it() {
        use DeviceKind::{Bridge, Dummy, Other, OtherTunnel, Tun, Veth, Vrf, Vxlan};
        const POD: &str = "pw0123456789ab";
        #[rustfmt::skip]
        let table: [(&str, &[Row], Option<Role>); 34] = [
            ("the InternalIP, and no route", &[("eth1", Other, "", "10.200.0.1/24", "")], UPLINK),
            ("the InternalIP on a bridge with a physical port", &[("br0", Bridge, "", "10.200.0.1/24", ""), ("eth1", Other, "br0", "", "")], UPLINK),
            ("the InternalIP on a bridge without one", &[("br0", Bridge, "", "10.200.0.1/24", ""), ("veth1", Veth, "br0", "", "")], UPLINK),
            ("the InternalIP on a VPN's link", &[("tun0", Tun, "", "10.200.0.1/24", "")], UPLINK),
            ("the InternalIP on a dummy", &[("dummy0", Dummy, "", "10.200.0.1/32", "")], None),
            ("the InternalIP on lo", &[("lo", Other, "", "127.0.0.1/8 10.200.0.1/32", "")], None),
            ("a default route", &[("eth1", Other, "", "", "0.0.0.0/0")], UPLINK),
            ("a default route by a VPN", &[("ppp0", Other, "", "203.0.113.7/32", "0.0.0.0/0")], UPLINK),
            ("a default route by a tunnel", &[("gre1", OtherTunnel, "", "", "0.0.0.0/0")], UPLINK),
            ("an address", &[("eth1", Other, "", "192.168.50.1/24", "")], SIDE),
            ("a route", &[("eth1", Other, "", "", "192.168.50.0/24")], SIDE),
            ("neither", &[("eth1", Other, "", "", "")], None),
            ("an address that only this host knows", &[("eth1", Other, "", "127.0.0.2/8", "")], None),
            ("a veth with an address", &[("veth1", Veth, "", "192.168.50.1/24", "")], SIDE),
            ("a VPN's link with an address", &[("wg0", Other, "", "10.9.0.1/24", "10.10.0.0/16")], SIDE),
            ("a bridge with a physical port", &[("br0", Bridge, "", "192.168.50.1/24", ""), ("eth1", Other, "br0", "", "")], SIDE),
            ("a bridge with a physical port and machines", &[("br0", Bridge, "", "192.168.50.1/24", ""), ("eth1", Other, "br0", "", ""), ("tap1", Tun, "br0", "", "")], SIDE),
            ("a bridge with containers", &[("docker0", Bridge, "", "172.17.0.1/16", ""), ("veth1", Veth, "docker0", "", "")], INNER),
            ("a bridge with machines", &[("virbr0", Bridge, "", "192.168.122.1/24", ""), ("tap1", Tun, "virbr0", "", "")], INNER),
            ("a bridge without ports", &[("docker0", Bridge, "", "172.17.0.1/16", "")], INNER),
            ("a bridge without an address", &[("br0", Bridge, "", "", "")], None),
            ("a port with an address left on it", &[("eth1", Other, "br0", "192.168.50.1/24", ""), ("br0", Bridge, "", "", "")], None),
            ("a pod's link", &[(POD, Veth, "", "", "192.168.50.0/24")], None),
            ("the agent's tunnel", &[("podwire-vxlan", Vxlan, "", "10.244.1.1/32", "192.168.50.0/24")], None),
            ("an address in the podCIDR", &[("cni0", Bridge, "", "10.244.1.1/24", "")], None),
            ("a route in the podCIDR", &[("cali1", Veth, "", "", "10.244.1.7/32")], None),
            ("an address in another node's podCIDR", &[("eth1", Other, "", "10.244.2.9/24", "")], SIDE),
            ("another network's tunnel", &[("flannel.1", Vxlan, "", "10.245.1.0/32", "10.245.0.0/16")], None),
            ("IP in IP", &[("tunl0", OtherTunnel, "", "10.9.0.1/32", "")], None),
            ("kube-proxy's", &[("kube-ipvs0", Dummy, "", "10.96.0.1/32", "")], None),
            ("a dummy with an address", &[("nodelocaldns", Dummy, "", "169.254.20.10/32", "")], None),
            ("a VRF", &[("vrf1", Vrf, "", "192.168.50.1/32", "192.168.60.0/24")], None),
            ("lo", &[("lo", Other, "", "127.0.0.1/8", "")], None),
            ("InfiniBand", &[("ib0", Other, "", "10.200.0.1/24", "0.0.0.0/0")], None),
        ];
        for (what, rows, expected) in table {
            let found = roles(rows, "", "", &[]);
            let role = found.iter().find(|(name, _)| name == rows[0].0).map(|(_, role)| *role);
            assert_eq!(role, expected, "{what}");
        }
    }

    #[test]
    fn a_link_by_which_nodes_are_reached_is_an_uplink() {
        let rows = [ETH0, ("eth1", DeviceKind::Other, "", "192.168.50.1/24", "")];
        assert_eq!(roles(&rows, "", "", &[]), [("eth0".into(), Role::Uplink), ("eth1".into(), Role::Side)]);
        assert_eq!(
            roles(&rows, "", "", &["eth1"]),
            [("eth0".into(), Role::Uplink), ("eth1".into(), Role::Uplink)]
        );
    }

    #[test]
    fn patterns_add_uplinks_and_take_roles_away() {
        let rows = [
            ("eth2", DeviceKind::Other, "", "192.168.50.1/24", ""),
            ("eth3", DeviceKind::Other, "bond0", "", ""),
            ("bond0", DeviceKind::Other, "", "192.168.60.1/24", ""),
            ETH0,
            ("dummy0", DeviceKind::Dummy, "", "192.168.70.1/24", ""),
        ];
        let names = |uplinks: &str, excluded: &str| {
            let found = roles(&rows, uplinks, excluded, &[]);
            found.iter().map(|(name, role)| format!("{name} {role:?}")).collect::<Vec<_>>().join(", ")
        };
        // The link with the InternalIP is first. A port never gets a role, whatever the patterns
        // say.
        assert_eq!(names("", ""), "eth0 Uplink, eth2 Side, bond0 Side");
        assert_eq!(names("eth*", ""), "eth0 Uplink, eth2 Uplink, bond0 Side");
        assert_eq!(names("eth? dummy0", ""), "eth0 Uplink, eth2 Uplink, dummy0 Uplink, bond0 Side");
        assert_eq!(names("ens3 wlan*", ""), "eth0 Uplink, eth2 Side, bond0 Side");
        assert_eq!(names("eth*", "eth2 bond0"), "eth0 Uplink");
        assert_eq!(names("eth0", "eth*"), "bond0 Side");
    }

    #[test]
    fn a_name_that_no_link_can_have_is_refused() {
        for text in ["", "eth 0", "eth/0", "interface-too-long"] {
            assert_eq!(text.parse::<LinkPattern>(), Err(NoLinkName), "{text}");
        }
        for text in ["eth0", "e*", "*", "enp0s31f6np0v12", "enp*s*f*np*v*"] {
            text.parse::<LinkPattern>().unwrap();
        }
    }

    #[test]
    fn an_uplink_has_the_internal_ip_first_among_its_addresses() {
        let rows = [("eth0", DeviceKind::Other, "", "192.0.2.7/24 10.200.0.1/24", "")];
        let links = node_links(&host(&rows), &LinkRules::default(), &own(), &BTreeSet::new());
        let addresses: [IpAddr; 2] = ["10.200.0.1", "192.0.2.7"].map(|address| address.parse().unwrap());
        assert_eq!(links[0].addresses, addresses);
    }

    #[test]
    fn addresses_that_go_give_a_link_its_role_and_no_source() {
        let eth0 = "2001:db8::7/64 2001:db8::8/64 2001:db8::9/64 10.200.0.1/24";
        let rows = [
            ("eth0", DeviceKind::Other, "", eth0, ""),
            ("eth1", DeviceKind::Other, "", "2001:db8:1::7/64", ""),
            ("eth2", DeviceKind::Other, "", "2001:db8:2::7/64", ""),
        ];
        let mut host = host(&rows);
        let lifetimes = [
            ("2001:db8::7", Lifetime::Deprecated),
            ("2001:db8::8", Lifetime::Temporary),
            ("2001:db8:1::7", Lifetime::Deprecated),
            ("2001:db8:2::7", Lifetime::Temporary),
        ];
        for (address, lifetime) in lifetimes {
            let is_it = |entry: &&mut DeviceAddress| entry.address.to_string() == address;
            host.addresses.iter_mut().find(is_it).unwrap().lifetime = lifetime;
        }
        let found = |host: &Host| {
            let links = node_links(host, &LinkRules::default(), &own(), &BTreeSet::new());
            let texts = |link: &NodeLink| link.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>();
            links.iter().map(|link| (link.role, texts(link).join(" "))).collect::<Vec<_>>()
        };
        let side = || (Role::Side, String::new());
        assert_eq!(found(&host), [(Role::Uplink, "10.200.0.1 2001:db8::9".into()), side(), side()]);
        // The link with the InternalIP is an uplink for as long as it has that address.
        for entry in &mut host.addresses {
            entry.lifetime = Lifetime::Deprecated;
        }
        assert_eq!(found(&host), [(Role::Uplink, String::new()), side(), side()]);
    }

    #[test]
    fn a_link_without_link_header_is_told_apart() {
        let rows = [ETH0, ("wg0", DeviceKind::Other, "", "10.9.0.1/24", "")];
        let links = node_links(&host(&rows), &LinkRules::default(), &own(), &BTreeSet::new());
        let found: Vec<_> = links.iter().map(|link| (link.name.as_str(), link.is_bare)).collect();
        assert_eq!(found, [("eth0", false), ("wg0", true)]);
    }

    #[test]
    fn each_next_hop_of_a_default_route_is_an_uplink() {
        let mut host = host(&[ETH0, ("eth1", DeviceKind::Other, "", "192.168.50.1/24", "")]);
        host.foreign_routes[0].next_hops.push(NextHop { device: 2, gateway: None });
        let links = node_links(&host, &LinkRules::default(), &own(), &BTreeSet::new());
        assert!(links.iter().all(|link| link.role == Role::Uplink) && links.len() == 2, "{links:?}");
    }
}
