//! Limits of connection tracking. kube-proxy sets them when it starts, so an agent that may run in its
//! place does the same. Flows past the stack do not need them; processes of the node and flows
//! through the stack do.

use std::fs;
use std::path::Path;

use super::{SwitchError, Switches, or_as_before};
use crate::before::Before;

/// The switches of times: name, the kernel's default in seconds, the value of kube-proxy's default.
///
/// A connection in CLOSE_WAIT has sent no FIN yet. If the entry went, its FIN would leave with the
/// address from before SNAT.
const TIMES: [(&str, &str, &str); 2] = [
    ("net/netfilter/nf_conntrack_tcp_timeout_established", "432000", "86400"),
    ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "60", "3600"),
];
/// The switch of the most entries.
const MAX: &str = "net/netfilter/nf_conntrack_max";
/// The switch of the hash table's size.
const BUCKETS: &str = "net/netfilter/nf_conntrack_buckets";

/// A switch, and the value that the agent gives it.
type Change = (&'static str, String);

/// Returns the sizes of kube-proxy's default for so many processors.
fn sizes(processors: u64) -> [(&'static str, u64); 2] {
    let entries = processors.saturating_mul(32 * 1024).clamp(128 * 1024, 1024 * 1024);
    [(MAX, entries), (BUCKETS, entries / 4)]
}

/// Returns the number of the machine's processors. A limit of the agent's container does not count.
fn processors() -> u64 {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines().filter(|line| line.starts_with("processor")).count() as u64
}

impl Switches {
    /// Gives connection tracking the limits of kube-proxy's default. Times change only from the
    /// kernel's default, and sizes only grow, so what an administrator has set stays. First writes
    /// the earlier values into the state folder.
    ///
    /// # Errors
    /// [`SwitchError::File`], [`SwitchError::ReadOnly`].
    pub fn limit_conntrack(&self, state_dir: &Path) -> Result<(), SwitchError> {
        self.limit(processors(), state_dir)
    }

    fn limit(&self, processors: u64, state_dir: &Path) -> Result<(), SwitchError> {
        for (name, value) in self.due(processors) {
            let before = Before::load(state_dir)?;
            let mut with_this = before.clone();
            with_this.switches.entry(name.into()).or_insert(self.read(name)?);
            with_this.save(state_dir)?;
            or_as_before(self.set(name, &value), &before, state_dir)?;
        }
        Ok(())
    }

    /// Gives connection tracking its earlier limits, where they are still those of
    /// [`Self::limit_conntrack`].
    ///
    /// # Errors
    /// [`SwitchError::File`], [`SwitchError::ReadOnly`].
    pub fn restore_conntrack(&self, before: &Before) -> Result<(), SwitchError> {
        self.restore(processors(), before)
    }

    fn restore(&self, processors: u64, before: &Before) -> Result<(), SwitchError> {
        let times = TIMES.map(|(name, _, value)| (name, value.to_owned()));
        let sizes = sizes(processors).map(|(name, size)| (name, size.to_string()));
        for (name, value) in times.into_iter().chain(sizes) {
            if let Some(earlier) = before.switches.get(name).filter(|_| self.has(name, &value)) {
                self.set(name, earlier)?;
            }
        }
        Ok(())
    }

    /// Returns the changes to make. A switch that is missing, or that this network namespace may only
    /// read, is left out.
    fn due(&self, processors: u64) -> Vec<Change> {
        let is_writable = |name: &str| {
            fs::metadata(self.folder.join(name)).is_ok_and(|file| !file.permissions().readonly())
        };
        let times = TIMES.into_iter().filter(|(name, default, _)| self.has(name, default));
        let times = times.map(|(name, _, value)| (name, value.to_owned()));
        let is_less = |(name, size): &(&str, u64)| {
            self.read(name).is_ok_and(|now| now.parse().is_ok_and(|now: u64| now < *size))
        };
        let sizes =
            sizes(processors).into_iter().filter(is_less).map(|(name, size)| (name, size.to_string()));
        times.chain(sizes).filter(|(name, _)| is_writable(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTABLISHED: &str = TIMES[0].0;
    const CLOSE_WAIT: &str = TIMES[1].0;

    #[test]
    fn sizes_follow_the_number_of_processors() {
        for (processors, entries) in [(0, 131_072), (2, 131_072), (8, 262_144), (64, 1_048_576)] {
            assert_eq!(sizes(processors), [(MAX, entries), (BUCKETS, entries / 4)], "{processors}");
        }
    }

    #[test]
    fn limits_come_from_the_default_and_go_back_to_it() {
        let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let switches = Switches::below(folder.path());
        // Without connection tracking there is nothing to do.
        switches.limit(8, state.path()).unwrap();
        fs::create_dir_all(folder.path().join("net/netfilter")).unwrap();
        let write = |name: &str, value: &str| fs::write(folder.path().join(name), value).unwrap();
        let values = || [ESTABLISHED, CLOSE_WAIT, MAX, BUCKETS].map(|name| switches.read(name).unwrap());
        // The administrator's own time and number of buckets.
        for (name, value) in [(ESTABLISHED, "7200"), (CLOSE_WAIT, "60"), (MAX, "65536"), (BUCKETS, "999999")]
        {
            write(name, value);
        }
        switches.limit(8, state.path()).unwrap();
        assert_eq!(values(), ["7200", "3600", "262144", "999999"]);
        switches.limit(8, state.path()).unwrap();
        let before = Before::load(state.path()).unwrap();
        assert_eq!(
            before.switches,
            [(CLOSE_WAIT, "60"), (MAX, "65536")].map(|(n, v)| (n.into(), v.into())).into()
        );
        // Somebody has changed one of them since.
        write(CLOSE_WAIT, "120");
        switches.restore(8, &before).unwrap();
        assert_eq!(values(), ["7200", "120", "65536", "999999"]);
    }
}
