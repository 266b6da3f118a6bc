//! Every pinned map, declared once: a row of [`tables!`](crate::tables).
//!
//! The rows give the programs' definitions, names and pins, the agent's handles, the sizes, the
//! counts of entries and the table "Maps" of ARCHITECTURE.md. To add a table, add its row here, its
//! types in [`abi`](crate::abi), and the code that fills it.
//!
//! # How to use the rows
//!
//! - `tables!(with)` expands to `with! { rows }`.
//! - `agent_tables!(with)` expands to the same, but only with the tables that the agent fills, in
//!   the order in which it writes them.
//! - Both put further arguments before the rows: `tables!(with, more)` is `with! { more rows }`.
//!
//! A row is:
//!
//! ```text
//! Owner {
//!     /// Documentation: key → value.
//!     NAME, field, Variant: Kind<Key, Value>, entries COUNT, option FIELD, rank RANK, share SHARE
//! }
//! ```
//!
//! | part | fragment | says |
//! |---|---|---|
//! | `Owner` | `ident` | a variant of [`Owner`] |
//! | `NAME` | `ident` | the map's name in the object, and its pin's |
//! | `field` | `ident` | the name in `snake_case`, for fields and methods |
//! | `Variant` | `ident` | the name in `CamelCase`: a variant of [`Table`] |
//! | `Kind` | `ident` | a variant of [`Kind`] |
//! | `Key`, `Value` | `ty` | types; arrays have the key `u32` |
//! | `COUNT` | `expr` | entries, unless the option says otherwise |
//! | `FIELD` | `ident` | the field of the agent's configuration that sizes the table, or `none` |
//! | `RANK` | `tt` | a number, or `none`: the agent writes in this order and removes in the reverse order |
//! | `SHARE` | `expr` | a [`Share`]: how much of the table one endpoint may take |
//!
//! If a type depends on the kind, the caller writes a small macro from kind to type. This example
//! makes a structure with a field for each table that the agent fills, and an operation for each:
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! #[derive(PartialEq, Eq, PartialOrd, Ord)]
//! pub struct Prefix;
//!
//! macro_rules! key {
//!     (LpmTrie, $key:ty) => { Prefix };
//!     ($kind:ident, $key:ty) => { $key };
//! }
//!
//! macro_rules! contents {
//!     ($($owner:ident {
//!         $(#[doc = $doc:literal])+
//!         $name:ident, $field:ident, $variant:ident: $kind:ident<$key:ty, $value:ty>,
//!         entries $entries:expr, option $option:ident, rank $rank:tt, share $share:expr
//!     })*) => {
//!         #[derive(Default)]
//!         pub struct Contents {
//!             $(pub $field: BTreeMap<key!($kind, $key), $value>,)*
//!         }
//!
//!         pub enum Op {
//!             $(
//!                 $(#[doc = $doc])+
//!                 $variant(key!($kind, $key), Option<$value>),
//!             )*
//!         }
//!     };
//! }
//!
//! podwire_common::agent_tables!(contents);
//! # use podwire_common::{abi::Vtep, addr::{Addr, Mac}};
//! let mut contents = Contents::default();
//! let vtep = Vtep { mac: Mac { bytes: [2; 6] }, reserved: [0; 2] };
//! contents.vteps.insert(Addr::UNSPECIFIED, vtep);
//! let op = Op::Vteps(Addr::UNSPECIFIED, Some(vtep));
//! let _ = Op::Nodes(Prefix, None);
//! # assert!(matches!(op, Op::Vteps(..)));
//! ```

/// The first release's layout.
pub const FIRST_LAYOUT: u32 = 1;

