//! The table: what each client of a service must see, by the kind of address and the place of the
//! backend. It is written by hand from `docs/design/services.md`.

use Address::{Balancer, ClusterIp, ExternalIp, NodePort, NodePortThere};
use Cell::{Gateway1, Gateway2, NoWay, Node1, Node2, Own, Same, Unserved};
use Client::{Neighbour, OtherPod, OtherProcess, Pod, Process, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A pod of the first node.
    Pod,
    /// A process of the first node.
    Process,
    /// A host behind the uplinks. It reaches external addresses by the first node.
    World,
    /// A host on a second uplink of each node. It reaches external addresses by the first node.
    Neighbour,
    /// A pod of the second node.
    OtherPod,
    /// A process of the second node.
    OtherProcess,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    ClusterIp,
    /// A NodePort at the InternalIP of the first node.
    NodePort,
    /// A NodePort at the InternalIP of the second node.
    NodePortThere,
    ExternalIp,
    Balancer,
}

/// The place of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A pod of the first node.
    Here,
    /// A pod of the second node.
    There,
    /// A process of the first node.
    Process,
    /// A process of the second node.
    ProcessThere,
    /// The world.
    Outside,
    /// The client.
    Itself,
}

/// The places in the order of the table's columns.
pub const PLACES: [Place; 6] =
    [Place::Here, Place::There, Place::Process, Place::ProcessThere, Place::Outside, Place::Itself];

/// The source address that the backend sees. The client must hear the address that it asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// The client's own: of a process, its node's InternalIP.
    Own,
    /// The InternalIP of the first node.
    Node1,
    /// The InternalIP of the second node.
    Node2,
    /// The gateway of the first node's pods.
    Gateway1,
    /// The gateway of the second node's pods.
    Gateway2,
    /// The programs leave the packet alone, and nothing else serves the address.
    Unserved,
    /// Another column has this backend.
    Same,
    /// No route leads from the node to the backend.
    NoWay,
}

#[rustfmt::skip]
pub const TABLE: [(Client, Address, [Cell; 6]); 30] = [
    //                              Here      There     Process   Proc.There Outside  Itself
    (Pod,          ClusterIp,     [Own,      Own,      Own,      Own,      Node1,    Gateway1]),
    (Pod,          NodePort,      [Own,      Own,      Own,      Own,      Node1,    Gateway1]),
    (Pod,          NodePortThere, [Node2,    Own,      Node2,    Own,      Node2,    Node2]),
    (Pod,          ExternalIp,    [Own,      Own,      Own,      Own,      Node1,    Gateway1]),
    (Pod,          Balancer,      [Own,      Own,      Own,      Own,      Node1,    Gateway1]),

    (Process,      ClusterIp,     [Own,      Own,      Own,      Own,      Own,      Same]),
    (Process,      NodePort,      [Own,      Own,      Own,      Own,      Own,      Same]),
    (Process,      NodePortThere, [Node2,    Own,      Node2,    Own,      Node2,    Same]),
    (Process,      ExternalIp,    [Own,      Own,      Own,      Own,      Own,      Same]),
    (Process,      Balancer,      [Own,      Own,      Own,      Own,      Own,      Same]),

    (World,        ClusterIp,     [Unserved, Unserved, Unserved, Unserved, Unserved, Same]),
    (World,        NodePort,      [Own,      Node1,    Own,      Node1,    Node1,    Same]),
    (World,        NodePortThere, [Node2,    Own,      Node2,    Own,      Node2,    Same]),
    (World,        ExternalIp,    [Own,      Node1,    Own,      Node1,    Node1,    Same]),
    (World,        Balancer,      [Own,      Node1,    Own,      Node1,    Node1,    Same]),

    (Neighbour,    ClusterIp,     [Unserved, Unserved, Unserved, Unserved, Unserved, Unserved]),
    (Neighbour,    NodePort,      [Own,      Node1,    Own,      Node1,    Node1,    Node1]),
    (Neighbour,    NodePortThere, [Node2,    Own,      Node2,    Own,      Node2,    NoWay]),
    (Neighbour,    ExternalIp,    [Own,      Node1,    Own,      Node1,    Node1,    Node1]),
    (Neighbour,    Balancer,      [Own,      Node1,    Own,      Node1,    Node1,    Node1]),

    (OtherPod,     ClusterIp,     [Own,      Own,      Own,      Own,      Node2,    Gateway2]),
    (OtherPod,     NodePort,      [Own,      Node1,    Own,      Node1,    Node1,    Node1]),
    (OtherPod,     NodePortThere, [Own,      Own,      Own,      Own,      Node2,    Gateway2]),
    (OtherPod,     ExternalIp,    [Own,      Own,      Own,      Own,      Node2,    Gateway2]),
    (OtherPod,     Balancer,      [Own,      Own,      Own,      Own,      Node2,    Gateway2]),

    (OtherProcess, ClusterIp,     [Own,      Own,      Own,      Own,      Own,      Same]),
    (OtherProcess, NodePort,      [Own,      Node1,    Own,      Node1,    Node1,    Same]),
    (OtherProcess, NodePortThere, [Own,      Own,      Own,      Own,      Own,      Same]),
    (OtherProcess, ExternalIp,    [Own,      Own,      Own,      Own,      Own,      Same]),
    (OtherProcess, Balancer,      [Own,      Own,      Own,      Own,      Own,      Same]),
];
