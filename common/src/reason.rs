//! Why a packet was dropped, which path a packet took, and at which hook: the indices of `DROPS`
//! and `TRAFFIC`, and numbers in [`Event`](crate::event::Event).

use crate::names::programs;

macro_rules! numbered {
    ($(#[$attr:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $number:literal $text:expr),* $(,)? }) => {
        $(#[$attr])*
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[cfg_attr(any(test, feature = "std"), derive(Debug))]
        pub enum $name { $($(#[doc = $doc])+ $variant = $number),* }

        impl $name {
            /// All variants, in order of number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the name that operators read in counters and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// Returns the lines of the documentation, each with a space before it.
            pub const fn documentation(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($doc),+]),* }
            }
        }
    };
}

numbered! {
    /// A reason for a drop. Numbers are never reused: operators compare counters across upgrades.
    Drop {
        /// The frame ends before a header, or before the length that its IP header states.
        Truncated = 1 "truncated",
        /// The version, header length or total length of an IP header is impossible.
        BadIpHeader = 2 "bad-ip-header",
        /// A pod sent from a link address that is not its own.
        SourceMacNotOwned = 3 "source-mac-not-owned",
        /// A pod sent from an IP address that is not its own.
        SourceNotOwned = 4 "source-not-owned",
        /// A pod sent a VLAN tag, or a frame from an uplink has a VLAN tag inside a priority tag.
        VlanTagged = 5 "vlan-tagged",
        /// A pod sent to a multicast address.
        Multicast = 6 "multicast",
        /// A pod sent to a broadcast address.
        Broadcast = 7 "broadcast",
        /// A pod sent IPv6, but has no IPv6 address.
        FamilyNotEnabled = 8 "family-not-enabled",
        /// A pod sent a frame that is neither IP nor ARP.
        EthertypeUnknown = 9 "ethertype-unknown",
        /// A pod sent ARP that is not a request for its own gateway.
        ArpNotForGateway = 10 "arp-not-for-gateway",
        /// A pod sent VXLAN to a node, or to the world under its node's address. Or a rule of the
        /// host, or a service, turned another packet into such a VXLAN packet.
        VxlanFromPod = 11 "vxlan-from-pod",
        /// VXLAN from an address that belongs to no node.
        TunnelPeerUnknown = 12 "tunnel-peer-unknown",
        /// VXLAN with other flags, or another network identifier, than Podwire's.
        TunnelVniUnknown = 13 "tunnel-vni-unknown",
        /// VXLAN from a node that does not own the inner source address.
        InnerSourceNotOwned = 14 "inner-source-not-owned",
        /// VXLAN that carries neither IPv4 nor IPv6, or a VLAN tag.
        InnerProtocolUnknown = 15 "inner-protocol-unknown",
        /// A packet from an uplink has a pod's source address, but does not come from that pod's
        /// node. Or its source is an address of this node.
        PodSourceNotFromNode = 16 "pod-source-not-from-node",
        /// A later fragment, but the programs have not seen the first fragment of its datagram.
        FragmentWithoutFirst = 17 "fragment-without-first",
        /// The host stack sent a packet into the VXLAN device, but the packet is not IP or no other
        /// node owns its destination. Or a pod's packet on an uplink is for an address of
        /// this node or of its podCIDR.
        NoNodeForDestination = 18 "no-node-for-destination",
        /// A kernel helper refused to change the packet.
        RewriteFailed = 19 "rewrite-failed",
        /// No free source port towards that destination. If SNAT cannot change the protocol's
        /// ports: another flow has this flow's translated 5-tuple.
        SnatPortsExhausted = 20 "snat-ports-exhausted",
        /// The uplink that the route chose has no address to translate to.
        SnatNoAddress = 21 "snat-no-address",
        /// SNAT cannot translate this ICMP message: it is neither an echo nor a timestamp, nor an
        /// error about a translated flow.
        SnatProtocolUnknown = 22 "snat-protocol-unknown",
        /// The translation table is full.
        TranslationsFull = 23 "translations-full",
        /// The outer header marks congestion, but the inner packet is not ECN-capable (RFC 6040
        /// section 4.2).
        EcnNotCapable = 24 "ecn-not-capable",
        /// A packet on its way out by an uplink has a source in a pod network, but no pod of this
        /// node has that address.
        PodSourceUnknown = 25 "pod-source-unknown",
        /// The first fragment of a translated datagram arrived after a later one. The programs had
        /// left the later one to the host, so the datagram cannot be completed.
        FragmentBeforeFirst = 26 "fragment-before-first",
        /// The pod behind a hostPort is gone.
        BackendGone = 27 "backend-gone",
        /// No route leads back for a hostPort's reply.
        NoRouteBack = 28 "no-route-back",
        /// A pod exceeded its egress limit: it bypassed the queue on its own side of the veth pair.
        EgressLimitExceeded = 29 "egress-limit-exceeded",
        /// A pod left a checksum to the kernel that is not the checksum of the packet's own TCP,
        /// UDP or SCTP header. The kernel would overwrite what the programs have checked.
        ChecksumNotOwn = 30 "checksum-not-own",
        /// A packet to or from 127.0.0.0/8 came from a pod, from an uplink or out of the tunnel.
        /// Such packets must not leave a host (RFC 1122 section 3.2.1.3).
        LoopbackAddress = 31 "loopback-address",
        /// A pod sent an ICMP error about a packet that was not sent to this pod, or sent it to a
        /// host that had not sent that packet.
        IcmpErrorNotOwned = 32 "icmp-error-not-owned",
        // 33 was never released.
        /// The pod, port of a pod (for clients outside) or node that the new flow counts for already has
        /// its share of the translation table.
        TranslationShareUsed = 34 "translation-share-used",
        /// The next program is missing from the array of programs: something emptied the array.
        ProgramMissing = 35 "program-missing",
        /// A pod sent AH to the world. AH authenticates the addresses, so SNAT cannot change them.
        SnatImpossible = 36 "snat-impossible",
        /// The route to the world goes out by a link without Podwire's programs: the packet would
        /// leave with the pod's own address.
        LinkWithoutPrograms = 37 "link-without-programs",
        /// VXLAN for this node arrived by a link that is not an uplink.
        TunnelNotByUplink = 38 "tunnel-not-by-uplink",
        /// An IPsec policy of the host may apply to this packet, but the programs would send it
        /// past the policy. The packet is a hostPort's reply, or SNAT would give it the node's
        /// address.
        IpsecPolicy = 39 "ipsec-policy",
        /// An IPv6 packet has more extension headers than the programs walk along, or its first
        /// fragment does not have them all.
        ExtensionHeaders = 40 "extension-headers",
        /// An address that no IPv6 packet on a wire may have: `::`, `::1`, a v4-mapped address, or
        /// a multicast address as the source.
        AddressNeverOnWire = 41 "address-never-on-wire",
        /// A pod sent a neighbour solicitation for another address than its gateway's, or one that
        /// is malformed. Solicitations of duplicate address detection count as `neighbour-chatter`.
        SolicitationNotForGateway = 42 "solicitation-not-for-gateway",
        /// A pod sent a router advertisement.
        RouterAdvertisement = 43 "router-advertisement",
        /// A pod sent an IPv6 redirect.
        RedirectFromPod = 44 "redirect-from-pod",
        /// Router solicitations, MLD reports, duplicate address detection and neighbour
        /// advertisements: every IPv6 stack sends them, and neither a pod's link nor the tunnel has
        /// anyone for them.
        NeighbourChatter = 45 "neighbour-chatter",
        /// A packet from or to a link-local address: no program forwards it.
        LinkLocalAddress = 46 "link-local-address",
        /// A pod's packet does not fit the path of a tunnel of IPv6, whose packets nobody fragments,
        /// and no ICMP error can make it smaller: it is a later fragment, or an IPv6 packet of at
        /// most 1280 bytes.
        TunnelTooSmall = 47 "tunnel-too-small",
        /// A packet to a service that has no usable endpoint. The programs answer TCP with a reset and
        /// UDP with the ICMP error "port unreachable".
        NoBackend = 48 "no-backend",
        /// A packet to a service whose traffic policy is `Local`, and no endpoint of the service is on
        /// this node.
        NoLocalBackend = 49 "no-local-backend",
        /// A pod's packet to a port that the service of a ClusterIP does not have. The programs
        /// answer it as a packet without a backend.
        ServicePortUnknown = 50 "service-port-unknown",
        /// A pod's packet to an address of `--service-networks` that no service has; or a packet of a
        /// connection to a service that has lost its translation.
        ServiceAddressUnknown = 51 "service-address-unknown",
        /// A client is in none of the networks that may use a load balancer's address
        /// (`loadBalancerSourceRanges`).
        SourceRange = 52 "source-range",
    }
}

impl Drop {
    /// Returns what an operator can do about drops for this reason. `None`: the sender is at fault,
    /// or `docs/limits.md` says that it does not work.
    pub const fn remedy(self) -> Option<&'static str> {
        Some(match self {
            Self::FamilyNotEnabled => "Nothing, or give the node a podCIDR of IPv6 if pods should have IPv6.",
            Self::TunnelPeerUnknown => {
                "If no traffic passes between two nodes, look at the receiver's node list: it lacks the sender."
            }
            Self::TunnelVniUnknown => "Give all nodes the same `--vni`.",
            Self::InnerSourceNotOwned => "Give all nodes the same `--tunnel-family`.",
            Self::FragmentWithoutFirst => {
                "If pods use many fragmented datagrams at once, raise `--max-fragments`."
            }
            Self::SnatPortsExhausted => {
                "Too many flows go to one server at once: widen `--snat-ports`. This does not help protocols without ports."
            }
            Self::SnatNoAddress => "Give the uplink an address of the packet's family.",
            Self::TranslationsFull => "Raise `--max-translations`. Each flow takes two entries.",
            Self::EgressLimitExceeded => {
                "Nothing: the pod's other packets keep to the limit. Look at the pod, which avoids its queue."
            }
            Self::TranslationShareUsed => {
                "Look for a flood: the log names the holder. If the flows are wanted, raise `--max-translations`."
            }
            Self::ProgramMissing => {
                "Start the agent again: `programs/` was removed from the folder of pins, and the agent ended."
            }
            Self::LinkWithoutPrograms => {
                "Name the link with `--uplink`, or the destination with `--non-masquerade-cidrs`."
            }
            Self::TunnelNotByUplink => "If other nodes are reached by this link, name it with `--uplink`.",
            Self::IpsecPolicy => "Write the policy for the pods' network.",
            Self::NeighbourChatter => "Nothing: pods with IPv6 send these packets by themselves.",
            Self::TunnelTooSmall => {
                "Raise the MTU between the nodes to 1350 or more, or set `--tunnel-family ipv4` on all nodes."
            }
            Self::NoBackend => "Look at the service's pods: `podwire services` shows why each is not used.",
            Self::ServicePortUnknown => "Look at the service's ports: `podwire services --address`.",
            Self::ServiceAddressUnknown => {
                "Look for a client that keeps the address of a deleted service, or a connection from before kube-proxy was removed."
            }
            Self::NoLocalBackend => {
                "Run a pod of the service on this node, or set its traffic policy to `Cluster`."
            }
            Self::SourceRange => "If the client may use the service, add it to `loadBalancerSourceRanges`.",
            _ => return None,
        })
    }
}

numbered! {
    /// A place at which programs see packets. Numbers are never reused.
    Hook {
        /// TC ingress of a pod's host side.
        FromPod = 1 programs::FROM_POD,
        /// TC egress of a pod's host side.
        ToPod = 2 programs::TO_POD,
        /// TC ingress of the VXLAN device.
        FromOverlay = 3 programs::FROM_OVERLAY,
        /// TC egress of the VXLAN device.
        ToOverlay = 4 programs::TO_OVERLAY,
        /// TC ingress of an uplink.
        FromUplink = 5 programs::FROM_UPLINK,
        /// TC egress of an uplink.
        ToUplink = 6 programs::TO_UPLINK,
        /// TC ingress of an uplink without link header.
        FromBareUplink = 7 programs::FROM_BARE_UPLINK,
        /// TC egress of an uplink without link header.
        ToBareUplink = 8 programs::TO_BARE_UPLINK,
        /// XDP of an uplink.
        UplinkXdp = 9 programs::UPLINK_XDP,
    }
}

/// Entries of `DROPS`: the largest reason plus one, and room for more.
pub const DROP_SLOTS: usize = 64;

numbered! {
    /// A path that packets take.
    Path {
        /// Pod to pod on this node, past the host stack.
        Local = 0 "local",
        /// Pod to another node, encapsulated by the program.
        TunnelOut = 1 "tunnel-out",
        /// From another node, decapsulated by the program.
        TunnelIn = 2 "tunnel-in",
        /// Pod to another node through the VXLAN device: the program did not encapsulate the packet
        /// itself.
        TunnelOutDevice = 3 "tunnel-out-device",
        /// From another node, decapsulated by the VXLAN device and delivered past the host stack.
        TunnelInDevice = 4 "tunnel-in-device",
        /// Pod to another node, without encapsulation.
        DirectOut = 5 "direct-out",
        /// From another node, without encapsulation.
        DirectIn = 6 "direct-in",
        /// Pod to the host stack.
        ToStack = 7 "to-stack",
        /// Host stack to pod.
        FromStack = 8 "from-stack",
        /// Host stack to the VXLAN device.
        StackToTunnel = 9 "stack-to-tunnel",
        /// VXLAN device to the host stack.
        TunnelToStack = 10 "tunnel-to-stack",
        /// A pod's packet from the host stack to another node, encapsulated by the program on the
        /// uplink.
        StackEncapsulated = 11 "stack-encapsulated",
        /// A pod's packet to the world, its source translated.
        SnatOut = 12 "snat-out",
        /// A reply from an uplink or out of the tunnel, translated back.
        SnatIn = 13 "snat-in",
        /// "Fragmentation needed" sent to a pod.
        TooBigAnswered = 14 "too-big-answered",
        /// A pod's ARP request or neighbour solicitation for its gateway answered.
        ArpAnswered = 15 "arp-answered",
        /// A flow could not be recorded: its pod already has its share of `STACK_FLOWS`, or the map
        /// is full. If the packet came out of the host's stack, all flows of the pod use the stack
        /// from now on.
        StackFlowsFull = 16 "stack-flows-full",
        /// A flow of this node itself with another source port: a pod's flow already used the
        /// 5-tuple.
        HostSnatOut = 17 "host-snat-out",
        /// A pod's packet to the world that keeps the pod's address: the network is excluded from
        /// SNAT, or the other end began the flow.
        Untranslated = 18 "untranslated",
        /// To a hostPort, translated to its pod.
        HostPortIn = 19 "host-port-in",
        /// A hostPort's reply, translated back and sent the way that its request came.
        HostPortOut = 20 "host-port-out",
        /// A pod to itself through a hostPort, in either direction.
        Hairpin = 21 "hairpin",
        /// The programs could not reserve a 5-tuple for a flow of the host itself: `TRANSLATIONS`
        /// is full, or the node already has its share.
        ReservationsFull = 22 "reservations-full",
        /// A process of this node named a service, but its socket is bound to a loopback address, so
        /// the programs could not point it at a backend. Counts calls, with no bytes.
        BoundToLoopback = 23 "bound-to-loopback",
        /// A process of this node named a service that has no endpoint for it, or no service at all,
        /// so its call failed.
        /// Counts calls, with no bytes.
        CallRefused = 24 "call-refused",
        /// From a client outside to a service, translated to a backend of this node.
        ServiceIn = 25 "service-in",
        /// The answer of a backend of this node to a client outside, translated back.
        ServiceOut = 26 "service-out",
        /// From a client outside to a service, translated to a backend on another node.
        RelayOut = 27 "relay-out",
        /// The answer of a backend on another node to a client outside, translated back.
        RelayIn = 28 "relay-in",
    }
}

/// Entries of `TRAFFIC`.
pub const PATH_SLOTS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_fit_their_maps_and_names_are_unique() {
        assert!(Drop::ALL.iter().all(|reason| (*reason as usize) < DROP_SLOTS));
        assert!(Path::ALL.iter().all(|path| (*path as usize) < PATH_SLOTS));
        let names: BTreeSet<_> = Drop::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Drop::ALL.len());
        let names: BTreeSet<_> = Path::ALL.iter().map(|path| path.name()).collect();
        assert_eq!(names.len(), Path::ALL.len());
    }
}