/// Calls a macro with the rows of all tables.
#[macro_export]
macro_rules! tables {
    ($($with:ident)::+ $(, $($before:tt)*)?) => { $($with)::+! {
        $($($before)*)?
        // The agent's tables, in order of rank. An entry's table comes after the tables that the
        // entry refers to.
        Agent {
            /// Network of the world → whether pods keep their addresses there, and what IPsec
            /// policies require.
            NETWORKS, networks, Networks: LpmTrie<$crate::addr::LpmAddr, u32>,
            entries 1024, option none, rank 1, share $crate::tables::Share::Unlimited
        }
        Agent {
            /// Link of the host → address for SNAT, tunnel address, MTU, kind.
            LINKS, links, Links: LazyHash<u32, $crate::abi::Link>,
            entries 4096, option none, rank 2, share $crate::tables::Share::Unlimited
        }
        Agent {
            /// Link of the host → IPv6 address for SNAT, IPv6 tunnel address. Links with neither
            /// have no entry.
            // Not fields of `LINKS`: a larger value there would be another layout.
            LINKS6, links6, Links6: LazyHash<u32, $crate::abi::Link6>,
            entries 4096, option none, rank 3, share $crate::tables::Share::Unlimited
        }
        Agent {
            /// Node address → node number.
            TUNNEL_PEERS, tunnel_peers, TunnelPeers: Hash<$crate::addr::Addr, u32>,
            entries 8192, option none, rank 4, share $crate::tables::Share::Unlimited
        }
        Agent {
            /// Node address → link address that inner frames to it must have. Only nodes that
            /// flannel has announced have an entry.
            // Allocated as it fills: it is empty except while a cluster moves from flannel.
            VTEPS, vteps, Vteps: LazyHash<$crate::addr::Addr, $crate::abi::Vtep>,
            entries 8192, option none, rank 5, share $crate::tables::Share::Unlimited
        }
        Agent {
            /// podCIDR or node address → tunnel endpoint, source address towards it, uplink, MTU,
            /// flags.
            NODES, nodes, Nodes: LpmTrie<$crate::addr::LpmAddr, $crate::abi::Node>,
            entries 16384, option none, rank 6, share $crate::tables::Share::Unlimited
        }
        Agent {
            /// Link of a pod with an egress limit → cost of a byte, time until which all bytes
            /// are paid for, credit.
            EGRESS_GUARDS, guards, Guards: Hash<u32, $crate::abi::Guard>,
            entries 1024, option none, rank 7, share $crate::tables::Share::Unlimited
        }
        Agent {
            /// Pod address → link, link addresses, gateway, flags.
            ENDPOINTS, endpoints, Endpoints: Hash<$crate::addr::Addr, $crate::abi::Endpoint>,
            entries 1024, option none, rank 8, share $crate::tables::Share::Unlimited
        }
        Agent {
            /// Node address (or 0 for all of a family), port, protocol → pod address, port.
            // No share: the pod's specification names its hostPorts, and ADD refuses hostPorts that
            // do not fit.
            FRONTENDS, frontends, Frontends: Hash<$crate::abi::Frontend, $crate::abi::Backend>,
            entries 4096, option max_host_ports, rank 9, share $crate::tables::Share::Unlimited
        }
        Agent {
            /// List of a service's backends, pod address, port → position. Only for services with
            /// session affinity.
            // Before `BACKENDS`, so the agent removes it after them. Otherwise a program that has
            // just read the list's number would miss a client's backend, and choose another one.
            POSITIONS, positions, Positions: LazyHash<$crate::abi::PositionKey, u32>,
            entries 262_144, option none, rank 10, share $crate::tables::Share::Unlimited
        }
        Agent {
            /// List of a service's backends, and position → pod address, port.
            // Before `SERVICES`: a list is whole before a service has its number.
            BACKENDS, backends, Backends: LazyHash<$crate::abi::BackendKey, $crate::abi::Backend>,
            entries 262_144, option none, rank 11, share $crate::tables::Share::Unlimited
        }
        Agent {
            /// Service, pod address, port → 0. The service's UDP flows to this backend go on.
            SERVING, serving, Serving: LazyHash<$crate::abi::ServingKey, u32>,
            entries 262_144, option none, rank 12, share $crate::tables::Share::Unlimited
        }
        Agent {
            /// List of a service's backends, and position → network of clients that may use the
            /// service. Only for services with `loadBalancerSourceRanges`.
            SOURCE_RANGES, source_ranges, SourceRanges:
                LazyHash<$crate::abi::BackendKey, $crate::abi::SourceRange>,
            entries 65_536, option none, rank 13, share $crate::tables::Share::Unlimited
        }
        Agent {
            /// Address, port and protocol of a service → list of its backends, number of the service.
            SERVICES, services, Services: LazyHash<$crate::abi::Frontend, $crate::abi::Service>,
            entries 262_144, option none, rank 14, share $crate::tables::Share::Unlimited
        }
        Programs {
            /// 5-tuple → when the flow was last seen. The flow must go through the host stack.
            // No LRU: an evicted entry would send a flow's replies past conntrack (invariant 1).
            STACK_FLOWS, stack_flows, StackFlows: LazyHash<$crate::abi::Flow, $crate::abi::StackFlow>,
            entries 131_072, option max_stack_flows, rank none,
            share $crate::tables::Share::AsMuchAsIsFree($crate::abi::TABLE_STACK_FLOWS)
        }
        Programs {
            /// 5-tuple → the translated 5-tuple, state, time. A translation has two entries.
            // No LRU: the eviction of one entry of a pair would break the connection.
            TRANSLATIONS, translations, Translations: LazyHash<$crate::abi::Flow, $crate::abi::Translation>,
            entries 524_288, option max_translations, rank none,
            share $crate::tables::Share::AsMuchAsIsFree($crate::abi::TABLE_TRANSLATIONS)
        }
        Programs {
            /// Datagram → ports of its first fragment.
            // No share: the kernel evicts the oldest entry, and a lost entry costs one datagram.
            FRAGMENTS, fragments, Fragments: LruHash<$crate::abi::FragmentKey, $crate::abi::FragmentPorts>,
            entries 8192, option max_fragments, rank none, share $crate::tables::Share::Unlimited
        }
        Programs {
            /// Flow of a pod that a client outside began → when it was last seen.
            // LRU without a share: clients outside can fill it, but the next packet of a flow adds
            // its entry again.
            INBOUND_FLOWS, inbound_flows, InboundFlows: LruHash<$crate::abi::Flow, $crate::abi::InboundFlow>,
            entries 16384, option max_inbound_flows, rank none, share $crate::tables::Share::Unlimited
        }
        Programs {
            /// Socket cookie, backend's address and port → the address that the process asked for;
            /// for sockets to services also the backend before this one.
            // No share: only processes of the node itself have entries.
            REDIRECTED_SOCKETS, redirected_sockets, RedirectedSockets:
                LruHash<$crate::abi::RedirectedSocket, $crate::abi::SocketAddress>,
            entries 16384, option none, rank none, share $crate::tables::Share::Unlimited
        }
        Programs {
            /// Service with session affinity, client → the backend that the client keeps, and when
            /// the client began its last connection.
            // LRU without a share: clients outside can fill it, and the kernel evicts those that
            // have not come for the longest time.
            AFFINITY, affinity, Affinity: LruHash<$crate::abi::AffinityKey, $crate::abi::Affinity>,
            entries 65_536, option none, rank none, share $crate::tables::Share::Unlimited
        }
        Programs {
            /// 5-tuple of IPv4 → what the programs know of a flow past the host stack.
            // LRU without a share: the programs can find out everything again.
            FLOWS, flows, Flows: LruHash<$crate::abi::FlowKey, $crate::abi::KnownFlow>,
            entries 65536, option none, rank none, share $crate::tables::Share::Unlimited
        }
        Programs {
            /// 5-tuple of IPv6 → as in `FLOWS`.
            // A table of its own: every packet is looked up, and short keys are faster.
            FLOWS6, flows6, Flows6: LruHash<$crate::abi::Flow, $crate::abi::KnownFlow<$crate::addr::Addr>>,
            entries 65536, option none, rank none, share $crate::tables::Share::Unlimited
        }
        Both {
            /// 0 → one number for each kind of writer. It changes when a table changes that
            /// known flows depend on.
            GENERATION, generation, Generation: MappedArray<u32, [u32; $crate::epoch::GENERATIONS]>,
            entries 1, option none, rank none, share $crate::tables::Share::Unlimited
        }
        Both {
            /// 0 → one number for each slot of `epoch`. It changes when a subject of the slot
            /// changes.
            // A pinned map and not the object's own data: it must live as long as `FLOWS`, which
            // the programs of two loads share while one agent replaces another. The kernel inlines
            // a lookup in an array, so there is no helper call. One element, because each lookup
            // puts a key on the stack.
            EPOCHS, epochs, Epochs: MappedArray<u32, [u32; $crate::epoch::EPOCH_SLOTS]>,
            entries 1, option none, rank none, share $crate::tables::Share::Unlimited
        }
        Programs {
            /// 0 → the last flow for which this CPU handed the first packet to the host stack.
            BEGINNINGS, beginnings, Beginnings: PerCpuArray<u32, $crate::abi::Beginning>,
            entries 1, option none, rank none, share $crate::tables::Share::Unlimited
        }
        Both {
            /// Pod, hostPort or node, and table → entries that it has in that table.
            // Room for all pods and hostPorts, in both tables.
            HOLDERS, holders, Holders: LazyHash<$crate::abi::Holder, u32>,
            entries 16384, option none, rank none, share $crate::tables::Share::Unlimited
        }
        Both {
            /// Table with a share → free entries, as the programs count them.
            ROOM, room, Room: Array<u32, u32>,
            entries $crate::abi::TABLES, option none, rank none, share $crate::tables::Share::Unlimited
        }
        Programs {
            /// Reason → packets, bytes.
            DROPS, drops, Drops: PerCpuArray<u32, $crate::abi::Count>,
            entries $crate::reason::DROP_SLOTS, option none, rank none, share $crate::tables::Share::Unlimited
        }
        Programs {
            /// Path → packets, bytes.
            TRAFFIC, traffic, Traffic: PerCpuArray<u32, $crate::abi::Count>,
            entries $crate::reason::PATH_SLOTS, option none, rank none, share $crate::tables::Share::Unlimited
        }
    } };
}

