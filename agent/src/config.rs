//! The agent's options, parsed once.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use podwire_common::abi;
use podwire_common::addr::Be16;
use podwire_common::names;

use crate::dataplane::attach::UplinkXdp;
use crate::model::Mode;

/// Source ports for translated flows whose own is taken: above Linux's range for sockets (32768 to 60999) and
/// Kubernetes' for NodePorts (30000 to 32767), so that they are nobody's.
const SNAT_PORTS: (u16, u16) = (61000, 65535);

/// Options of `podwire agent`. Each can be given as an environment variable as well.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// This node's name in the node list.
    #[arg(long, env = "PODWIRE_NODE_NAME")]
    pub node_name: String,
    /// The node list: a file with the output of `kubectl get nodes -o json` or `-o yaml`.
    #[arg(long, env = "PODWIRE_NODES", value_name = "FILE")]
    pub nodes: PathBuf,
    /// How pod packets travel between nodes.
    #[arg(long, env = "PODWIRE_MODE", default_value = "vxlan")]
    pub mode: Mode,
    /// UDP port of the tunnel.
    #[arg(long, env = "PODWIRE_VXLAN_PORT", default_value_t = names::VXLAN_PORT, value_parser = clap::value_parser!(u16).range(1..), value_name = "PORT")]
    pub vxlan_port: u16,
    /// VXLAN network identifier (24 bits).
    #[arg(long, env = "PODWIRE_VNI", default_value_t = names::VNI, value_parser = clap::value_parser!(u32).range(..1 << 24))]
    pub vni: u32,
    /// A link that leads out of this node; may be repeated. Default: the one that has the node's InternalIP, and those
    /// of default routes.
    #[arg(long = "uplink", env = "PODWIRE_UPLINK", value_delimiter = ',', value_name = "DEVICE")]
    pub uplinks: Vec<String>,
    /// MTU of the pods, bytes. Default: what fits the uplinks, tunnel headers included.
    #[arg(long, env = "PODWIRE_MTU", value_parser = clap::value_parser!(u32).range(576..=65535), value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// Where addresses and endpoints are remembered.
    #[arg(long, env = "PODWIRE_STATE_DIR", default_value = "/var/lib/podwire", value_name = "FOLDER")]
    pub state_dir: PathBuf,
    /// Where the socket is made.
    #[arg(long, env = "PODWIRE_RUN_DIR", default_value = "/run/podwire", value_name = "FOLDER")]
    pub run_dir: PathBuf,
    /// The plugin's way in. Default: `agent.sock` in --run-dir.
    #[arg(long, env = "PODWIRE_SOCKET", value_name = "FILE")]
    pub socket: Option<PathBuf>,
    /// Where maps and links are pinned: on a BPF file system.
    #[arg(long, env = "PODWIRE_BPF_DIR", default_value = "/sys/fs/bpf/podwire", value_name = "FOLDER")]
    pub bpf_dir: PathBuf,
    /// The root of the cgroup2 hierarchy.
    #[arg(long, env = "PODWIRE_CGROUP_DIR", default_value = "/sys/fs/cgroup", value_name = "FOLDER")]
    pub cgroup_dir: PathBuf,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(
        long,
        env = "PODWIRE_METRICS_ADDRESS",
        default_value = "127.0.0.1:9790",
        value_name = "ADDRESS:PORT"
    )]
    pub metrics_address: SocketAddr,
    /// Early drop of foreign VXLAN packets on uplinks.
    #[arg(long, env = "PODWIRE_UPLINK_XDP", default_value = "off")]
    pub uplink_xdp: UplinkXdp,
    /// What is logged: off, error, warn, info, debug, trace, or a filter such as `podwire::daemon=debug`.
    #[arg(long, env = "PODWIRE_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
    /// How it is logged.
    #[arg(long, env = "PODWIRE_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line to read.
    Text,
    /// A JSON object per line.
    Json,
}

impl Config {
    /// The plugin's way in.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.run_dir.join("agent.sock"))
    }

    /// What the programs are told at load.
    pub fn for_programs(&self, vxlan: Option<u32>) -> abi::Config {
        abi::Config {
            mode: match self.mode {
                Mode::Vxlan => abi::MODE_VXLAN,
                Mode::Direct => abi::MODE_DIRECT,
            },
            vni: self.vni,
            vxlan_ifindex: vxlan.unwrap_or_default(),
            vxlan_port: Be16::new(self.vxlan_port),
            snat_port_first: SNAT_PORTS.0,
            snat_port_last: SNAT_PORTS.1,
            reserved: 0,
        }
    }
}
