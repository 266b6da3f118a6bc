//! Measurements beside a steady rate of changes that have nothing to do with them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xtask::lab::Lab;

use crate::bench::agent_cost::on_core;
use crate::bench::crowd::read_gauge;

/// The core of the agents and of the changes. The flow's ends are on the other core.
pub(crate) const CORE: usize = 0;

/// How fast things change.
pub(crate) struct Changes {
    /// Changes in a second. The first node's agent writes at least one entry for each.
    pub(crate) rate: u32,
    /// The time from the first change until the agent works on changes.
    pub(crate) beginning: Duration,
    /// The time for which the agent collects changes before it makes them.
    pub(crate) collecting: Duration,
}

impl Changes {
    /// Measures while `change` makes the changes on [`CORE`], until its flag is set. Fails if the
    /// agent did not follow.
    pub(crate) fn beside<T: Send>(
        &self,
        lab: &Lab,
        change: impl FnOnce(&AtomicBool) -> Result<()> + Send,
        measure: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let changing = scope.spawn(|| on_core(CORE, || change(&is_over)));
            thread::sleep(self.beginning);
            let operations = || read_gauge(lab.node(0), "podwire_operations_total");
            let (start, before) = (Instant::now(), operations()?);
            let measured = measure();
            let written = operations()? - before;
            let elapsed = start.elapsed().as_secs_f64();
            is_over.store(true, Ordering::Relaxed);
            changing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let least = (elapsed - self.collecting.as_secs_f64()) * f64::from(self.rate);
            ensure!(
                written as f64 >= least,
                "{written} operations in {elapsed:.1} s: too few for {} changes a second",
                self.rate
            );
            measured
        })
    }
}