/// Calls a macro with the rows of the tables that the agent fills, in order of rank.
#[macro_export]
macro_rules! agent_tables {
    ($($with:ident)::+ $(, $($before:tt)*)?) => {
        $crate::tables! { $crate::filled_by_agent, [$($with)::+! $($($before)*)?] [] }
    };
}

/// Helper of [`agent_tables!`]: drops the rows of other owners.
#[doc(hidden)]
#[macro_export]
macro_rules! filled_by_agent {
    ([$($with:ident)::+! $($before:tt)*] [$($kept:tt)*]) => { $($with)::+! { $($before)* $($kept)* } };
    ($with:tt [$($kept:tt)*] Agent { $($row:tt)* } $($rest:tt)*) => {
        $crate::filled_by_agent! { $with [$($kept)* Agent { $($row)* }] $($rest)* }
    };
    ($with:tt $kept:tt $owner:ident { $($row:tt)* } $($rest:tt)*) => {
        $crate::filled_by_agent! { $with $kept $($rest)* }
    };
}

/// The side that adds and removes entries. The programs may also write fields of the agent's
/// entries.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub enum Owner {
    /// The agent.
    Agent,
    /// The programs; the agent removes stale entries.
    Programs,
    /// Both the agent and the programs write it.
    Both,
}

