//! Sites of a measurement: a client, a server, and the network between them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use xtask::lab::reference::{self, Join, Masquerade};
use xtask::lab::{Builder, Families, KubeProxy, Lab, Mode, Node, Ns, Pod, connect};

/// The shipped binaries, and other builds of the BPF object.
pub(crate) struct Programs {
    /// The folder of the two static release binaries.
    pub(crate) binaries: PathBuf,
    /// The object that leaves VXLAN to a device, as the peers' programs do.
    pub(crate) through_device: PathBuf,
    /// The object that counts helper calls.
    pub(crate) counting: PathBuf,
    /// Another build, if the user names one: a folder of binaries, or an object.
    pub(crate) other: Option<PathBuf>,
}

/// A client, a server, and the network between them. The site owns the network if it made it.
pub(crate) struct Site {
    pub(crate) client: Ns,
    pub(crate) server: Ns,
    /// The address at which the client reaches the server.
    pub(crate) address: IpAddr,
    /// The server's own address: another one if a service is in front of it.
    pub(crate) listen: IpAddr,
    /// The site's name in tables and charts.
    pub(crate) name: String,
    _lab: Option<Lab>,
}

/// The family of a measurement's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub(crate) fn families(self) -> Families {
        match self {
            Self::Ipv4 => Families::V4,
            Self::Ipv6 => Families::V6,
        }
    }
}

/// The places of client and server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Two pods on one node.
    SameNode,
    /// Two pods on two nodes.
    CrossNode,
    /// A pod and the world. The node's uplink joins the world to the node.
    World,
}

/// Names of sites in figures.
pub(crate) const LIMIT: &str = "limit: one veth pair";
pub(crate) const VXLAN: &str = "podwire, VXLAN";
pub(crate) const DIRECT: &str = "podwire, direct";
pub(crate) const VXLAN_IPV6: &str = "podwire, VXLAN by IPv6";
pub(crate) const XDP: &str = "podwire, VXLAN, XDP";
pub(crate) const OTHER: &str = "podwire, other build";
pub(crate) const PEERS: &str = "peers' way: VXLAN device";
pub(crate) const FLANNEL: &str = "bridge, iptables";
pub(crate) const FLANNEL_NFTABLES: &str = "bridge, nftables";
pub(crate) const HOST_GW: &str = "bridge, routes, iptables";

/// A configuration of Podwire.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) mode: Mode,
    /// Additional arguments of the agents.
    pub(crate) arguments: &'a [&'a str],
    /// The kind of kube-proxy's rules.
    pub(crate) rules: KubeProxy,
    /// Another build of the object, in place of the embedded one.
    pub(crate) object: Option<&'a Path>,
    /// Another folder of binaries, in place of the released ones.
    pub(crate) binaries: Option<&'a Path>,
}

impl<'a> Way<'a> {
    pub(crate) const VXLAN: Self =
        Self { mode: Mode::Vxlan, arguments: &[], rules: KubeProxy::Iptables, object: None, binaries: None };
    pub(crate) const DIRECT: Self = Self { mode: Mode::Direct, ..Self::VXLAN };
    /// A tunnel with IPv6 headers outside, on nodes with both families.
    pub(crate) const VXLAN_IPV6: Self = Self { arguments: &["--tunnel-family", "ipv6"], ..Self::VXLAN };

    /// Returns VXLAN by the user's other build, if there is one.
    pub(crate) fn other(programs: &'a Programs) -> Option<Self> {
        let path = programs.other.as_deref()?;
        Some(match path.is_dir() {
            true => Self { binaries: Some(path), ..Self::VXLAN },
            false => Self { object: Some(path), ..Self::VXLAN },
        })
    }
}

