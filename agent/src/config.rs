//! The agent's options, parsed once.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use ipnet::{IpNet, Ipv4Net};
use podwire_common::abi;
use podwire_common::addr::Be16;
use podwire_common::names;
use podwire_common::tables::Table;
use podwire_core::model::Mode;
use podwire_core::node_links::{LinkPattern, LinkRules};

use crate::cni_server::SOCKET;
use crate::dataplane::attach::UplinkXdp;
use crate::netns;
use crate::nodes::kube::Access;
use crate::sysctl::Switches;

/// Options of `podwire agent`. Each can be given as an environment variable as well.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// More of these options, by their long names, in a YAML mapping: what the command line and the environment do not give. The agent tells of
    /// changes, which count when it is restarted.
    #[arg(long = "config", env = "PODWIRE_CONFIG", value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// This node's name in the node list.
    #[arg(long, env = "PODWIRE_NODE_NAME")]
    pub node_name: String,
    /// The node list: a file with the output of `kubectl get nodes -o json` or `-o yaml`. Default: Node objects come from the API server.
    #[arg(long, env = "PODWIRE_NODES", value_name = "FILE", conflicts_with_all = ["kubeconfig", "api_server"])]
    pub nodes: Option<PathBuf>,
    /// Where the API server is.
    #[command(flatten)]
    pub api: Access,
    /// How pod packets travel between nodes.
    #[arg(long, env = "PODWIRE_MODE", default_value = "vxlan", value_parser = mode())]
    pub mode: Mode,
    /// UDP port of the tunnel.
    #[arg(long, env = "PODWIRE_VXLAN_PORT", default_value_t = names::VXLAN_PORT, value_parser = clap::value_parser!(u16).range(1..), value_name = "PORT")]
    pub vxlan_port: u16,
    /// VXLAN network identifier (24 bits).
    #[arg(long, env = "PODWIRE_VNI", default_value_t = names::VNI, value_parser = clap::value_parser!(u32).range(..1 << 24))]
    pub vni: u32,
    /// Source ports that pods' flows to the world are given when their own is taken. The default holds 20,000 flows to one
    /// server with room to spare; it may overlap the range of the host's own sockets (ip_local_port_range), which are looked for.
    #[arg(long, env = "PODWIRE_SNAT_PORTS", default_value = "32768-65535", value_name = "FIRST-LAST")]
    pub snat_ports: Ports,
    /// Which of pods' TCP connections to the world begin in sight of the host's rules (iptables, nftables). Those of UDP all do.
    #[arg(long, env = "PODWIRE_HOST_RULES_SEE", default_value = "each-destination")]
    pub host_rules_see: HostRulesSee,
    /// The cluster's NodePorts (kube-apiserver's --service-node-port-range): never given to a pod's flow.
    #[arg(long, env = "PODWIRE_NODE_PORTS", default_value = "30000-32767", value_name = "FIRST-LAST")]
    pub node_ports: Ports,
    /// Networks outside the cluster towards which pods keep their own addresses. Pod networks and nodes are such without
    /// being named.
    #[arg(long, env = "PODWIRE_NON_MASQUERADE_CIDRS", value_delimiter = ',', value_name = "NETWORK")]
    pub non_masquerade_cidrs: Vec<Ipv4Net>,
    /// More of them, a network a line; read again when the file changes.
    #[arg(long, env = "PODWIRE_NON_MASQUERADE_FILE", value_name = "FILE")]
    pub non_masquerade_file: Option<PathBuf>,
    /// Entries of the table of translations: two for each flow of a pod to the world or to a hostPort, one for each of the
    /// host's own that its rules have translated.
    #[arg(long, env = "PODWIRE_MAX_TRANSLATIONS", default_value_t = Table::Translations.row().entries, value_parser = clap::value_parser!(u32).range(1024..=16_777_216), value_name = "ENTRIES")]
    pub max_translations: u32,
    /// Entries of the table of flows that must return through the host stack, those of services for example.
    #[arg(long, env = "PODWIRE_MAX_STACK_FLOWS", default_value_t = Table::StackFlows.row().entries, value_parser = clap::value_parser!(u32).range(16..=16_777_216), value_name = "ENTRIES")]
    pub max_stack_flows: u32,
    /// Datagrams in fragments that are remembered at once.
    #[arg(long, env = "PODWIRE_MAX_FRAGMENTS", default_value_t = Table::Fragments.row().entries, value_parser = clap::value_parser!(u32).range(64..=1_048_576), value_name = "ENTRIES")]
    pub max_fragments: u32,
    /// Flows from outside to pods' own addresses that are remembered at once.
    #[arg(long, env = "PODWIRE_MAX_INBOUND_FLOWS", default_value_t = Table::InboundFlows.row().entries, value_parser = clap::value_parser!(u32).range(64..=16_777_216), value_name = "ENTRIES")]
    pub max_inbound_flows: u32,
    /// hostPorts that the pods of this node may have at once, all together.
    #[arg(long, env = "PODWIRE_MAX_HOST_PORTS", default_value_t = Table::Frontends.row().entries, value_parser = clap::value_parser!(u32).range(16..=262_144), value_name = "ENTRIES")]
    pub max_host_ports: u32,
    /// Links that are uplinks beside those that the agent finds: the one with the node's InternalIP and those by which default routes
    /// and routes to nodes lead. * and ? are wildcards; may be repeated.
    #[arg(long = "uplink", env = "PODWIRE_UPLINK", value_delimiter = ',', value_name = "PATTERN")]
    pub uplinks: Vec<LinkPattern>,
    /// Links that get no programs, whatever else speaks for them. * and ? are wildcards; may be repeated.
    #[arg(long, env = "PODWIRE_EXCLUDE_UPLINK", value_delimiter = ',', value_name = "PATTERN")]
    pub exclude_uplink: Vec<LinkPattern>,
    /// Link addresses that remote pods' packets may come from in direct mode.
    #[arg(long, env = "PODWIRE_LINK_ADDRESSES", default_value = "any")]
    pub link_addresses: LinkAddresses,
    /// MTU of the pods, bytes. Default: what fits the uplinks, tunnel headers included.
    #[arg(long, env = "PODWIRE_MTU", value_parser = clap::value_parser!(u32).range(576..=65535), value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// Programs out of this file in place of the embedded ones, to measure two builds against each other. It is not looked at whether they
    /// fit this agent.
    #[arg(long, value_name = "FILE", hide = true)]
    pub bpf_object: Option<PathBuf>,
    /// The root of the cgroup2 hierarchy. Default: where it is mounted.
    #[arg(long, env = "PODWIRE_CGROUP_DIR", value_name = "FOLDER")]
    pub cgroup_dir: Option<PathBuf>,
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
    /// Where CNI plugins remember things: addresses that host-local has given to pods of this node's network before are not handed out.
    #[arg(long, env = "PODWIRE_CNI_STATE_DIR", default_value = "/var/lib/cni", value_name = "FOLDER")]
    pub cni_state_dir: PathBuf,
    /// Where its files are.
    #[command(flatten)]
    pub places: Places,
    /// What it logs.
    #[command(flatten)]
    pub logging: Logging,
}

