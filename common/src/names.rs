//! Names and default numbers that the object, the agent and the plugin share.

/// Name of the VXLAN device that the agent makes.
pub const VXLAN_DEVICE: &str = "podwire-vxlan";
/// Prefix of the names of the host sides of pods' veth pairs. Twelve hexadecimal digits follow.
pub const VETH_PREFIX: &str = "pw";
/// Default UDP port of the tunnel: the port of Linux and flannel. IANA's port for VXLAN is 4789.
pub const VXLAN_PORT: u16 = 8472;
/// Default VXLAN network identifier.
pub const VNI: u32 = 1;
/// Bytes that VXLAN over IPv4 adds to an IP packet: IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC
/// 7348 section 5).
pub const VXLAN_OVERHEAD: u32 = 50;
/// Bytes that VXLAN over IPv6 adds: the IPv6 header has 40 (RFC 8200 section 3).
pub const VXLAN_OVERHEAD_IPV6: u32 = 70;
/// Source of inner frames that the programs write: unicast, locally administered, and the address
/// of no VXLAN device.
pub const INNER_SOURCE_MAC: [u8; 6] = [0x02, 0x70, 0x77, 0x00, 0x00, 0x01];
/// Destination of inner frames that the programs write. A receiving program accepts any address and
/// sets the packet type itself. A node that receives without a program has a [`crate::abi::Vtep`].
pub const INNER_DESTINATION_MAC: [u8; 6] = [0x02, 0x70, 0x77, 0x00, 0x00, 0x02];
/// The pods' IPv6 gateway, the same on every node: a pod's link-local traffic ends at its link.
pub const GATEWAY6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// `rtm_protocol` of the agent's routes, so that the agent removes only its own.
pub const ROUTE_PROTOCOL: u8 = 112;

/// Bits of the hash in [`host_interface`]: twelve hexadecimal digits, so that the name fits the
/// kernel's 15 characters.
#[cfg(any(test, feature = "std"))]
const DIGITS: u64 = 0xffff_ffff_ffff;

/// Returns the name of the host side of an attachment's veth pair: [`VETH_PREFIX`] and the last
/// twelve hexadecimal digits of a 64-bit FNV-1a hash. The hash covers container ID, a zero byte and
/// interface name. So every call for an attachment gets the same name.
#[cfg(any(test, feature = "std"))]
pub fn host_interface(container_id: &str, interface: &str) -> std::string::String {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let bytes = container_id.bytes().chain([0]).chain(interface.bytes());
    let hash = bytes.fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    std::format!("{VETH_PREFIX}{:012x}", hash & DIGITS)
}

/// Map names, as pinned.
pub mod maps {
    use crate::tables::Table;

