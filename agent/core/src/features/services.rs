//! Services: which backends answer at a service's address and port.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;

use ipnet::IpNet;
use podwire_common::abi;
use podwire_common::addr::{Addr, Be16};
use podwire_common::flow::protocol;

use super::Scope;
use crate::model::{Family, Model, Node};
use crate::services::{
    Answer, Backend, Frontend, FrontendKind, Protocol, ServedPort, ServedServices, ServiceName,
};
use crate::slice::Slice;

pub(super) fn desired(model: &Model, scope: Scope<'_>) -> Slice {
    let mut slice = Slice::default();
    let services = scope.services(model);
    // The programs would send packets past the stack, which alone asks the policies. Without
    // services, as for each ADD, there is no need to look at all nodes.
    if services.is_empty() || !model.policies.is_empty() {
        return slice;
    }
    let all_places;
    let places = match scope {
        Scope::Services(_, places) => places,
        _ => {
            all_places = Places::of(model);
            &all_places
        }
    };
    let api_servers = api_servers(model);
    for (name, ports) in services {
        let mut addresses = BTreeMap::new();
        for port in ports {
            for frontend in &port.frontends {
                let is_served = why_not(&model.services, places, name, port, frontend).is_none();
                if is_served {
                    let flags = flags_of(model, &api_servers, name, frontend);
                    Clients::ALL.iter().for_each(|of| add(&mut slice, name, port, frontend, *of, flags));
                }
                if frontend.kind == FrontendKind::ClusterIp {
                    *addresses.entry(frontend.address).or_insert(true) &= is_served;
                }
            }
        }
        if !model.service_networks.is_empty() {
            addresses.iter().for_each(|(address, is_served)| add_address(&mut slice, *address, *is_served));
        }
    }
    slice
}

/// Adds the entry for all ports that a ClusterIP does not have. If kube-proxy serves one of its ports,
/// the programs cannot tell that port from the others.
fn add_address(slice: &mut Slice, address: IpAddr, are_all_served: bool) {
    let key = abi::Frontend {
        address: address.into(),
        port: Be16::ZERO,
        protocol: 0,
        clients: abi::CLIENTS_INSIDE,
    };
    let flags = if are_all_served { abi::SERVICE_REFUSES } else { 0 };
    let entry = abi::Service { list: 0, id: number(address), backends: 0, flags, affinity: 0, reserved: 0 };
    slice.tables.services.insert(key, entry);
}

/// Whose connections the programs serve at a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Those of pods and processes of this node.
    Inside,
    /// All others.
    Outside,
}

impl Clients {
    /// All variants.
    pub const ALL: [Self; 2] = [Self::Inside, Self::Outside];

    /// Returns what a frontend does with their new connections. `None`: it is not for them.
    pub fn answer(self, frontend: &Frontend) -> Option<Answer> {
        match self {
            Self::Inside => Some(frontend.inside),
            Self::Outside => frontend.outside,
        }
    }

    /// Returns the number in the table `SERVICES`.
    pub fn number(self) -> u8 {
        match self {
            Self::Inside => abi::CLIENTS_INSIDE,
            Self::Outside => abi::CLIENTS_OUTSIDE,
        }
    }
}

/// Why the programs do not serve a frontend: kube-proxy serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotServed {
    /// The host has IPsec policies, and only the stack asks them.
    IpsecPolicies,
    /// Its address is a pod's or another node's, or it is a ClusterIP that a link of this node has.
    InCluster,
    /// Another service has this address and port.
    OtherService,
    /// It has more `loadBalancerSourceRanges` than the programs look through.
    SourceRanges,
    /// It is SCTP: its checksum covers the ports, and the programs cannot compute it.
    Sctp,
}

impl NotServed {
    /// Returns the name that commands show.
    pub fn name(self) -> &'static str {
        match self {
            Self::IpsecPolicies => "ipsec-policies",
            Self::InCluster => "address-in-cluster",
            Self::OtherService => "other-service",
            Self::SourceRanges => "source-ranges",
            Self::Sctp => "sctp",
        }
    }
}

