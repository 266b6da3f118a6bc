//! `podwire-cni`: the CNI plugin that a container runtime executes for every pod.
//!
//! It makes the veth pair, asks the node agent over its Unix socket, configures the pod's side with
//! the agent's answer, and prints the CNI result. It lives for one call and knows neither BPF nor
//! Kubernetes.

mod agent;
mod bandwidth;
mod chain;
mod config;
mod config_error;
mod dns;
mod environment;
mod error;
mod fields;
mod ipv6;
mod mac;
mod netlink;
mod netns;
mod pod;
mod port_mappings;
mod previous;
mod result;
mod routes;
mod runtime_config;
mod skim;
mod verbs;
mod version;
mod veth;

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

use podwire_cni::fault::Step;
use podwire_cni::protocol::codes;

use crate::config::Config;
use crate::environment::Invocation;
use crate::error::CniError;
use crate::version::SpecVersion;

/// The largest network configuration for ADD, CHECK and VERSION, bytes. A real one has a few
/// kilobytes; a larger input is something else. DEL, STATUS and GC accept any size.
const MAX_INPUT: u64 = 1 << 20;

fn main() -> ExitCode {
    // Until the configuration has named its version, errors are reported in the newest one.
    let mut version = SpecVersion::NEWEST;
    match run(&mut version) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The runtime reads the error object from standard output. If writing fails, only the
            // exit code remains.
            let _ = print(&result::error(version, &error));
            ExitCode::FAILURE
        }
    }
}

fn run(version: &mut SpecVersion) -> Result<(), CniError> {
    let invocation = Invocation::parse(|name| std::env::var_os(name))?;
    if let Invocation::Version = invocation {
        // When a person calls VERSION on a terminal, no network configuration comes.
        let input = if io::stdin().is_terminal() { Vec::new() } else { read_input()? };
        return print(&verbs::version(&input));
    }
    let parsed = match invocation {
        Invocation::Add(_) | Invocation::Check(_) => Config::parse(&read_input()?, version)?,
        _ => Config::parse_for_others(io::stdin().lock(), version)?,
    };
    for warning in &parsed.warnings {
        note(warning);
    }
    let config = parsed.config;
    match invocation {
        Invocation::Version => Ok(()),
        Invocation::Add(target) => {
            let result = verbs::add(&config, &target)?;
            // If the result cannot be written, the runtime does not know the pod: nothing may
            // remain of it.
            print(&result)
                .and_then(|()| verbs::taken(Step::ResultPrinted))
                .inspect_err(|_| verbs::undo(&config, &target.attachment))
        }
        Invocation::Del(attachment) => verbs::del(&config, &attachment),
        Invocation::Check(target) => verbs::check(&config, &target),
        Invocation::Status => verbs::status(&config),
        Invocation::Gc => verbs::gc(&config),
    }
}

fn read_input() -> Result<Vec<u8>, CniError> {
    let mut input = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_INPUT + 1)
        .read_to_end(&mut input)
        .map_err(|error| CniError::io("read the network configuration from standard input", error))?;
    if input.len() as u64 > MAX_INPUT {
        return Err(CniError::new(
            codes::DECODING_FAILURE,
            format!("the network configuration on standard input is larger than {MAX_INPUT} bytes"),
        ));
    }
    Ok(input)
}

fn print(value: &serde_json::Value) -> Result<(), CniError> {
    let mut output = io::stdout().lock();
    writeln!(output, "{value}")
        .and_then(|()| output.flush())
        .map_err(|error| CniError::io("write the result to standard output", error))
}

/// Tells the operator about something that does not change the outcome: runtimes log the plugin's
/// standard error.
fn note(message: &str) {
    // If standard error is closed, no one reads the note.
    let _ = writeln!(io::stderr(), "podwire-cni: {message}");
}
