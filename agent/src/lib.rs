//! Podwire's node agent.
//!
//! Sources (`cni_server`, `nodes`, `services`, `link_watch`, `watched_file`, and in `main` the clock, the
//! collector and the signals) send `events` to the one owner of state, `daemon`. Sources do not
//! know the daemon. Sources of Kubernetes' objects share `objects`. The crate `podwire-core` decides
//! what the kernel should hold and which operations lead there; it has no access to kernel or disk.
//! These modules access the kernel: `dataplane` (BPF), `links` (devices, addresses, routes),
//! `firewall` (read only), `conntrack`, `socket_diag` and `sysctl`. These modules access the disk:
//! `store`, `before`, `claim`, `files`, `lock`, `cni_configuration` and `host_local`.

pub mod before;
pub mod cgroup2;
pub mod claim;
pub mod cmd;
pub mod cni_configuration;
pub mod cni_server;
pub mod conditions;
pub mod config;
pub mod config_file;
mod connections;
pub mod conntrack;
pub mod daemon;
pub mod dataplane;
pub mod durations;
pub mod error;
pub mod events;
pub mod files;
pub mod firewall;
pub mod frontends;
pub mod health;
pub mod host_local;
pub mod housekeeping;
pub mod install;
pub mod link_filters;
pub mod link_watch;
pub mod links;
pub mod lock;
pub mod log;
pub mod log_level;
pub mod memory;
pub mod metrics;
pub mod migrate_flannel;
pub mod monitor;
pub mod netns;
pub mod nodes;
pub mod non_masquerade;
pub mod objects;
pub mod operator;
pub mod packet_events;
pub mod packet_filter;
pub mod packet_record;
pub mod pcapng;
pub mod service_health;
pub mod services;
pub mod socket_diag;
pub mod sockopt;
pub mod status;
pub mod store;
pub mod sysctl;
pub mod uninstall;
pub mod unix_socket;
pub mod watched_file;
mod wire;
