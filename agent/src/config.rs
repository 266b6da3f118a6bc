//! The agent's options, parsed once.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, ValueEnum};
use ipnet::{IpNet, Ipv6Net};
use podwire_common::abi;
use podwire_common::addr::Be16;
use podwire_common::names;
use podwire_common::tables::Table;
use podwire_core::model::{Family, Mode};
use podwire_core::node_links::{LinkPattern, LinkRules};

use crate::cni_server::SOCKET;
use crate::dataplane::attach::UplinkXdp;
use crate::netns;
use crate::objects::client::Access;
use crate::operator;
use crate::sysctl::Switches;

/// Options of `podwire agent`. Each one that `--help` lists also has an environment variable.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// YAML file with more options, as a mapping from their long names to values.
    ///
    /// The command line and the environment take precedence over the file. The agent reads the file
    /// when it starts. It reports later changes, which take effect when the agent is restarted.
    #[arg(long = "config", env = "PODWIRE_CONFIG", value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// This node's name in the node list.
    #[arg(long, env = "PODWIRE_NODE_NAME")]
    pub node_name: String,
    /// File with the node list: the output of `kubectl get nodes -o json` or `-o yaml`. Default:
    /// the agent gets Node objects from the API server.
    ///
    /// The agent reads the file again when it changes.
    #[arg(long, env = "PODWIRE_NODES", value_name = "FILE", conflicts_with_all = ["kubeconfig", "api_server"])]
    pub nodes: Option<PathBuf>,
    /// How the agent reaches the API server.
    #[command(flatten)]
    pub api: Access,
    /// Whether the programs serve services of TCP and UDP, to all clients.
    ///
    /// kube-proxy serves all others, if it runs.
    #[arg(long, env = "PODWIRE_SERVICES", default_value = "off")]
    pub services: ServiceMode,
    /// File with the services: the output of `kubectl get services,endpointslices -A -o json` or
    /// `-o yaml`. Default: the agent gets them from the API server.
    ///
    /// The agent reads the file again when it changes. It needs --services on.
    #[arg(long, env = "PODWIRE_SERVICES_FILE", value_name = "FILE")]
    pub services_file: Option<PathBuf>,
    /// Networks of the services' ClusterIPs (kube-apiserver's --service-cluster-ip-range). Default: the
    /// agent knows none.
    ///
    /// With this option, pods' packets and processes' calls to such an address are refused at a port
    /// that its service does not have, and dropped if no service has the address. It needs
    /// --services on. Separate networks by commas; may be repeated.
    #[arg(long, env = "PODWIRE_SERVICE_NETWORKS", value_delimiter = ',', value_name = "NETWORK")]
    pub service_networks: Vec<IpNet>,
    /// Networks of the node's addresses at which the programs serve NodePorts, as kube-proxy's
    /// --nodeport-addresses. Default: all addresses of the node.
    ///
    /// It needs --services on. Separate networks by commas; may be repeated.
    #[arg(long, env = "PODWIRE_NODE_PORT_ADDRESSES", value_delimiter = ',', value_name = "NETWORK")]
    pub node_port_addresses: Vec<IpNet>,
    /// Address and port at which the agent answers load balancers' questions about this node, as
    /// kube-proxy does at 0.0.0.0:10256: /healthz and /livez. Default: the agent answers none.
    ///
    /// With this option, the agent also listens at the healthCheckNodePort of each service that has
    /// one. Leave it out while kube-proxy runs on this node: kube-proxy has these ports, and answers.
    /// It needs --services on.
    #[arg(long, env = "PODWIRE_SERVICE_HEALTH_ADDRESS", value_name = "ADDRESS:PORT")]
    pub service_health_address: Option<SocketAddr>,
    /// How pod packets travel between nodes.
    #[arg(long, env = "PODWIRE_MODE", default_value = "vxlan", value_parser = mode())]
    pub mode: Mode,
    /// Family of the tunnel between two nodes that have an InternalIP of each.
    ///
    /// Between other nodes the tunnel has the family that both have. The tunnel carries pods'
    /// packets of both families.
    #[arg(long, env = "PODWIRE_TUNNEL_FAMILY", default_value = "ipv4", value_parser = family())]
    pub tunnel_family: Family,
    /// UDP port of the VXLAN tunnel. It must be the same on all nodes.
    #[arg(long, env = "PODWIRE_VXLAN_PORT", default_value_t = names::VXLAN_PORT, value_parser = clap::value_parser!(u16).range(1..), value_name = "PORT")]
    pub vxlan_port: u16,
    /// VXLAN network identifier (24 bits). It must be the same on all nodes.
    #[arg(long, env = "PODWIRE_VNI", default_value_t = names::VNI, value_parser = clap::value_parser!(u32).range(..1 << 24))]
    pub vni: u32,
    /// Source ports for pods' flows to the world when the flow's own port is taken.
    ///
    /// The default has ample room for 20,000 flows to one server. The range may overlap the range
    /// of the host's own sockets (ip_local_port_range): the programs look for these sockets and
    /// leave their ports alone.
    #[arg(long, env = "PODWIRE_SNAT_PORTS", default_value = "32768-65535", value_name = "FIRST-LAST")]
    pub snat_ports: Ports,
    /// Which TCP connections from pods to the world the host's rules (iptables, nftables) see.
    ///
    /// The rules see the first packet of such a connection. They see the first packet of every UDP
    /// flow.
    #[arg(long, env = "PODWIRE_HOST_RULES_SEE", default_value = "each-destination")]
    pub host_rules_see: HostRulesSee,
    /// The cluster's NodePorts (kube-apiserver's --service-node-port-range). Pods' flows never get
    /// them as source ports.
    #[arg(long, env = "PODWIRE_NODE_PORTS", default_value = "30000-32767", value_name = "FIRST-LAST")]
    pub node_ports: Ports,
    /// Networks outside the cluster that see pods' own addresses instead of the node's address.
    ///
    /// Pod networks and nodes need not be listed. Separate networks by commas; may be repeated.
    #[arg(long, env = "PODWIRE_NON_MASQUERADE_CIDRS", value_delimiter = ',', value_name = "NETWORK")]
    pub non_masquerade_cidrs: Vec<IpNet>,
    /// File with more networks for --non-masquerade-cidrs, one per line.
    ///
    /// A # begins a comment. The agent reads the file again when it changes. The file may be
    /// missing, but its folder must exist.
    #[arg(long, env = "PODWIRE_NON_MASQUERADE_FILE", value_name = "FILE")]
    pub non_masquerade_file: Option<PathBuf>,
    /// Whether pods' IPv6 packets to the world leave with the node's address.
    ///
    /// Use false only if the world routes answers to pods' own IPv6 addresses to the nodes.
    /// Otherwise the packets leave and no answer comes back.
    #[arg(long, env = "PODWIRE_MASQUERADE_IPV6", default_value_t = true, action = ArgAction::Set, value_name = "BOOLEAN")]
    pub masquerade_ipv6: bool,
    /// Size of the table of translations, in entries.
    ///
    /// Each flow from a pod to the world and each flow to a hostPort takes two entries. A flow of
    /// the host itself that the host's rules translate takes one. Raise the size if the condition
    /// translations-nearly-full or holder-crowded appears. A new size takes effect when the node
    /// restarts.
    #[arg(long, env = "PODWIRE_MAX_TRANSLATIONS", default_value_t = Table::Translations.row().entries, value_parser = clap::value_parser!(u32).range(1024..=16_777_216), value_name = "ENTRIES")]
    pub max_translations: u32,
    /// Size of the table of flows that must return through the host stack (services' flows, for
    /// example), in entries.
    ///
    /// A new size takes effect when the node restarts.
    #[arg(long, env = "PODWIRE_MAX_STACK_FLOWS", default_value_t = Table::StackFlows.row().entries, value_parser = clap::value_parser!(u32).range(16..=16_777_216), value_name = "ENTRIES")]
    pub max_stack_flows: u32,
    /// Number of fragmented datagrams that the programs remember at once.
    ///
    /// A new number takes effect when the node restarts.
    #[arg(long, env = "PODWIRE_MAX_FRAGMENTS", default_value_t = Table::Fragments.row().entries, value_parser = clap::value_parser!(u32).range(64..=1_048_576), value_name = "ENTRIES")]
    pub max_fragments: u32,
    /// Number of flows from outside to pods' own addresses that the programs remember at once.
    ///
    /// A new number takes effect when the node restarts.
    #[arg(long, env = "PODWIRE_MAX_INBOUND_FLOWS", default_value_t = Table::InboundFlows.row().entries, value_parser = clap::value_parser!(u32).range(64..=16_777_216), value_name = "ENTRIES")]
    pub max_inbound_flows: u32,
    /// Number of hostPorts that all pods of this node together may have at once.
    ///
    /// In a dual-stack cluster, a hostPort without hostIP counts twice. A new number takes effect
    /// when the node restarts.
    #[arg(long, env = "PODWIRE_MAX_HOST_PORTS", default_value_t = Table::Frontends.row().entries, value_parser = clap::value_parser!(u32).range(16..=262_144), value_name = "ENTRIES")]
    pub max_host_ports: u32,
    /// Links to use as uplinks, besides those that the agent finds. * and ? are wildcards; may be
    /// repeated.
    ///
    /// The agent finds the link with the node's InternalIP, and the links of default routes and of
    /// routes to nodes.
    #[arg(long = "uplink", env = "PODWIRE_UPLINK", value_delimiter = ',', value_name = "PATTERN")]
    pub uplinks: Vec<LinkPattern>,
    /// Links that get no programs, even if they match --uplink or the agent finds them. * and ? are
    /// wildcards; may be repeated.
    ///
    /// Pods' packets to the world do not leave by these links.
    #[arg(long, env = "PODWIRE_EXCLUDE_UPLINK", value_delimiter = ',', value_name = "PATTERN")]
    pub exclude_uplink: Vec<LinkPattern>,
    /// Link addresses from which remote pods' packets may come in direct mode.
    #[arg(long, env = "PODWIRE_LINK_ADDRESSES", default_value = "any")]
    pub link_addresses: LinkAddresses,
    /// MTU of the pods in bytes. Default: the largest that fits the uplinks, tunnel headers
    /// included.
    #[arg(long, env = "PODWIRE_MTU", value_parser = clap::value_parser!(u32).range(576..=65535), value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// File with programs to load instead of the embedded ones, to measure two builds against each
    /// other. The agent does not check whether they fit.
    #[arg(long, value_name = "FILE", hide = true)]
    pub bpf_object: Option<PathBuf>,
    /// Root of the cgroup2 hierarchy. Default: the place where it is mounted.
    #[arg(long, env = "PODWIRE_CGROUP_DIR", value_name = "FOLDER")]
    pub cgroup_dir: Option<PathBuf>,
    /// Address and port that serve /healthz, /readyz and /metrics.
    #[arg(
        long,
        env = "PODWIRE_METRICS_ADDRESS",
        default_value = "127.0.0.1:9790",
        value_name = "ADDRESS:PORT"
    )]
    pub metrics_address: SocketAddr,
    /// Addresses of this node that serve /metrics too, at the port of --metrics-address.
    ///
    /// Everyone who reaches these addresses can read the metrics. They serve neither /healthz nor
    /// /readyz. Separate addresses by commas; may be repeated.
    #[arg(long, env = "PODWIRE_METRICS_NODE_ADDRESSES", value_delimiter = ',', value_name = "ADDRESS")]
    pub metrics_node_addresses: Vec<IpAddr>,
    /// XDP program on uplinks that drops foreign VXLAN packets early.
    #[arg(long, env = "PODWIRE_UPLINK_XDP", default_value = "off")]
    pub uplink_xdp: UplinkXdp,
    /// Folder where CNI plugins keep their state.
    ///
    /// The agent does not assign addresses of this node's podCIDR that host-local has assigned
    /// there.
    #[arg(long, env = "PODWIRE_CNI_STATE_DIR", default_value = "/var/lib/cni", value_name = "FOLDER")]
    pub cni_state_dir: PathBuf,
    /// Where the agent has its files.
    #[command(flatten)]
    pub places: Places,
    /// What the agent logs.
    #[command(flatten)]
    pub logging: Logging,
}

