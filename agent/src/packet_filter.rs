//! Which events a listener wants, and what the programs have to write for all of them.

use std::collections::BTreeSet;

use podwire_common::addr::{Addr, Be16};
use podwire_common::event::{Event, FILTER_ADDRESSES, FILTER_PORTS, Kind, Listening};

/// What one listener wants. An empty set is no condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Kinds of events.
    pub kinds: BTreeSet<Kind>,
    /// Numbers of reasons. With a reason, only drops match.
    pub reasons: BTreeSet<u16>,
    /// `FAMILY_BIT_*`; 0: any.
    pub families: u32,
    /// Numbers of protocols.
    pub protocols: BTreeSet<u8>,
    /// Ports of either end.
    pub ports: BTreeSet<u16>,
    /// Addresses of either end.
    pub addresses: BTreeSet<Addr>,
    /// Addresses of pods, one of which is an end. `Some` of nothing: no packet matches.
    pub pods: Option<BTreeSet<Addr>>,
}

impl Filter {
    /// Returns whether the listener wants an event.
    pub fn matches(&self, event: &Event) -> bool {
        fn has<T: Ord>(wanted: &BTreeSet<T>, found: impl IntoIterator<Item = T>) -> bool {
            wanted.is_empty() || found.into_iter().any(|one| wanted.contains(&one))
        }
        let flows = [event.flow, event.inner, event.translated];
        let ends = flows.iter().flat_map(|flow| [flow.source, flow.destination]);
        let ports = flows.iter().flat_map(|flow| [flow.source_port.get(), flow.destination_port.get()]);
        let protocols = flows.iter().map(|flow| flow.protocol);
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == event.kind);
        kind.is_some_and(|kind| self.wants_kind(kind))
            && has(&self.reasons, [event.outcome])
            && (self.families == 0 || self.families & event.family() != 0)
            && has(&self.protocols, protocols)
            && has(&self.ports, ports)
            && has(&self.addresses, ends.clone())
            && self.pods.as_ref().is_none_or(|pods| ends.clone().any(|end| pods.contains(&end)))
    }

    /// Returns whether the listener wants some events of a kind.
    pub fn wants_kind(&self, kind: Kind) -> bool {
        self.kinds().contains(&kind)
    }

    fn kinds(&self) -> BTreeSet<Kind> {
        let of_reasons = |kind: &Kind| self.reasons.is_empty() || *kind == Kind::Drop;
        // Packets come only when they are asked for: there may be a million of them in a second.
        let wanted = |kind: &Kind| match self.kinds.is_empty() {
            true => *kind != Kind::Packet,
            false => self.kinds.contains(kind),
        };
        Kind::ALL.into_iter().filter(|kind| of_reasons(kind) && wanted(kind)).collect()
    }

    /// Returns what the programs have to write for a listener. `None`: nothing.
    fn listening(&self) -> Option<Listening> {
        // A packet has to match both sets, so the smaller one is enough.
        let addresses = match &self.pods {
            Some(pods) if pods.is_empty() => return None,
            Some(pods) => pods,
            None => &self.addresses,
        };
        let mut wanted = Listening {
            kinds: self.kinds().into_iter().map(Kind::bit).fold(0, |all, bit| all | bit),
            ..Listening::EVERYTHING
        };
        if self.families != 0 {
            wanted.families = self.families;
        }
        if !self.reasons.is_empty() {
            wanted.reasons = self.reasons.iter().fold(0, |all, reason| all | 1 << (reason & 63));
        }
        if !self.protocols.is_empty() {
            wanted.protocols = [0; 4];
            for protocol in &self.protocols {
                wanted.protocols[usize::from(protocol / 64)] |= 1 << (protocol & 63);
            }
        }
        set_addresses(&mut wanted, addresses);
        set_ports(&mut wanted, &self.ports.iter().map(|port| Be16::new(*port)).collect());
        (wanted.kinds != 0).then_some(wanted)
    }
}

/// Returns what the programs have to write for several listeners: at least what each of them wants.
pub fn of_all<'a>(filters: impl IntoIterator<Item = &'a Filter>) -> Listening {
    let each = filters.into_iter().filter_map(Filter::listening);
    each.reduce(|one, other| both(&one, &other)).unwrap_or(Listening::NOBODY)
}

fn both(one: &Listening, other: &Listening) -> Listening {
    let mut wanted = Listening {
        kinds: one.kinds | other.kinds,
        families: one.families | other.families,
        // Who wants no drops wants no reason.
        reasons: reasons(one) | reasons(other),
        ..Listening::EVERYTHING
    };
    for (index, word) in wanted.protocols.iter_mut().enumerate() {
        *word = one.protocols[index] | other.protocols[index];
    }
    if let (Some(one), Some(other)) = (addresses(one), addresses(other)) {
        set_addresses(&mut wanted, &one.iter().chain(other).copied().collect());
    }
    if let (Some(one), Some(other)) = (ports(one), ports(other)) {
        set_ports(&mut wanted, &one.iter().chain(other).copied().collect());
    }
    wanted
}

