//! A running `podwire monitor`.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::lab::Ns;

/// The longest wait for a line.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running `podwire monitor`. It ends with this value.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    /// What it prints.
    pub lines: Receiver<String>,
}

impl Monitor {
    pub(crate) fn start(ns: &Ns, mut command: Command) -> Result<Self> {
        let mut child = ns.enter(|| command.stdout(Stdio::piped()).spawn())?.context("start the monitor")?;
        let out = BufReader::new(child.stdout.take().context("the monitor's output")?).lines();
        let (sender, lines) = channel();
        std::thread::spawn(move || out.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { child, lines })
    }

    /// Returns the next line with a text, if it comes in time. Drops the lines before it.
    pub fn line_with(&self, text: &str) -> Option<String> {
        let mut lines = std::iter::from_fn(|| self.lines.recv_timeout(PATIENCE).ok());
        lines.find(|line| line.contains(text))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