/// Where an agent has its files: options of every command that uses these files.
#[derive(Args, Clone, Debug)]
pub struct Places {
    /// Folder where the agent keeps addresses and endpoints.
    #[arg(long, env = "PODWIRE_STATE_DIR", default_value = "/var/lib/podwire", value_name = "FOLDER")]
    pub state_dir: PathBuf,
    /// Folder for the agent's socket.
    #[arg(long, env = "PODWIRE_RUN_DIR", default_value = "/run/podwire", value_name = "FOLDER")]
    pub run_dir: PathBuf,
    /// Socket through which the plugin reaches the agent. Default: `agent.sock` in --run-dir.
    #[arg(long, env = "PODWIRE_SOCKET", value_name = "FILE")]
    pub socket: Option<PathBuf>,
    /// Folder where the agent pins maps and links. It must be on a BPF file system.
    #[arg(long, env = "PODWIRE_BPF_DIR", default_value = "/sys/fs/bpf/podwire", value_name = "FOLDER")]
    pub bpf_dir: PathBuf,
    /// Folder with the kernel switches to set: /proc/sys or another mount of it, at least its
    /// `net`.
    ///
    /// Use another mount where /proc/sys itself is read-only, as in a container.
    #[arg(long, env = "PODWIRE_SYSCTL_DIR", default_value = "/proc/sys", value_name = "FOLDER")]
    pub sysctl_dir: PathBuf,
    /// Folder where the runtime looks for network configurations, /etc/cni/net.d on most nodes.
    ///
    /// The agent writes 10-podwire.conflist there when it first serves, and again when the file is
    /// removed or changed. `podwire uninstall` removes the file. Default: no configuration is
    /// written or removed.
    #[arg(long, env = "PODWIRE_CNI_CONF_DIR", value_name = "FOLDER")]
    pub cni_conf_dir: Option<PathBuf>,
}

