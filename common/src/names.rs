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

/// Bits of the hash in [`host_interface`]: twelve hexadecimal digits, so that the name has no more than the kernel's 15 characters.
#[cfg(any(test, feature = "std"))]
const DIGITS: u64 = 0xffff_ffff_ffff;

/// Name of the host side of an attachment's veth pair: [`VETH_PREFIX`] and twelve hexadecimal digits of a 64-bit FNV-1a hash
/// of container ID, a zero byte and interface name. It is the same in every call for that attachment.
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
            /// All of them.
            pub const ALL: [&str; Table::ALL.len()] = [$($name),*];
        };
    }

    crate::tables!(names);
}

/// The object's array of the programs that others go on with ([`programs::Jump`]). Each load has its own, so it is none of [`maps`].
pub const JUMPS: &str = "JUMPS";

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
    /// TC ingress of an uplink without link header: adds one and goes on with [`FROM_UPLINK`].
    pub const FROM_BARE_UPLINK: &str = "from_bare_uplink";
    /// TC egress of an uplink without link header.
    pub const TO_BARE_UPLINK: &str = "to_bare_uplink";
    /// XDP of an uplink, off by default.
    pub const UPLINK_XDP: &str = "uplink_xdp";
    /// A program with which another one goes on. Its number is its place in [`JUMPS`](super::JUMPS).
    #[repr(u32)]
    #[derive(Clone, Copy)]
    pub enum Jump {
        /// From [`FROM_POD`], where nothing is known of a packet's flow.
        FromPodNew,
        /// From [`FROM_BARE_UPLINK`], when the frame has a link header.
        FromUplink,
    }

    impl Jump {
        /// Every one, in order of number.
        pub const ALL: [Self; 2] = [Self::FromPodNew, Self::FromUplink];

        /// The program's name.
        pub const fn program(self) -> &'static str {
            match self {
                Self::FromPodNew => "from_pod_new",
                Self::FromUplink => FROM_UPLINK,
            }
        }
    }

    /// All that an uplink may have by pinned links.
    pub const UPLINK_LINKS: [&str; 5] =
        [FROM_UPLINK, TO_UPLINK, FROM_BARE_UPLINK, TO_BARE_UPLINK, UPLINK_XDP];
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
