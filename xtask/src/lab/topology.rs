//! Namespaces and links of a lab: nodes, underlay and world.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::lab::{Builder, Families, Mode, Ns};

/// The world's address.
pub(crate) const WORLD: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
/// The world's IPv6 address.
pub(crate) const WORLD6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10));
/// The nodes' default gateway in a lab without a router.
const GATEWAY: &str = "10.200.0.254";
const GATEWAY6: &str = "fd00:10:200::254";
const WORLD_GATEWAY: &str = "198.51.100.1";
const WORLD_GATEWAY6: &str = "2001:db8::1";
/// The name of every node's link to the underlay.
pub(crate) const UPLINK: &str = "eth0";
const BRIDGE: &str = "br0";
const DOCKER: &str = "docker0";
const DOCKER_ADDRESS: &str = "172.17.0.1";
/// The longest time that the kernel takes to notice a link's carrier. It looks once a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// The fixed part of a lab.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) nodes: Vec<NodePlace>,
    pub(crate) underlay: Ns,
    pub(crate) world: Ns,
    pub(crate) families: Families,
    router: bool,
    cable: bool,
    docker: bool,
    mtu: u32,
    pub(crate) mode: Mode,
}

/// A node's namespace and addresses.
#[derive(Clone, Debug)]
pub(crate) struct NodePlace {
    pub(crate) name: String,
    pub(crate) ns: Ns,
    pub(crate) address: Ipv4Addr,
    pub(crate) address6: Ipv6Addr,
    pub(crate) pod_cidr: String,
    pub(crate) pod_cidr6: String,
    gateway: Ipv4Addr,
    gateway6: Ipv6Addr,
    subnet: String,
    subnet6: String,
}

impl Topology {
    pub(crate) fn build(lab: &str, wanted: &Builder) -> Result<Self> {
        let underlay = create(&format!("{lab}-underlay"), wanted.families)?;
        let world = create(&format!("{lab}-world"), wanted.families)?;
        let nodes: Result<Vec<NodePlace>> =
            (1..=wanted.nodes).map(|number| NodePlace::new(lab, u8::try_from(number)?, wanted)).collect();
        let topology = Self {
            nodes: nodes?,
            underlay,
            world,
            families: wanted.families,
            router: wanted.router,
            cable: wanted.cable,
            docker: wanted.docker,
            mtu: wanted.underlay_mtu,
            mode: wanted.mode,
        };
        topology.join()?;
        topology.wait_for_link_locals()?;
        Ok(topology)
    }

