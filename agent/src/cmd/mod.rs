//! The commands for operators that show what this node's pod network does.
//!
//! `endpoints`, `nodes`, `hostports`, `services`, `drops` and `flows` read the pinned tables, whether
//! or not an agent runs: the tables are what packets meet. The agent adds names. Without an agent, the
//! names are those in its state folder. `status` is the agent's view of the node.

pub mod completions;
pub mod drops;
pub mod endpoints;
pub mod flows;
pub mod host_ports;
pub mod nodes;
pub mod services;
pub mod status;

mod output;
pub mod selection;
mod view;

use std::io;

use thiserror::Error;

use crate::dataplane::DataplaneError;
use crate::operator::client;

/// Why a command cannot show what was asked for.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel shows maps only to root.
    #[error("the tables of the programs can be read only by root: run this command as root")]
    NotRoot,
    /// No agent has ever served here, or it was uninstalled.
    #[error("there are no tables in {folder}: no agent has run on this node, or it has another --bpf-dir")]
    NoTables {
        /// The folder of pins.
        folder: String,
    },
    /// The pinned tables cannot be read.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The agent answers something that is no answer.
    #[error(transparent)]
    Agent(#[from] client::Error),
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// `--delete` removes one flow, and the filters do not name one.
    #[error(
        "--delete removes one flow, but {found}: give filters that only one flow matches, such as --address, --port and --protocol; without --delete, the command lists the flows that match"
    )]
    NotOneFlow {
        /// What the filters match.
        found: String,
    },
}

impl Error {
    /// Returns whether the reader of the output has gone, as `head` does: that is no failure.
    pub fn is_closed_output(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
