//! `podwire completions`: the script with which a shell completes commands and options.

use std::io;

use clap::{Args, Command};
use clap_complete::{Shell, generate};

use crate::config::Logging;

/// Options of `podwire completions`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example: podwire completions bash > /etc/bash_completion.d/podwire")]
pub struct Options {
    /// The shell.
    pub shell: Shell,
    /// Options of every command.
    #[command(flatten)]
    pub logging: Logging,
}

/// Prints the script.
pub fn run(options: &Options, command: &mut Command) {
    let name = command.get_name().to_owned();
    generate(options.shell, command, name, &mut io::stdout().lock());
}
