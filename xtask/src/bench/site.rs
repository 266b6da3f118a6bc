//! Sites of a measurement: a client, a server, and the network between them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::reference::{self, Join, Masquerade};
use xtask::lab::{Builder, KubeProxy, Lab, Mode, Node, Ns, Pod, connect};

/// The shipped binaries, and other builds of the BPF object.
pub(crate) struct Programs {
    /// The folder of the two static release binaries.
    pub(crate) binaries: PathBuf,
    /// The object that leaves VXLAN to a device, as the peers' programs do.
    pub(crate) through_device: PathBuf,
    /// The object that counts helper calls.
    pub(crate) counting: PathBuf,
    /// Another build of the object, if the user names one.
    pub(crate) other: Option<PathBuf>,
}

/// A client, a server, and the network between them. The site owns the network if it made it.
pub(crate) struct Site {
    pub(crate) client: Ns,
    pub(crate) server: Ns,
    /// The address at which the client reaches the server.
    pub(crate) address: IpAddr,
    /// The site's name in tables and charts.
    pub(crate) name: String,
    _lab: Option<Lab>,
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
pub(crate) const XDP: &str = "podwire, VXLAN, XDP";
pub(crate) const OTHER: &str = "podwire, other object";
pub(crate) const PEERS: &str = "peers' way: VXLAN device";
pub(crate) const FLANNEL: &str = "bridge, iptables";
pub(crate) const FLANNEL_NFTABLES: &str = "bridge, nftables";
pub(crate) const HOST_GW: &str = "bridge, routes, iptables";

/// A configuration of Podwire.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) mode: Mode,
    /// Additional arguments of the agents.
    pub(crate) arguments: &'static [&'static str],
    /// Another build of the object, in place of the embedded one.
    pub(crate) object: Option<&'a Path>,
}

impl Way<'_> {
    pub(crate) const VXLAN: Self = Self { mode: Mode::Vxlan, arguments: &[], object: None };
    pub(crate) const DIRECT: Self = Self { mode: Mode::Direct, arguments: &[], object: None };
}

impl Site {
    /// Makes the contestants for measurements with one node: the limit, Podwire in both modes, the
    /// reference with both kinds of rules, and the user's object if there is one.
    pub(crate) fn usual(programs: &Programs, place: Place) -> Result<Vec<Self>> {
        let mut sites = vec![
            Self::limit(LIMIT, place)?,
            Self::podwire(VXLAN, programs, Way::VXLAN, place)?,
            Self::podwire(DIRECT, programs, Way::DIRECT, place)?,
            Self::reference(FLANNEL, Join::Vxlan, Masquerade::Iptables, place)?,
            Self::reference(FLANNEL_NFTABLES, Join::Vxlan, Masquerade::Nftables, place)?,
        ];
        if let Some(object) = &programs.other {
            sites.push(Self::podwire(OTHER, programs, Way { object: Some(object), ..Way::VXLAN }, place)?);
        }
        Ok(sites)
    }

    /// Makes a site of one veth pair only: between two namespaces, or between two nodes without
    /// rules.
    pub(crate) fn limit(name: &str, place: Place) -> Result<Self> {
        let lab = Lab::builder().node_file().agents(false).cable(true).build()?;
        if place != Place::SameNode {
            let (client, server) = (lab.node(0), lab.node(1));
            return Ok(Self {
                client: (**client).clone(),
                server: (**server).clone(),
                address: server.address(),
                name: name.to_owned(),
                _lab: Some(lab),
            });
        }
        let (client, server) = (lab.add_namespace("client")?, lab.add_namespace("server")?);
        connect(&client, "eth0", &server, "eth0")?;
        let (near, far): (IpAddr, IpAddr) = ([10, 244, 1, 2].into(), [10, 244, 1, 3].into());
        client.add_address("eth0", near, 24)?;
        server.add_address("eth0", far, 24)?;
        Ok(Self { client, server, address: far, name: name.to_owned(), _lab: Some(lab) })
    }

    /// Makes a site of Podwire, on nodes with kube-proxy's rules. The agents are release builds in
    /// their default configuration, except for `way`.
    pub(crate) fn podwire(name: &str, programs: &Programs, way: Way<'_>, place: Place) -> Result<Self> {
        Self::between(name, podwire(programs, way, place)?, place, |node, pod| {
            let pod = node.add_pod(pod)?;
            Ok(((*pod).clone(), pod.address()))
        })
    }

    /// Makes a site of the reference, on nodes with kube-proxy's rules.
    pub(crate) fn reference(name: &str, join: Join, masquerade: Masquerade, place: Place) -> Result<Self> {
        Self::between(name, reference(join, masquerade, place)?, place, |node, pod| {
            let mut calls = reference::calls(node, pod, join, masquerade, &serde_json::json!({}));
            let ns = Ns::create(&calls[0].container_id)?;
            let output = reference::add(&mut calls)?;
            ensure!(output.success, "ADD failed: {}\n{}", output.answer, output.stderr);
            let address = output.answer["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
            let address = address.with_context(|| format!("no address in {}", output.answer))?;
            Ok((ns, address.parse()?))
        })
    }

    /// Makes a site of two pods. Their lab outlives the site.
    pub(crate) fn of_pods(name: &str, client: &Pod, server: &Pod) -> Self {
        Self::of_namespaces(name, client, server, server.address())
    }

    /// Makes a site of two namespaces. Their lab outlives the site.
    pub(crate) fn of_namespaces(name: &str, client: &Ns, server: &Ns, address: IpAddr) -> Self {
        Self { client: client.clone(), server: server.clone(), address, name: name.to_owned(), _lab: None }
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
            Place::World => (lab.world().clone(), lab.world_address()),
        };
        Ok(Self { client, server, address, name: name.to_owned(), _lab: Some(lab) })
    }
}

/// Makes a lab with agents and with kube-proxy's rules, but without pods.
pub(crate) fn podwire(programs: &Programs, way: Way<'_>, place: Place) -> Result<Lab> {
    let mut builder =
        builder(place).mode(way.mode).binaries(&programs.binaries).agent_arguments(way.arguments);
    if let Some(object) = way.object {
        builder = builder.agent_arguments(&["--bpf-object", &object.to_string_lossy()]);
    }
    let lab = builder.agents(false).build()?;
    for node in lab.nodes() {
        KubeProxy::Iptables.write_rules(node)?;
    }
    lab.nodes().iter().try_for_each(Node::start_agent)?;
    Ok(lab)
}

/// Makes a lab with flannel's and kube-proxy's rules, but without pods.
pub(crate) fn reference(join: Join, masquerade: Masquerade, place: Place) -> Result<Lab> {
    let lab = builder(place).agents(false).build()?;
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

fn builder(place: Place) -> Builder {
    Lab::builder().node_file().cable(true).nodes(if place == Place::CrossNode { 2 } else { 1 })
}
