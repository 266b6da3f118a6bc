//! The cost of a large cluster: ADD and forwarding, compared with a cluster of two nodes, and the
//! agent's own cost.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use xtask::lab::{CniCall, Families, Node, Ns};

use crate::bench::client::Transport;
use crate::bench::cni::{call, delete, milliseconds};
use crate::bench::comparison::{Comparison, Ratio};
use crate::bench::crowd::{Crowd, WAY};
use crate::bench::record::{Report, Target};
use crate::bench::site::{self, Place, Programs, Site};
use crate::bench::statistics::median;
use crate::bench::{Effort, agent_cost, contest};

const CROWDED: &str = "podwire, 250 pods, 5,000 nodes";
const EMPTY: &str = "podwire, alone";
/// Calls of a round. A DEL follows each call.
const CALLS: usize = 20;
/// The pause after a DEL, so that work left by the DEL does not slow down the next call:
/// - The kernel searches connection tracking, which all nodes of a lab share, for connections that
///   were masqueraded to the removed device.
/// - The agent searches its tables for the pod's flows.
const AFTER_DEL: Duration = Duration::from_millis(200);

pub(crate) fn measure(programs: &Programs, effort: Effort, report: &mut Report) -> Result<()> {
    agent_cost::apply(programs, effort, report)?;
    let crowd = Crowd::assemble(programs)?;
    agent_cost::at_rest(&crowd, report)?;
    agent_cost::with_flows(&crowd, report)?;
    let empty = site::podwire(programs, WAY, Place::CrossNode, Families::V4)?;
    adds(&crowd, empty.node(0), effort, report)?;
    let (client, server, elsewhere) = (
        empty.node(0).add_pod("client")?,
        empty.node(0).add_pod("server")?,
        empty.node(1).add_pod("elsewhere")?,
    );
    let (first, second) = (&crowd.pods[0], &crowd.pods[1]);
    let same_node = [Site::of_pods(CROWDED, first, second), Site::of_pods(EMPTY, &client, &server)];
    let cross_node =
        [Site::of_pods(CROWDED, first, &crowd.elsewhere), Site::of_pods(EMPTY, &client, &elsewhere)];
    for (figure, sites) in [("forward-scale-same-node", same_node), ("forward-scale-cross-node", cross_node)]
    {
        crowd.refresh_flows()?;
        crowd.check_flows()?;
        let latencies = contest::round_trips(figure, Transport::Udp, &sites, effort)?;
        crowd.check_flows()?;
        let target = Some(Target::AtMost(1.1));
        latencies.one_way.record(figure, CROWDED, EMPTY, Ratio::Plain, target, report)?;
        report.charts.push(latencies.one_way.chart());
    }
    Ok(())
}

/// Adds one more pod, on the full node and on the empty node in turns.
fn adds(crowd: &Crowd, empty: &Node, effort: Effort, report: &mut Report) -> Result<()> {
    let prepared = |node: &Node| -> Result<CniCall> {
        let call = call(node, "more");
        Ns::create(&call.container_id)?;
        Ok(call)
    };
    let (mut crowded, mut empty) = (prepared(crowd.node())?, prepared(empty)?);
    let mut rounds = [const { Vec::new() }; 4];
    for round in 0..=effort.rounds {
        crowd.refresh_flows()?;
        let mut times = [const { Vec::new() }; 4];
        for call in 0..CALLS {
            // Use a new container ID for each call, as a runtime does. An ADD of the same ID would
            // wait until the agent has purged the deleted pod's flows.
            for other in [&mut crowded, &mut empty] {
                other.container_id = format!("more-{round}-{call}");
            }
            let mut order = [(0, &crowded), (1, &empty)];
            if call % 2 == 1 {
                order.reverse();
            }
            for (which, node) in order {
                times[which].push(milliseconds(&node.run()?)?);
            }
            for (which, node) in order {
                times[2 + which].push(delete(node)?);
                thread::sleep(AFTER_DEL);
            }
        }
        if round > 0 {
            rounds.iter_mut().zip(&times).for_each(|(rounds, times)| rounds.push(median(times)));
        }
    }
    crowd.check_flows()?;
    let [crowded, empty, crowded_del, empty_del] = rounds;
    let at_most = Some(Target::AtMost(1.1));
    for (figure, crowded, empty, target) in
        [("cni-add-scale", crowded, empty, at_most), ("cni-del-scale", crowded_del, empty_del, None)]
    {
        let comparison = Comparison::of_rounds(figure, "ms", vec![(CROWDED, crowded), (EMPTY, empty)]);
        comparison.record(figure, CROWDED, EMPTY, Ratio::Plain, target, report)?;
        report.charts.push(comparison.chart());
    }
    Ok(())
}
