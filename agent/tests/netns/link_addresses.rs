//! Nodes that send from several link addresses, as balance-alb bonds and VRRP routers do.

use podwire_common::reason::Drop;
use podwire_common::reason::Path::{DirectIn, DirectOut};
use xtask::lab::frames::Capture;
use xtask::lab::{Lab, Mode, traffic};

use crate::check::{Counted, Row, check};
use crate::headers::ends;
use crate::{FAMILIES, Place as _, reach};

/// The address that replaces node2's.
const ANOTHER: [u8; 6] = [2, 0, 0, 0, 0xab, 1];

#[test]
fn a_node_may_send_from_several_link_addresses() {
    let lab = lab(&[]);
    let (pod, far) = (lab.node(0).add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
    let capture = Capture::start(lab.node(0), lab.node(0).uplink()).unwrap();
    let ways = [(0, DirectOut), (0, DirectIn), (1, DirectOut), (1, DirectIn)];
    for family in FAMILIES {
        let (pod, far) = (pod.end(family), far.end(family));
        check(
            &lab,
            &[
                Row::new("to the node that does", pod, far).takes(&ways),
                Row::new("from the node that does", far, pod).takes(&ways),
            ],
        );
    }
    let frames = capture.finish().unwrap();
    for (_, far) in FAMILIES.map(|family| far.end(family)) {
        let is_so = |frame: &[u8]| frame[6..12] == ANOTHER && ends(frame).is_some_and(|ends| ends.0 == far);
        assert!(frames.iter().any(|frame| is_so(frame)), "{far} has not sent from the other link address");
    }
}

#[test]
fn such_a_nodes_pods_are_cut_off_where_asked_for() {
    let lab = lab(&["--link-addresses", "checked"]);
    let (pod, far) = (lab.node(0).add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
    // Let the nodes resolve each other: the nodes of a real cluster have done so before.
    reach(lab.node(0), lab.node(1));
    for address in far.addresses() {
        let before = Counted::quiet(&lab);
        let refused = traffic::udp_exchange(&pod, &far, *address, 8080, 100);
        assert!(refused.is_err(), "{refused:?}");
        let grown = Counted::quiet(&lab).since(&before);
        assert!(grown.drops(0).contains_key(Drop::PodSourceNotFromNode.name()), "{address}: {grown}");
    }
}

/// Returns a lab with a bridge that replaces the link address of node2's IP frames. ARP and the
/// options of neighbour discovery keep the true address.
fn lab(arguments: &[&str]) -> Lab {
    let lab = Lab::builder().mode(Mode::Direct).agent_arguments(arguments).build().unwrap();
    let another = ANOTHER.map(|byte| format!("{byte:02x}")).join(":");
    let rules = format!(
        "table bridge several {{ chain sent {{ type filter hook prerouting priority 0; iifname \"node2\" ether type {{ ip, ip6 }} ether saddr set {another}; }}; }}"
    );
    lab.underlay().exec(&["nft", &rules]).unwrap();
    lab
}
