//! `podwire log-level`: changes what the running agent logs.

use clap::Args;

use crate::config::Logging;
use crate::operator::Question;
use crate::operator::client::{self, Error, Place};

/// Options of `podwire log-level`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example: podwire log-level info,podwire::daemon=debug")]
pub struct Options {
    /// What to log: as for the agent's option --log-level, which counts again after a restart.
    #[arg(value_name = "LEVEL")]
    pub level: String,
    /// Where the agent is.
    #[command(flatten)]
    pub place: Place,
    /// Options of every command.
    #[command(flatten)]
    pub logging: Logging,
}

/// Asks the agent for another filter of its log.
///
/// # Errors
/// See [`Error`]. If the agent refuses the level, it goes on with its filter.
pub fn run(options: &Options) -> Result<(), Error> {
    client::ask(&options.place, &Question::LogLevel(options.level.clone()), |_, _, _| Ok(()))
}