impl Places {
    /// Returns the kernel's switches below --sysctl-dir.
    pub fn switches(&self) -> Switches {
        Switches::below(&self.sysctl_dir)
    }

    /// Returns the path of the socket through which operators ask the agent.
    pub fn operator_socket(&self) -> PathBuf {
        self.run_dir.join(operator::SOCKET)
    }

    /// Returns the path of the socket through which the plugin reaches the agent.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.run_dir.join(SOCKET))
    }
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Logging {
    /// What to log: off, error, warn, info, debug, trace, or a filter such as
    /// `podwire::daemon=debug`.
    #[arg(long, env = "PODWIRE_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
    /// Format of the log.
    #[arg(long, env = "PODWIRE_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The first port, host byte order.
    pub first: u16,
    /// The last port, host byte order.
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

/// Values of `--host-rules-see`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HostRulesSee {
    /// One connection from each pod to each address and port in 256 kernel ticks (0.26 to 2.6 s).
    /// If the rules let it pass unchanged, all others in that time bypass the rules.
    EachDestination,
    /// Every connection. Use it for rules that limit, count or log connections, or check more than
    /// address and port.
    EachConnection,
}

/// Values of `--services`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServiceMode {
    /// They do not, and the agent reads no Services. Another program serves services, such as
    /// kube-proxy.
    Off,
    /// They do. The agent reads all Services and EndpointSlices.
    On,
}

