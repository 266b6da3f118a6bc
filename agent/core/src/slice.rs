//! A part of the state that the kernel and the disk hold, or should hold according to the model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use podwire_common::addr::{Addr, Mac};
use podwire_common::tables::Table;
use podwire_common::token_bucket::TokenBucket;

use crate::change::{Change, Value, changes};
use crate::model::{Endpoint, NodeLink, Role};

/// Resources of every rank, in the order of the ranks ([`crate::plan::Rank`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Addresses that pods of this node have.
    pub addresses: BTreeMap<IpAddr, ()>,
    /// Endpoints on disk, by name of the host side.
    pub files: BTreeMap<String, Endpoint>,
    /// Pods' addresses that may have flows. Programs make flows; the agent only purges them.
    pub flows: BTreeMap<IpAddr, ()>,
    /// Programs that are attached as filters, by ifindex.
    pub programs: BTreeMap<u32, Programs>,
    /// Limits of what pods receive, by ifindex.
    pub queues: BTreeMap<u32, Queue>,
    /// Links of pods, and the tunnel's link, by ifindex.
    pub links: BTreeMap<u32, Link>,
    /// The tables that the agent fills.
    pub tables: Tables,
    /// Routes of the main table with the agent's protocol number.
    pub routes: BTreeMap<IpNet, Route>,
}

impl Slice {
    /// Adds the resources of another slice.
    pub fn extend(&mut self, other: Self) {
        self.addresses.extend(other.addresses);
        self.files.extend(other.files);
        self.flows.extend(other.flows);
        self.programs.extend(other.programs);
        self.queues.extend(other.queues);
        self.links.extend(other.links);
        self.tables.extend(other.tables);
        self.routes.extend(other.routes);
    }
}

/// The filters of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// The programs of the filters.
    pub hooks: Hooks,
    /// Name of the link.
    pub device: String,
}

/// The programs of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hooks {
    /// `from_pod` and `to_pod`.
    Pod,
    /// `from_overlay` and `to_overlay`.
    Overlay,
    /// `from_uplink` and `to_uplink`.
    Uplink,
    /// `from_bare_uplink` and `to_bare_uplink`.
    BareUplink,
    /// `from_uplink` alone.
    Inner,
}

impl NodeLink {
    /// Returns the programs that the link has.
    pub fn hooks(&self) -> Hooks {
        match self.role {
            Role::Uplink | Role::Side if self.is_bare => Hooks::BareUplink,
            Role::Uplink | Role::Side => Hooks::Uplink,
            Role::Inner => Hooks::Inner,
        }
    }
}

/// A queue that limits how fast a link sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Name of the link.
    pub device: String,
    /// The limit.
    pub bucket: TokenBucket,
}

/// A link that the agent or the plugin has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// MTU: bytes of an IP packet. 0 where it is not determined: while the link is down, for
    /// example.
    pub mtu: u32,
    /// Its link address; `None`: any.
    pub mac: Option<Mac>,
    /// IFF_UP.
    pub up: bool,
    /// The tunnel's own addresses, with full prefix length.
    pub addresses: BTreeSet<IpNet>,
}

impl Link {
    /// Returns a pod's link in the state in which the plugin makes it.
    pub fn down(endpoint: &Endpoint) -> Self {
        let (name, mac) = (endpoint.host_interface.clone(), Some(endpoint.host_mac));
        Self { name, mtu: 0, mac, up: false, addresses: BTreeSet::new() }
    }
}

/// Target of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To a link.
    Link {
        /// ifindex.
        device: u32,
        /// The next hop; `None`: the destination is on the link (scope link).
        gateway: Option<IpAddr>,
        /// The source of the node's own packets.
        source: Option<IpAddr>,
    },
    /// Nowhere: the kernel tells the sender that the destination is unreachable.
    Unreachable,
}

impl Value for () {}
impl Value for Endpoint {}
impl Value for Link {}
impl Value for Programs {}
impl Value for Queue {}
impl Value for Route {}

/// Key of a longest-prefix table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// The address. Every bit after the prefix is zero.
    pub address: Addr,
    /// Length of the prefix in bits of [`Addr`]: 96 more than an IPv4 prefix length.
    pub bits: u32,
}

impl From<IpNet> for Prefix {
    fn from(network: IpNet) -> Self {
        let offset = if network.addr().is_ipv4() { Addr::V4_PREFIX_BITS } else { 0 };
        Self { address: network.network().into(), bits: offset + u32::from(network.prefix_len()) }
    }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        IpNet::from(address).into()
    }
}

/// Type of a table's key, by the table's kind.
macro_rules! key {
    (LpmTrie, $key:ty) => {
        Prefix
    };
    ($hash:ident, $key:ty) => {
        $key
    };
}

macro_rules! tables_of_agent {
    ($($owner:ident {
        $(#[doc = $doc:literal])+
        $name:ident, $field:ident, $variant:ident: $kind:ident<$key:ty, $value:ty>, $($sizes_and_shares:tt)*
    })*) => {
        /// Contents of the tables that the agent fills.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Tables {
            $($(#[doc = $doc])+ pub $field: BTreeMap<key!($kind, $key), $value>,)*
        }

        /// A change of one entry of a table.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum TableChange {
            $($(#[doc = $doc])+ $variant(Change<key!($kind, $key), $value>),)*
        }

        impl Tables {
            /// Adds the entries of other tables.
            pub fn extend(&mut self, other: Self) {
                $(self.$field.extend(other.$field);)*
            }

            /// Returns the differences from `have`, a list for each table.
            pub(crate) fn changes(&self, have: &Self) -> Vec<Vec<TableChange>> {
                vec![$(changes(&self.$field, &have.$field).map(TableChange::$variant).collect(),)*]
            }

            /// Applies a change.
            pub fn apply(&mut self, change: &TableChange) {
                match change {
                    $(TableChange::$variant(change) => change.apply_to(&mut self.$field),)*
                }
            }
        }

        impl TableChange {
            /// Returns whether the change removes the entry.
            pub fn is_removal(&self) -> bool {
                match self {
                    $(Self::$variant(change) => change.is_removal(),)*
                }
            }

            /// Returns whether the change adds an entry that was not there.
            pub fn is_addition(&self) -> bool {
                match self {
                    $(Self::$variant(change) => change.is_addition(),)*
                }
            }

            /// Returns the table of the entry.
            pub fn table(&self) -> Table {
                match self {
                    $(Self::$variant(_) => Table::$variant,)*
                }
            }
        }
    };
}

podwire_common::agent_tables!(tables_of_agent);
