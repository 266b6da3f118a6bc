//! An agent that may not use some netlink sockets, as in a container with a strict seccomp profile.

use std::collections::BTreeMap;
use std::io;
use std::thread;

use podwire::conntrack::Conntrack;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use xtask::lab::{Lab, Node};

use crate::sweep::{comes, conditions, goes};

const FIREWALL: &str = "firewall-unreadable";
const CONNTRACK: &str = "conntrack-unavailable";

#[test]
fn refused_questions_to_netfilter_are_named() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    // The seccomp profile refuses.
    start_refused(node, libc::NETLINK_NETFILTER, libc::EPERM);
    let not_permitted = io::Error::from_raw_os_error(libc::EPERM).to_string();
    let said = comes(node, FIREWALL, &not_permitted);
    assert!(said.contains("firewall drops pods' packets") && said.contains("seccomp profile"), "{said}");
    let said = comes(node, CONNTRACK, &not_permitted);
    assert!(said.contains("query connection tracking") && said.contains("seccomp profile"), "{said}");
    node.restart_agent().unwrap();
    goes(node, FIREWALL);
    goes(node, CONNTRACK);
    assert_eq!(conditions(node), [""; 0]);

    // The kernel has no netfilter that could be asked, so it has no nftables.
    node.stop_agent().unwrap();
    start_refused(node, libc::NETLINK_NETFILTER, libc::EPROTONOSUPPORT);
    let said = comes(node, CONNTRACK, "Protocol not supported");
    assert_eq!(conditions(node), [said]);
    // The same with a protocol that is not netfilter's: the kernel has no IPsec.
    node.stop_agent().unwrap();
    start_refused(node, libc::NETLINK_XFRM, libc::EPROTONOSUPPORT);
    assert_eq!(conditions(node), [""; 0]);
    node.restart_agent().unwrap();
    assert_eq!(conditions(node), [""; 0]);
}

/// nftables uses the same protocol as connection tracking, so the kernel may open the socket and
/// answer no question.
#[test]
fn connection_tracking_that_does_not_answer_is_unavailable() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let asked = |effective| {
        let open = move || {
            let all = capabilities(None).unwrap();
            let effective = all.effective & effective;
            set_capabilities(None, rustix::thread::CapabilitySets { effective, ..all }).unwrap();
            Conntrack::open().map(drop).map_err(|error| error.raw_os_error())
        };
        lab.node(0).enter(open).unwrap()
    };
    assert_eq!(asked(CapabilitySet::all()), Ok(()));
    assert_eq!(asked(!CapabilitySet::NET_ADMIN), Err(Some(libc::EPERM)));
}

/// Starts an agent for which `socket()` fails with this error if the netlink protocol is this one.
/// A process keeps its filter for life.
fn start_refused(node: &Node, protocol: i32, error: i32) {
    let filter = refuse(protocol, error);
    thread::scope(|scope| {
        let start = || {
            // The filter holds for this thread and for what it starts.
            seccompiler::apply_filter(&filter).unwrap();
            node.start_agent().unwrap();
        };
        scope.spawn(start).join().unwrap();
    });
}

fn refuse(protocol: i32, error: i32) -> BpfProgram {
    let is = |argument, value: i32| {
        let value = value.try_into().unwrap();
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).unwrap()
    };
    let rule = SeccompRule::new(vec![is(0, libc::AF_NETLINK), is(2, protocol)]).unwrap();
    let refused = SeccompAction::Errno(error.try_into().unwrap());
    let rules = BTreeMap::from([(libc::SYS_socket, vec![rule])]);
    let here = std::env::consts::ARCH.try_into().unwrap();
    SeccompFilter::new(rules, SeccompAction::Allow, refused, here).unwrap().try_into().unwrap()
}