impl Site {
    /// Makes the contestants for measurements with one node: the limit, Podwire in both modes, the
    /// reference with both kinds of rules, and the user's other build if there is one.
    pub(crate) fn usual(programs: &Programs, place: Place, family: Family) -> Result<Vec<Self>> {
        let podwire = |name, way| Self::podwire(name, programs, way, place, family);
        let reference = |name, masquerade| Self::reference(name, Join::Vxlan, masquerade, place, family);
        let mut sites = vec![
            Self::limit(LIMIT, place, family)?,
            podwire(VXLAN, Way::VXLAN)?,
            podwire(DIRECT, Way::DIRECT)?,
            reference(FLANNEL, Masquerade::Iptables)?,
            reference(FLANNEL_NFTABLES, Masquerade::Nftables)?,
        ];
        if let Some(way) = Way::other(programs) {
            sites.push(podwire(OTHER, way)?);
        }
        Ok(sites)
    }

    /// Makes a site of one veth pair only: between two namespaces, or between two nodes without
    /// rules.
    pub(crate) fn limit(name: &str, place: Place, family: Family) -> Result<Self> {
        let families = family.families();
        let lab = Lab::builder().node_file().agents(false).cable(true).families(families).build()?;
        if place != Place::SameNode {
            let (client, server) = (lab.node(0), lab.node(1));
            return Ok(Self {
                client: (**client).clone(),
                server: (**server).clone(),
                address: server.addresses()[0],
                listen: server.addresses()[0],
                name: name.to_owned(),
                _lab: Some(lab),
            });
        }
        let (client, server) = (lab.add_namespace("client")?, lab.add_namespace("server")?);
        connect(&client, "eth0", &server, "eth0")?;
        let addresses = match family {
            Family::Ipv4 => ["10.244.1.2", "10.244.1.3"],
            Family::Ipv6 => ["fd00:10:244:1::2", "fd00:10:244:1::3"],
        };
        for (ns, address) in [&client, &server].into_iter().zip(addresses) {
            match family {
                Family::Ipv4 => ns.ip(&format!("address add {address}/24 dev eth0\n"))?,
                Family::Ipv6 => {
                    ns.sysctl("net/ipv6/conf/eth0/disable_ipv6", "0")?;
                    ns.ip(&format!("address add {address}/64 dev eth0 nodad\n"))?;
                }
            }
        }
        let address = addresses[1].parse()?;
        Ok(Self { client, server, address, listen: address, name: name.to_owned(), _lab: Some(lab) })
    }

    /// Makes a site of Podwire, on nodes with kube-proxy's rules. The agents are release builds in
    /// their default configuration, except for `way`.
    pub(crate) fn podwire(
        name: &str,
        programs: &Programs,
        way: Way<'_>,
        place: Place,
        family: Family,
    ) -> Result<Self> {
        Self::between(name, podwire(programs, way, place, family.families())?, place, |node, pod| {
            let pod = node.add_pod(pod)?;
            Ok(((*pod).clone(), pod.address()))
        })
    }

    /// Makes two sites of Podwire between the same ends, for IPv4 and for IPv6. Both are measured
    /// with the same programs at the same place in memory.
    pub(crate) fn both_families(
        names: [&str; 2],
        programs: &Programs,
        way: Way<'_>,
        place: Place,
    ) -> Result<[Self; 2]> {
        let lab = podwire(programs, way, place, Families::Dual)?;
        let client = lab.node(0).add_pod("client")?;
        let (server, addresses): (Ns, _) = match place {
            Place::World => (lab.world().clone(), lab.world_addresses()),
            Place::SameNode | Place::CrossNode => {
                let pod = lab.nodes()[lab.nodes().len() - 1].add_pod("server")?;
                ((*pod).clone(), pod.addresses().to_vec())
            }
        };
        let [ipv4, ipv6] =
            [0, 1].map(|family| Self::of_namespaces(names[family], &client, &server, addresses[family]));
        Ok([Self { _lab: Some(lab), ..ipv4 }, ipv6])
    }

    /// Makes a site of the reference, on nodes with kube-proxy's rules.
    pub(crate) fn reference(
        name: &str,
        join: Join,
        masquerade: Masquerade,
        place: Place,
        family: Family,
    ) -> Result<Self> {
        Self::between(name, reference(join, masquerade, place, family.families())?, place, |node, pod| {
            reference_pod(node, pod, join, masquerade, family)
        })
    }

