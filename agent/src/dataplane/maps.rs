//! Typed access to the maps.

use std::net::Ipv4Addr;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use podwire_common::abi::{
    self, Count, Flow, FlowKey, FragmentKey, FragmentPorts, InboundFlow, KnownFlow, RedirectedSocket,
    SocketAddress, StackFlow, TABLE_STACK_FLOWS, TABLE_TRANSLATIONS, Translation,
};
use podwire_common::addr::{Addr, LpmAddr};
use podwire_common::names::maps as names;
use podwire_common::reason::{Drop, Path};

use super::forget::Epochs;
use super::shares::Shares;
use crate::desired::{Contents, Prefix};
use crate::diff::Op;
use crate::error::Error;

type Result<T, E = Error> = std::result::Result<T, E>;

/// Every map of the object.
pub struct Maps {
    /// `ENDPOINTS`.
    pub endpoints: HashMap<MapData, Addr, abi::Endpoint>,
    /// `EGRESS_GUARDS`.
    pub guards: HashMap<MapData, u32, abi::Guard>,
    /// `NODES`.
    pub nodes: LpmTrie<MapData, LpmAddr, abi::Node>,
    /// `VTEPS`.
    pub vteps: HashMap<MapData, Addr, abi::Vtep>,
    /// `TUNNEL_PEERS`.
    pub tunnel_peers: HashMap<MapData, Addr, u32>,
    /// `UPLINKS`.
    pub uplinks: HashMap<MapData, u32, abi::Uplink>,
    /// `STACK_FLOWS`.
    pub stack_flows: HashMap<MapData, Flow, StackFlow>,
    /// How many entries that one can hold.
    pub stack_flows_capacity: usize,
    /// `TRANSLATIONS`.
    pub translations: HashMap<MapData, Flow, Translation>,
    /// How many entries that one can hold.
    pub translations_capacity: usize,
    /// `INBOUND_FLOWS`.
    pub inbound_flows: HashMap<MapData, Flow, InboundFlow>,
    /// `NON_MASQUERADE`.
    pub non_masquerade: LpmTrie<MapData, LpmAddr, u32>,
    /// `FRONTENDS`.
    pub frontends: HashMap<MapData, abi::Frontend, abi::Backend>,
    /// How many entries that one can hold.
    pub frontends_capacity: usize,
    /// `REDIRECTED_SOCKETS`.
    pub redirected_sockets: HashMap<MapData, RedirectedSocket, SocketAddress>,
    /// `FRAGMENTS`.
    pub fragments: HashMap<MapData, FragmentKey, FragmentPorts>,
    /// `FLOWS`.
    pub flows: HashMap<MapData, FlowKey, KnownFlow>,
    /// `GENERATION` and `EPOCHS`.
    pub epochs: Epochs,
    /// `HOLDERS` and `ROOM`.
    pub shares: Shares,
    /// `DROPS`.
    pub drops: PerCpuArray<MapData, Count>,
    /// `TRAFFIC`.
    pub traffic: PerCpuArray<MapData, Count>,
}

/// What the programs counted, over all CPUs.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// By reason.
    pub drops: Vec<(Drop, Count)>,
    /// By path.
    pub traffic: Vec<(Path, Count)>,
}

