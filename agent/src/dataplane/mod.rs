//! The BPF object in the kernel: loading, attaching, and the typed contents of its maps. No other
//! module uses aya.

pub mod attach;
mod attach_cgroup;
mod batch;
mod btf;
pub mod conversions;
mod error;
pub mod flow_list;
pub mod flows;
pub mod forget;
pub mod held;
mod jumps;
pub mod load;
pub mod maps;
mod numbers;
pub mod packet_events;
mod pinned;
pub mod pins;
pub mod probe;
mod shares;
mod sizes;
mod skb_layout;
pub mod stale_sockets;
mod upgrade;

use std::collections::BTreeMap;
use std::path::PathBuf;

use aya::Ebpf;

pub use error::DataplaneError;
use maps::Maps;
use pinned::Pinned;
use upgrade::Upgrade;

/// The loaded object.
pub struct Dataplane {
    /// Its programs.
    pub ebpf: Ebpf,
    /// Its maps.
    pub maps: Maps,
    /// The folder of pinned maps and links. `None`: nothing is pinned, and everything ends with
    /// this value.
    bpf_dir: Option<PathBuf>,
    /// The upgrade, while the agent takes over maps of an earlier layout.
    upgrade: Option<Upgrade>,
    /// The pinned maps, held open.
    pinned_maps: Vec<Pinned>,
    /// The pinned links that this process has attached or taken over, held open. The key is the
    /// pin.
    links: BTreeMap<PathBuf, Pinned>,
}
