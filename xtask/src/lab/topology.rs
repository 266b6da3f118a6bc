//! Namespaces and links of a lab: nodes, underlay and world.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, bail, ensure};

use crate::lab::{Builder, Mode, Ns};

/// The world's address.
pub(crate) const WORLD: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
/// The nodes' default gateway in a lab without a router.
const GATEWAY: &str = "10.200.0.254";
const WORLD_GATEWAY: &str = "198.51.100.1";
/// The name of every node's link to the underlay.
pub(crate) const UPLINK: &str = "eth0";
const BRIDGE: &str = "br0";
const DOCKER: &str = "docker0";
const DOCKER_ADDRESS: &str = "172.17.0.1";

/// The fixed part of a lab.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) nodes: Vec<NodePlace>,
    pub(crate) underlay: Ns,
    pub(crate) world: Ns,
    router: bool,
    cable: bool,
    docker: bool,
    mtu: u32,
    mode: Mode,
}

/// A node's namespace and addresses.
#[derive(Clone, Debug)]
pub(crate) struct NodePlace {
    pub(crate) name: String,
    pub(crate) ns: Ns,
    pub(crate) address: Ipv4Addr,
    pub(crate) pod_cidr: String,
    gateway: Ipv4Addr,
    subnet: String,
}

impl Topology {
    pub(crate) fn build(lab: &str, wanted: &Builder) -> Result<Self> {
        let underlay = Ns::create(&format!("{lab}-underlay"))?;
        let world = Ns::create(&format!("{lab}-world"))?;
        let nodes: Result<Vec<NodePlace>> = (1..=wanted.nodes)
            .map(|number| NodePlace::new(lab, u8::try_from(number)?, wanted.router))
            .collect();
        let topology = Self {
            nodes: nodes?,
            underlay,
            world,
            router: wanted.router,
            cable: wanted.cable,
            docker: wanted.docker,
            mtu: wanted.underlay_mtu,
            mode: wanted.mode,
        };
        topology.join()?;
        Ok(topology)
    }

    /// Puts a namespace on the underlay's bridge: `eth0` in the namespace, and a port named `port`
    /// in the bridge.
    pub(crate) fn join_bridge(&self, ns: &Ns, port: &str, address: IpAddr) -> Result<()> {
        ensure!(!self.router && !self.cable, "this lab has no bridge to put {port} on");
        connect(&self.underlay, port, ns, UPLINK)?;
        self.underlay.ip(&format!("link set dev {port} mtu {} master {BRIDGE}", self.mtu))?;
        ns.ip(&self.uplink_lines(address, GATEWAY))
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
        self.underlay.ip(&lines)
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
        if !self.router {
            // Give the bridge a fixed address. A bridge without one takes the address of a port,
            // and may change it when the next port joins.
            self.underlay.ip(&format!(
                "link add name {BRIDGE} address 02:00:0a:c8:00:fe mtu {} type bridge\nlink set dev {BRIDGE} up\naddress add {GATEWAY}/24 dev {BRIDGE}\n",
                self.mtu
            ))?;
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
            }
            [one, other] => connect(&one.ns, UPLINK, &other.ns, UPLINK)?,
            nodes => {
                bail!("a cable has two ends: it joins two nodes, or one and the world, not {}", nodes.len())
            }
        }
        for node in &self.nodes {
            self.prepare(node)?;
            node.ns.ip(&self.uplink_lines(node.address, GATEWAY))?;
        }
        Ok(())
    }

    fn join_node(&self, node: &NodePlace) -> Result<()> {
        self.prepare(node)?;
        if !self.router {
            return self.join_bridge(&node.ns, &node.name, node.address.into());
        }
        let NodePlace { name, address, gateway, pod_cidr, .. } = node;
        connect(&self.underlay, name, &node.ns, UPLINK)?;
        let mut lines =
            format!("link set dev {name} mtu {}\naddress add {gateway}/24 dev {name}\n", self.mtu);
        if self.mode == Mode::Direct {
            // Direct routing requires such routes in a network that does not have all nodes on one
            // link.
            lines += &format!("route add {pod_cidr} via {address}\n");
        }
        self.underlay.ip(&lines)?;
        node.ns.ip(&self.uplink_lines(*address, gateway))
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
        format!(
            "link set dev {UPLINK} mtu {}\naddress add {address}/24 dev {UPLINK}\nroute add default via {gateway}\n",
            self.mtu
        )
    }
}

impl NodePlace {
    fn new(lab: &str, number: u8, router: bool) -> Result<Self> {
        let name = format!("node{number}");
        let (net, host) = if router { (number, 1) } else { (0, number) };
        Ok(Self {
            ns: Ns::create(&format!("{lab}-{name}"))?,
            address: Ipv4Addr::new(10, 200, net, host),
            gateway: Ipv4Addr::new(10, 200, net, 254),
            subnet: format!("10.200.{net}.0/24"),
            pod_cidr: format!("10.244.{number}.0/24"),
            name,
        })
    }
}

/// Joins two namespaces with a veth pair, both ends up.
///
/// # Errors
/// When the kernel refuses.
pub fn connect(one: &Ns, one_link: &str, other: &Ns, other_link: &str) -> Result<()> {
    one.ip(&format!(
        "link add name {one_link} type veth peer name {other_link} netns {}\nlink set dev {one_link} up\n",
        other.name()
    ))?;
    other.ip(&format!("link set dev {other_link} up\n"))
}