impl Maps {
    /// Takes the maps out of a loaded object. They have to live as long as its programs are to be loaded.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let stack_flows_capacity = capacity(ebpf, names::STACK_FLOWS)?;
        let translations_capacity = capacity(ebpf, names::TRANSLATIONS)?;
        let mut shares = Shares { holders: take(ebpf, names::HOLDERS)?, room: take(ebpf, names::ROOM)? };
        shares.begin(TABLE_TRANSLATIONS, translations_capacity)?;
        shares.begin(TABLE_STACK_FLOWS, stack_flows_capacity)?;
        Ok(Self {
            stack_flows_capacity,
            translations_capacity,
            frontends_capacity: capacity(ebpf, names::FRONTENDS)?,
            endpoints: take(ebpf, names::ENDPOINTS)?,
            guards: take(ebpf, names::EGRESS_GUARDS)?,
            nodes: take(ebpf, names::NODES)?,
            vteps: take(ebpf, names::VTEPS)?,
            tunnel_peers: take(ebpf, names::TUNNEL_PEERS)?,
            uplinks: take(ebpf, names::UPLINKS)?,
            stack_flows: take(ebpf, names::STACK_FLOWS)?,
            translations: take(ebpf, names::TRANSLATIONS)?,
            inbound_flows: take(ebpf, names::INBOUND_FLOWS)?,
            non_masquerade: take(ebpf, names::NON_MASQUERADE)?,
            frontends: take(ebpf, names::FRONTENDS)?,
            redirected_sockets: take(ebpf, names::REDIRECTED_SOCKETS)?,
            fragments: take(ebpf, names::FRAGMENTS)?,
            flows: take(ebpf, names::FLOWS)?,
            epochs: Epochs::take(ebpf)?,
            shares,
            drops: take(ebpf, names::DROPS)?,
            traffic: take(ebpf, names::TRAFFIC)?,
        })
    }

    /// What the maps that the agent fills hold now. Routes are not maps: that part is empty.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn contents(&self) -> Result<Contents> {
        let mut contents = Contents::default();
        for entry in self.uplinks.iter() {
            let (key, value) = entry.map_err(map_error("read", names::UPLINKS))?;
            contents.uplinks.insert(key, value);
        }
        for entry in self.tunnel_peers.iter() {
            let (key, value) = entry.map_err(map_error("read", names::TUNNEL_PEERS))?;
            contents.tunnel_peers.insert(key, value);
        }
        for entry in self.vteps.iter() {
            let (key, value) = entry.map_err(map_error("read", names::VTEPS))?;
            contents.vteps.insert(key, value);
        }
        for entry in self.nodes.iter() {
            let (key, value) = entry.map_err(map_error("read", names::NODES))?;
            contents.nodes.insert(Prefix { address: key.data().into(), bits: key.prefix_len() }, value);
        }
        for entry in self.non_masquerade.iter() {
            let (key, value) = entry.map_err(map_error("read", names::NON_MASQUERADE))?;
            contents
                .non_masquerade
                .insert(Prefix { address: key.data().into(), bits: key.prefix_len() }, value);
        }
        for entry in self.guards.iter() {
            let (key, value) = entry.map_err(map_error("read", names::EGRESS_GUARDS))?;
            contents.guards.insert(key, without_account(value));
        }
        for entry in self.endpoints.iter() {
            let (key, value) = entry.map_err(map_error("read", names::ENDPOINTS))?;
            contents.endpoints.insert(key, value);
        }
        for entry in self.frontends.iter() {
            let (key, value) = entry.map_err(map_error("read", names::FRONTENDS))?;
            contents.frontends.insert(key, value);
        }
        Ok(contents)
    }

    /// Applies an operation that concerns a map. Those that concern a route are left to the caller. The programs forget
    /// the known flows that the operation makes wrong, and no others.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn apply(&mut self, op: &Op) -> Result<()> {
        let before = match op {
            Op::SetEndpoint(address, _) | Op::RemoveEndpoint(address) => self.endpoint_at(address)?,
            _ => None,
        };
        self.write(op)?;
        self.epochs.after(op, before.as_ref());
        Ok(())
    }

    /// Has the programs forget all known flows.
    pub fn forget_flows(&self) {
        self.epochs.forget_all();
    }

    fn write(&mut self, op: &Op) -> Result<()> {
        match *op {
            Op::SetNonMasquerade(prefix, value) => {
                write(self.non_masquerade.insert(&key(prefix), value, 0), names::NON_MASQUERADE)
            }
            Op::RemoveNonMasquerade(prefix) => {
                remove(self.non_masquerade.remove(&key(prefix)), names::NON_MASQUERADE)
            }
            Op::SetUplink(key, value) => write(self.uplinks.insert(key, value, 0), names::UPLINKS),
            Op::SetTunnelPeer(key, value) => {
                write(self.tunnel_peers.insert(key, value, 0), names::TUNNEL_PEERS)
            }
            Op::SetVtep(key, value) => write(self.vteps.insert(key, value, 0), names::VTEPS),
            Op::SetNode(prefix, value) => write(self.nodes.insert(&key(prefix), value, 0), names::NODES),
            Op::SetGuard(key, value) => write(self.guards.insert(key, value, 0), names::EGRESS_GUARDS),
            Op::SetEndpoint(key, value) => write(self.endpoints.insert(key, value, 0), names::ENDPOINTS),
            Op::SetFrontend(key, value) => write(self.frontends.insert(key, value, 0), names::FRONTENDS),
            Op::RemoveFrontend(key) => remove(self.frontends.remove(&key), names::FRONTENDS),
            Op::RemoveGuard(key) => remove(self.guards.remove(&key), names::EGRESS_GUARDS),
            Op::RemoveEndpoint(key) => remove(self.endpoints.remove(&key), names::ENDPOINTS),
            Op::RemoveNode(prefix) => remove(self.nodes.remove(&key(prefix)), names::NODES),
            Op::RemoveVtep(key) => remove(self.vteps.remove(&key), names::VTEPS),
            Op::RemoveTunnelPeer(key) => remove(self.tunnel_peers.remove(&key), names::TUNNEL_PEERS),
            Op::RemoveUplink(key) => remove(self.uplinks.remove(&key), names::UPLINKS),
            Op::SetRoute(..) | Op::RemoveRoute(..) => Ok(()),
        }
    }

    /// The entry of an endpoint.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn endpoint(&self, address: Ipv4Addr) -> Result<Option<abi::Endpoint>> {
        self.endpoint_at(&address.into())
    }

    fn endpoint_at(&self, address: &Addr) -> Result<Option<abi::Endpoint>> {
        match self.endpoints.get(address, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(map_error("read", names::ENDPOINTS)(source)),
        }
    }

    /// The guard of a pod's link, without what the programs have written.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn guard(&self, link: u32) -> Result<Option<abi::Guard>> {
        match self.guards.get(&link, 0) {
            Ok(entry) => Ok(Some(without_account(entry))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(map_error("read", names::EGRESS_GUARDS)(source)),
        }
    }

    /// Who answers at a frontend.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn backend(&self, frontend: &abi::Frontend) -> Result<Option<abi::Backend>> {
        match self.frontends.get(frontend, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(map_error("read", names::FRONTENDS)(source)),
        }
    }

    /// What the programs counted.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counters(&self) -> Result<Counters> {
        let drops =
            Drop::ALL.iter().map(|reason| Ok((*reason, sum(&self.drops, *reason as u32, names::DROPS)?)));
        let traffic =
            Path::ALL.iter().map(|path| Ok((*path, sum(&self.traffic, *path as u32, names::TRAFFIC)?)));
        Ok(Counters { drops: drops.collect::<Result<_>>()?, traffic: traffic.collect::<Result<_>>()? })
    }
}