/// Values of `--link-addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LinkAddresses {
    /// No check. Nodes may send from several link addresses, as balance-alb bonds, VRRP and ARP
    /// proxies do.
    Any,
    /// Only the node's, according to the neighbour table. Other hosts on the link cannot forge
    /// pods' addresses, but nodes that send from several link addresses are cut off.
    Checked,
}

/// Values of `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines of text.
    Text,
    /// One JSON object per line.
    Json,
}

impl Config {
    /// Returns the first option that needs `--services on`, with its value.
    fn of_services(&self) -> Option<(&'static str, String)> {
        let first = |networks: &[IpNet]| networks.first().map(ToString::to_string);
        let given = [
            ("--services-file", self.services_file.as_ref().map(|file| file.display().to_string())),
            ("--service-networks", first(&self.service_networks)),
            ("--node-port-addresses", first(&self.node_port_addresses)),
            ("--service-health-address", self.service_health_address.map(|address| address.to_string())),
        ];
        given.into_iter().find_map(|(option, value)| Some((option, value?)))
    }

    /// Checks whether options contradict each other.
    ///
    /// # Errors
    /// Which options contradict each other, and what to do.
    pub fn check(&self) -> Result<(), String> {
        let (snat, kept) = (self.snat_ports, self.node_ports);
        if kept.first <= snat.first && snat.last <= kept.last {
            return Err(format!(
                "--snat-ports {snat} leaves no port, because all of them are NodePorts (--node-ports {kept}): give --snat-ports a range that also has other ports"
            ));
        }
        let own = self.metrics_address;
        let served = |address: &&IpAddr| own.ip().is_unspecified() || own.ip() == **address;
        if let Some(address) = self.metrics_node_addresses.iter().find(served) {
            return Err(format!(
                "--metrics-address {own} already serves {address}: leave {address} out of --metrics-node-addresses"
            ));
        }
        if let (ServiceMode::Off, Some((option, value))) = (self.services, self.of_services()) {
            return Err(format!(
                "{option} {value} has no effect, because --services is off: set --services on, or leave {option} out"
            ));
        }
        match (self.services, &self.services_file, &self.nodes) {
            (ServiceMode::On, None, Some(nodes)) => Err(format!(
                "--services on needs --services-file here, because with --nodes {} the agent asks no API server",
                nodes.display()
            )),
            _ => Ok(()),
        }
    }

