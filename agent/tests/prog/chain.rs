//! One node's output is the next node's input: a request and its reply pass the hooks of two nodes.

use podwire_common::names::programs::{FROM_POD, FROM_UPLINK};
use podwire_common::reason::Path;
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::packets::*;

#[test]
fn a_request_and_its_reply_cross_two_nodes() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        for (request, answer) in [
            (tcp(40000, 80), Transport::Tcp { source: 80, destination: 40000, flags: 0x12 }),
            (udp(40000, 53), udp(53, 40000)),
            (Transport::EchoRequest { identifier: 7 }, Transport::EchoReply { identifier: 7 }),
        ] {
            let first = Fixture::new(mode);
            let link = first.pod_a;
            let request = Packet::new(POD_A, REMOTE_POD, request).macs(HOST_A_MAC, POD_A_MAC);
            let wire = on_link(&first.run(FROM_POD, link, &request.build(), 0).frame, UPLINK_MAC);

            let mut second = Fixture::node2(mode);
            let (link, pod_link) = (second.uplink, second.pod_a);
            let path = if mode == Mode::Vxlan { Path::TunnelIn } else { Path::DirectIn };
            // Two routers forward the packet, so its TTL is two less.
            let arrives = request.clone().with(|packet| packet.ttl -= 1).forwarded(POD_A_MAC, HOST_A_MAC);
            second.check("request", FROM_UPLINK, link, &wire, Expect::Redirect(path, arrives));
            let reply = Packet::new(REMOTE_POD, POD_A, answer).macs(HOST_A_MAC, POD_A_MAC);
            let wire = on_link(&second.run(FROM_POD, pod_link, &reply.build(), 0).frame, NODE2_MAC);
            drop(second);

            let mut first = Fixture::new(mode);
            let link = first.uplink;
            let arrives = reply.with(|packet| packet.ttl -= 1).forwarded(POD_A_MAC, HOST_A_MAC);
            first.check("reply", FROM_UPLINK, link, &wire, Expect::Redirect(path, arrives));
        }
    }
}

/// Returns the frame with the link addresses that the kernel writes after it has resolved the next
/// hop. In these tests the uplinks of both nodes have the same address. The sender's address is the
/// one that the receiver expects of its neighbour.
fn on_link(frame: &[u8], sender: [u8; 6]) -> Vec<u8> {
    [&UPLINK_MAC, &sender, &frame[12..]].concat()
}
