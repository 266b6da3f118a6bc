//! Objects of Kubernetes, from the API server or from a file: the parts that the sources of nodes
//! and of services share.

pub mod client;
pub(crate) mod follower;
mod json;
pub(crate) mod list;
pub(crate) mod saved;
pub(crate) mod teller;
pub(crate) mod watched;
mod ways;

use std::time::Duration;

/// Time limits and pauses for the API server as a source.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Silence on a connection after which the agent gives it up.
    pub silence: Duration,
    /// Time after the start that the agent waits for a list. Then it uses the saved list.
    pub patience: Duration,
    /// Time between two events for the owner of state. Changes in between are sent together.
    pub rest: Duration,
    /// Time after an answer in which an error may still follow it. After that, the answer counts.
    pub doubt: Duration,
    /// Time between two writes of the saved list.
    pub saving: Duration,
    /// The longest pause after a failed attempt. The first pause is less than two seconds, and it
    /// doubles.
    pub pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(100),
            patience: Duration::from_secs(3),
            rest: Duration::from_secs(1),
            doubt: Duration::from_secs(1),
            saving: Duration::from_secs(10),
            pause: Duration::from_secs(30),
        }
    }
}
