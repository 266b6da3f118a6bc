//! What a listener costs: new connections of a pod to the world, while `podwire monitor` shows all
//! of them and while nobody listens.

use std::cell::{Cell, RefCell};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use xtask::lab::{Families, Node};

use crate::bench::Effort;
use crate::bench::client::Connections;
use crate::bench::comparison::{Comparison, Contestant, Ratio};
use crate::bench::record::{Record, Report, Target};
use crate::bench::site::{self, Place, Programs, Site, Way};

const QUIET: &str = "podwire, nobody listens";
const LISTENER: &str = "podwire, with a listener";
/// The time until a monitor listens, and until it has shown everything.
const SETTLING: Duration = Duration::from_millis(300);

pub(crate) fn measure(programs: &Programs, effort: Effort, report: &mut Report) -> Result<()> {
    let lab = site::podwire(programs, Way::VXLAN, Place::World, Families::V4)?;
    let node = lab.node(0);
    let client = node.add_pod("client")?;
    let site = Site::of_namespaces(LISTENER, &client, lab.world(), lab.world_addresses()[0]);
    // Both contestants share the ports: each turn has its own.
    let connections = RefCell::new(Connections::new(&site));
    let connect = || connections.borrow_mut().measure(effort.turn);
    let counts = Cell::new(Counts::default());
    let quiet = Contestant::new(QUIET, || Ok([connect()?]));
    let listener = Contestant::new(LISTENER, || {
        let monitor = Monitor::start(&programs.binaries, node)?;
        let rate = connect()?;
        let (before, turn) = (counts.get(), monitor.stop()?);
        counts.set(Counts { shown: before.shown + turn.shown, missing: before.missing + turn.missing });
        Ok([rate])
    });
    let figure = "listener-connect";
    let [comparison] = Comparison::run_all([(figure, "connections/s")], effort, vec![quiet, listener])?;
    comparison.record(figure, LISTENER, QUIET, Ratio::Plain, Some(Target::AtLeast(0.97)), report)?;
    report.charts.push(comparison.chart());
    let Counts { shown, missing } = counts.get();
    let share = shown as f64 / (shown + missing) as f64 * 100.0;
    report.records.push(Record::alone("listener-shown", "%", &[share], None));
    Ok(())
}

/// Events that a monitor has shown, and events that it has only counted.
#[derive(Clone, Copy, Default)]
struct Counts {
    shown: u64,
    missing: u64,
}

impl Counts {
    fn with(self, line: &str) -> Self {
        match line.split_once(" events ") {
            Some((missing, _)) => {
                Self { missing: self.missing + missing.parse::<u64>().unwrap_or(0), ..self }
            }
            None => Self { shown: self.shown + 1, ..self },
        }
    }
}

/// A running `podwire monitor`, and the reader of what it prints.
struct Monitor {
    child: Child,
    lines: Option<JoinHandle<Counts>>,
}

impl Monitor {
    fn start(binaries: &Path, node: &Node) -> Result<Self> {
        let mut child = Command::new(binaries.join("podwire"))
            .args(["monitor", "--kind", "flow,translation", "--run-dir"])
            .arg(node.run_dir())
            .stdout(Stdio::piped())
            .spawn()
            .context("start podwire monitor")?;
        let out = BufReader::new(child.stdout.take().context("no output of podwire monitor")?);
        let lines = thread::spawn(move || {
            out.lines().map_while(Result::ok).fold(Counts::default(), |counts, line| counts.with(&line))
        });
        thread::sleep(SETTLING);
        Ok(Self { child, lines: Some(lines) })
    }

    /// Returns what the monitor has shown.
    fn stop(mut self) -> Result<Counts> {
        thread::sleep(SETTLING);
        self.end();
        let lines = self.lines.take().context("a monitor stops once")?;
        lines.join().map_err(|_| anyhow!("the reader of podwire monitor has panicked"))
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.end();
    }
}
