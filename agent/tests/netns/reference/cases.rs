//! The list of cases. Each case leaves the cluster as it found it.

use super::cluster::Cluster;
use super::{Outcome, host_port, pods};

/// Something that a client wants to do.
pub struct Case {
    /// The name in the table.
    pub name: String,
    /// Tries it.
    pub run: Box<dyn Fn(&Cluster) -> Outcome + Send + Sync>,
}

impl Case {
    pub fn new(name: impl Into<String>, run: impl Fn(&Cluster) -> Outcome + Send + Sync + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// Returns all cases, which run in each family. The last ones make a path smaller, and the kernel
/// remembers that for a while.
pub fn cases() -> Vec<Case> {
    [
        host_port::reached(),
        host_port::real_clients(),
        host_port::host_ips(),
        host_port::shared(),
        host_port::policy(),
        host_port::replaced(),
        host_port::closed(),
        host_port::large(),
        pods::without_translation(),
        pods::to_the_world(),
        host_port::smaller_path(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