/// Returns why the programs do not serve a frontend of one of all services. `None`: they do, unless
/// the host has IPsec policies.
pub fn why_not(
    services: &ServedServices,
    places: &Places,
    name: &ServiceName,
    port: &ServedPort,
    frontend: &Frontend,
) -> Option<NotServed> {
    let is_elsewhere = match frontend.kind {
        FrontendKind::NodePort => false,
        // NodeLocal DNSCache has the service's address: there it is the node's.
        FrontendKind::ClusterIp => places.contain(frontend.address),
        _ => frontend.address.is_loopback() || places.contain_elsewhere(frontend.address),
    };
    match () {
        () if is_elsewhere => Some(NotServed::InCluster),
        () if !services.has(name, port, frontend) => Some(NotServed::OtherService),
        () if frontend.source_ranges.len() > abi::MAX_SOURCE_RANGES as usize => Some(NotServed::SourceRanges),
        () if port.protocol == Protocol::Sctp => Some(NotServed::Sctp),
        () => None,
    }
}

/// Where pods and processes of nodes are.
#[derive(Debug)]
pub struct Places {
    /// The podCIDRs of all nodes, sorted. They do not overlap.
    pod_networks: Vec<IpNet>,
    /// InternalIPs of the other nodes.
    others: BTreeSet<IpAddr>,
    /// All addresses of this node's links.
    own: BTreeSet<IpAddr>,
}

impl Places {
    /// Returns the places of a model's nodes.
    pub fn of(model: &Model) -> Self {
        let nodes = || model.own.iter().chain(model.remote.values());
        let mut pod_networks: Vec<_> = nodes().flat_map(|node| &node.pod_networks).copied().collect();
        pod_networks.sort_unstable();
        // A link may have a service's address: NodeLocal DNSCache listens there.
        let of_links = model.uplinks().flat_map(|uplink| &uplink.addresses).chain(&model.other_addresses);
        // Of this node, only addresses that it has: a provider may translate its InternalIP (NAT).
        let own = of_links.copied().collect();
        Self { pod_networks, others: model.remote.values().flat_map(Node::addresses).collect(), own }
    }

    fn contain(&self, address: IpAddr) -> bool {
        self.contain_elsewhere(address) || self.own.contains(&address)
    }

    fn contain_elsewhere(&self, address: IpAddr) -> bool {
        let after = self.pod_networks.partition_point(|network| network.network() <= address);
        after.checked_sub(1).is_some_and(|last| self.pod_networks[last].contains(&address))
            || self.others.contains(&address)
    }
}

/// Adds a frontend's entries for these clients, if it is for them.
fn add(
    slice: &mut Slice,
    name: &ServiceName,
    port: &ServedPort,
    frontend: &Frontend,
    clients: Clients,
    flags: u32,
) {
    let Some(answer) = clients.answer(frontend) else {
        return;
    };
    let flags = flags | refusal(answer);
    let backends: BTreeSet<_> = port.backends(answer).iter().map(|backend| entry(*backend)).collect();
    let id = number((name, port_of(port)));
    let list = number((name, port_of(port), &backends, &frontend.source_ranges));
    for (index, network) in (0..).zip(&frontend.source_ranges) {
        let key = abi::BackendKey { list, index, reserved: 0 };
        slice.tables.source_ranges.insert(key, range(*network));
    }
    let affinity = port.affinity.map_or(0, NonZeroU32::get);
    for (index, (address, port)) in (0..).zip(&backends) {
        let key = abi::BackendKey { list, index, reserved: 0 };
        slice.tables.backends.insert(key, abi::Backend { address: *address, port: *port, reserved: [0; 2] });
        if affinity > 0 {
            let key = abi::PositionKey { list, address: *address, port: *port, reserved: [0; 6] };
            slice.tables.positions.insert(key, index);
        }
    }
    // A TCP connection ends by itself.
    if port.protocol == Protocol::Udp {
        let serving = port.serving.iter().map(|backend| entry(*backend));
        for (address, port) in serving.chain(backends.iter().copied()) {
            let key = abi::ServingKey { service: id, address, port, reserved: [0; 6] };
            slice.tables.serving.insert(key, 0);
        }
    }
    let key = abi::Frontend {
        address: frontend.address.into(),
        port: Be16::new(frontend.port.get()),
        protocol: number_of(port.protocol),
        clients: clients.number(),
    };
    let backends = u32::try_from(backends.len()).unwrap_or(u32::MAX);
    slice.tables.services.insert(key, abi::Service { list, id, backends, flags, affinity, reserved: 0 });
}

fn range(network: IpNet) -> abi::SourceRange {
    // IPv4 addresses stand behind 96 bits that they all have.
    let mask = u128::MAX.checked_shl(u32::from(network.max_prefix_len() - network.prefix_len()));
    let mask = Ipv6Addr::from(mask.unwrap_or_default());
    abi::SourceRange { network: network.network().into(), mask: IpAddr::from(mask).into() }
}

