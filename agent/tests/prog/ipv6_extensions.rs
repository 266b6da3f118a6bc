//! Extension headers of IPv6.

use podwire_common::flow::protocol;
use podwire_common::names::programs::FROM_POD;
use podwire_common::reason::Drop as Reason;
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::fixture6::*;
use crate::ipv6::{delivered, to};
use crate::packets::udp;
use crate::packets6::Extension;

#[test]
fn extension_headers_are_walked_along_up_to_a_bound() {
    let mut node = node(Mode::Vxlan);
    let link = node.pod_a;
    let with = |kinds: &[u8]| {
        to(NEIGHBOUR, udp(40000, 80))
            .with(|packet| packet.extensions = kinds.iter().map(|kind| Extension::of(*kind)).collect())
    };
    const HOP: u8 = protocol::HOP_BY_HOP;
    const DESTINATION: u8 = protocol::DESTINATION_OPTIONS;
    for kinds in [
        &[HOP][..],
        &[protocol::ROUTING],
        &[DESTINATION],
        &[protocol::AH],
        &[HOP, DESTINATION],
        &[DESTINATION, HOP],
        &[protocol::AH, DESTINATION],
        &[DESTINATION, protocol::AH],
        &[DESTINATION, DESTINATION],
        &[HOP, DESTINATION, protocol::ROUTING, protocol::AH, DESTINATION, DESTINATION],
    ] {
        let packet = with(kinds);
        node.check(&format!("{kinds:?}"), FROM_POD, link, &packet.build(), delivered(&packet));
    }
    let seven = with(&[DESTINATION; 7]).build();
    node.check("seven", FROM_POD, link, &seven, Expect::Drop(Reason::ExtensionHeaders));
    for length in [1, 4, 7] {
        let mut cut = with(&[HOP]).build();
        cut.truncate(14 + 40 + length);
        node.check(&format!("{length} bytes"), FROM_POD, link, &cut, Expect::Drop(Reason::Truncated));
    }
    // The header says that it is longer than the packet.
    let beyond = with(&[DESTINATION]).with(|packet| packet.extensions[0].rest[0] = 9).build();
    node.check("a length beyond the packet", FROM_POD, link, &beyond, Expect::Drop(Reason::BadIpHeader));
}
