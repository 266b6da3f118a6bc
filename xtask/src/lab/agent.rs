//! The process of an agent.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::Ns;

/// The variable that names the folder of the binaries. Without it, the lab uses the folder into
/// which this executable was built.
const BIN_DIR: &str = "PODWIRE_BIN_DIR";
/// The longest wait until an agent is ready. An agent serves ADD within a second; a busy machine
/// gets more time.
// On an emulated processor, the verifier alone needs more than 20 s.
const READY_DEADLINE: Duration = Duration::from_secs(120);
const STOP_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
/// The address at which agents serve `/readyz` by default.
const METRICS: &str = "127.0.0.1:9790";
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// The two binaries that a node needs.
#[derive(Clone, Debug)]
pub(crate) struct Binaries {
    pub(crate) agent: PathBuf,
    pub(crate) plugin: PathBuf,
}

impl Binaries {
    pub(crate) fn find(folder: Option<&Path>) -> Result<Self> {
        let folder = match (folder, std::env::var_os(BIN_DIR)) {
            (Some(folder), _) => folder.to_owned(),
            (None, Some(folder)) => PathBuf::from(folder),
            (None, None) => profile_folder()?,
        };
        Ok(Self { agent: folder.join("podwire"), plugin: folder.join("podwire-cni") })
    }

    pub(crate) fn check(&self) -> Result<()> {
        for binary in [&self.agent, &self.plugin] {
            ensure!(
                binary.exists(),
                "there is no {}: `cargo xtask build` builds it, {BIN_DIR} names another folder",
                binary.display()
            );
        }
        Ok(())
    }
}

/// A running agent. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
}

impl Agent {
    /// Starts the agent in a namespace, and appends its output to the log.
    pub(crate) fn spawn(
        ns: &Ns,
        command_line: &[String],
        environment: &[(&str, &str)],
        log: &Path,
    ) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open the agent's log {}", log.display()))?;
        let (program, arguments) = command_line.split_first().context("an empty command")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = ns.enter(|| command.spawn())?.with_context(|| format!("start {program}"))?;
        Ok(Self { child })
    }

    /// Waits until the agent in this namespace is ready and its socket answers.
    pub(crate) fn wait_ready(&mut self, ns: &Ns, socket: &Path) -> Result<()> {
        let start = Instant::now();
        loop {
            if ns.enter(is_ready)?.unwrap_or(false) && UnixStream::connect(socket).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended ({status}) before it was ready");
            }
            ensure!(start.elapsed() < READY_DEADLINE, "not ready after {} s", READY_DEADLINE.as_secs());
            std::thread::sleep(POLL);
        }
    }

    /// Waits until the agent has ended. The agent ends by itself, or the caller has ended it.
    pub(crate) fn wait_end(mut self) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(start.elapsed() < STOP_DEADLINE, "it still runs after {} s", STOP_DEADLINE.as_secs());
            std::thread::sleep(POLL);
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL. The agent cleans up nothing.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends SIGTERM, and waits for a successful exit.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let start = Instant::now();
        while start.elapsed() < STOP_DEADLINE {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "it ended with {status}");
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        bail!("it did not end within {} s of SIGTERM", STOP_DEADLINE.as_secs())
    }

    /// Leaves the process running.
    #[expect(clippy::disallowed_methods, reason = "the agent outlives this process")]
    pub(crate) fn keep(self) {
        std::mem::forget(self);
    }
}

/// Asks the agent in the calling thread's namespace whether it is ready. The agent listens before
/// it answers, so the read has a time limit.
fn is_ready() -> io::Result<bool> {
    let mut stream = TcpStream::connect(METRICS)?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200 "))
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Returns `target/<profile>`. It is the parent of `deps` if the executable is a test.
fn profile_folder() -> Result<PathBuf> {
    let executable = std::env::current_exe().context("find the running executable")?;
    let folder = executable.parent().context("the running executable is in no folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    Ok(folder.to_owned())
}