    /// Waits until each end of the underlay has its link-local address. The kernel adds it when the
    /// link's carrier is noticed, and then solicits neighbours. To an agent it would be news.
    fn wait_for_link_locals(&self) -> Result<()> {
        if !self.families.has_ipv6() {
            return Ok(());
        }
        let mut ends: Vec<(&Ns, &str)> = self.nodes.iter().map(|node| (&node.ns, UPLINK)).collect();
        if !self.cable {
            ends.extend([(&self.world, UPLINK), (&self.underlay, "world")]);
            match self.router {
                true => ends.extend(self.nodes.iter().map(|node| (&self.underlay, &*node.name))),
                false => ends.push((&self.underlay, BRIDGE)),
            }
        }
        let start = Instant::now();
        for (ns, link) in ends {
            let has_one = || {
                let shown = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
                shown
                    .lines()
                    .any(|line| line.starts_with("fe80") && line.split_whitespace().last() == Some(link))
            };
            while !ns.enter(has_one)? {
                ensure!(start.elapsed() < PATIENCE, "{link} in {} gets no link-local address", ns.name());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// Puts a namespace on the underlay's bridge: `eth0` in the namespace, and a port named `port`
    /// in the bridge.
    pub(crate) fn join_bridge(&self, ns: &Ns, port: &str, address: IpAddr) -> Result<()> {
        ensure!(!self.router && !self.cable, "this lab has no bridge to put {port} on");
        connect(&self.underlay, port, ns, UPLINK)?;
        self.underlay.ip(&format!("link set dev {port} mtu {} master {BRIDGE}", self.mtu))?;
        ns.ip(&self.uplink_lines(address, GATEWAY))
    }

    /// Gives a link IPv6 addresses and routes. `lines` name it.
    fn ip6(&self, ns: &Ns, lines: impl FnOnce() -> String) -> Result<()> {
        if self.families.has_ipv6() { ns.ip(&lines()) } else { Ok(()) }
    }

    fn uplink_lines6(&self, address: impl Display, gateway: impl Display) -> String {
        format!("address add {address}/64 dev {UPLINK} nodad\nroute add default via {gateway} dev {UPLINK}\n")
    }

    pub(crate) fn set_path_mtu(&self, node: usize, mtu: u32) -> Result<()> {
        ensure!(self.router, "only a lab with a router can shrink a path's MTU");
        let node = &self.nodes[node];
        // Set the MTU of the route and not of the link: a veth silently drops packets that are
        // larger than its peer's MTU.
        let mut lines = format!(
            "route change {} dev {} src {} proto kernel scope link mtu lock {mtu}\n",
            node.subnet, node.name, node.gateway
        );
        if self.mode == Mode::Direct {
            lines += &format!("route change {} via {} mtu lock {mtu}\n", node.pod_cidr, node.address);
        }
        self.underlay.ip(&lines)?;
        self.ip6(&self.underlay, || {
            let mut lines = format!(
                "route replace {} dev {} proto kernel metric 256 mtu lock {mtu}\n",
                node.subnet6, node.name
            );
            if self.mode == Mode::Direct {
                lines += &format!("route replace {} via {} mtu lock {mtu}\n", node.pod_cidr6, node.address6);
            }
            lines
        })
    }

    fn join(&self) -> Result<()> {
        if self.cable {
            return self.join_by_cable();
        }
        self.underlay.sysctl("net/ipv4/ip_forward", "1")?;
        connect(&self.underlay, "world", &self.world, UPLINK)?;
        self.underlay.ip(&format!("address add {WORLD_GATEWAY}/24 dev world\n"))?;
        self.world
            .ip(&format!("address add {WORLD}/24 dev {UPLINK}\nroute add default via {WORLD_GATEWAY}\n"))?;
        if self.families.has_ipv6() {
            self.underlay.sysctl("net/ipv6/conf/all/forwarding", "1")?;
            self.underlay.ip(&format!("address add {WORLD_GATEWAY6}/64 dev world nodad\n"))?;
            self.world.ip(&self.uplink_lines6(WORLD6, WORLD_GATEWAY6))?;
        }
        if !self.router {
            // Give the bridge a fixed address. A bridge without one takes the address of a port,
            // and may change it when the next port joins.
            let mtu = self.mtu;
            self.underlay
                .ip(&format!("link add name {BRIDGE} address 02:00:0a:c8:00:fe mtu {mtu} type bridge\n"))?;
            skip_duplicate_address_detection(&self.underlay, BRIDGE)?;
            self.underlay
                .ip(&format!("link set dev {BRIDGE} up\naddress add {GATEWAY}/24 dev {BRIDGE}\n"))?;
            self.ip6(&self.underlay, || format!("address add {GATEWAY6}/64 dev {BRIDGE} nodad\n"))?;
        }
        self.nodes.iter().try_for_each(|node| self.join_node(node))
    }

    fn join_by_cable(&self) -> Result<()> {
        match &self.nodes[..] {
            [node] => {
                connect(&node.ns, UPLINK, &self.world, UPLINK)?;
                self.world.ip(&format!(
                    "address add {GATEWAY}/24 dev {UPLINK}\naddress add {WORLD}/32 dev {UPLINK}\n"
                ))?;
                self.ip6(&self.world, || {
                    format!(
                        "address add {GATEWAY6}/64 dev {UPLINK} nodad\naddress add {WORLD6}/128 dev {UPLINK} nodad\n"
                    )
                })?;
            }
            [one, other] => connect(&one.ns, UPLINK, &other.ns, UPLINK)?,
            nodes => {
                bail!("a cable has two ends: it joins two nodes, or one and the world, not {}", nodes.len())
            }
        }
        for node in &self.nodes {
            self.prepare(node)?;
            node.ns.ip(&self.uplink_lines(node.address, GATEWAY))?;
            self.ip6(&node.ns, || self.uplink_lines6(node.address6, GATEWAY6))?;
        }
        Ok(())
    }

    fn join_node(&self, node: &NodePlace) -> Result<()> {
        self.prepare(node)?;
        if !self.router {
            self.join_bridge(&node.ns, &node.name, node.address.into())?;
            return self.ip6(&node.ns, || self.uplink_lines6(node.address6, GATEWAY6));
        }
        let NodePlace { name, address, gateway, pod_cidr, address6, gateway6, pod_cidr6, .. } = node;
        connect(&self.underlay, name, &node.ns, UPLINK)?;
        let mut lines =
            format!("link set dev {name} mtu {}\naddress add {gateway}/24 dev {name}\n", self.mtu);
        if self.mode == Mode::Direct {
            // Direct routing requires such routes in a network that does not have all nodes on one
            // link.
            lines += &format!("route add {pod_cidr} via {address}\n");
        }
        self.underlay.ip(&lines)?;
        node.ns.ip(&self.uplink_lines(*address, gateway))?;
        self.ip6(&self.underlay, || {
            let mut lines = format!("address add {gateway6}/64 dev {name} nodad\n");
            if self.mode == Mode::Direct {
                lines += &format!("route add {pod_cidr6} via {address6} dev {name}\n");
            }
            lines
        })?;
        self.ip6(&node.ns, || self.uplink_lines6(address6, gateway6))
    }

    /// Prepares a node before it gets its uplink.
    fn prepare(&self, node: &NodePlace) -> Result<()> {
        // Every Kubernetes node has this setting.
        node.ns.sysctl("net/ipv4/ip_forward", "1")?;
        if self.docker {
            node.ns.ip(&format!(
                "link add name {DOCKER} type bridge\naddress add {DOCKER_ADDRESS}/16 dev {DOCKER}\nlink set dev {DOCKER} up\n"
            ))?;
        }
        Ok(())
    }

    fn uplink_lines(&self, address: impl Display, gateway: impl Display) -> String {
        let mut lines = format!("link set dev {UPLINK} mtu {}\n", self.mtu);
        if self.families.has_ipv4() {
            lines += &format!("address add {address}/24 dev {UPLINK}\nroute add default via {gateway}\n");
        }
        lines
    }
}

impl NodePlace {
    fn new(lab: &str, number: u8, wanted: &Builder) -> Result<Self> {
        let name = format!("node{number}");
        let (net, host) = if wanted.router { (number, 1) } else { (0, number) };
        let ipv6 = |net: u8, host| Ipv6Addr::new(0xfd00, 0x10, 0x200, net.into(), 0, 0, 0, host);
        Ok(Self {
            ns: create(&format!("{lab}-{name}"), wanted.families)?,
            address6: ipv6(net, host.into()),
            gateway6: ipv6(net, 0x254),
            subnet6: format!("{}/64", ipv6(net, 0)),
            pod_cidr6: format!("fd00:10:244:{number}::/64"),
            address: Ipv4Addr::new(10, 200, net, host),
            gateway: Ipv4Addr::new(10, 200, net, 254),
            subnet: format!("10.200.{net}.0/24"),
            pod_cidr: format!("10.244.{number}.0/24"),
            name,
        })
    }
}

/// Makes a namespace, with the kernel's settings of IPv6 or with IPv6 off.
pub(crate) fn create(name: &str, families: Families) -> Result<Ns> {
    if families.has_ipv6() { Ns::create_as_the_kernel_does(name) } else { Ns::create(name) }
}

/// Joins two namespaces with a veth pair, both ends up.
///
/// # Errors
/// When the kernel refuses.
pub fn connect(one: &Ns, one_link: &str, other: &Ns, other_link: &str) -> Result<()> {
    one.ip(&format!("link add name {one_link} type veth peer name {other_link} netns {}\n", other.name()))?;
    for (ns, link) in [(one, one_link), (other, other_link)] {
        skip_duplicate_address_detection(ns, link)?;
        ns.ip(&format!("link set dev {link} up\n"))?;
    }
    Ok(())
}

/// Lets a link use its link-local address at once. The links of a machine that runs pods have been
/// up for long, and one of this lab would solicit no neighbour in its first seconds.
fn skip_duplicate_address_detection(ns: &Ns, link: &str) -> Result<()> {
    // A kernel without IPv6 does not have this file.
    ns.enter(|| drop(std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/accept_dad"), "0")))
}
