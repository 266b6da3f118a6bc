//! The operations that make the kernel and the disk hold the desired state.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::change::{Change, Value, changes};
use crate::model::Endpoint;
use crate::slice::{Link, Programs, Queue, Route, Slice, TableChange};

/// The order in which resources are made. They are removed in the opposite order.
///
/// - An address is released after all its flows are purged and its endpoint's file is gone.
/// - The agent purges a pod's flows after it has removed the pod's entries from the tables: until
///   then the programs may make new flows.
/// - The kernel removes the queue and the programs of a link together with the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// A pod's address.
    Address,
    /// An endpoint's file.
    File,
    /// A pod's flows. The programs make them, so the agent does nothing here on the way up. On the
    /// way down it purges them.
    Flows,
    /// Filters on a link.
    Programs,
    /// The limit of what a pod receives.
    Queue,
    /// A link.
    Link,
    /// An entry of a table.
    Table,
    /// A route.
    Route,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// An address is taken or released.
    Address(Change<IpAddr, ()>),
    /// An endpoint's file is written or removed.
    File(Box<Change<String, Endpoint>>),
    /// The programs may make a pod's flows from now on, or the agent purges them.
    Flows(Change<IpAddr, ()>),
    /// Filters are attached to a link or detached.
    Programs(Change<u32, Programs>),
    /// A limit is set or removed.
    Queue(Change<u32, Queue>),
    /// A link is set up or down, or removed.
    Link(Change<u32, Link>),
    /// An entry of a table is written or removed.
    Table(TableChange),
    /// A route is set or removed.
    Route(Change<IpNet, Route>),
}

impl Op {
    /// Returns the rank of the operation.
    pub fn rank(&self) -> Rank {
        match self {
            Self::Address(_) => Rank::Address,
            Self::File(_) => Rank::File,
            Self::Flows(_) => Rank::Flows,
            Self::Programs(_) => Rank::Programs,
            Self::Queue(_) => Rank::Queue,
            Self::Link(_) => Rank::Link,
            Self::Table(_) => Rank::Table,
            Self::Route(_) => Rank::Route,
        }
    }

    /// Returns whether the operation removes something.
    pub fn is_removal(&self) -> bool {
        match self {
            Self::Address(change) | Self::Flows(change) => change.is_removal(),
            Self::File(change) => change.is_removal(),
            Self::Programs(change) => change.is_removal(),
            Self::Queue(change) => change.is_removal(),
            Self::Link(change) => change.is_removal(),
            Self::Table(change) => change.is_removal(),
            Self::Route(change) => change.is_removal(),
        }
    }

    /// Applies the operation to a slice.
    pub fn apply_to(&self, slice: &mut Slice) {
        match self {
            Self::Address(change) => change.apply_to(&mut slice.addresses),
            Self::File(change) => change.apply_to(&mut slice.files),
            Self::Flows(change) => change.apply_to(&mut slice.flows),
            Self::Programs(change) => change.apply_to(&mut slice.programs),
            Self::Queue(change) => change.apply_to(&mut slice.queues),
            Self::Link(change) => change.apply_to(&mut slice.links),
            Self::Table(change) => slice.tables.apply(change),
            Self::Route(change) => change.apply_to(&mut slice.routes),
        }
    }
}

/// Whether a plan may remove resources that exist but are not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removals {
    /// Yes.
    Allowed,
    /// No, because not everything is known yet: before the first node list after a start, for
    /// example.
    Withheld,
}

/// Returns the operations in order: first those that make resources, up the ranks, then those that
/// remove resources, down the ranks. A resource that stays is never absent in between.
pub fn plan(want: &Slice, have: &Slice, removals: Removals) -> Vec<Op> {
    let by_rank = by_rank(want, have);
    let (mut ops, mut removing) = (Vec::new(), Vec::new());
    for changes in by_rank {
        let (removed, made): (Vec<_>, Vec<_>) = changes.into_iter().partition(Op::is_removal);
        ops.extend(made);
        removing.push(removed);
    }
    if removals == Removals::Allowed {
        ops.extend(removing.into_iter().rev().flatten().filter(|op| !goes_with_link(op, want, have)));
    }
    ops
}