/// Where an agent has its files: options of every command that deals with them.
#[derive(Args, Clone, Debug)]
pub struct Places {
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
    /// Where the kernel's switches can be set: a folder with what is in /proc/sys, `net` of it at least. In a container /proc/sys itself is
    /// read-only.
    #[arg(long, env = "PODWIRE_SYSCTL_DIR", default_value = "/proc/sys", value_name = "FOLDER")]
    pub sysctl_dir: PathBuf,
    /// Where the runtime looks for network configurations, /etc/cni/net.d on most nodes: the agent puts 10-podwire.conflist there when it
    /// first serves, and back when it goes missing; uninstall removes it. Default: neither does.
    #[arg(long, env = "PODWIRE_CNI_CONF_DIR", value_name = "FOLDER")]
    pub cni_conf_dir: Option<PathBuf>,
}

impl Places {
    /// The kernel's switches.
    pub fn switches(&self) -> Switches {
        Switches::below(&self.sysctl_dir)
    }

    /// The plugin's way in.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.run_dir.join(SOCKET))
    }
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Logging {
    /// What is logged: off, error, warn, info, debug, trace, or a filter such as `podwire::daemon=debug`.
    #[arg(long, env = "PODWIRE_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
    /// How it is logged.
    #[arg(long, env = "PODWIRE_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Host order.
    pub first: u16,
    /// Host order.
    pub last: u16,
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |port: &str| port.trim().parse().ok().filter(|port| *port != 0);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (parse(first), parse(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("`{text}` is not a range of ports such as 32768-65535")),
        }
    }
}

/// `--host-rules-see`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HostRulesSee {
    /// One every second or so (256 ticks of the kernel) from each pod to each address and port, until one is not let pass as it is; all
    /// others of that time pass as it did.
    EachDestination,
    /// Every one: for rules that limit, count or log connections, or look at more of them than address and port.
    EachConnection,
}

