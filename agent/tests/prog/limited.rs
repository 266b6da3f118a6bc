//! Pods with a bandwidth limit. Packets that go past the host stack to such a pod still go through
//! the queue of the pod's link. The guard accounts for each packet that such a pod sends.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU64;

use podwire_common::abi;
use podwire_common::helper::Helper;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK, TO_UPLINK};
use podwire_common::reason::Drop as Reason;
use podwire_core::model::Mode;
use podwire_core::model::{Bandwidth, Limit};

use crate::counting::{self, Counts};
use crate::family::{Address, IpPacket as _};
use crate::fixture::{Expect, Fixture};
use crate::fixture6::dual;
use crate::kind::Kind;
use crate::kinds::{CLIENT, SERVER, arriving, by_setting, from_a, out};
use crate::packets::udp;

/// Gives both pods limits.
fn limit(node: &mut Fixture, bandwidth: Bandwidth) {
    node.model.endpoints.values_mut().for_each(|endpoint| endpoint.bandwidth = bandwidth);
    node.fill();
}

fn megabit() -> Option<Limit> {
    Some(Limit { rate: NonZeroU64::new(1_000_000).unwrap(), burst: None })
}

/// Returns the numbers of calls that send a packet to the other end of a link, and to a link.
fn sent(kind: &Kind, node: &mut Fixture) -> [u64; 2] {
    let counts = Counts::of(kind, node);
    [Helper::RedirectPeer, Helper::Redirect].map(|helper| counts.sum(|called| called == helper))
}

#[test]
fn nothing_gets_into_a_limited_pod_past_the_queue_of_its_link() {
    let mut delivered = 0;
    for (setting, kinds) in by_setting() {
        // Use one node at a time: the thread is in its namespace.
        let mut node = setting.node(counting::take);
        let free: Vec<_> = kinds.iter().map(|kind| (kind, sent(kind, &mut node))).collect();
        drop(node);
        let mut node = setting.node(counting::take);
        limit(&mut node, Bandwidth { ingress: megabit(), egress: None });
        for (kind, [peer, link]) in free.into_iter().filter(|(_, [peer, _])| *peer > 0) {
            let limited = sent(kind, &mut node);
            assert_eq!(
                limited,
                [0, peer + link],
                "{}: {}: packets to the peer, and to the link",
                kind.program,
                kind.name
            );
            delivered += 1;
        }
        assert_none_leads_into_pods::<Ipv4Addr>(&node);
        assert_none_leads_into_pods::<Ipv6Addr>(&node);
    }
    assert!(delivered > 50, "only {delivered} kinds of packets are delivered past the host stack");
}

fn assert_none_leads_into_pods<A: Address>(node: &Fixture) {
    for (_, known) in A::all_known(&node.loaded.maps) {
        assert!(![node.pod_a, node.pod_b].contains(&known.to), "{known:?} leads past the queue");
    }
}

#[test]
fn each_packet_of_a_limited_pod_meets_the_guard() {
    check_guard::<Ipv4Addr>();
    check_guard::<Ipv6Addr>();
}

fn check_guard<A: Address>() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = dual(mode);
        limit(&mut node, Bandwidth { ingress: None, egress: megabit() });
        let answered = |node: &mut Fixture| {
            node.run(TO_UPLINK, node.uplink, &out(A::POD_A, A::WORLD, udp(CLIENT, SERVER)).build(), 0);
            node.run(FROM_UPLINK, node.uplink, &arriving(A::WORLD, A::NODE1, udp(SERVER, CLIENT)).build(), 0);
            node.set_past_stack();
        };
        for to in [A::POD_B, A::REMOTE_POD, A::WORLD] {
            let link = node.pod_a;
            let guard = node.loaded.maps.guards.get(&link, 0).unwrap();
            answered(&mut node);
            let frame = from_a(to, udp(CLIENT, SERVER)).build();
            for packet in 0..3 {
                let before = node.loaded.maps.guards.get(&link, 0).unwrap().paid;
                node.run(FROM_POD, link, &frame, 0);
                let after = node.loaded.maps.guards.get(&link, 0).unwrap().paid;
                let cost = frame.len() as u64 * guard.cost / 1000;
                assert!(
                    after >= before + cost,
                    "{mode:?}, to {to:?}, packet {packet}: it was not accounted for"
                );
                let known = A::all_known(&node.loaded.maps);
                let is_known = known.iter().any(|(_, known)| known.from == link);
                assert!(!is_known, "{mode:?}, to {to:?}: its flow is known");
            }
            // A large segment costs as much as its frames. So a sender of small payloads pays for
            // all headers.
            let large = [&frame[..], &[0; 2000]].concat();
            let paid = || node.loaded.maps.guards.get(&link, 0).unwrap().paid;
            let (before, frames) = (paid(), large.len() as u64 + 18 * 42);
            node.run(FROM_POD, link, &large, 100);
            assert!(paid() >= before + frames * guard.cost / 1000, "{mode:?}, to {to:?}: headers are free");
            // `paid` is far ahead of now, as after a pod has bypassed its queue.
            let spent = abi::Guard { paid: u64::MAX / 2, ..guard };
            node.loaded.maps.guards.insert(link, spent, 0).unwrap();
            node.check("too much", FROM_POD, link, &frame, Expect::Drop(Reason::EgressLimitExceeded));
            let left = node.loaded.maps.guards.get(&link, 0).unwrap();
            assert_eq!(left, spent, "what is dropped costs nothing");
            // The agent keeps an entry that differs only in what the programs write.
            node.fill();
            assert_eq!(node.loaded.maps.guards.get(&link, 0).unwrap(), spent);
            node.loaded.maps.guards.insert(link, guard, 0).unwrap();
        }
    }
}
