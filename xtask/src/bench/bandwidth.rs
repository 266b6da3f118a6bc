//! How close TCP comes to the rate of a pod's limit, in both directions and at every place of the
//! other end.

use anyhow::Result;
use serde_json::json;
use xtask::lab::{Families, Lab, Mode, Ns};

use crate::bench::Effort;
use crate::bench::client::{Direction, Stream};
use crate::bench::record::{Record, Report, Target};
use crate::bench::site::{Place, Programs, Site, Way, podwire};

/// Rates of the limits, in megabits per second.
const RATES: [u32; 3] = [10, 100, 1000];
/// The deviation from the rate that still meets the target, as a share.
const TOLERANCE: f64 = 0.05;
/// The length of a stream in turns. A stream of this length hides the burst at its start.
const TURNS: u32 = 20;
/// The burst that Kubernetes and containerd ask for at every rate, in bits.
const BURST: u64 = (1 << 32) - 1;

const PLACES: [(&str, Mode, Place); 4] = [
    ("same-node", Mode::Vxlan, Place::SameNode),
    ("vxlan", Mode::Vxlan, Place::CrossNode),
    ("direct", Mode::Direct, Place::CrossNode),
    ("world", Mode::Vxlan, Place::World),
];

/// One limit at one place.
struct Case {
    figure: String,
    /// The limit, in megabits per second.
    rate: u32,
    direction: Direction,
    site: Site,
    /// The payload rate of each round, in Mbit/s.
    arrived: Vec<f64>,
}

pub(crate) fn measure(programs: &Programs, effort: Effort, report: &mut Report) -> Result<()> {
    let mut labs = Vec::new();
    let mut cases = Vec::new();
    for (name, mode, place) in PLACES {
        let lab = podwire(programs, Way { mode, ..Way::VXLAN }, place, Families::V4)?;
        cases.extend(cases_at(name, &lab, place)?);
        labs.push(lab);
    }
    for round in 1..=effort.rounds {
        for case in &mut cases {
            let stream = Stream::start(&case.site)?;
            case.arrived.push(stream.measure_in(case.direction, effort.turn * TURNS)? * 1000.0);
        }
        eprintln!("round {round} of {}", effort.rounds);
    }
    let target = Target::Between(1.0 - TOLERANCE, 1.0 + TOLERANCE);
    let of = |case: &Case| Record::beside(&case.figure, "Mbit/s", &case.arrived, case.rate.into(), target);
    report.records.extend(cases.iter().map(of));
    Ok(())
}

/// Adds a limited pod for each case, and one server for all cases.
fn cases_at(name: &str, lab: &Lab, place: Place) -> Result<Vec<Case>> {
    let node = lab.node(0);
    let (server, address): (Ns, _) = match place {
        Place::World => (lab.world().clone(), lab.world_address()),
        Place::SameNode | Place::CrossNode => {
            let pod = lab.nodes()[lab.nodes().len() - 1].add_pod("server")?;
            ((*pod).clone(), pod.address())
        }
    };
    let mut cases = Vec::new();
    for (direction, word) in [(Direction::FromServer, "ingress"), (Direction::ToServer, "egress")] {
        for rate in RATES {
            let figure = format!("bandwidth-{word}-{name}-{rate}");
            let limit =
                json!({ format!("{word}Rate"): u64::from(rate) * 1_000_000, format!("{word}Burst"): BURST });
            let pod = node.add_pod_with(&format!("{word}{rate}"), &json!({ "bandwidth": limit }))?;
            let site = Site::of_namespaces(&figure, &pod, &server, address);
            cases.push(Case { figure, rate, direction, site, arrived: Vec::new() });
        }
    }
    Ok(cases)
}
