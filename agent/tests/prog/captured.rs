//! Packets that come to the hooks, while somebody captures them.

use std::net::Ipv4Addr;

use podwire_common::addr::Be16;
use podwire_common::event::{FILTER_PORTS, Kind as EventKind, Listening, Packet as Captured, SNAP_LENGTH};
use podwire_common::names::programs::{FROM_BARE_UPLINK, FROM_POD, FROM_UPLINK};
use podwire_common::reason::Hook;
use podwire_core::model::Mode;

use crate::family::Address as _;
use crate::fixture::Fixture;
use crate::fixture6::dual;
use crate::kinds::{CLIENT, SERVER, by_setting, from_a};
use crate::packets::udp;
use crate::pool::Loaded;

const PACKETS: Listening = Listening { kinds: EventKind::Packet.bit(), ..Listening::EVERYTHING };

fn captured(node: &mut Fixture) -> Vec<Captured> {
    node.records().iter().filter_map(|record| Captured::of_record(record)).collect()
}

#[test]
fn each_hook_gives_each_packet_once_and_then_judges_it() {
    for (setting, kinds) in by_setting() {
        let mut node = setting.node(Loaded::take);
        for kind in kinds {
            node.listen(&Listening::NOBODY);
            let mut ready = kind.on(&mut node);
            let what = format!("{}: {}", kind.program, kind.name);
            // Without a listener for drops, only the packet is in the ring.
            ready.node.listen(&PACKETS);
            ready.node.records();
            // It checks the outcome, too.
            ready.send(1);
            let captured = captured(ready.node);
            // A link without link header gets one before its packets come to the uplink's program.
            let program = if kind.program == FROM_BARE_UPLINK { FROM_UPLINK } else { kind.program };
            // XDP programs cannot jump to the one that writes packets.
            let is_it = |hook: &&Hook| hook.name() == program && **hook != Hook::UplinkXdp;
            let hook = Hook::ALL.iter().find(is_it).copied();
            let hooks: Vec<_> = captured.iter().map(|packet| packet.event.hook).collect();
            assert_eq!(hooks, hook.map(|hook| hook as u8).into_iter().collect::<Vec<_>>(), "{what}");
        }
    }
}

#[test]
fn a_captured_packet_has_its_first_bytes() {
    let mut node = dual(Mode::Vxlan);
    let link = node.pod_a;
    for payload in [0, 1, SNAP_LENGTH, 1000] {
        let mut frame = from_a(Ipv4Addr::POD_B, udp(CLIENT, SERVER)).build();
        frame.extend((0..payload).map(|byte| byte as u8));
        node.listen(&PACKETS);
        node.records();
        node.run(FROM_POD, link, &frame, 0);
        let [packet] = &captured(&mut node)[..] else { panic!("one packet") };
        assert_eq!(packet.data(), &frame[..frame.len().min(SNAP_LENGTH)]);
        assert_eq!((packet.event.length as usize, packet.event.link), (frame.len(), link));
        assert_eq!(packet.event.flow.source_port.get(), CLIENT);
    }
    node.listen(&Listening::NOBODY);
    node.run(FROM_POD, link, &from_a(Ipv4Addr::POD_B, udp(CLIENT, SERVER)).build(), 0);
    assert_eq!(captured(&mut node).len(), 0);
    let others = Listening { port_count: 1, ports: [Be16::new(SERVER + 1); FILTER_PORTS], ..PACKETS };
    node.listen(&others);
    node.run(FROM_POD, link, &from_a(Ipv4Addr::POD_B, udp(CLIENT, SERVER)).build(), 0);
    assert_eq!(captured(&mut node).len(), 0, "another port is wanted");
}