fn reasons(wanted: &Listening) -> u64 {
    if wanted.kinds & Kind::Drop.bit() != 0 { wanted.reasons } else { 0 }
}

fn addresses(wanted: &Listening) -> Option<&[Addr]> {
    let count = wanted.address_count as usize;
    (count != 0).then(|| &wanted.addresses[..count])
}

fn ports(wanted: &Listening) -> Option<&[Be16]> {
    let count = wanted.port_count as usize;
    (count != 0).then(|| &wanted.ports[..count])
}

/// Sets the addresses, if the programs can compare so many.
fn set_addresses(wanted: &mut Listening, addresses: &BTreeSet<Addr>) {
    if addresses.len() <= FILTER_ADDRESSES {
        wanted.address_count = addresses.len() as u32;
        wanted.addresses.iter_mut().zip(addresses).for_each(|(place, address)| *place = *address);
    }
}

/// Sets the ports, if the programs can compare so many.
fn set_ports(wanted: &mut Listening, ports: &BTreeSet<Be16>) {
    if ports.len() <= FILTER_PORTS {
        wanted.port_count = ports.len() as u32;
        wanted.ports.iter_mut().zip(ports).for_each(|(place, port)| *place = *port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwire_common::abi::Flow;
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    fn address() -> impl Strategy<Value = Addr> {
        (0u8..6).prop_map(|last| Addr::from_v4([10, 244, 1, last]))
    }

    fn flow() -> impl Strategy<Value = Flow> {
        (address(), address(), 1u16..8, 1u16..8, prop_oneof![Just(6u8), Just(17), Just(132)]).prop_map(
            |(source, destination, from, to, protocol)| {
                Flow::new(source, destination, Be16::new(from), Be16::new(to), protocol)
            },
        )
    }

    fn event() -> impl Strategy<Value = Event> {
        let none_or = || prop_oneof![Just(Flow::default()), flow()];
        let ethertype = prop_oneof![Just(0x0800u16), Just(0x86dd), Just(0x0806)];
        (flow(), none_or(), none_or(), 1u8..4, 1u16..6, ethertype).prop_map(
            |(flow, inner, translated, kind, outcome, ethertype)| Event {
                flow,
                inner,
                // A translation never changes the protocol.
                translated: match kind == Kind::Translation as u8 && translated != Flow::default() {
                    true => Flow { protocol: flow.protocol, ..translated },
                    false => Flow::default(),
                },
                kind,
                outcome,
                ethertype: Be16::new(ethertype),
                ..Event::default()
            },
        )
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let kinds = btree_set((0usize..3).prop_map(|index| Kind::ALL[index]), 0..3);
        let protocols = btree_set(prop_oneof![Just(6u8), Just(17), Just(132)], 0..3);
        let pods = prop_oneof![Just(None), btree_set(address(), 0..4).prop_map(Some)];
        let reasons = btree_set(1u16..6, 0..2);
        (kinds, reasons, 0u32..8, protocols, btree_set(1u16..8, 0..6), btree_set(address(), 0..6), pods)
            .prop_map(|(kinds, reasons, families, protocols, ports, addresses, pods)| Filter {
                kinds,
                reasons,
                families,
                protocols,
                ports,
                addresses,
                pods,
            })
    }

    fn is_written(wanted: &Listening, event: &Event) -> bool {
        let is_kind = wanted.kinds >> event.kind & 1 != 0;
        let is_drop = event.kind == Kind::Drop as u8;
        is_kind && (!is_drop || wanted.wants_drop(event.outcome.into())) && wanted.wants_packet(event)
    }

    proptest! {
        #[test]
        fn programs_write_what_each_listener_wants(
            filters in proptest::collection::vec(filter(), 1..4), event in event()
        ) {
            let wanted = of_all(&filters);
            if filters.iter().any(|filter| filter.matches(&event)) {
                prop_assert!(is_written(&wanted, &event), "{wanted:?}");
            }
        }

        #[test]
        fn one_small_filter_is_exact_in_the_programs(filter in filter(), event in event()) {
            let is_small = filter.ports.len() <= FILTER_PORTS && filter.addresses.len() <= FILTER_ADDRESSES;
            // The programs compare one set of addresses, and of an ICMP error's protocol only one.
            prop_assume!(is_small && (filter.pods.is_none() || filter.addresses.is_empty()));
            prop_assert_eq!(is_written(&of_all([&filter]), &event), filter.matches(&event));
        }
    }

    #[test]
    fn without_filters_nobody_listens() {
        assert_eq!(of_all([]), Listening::NOBODY);
        let gone = Filter { pods: Some(BTreeSet::new()), ..Filter::default() };
        assert_eq!(of_all([&gone]), Listening::NOBODY);
        assert_eq!(of_all([&gone, &Filter::default()]), Listening::EVERYTHING);
    }
}
