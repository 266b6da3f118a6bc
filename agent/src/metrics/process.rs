//! What the agent's process uses, under the names that clients of Prometheus share.

use std::fs;
use std::io;
use std::time::Duration;

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::files::FileError;

const STATM: &str = "/proc/self/statm";
const STAT: &str = "/proc/self/stat";
const SYSTEM: &str = "/proc/stat";
const DESCRIPTORS: &str = "/proc/self/fd";

/// What a process uses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Process {
    /// Time on processors.
    cpu: Duration,
    /// Memory, bytes.
    resident: u64,
    /// Address space, bytes.
    size: u64,
    /// Start, seconds since 1970.
    start: f64,
    open_descriptors: u64,
    /// `None`: no limit.
    most_descriptors: Option<u64>,
}

impl Process {
    /// Reads what this process uses now.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub(crate) fn read() -> Result<Self, FileError> {
        let pages = text(STATM)?;
        let pages = |index| number(STATM, pages.split_whitespace().nth(index));
        let bytes = |index| Ok::<u64, FileError>(pages(index)? * page_size() as u64);
        let stat = text(STAT)?;
        // The name, in brackets, may have spaces and brackets. `starttime` is the 20th field after
        // it (proc_pid_stat(5)).
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks = number(STAT, fields.split_whitespace().nth(19))?;
        let system = text(SYSTEM)?;
        let boot = number(SYSTEM, system.lines().find_map(|line| line.strip_prefix("btime ")))?;
        let opened = fs::read_dir(DESCRIPTORS).map_err(FileError::of("list", DESCRIPTORS))?;
        Ok(Self {
            cpu: Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default(),
            resident: bytes(1)?,
            size: bytes(0)?,
            start: boot as f64 + ticks as f64 / clock_ticks_per_second() as f64,
            // One of them is the list's own.
            open_descriptors: (opened.count() as u64).saturating_sub(1),
            most_descriptors: getrlimit(Resource::Nofile).current,
        })
    }

    /// Registers the figures.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "cpu",
            "Time that the agent has spent on processors",
            Unit::Seconds,
            ConstCounter::new(self.cpu.as_secs_f64()),
        );
        registry.register_with_unit(
            "resident_memory",
            "Memory of the agent's process, without the maps",
            Unit::Bytes,
            ConstGauge::new(self.resident),
        );
        registry.register_with_unit(
            "virtual_memory",
            "Address space of the agent's process",
            Unit::Bytes,
            ConstGauge::new(self.size),
        );
        registry.register_with_unit(
            "start_time",
            "When the agent started, since 1970",
            Unit::Seconds,
            ConstGauge::new(self.start),
        );
        registry.register(
            "open_fds",
            "File descriptors that are open",
            ConstGauge::new(self.open_descriptors),
        );
        if let Some(most) = self.most_descriptors {
            registry.register("max_fds", "File descriptors that may be open", ConstGauge::new(most));
        }
    }
}

fn text(path: &'static str) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(FileError::of("read", path))
}

fn number(path: &'static str, word: Option<&str>) -> Result<u64, FileError> {
    let number = word.and_then(|word| word.trim().parse().ok());
    number.ok_or_else(|| FileError::of("find a number in", path)(io::ErrorKind::InvalidData.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let before = Process::read().unwrap();
        let file = fs::File::open(STAT).unwrap();
        let process = Process::read().unwrap();
        drop(file);
        assert!(1 << 20 < process.resident && process.resident < process.size, "{process:?}");
        // Other tests open and close files meanwhile.
        assert!(process.open_descriptors > 3, "{process:?}");
        assert!(process.cpu >= before.cpu && !process.cpu.is_zero(), "{process:?}");
        assert_eq!(process.start, before.start);
        let system = text(SYSTEM).unwrap();
        let boot = number(SYSTEM, system.lines().find_map(|line| line.strip_prefix("btime "))).unwrap();
        assert!(process.start > boot as f64, "{process:?}");
    }
}
