//! The kernel's notices about changes that others make.

use podwire::links::Changes;
use xtask::lab::{Lab, Ns};

#[test]
fn a_change_of_whatever_is_listed_is_noticed_once() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let ns = lab.add_namespace("changing").unwrap();
    let mut changes = ns.enter(Changes::listen).unwrap().unwrap();
    assert!(!changes.any(), "nothing has changed yet");
    for change in [
        "ip link set dev lo mtu 9000",
        "ip address add 192.0.2.1/24 dev lo",
        "ip route add 198.51.100.0/24 dev lo",
        "ip route add 198.51.100.0/24 dev lo table 100",
        "ip rule add from 192.0.2.1 table 100",
        "ip route del 198.51.100.0/24",
        "tc qdisc add dev lo clsact",
        "tc qdisc del dev lo clsact",
    ] {
        ns.exec(&change.split(' ').collect::<Vec<_>>()).unwrap();
        assert!(changes.any(), "`{change}` was not noticed");
        assert!(!changes.any(), "`{change}` was noticed twice");
    }
}

#[test]
fn more_changes_than_the_kernel_keeps_notices_of_are_a_change() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let ns = lab.add_namespace("changing").unwrap();
    let mut changes = ns.enter(Changes::listen).unwrap().unwrap();
    add_routes(&ns, 5000);
    assert!(changes.any());
    // After the loss, the kernel may still deliver notices that it kept.
    assert!((0..3).any(|_| !changes.any()), "the notices do not end");
}

fn add_routes(ns: &Ns, count: u32) {
    let routes =
        (0..count).map(|number| format!("route add blackhole 10.{}.{}.0/24\n", number / 256, number % 256));
    ns.ip(&routes.collect::<String>()).unwrap();
}
