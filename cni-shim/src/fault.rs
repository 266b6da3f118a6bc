//! The numbered steps of a pod's life (docs/design/life-of-a-pod.md). For tests, a debug build can
//! stop a process after one of them; a release build cannot.

use std::io;

/// Environment variable with the step and the fault: `add-7:kill`, `del-3:fail`,
/// `del-7:wait:/run/go-on`. Only debug builds read it.
pub const VARIABLE: &str = "PODWIRE_FAULT";

/// The process that takes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// `podwire-cni`.
    Plugin,
    /// `podwire agent`.
    Agent,
}

/// A step that a process has just taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "`Step::what` says it")]
pub enum Step {
    PairMade,
    AddAsked,
    AddressTaken,
    FileWritten,
    FileNamed,
    ProgramsAttached,
    LimitSet,
    LinkUp,
    GuardWritten,
    EndpointWritten,
    FrontendsWritten,
    RouteSet,
    Agreed,
    AddAnswered,
    PodConfigured,
    LinkRuns,
    ResultPrinted,
    DelAsked,
    FrontendsRemoved,
    RouteRemoved,
    EndpointRemoved,
    GuardRemoved,
    PairRemoved,
    FlowsForgotten,
    FileRemoved,
    Released,
    DelAnswered,
    LinkLookedFor,
    ProgramsReady,
}

/// The action of a process after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It kills itself with SIGKILL. To the process this is like a power cut.
    Kill,
    /// It reports that the step failed, once.
    Fail,
    /// The thread that took the step waits until a file exists, once.
    Wait,
}

impl Fault {
    /// Returns the name that [`VARIABLE`] uses.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::Fail => "fail",
            Fault::Wait => "wait",
        }
    }
}

impl Step {
    /// The steps of ADD, in order. The agent's steps go up the ranks of resources. The agent writes
    /// the file while it configures the kernel.
    pub const ADD: [Step; 17] = [
        Step::PairMade,
        Step::AddAsked,
        Step::AddressTaken,
        Step::FileWritten,
        Step::FileNamed,
        Step::ProgramsAttached,
        Step::LimitSet,
        Step::LinkUp,
        Step::GuardWritten,
        Step::EndpointWritten,
        Step::FrontendsWritten,
        Step::RouteSet,
        Step::Agreed,
        Step::AddAnswered,
        Step::PodConfigured,
        Step::LinkRuns,
        Step::ResultPrinted,
    ];
    /// The steps of DEL, in order. The agent's steps go down the ranks of resources.
    pub const DEL: [Step; 11] = [
        Step::DelAsked,
        Step::RouteRemoved,
        Step::FrontendsRemoved,
        Step::EndpointRemoved,
        Step::GuardRemoved,
        Step::PairRemoved,
        Step::FlowsForgotten,
        Step::FileRemoved,
        Step::Released,
        Step::DelAnswered,
        Step::LinkLookedFor,
    ];

    /// The steps of an agent's start.
    pub const START: [Step; 1] = [Step::ProgramsReady];

    /// Returns the operation and the step's number within it: `add-1`, `del-10`, `start-1`.
    pub fn name(self) -> String {
        let position = |steps: &[Step]| steps.iter().position(|step| *step == self).map(|index| index + 1);
        match (position(&Self::ADD), position(&Self::DEL)) {
            (Some(number), _) => format!("add-{number}"),
            (None, Some(number)) => format!("del-{number}"),
            (None, None) => format!("start-{}", position(&Self::START).unwrap_or_default()),
        }
    }

    /// Returns the process that takes the step.
    pub fn process(self) -> Process {
        use Step::*;
        match self {
            PairMade | AddAsked | AddAnswered | PodConfigured | LinkRuns | ResultPrinted | DelAsked
            | DelAnswered | LinkLookedFor => Process::Plugin,
            AddressTaken | FileWritten | FileNamed | ProgramsAttached | LimitSet | LinkUp | GuardWritten
            | EndpointWritten | FrontendsWritten | RouteSet | Agreed | FrontendsRemoved | RouteRemoved
            | EndpointRemoved | GuardRemoved | PairRemoved | FlowsForgotten | FileRemoved | Released
            | ProgramsReady => Process::Agent,
        }
    }

    /// Returns a description of the completed step.
    pub fn what(self) -> &'static str {
        match self {
            Step::PairMade => "the veth pair is made",
            Step::AddAsked | Step::DelAsked => "the agent is asked",
            Step::AddressTaken => "an address is taken",
            Step::FileWritten => "the endpoint's file is written",
            Step::FileNamed => "the file has its name",
            Step::ProgramsAttached => "the programs are attached",
            Step::LimitSet => "the limit of the link is set",
            Step::LinkUp => "the host side is up",
            Step::GuardWritten => "EGRESS_GUARDS is written",
            Step::EndpointWritten => "ENDPOINTS is written",
            Step::FrontendsWritten => "FRONTENDS is written",
            Step::RouteSet => "the host route is set",
            Step::Agreed => "disk, maps and programs agree",
            Step::AddAnswered | Step::DelAnswered => "the answer has come",
            Step::PodConfigured => "the pod's side is set up",
            Step::LinkRuns => "the link runs",
            Step::ResultPrinted => "the result is printed",
            Step::FrontendsRemoved => "FRONTENDS is cleared",
            Step::RouteRemoved => "the host route is removed",
            Step::EndpointRemoved => "ENDPOINTS is cleared",
            Step::GuardRemoved => "EGRESS_GUARDS is cleared",
            Step::PairRemoved => "the veth pair is removed",
            Step::FlowsForgotten => "flows are forgotten",
            Step::FileRemoved => "the endpoint's file is removed",
            Step::Released => "the address is released",
            Step::LinkLookedFor => "no link is left",
            Step::ProgramsReady => "the programs are loaded, and none is attached",
        }
    }
}

/// Applies the fault of [`VARIABLE`] if it names this step, which the caller has just taken.
/// Otherwise does nothing.
///
/// # Errors
/// When the step has to fail.
#[cfg(debug_assertions)]
pub fn after(step: Step) -> io::Result<()> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static HAPPENED: AtomicBool = AtomicBool::new(false);
    let Ok(asked) = std::env::var(VARIABLE) else { return Ok(()) };
    let Some((name, fault)) = asked.split_once(':') else { return Ok(()) };
    if name != step.name() || HAPPENED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    if fault == Fault::Kill.name() {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
    }
    if let Some((wait, path)) = fault.split_once(':')
        && wait == Fault::Wait.name()
    {
        while !std::fs::exists(path)? {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        return Ok(());
    }
    Err(io::Error::other(format!("{VARIABLE} is {asked}")))
}

/// Does nothing: a release build has no faults.
///
/// # Errors
/// None.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn after(_: Step) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_a_number_of_its_own() {
        let steps = Step::ADD.iter().chain(&Step::DEL).chain(&Step::START);
        let mut names: Vec<_> = steps.map(|step| step.name()).collect();
        assert_eq!([0, 27, 28].map(|index: usize| names[index].as_str()), ["add-1", "del-11", "start-1"]);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Step::ADD.len() + Step::DEL.len() + Step::START.len());
    }
}
