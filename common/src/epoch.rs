//! What a known flow depends on, and what a change of the tables makes stale.
//!
//! Each subject (an endpoint, a node, an uplink, a region of addresses, a service) has a slot of `EPOCHS`. A
//! known flow holds the slots of its subjects and the sum of their numbers; a hit compares that
//! sum. A writer that changes a subject writes the table first, then `GENERATION`, then a new
//! number into the slot.
//!
//! Two subjects may share a slot. The only cost: a change of one also makes the other's flows
//! stale, and the programs judge them again.

use crate::addr::Addr;

/// Slots in `EPOCHS`.
pub const EPOCH_SLOTS: usize = 4096;
/// Stands for all slots: a change of it changes each of them.
pub const ALL_FLOWS: u16 = 0;
/// Slots of a known flow. A flow that needs fewer has [`ALL_FLOWS`] in the others.
pub const FLOW_SLOTS: usize = 4;

/// Index of the number in `GENERATION` that the agent writes.
pub const GENERATION_AGENT: usize = 0;
/// Index of the number in `GENERATION` that the programs change.
pub const GENERATION_PROGRAMS: usize = 1;
/// Numbers in `GENERATION`. Each number has one kind of writer, so that no change of the agent is
/// lost. Their sum is the generation.
pub const GENERATIONS: usize = 2;

const ENDPOINT: u32 = 1;
const NODE: u32 = 2;
const UPLINK: u32 = 3;
const REGION: u32 = 4;
const SERVICE: u32 = 5;

/// The most regions that a change of one prefix names. A larger prefix makes all flows stale.
#[cfg(any(test, feature = "std"))]
const MOST_REGIONS: u32 = 256;

/// Returns the slot of an endpoint, by [`crate::abi::Endpoint::id`].
#[inline(always)]
pub const fn endpoint(id: u32) -> u16 {
    slot(ENDPOINT, id)
}

/// Returns the slot of the node with a tunnel endpoint.
#[inline(always)]
pub const fn node(tunnel_endpoint: &Addr) -> u16 {
    let [a, b, c, d] = words(tunnel_endpoint);
    slot(NODE, a.rotate_left(25) ^ b.rotate_left(17) ^ c.rotate_left(9) ^ d)
}

/// Returns the slot of an uplink, by its ifindex.
#[inline(always)]
pub const fn uplink(ifindex: u32) -> u16 {
    slot(UPLINK, ifindex)
}

/// Returns the slot of a service, by [`crate::abi::Service::id`].
#[inline(always)]
pub const fn service(id: u64) -> u16 {
    slot(SERVICE, (id >> 32) as u32 ^ id as u32)
}

/// Returns the slot of an address's region: the first 24 bits of an IPv4 address, the first 64 of
/// an IPv6 address.
#[inline(always)]
pub const fn region(address: &Addr) -> u16 {
    let [a, b, _, _] = words(address);
    let [.., x, y, z, _] = address.bytes;
    match a | b {
        // No IPv6 address of a pod or of the world begins with 64 zeros.
        0 => region_v4(u32::from_ne_bytes([x, y, z, 0])),
        _ => region_v6([a, b]),
    }
}

const fn region_v4(bytes: u32) -> u16 {
    slot(REGION, bytes)
}

const fn region_v6([a, b]: [u32; 2]) -> u16 {
    slot(REGION, a ^ b.rotate_left(13))
}

const fn words(address: &Addr) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.bytes;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

#[inline(always)]
const fn slot(kind: u32, subject: u32) -> u16 {
    // Finalizer of MurmurHash3: every input bit reaches the upper bits, which choose the slot.
    let mut hash = subject.wrapping_add(kind.wrapping_mul(0x9e37_79b1));
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^= hash >> 16;
    1 + ((hash as u64 * (EPOCH_SLOTS as u64 - 1)) >> 32) as u16
}

/// Returns the slots of a flow between two pods of this node.
#[inline(always)]
pub const fn of_neighbours(sender: u32, receiver: u32) -> [u16; FLOW_SLOTS] {
    [endpoint(sender), endpoint(receiver), ALL_FLOWS, ALL_FLOWS]
}

/// Returns the slots of a flow between a pod here and a pod or process of another node. `there` is
/// the address of the latter.
#[inline(always)]
pub const fn with_node(here: u32, tunnel_endpoint: &Addr, there: &Addr) -> [u16; FLOW_SLOTS] {
    [endpoint(here), node(tunnel_endpoint), region(there), ALL_FLOWS]
}

/// Returns the slots of a flow between a pod here and the world.
#[inline(always)]
pub const fn with_world(here: u32, link: u32, there: &Addr) -> [u16; FLOW_SLOTS] {
    [endpoint(here), uplink(link), region(there), ALL_FLOWS]
}

/// Adds the slot of a service to those of a flow, which needs no more than three.
#[inline(always)]
pub const fn of_service([a, b, c, _]: [u16; FLOW_SLOTS], service: u16) -> [u16; FLOW_SLOTS] {
    [a, b, c, service]
}