    macro_rules! names {
        ($($owner:ident {
            $(#[doc = $doc:literal])+
            $name:ident, $field:ident, $variant:ident: $kind:ident<$key:ty, $value:ty>, $($size_and_rank:tt)*
        })*) => {
            $(
                $(#[doc = $doc])+
                pub const $name: &str = Table::$variant.name();
            )*
            /// All names.
            pub const ALL: [&str; Table::ALL.len()] = [$($name),*];
        };
    }

    crate::tables!(names);
}

/// The object's array of the programs that other programs jump to ([`programs::Jump`]). Each load
/// of the object has its own array, so it is not among [`maps`].
pub const JUMPS: &str = "JUMPS";

/// The ring of [events](crate::event). Each load of the object has its own.
pub const EVENTS: &str = "EVENTS";

/// The object's per-CPU array of [`Budget`](crate::event::Budget)s, by reason. Each load of the
/// object has its own.
pub const EVENT_BUDGETS: &str = "EVENT_BUDGETS";

/// The object's per-CPU array of events of new flows that did not fit the ring, by
/// [`Kind`](crate::event::Kind). Each load of the object has its own.
pub const VERDICTS_LOST: &str = "VERDICTS_LOST";

/// The section of the object that holds [`Listening`](crate::event::Listening) and nothing else.
pub const LISTENING: &str = ".data";

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
    /// TC ingress of an uplink without link header: adds a link header and jumps to
    /// [`FROM_UPLINK`].
    pub const FROM_BARE_UPLINK: &str = "from_bare_uplink";
    /// TC egress of an uplink without link header.
    pub const TO_BARE_UPLINK: &str = "to_bare_uplink";
    /// XDP of an uplink, off by default.
    pub const UPLINK_XDP: &str = "uplink_xdp";
    /// A program that another program jumps to. Its number is its index in [`JUMPS`](super::JUMPS).
    #[repr(u32)]
    #[derive(Clone, Copy)]
    pub enum Jump {
        /// From [`FROM_POD`], if nothing is known of a packet's flow.
        FromPodNew,
        /// From [`FROM_BARE_UPLINK`], after it has added the link header. And as [`Self::FromPod`].
        FromUplink,
        /// From [`FROM_POD`], for IPv6.
        FromPod6,
        /// From [`FROM_UPLINK`], for IPv6.
        FromUplink6,
        /// From [`FROM_OVERLAY`], for IPv6.
        FromOverlay6,
        /// From [`TO_UPLINK`], for IPv6.
        ToUplink6,
        /// From [`TO_BARE_UPLINK`], for IPv6.
        ToBareUplink6,
        /// From [`TO_OVERLAY`], for IPv6.
        ToOverlay6,
        /// From the program for IPv6 behind [`FROM_POD`], if nothing is known of a packet's flow.
        FromPod6New,
        /// From [`FROM_UPLINK`] and its program for IPv6, for IPv6 inside the tunnel.
        FromTunnel6,
        /// From every TC program, for a packet that it drops.
        Dropped,
        /// From every TC program, for a packet that may be the first of its flow while somebody
        /// listens.
        Begun,
        /// From the first TC program of each hook, while somebody captures packets.
        Captured,
        /// From [`Self::Captured`], back to the hook.
        FromPod,
        /// As [`Self::FromPod`].
        ToPod,
        /// As [`Self::FromPod`].
        FromOverlay,
        /// As [`Self::FromPod`].
        ToOverlay,
        /// As [`Self::FromPod`].
        ToUplink,
        /// As [`Self::FromPod`].
        ToBareUplink,
        /// From programs of pods, uplinks and the VXLAN device, for a pod's packet to a service and
        /// for the answer to one.
        Served,
        /// As [`Self::Served`], for IPv6.
        Served6,
        /// From programs of uplinks, the VXLAN device and pods, for the packet of a client outside to
        /// a service and for the answer to one.
        Outside,
        /// As [`Self::Outside`], for IPv6.
        Outside6,
    }

    impl Jump {
        /// All variants, in order of number.
        pub const ALL: [Self; 23] = [
            Self::FromPodNew,
            Self::FromUplink,
            Self::FromPod6,
            Self::FromUplink6,
            Self::FromOverlay6,
            Self::ToUplink6,
            Self::ToBareUplink6,
            Self::ToOverlay6,
            Self::FromPod6New,
            Self::FromTunnel6,
            Self::Dropped,
            Self::Begun,
            Self::Captured,
            Self::FromPod,
            Self::ToPod,
            Self::FromOverlay,
            Self::ToOverlay,
            Self::ToUplink,
            Self::ToBareUplink,
            Self::Served,
            Self::Served6,
            Self::Outside,
            Self::Outside6,
        ];
        /// The programs for services, for clients inside and outside.
        pub const SERVICES: [Self; 2] = [Self::Served, Self::Outside];
        /// As [`Self::SERVICES`], for IPv6.
        pub const SERVICES6: [Self; 2] = [Self::Served6, Self::Outside6];

        /// Returns the program's name.
        pub const fn program(self) -> &'static str {
            match self {
                Self::FromPodNew => "from_pod_new",
                Self::FromUplink => FROM_UPLINK,
                Self::FromPod6 => "from_pod6",
                Self::FromUplink6 => "from_uplink6",
                Self::FromOverlay6 => "from_overlay6",
                Self::ToUplink6 => "to_uplink6",
                Self::ToBareUplink6 => "to_bare_uplink6",
                Self::ToOverlay6 => "to_overlay6",
                Self::FromPod6New => "from_pod6_new",
                Self::FromTunnel6 => "from_tunnel6",
                Self::Dropped => "dropped",
                Self::Begun => "begun",
                Self::Captured => "captured",
                Self::FromPod => FROM_POD,
                Self::ToPod => TO_POD,
                Self::FromOverlay => FROM_OVERLAY,
                Self::ToOverlay => TO_OVERLAY,
                Self::ToUplink => TO_UPLINK,
                Self::ToBareUplink => TO_BARE_UPLINK,
                Self::Served => "served",
                Self::Served6 => "served6",
                Self::Outside => "outside",
                Self::Outside6 => "outside6",
            }
        }
    }

    /// All programs that the agent may attach to an uplink with a pinned BPF link.
    pub const UPLINK_LINKS: [&str; 5] =
        [FROM_UPLINK, TO_UPLINK, FROM_BARE_UPLINK, TO_BARE_UPLINK, UPLINK_XDP];
    /// A TC program that does nothing. Only the build that counts helper calls has it.
    pub const EMPTY: &str = "empty";
    /// Programs at the root of cgroup2, for this node's own processes. The last one runs only with
    /// services: see [`at_cgroup`].
    pub const CGROUP: [&str; 9] = [
        "connect4",
        "connect6",
        "sendmsg4",
        "sendmsg6",
        "recvmsg4",
        "recvmsg6",
        "getpeername4",
        "getpeername6",
        "sock_release",
    ];

    /// Returns the programs of [`CGROUP`] that the agent attaches.
    pub fn at_cgroup(has_services: bool) -> &'static [&'static str] {
        if has_services { &CGROUP } else { &CGROUP[..CGROUP.len() - 1] }
    }
}

/// Name of the object's read-only [`crate::abi::Config`].
pub const CONFIG: &str = "CONFIG";

/// Name of the object's read-only [`crate::abi::SkbLayout`].
pub const SKB_LAYOUT: &str = "SKB_LAYOUT";
