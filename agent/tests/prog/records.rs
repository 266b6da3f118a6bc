//! What the programs have recorded about flows on a node: stack flows, translations and known
//! flows.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use aya::maps::{HashMap, MapData};
use podwire_common::abi;
use podwire_common::addr::{Be16, Mac};
use podwire_common::epoch;
use podwire_common::flow::{FlowAddr as _, protocol};
use podwire_common::names::programs::FROM_UPLINK;
use podwire_common::reason::Path;
use podwire_core::model::Mode;

use crate::family::{Address, Known, next_hop};
use crate::fixture::{
    Fixture, NODE1, NODE2_MAC, POD_A, POD_A_MAC, POD_B, REMOTE_POD, TRANSLATED, UPLINK_MAC, WORLD, flow_of,
};
use crate::kinds::{CLIENT, SERVER, ack, tunnelled};
use crate::packets;

impl Fixture {
    /// Returns the flows that must go through the host stack.
    pub fn stack_flows(&self) -> Vec<abi::Flow> {
        self.loaded.maps.stack_flows.keys().map(Result::unwrap).collect()
    }

    /// Records a flow that must go through the host stack.
    pub fn add_stack_flow(&mut self, flow: abi::Flow) {
        self.loaded.maps.stack_flows.insert(flow, abi::StackFlow { last_seen: 0 }, 0).unwrap();
    }

    /// Makes the flows that outside clients began older.
    pub fn age_inbound_flows(&mut self, by: Duration) {
        let flows: Vec<_> = self.loaded.maps.inbound_flows.iter().map(Result::unwrap).collect();
        for (flow, abi::InboundFlow { last_seen }) in flows {
            // The clock of a machine that has just started may be less than `by`.
            let last_seen = last_seen.wrapping_sub(by.as_nanos() as u64);
            self.loaded.maps.inbound_flows.insert(flow, abi::InboundFlow { last_seen }, 0).unwrap();
        }
    }

    /// Adds the reply's half of another flow's translation.
    pub fn add_translation(&mut self, reply: abi::Flow) {
        self.loaded.maps.translations.insert(reply, other_half(), 0).unwrap();
    }

    /// Lets every translated flow go past the host stack. A test run cannot reach this state by
    /// itself: the hooks pass on the host rules' answer about a first packet in `tc_index`, and no
    /// test run can set that field.
    pub fn set_past_stack(&mut self) {
        for (flow, half) in self.translations() {
            let half = abi::Translation { past_stack: 1, is_long: 1, ..half };
            self.loaded.maps.translations.insert(flow, half, 0).unwrap();
        }
    }

    /// Like [`Self::set_past_stack`], but no packet has gone past the stack yet: `is_long` stays as
    /// it is. `asked` is the time, in jiffies, when the host's rules were asked.
    pub fn set_asked(&mut self, asked: u32) {
        for (flow, half) in self.translations() {
            let half = abi::Translation { past_stack: 1, asked, ..half };
            self.loaded.maps.translations.insert(flow, half, 0).unwrap();
        }
    }

    /// Returns the kernel's jiffies, which a program writes into a new entry.
    pub fn jiffies(&mut self) -> u32 {
        let packet = packets::Packet::new(REMOTE_POD, POD_A, ack(1, 1));
        let frame = match self.model.mode {
            Mode::Vxlan => tunnelled(&packet),
            Mode::Direct => packet.macs(UPLINK_MAC, NODE2_MAC).build(),
        };
        self.run(FROM_UPLINK, self.uplink, &frame, 0);
        let key = flow_of(REMOTE_POD, POD_A, (1, 1), protocol::TCP).key();
        let known = self.loaded.maps.flows.get(&key, 0).expect("a flow between pods is remembered");
        self.loaded.maps.flows.remove(&key).unwrap();
        known.asked
    }

    /// Returns the known flow for the destination of a flow of pod A. `asked` is the time, in
    /// jiffies, when the host's rules were asked.
    pub fn destination<A: Address>(&self, flow: &abi::Flow, asked: u32) -> Known<A> {
        let slots = epoch::with_world(1, self.uplink, &flow.destination);
        abi::KnownFlow {
            key: A::Stored::destination_key(flow),
            epochs: self.loaded.maps.sum_of_epochs(&slots),
            asked,
            slots,
            from: self.pod_a,
            to: self.uplink,
            mtu: 1500,
            sender_mac: Mac { bytes: POD_A_MAC },
            flags: abi::FLOW_OF_SENDER | abi::FLOW_REWRITES_SOURCE,
            leaves: abi::LEAVES_BY_UPLINK,
            macs: abi::Macs::default(),
            source: A::Stored::of(&A::NODE1.into()),
            destination: A::Stored::of(&flow.destination),
            source_port: Be16::ZERO,
            destination_port: flow.destination_port,
            path: Path::SnatOut as u16,
            reserved: [0; 2],
            next_hop: next_hop(A::NODE2),
            tunnel: abi::Tunnel::NONE,
            reserved2: [0; 4],
        }
    }

    /// Adds the known flow for a flow's destination, as if the host's rules had just let a
    /// connection of pod A to it pass unchanged.
    pub fn know_destination<A: Address>(&mut self, flow: &abi::Flow) -> Known<A> {
        let now = self.jiffies();
        let known = self.destination::<A>(flow, now);
        A::insert_known(&mut self.loaded.maps, &known.key, known);
        known
    }