type Entry = (Addr, Be16);

fn entry(backend: Backend) -> Entry {
    (backend.address.into(), Be16::new(backend.port.get()))
}

fn number_of(transport: Protocol) -> u8 {
    match transport {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => protocol::SCTP,
    }
}

/// Returns the flags of a frontend.
///
/// A process has one of this node's addresses, but the program at its call does not know which. So it
/// may use an address with source ranges only if they have this node's InternalIP.
///
/// The addresses at which the agent itself reaches the API server are not for processes. If the API
/// server moved while the agent has no connection, tables that only the agent renews would keep the
/// agent away from it for ever. Any user may give a service the API server's own address as an external
/// one.
fn flags_of(
    model: &Model,
    api_servers: &BTreeSet<SocketAddr>,
    name: &ServiceName,
    frontend: &Frontend,
) -> u32 {
    let place = SocketAddr::new(frontend.address, frontend.port.get());
    let is_asked = api_servers.contains(&place)
        || match model.api_server {
            Some(asked) => asked == place,
            // Its name may lead to the ClusterIP.
            None => name.is_kubernetes(),
        };
    let ranges = &frontend.source_ranges;
    let of_node = model.own.iter().flat_map(Node::addresses);
    let admits_node = ranges.is_empty() || of_node.into_iter().any(|address| contains(ranges, address));
    let for_processes = !is_asked && admits_node;
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    flag(!for_processes, abi::SERVICE_NOT_FOR_PROCESSES)
        | flag(!ranges.is_empty(), abi::SERVICE_HAS_SOURCE_RANGES)
}

/// Returns the endpoints of the service `default/kubernetes`.
fn api_servers(model: &Model) -> BTreeSet<SocketAddr> {
    let ports = model.services.get_key_value(&ServiceName::kubernetes()).map(|(_, ports)| ports);
    let backends = ports.into_iter().flatten().flat_map(|port| port.cluster.iter().chain(&port.local));
    backends.map(|backend| SocketAddr::new(backend.address, backend.port.get())).collect()
}

fn contains(ranges: &[IpNet], address: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}

/// Returns the flag of a frontend without backends.
fn refusal(answer: Answer) -> u32 {
    match answer {
        Answer::Cluster | Answer::Local => 0,
        Answer::Refused => abi::SERVICE_REFUSES,
        Answer::Dropped => abi::SERVICE_DROPS,
    }
}

/// What tells the ports of a service apart.
fn port_of(port: &ServedPort) -> (&str, u8, Family) {
    (&port.name, number_of(port.protocol), port.family)
}