/// Returns a list of changes for each rank. The rank of tables has a list for each table.
fn by_rank(want: &Slice, have: &Slice) -> Vec<Vec<Op>> {
    fn of<K: Ord + Clone, V: Value>(
        want: &BTreeMap<K, V>,
        have: &BTreeMap<K, V>,
        op: impl Fn(Change<K, V>) -> Op,
    ) -> Vec<Op> {
        changes(want, have).map(op).collect()
    }
    let files = of(&want.files, &have.files, |change| Op::File(Box::new(change)));
    let mut by_rank = vec![
        of(&want.addresses, &have.addresses, Op::Address),
        files,
        of(&want.flows, &have.flows, Op::Flows),
        of(&want.programs, &have.programs, Op::Programs),
        of(&want.queues, &have.queues, Op::Queue),
        of(&want.links, &have.links, Op::Link),
    ];
    let tables = want.tables.changes(&have.tables).into_iter();
    by_rank.extend(tables.map(|table| table.into_iter().map(Op::Table).collect()));
    by_rank.push(of(&want.routes, &have.routes, Op::Route));
    by_rank
}

/// Returns whether the kernel does an operation itself when it removes a link.
fn goes_with_link(op: &Op, want: &Slice, have: &Slice) -> bool {
    let index = match op {
        Op::Programs(change) => change.key,
        Op::Queue(change) => change.key,
        _ => return false,
    };
    have.links.contains_key(&index) && !want.links.contains_key(&index)
}

#[cfg(test)]
mod tests {
    use podwire_common::abi;
    use podwire_common::addr::{Addr, Be16, Mac};
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::changes::changes;
    use crate::cluster::{Cluster, NodeRecord};
    use crate::features::{Scope, desired};
    use crate::model::{Mode, Model, Node, NodeLink, Role};
    use crate::slice::{Prefix, Tables};

    fn address(last: u8) -> Addr {
        Addr::from_v4([10, 0, 0, last])
    }

    fn endpoint(id: u32, flags: u32) -> abi::Endpoint {
        let mac = Mac { bytes: [2; 6] };
        abi::Endpoint { ifindex: id, id, flags, mtu: 1450, pod_mac: mac, host_mac: mac, gateway: address(1) }
    }

    // Few ranges and addresses, so that they move from one node to another.
    fn nodes() -> impl Strategy<Value = Vec<NodeRecord>> {
        let node = (1u8..6, 0u8..5, 23u8..=26, 1u8..6, any::<bool>());
        prop::collection::vec(node, 0..6).prop_map(|nodes| {
            let record = |(name, range, bits, address, cordoned)| NodeRecord {
                name: format!("node{name}"),
                pod_networks: vec![format!("10.244.{range}.0/{bits}").parse().unwrap()],
                internal_addresses: vec![IpAddr::from([10, 200, 0, address])],
                cordoned,
                ..NodeRecord::default()
            };
            nodes.into_iter().map(record).collect()
        })
    }

