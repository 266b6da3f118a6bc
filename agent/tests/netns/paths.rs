//! Traffic between pods and nodes: without translation, and past the host stack where both ends are
//! pods.

use podwire_common::names::maps;
use podwire_common::reason::Path::{
    self, DirectIn, DirectOut, FromStack, Local, SnatIn, SnatOut, StackToTunnel, ToStack, TunnelIn,
    TunnelInDevice, TunnelOut, TunnelOutDevice, TunnelToStack,
};
use xtask::lab::{Builder, Families, Lab, Mode, Node, Pod, is_kernel_since, traffic};

use crate::check::{Counter, Row, check};

/// Paths that no packet between pods and nodes may take.
const TRANSLATED: [Counter; 4] = [(0, SnatOut), (0, SnatIn), (1, SnatOut), (1, SnatIn)];
/// Paths that no packet between pods may take: they leave the fast path.
const SLOW: [Path; 6] = [ToStack, FromStack, TunnelOutDevice, TunnelInDevice, SnatOut, SnatIn];

#[test]
fn in_a_tunnel_a_node_answers_by_its_address_among_its_pods_too() {
    let lab = Lab::builder().build().unwrap();
    let (node, other) = (lab.node(0), lab.node(1));
    let pod = other.add_pod("pod").unwrap();
    for client in [&**other, &*pod] {
        traffic::ping(client, node.gateway(), 56).unwrap();
        let exchange = traffic::tcp_exchange(client, node, node.gateway(), 8080, 1 << 20).unwrap();
        assert_eq!(exchange.peer_seen_by_client.ip(), node.gateway(), "{}", client.name());
        assert_eq!(exchange.peer_seen_by_server, exchange.client, "{}", client.name());
    }
}

#[test]
fn tunnelled_every_path_between_pods_and_nodes_is_untranslated() {
    check_tunnelled(Families::Dual);
}

#[test]
fn tunnelled_paths_are_untranslated_whatever_the_families() {
    for families in Families::ALL.into_iter().filter(|families| *families != Families::Dual) {
        check_tunnelled(families);
    }
}

fn check_tunnelled(families: Families) {
    let places = Places::new(Lab::builder().mode(Mode::Vxlan).families(families));
    for family in places.families() {
        check(&places.lab, &tunnelled(&places, family, families == Families::V6Only));
    }
}

#[test]
fn option_chooses_the_family_of_the_tunnel() {
    let arguments = ["--tunnel-family", "ipv6"];
    let places = Places::new(Lab::builder().families(Families::Dual).agent_arguments(&arguments));
    for family in places.families() {
        check(&places.lab, &tunnelled(&places, family, true));
    }
    let outer = places.lab.node(0).addresses()[1];
    let peers = places.lab.node(1).map_dump(maps::TUNNEL_PEERS).unwrap().to_string();
    assert!(outer.is_ipv6() && peers.contains("253,0,0,16,2,0"), "{outer}: {peers}");
}

fn tunnelled<'a>(places: &'a Places, family: usize, is_ipv6_tunnel: bool) -> [Row<'a>; 7] {
    let is_ipv6 = places.client(family).1.is_ipv6();
    let (ways, slow): (&[[Counter; 4]; 3], &[Counter]) = match (is_ipv6_tunnel, is_ipv6) {
        // The programs leave IPv4 in a tunnel of IPv6 to the VXLAN device.
        (true, false) => (const { &ways(TunnelOutDevice, TunnelInDevice) }, &[]),
        // Before Linux 6.3 no program may remove outer headers of another family than the packet's.
        (false, true) if !is_kernel_since(6, 3) => (const { &ways(TunnelOut, TunnelInDevice) }, &[]),
        _ => (const { &ways(TunnelOut, TunnelIn) }, places.slow()),
    };
    let [between_pods, from_node, to_node] = ways;
    [
        places.local(family),
        Row::new("pod to pod of the other node", places.client(family), places.remote(family))
            .takes(between_pods)
            .avoids(slow),
        Row::new("pod of the other node to pod", places.remote(family), places.client(family))
            .takes(between_pods)
            .avoids(slow),
        places.node_to_own_pod(family),
        places.pod_to_own_node(family),
        Row::new("node to pod of the other node", places.node(0, family), places.remote(family))
            .takes(from_node)
            .avoids(&TRANSLATED),
        Row::new("pod to the other node", places.client(family), places.node(1, family))
            .takes(to_node)
            .avoids(&TRANSLATED),
    ]
}

