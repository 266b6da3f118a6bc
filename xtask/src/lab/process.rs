//! Processes with a deadline: a hang is a failure with a message.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// The longest that a command in a namespace may run.
pub(crate) const COMMAND_DEADLINE: Duration = Duration::from_secs(60);
/// How long a killed process may take to end.
const REAPED: Duration = Duration::from_secs(60);

/// Runs a command to its end. It is killed at the deadline.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub(crate) fn output(command: &mut Command, input: Option<&[u8]>, deadline: Duration) -> Result<Output> {
    Ok(timed(command, input, deadline)?.0)
}

/// The same, and how long it took: from before its start to after its end.
pub(crate) fn timed(
    command: &mut Command,
    input: Option<&[u8]>,
    deadline: Duration,
) -> Result<(Output, Duration)> {
    let start = Instant::now();
    let mut child = command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A process that ends without reading says why in its output.
        drop(stdin.write_all(input));
    }
    let pid = Pid::from_child(&child);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send((child.wait_with_output(), start.elapsed())));
    match receiver.recv_timeout(deadline) {
        Ok((output, took)) => Ok((output?, took)),
        Err(_) => {
            let _ = kill_process(pid, Signal::KILL);
            // Only when it has ended does nothing of it happen any more.
            let _ = receiver.recv_timeout(REAPED);
            bail!(
                "{} did not end within {} s and was killed",
                command.get_program().display(),
                deadline.as_secs()
            )
        }
    }
}

/// Runs `ip -batch` in the namespace of the calling thread.
pub(crate) fn ip_batch(lines: &str) -> Result<()> {
    let output = output(Command::new("ip").args(["-batch", "-"]), Some(lines.as_bytes()), COMMAND_DEADLINE)
        .context("run `ip -batch -` (Debian package iproute2)")?;
    if !output.status.success() {
        bail!("`ip -batch` failed: {} of\n{lines}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}