    // Few keys, so that both sides often have the same one.
    prop_compose! {
        fn slice()(
            links in prop::collection::btree_map(0u32..4, 0u32..3, 0..4),
            tunnel_peers in prop::collection::btree_map(0u8..6, 0u32..3, 0..6),
            vteps in prop::collection::btree_map(0u8..6, 0u8..3, 0..6),
            nodes in prop::collection::btree_map((0u8..6, 120u32..=128), 0u32..3, 0..6),
            guards in prop::collection::btree_map(0u32..6, 0u64..3, 0..6),
            endpoints in prop::collection::btree_map(0u8..6, 0u32..3, 0..6),
            frontends in prop::collection::btree_map((0u8..3, 80u16..83), 0u8..3, 0..6),
            routes in prop::collection::btree_map(0u8..6, prop::option::of(0u32..3), 0..6),
            excluded in prop::collection::btree_map((0u8..6, 120u32..=128), Just(1u32), 0..4),
            services in prop::collection::btree_map(0u8..3, 1u64..3, 0..4),
            backends in prop::collection::btree_map((1u64..3, 0u32..3), 0u8..3, 0..6),
            links6 in prop::collection::btree_map(0u32..6, 0u8..3, 0..4),
        ) -> Slice {
            let link = |mtu| abi::Link { ipv4: address(1), tunnel_address: address(1), mtu, kind: abi::LINK_UPLINK, refused: 0, reserved: 0 };
            let link6 = |last| abi::Link6 { source: address(last), tunnel_address: address(1) };
            let node = |flags| abi::Node {
                tunnel_endpoint: address(1), source: address(2), uplink: 1, mtu: 1450, node_id: 1, flags,
            };
            let vtep = |last| abi::Vtep { mac: Mac { bytes: [2, 0, 0, 0, 0, last] }, reserved: [0; 2] };
            let frontend = |(last, port)| abi::Frontend {
                address: address(last), port: Be16::new(port), protocol: 6, clients: 0,
            };
            let backend = |last| abi::Backend { address: address(last), port: Be16::new(8080), reserved: [0; 2] };
            let route = |device: Option<u32>| device.map_or(
                Route::Unreachable,
                |device| Route::Link { device, gateway: None, source: None },
            );
            let prefix = |(last, bits)| Prefix { address: address(last), bits };
            let serving = |((service, _), last): (&(u64, u32), &u8)| abi::ServingKey {
                service: *service, address: address(*last), port: Be16::new(8080), reserved: [0; 6],
            };
            let position = |((list, index), last): (&(u64, u32), &u8)| (
                abi::PositionKey { list: *list, address: address(*last), port: Be16::new(8080), reserved: [0; 6] },
                *index,
            );
            let tables = Tables {
                positions: backends.iter().map(position).collect(),
                serving: backends.iter().map(|entry| (serving(entry), 0)).collect(),
                links: links.into_iter().map(|(key, mtu)| (key, link(mtu))).collect(),
                links6: links6.into_iter().map(|(key, last)| (key, link6(last))).collect(),
                networks: excluded.into_iter().map(|(key, one)| (prefix(key), one)).collect(),
                tunnel_peers: tunnel_peers.into_iter().map(|(key, id)| (address(key), id)).collect(),
                vteps: vteps.into_iter().map(|(key, last)| (address(key), vtep(last))).collect(),
                nodes: nodes.into_iter().map(|(key, flags)| (prefix(key), node(flags))).collect(),
                guards: guards.into_iter().map(|(key, cost)| (key, abi::Guard { paid: 0, cost, credit: 1 })).collect(),
                endpoints: endpoints.into_iter().map(|(key, id)| (address(key), endpoint(id, 0))).collect(),
                frontends: frontends.into_iter().map(|(key, last)| (frontend(key), backend(last))).collect(),
                backends: backends.into_iter().map(|((list, index), last)| (abi::BackendKey { list, index, reserved: 0 }, backend(last))).collect(),
                source_ranges: BTreeMap::new(),
                services: services.into_iter().map(|(last, list)| (frontend((last, 80)), abi::Service { list, id: 1, backends: 1, flags: 0, affinity: 0, reserved: 0 })).collect(),
            };
            let routes = routes.into_iter();
            let routes = routes.map(|(key, device)| (IpAddr::from([10, 0, 0, key]).into(), route(device))).collect();
            Slice { tables, routes, ..Slice::default() }
        }
    }

