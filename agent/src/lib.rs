//! Podwire's node agent.
//!
//! Sources (`cni_server`, `nodes`, `housekeeping`'s clock, signals) send `events` to the one owner of state, `daemon`. Sources do
//! not know the daemon.
//! What the kernel should hold is a pure function of the model (`desired`), and a pure `diff` says what to do. The
//! edges are `dataplane` (BPF), `links` (devices, addresses, routes), `firewall` (read only), `conntrack`, `store`, `before`,
//! `claim`, `files`, `lock`, `cni_configuration` and `host_local` (disk), and `sysctl`.

pub mod before;
pub mod cgroup2;
pub mod claim;
pub mod cni_configuration;
pub mod cni_server;
pub mod conditions;
pub mod config;
pub mod config_file;
mod connections;
pub mod conntrack;
pub mod daemon;
pub mod dataplane;
pub mod desired;
pub mod diff;
pub mod error;
pub mod events;
mod files;
pub mod firewall;
pub mod forward_policy;
pub mod health;
pub mod host;
pub mod host_local;
pub mod host_ports;
pub mod housekeeping;
pub mod install;
pub mod ipam;
pub mod links;
pub mod lock;
pub mod migrate_flannel;
pub mod model;
pub mod netns;
pub mod nodes;
pub mod non_masquerade;
pub mod other_pods;
pub mod recovery;
pub mod sockopt;
pub mod store;
pub mod strays;
pub mod sysctl;
pub mod uninstall;
pub mod watched_file;
