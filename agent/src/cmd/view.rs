//! What commands look at: the pinned tables, and the names of what is in them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use ipnet::IpNet;
use podwire_common::addr::Addr;
use podwire_core::slice::{Prefix, Tables};
use rustix::net::netdevice::index_to_name;
use rustix::net::{AddressFamily, SocketType, socket};

use super::Error;
use super::output::Printing;
use crate::config::Logging;
use crate::dataplane::maps::Maps;
use crate::dataplane::pins;
use crate::events::Names;
use crate::nodes;
use crate::operator::client::{self, Place};
use crate::operator::{Line, Question};
use crate::packet_record::{End, Link};
use crate::status;
use crate::store::{self, NODES};

/// Where the agent has its files.
#[derive(Args, Clone, Debug)]
pub struct Folders {
    /// Where the agent is.
    #[command(flatten)]
    pub place: Place,
    /// Folder where the agent pins maps and links.
    #[arg(long, env = "PODWIRE_BPF_DIR", default_value = "/sys/fs/bpf/podwire", value_name = "FOLDER")]
    pub bpf_dir: PathBuf,
    /// Folder where the agent keeps addresses and endpoints.
    #[arg(long, env = "PODWIRE_STATE_DIR", default_value = "/var/lib/podwire", value_name = "FOLDER")]
    pub state_dir: PathBuf,
}

/// Options of every command that shows something.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// How to print.
    #[command(flatten)]
    pub printing: Printing,
    /// Where the agent has its files.
    #[command(flatten)]
    pub folders: Folders,
    /// Options of every command.
    #[command(flatten)]
    pub logging: Logging,
}

/// The tables and the names of what is in them.
pub struct View {
    /// All pinned tables.
    pub maps: Maps,
    /// The contents of the agent's tables.
    pub tables: Tables,
    names: Names,
    /// Names of nodes by address.
    nodes: BTreeMap<Prefix, String>,
    /// Names of nodes by podCIDR.
    networks: BTreeMap<Prefix, String>,
    /// Names of links that the kernel was asked for: a table has the same few links many times.
    links: RefCell<BTreeMap<u32, Link>>,
}

impl View {
    /// Opens the tables and asks for the names: the agent, or its state folder if no agent answers.
    ///
    /// # Errors
    /// [`Error::NotRoot`], [`Error::NoTables`], [`Error::Dataplane`].
    pub fn open(folders: &Folders) -> Result<Self, Error> {
        let maps = open_tables(folders)?;
        let tables = maps.contents()?;
        let names = match ask_names(&folders.place) {
            Err(client::Error::NoAgent { .. }) => kept_names(folders),
            told => told?,
        };
        let nodes = tables.nodes.iter().filter_map(|(prefix, node)| {
            let name = names.nodes.get(&IpAddr::from(node.tunnel_endpoint))?;
            Some((*prefix, name.clone()))
        });
        let (networks, nodes) = nodes.partition(|(prefix, _)| prefix.bits < 128);
        Ok(Self { maps, tables, names, nodes, networks, links: RefCell::default() })
    }

    /// Returns the number of pods.
    pub fn endpoints(&self) -> usize {
        let links: BTreeSet<_> = self.tables.endpoints.values().map(|endpoint| endpoint.ifindex).collect();
        links.len()
    }

    /// Returns the number of nodes.
    pub fn nodes(&self) -> usize {
        let ids: BTreeSet<_> = self.tables.nodes.values().map(|node| node.node_id).collect();
        ids.len()
    }

    /// Returns how full the tables are now.
    ///
    /// # Errors
    /// [`Error::Dataplane`].
    pub fn fill(&self) -> Result<Vec<status::Table>, Error> {
        let fill = self.maps.count_entries()?.into_iter().map(|(table, fill)| status::Table {
            table: table.name().into(),
            entries: fill.entries,
            max_entries: fill.capacity,
        });
        Ok(fill.collect())
    }

    /// Returns namespace and name of the pod of this node with an address.
    pub fn pod(&self, address: IpAddr) -> Option<&str> {
        self.names.pods.get(&address).map(String::as_str)
    }

    /// Returns the name of the node with an InternalIP.
    pub fn node_with(&self, internal: Addr) -> Option<&str> {
        self.names.nodes.get(&internal.into()).map(String::as_str)
    }

    /// Returns one end of a flow with its names. The node is the one that has the address, as its
    /// own or as a pod's.
    pub fn end(&self, address: Addr, port: u16) -> End {
        let address = IpAddr::from(address);
        End {
            address,
            port: (port != 0).then_some(port),
            pod: self.pod(address).map(Into::into),
            node: self.node_of(address),
        }
    }

    /// Returns a link with its name, which the kernel knows.
    pub fn link(&self, index: u32) -> Link {
        let ask = || {
            let socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None);
            let name = socket.and_then(|socket| index_to_name(socket, index)).ok();
            Link { index, name }
        };
        self.links.borrow_mut().entry(index).or_insert_with(ask).clone()
    }

    fn node_of(&self, address: IpAddr) -> Option<String> {
        let whole = Prefix::from(address);
        let exact = || self.nodes.get(&whole);
        // Nodes' networks do not overlap, so only the last one that begins before the address can
        // have it.
        let of_network = || {
            let (network, node) = self.networks.range(..whole).next_back()?;
            contains(network, address).then_some(node)
        };
        exact().or_else(of_network).cloned()
    }
}

/// Opens the pinned tables.
///
/// # Errors
/// [`Error::NotRoot`], [`Error::NoTables`], [`Error::Dataplane`].
pub fn open_tables(folders: &Folders) -> Result<Maps, Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    if !pins::are_readable(&folders.bpf_dir)? {
        return Err(Error::NoTables { folder: folders.bpf_dir.display().to_string() });
    }
    Ok(Maps::of_pins(&folders.bpf_dir)?)
}

/// Returns the network that a prefix of a table stands for.
pub fn network(prefix: &Prefix) -> Option<IpNet> {
    let address = IpAddr::from(prefix.address);
    let offset = if address.is_ipv4() { Addr::V4_PREFIX_BITS } else { 0 };
    IpNet::new(address, u8::try_from(prefix.bits.checked_sub(offset)?).ok()?).ok()
}

fn contains(prefix: &Prefix, address: IpAddr) -> bool {
    network(prefix).is_some_and(|network| network.contains(&address))
}

fn ask_names(place: &Place) -> Result<Names, client::Error> {
    client::ask_for(place, &Question::Names, |line| match line {
        Line::Names { names } => Some(names),
        _ => None,
    })
}

/// Returns the names that the last agent has written down.
fn kept_names(folders: &Folders) -> Names {
    let mut names = Names::default();
    store::peek(&folders.state_dir).0.iter().for_each(|endpoint| names.add_endpoint(endpoint));
    for node in nodes::kept(&folders.state_dir.join(NODES)) {
        names.add_node(&node.name, &node.internal_addresses);
    }
    names
}