    proptest! {
        #[test]
        fn applied_to_what_is_there_it_gives_what_is_wanted(want in slice(), have in slice()) {
            let mut reached = have.clone();
            for op in plan(&want, &have, Removals::Allowed) {
                op.apply_to(&mut reached);
            }
            prop_assert_eq!(&reached, &want);
            prop_assert_eq!(plan(&want, &reached, Removals::Allowed), []);
        }

        #[test]
        fn what_changed_nodes_ask_for_leads_to_what_all_nodes_ask_for(before in nodes(), now in nodes()) {
            let model = |records: &[NodeRecord]| {
                let cluster = Cluster::from_records(records, "node0", &[]).0;
                let mut model = Model::new(Mode::Vxlan, Some(1450));
                let own = "10.9.0.0/24".parse().unwrap();
                model.own = Some(Node { name: "node0".into(), uid: None, pod_networks: vec![own], internal_addresses: vec![IpAddr::from([10, 8, 0, 1])], cordoned: false, vtep_macs: BTreeMap::new() });
                model.vxlan = Some(7);
                model.links.push(NodeLink { index: 2, name: "eth0".into(), mtu: 1500, addresses: Vec::new(), role: Role::Uplink, is_bare: false });
                model.remote = cluster.remote;
                model
            };
            let (before, now) = (model(&before), model(&now));
            let changed = changes(&before.remote, &now.remote);
            let of = |model: &Model, nodes: Vec<&Node>| desired(model, Scope::Nodes(&nodes));
            let have = of(&before, changed.iter().filter_map(|change| change.before).collect());
            let want = of(&now, changed.iter().filter_map(|change| change.now).collect());
            let mut reached = desired(&before, Scope::All);
            for op in plan(&want, &have, Removals::Allowed) {
                op.apply_to(&mut reached);
            }
            prop_assert_eq!(reached, desired(&now, Scope::All));
        }

        #[test]
        fn nothing_is_removed_while_deletions_are_withheld(want in slice(), have in slice()) {
            let mut reached = have.clone();
            for op in plan(&want, &have, Removals::Withheld) {
                op.apply_to(&mut reached);
            }
            prop_assert!(have.tables.nodes.keys().all(|key| reached.tables.nodes.contains_key(key)));
            prop_assert!(have.routes.keys().all(|key| reached.routes.contains_key(key)));
            prop_assert!(have.tables.endpoints.keys().all(|key| reached.tables.endpoints.contains_key(key)));
            prop_assert!(have.tables.frontends.keys().all(|key| reached.tables.frontends.contains_key(key)));
            prop_assert!(want.tables.nodes.iter().all(|(key, value)| reached.tables.nodes.get(key) == Some(value)));
        }

        #[test]
        fn making_goes_up_the_ranks_and_removing_down(want in slice(), have in slice()) {
            let place = |op: &Op| match op {
                Op::Table(change) => (op.rank(), Some(change.table())),
                _ => (op.rank(), None),
            };
            let ops = plan(&want, &have, Removals::Allowed);
            let made = ops.iter().filter(|op| !op.is_removal()).count();
            prop_assert!(ops[made..].iter().all(Op::is_removal), "all is made before anything is removed");
            prop_assert!(ops[..made].is_sorted_by_key(place));
            prop_assert!(ops[made..].iter().rev().is_sorted_by_key(place));
        }
    }

    fn model() -> Model {
        let mut model = Model::new(Mode::Vxlan, None);
        let own = "10.244.1.0/24".parse().unwrap();
        let address = IpAddr::from([10, 8, 0, 1]);
        model.own = Some(Node {
            name: "node0".into(),
            uid: None,
            pod_networks: vec![own],
            internal_addresses: vec![address],
            cordoned: false,
            vtep_macs: BTreeMap::new(),
        });
        model
    }

    #[test]
    fn pod_is_added_and_released_in_opposite_orders() {
        use Rank::{Address, File, Flows, Programs, Route, Table};
        let endpoint = Endpoint::example();
        let wanted = desired(&model(), Scope::Endpoint(&endpoint));
        let down =
            Slice { links: BTreeMap::from([(endpoint.ifindex, Link::down(&endpoint))]), ..Slice::default() };
        let ranks = |ops: &[Op]| ops.iter().map(Op::rank).collect::<Vec<_>>();
        let add = plan(&wanted, &down, Removals::Allowed);
        assert_eq!(ranks(&add), [Address, File, Flows, Programs, Rank::Link, Table, Route]);
        let del = plan(&Slice::default(), &wanted, Removals::Allowed);
        assert_eq!(
            ranks(&del),
            [Route, Table, Rank::Link, Flows, File, Address],
            "the link takes its programs along"
        );
        let undo = plan(&down, &wanted, Removals::Allowed);
        assert_eq!(
            ranks(&undo),
            [Rank::Link, Route, Table, Programs, Flows, File, Address],
            "the plugin removes the link"
        );
    }

    #[test]
    fn plan_that_failed_half_way_is_reversed_from_what_it_reached() {
        let endpoint = Endpoint::example();
        let wanted = desired(&model(), Scope::Endpoint(&endpoint));
        let ops = plan(&wanted, &Slice::default(), Removals::Allowed);
        for done in 0..=ops.len() {
            let mut reached = Slice::default();
            ops[..done].iter().for_each(|op| op.apply_to(&mut reached));
            let undo = plan(&Slice::default(), &reached, Removals::Allowed);
            assert!(undo.iter().all(Op::is_removal));
            undo.iter().for_each(|op| op.apply_to(&mut reached));
            reached.programs.clear();
            reached.queues.clear();
            assert_eq!(reached, Slice::default(), "after {done} operations");
        }
    }
}
