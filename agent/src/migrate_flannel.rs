//! `podwire migrate flannel`: Podwire's configuration in place of flannel's, and the steps that
//! move a cluster node by node.

mod net_conf;

use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use podwire_common::names::VXLAN_PORT;
use thiserror::Error;

use net_conf::{Backend, NetConf};

use crate::config::Logging;

/// The steps. The parts in braces depend on flannel's configuration.
const STEPS: &str = include_str!("migrate_flannel/steps.txt");

/// Options of `podwire migrate flannel`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// File with flannel's configuration, the key `net-conf.json` of its ConfigMap, or `-` for
    /// standard input.
    #[arg(long, value_name = "FILE")]
    pub net_conf: PathBuf,
    /// What the command logs.
    #[command(flatten)]
    pub logging: Logging,
}

/// Why nothing is printed.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The file cannot be read.
    #[error("read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// All obstacles to moving the cluster as it is, each with what to do.
    #[error("this cluster cannot be moved node by node as it is:{}", list(.0))]
    Obstacles(Vec<String>),
}

/// Reads flannel's configuration. Returns Podwire's, followed by the steps as comments. The whole
/// text is a file for `--config`.
///
/// # Errors
/// [`Refusal`].
pub fn run(options: &Options) -> Result<String, Refusal> {
    let path = &options.net_conf;
    let text = read(path).map_err(|source| Refusal::File { path: path.clone(), source })?;
    Ok(describe(&net_conf::parse(&text).map_err(Refusal::Obstacles)?))
}

fn read(path: &Path) -> io::Result<String> {
    if path != Path::new("-") {
        return std::fs::read_to_string(path);
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

fn list(items: &[String]) -> String {
    items.iter().map(|item| format!("\n- {item}")).collect()
}

fn describe(conf: &NetConf) -> String {
    let mut text = configuration(conf);
    if !conf.notes.is_empty() {
        text += "\n# Notes\n#\n";
        for note in &conf.notes {
            writeln!(text, "# - {note}").expect("a write to a string never fails");
        }
    }
    text += "\n";
    let steps = STEPS
        .replace("{columns}", &of_each(conf, |family| column(family).into(), ","))
        .replace("{devices}", &devices(conf))
        .replace("{rules}", &of_each(conf, |family| rules(conf, family), "; "))
        .replace("{annotations}", &of_each(conf, |family| annotations(family).into(), " "));
    for line in steps.lines() {
        writeln!(text, "{}", format!("# {line}").trim_end()).expect("a write to a string never fails");
    }
    text
}

/// A family of pods' addresses, for which flannel has its own devices, rules and annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Ipv4,
    Ipv6,
}

/// Returns the parts for each family that flannel has on, IPv4 first.
fn of_each(conf: &NetConf, part: impl Fn(Family) -> String, separator: &str) -> String {
    let families = [(Family::Ipv4, conf.families.ipv4), (Family::Ipv6, conf.families.ipv6)];
    let parts = families.into_iter().filter(|(_, is_on)| *is_on).map(|(family, _)| part(family));
    parts.collect::<Vec<_>>().join(separator)
}

/// Returns the column with the address that flannel uses, for `kubectl get nodes`.
fn column(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => r"FLANNEL:.metadata.annotations.flannel\.alpha\.coreos\.com/public-ip",
        Family::Ipv6 => r"FLANNEL6:.metadata.annotations.flannel\.alpha\.coreos\.com/public-ipv6",
    }
}

/// Returns commands that remove flannel's devices.
fn devices(conf: &NetConf) -> String {
    let tunnel = |vni: u32| {
        let device = |family| match family {
            Family::Ipv4 => format!("ip link delete flannel.{vni}; "),
            Family::Ipv6 => format!("ip link delete flannel-v6.{vni}; "),
        };
        of_each(conf, device, "")
    };
    let tunnels = match conf.backend {
        Backend::Vxlan { vni, .. } => tunnel(vni),
        Backend::HostGateway => String::new(),
    };
    format!("{tunnels}ip link delete cni0")
}

/// Returns a command that removes flannel's rules of a family.
fn rules(conf: &NetConf, family: Family) -> String {
    match (conf.nftables, family) {
        (true, Family::Ipv4) => "nft delete table ip flannel-ipv4",
        (true, Family::Ipv6) => "nft delete table ip6 flannel-ipv6",
        (false, Family::Ipv4) => "iptables-save | grep -v -i flannel | iptables-restore",
        (false, Family::Ipv6) => "ip6tables-save | grep -v -i flannel | ip6tables-restore",
    }
    .into()
}

/// Returns arguments of `kubectl annotate` that remove flannel's annotations of a family.
fn annotations(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "flannel.alpha.coreos.com/backend-data- flannel.alpha.coreos.com/public-ip-",
        Family::Ipv6 => "flannel.alpha.coreos.com/backend-v6-data- flannel.alpha.coreos.com/public-ipv6-",
    }
}