/// Returns the number of a list or of a service's port. It follows from what it stands for, so no
/// state decides which numbers are free, and a list that changes gets another one. It depends on the
/// service, too, so that two services never share entries: each service can be compared by itself.
fn number(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::Mode;

    const BALANCER: [u8; 4] = [192, 0, 2, 1];

    fn name(name: &str) -> ServiceName {
        ServiceName { namespace: "default".into(), name: name.into() }
    }

    /// Returns a port of a service with a frontend and a backend.
    fn port(kind: FrontendKind, address: [u8; 4], backend: [u8; 4]) -> ServedPort {
        ServedPort::example(&[(kind, address.into())], &[backend.into()])
    }

    fn model() -> Model {
        let mut model = Model::new(Mode::Vxlan, None);
        let node = |number: u8| Node {
            name: format!("node{number}"),
            uid: None,
            pod_networks: vec![format!("10.244.{number}.0/24").parse().unwrap()],
            internal_addresses: vec![IpAddr::from([10, 200, 0, number])],
            cordoned: false,
            vtep_macs: std::collections::BTreeMap::new(),
        };
        model.own = Some(node(1));
        model.remote.insert("node2".into(), node(2));
        model
    }

    #[test]
    fn what_the_agent_asks_the_api_server_by_is_not_for_processes() {
        let mut model = model();
        let external = port(FrontendKind::ExternalIp, BALANCER, [10, 244, 2, 2]);
        model.services.set(
            &name("kubernetes"),
            Some(vec![port(FrontendKind::ClusterIp, [10, 96, 0, 1], [10, 200, 0, 2])]),
        );
        model.services.set(&name("web"), Some(vec![external]));
        let flags = |model: &Model| -> Vec<_> {
            let slice = desired(model, Scope::All);
            slice.tables.services.values().map(|service| service.flags).collect()
        };
        let no = abi::SERVICE_NOT_FOR_PROCESSES;
        assert_eq!(flags(&model), [no, 0], "a name may lead to the ClusterIP");
        for (address, port, expected) in [
            ([10, 96, 0, 1], 80, [no, 0]),
            (BALANCER, 80, [0, no]),
            (BALANCER, 81, [0, 0]),
            ([10, 200, 0, 2], 80, [0, 0]),
        ] {
            model.api_server = Some((IpAddr::from(address), port).into());
            assert_eq!(flags(&model), expected, "{address:?}:{port}");
        }
        // A service has the API server's own address.
        model
            .services
            .set(&name("kubernetes"), Some(vec![port(FrontendKind::ClusterIp, [10, 96, 0, 1], BALANCER)]));
        assert_eq!(flags(&model), [0, no]);
    }

    #[test]
    fn each_kind_of_client_has_entries_of_its_own() {
        let mut model = model();
        let [near, far] = [[10, 244, 1, 2], [10, 244, 2, 2]].map(IpAddr::from);
        let mut port =
            ServedPort::example(&[(FrontendKind::NodePort, Ipv4Addr::UNSPECIFIED.into())], &[near, far]);
        port.local = vec![port.cluster[0]];
        port.frontends[0].outside = Some(Answer::Local);
        model.services.set(&name("web"), Some(vec![port]));
        let tables = desired(&model, Scope::All).tables;
        let reached = |clients| {
            let (_, service) = tables.services.iter().find(|(key, _)| key.clients == clients).unwrap();
            let of_list = tables.backends.iter().filter(|(key, _)| key.list == service.list);
            of_list.map(|(_, backend)| IpAddr::from(backend.address)).collect::<Vec<_>>()
        };
        assert_eq!(reached(abi::CLIENTS_INSIDE), [near, far]);
        assert_eq!(reached(abi::CLIENTS_OUTSIDE), [near]);
    }

    #[test]
    fn source_ranges_have_the_lists_number() {
        let mut model = model();
        let mut limited = |ranges: &[&str]| {
            let mut port = port(FrontendKind::LoadBalancer, BALANCER, [10, 244, 2, 2]);
            port.frontends[0].source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
            model.services.set(&name("web"), Some(vec![port]));
            desired(&model, Scope::All).tables
        };
        let has = |range: &abi::SourceRange, address: [u8; 4]| range.has(&IpAddr::from(address).into());
        let tables = limited(&["192.0.2.0/25", "10.200.0.1/32"]);
        let service = tables.services.values().next().unwrap();
        assert_eq!(service.flags, abi::SERVICE_HAS_SOURCE_RANGES, "this node is in them");
        let [(first, wide), (second, own)] = tables.source_ranges.iter().collect::<Vec<_>>()[..] else {
            panic!("two")
        };
        assert_eq!((first.list, first.index, second.index), (service.list, 0, 1));
        assert!(has(wide, [192, 0, 2, 127]) && !has(wide, [192, 0, 2, 128]) && !has(wide, [0, 0, 2, 127]));
        assert!(has(own, [10, 200, 0, 1]) && !has(own, [10, 200, 0, 0]));
        let other = limited(&["192.0.2.0/24"]);
        let changed = other.services.values().next().unwrap();
        assert_ne!(changed.list, service.list);
        assert_eq!(changed.flags, abi::SERVICE_HAS_SOURCE_RANGES | abi::SERVICE_NOT_FOR_PROCESSES);
        assert_eq!(limited(&[]).source_ranges.len(), 0);
        let many: Vec<_> = (0..33).map(|last| format!("192.0.2.{last}/32")).collect();
        assert!(limited(&many.iter().map(String::as_str).collect::<Vec<_>>()).services.is_empty());
    }

    #[test]
    fn a_service_without_backends_says_what_happens_to_its_clients() {
        let mut model = model();
        let mut entry = |inside, backends: &[[u8; 4]]| {
            let backends: Vec<_> = backends.iter().copied().map(IpAddr::from).collect();
            let mut port = ServedPort::example(&[(FrontendKind::ClusterIp, BALANCER.into())], &backends);
            port.frontends[0].inside = inside;
            model.services.set(&name("web"), Some(vec![port]));
            let tables = desired(&model, Scope::All).tables;
            let service = *tables.services.values().next().unwrap();
            (service.flags, service.backends as usize, tables.backends.len())
        };
        assert_eq!(entry(Answer::Cluster, &[[10, 244, 2, 2]]), (0, 1, 1));
        assert_eq!(entry(Answer::Refused, &[]), (abi::SERVICE_REFUSES, 0, 0));
        // Only other nodes have some.
        assert_eq!(entry(Answer::Dropped, &[[10, 244, 2, 2]]), (abi::SERVICE_DROPS, 0, 0));
    }

    #[test]
    fn ports_that_a_cluster_ip_lacks_are_refused() {
        let mut model = model();
        let mut refused = |ports: [ServedPort; 2], networks: &[&str]| {
            model.service_networks = networks.iter().map(|network| network.parse().unwrap()).collect();
            model.services.set(&name("web"), Some(ports.into()));
            let services = desired(&model, Scope::All).tables.services;
            let of_address = services.iter().filter(|(key, _)| key.port == Be16::ZERO);
            of_address.map(|(_, service)| service.flags).collect::<Vec<_>>()
        };
        let served = port(FrontendKind::ClusterIp, [10, 96, 0, 1], [10, 244, 2, 2]);
        let sctp = ServedPort { protocol: Protocol::Sctp, ..served.clone() };
        let external = port(FrontendKind::ExternalIp, BALANCER, [10, 244, 2, 2]);
        let networks = &["10.96.0.0/12"];
        assert_eq!(refused([served.clone(), served.clone()], &[]), [0; 0]);
        assert_eq!(refused([served.clone(), external.clone()], networks), [abi::SERVICE_REFUSES]);
        assert_eq!(refused([served, sctp], networks), [0]);
        assert_eq!(refused([external.clone(), external], networks), [0; 0]);
    }

    #[test]
    fn a_service_with_affinity_has_the_positions_of_its_backends() {
        let mut model = model();
        let backends = [[10, 244, 2, 2], [10, 244, 1, 9], [10, 200, 0, 2]].map(IpAddr::from);
        let mut port = ServedPort::example(&[(FrontendKind::ClusterIp, [10, 96, 0, 1].into())], &backends);
        let tables = |model: &mut Model, port: &ServedPort| {
            model.services.set(&name("web"), Some(vec![port.clone()]));
            desired(model, Scope::All).tables
        };
        let without = tables(&mut model, &port);
        assert_eq!((without.backends.len(), without.positions.len()), (3, 0));
        port.affinity = NonZeroU32::new(120);
        let with = tables(&mut model, &port);
        let (old, new) =
            (without.services.first_key_value().unwrap(), with.services.first_key_value().unwrap());
        assert_eq!(*new.1, abi::Service { affinity: 120, ..*old.1 }, "the list and its number stay");
        assert_eq!(with.backends, without.backends);
        let positions: Vec<_> = with
            .backends
            .iter()
            .map(|(key, backend)| {
                let abi::Backend { address, port, .. } = *backend;
                (abi::PositionKey { list: key.list, address, port, reserved: [0; 6] }, key.index)
            })
            .collect();
        assert_eq!(with.positions, positions.into_iter().collect());
    }

    #[test]
    fn only_addresses_in_reach_of_the_programs_are_served() {
        let mut model = model();
        let places_of = |model: &Model, kind, address: [u8; 4]| {
            let mut services = ServedServices::default();
            let port = port(kind, address, [10, 244, 2, 2]);
            services.set(&name("web"), Some(vec![port.clone()]));
            let frontend = &port.frontends[0];
            why_not(&services, &Places::of(model), &name("web"), &port, frontend)
        };
        let external = |model: &Model, address| places_of(model, FrontendKind::ExternalIp, address);
        let table = [
            (BALANCER, None),
            ([10, 200, 0, 2], Some(NotServed::InCluster)),
            ([10, 244, 1, 9], Some(NotServed::InCluster)),
            ([127, 0, 0, 1], Some(NotServed::InCluster)),
            ([169, 254, 20, 10], None),
        ];
        for (address, expected) in table {
            assert_eq!(external(&model, address), expected, "{address:?}");
        }
        // NodeLocal DNSCache puts the service's address on a link.
        model.other_addresses = [[10, 200, 0, 1], [169, 254, 20, 10]].map(IpAddr::from).into();
        let cluster_ip = |address| places_of(&model, FrontendKind::ClusterIp, address);
        assert_eq!(cluster_ip([169, 254, 20, 10]), Some(NotServed::InCluster));
        assert_eq!(cluster_ip([169, 254, 20, 11]), None);
        // Other programs lead packets to an external address by giving it to a node.
        assert_eq!(external(&model, [169, 254, 20, 10]), None);
    }
}
