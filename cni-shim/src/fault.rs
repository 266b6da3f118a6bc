//! The numbered steps of a pod's life (ARCHITECTURE.md), and a process that stops after one of them: for tests. A release build has none of it.

use std::io;

/// Names the step and the fault: `add-7:kill`, `del-3:fail`, `del-7:wait:/run/go-on`. Read by debug builds.
pub const VARIABLE: &str = "PODWIRE_FAULT";

/// Which process takes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// `podwire-cni`.
    Plugin,
    /// `podwire agent`.
    Agent,
}

/// A step that has just been taken.
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

/// What a process does after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It ends at once, as by SIGKILL or a power cut of its own.
    Kill,
    /// The step fails, once.
    Fail,
    /// The thread that has taken it waits until a file is there, once.
    Wait,
}

impl Fault {
    /// As [`VARIABLE`] has it.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::Fail => "fail",
            Fault::Wait => "wait",
        }
    }
}

impl Step {
    /// Those of ADD, in their order: the agent's by its ranks of resources, upwards. The file is written while the kernel is told.
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
    /// Those of DEL: the agent's by its ranks, downwards.
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

    /// Those of an agent's start.
    pub const START: [Step; 1] = [Step::ProgramsReady];

    /// `add-1`, `del-10`, `start-1`: what it is a step of, and the number within that.
    pub fn name(self) -> String {
        let position = |steps: &[Step]| steps.iter().position(|step| *step == self).map(|index| index + 1);
        match (position(&Self::ADD), position(&Self::DEL)) {
            (Some(number), _) => format!("add-{number}"),
            (None, Some(number)) => format!("del-{number}"),
            (None, None) => format!("start-{}", position(&Self::START).unwrap_or_default()),
        }
    }

    /// Who takes it.
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

    /// What has been done.
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

/// To be called when a step has been taken. Nothing happens unless [`VARIABLE`] names it.
///
/// # Errors
/// When the step is to fail.
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

/// Nothing.
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