fn without_account(guard: abi::Guard) -> abi::Guard {
    abi::Guard { paid: 0, ..guard }
}

fn key(prefix: Prefix) -> Key<LpmAddr> {
    Key::new(prefix.bits, prefix.address.into())
}

pub(super) fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or_else(|| Error::Load {
        object: name.into(),
        source: "the embedded object has no such map".into(),
    })?;
    T::try_from(map).map_err(map_error("open", name))
}

fn capacity(ebpf: &Ebpf, name: &'static str) -> Result<usize> {
    match ebpf.map(name) {
        Some(Map::HashMap(data)) => {
            let info = data.info().map_err(map_error("look up", name))?;
            Ok(info.max_entries() as usize)
        }
        _ => Err(Error::Load {
            object: name.into(),
            source: "the embedded object has no such hash map".into(),
        }),
    }
}

fn sum(array: &PerCpuArray<MapData, Count>, index: u32, name: &'static str) -> Result<Count> {
    let values = array.get(&index, 0).map_err(map_error("read", name))?;
    Ok(values.iter().fold(Count::default(), |sum, value| Count {
        packets: sum.packets.wrapping_add(value.packets),
        bytes: sum.bytes.wrapping_add(value.bytes),
    }))
}

pub(super) fn map_error(operation: &'static str, map: &'static str) -> impl FnOnce(MapError) -> Error {
    move |source| Error::Map { operation, map, source }
}

fn write(result: Result<(), MapError>, map: &'static str) -> Result<()> {
    result.map_err(map_error("write", map))
}

/// Removes an entry that a program may have removed meanwhile.
pub(super) fn remove(result: Result<(), MapError>, map: &'static str) -> Result<()> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(map_error("remove from", map)),
    }
}