    /// Makes a site of two pods. Their lab outlives the site.
    pub(crate) fn of_pods(name: &str, client: &Pod, server: &Pod) -> Self {
        Self::of_namespaces(name, client, server, server.address())
    }

    /// Makes a site of two namespaces. Their lab outlives the site.
    pub(crate) fn of_namespaces(name: &str, client: &Ns, server: &Ns, address: IpAddr) -> Self {
        Self {
            client: client.clone(),
            server: server.clone(),
            address,
            listen: address,
            name: name.to_owned(),
            _lab: None,
        }
    }

    /// Makes a site of a pod that a client reaches by a service. Their lab outlives the site.
    pub(crate) fn of_service(name: &str, client: &Ns, server: &Pod, service: IpAddr) -> Self {
        Self::of_namespaces(name, client, server, server.address()).by(service)
    }

    /// Replaces the address at which the client reaches the server.
    pub(crate) fn by(self, service: IpAddr) -> Self {
        Self { address: service, ..self }
    }

    fn between(
        name: &str,
        lab: Lab,
        place: Place,
        add_pod: impl Fn(&Node, &str) -> Result<(Ns, IpAddr)>,
    ) -> Result<Self> {
        let (client, _) = add_pod(lab.node(0), "client")?;
        let (server, address) = match place {
            Place::SameNode => add_pod(lab.node(0), "server")?,
            Place::CrossNode => add_pod(lab.node(1), "server")?,
            Place::World => (lab.world().clone(), lab.world_addresses()[0]),
        };
        Ok(Self { client, server, address, listen: address, name: name.to_owned(), _lab: Some(lab) })
    }
}

/// Makes a lab with agents and with kube-proxy's rules, but without pods.
pub(crate) fn podwire(programs: &Programs, way: Way<'_>, place: Place, families: Families) -> Result<Lab> {
    let builder = builder(place, families).mode(way.mode);
    let binaries = way.binaries.unwrap_or(&programs.binaries);
    let mut builder = builder.binaries(binaries).agent_arguments(way.arguments);
    if let Some(object) = way.object {
        builder = builder.agent_arguments(&["--bpf-object", &object.to_string_lossy()]);
    }
    let lab = builder.agents(false).build()?;
    for node in lab.nodes() {
        way.rules.write_rules(node)?;
    }
    lab.nodes().iter().try_for_each(Node::start_agent)?;
    Ok(lab)
}

/// Makes a lab with flannel's and kube-proxy's rules, but without pods.
pub(crate) fn reference(join: Join, masquerade: Masquerade, place: Place, families: Families) -> Result<Lab> {
    let lab = builder(place, families).agents(false).build()?;
    let kube_proxy = match masquerade {
        Masquerade::Nftables => KubeProxy::Nftables,
        Masquerade::Bridge | Masquerade::Iptables => KubeProxy::Iptables,
    };
    for node in lab.nodes() {
        kube_proxy.write_rules(node)?;
    }
    reference::set_up(&lab, join, masquerade)?;
    Ok(lab)
}

/// Adds a pod to a node of the reference, and returns its address.
pub(crate) fn reference_pod(
    node: &Node,
    pod: &str,
    join: Join,
    masquerade: Masquerade,
    family: Family,
) -> Result<(Ns, IpAddr)> {
    let mut calls = reference::calls(node, pod, join, masquerade, &serde_json::json!({}));
    let ns = match family {
        Family::Ipv4 => Ns::create(&calls[0].container_id)?,
        Family::Ipv6 => Ns::create_as_the_kernel_does(&calls[0].container_id)?,
    };
    let output = reference::add(&mut calls)?;
    ensure!(output.success, "ADD failed: {}\n{}", output.answer, output.stderr);
    let address = output.answer["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
    let address = address.with_context(|| format!("no address in {}", output.answer))?;
    Ok((ns, address.parse()?))
}

fn builder(place: Place, families: Families) -> Builder {
    let nodes = if place == Place::CrossNode { 2 } else { 1 };
    Lab::builder().node_file().cable(true).nodes(nodes).families(families)
}