/// Returns what packets take between pods, from a node to a pod of the other node, and from a pod to
/// the other node. `out`, `into`: what they take between a pod and the tunnel.
const fn ways(out: Path, into: Path) -> [[Counter; 4]; 3] {
    [
        [(0, out), (1, into), (1, out), (0, into)],
        [(0, StackToTunnel), (1, into), (1, out), (0, TunnelToStack)],
        [(0, out), (1, TunnelToStack), (1, StackToTunnel), (0, into)],
    ]
}

#[test]
fn direct_every_path_between_pods_and_nodes_is_untranslated() {
    check_direct(&Places::new(Lab::builder().mode(Mode::Direct)));
}

#[test]
fn direct_paths_are_untranslated_whatever_the_families() {
    // The order of the families is checked in the tunnel; here it is only more of the same.
    for families in [Families::V4, Families::V6, Families::V6Only] {
        check_direct(&Places::new(Lab::builder().mode(Mode::Direct).families(families)));
    }
}

#[test]
fn in_direct_routing_the_hosts_own_routes_lead_through_a_router() {
    check_direct(&Places::new(Lab::builder().mode(Mode::Direct).families(Families::Dual).router(true)));
}

fn check_direct(places: &Places) {
    const BOTH_WAYS: [Counter; 4] = [(0, DirectOut), (1, DirectIn), (1, DirectOut), (0, DirectIn)];
    for family in places.families() {
        check(
            &places.lab,
            &[
                places.local(family),
                Row::new("pod to pod of the other node", places.client(family), places.remote(family))
                    .takes(&BOTH_WAYS)
                    .avoids(places.slow()),
                Row::new("pod of the other node to pod", places.remote(family), places.client(family))
                    .takes(&BOTH_WAYS)
                    .avoids(places.slow()),
                places.node_to_own_pod(family),
                places.pod_to_own_node(family),
                Row::new("node to pod of the other node", places.node(0, family), places.remote(family))
                    .takes(&[(1, DirectIn), (1, DirectOut)])
                    .avoids(&TRANSLATED),
                Row::new("pod to the other node", places.client(family), places.node(1, family))
                    .takes(&[(0, DirectOut), (0, DirectIn)])
                    .avoids(&TRANSLATED),
            ],
        );
    }
}

/// Two pods on a node, and one on the other node.
struct Places {
    client: Pod,
    neighbour: Pod,
    remote: Pod,
    slow: Vec<Counter>,
    lab: Lab,
}

type End<'a> = (&'a xtask::lab::Ns, std::net::IpAddr);

/// The ends have an address for each family of the lab: `family` is the place in its order.
impl Places {
    fn new(lab: Builder) -> Self {
        let lab = lab.build().unwrap();
        Self {
            client: lab.node(0).add_pod("client").unwrap(),
            neighbour: lab.node(0).add_pod("neighbour").unwrap(),
            remote: lab.node(1).add_pod("remote").unwrap(),
            slow: [0, 1].into_iter().flat_map(|node| SLOW.map(|path| (node, path))).collect(),
            lab,
        }
    }

    fn families(&self) -> std::ops::Range<usize> {
        0..self.client.addresses().len()
    }

    fn slow(&self) -> &[Counter] {
        &self.slow
    }

    fn client(&self, family: usize) -> End<'_> {
        (&self.client, self.client.addresses()[family])
    }

    fn remote(&self, family: usize) -> End<'_> {
        (&self.remote, self.remote.addresses()[family])
    }

    fn node(&self, index: usize, family: usize) -> End<'_> {
        let node: &Node = self.lab.node(index);
        (node, node.addresses()[family])
    }

    fn local(&self, family: usize) -> Row<'_> {
        let neighbour = (&*self.neighbour, self.neighbour.addresses()[family]);
        Row::new("pod to pod of the same node", self.client(family), neighbour)
            .takes(&[(0, Local)])
            .avoids(&self.slow)
    }

    fn node_to_own_pod(&self, family: usize) -> Row<'_> {
        Row::new("node to its own pod", self.node(0, family), self.client(family))
            .takes(&[(0, FromStack), (0, ToStack)])
            .avoids(&TRANSLATED)
    }

    fn pod_to_own_node(&self, family: usize) -> Row<'_> {
        Row::new("pod to its own node", self.client(family), self.node(0, family))
            .takes(&[(0, FromStack), (0, ToStack)])
            .avoids(&TRANSLATED)
    }
}
