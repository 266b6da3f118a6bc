//! The agent is replaced under traffic of every kind, and nothing is lost.

use xtask::lab::{Lab, Mode};

use crate::flows::Flows;

#[test]
fn restart_under_traffic_loses_no_datagram_and_no_connection() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let flows = Flows::start(&lab);
        for round in 0..if crate::soak() { 50 } else { 2 } {
            for node in lab.nodes() {
                // As an operator does, and as the kernel does when memory is short.
                let end = if round % 2 == 0 { node.stop_agent() } else { node.kill_agent() };
                end.unwrap();
            }
            flows.go_on();
            lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
            flows.go_on();
            flows.begin_anew(&lab);
        }
        flows.finish("agents restarted under traffic", mode);
    }
}
