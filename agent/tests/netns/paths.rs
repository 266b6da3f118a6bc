//! Traffic between pods and nodes: without translation, and past the host stack where both ends are
//! pods.

use podwire_common::reason::Path::{
    self, DirectIn, DirectOut, FromStack, Local, SnatIn, SnatOut, StackToTunnel, ToStack, TunnelIn,
    TunnelInDevice, TunnelOut, TunnelOutDevice, TunnelToStack,
};
use xtask::lab::{Builder, Lab, Mode, Node, Pod, traffic};

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
    let places = Places::new(Lab::builder().mode(Mode::Vxlan));
    let slow = slow();
    check(
        &places.lab,
        &[
            places.local(&slow),
            Row::new("pod to pod of the other node", places.client(), places.remote())
                .takes(&[(0, TunnelOut), (1, TunnelIn), (1, TunnelOut), (0, TunnelIn)])
                .avoids(&slow),
            Row::new("pod of the other node to pod", places.remote(), places.client())
                .takes(&[(0, TunnelOut), (1, TunnelIn), (1, TunnelOut), (0, TunnelIn)])
                .avoids(&slow),
            places.node_to_own_pod(),
            places.pod_to_own_node(),
            Row::new("node to pod of the other node", places.node(0), places.remote())
                .takes(&[(0, StackToTunnel), (1, TunnelIn), (1, TunnelOut), (0, TunnelToStack)])
                .avoids(&TRANSLATED),
            Row::new("pod to the other node", places.client(), places.node(1))
                .takes(&[(0, TunnelOut), (1, TunnelToStack), (1, StackToTunnel), (0, TunnelIn)])
                .avoids(&TRANSLATED),
        ],
    );
}

#[test]
fn direct_every_path_between_pods_and_nodes_is_untranslated() {
    check_direct(&Places::new(Lab::builder().mode(Mode::Direct)));
}

#[test]
fn in_direct_routing_the_hosts_own_routes_lead_through_a_router() {
    check_direct(&Places::new(Lab::builder().mode(Mode::Direct).router(true)));
}

fn check_direct(places: &Places) {
    let slow = slow();
    let both_ways = [(0, DirectOut), (1, DirectIn), (1, DirectOut), (0, DirectIn)];
    check(
        &places.lab,
        &[
            places.local(&slow),
            Row::new("pod to pod of the other node", places.client(), places.remote())
                .takes(&both_ways)
                .avoids(&slow),
            Row::new("pod of the other node to pod", places.remote(), places.client())
                .takes(&both_ways)
                .avoids(&slow),
            places.node_to_own_pod(),
            places.pod_to_own_node(),
            Row::new("node to pod of the other node", places.node(0), places.remote())
                .takes(&[(1, DirectIn), (1, DirectOut)])
                .avoids(&TRANSLATED),
            Row::new("pod to the other node", places.client(), places.node(1))
                .takes(&[(0, DirectOut), (0, DirectIn)])
                .avoids(&TRANSLATED),
        ],
    );
}

fn slow() -> Vec<Counter> {
    [0, 1].into_iter().flat_map(|node| SLOW.map(|path| (node, path))).collect()
}

/// Two pods on a node, and one on the other node.
struct Places {
    client: Pod,
    neighbour: Pod,
    remote: Pod,
    lab: Lab,
}

type End<'a> = (&'a xtask::lab::Ns, std::net::IpAddr);

impl Places {
    fn new(lab: Builder) -> Self {
        let lab = lab.build().unwrap();
        Self {
            client: lab.node(0).add_pod("client").unwrap(),
            neighbour: lab.node(0).add_pod("neighbour").unwrap(),
            remote: lab.node(1).add_pod("remote").unwrap(),
            lab,
        }
    }

    fn client(&self) -> End<'_> {
        (&self.client, self.client.address())
    }

    fn remote(&self) -> End<'_> {
        (&self.remote, self.remote.address())
    }

    fn node(&self, index: usize) -> End<'_> {
        let node: &Node = self.lab.node(index);
        (node, node.address())
    }

    fn local<'a>(&'a self, slow: &'a [Counter]) -> Row<'a> {
        Row::new("pod to pod of the same node", self.client(), (&self.neighbour, self.neighbour.address()))
            .takes(&[(0, Local)])
            .avoids(slow)
    }

    fn node_to_own_pod(&self) -> Row<'_> {
        Row::new("node to its own pod", self.node(0), self.client())
            .takes(&[(0, FromStack), (0, ToStack)])
            .avoids(&TRANSLATED)
    }

    fn pod_to_own_node(&self) -> Row<'_> {
        Row::new("pod to its own node", self.client(), self.node(0))
            .takes(&[(0, FromStack), (0, ToStack)])
            .avoids(&TRANSLATED)
    }
}