    /// Empties `FLOWS` and `FLOWS6`.
    pub fn forget_known(&mut self) {
        empty(&mut self.loaded.maps.flows);
        empty(&mut self.loaded.maps.flows6);
    }

    /// Empties `STACK_FLOWS` and `TRANSLATIONS`.
    pub fn forget_recorded(&mut self) {
        empty(&mut self.loaded.maps.stack_flows);
        empty(&mut self.loaded.maps.translations);
    }

    /// Adds a connection of a pod to the world that both sides closed long ago. SNAT kept its port.
    pub fn add_closed(&mut self, pod: Ipv4Addr, port: u16, server: Ipv4Addr, server_port: u16) {
        let (port, server_port) = (Be16::new(port), Be16::new(server_port));
        let original = abi::Flow::new(pod.into(), server.into(), port, server_port, protocol::TCP);
        let out = abi::Translation {
            asked: 0,
            last_seen: 1,
            source: NODE1.into(),
            destination: server.into(),
            source_port: port,
            destination_port: server_port,
            ifindex: self.uplink,
            kind: abi::TRANSLATION_SNAT,
            reply: 0,
            state: abi::STATE_REPLIED | abi::STATE_FIN | abi::STATE_REPLY_FIN,
            hairpin: 0,
            past_stack: 0,
            is_long: 0,
            service: 0,
            list: 0,
        };
        let back = abi::Translation {
            source: original.destination,
            destination: original.source,
            source_port: server_port,
            destination_port: port,
            reply: 1,
            ..out
        };
        self.loaded.maps.translations.insert(original, out, 0).unwrap();
        self.loaded.maps.translations.insert(out.other_half(protocol::TCP), back, 0).unwrap();
    }

    /// Adds both halves of a flow of pod A to the world that goes past the host stack.
    pub fn translate<A: Address>(&mut self, protocol: u8) {
        let original = flow_of(A::POD_A, A::WORLD, (CLIENT, SERVER), protocol);
        let half = abi::Translation {
            asked: 0,
            last_seen: u64::MAX / 2,
            source: A::NODE1.into(),
            destination: A::WORLD.into(),
            source_port: Be16::new(TRANSLATED),
            destination_port: Be16::new(SERVER),
            ifindex: self.uplink,
            kind: abi::TRANSLATION_SNAT,
            reply: 0,
            state: abi::STATE_REPLIED,
            hairpin: 0,
            past_stack: 1,
            is_long: 1,
            service: 0,
            list: 0,
        };
        let back = abi::Translation {
            source: A::WORLD.into(),
            destination: A::POD_A.into(),
            source_port: Be16::new(SERVER),
            destination_port: Be16::new(CLIENT),
            reply: 1,
            ..half
        };
        let translations = &mut self.loaded.maps.translations;
        translations.insert(original, half, 0).unwrap();
        translations.insert(half.other_half(protocol), back, 0).unwrap();
    }

    /// Adds replies' halves until the table is full. `false`: all of them found room.
    pub fn fill_translations(&mut self, replies: impl Iterator<Item = abi::Flow>) -> bool {
        let half = other_half();
        replies.into_iter().any(|reply| self.loaded.maps.translations.insert(reply, half, 0).is_err())
    }

    /// Removes one entry, so that the table has room for another.
    pub fn remove_one_translation(&mut self) {
        let flow = self.loaded.maps.translations.keys().next().unwrap().unwrap();
        self.loaded.maps.translations.remove(&flow).unwrap();
    }

    /// Returns the holders, with their numbers of entries.
    pub fn holders(&self) -> BTreeMap<abi::Holder, u32> {
        self.loaded.maps.holders.iter().map(Result::unwrap).collect()
    }

    /// Sets a holder's number of entries.
    pub fn set_holder(&mut self, holder: abi::Holder, entries: u32) {
        self.loaded.maps.holders.insert(holder, entries, 0).unwrap();
    }

    /// Returns the free entries of `TRANSLATIONS` as the programs count them.
    pub fn room_for_translations(&self) -> usize {
        self.loaded.maps.room.get(&abi::TABLE_TRANSLATIONS.into(), 0).unwrap() as usize
    }

    /// Sets the number of free entries of `TRANSLATIONS`.
    pub fn set_room_for_translations(&mut self, entries: u32) {
        self.loaded.maps.room.set(abi::TABLE_TRANSLATIONS.into(), entries, 0).unwrap();
    }

    /// Returns all translations.
    pub fn translations(&self) -> BTreeMap<abi::Flow, abi::Translation> {
        self.loaded.maps.translations.iter().map(Result::unwrap).collect()
    }
}

fn empty<K: aya::Pod, V: aya::Pod>(map: &mut HashMap<MapData, K, V>) {
    let keys: Vec<_> = map.keys().map(Result::unwrap).collect();
    keys.iter().for_each(|key| map.remove(key).unwrap());
}

/// Returns the reply's half of another pod's translation.
fn other_half() -> abi::Translation {
    abi::Translation {
        asked: 0,
        last_seen: 0,
        source: WORLD.into(),
        destination: POD_B.into(),
        source_port: Be16::new(443),
        destination_port: Be16::new(1),
        ifindex: 1,
        kind: abi::TRANSLATION_SNAT,
        reply: 1,
        state: abi::STATE_REPLIED,
        hairpin: 0,
        past_stack: 0,
        is_long: 0,
        service: 0,
        list: 0,
    }
}
