//! The time that `cargo xtask test` may take on two cores. A group over its budget is named, and
//! nothing fails: the time depends on the machine.

use std::time::{Duration, Instant};

/// Parts of a run that have a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Checks,
    Namespaces,
    Kernels,
    Rest,
}

impl Group {
    const ALL: [Self; 4] = [Self::Checks, Self::Namespaces, Self::Kernels, Self::Rest];

    fn name(self) -> &'static str {
        match self {
            Self::Checks => "build and checks",
            Self::Namespaces => "namespaces",
            Self::Kernels => "kernels",
            Self::Rest => "everything else",
        }
    }

    /// Returns the budget, in minutes.
    fn minutes(self) -> u64 {
        match self {
            Self::Checks => 8,
            Self::Namespaces => 20,
            Self::Kernels => 12,
            Self::Rest => 10,
        }
    }
}

/// The time that each group has taken.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    times: [Duration; Group::ALL.len()],
}

impl Spent {
    /// Runs an action at the expense of a group.
    pub(crate) fn timed<T>(&mut self, group: Group, action: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let outcome = action();
        self.times[group as usize] += start.elapsed();
        outcome
    }

    /// Returns a line for each group that took time, and a warning if one is over its budget.
    pub(crate) fn lines(&self) -> Vec<String> {
        let taken = Group::ALL.into_iter().map(|group| (group, self.times[group as usize]));
        let taken: Vec<_> = taken.filter(|(_, time)| !time.is_zero()).collect();
        let minutes = |time: &Duration| time.as_secs_f64() / 60.0;
        let mut lines: Vec<String> = taken
            .iter()
            .map(|(group, time)| {
                format!("{} took {:.1} of {} minutes", group.name(), minutes(time), group.minutes())
            })
            .collect();
        let over = taken.iter().filter(|(group, time)| *time > Duration::from_secs(60 * group.minutes()));
        let over: Vec<&str> = over.map(|(group, _)| group.name()).collect();
        if !over.is_empty() {
            lines.push(format!(
                "warning: over the budget for two cores: {}. docs/design/tests.md says what to do",
                over.join(", ")
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_over_budget_are_named_and_unused_ones_left_out() {
        let seconds = |seconds| Duration::from_secs(seconds);
        let spent = Spent { times: [seconds(8 * 60), seconds(20 * 60 + 6), Duration::ZERO, seconds(660)] };
        let lines = spent.lines();
        assert_eq!(lines[0], "build and checks took 8.0 of 8 minutes");
        assert_eq!(lines[1], "namespaces took 20.1 of 20 minutes");
        assert_eq!(lines[2], "everything else took 11.0 of 10 minutes");
        assert!(lines[3].contains("two cores: namespaces, everything else."), "{lines:?}");
        assert_eq!(lines.len(), 4);
        assert_eq!(Spent::default().lines(), [""; 0]);
    }

    #[test]
    fn time_counts_for_its_group() {
        let mut spent = Spent::default();
        let answer = spent.timed(Group::Kernels, || {
            std::thread::sleep(Duration::from_millis(2));
            7
        });
        assert_eq!(answer, 7);
        assert_eq!(spent.lines(), ["kernels took 0.0 of 12 minutes"]);
    }
}
