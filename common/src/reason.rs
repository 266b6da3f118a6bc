//! Why a packet was dropped, and which way one went: the indices of `DROPS` and `TRAFFIC`.

macro_rules! numbered {
    ($(#[$attr:meta])* $name:ident { $($(#[$variant_attr:meta])* $variant:ident = $number:literal $text:literal),* $(,)? }) => {
        $(#[$attr])*
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[cfg_attr(any(test, feature = "std"), derive(Debug))]
        pub enum $name { $($(#[$variant_attr])* $variant = $number),* }

        impl $name {
            /// Every one, in order of number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name that operators read in counters and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

numbered! {
    /// A reason for a drop. A number is never reused: operators compare counters across upgrades.
    Drop {
        /// A header ends before its length says.
        Truncated = 1 "truncated",
        /// IPv4 version, header length or total length that cannot be.
        BadIpHeader = 2 "bad-ip-header",
        /// A pod sent from a link address that is not its own.
        SourceMacNotOwned = 3 "source-mac-not-owned",
        /// A pod sent from an IP address that is not its own.
        SourceNotOwned = 4 "source-not-owned",
        /// A pod sent a VLAN tag, or one came by an uplink inside a priority tag.
        VlanTagged = 5 "vlan-tagged",
        /// A pod sent to a multicast address.
        Multicast = 6 "multicast",
        /// A pod sent to a broadcast address.
        Broadcast = 7 "broadcast",
        /// A pod sent IPv6 and has no IPv6 address.
        FamilyNotEnabled = 8 "family-not-enabled",
        /// A pod sent a frame that is neither IP nor ARP.
        EthertypeUnknown = 9 "ethertype-unknown",
        /// A pod sent ARP that is not a request for its own gateway.
        ArpNotForGateway = 10 "arp-not-for-gateway",
        /// A pod sent VXLAN to a node, or to the world under its node's address; or a rule of the
        /// host made such a packet of another.
        VxlanFromPod = 11 "vxlan-from-pod",
        /// VXLAN from an address that is no node's.
        TunnelPeerUnknown = 12 "tunnel-peer-unknown",
        /// VXLAN with flags or a network identifier that are not ours.
        TunnelVniUnknown = 13 "tunnel-vni-unknown",
        /// VXLAN from a node that does not own the inner source.
        InnerSourceNotOwned = 14 "inner-source-not-owned",
        /// VXLAN that carries something else than IPv4.
        InnerProtocolUnknown = 15 "inner-protocol-unknown",
        /// A pod network's source on an uplink, from somewhere that is not its node; or this node's own address.
        PodSourceNotFromNode = 16 "pod-source-not-from-node",
        /// A fragment whose first has not been seen.
        FragmentWithoutFirst = 17 "fragment-without-first",
        /// On the VXLAN device, or a pod's on an uplink, for a destination that no other node owns.
        NoNodeForDestination = 18 "no-node-for-destination",
        /// A kernel helper refused to change the packet.
        RewriteFailed = 19 "rewrite-failed",
        /// No free source port towards that destination. If SNAT cannot change the protocol's ports: another flow has this
        /// flow's translated 5-tuple.
        SnatPortsExhausted = 20 "snat-ports-exhausted",
        /// The uplink that the route chose has no address to translate to.
        SnatNoAddress = 21 "snat-no-address",
        /// ICMP other than echo, timestamp and errors.
        SnatProtocolUnknown = 22 "snat-protocol-unknown",
        /// The translation table is full.
        TranslationsFull = 23 "translations-full",
        /// Congestion was marked on the outside of a packet that is not capable of it (RFC 6040 section 4.2).
        EcnNotCapable = 24 "ecn-not-capable",
        /// A pod network's source that is no pod's here, on its way out by an uplink.
        PodSourceUnknown = 25 "pod-source-unknown",
        /// The first fragment of a datagram of a translated flow, whose later fragment came before it and was left to the
        /// host: it cannot be completed any more.
        FragmentBeforeFirst = 26 "fragment-before-first",
        /// The pod behind a hostPort is gone.
        BackendGone = 27 "backend-gone",
        /// No route by which a hostPort's reply could leave.
        NoRouteBack = 28 "no-route-back",
        /// A pod sent more than its limit lets through: it has gone around the queue on its own side.
        EgressLimitExceeded = 29 "egress-limit-exceeded",
        /// A pod left a checksum to the kernel that is not the one of its own TCP, UDP or SCTP
        /// header: the kernel would write it over what the programs have checked.
        ChecksumNotOwn = 30 "checksum-not-own",
        /// To or from 127.0.0.0/8, from a pod or by an uplink: no such packet leaves a host (RFC
        /// 1122 section 3.2.1.3).
        LoopbackAddress = 31 "loopback-address",
        /// A pod sent an ICMP error about a packet that was not sent to it, or to somebody who had not sent that packet.
        IcmpErrorNotOwned = 32 "icmp-error-not-owned",
        /// A new flow of a pod, or to a hostPort, that has its share of the translation table already.
        TranslationShareUsed = 34 "translation-share-used",
        /// The program that was to go on is not in the array of programs: somebody has emptied it.
        ProgramMissing = 35 "program-missing",
        /// A pod sent AH to the world. AH authenticates the addresses, so SNAT cannot change them.
        SnatImpossible = 36 "snat-impossible",
        /// The route to the world leads by a link that has none of the programs: the pod's address would leave bare.
        LinkWithoutPrograms = 37 "link-without-programs",
        /// VXLAN for this node by a link that is no uplink.
        TunnelNotByUplink = 38 "tunnel-not-by-uplink",
        /// An IPsec policy of the host may ask for this packet's protection, and the programs would send it past the policy: one that SNAT
        /// would translate to the node's address, or a hostPort's reply.
        IpsecPolicy = 39 "ipsec-policy",
    }
}

/// Entries of `DROPS`: one more than the largest reason, with room for more.
pub const DROP_SLOTS: usize = 64;

numbered! {
    /// A way that packets go.
    Path {
        /// Pod to pod on this node, past the host stack.
        Local = 0 "local",
        /// Pod to another node, encapsulated by the program.
        TunnelOut = 1 "tunnel-out",
        /// From another node, decapsulated by the program.
        TunnelIn = 2 "tunnel-in",
        /// Pod to another node through the VXLAN device: what the program cannot encapsulate itself.
        TunnelOutDevice = 3 "tunnel-out-device",
        /// From another node, decapsulated by the VXLAN device and delivered past the host stack.
        TunnelInDevice = 4 "tunnel-in-device",
        /// Pod to another node, as it is.
        DirectOut = 5 "direct-out",
        /// From another node, as it is.
        DirectIn = 6 "direct-in",
        /// Pod to the host stack.
        ToStack = 7 "to-stack",
        /// Host stack to pod.
        FromStack = 8 "from-stack",
        /// Host stack to the VXLAN device.
        StackToTunnel = 9 "stack-to-tunnel",
        /// VXLAN device to the host stack.
        TunnelToStack = 10 "tunnel-to-stack",
        /// A pod's packet from the host stack to another node, encapsulated on the uplink.
        StackEncapsulated = 11 "stack-encapsulated",
        /// Source translated on an uplink.
        SnatOut = 12 "snat-out",
        /// A reply translated back on an uplink.
        SnatIn = 13 "snat-in",
        /// "Fragmentation needed" sent to a pod.
        TooBigAnswered = 14 "too-big-answered",
        /// A pod's ARP request for its gateway answered.
        ArpAnswered = 15 "arp-answered",
        /// A flow could not be recorded because `STACK_FLOWS` is full: its endpoint now uses the stack.
        StackFlowsFull = 16 "stack-flows-full",
        /// A flow of this node itself, moved off a source port that a pod's flow had before it.
        HostSnatOut = 17 "host-snat-out",
        /// A pod's packet to the world that keeps the pod's address: an excluded network, or a flow begun from there.
        Untranslated = 18 "untranslated",
        /// To a hostPort, translated to its pod.
        HostPortIn = 19 "host-port-in",
        /// A hostPort's reply, translated back and sent the way its request came.
        HostPortOut = 20 "host-port-out",
        /// A pod to itself by a hostPort, either direction.
        Hairpin = 21 "hairpin",
        /// A 5-tuple could not be reserved for a flow of the host's own because `TRANSLATIONS` is full.
        ReservationsFull = 22 "reservations-full",
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