impl Owner {
    /// Returns the name for documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Programs => "programs",
            Self::Both => "both",
        }
    }
}

/// The kind of map that a table is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub enum Kind {
    /// A hash with all memory allocated when the map is made.
    Hash,
    /// A hash that is allocated as it fills (`BPF_F_NO_PREALLOC`).
    LazyHash,
    /// A hash that evicts the least recently used entry.
    LruHash,
    /// A trie with longest prefix match.
    LpmTrie,
    /// An array: every element always exists.
    Array,
    /// An array that is also mapped into the agent's memory (`BPF_F_MMAPABLE`). The agent writes
    /// single numbers while programs write others.
    MappedArray,
    /// An array with one value for each CPU.
    PerCpuArray,
}

impl Kind {
    /// Returns the name for documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::LazyHash => "hash, allocated as it fills",
            Self::LruHash => "LRU hash",
            Self::LpmTrie => "LPM trie",
            Self::Array => "array",
            Self::MappedArray => "array, mapped by the agent",
            Self::PerCpuArray => "per-CPU array",
        }
    }

    /// Returns whether entries are added and removed, so that a table of this kind can be empty or
    /// full.
    pub const fn fills(self) -> bool {
        matches!(self, Self::Hash | Self::LazyHash | Self::LruHash | Self::LpmTrie)
    }
}