/// Returns the slots of the regions that a prefix covers. `bits` counts from the first of all 128
/// bits.
#[cfg(any(test, feature = "std"))]
pub fn regions(prefix: &Addr, bits: u32) -> impl Iterator<Item = u16> + use<> {
    const QUAD: u32 = Addr::V4_PREFIX_BITS;
    let is_v4 = prefix.is_v4() && bits >= QUAD;
    let [a, b, c, d, e, f, g, h, ..] = prefix.bytes;
    let [.., x, y, z, _] = prefix.bytes;
    let (first, length, of_region) = match is_v4 {
        true => (u64::from(u32::from_be_bytes([0, x, y, z])), bits - QUAD, 24),
        false => (u64::from_be_bytes([a, b, c, d, e, f, g, h]), bits, 64),
    };
    // An IPv6 prefix that begins with zeros may cover all of IPv4.
    let is_large = of_region - length.min(of_region) > MOST_REGIONS.ilog2() || (!is_v4 && first == 0);
    let count = if is_large { 1 } else { 1_u64 << (of_region - length.min(of_region)) };
    (0..count).map(move |offset| {
        if is_large {
            return ALL_FLOWS;
        }
        let number = (first & !(count - 1)) + offset;
        if is_v4 {
            let [.., x, y, z] = number.to_be_bytes();
            return region_v4(u32::from_ne_bytes([x, y, z, 0]));
        }
        let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
        region_v6([u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::net::IpAddr;
    use std::vec::Vec;

    fn address(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn regions_of(text: &str) -> Vec<u16> {
        let (address_text, length) = text.split_once('/').unwrap();
        let ip: IpAddr = address_text.parse().unwrap();
        let before = if ip.is_ipv4() { Addr::V4_PREFIX_BITS } else { 0 };
        regions(&ip.into(), before + length.parse::<u32>().unwrap()).collect()
    }

    #[test]
    fn prefixes_name_the_regions_they_cover() {
        let table = [
            ("10.244.7.0/24", 1, "10.244.7.200", true),
            ("10.244.7.0/24", 1, "10.244.8.200", false),
            ("10.244.7.64/26", 1, "10.244.7.1", true),
            ("10.200.0.5/32", 1, "10.200.0.9", true),
            ("10.244.0.0/20", 16, "10.244.15.255", true),
            ("10.244.0.0/20", 16, "10.244.16.0", false),
            ("10.244.0.0/16", 256, "10.244.255.1", true),
            ("fd00:1:2:3::/64", 1, "fd00:1:2:3::9", true),
            ("fd00:1:2:3::/80", 1, "fd00:1:2:3:4::9", true),
            ("fd00:1:2::/56", 256, "fd00:1:2:ff::9", true),
            ("fd00:1:2::/56", 256, "fd00:1:3::9", false),
        ];
        for (prefix, count, inside, is_covered) in table {
            let regions = regions_of(prefix);
            assert_eq!(regions.len(), count, "{prefix}");
            assert!(!regions.contains(&ALL_FLOWS), "{prefix}");
            assert_eq!(regions.contains(&region(&address(inside))), is_covered, "{prefix}: {inside}");
        }
    }

    #[test]
    fn a_prefix_too_large_to_name_its_regions_is_all_flows() {
        for prefix in ["10.0.0.0/15", "0.0.0.0/0", "::/0", "::/64", "fd00::/55"] {
            assert_eq!(regions_of(prefix), [ALL_FLOWS], "{prefix}");
        }
    }

    #[test]
    fn subjects_spread_over_the_slots() {
        let endpoints: BTreeSet<_> = (1..=250).map(endpoint).collect();
        assert!(endpoints.len() > 230, "{} slots of 250 endpoints", endpoints.len());
        let nodes = (0..=255).map(|last| node(&Addr::from_v4([10, 200, 0, last])));
        let nodes: BTreeSet<_> = nodes.collect();
        assert!(nodes.len() > 235, "{} slots of 256 nodes", nodes.len());
    }

    proptest! {
        #[test]
        fn every_subject_has_a_slot_of_its_own_kind(id in any::<u32>(), quad in any::<[u8; 4]>()) {
            let address = Addr::from_v4(quad);
            for slot in [endpoint(id), uplink(id), node(&address), region(&address), service(id.into())] {
                prop_assert!(slot != ALL_FLOWS && usize::from(slot) < EPOCH_SLOTS);
            }
        }

        #[test]
        fn the_region_of_an_address_is_named_by_each_prefix_around_it(quad in any::<[u8; 4]>(), length in 16u32..=32) {
            let mask = u32::MAX << (32 - length);
            let network = (u32::from_be_bytes(quad) & mask).to_be_bytes();
            let mut named = regions(&Addr::from_v4(network), Addr::V4_PREFIX_BITS + length);
            let region = region(&Addr::from_v4(quad));
            prop_assert!(named.any(|slot| slot == region));
        }
    }
}
