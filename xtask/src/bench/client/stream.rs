//! A TCP stream of iperf3.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{CORE, OTHER_CORE, PATIENCE};
use crate::bench::site::Site;

const PORT: &str = "5201";

/// The direction of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToServer,
    FromServer,
}

/// A server that waits for streams. It ends when this is dropped.
pub(crate) struct Stream<'a> {
    site: &'a Site,
    server: Child,
}

impl<'a> Stream<'a> {
    pub(crate) fn start(site: &'a Site) -> Result<Self> {
        let mut command = Command::new("iperf3");
        command.args(["--server", "--port", PORT]).stdin(Stdio::null()).stdout(Stdio::null());
        let server = site.server.enter(|| command.spawn())?.context("start iperf3")?;
        Ok(Self { site, server })
    }

    /// Returns the payload rate at the receiver, Gbit/s. The turn is rounded down to whole seconds,
    /// one at least. Sender and receiver run on different cores.
    pub(crate) fn measure(&self, turn: Duration) -> Result<f64> {
        self.measure_in(Direction::ToServer, turn)
    }

    /// Measures as [`Self::measure`] does, in the given direction.
    pub(crate) fn measure_in(&self, direction: Direction, turn: Duration) -> Result<f64> {
        let printed = ask(self.site, direction, turn)?;
        let rate = printed["end"]["sum_received"]["bits_per_second"].as_f64();
        let rate = rate.with_context(|| format!("no rate in {printed}"))?;
        ensure!(rate > 0.0, "nothing arrived");
        Ok(rate / 1e9)
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

/// Runs the iperf3 client, and tries again until the server listens.
fn ask(site: &Site, direction: Direction, turn: Duration) -> Result<Value> {
    let (address, seconds) = (site.address.to_string(), turn.as_secs().max(1).to_string());
    let affinity = format!("{OTHER_CORE},{CORE}");
    let mut command = vec![
        "iperf3",
        "--client",
        &address,
        "--port",
        PORT,
        "--time",
        &seconds,
        "--affinity",
        &affinity,
        "--json",
    ];
    if direction == Direction::FromServer {
        command.push("--reverse");
    }
    let start = Instant::now();
    loop {
        let printed: Value =
            serde_json::from_str(&site.client.exec(&command)?).context("decode what iperf3 says")?;
        // iperf3 exits with success even after an error.
        match printed["error"].as_str() {
            None => return Ok(printed),
            Some(error) if start.elapsed() > PATIENCE => bail!("iperf3: {error}"),
            Some(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