    /// Returns the rules of `--uplink` and `--exclude-uplink` for links.
    pub fn link_rules(&self) -> LinkRules {
        LinkRules { uplinks: self.uplinks.clone(), excluded: self.exclude_uplink.clone() }
    }

    /// Returns the source of Node objects, in words for messages.
    pub fn node_source(&self) -> String {
        match &self.nodes {
            Some(file) => format!("the node list {}", file.display()),
            None => "the API server's node list".into(),
        }
    }

    /// Returns the networks that are not masqueraded, including those from the file.
    pub fn non_masquerade(&self, from_file: BTreeSet<IpNet>) -> BTreeSet<IpNet> {
        let named = self.non_masquerade_cidrs.iter().map(IpNet::trunc);
        let all_of_ipv6 = (!self.masquerade_ipv6).then(|| Ipv6Net::default().into());
        named.chain(all_of_ipv6).chain(from_file).collect()
    }

    /// Returns the sizes of the tables that options size, by table name.
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

    /// Returns the configuration that the programs get when they are loaded. `vxlan` is the tunnel
    /// device's ifindex.
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
            services: match (self.services, self.service_networks.is_empty()) {
                (ServiceMode::Off, _) => 0,
                (ServiceMode::On, true) => abi::SERVICES_SERVED,
                (ServiceMode::On, false) => abi::SERVICES_SERVED | abi::SERVICES_HAVE_NETWORKS,
            },
            reserved: 0,
            // Without a cookie (0), the programs treat no process as the node's own. The log of the
            // capabilities says why there is none.
            netns_cookie: netns::cookie().unwrap_or_default(),
        }
    }
}

/// Returns a parser for the values of `--mode`.
fn mode() -> impl TypedValueParser<Value = Mode> {
    let value = |name, help| PossibleValue::new(name).help(help);
    let names = [
        value("vxlan", "Inside VXLAN"),
        value("direct", "As they are: the network between the nodes routes pod addresses"),
    ];
    PossibleValuesParser::new(names).map(|name| if name == "direct" { Mode::Direct } else { Mode::Vxlan })
}

