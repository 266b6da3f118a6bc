//! The agent is replaced under traffic of every kind, and nothing is lost.

use std::fs;

use podwire_cni::fault::{Fault, Step, VARIABLE};
use xtask::lab::{Families, Lab, Mode, Node, is_soak};

use crate::flows::Flows;
use crate::sockets::wait_until;

#[test]
fn restart_under_traffic_loses_no_datagram_and_no_connection() {
    for (mode, families) in [
        (Mode::Vxlan, Families::Dual),
        (Mode::Direct, Families::DualV6First),
        (Mode::Vxlan, Families::V6Only),
        (Mode::Direct, Families::V4),
    ] {
        let lab = Lab::builder().mode(mode).families(families).build().unwrap();
        let flows = Flows::start(&lab);
        for round in 0..if is_soak() { 50 } else { 2 } {
            for node in lab.nodes() {
                // An operator stops it, or the kernel kills it when memory is short.
                let end = if round % 2 == 0 { node.stop_agent() } else { node.kill_agent() };
                end.unwrap();
            }
            flows.go_on();
            lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
            flows.go_on();
            flows.begin_anew(&lab);
        }
        flows.finish(&format!("agents restarted under traffic, {families:?}"), mode);
    }
}

#[test]
fn agent_that_dies_before_it_attaches_takes_no_programs_away() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let node = lab.node(0);
        let flows = Flows::start(&lab);
        for dead in 1..=2 {
            node.kill_agent().unwrap();
            die_before_attaching(node);
            assert_eq!(loads(node), 1 + dead);
            flows.go_on();
            // Known flows need no second program. Only new flows show that the attached programs
            // still find the second programs to which they jump.
            flows.begin_anew(&lab);
        }
        node.start_agent().unwrap();
        assert!(wait_until(|| (loads(node) == 1).then_some(())).is_some(), "{}", node.agent_log_tail(20));
        flows.go_on();
        flows.begin_anew(&lab);
        flows.finish("agents that die before they attach", mode);
    }
}

/// Starts an agent that dies after its programs are loaded and before one is attached.
pub fn die_before_attaching(node: &Node) {
    let dies = format!("{}:{}", Step::ProgramsReady.name(), Fault::Kill.name());
    node.start_agent_with(&[(VARIABLE, &dies)]).unwrap_err();
}

/// Returns how many loads of the programs still have pins.
pub fn loads(node: &Node) -> usize {
    fs::read_dir(node.bpf_dir().join("programs")).unwrap().count()
}
