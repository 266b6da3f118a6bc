//! Names and default numbers that the object, the agent and the plugin agree on.

/// Name of the VXLAN device that the agent makes.
pub const VXLAN_DEVICE: &str = "podwire-vxlan";
/// Host sides of pods' veth pairs are named with this and twelve hexadecimal digits.
pub const VETH_PREFIX: &str = "pw";
/// IANA's UDP port of VXLAN is 4789; Linux's and flannel's is this one.
pub const VXLAN_PORT: u16 = 8472;
/// Default VXLAN network identifier.
pub const VNI: u32 = 1;
/// Bytes that VXLAN over IPv4 adds to an IP packet: IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 section 5).
pub const VXLAN_OVERHEAD: u32 = 50;
/// Source of inner frames that the programs write: unicast, locally administered, borne by no VXLAN device.
pub const INNER_SOURCE_MAC: [u8; 6] = [0x02, 0x70, 0x77, 0x00, 0x00, 0x01];
/// Destination of inner frames that the programs write. The receiver sets the packet type, whatever it reads; one that does not has a
/// [`crate::abi::Vtep`].
pub const INNER_DESTINATION_MAC: [u8; 6] = [0x02, 0x70, 0x77, 0x00, 0x00, 0x02];
/// `rtm_protocol` of the routes that the agent owns, so that it removes none of others'.
pub const ROUTE_PROTOCOL: u8 = 112;

/// Map names, as pinned.
pub mod maps {
    /// Pod address → [`crate::abi::Endpoint`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// podCIDR or node address → [`crate::abi::Node`].
    pub const NODES: &str = "NODES";
    /// Underlay address → [`crate::abi::Vtep`].
    pub const VTEPS: &str = "VTEPS";
    /// Underlay address → node id.
    pub const TUNNEL_PEERS: &str = "TUNNEL_PEERS";
    /// [`crate::abi::Flow`] → [`crate::abi::StackFlow`].
    pub const STACK_FLOWS: &str = "STACK_FLOWS";
    /// [`crate::abi::FragmentKey`] → [`crate::abi::FragmentPorts`].
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// [`crate::abi::Flow`] → [`crate::abi::Translation`].
    pub const TRANSLATIONS: &str = "TRANSLATIONS";
    /// ifindex → [`crate::abi::Uplink`].
    pub const UPLINKS: &str = "UPLINKS";
    /// [`crate::reason::Drop`] → [`crate::abi::Count`].
    pub const DROPS: &str = "DROPS";
    /// [`crate::reason::Path`] → [`crate::abi::Count`].
    pub const TRAFFIC: &str = "TRAFFIC";
    /// [`crate::abi::Flow`] → [`crate::abi::InboundFlow`].
    pub const INBOUND_FLOWS: &str = "INBOUND_FLOWS";
    /// Networks whose destinations see pods' own addresses → 1.
    pub const NON_MASQUERADE: &str = "NON_MASQUERADE";
    /// [`crate::abi::Frontend`] → [`crate::abi::Backend`].
    pub const FRONTENDS: &str = "FRONTENDS";
    /// [`crate::abi::RedirectedSocket`] → [`crate::abi::SocketAddress`].
    pub const REDIRECTED_SOCKETS: &str = "REDIRECTED_SOCKETS";
    /// [`crate::abi::Flow`] → [`crate::abi::KnownFlow`].
    pub const FLOWS: &str = "FLOWS";
    /// Who writes → a number that changes with everything that entries of `FLOWS` are made of.
    pub const GENERATION: &str = "GENERATION";
    /// Slot of [`crate::epoch`] → a number that changes with the slot's subjects.
    pub const EPOCHS: &str = "EPOCHS";
    /// 0 → the [`crate::abi::Flow`] whose first packet a CPU handed to the host stack last.
    pub const BEGINNINGS: &str = "BEGINNINGS";
    /// ifindex → [`crate::abi::Guard`].
    pub const EGRESS_GUARDS: &str = "EGRESS_GUARDS";
    /// [`crate::abi::Holder`] → entries that it has.
    pub const HOLDERS: &str = "HOLDERS";
    /// `TABLE_*` of [`crate::abi`] → entries that are free.
    pub const ROOM: &str = "ROOM";
    /// All of them.
    pub const ALL: [&str; 21] = [
        ENDPOINTS,
        EGRESS_GUARDS,
        NODES,
        VTEPS,
        TUNNEL_PEERS,
        STACK_FLOWS,
        FRAGMENTS,
        TRANSLATIONS,
        INBOUND_FLOWS,
        NON_MASQUERADE,
        FRONTENDS,
        REDIRECTED_SOCKETS,
        FLOWS,
        GENERATION,
        EPOCHS,
        BEGINNINGS,
        HOLDERS,
        ROOM,
        UPLINKS,
        DROPS,
        TRAFFIC,
    ];
}

/// Program names: the attach point is part of the name.
pub mod programs {
    /// TC ingress of a pod's host side.
    pub const FROM_POD: &str = "from_pod";
    /// TC egress of a pod's host side.
    pub const TO_POD: &str = "to_pod";
    /// TC ingress of the VXLAN device.
    pub const FROM_OVERLAY: &str = "from_overlay";
    /// TC egress of the VXLAN device.
    pub const TO_OVERLAY: &str = "to_overlay";
    /// TC ingress of an uplink.
    pub const FROM_UPLINK: &str = "from_uplink";
    /// TC egress of an uplink.
    pub const TO_UPLINK: &str = "to_uplink";
    /// XDP of an uplink, off by default.
    pub const UPLINK_XDP: &str = "uplink_xdp";
    /// A TC program that does nothing, only in the build that counts helper calls.
    pub const EMPTY: &str = "empty";
    /// What is attached to the root of cgroup2, for this node's own processes.
    pub const CGROUP: [&str; 7] =
        ["connect4", "connect6", "sendmsg4", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"];
}

/// Name of the object's read-only [`crate::abi::Config`].
pub const CONFIG: &str = "CONFIG";

/// Name of the object's read-only [`crate::abi::SkbLayout`].
pub const SKB_LAYOUT: &str = "SKB_LAYOUT";
