//! Processes with a deadline: a process that hangs becomes an error with a message.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// The longest time for which a command in a namespace may run.
pub(crate) const COMMAND_DEADLINE: Duration = Duration::from_secs(60);
/// The longest wait until a killed process has ended.
const REAPED: Duration = Duration::from_secs(60);

/// Runs a command to its end, or kills it at the deadline.
///
/// # Errors
/// When the command cannot be started or does not end in time.
pub(crate) fn output(command: &mut Command, input: Option<&[u8]>, deadline: Duration) -> Result<Output> {
    Ok(timed(command, input, deadline)?.0)
}

/// Runs a command as [`output`] does, and also returns the time from before its start to after its
/// end.
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
        // Ignore a failed write: a process that ends without reading its input gives the reason in
        // its output.
        drop(stdin.write_all(input));
    }
    let pid = Pid::from_child(&child);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send((child.wait_with_output(), start.elapsed())));
    match receiver.recv_timeout(deadline) {
        Ok((output, took)) => Ok((output?, took)),
        Err(_) => {
            let _ = kill_process(pid, Signal::KILL);
            // Wait for the end, so that the process cannot do anything after this function has
            // returned.
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
