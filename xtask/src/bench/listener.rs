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
    let (made, shown) = (Cell::new(0.0), Cell::new(0));
    let quiet = Contestant::new(QUIET, || Ok([connect()?]));
    let listener = Contestant::new(LISTENER, || {
        let monitor = Monitor::start(&programs.binaries, node)?;
        let rate = connect()?;
        made.set(made.get() + rate * effort.turn.as_secs_f64());
        shown.set(shown.get() + monitor.stop()?);
        Ok([rate])
    });
    let figure = "listener-connect";
    let [comparison] = Comparison::run_all([(figure, "connections/s")], effort, vec![quiet, listener])?;
    comparison.record(figure, LISTENER, QUIET, Ratio::Plain, Some(Target::AtLeast(0.97)), report)?;
    report.charts.push(comparison.chart());
    let share = shown.get() as f64 / made.get() * 100.0;
    report.records.push(Record::alone("listener-shown", "%", &[share], None));
    Ok(())
}

/// A running `podwire monitor`, and the reader of what it prints.
struct Monitor {
    child: Child,
    lines: Option<JoinHandle<usize>>,
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
            let lines = out.split(b'\n').map_while(Result::ok);
            lines.filter(|line| !line.windows(11).any(|text| text == b"are missing")).count()
        });
        thread::sleep(SETTLING);
        Ok(Self { child, lines: Some(lines) })
    }

    /// Returns how many events the monitor has shown.
    fn stop(mut self) -> Result<usize> {
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