fn configuration(conf: &NetConf) -> String {
    match conf.backend {
        Backend::HostGateway => "mode: direct\n".into(),
        Backend::Vxlan { vni, port, mtu } => {
            let port = port.unwrap_or(VXLAN_PORT);
            let mut text = format!("mode: vxlan\nvni: {vni}\nvxlan-port: {port}\n");
            if let Some(mtu) = mtu {
                // Flannel's MTU is for the packets between nodes, Podwire's for the pods.
                let mtu = mtu - conf.families.overhead();
                writeln!(text, "mtu: {mtu}").expect("a write to a string never fails");
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser as _;
    use serde_json::Value;

    use super::*;
    use crate::config::Config;
    use podwire_core::model::Mode;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    fn printed(net_conf: &str) -> String {
        describe(&net_conf::parse(net_conf).unwrap())
    }

    /// Returns the agent's options as the printed text sets them.
    fn options(text: &str) -> Config {
        let entries: BTreeMap<String, Value> = serde_saphyr::from_str(text).unwrap();
        let mut arguments: Vec<String> =
            ["podwire", "--node-name", "n", "--nodes", "f"].map(str::to_owned).to_vec();
        for (option, value) in entries {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            arguments.extend([format!("--{option}"), value]);
        }
        Cli::try_parse_from(arguments).unwrap_or_else(|error| panic!("{error}\n{text}")).config
    }

    #[test]
    fn printed_text_is_a_configuration_with_steps_as_comments() {
        let text = printed(
            r#"{ "Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": { "Type": "vxlan" } }"#,
        );
        assert!(text.starts_with("mode: vxlan\nvni: 1\nvxlan-port: 8472\n"), "{text}");
        let options = options(&text);
        assert_eq!(
            (options.mode, options.vni, options.vxlan_port, options.mtu),
            (Mode::Vxlan, 1, 8472, None)
        );
        for step in
            ["kubectl drain NODE", "ip link delete flannel.1;", "iptables-restore", "kubectl uncordon NODE"]
        {
            assert!(text.contains(step), "{step}\n{text}");
        }
        assert_eq!(placeholders(&text), [""; 0]);
        assert!(!text.contains("ipv6") && !text.contains("v6-data"), "{text}");
    }

    /// Returns the parts in braces that nothing has replaced.
    fn placeholders(text: &str) -> Vec<&str> {
        ["{columns}", "{devices}", "{rules}", "{annotations}"]
            .into_iter()
            .filter(|part| text.contains(part))
            .collect()
    }

    #[test]
    fn each_family_of_flannels_is_checked_and_removed() {
        const BACKEND: &str = r#""Backend": { "Type": "vxlan", "MTU": 1400 }"#;
        let both = format!(
            r#"{{ "Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48", {BACKEND} }}"#
        );
        let only6 = format!(
            r#"{{ "EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48", "EnableNFTables": true, {BACKEND} }}"#
        );
        let ipv4 = ["ip link delete flannel.1;", "com/public-ip,", "backend-data- "];
        let ipv6 = ["ip link delete flannel-v6.1;", "com/public-ipv6,", "backend-v6-data- "];
        for (net_conf, has_ipv4, rules) in [
            (&both, true, "iptables-restore; ip6tables-save | grep -v -i flannel | ip6tables-restore"),
            (&only6, false, "nft delete table ip6 flannel-ipv6"),
        ] {
            let text = printed(net_conf);
            assert_eq!(options(&text).mtu, Some(1330));
            assert!(ipv6.iter().chain([&rules]).all(|part| text.contains(part)), "{text}");
            assert!(ipv4.iter().all(|part| text.contains(part) == has_ipv4), "{text}");
            assert_eq!(placeholders(&text), [""; 0]);
        }
    }

    #[test]
    fn what_differs_from_flannels_defaults_is_taken_over() {
        let text = printed(
            r#"{ "Network": "10.244.0.0/16", "EnableNFTables": true, "Backend": { "Type": "VXLAN", "VNI": 77, "Port": 4789, "MTU": 1400 } }"#,
        );
        let options = options(&text);
        assert_eq!((options.vni, options.vxlan_port, options.mtu), (77, 4789, Some(1350)));
        assert!(
            text.contains("ip link delete flannel.77;") && text.contains("nft delete table ip flannel-ipv4"),
            "{text}"
        );
    }

    #[test]
    fn host_gw_is_direct_routing() {
        let text = printed(r#"{ "Network": "10.244.0.0/16", "Backend": { "Type": "host-gw" } }"#);
        assert_eq!(options(&text).mode, Mode::Direct);
        assert!(text.starts_with("mode: direct\n\n") && !text.contains("flannel.1"), "{text}");
    }

    #[test]
    fn all_that_is_in_the_way_is_said_at_once() {
        let conf = r#"{ "Network": "10.244.0.0/16", "Backend": { "Type": "vxlan", "DirectRouting": true, "GBP": true } }"#;
        let refusal = Refusal::Obstacles(net_conf::parse(conf).unwrap_err()).to_string();
        assert!(
            refusal.contains("\n- Backend.DirectRouting") && refusal.contains("\n- Backend.GBP"),
            "{refusal}"
        );
    }
}