/// Returns a parser for the values of `--tunnel-family`.
fn family() -> impl TypedValueParser<Value = Family> {
    let value = |name, help| PossibleValue::new(name).help(help);
    let names = [value("ipv4", "IPv4: headers of 50 bytes"), value("ipv6", "IPv6: headers of 70 bytes")];
    PossibleValuesParser::new(names).map(|name| if name == "ipv6" { Family::V6 } else { Family::V4 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn parse(arguments: &[&str]) -> Config {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            config: Config,
        }
        let required = ["podwire", "--node-name", "n", "--nodes", "/n"];
        Cli::parse_from(required.iter().chain(arguments)).config
    }

    #[test]
    fn networks_of_both_families_are_excluded_and_all_of_ipv6() {
        let excluded = |arguments: &[&str]| {
            let from_file = ["2001:db8::/32".parse().unwrap()].into();
            let networks = parse(arguments).non_masquerade(from_file).into_iter();
            networks.map(|network| network.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(excluded(&[]), ["2001:db8::/32"]);
        assert_eq!(
            excluded(&["--non-masquerade-cidrs", "10.9.8.7/8,fd00::7/8"]),
            ["10.0.0.0/8", "2001:db8::/32", "fd00::/8"]
        );
        assert_eq!(excluded(&["--masquerade-ipv6", "true"]), ["2001:db8::/32"]);
        assert_eq!(excluded(&["--masquerade-ipv6", "false"]), ["::/0", "2001:db8::/32"]);
    }

    #[test]
    fn ports_that_are_all_kept_for_others_are_refused() {
        let check = |ports: &str| parse(&["--snat-ports", ports]).check();
        assert_eq!(check("32000-33000"), Ok(()));
        let refusal = check("30500-31000").unwrap_err();
        assert!(refusal.contains("30500-31000") && refusal.contains("30000-32767"), "{refusal}");
    }

    #[test]
    fn metrics_addresses_that_are_served_already_are_refused() {
        let check = |own: &str, others: &str| {
            parse(&["--metrics-address", own, "--metrics-node-addresses", others]).check()
        };
        assert_eq!(check("127.0.0.1:9790", "10.0.0.1,fd00::1"), Ok(()));
        for (own, others) in [("[::]:9790", "10.0.0.1"), ("10.0.0.1:9790", "fd00::1,10.0.0.1")] {
            let refusal = check(own, others).unwrap_err();
            assert!(refusal.contains("leave 10.0.0.1 out"), "{refusal}");
        }
    }

    #[test]
    fn services_come_from_where_the_nodes_come_from() {
        let check = |arguments: &[&str]| parse(arguments).check();
        assert_eq!(parse(&[]).services, ServiceMode::Off);
        assert_eq!(check(&["--services", "on", "--services-file", "/s"]), Ok(()));
        let refusal = check(&["--services-file", "/s"]).unwrap_err();
        assert!(refusal.contains("--services-file /s") && refusal.contains("--services on"), "{refusal}");
        let address = ["--service-health-address", "0.0.0.0:10256"];
        let refusal = check(&address).unwrap_err();
        assert!(refusal.contains("0.0.0.0:10256") && refusal.contains("--services on"), "{refusal}");
        assert_eq!(check(&[&address[..], &["--services", "on", "--services-file", "/s"]].concat()), Ok(()));
        let networks = ["--service-networks", "10.96.0.0/12,fd00:10:96::/112"];
        let refusal = check(&networks).unwrap_err();
        assert!(refusal.contains("10.96.0.0/12") && refusal.contains("--services on"), "{refusal}");
        assert_eq!(check(&[&networks[..], &["--services", "on", "--services-file", "/s"]].concat()), Ok(()));
        // `parse` gives the nodes as a file.
        let refusal = check(&["--services", "on"]).unwrap_err();
        assert!(refusal.contains("--services-file") && refusal.contains("--nodes /n"), "{refusal}");
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