/// How much of a table one endpoint may take.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub enum Share {
    /// All of it. Either endpoints do not decide what the table holds, or a comment at the row
    /// gives the reason.
    Unlimited,
    /// As many entries as are still free: one flooding endpoint gets half of the table. The number
    /// is the table's in [`Holder`](crate::abi::Holder), and its index in `ROOM`.
    AsMuchAsIsFree(u8),
}

/// The contents of a row.
pub struct Row {
    /// The map's name in the object, and its pin's.
    pub name: &'static str,
    /// Key → value.
    pub documentation: &'static [&'static str],
    /// The side that adds and removes entries.
    pub owner: Owner,
    /// The kind of map.
    pub kind: Kind,
    /// Entries, unless the option says otherwise.
    pub entries: u32,
    /// The field of the agent's configuration that sizes the table. The option has the same name,
    /// with dashes.
    pub option: Option<&'static str>,
    /// The agent writes tables in this order, and removes from them in the reverse order.
    pub rank: Option<u8>,
    /// How much of the table one endpoint may take.
    pub share: Share,
}

macro_rules! option {
    (none) => {
        None
    };
    ($option:ident) => {
        Some(stringify!($option))
    };
}

macro_rules! rank {
    (none) => {
        None
    };
    ($rank:literal) => {
        Some($rank)
    };
}

macro_rules! declare {
    ($($owner:ident {
        $(#[doc = $doc:literal])+
        $name:ident, $field:ident, $variant:ident: $kind:ident<$key:ty, $value:ty>,
        entries $entries:expr, option $option:ident, rank $rank:tt, share $share:expr
    })*) => {
        /// A pinned map.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[cfg_attr(any(test, feature = "std"), derive(Debug))]
        pub enum Table { $(
            $(#[doc = $doc])+
            $variant,
        )* }

        impl Table {
            /// All variants.
            pub const ALL: [Self; ROWS.len()] = [$(Self::$variant),*];
        }

        static ROWS: [Row; [$(stringify!($name)),*].len()] = [$(Row {
            name: stringify!($name),
            documentation: &[$($doc),+],
            owner: Owner::$owner,
            kind: Kind::$kind,
            entries: $entries as u32,
            option: option!($option),
            rank: rank!($rank),
            share: $share,
        }),*];
    };
}

tables!(declare);

impl Table {
    /// Returns the table's row.
    pub const fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }

    /// Returns the table's name in the object, and its pin's.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// Returns the last layout ([`SCHEMA_VERSION`](crate::abi::SCHEMA_VERSION)) that changed the
    /// table's keys or values.
    pub const fn layout(self) -> u32 {
        match self {
            #[cfg(feature = "earlier-layout")]
            Self::Endpoints | Self::Translations => crate::abi::SCHEMA_VERSION,
            _ => FIRST_LAYOUT,
        }
    }

    /// Returns whether an upgrade carries the entries over when the layout changes. Arrays begin
    /// with zeros, and their numbers are counted again. The programs learn known flows again,
    /// and the collector counts `HOLDERS` again.
    pub const fn is_carried_over(self) -> bool {
        self.row().kind.fills() && !matches!(self, Self::Flows | Self::Flows6 | Self::Holders)
    }
}

const _: () = {
    let (mut table, mut last) = (0, 0);
    while table < ROWS.len() {
        match (ROWS[table].owner, ROWS[table].rank) {
            (Owner::Agent, Some(rank)) => {
                assert!(rank > last, "the rows of Owner::Agent must be in order of rank");
                last = rank;
            }
            (Owner::Agent, None) => panic!("a row of Owner::Agent needs a rank"),
            (_, rank) => assert!(rank.is_none(), "only a row of Owner::Agent may have a rank"),
        }
        table += 1;
    }
};