/// `--link-addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LinkAddresses {
    /// Nodes may send from several, as balance-alb bonds, VRRP and ARP proxies do.
    Any,
    /// Only the node's, as the neighbour table has it: other hosts of the link cannot forge pods' addresses, and nodes that send from several are cut off.
    Checked,
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
    /// What each option by itself cannot tell.
    ///
    /// # Errors
    /// Which options contradict each other, and what to do.
    pub fn check(&self) -> Result<(), String> {
        let (snat, kept) = (self.snat_ports, self.node_ports);
        if kept.first <= snat.first && snat.last <= kept.last {
            return Err(format!(
                "--snat-ports {snat} leaves no port: all are NodePorts (--node-ports {kept}); give it a range beside them"
            ));
        }
        Ok(())
    }

    /// What is said of links by their names.
    pub fn link_rules(&self) -> LinkRules {
        LinkRules { uplinks: self.uplinks.clone(), excluded: self.exclude_uplink.clone() }
    }

    /// Where Node objects come from, as messages have it.
    pub fn node_source(&self) -> String {
        match &self.nodes {
            Some(file) => format!("the node list {}", file.display()),
            None => "the API server's node list".into(),
        }
    }

    /// Networks that are not masqueraded, those of the file included.
    pub fn non_masquerade(&self, from_file: BTreeSet<IpNet>) -> BTreeSet<IpNet> {
        let named = self.non_masquerade_cidrs.iter().map(|network| IpNet::V4(network.trunc()));
        named.chain(from_file).collect()
    }

    /// Sizes of the tables that options size, by name.
    pub fn map_sizes(&self) -> Vec<(&'static str, u32)> {
        let mut sizes = Vec::new();
        macro_rules! add {
            (none, $variant:ident) => {};
            ($option:ident, $variant:ident) => {
                sizes.push((Table::$variant.name(), self.$option));
            };
        }
        macro_rules! add_all {
            ($($owner:ident {
                $(#[doc = $doc:literal])+
                $name:ident, $field:ident, $variant:ident: $kind:ident<$key:ty, $value:ty>,
                entries $entries:expr, option $option:ident, $($rank_and_share:tt)*
            })*) => { $(add!($option, $variant);)* };
        }
        podwire_common::tables!(add_all);
        sizes
    }

    /// What the programs are told at load.
    pub fn for_programs(&self, vxlan: Option<u32>) -> abi::Config {
        abi::Config {
            mode: match self.mode {
                Mode::Vxlan => abi::MODE_VXLAN,
                Mode::Direct => abi::MODE_DIRECT,
            },
            link_addresses: match self.link_addresses {
                LinkAddresses::Any => abi::LINK_ADDRESSES_ANY,
                LinkAddresses::Checked => abi::LINK_ADDRESSES_CHECKED,
            },
            vni: self.vni,
            vxlan_ifindex: vxlan.unwrap_or_default(),
            vxlan_port: Be16::new(self.vxlan_port),
            snat_port_first: self.snat_ports.first,
            snat_port_last: self.snat_ports.last,
            node_port_first: self.node_ports.first,
            node_port_last: self.node_ports.last,
            ask: match self.host_rules_see {
                HostRulesSee::EachDestination => abi::ASK_EACH_DESTINATION,
                HostRulesSee::EachConnection => abi::ASK_EACH_CONNECTION,
            },
            // Without one no process is taken for the node's own: the capabilities tell why.
            netns_cookie: netns::cookie().unwrap_or_default(),
        }
    }
}

/// The values of `--mode`.
fn mode() -> impl TypedValueParser<Value = Mode> {
    let value = |name, help| PossibleValue::new(name).help(help);
    let names = [
        value("vxlan", "Inside VXLAN"),
        value("direct", "As they are: the network between the nodes routes pod addresses"),
    ];
    PossibleValuesParser::new(names).map(|name| if name == "direct" { Mode::Direct } else { Mode::Vxlan })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn ports_that_are_all_kept_for_others_are_refused() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            config: Config,
        }
        let check = |ports: &str| {
            let arguments = ["podwire", "--node-name", "n", "--nodes", "/n", "--snat-ports", ports];
            Cli::parse_from(arguments).config.check()
        };
        assert_eq!(check("32000-33000"), Ok(()));
        let refusal = check("30500-31000").unwrap_err();
        assert!(refusal.contains("30500-31000") && refusal.contains("30000-32767"), "{refusal}");
    }

    #[test]
    fn a_range_of_ports_is_two_ports_in_order() {
        assert_eq!("1024-2047".parse(), Ok(Ports { first: 1024, last: 2047 }));
        assert_eq!("5000".parse(), Ok(Ports { first: 5000, last: 5000 }));
        for text in ["", "-", "0-5", "2-1", "1-65536", "a-b", "1-2-3"] {
            let refusal = text.parse::<Ports>().unwrap_err();
            assert!(refusal.contains(text), "{refusal}");
        }
    }
}
