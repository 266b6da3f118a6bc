//! kube-proxy's rules, as kube-proxy wrote them for two running clusters. A lab's nodes have the
//! names and addresses of the first one's nodes; the second one has both families.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::lab::{Node, process};

/// The folder with `nft list table ip kube-proxy` and `iptables-save` of the two nodes.
const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/kube-proxy");
/// The folder with `nft list ruleset` and `ip6tables-save` of the two nodes of the cluster with
/// both families.
const RULES6: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/dual-stack/kube-proxy");
/// kube-proxy counts packets by a match that not every kernel has.
const COUNTED: &str = "-m nfacct --nfacct-name  ct_state_invalid_dropped_pkts ";

/// The proxy mode, and so the kind of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubeProxy {
    /// `--proxy-mode=nftables`.
    Nftables,
    /// `--proxy-mode=iptables`.
    Iptables,
}

impl KubeProxy {
    /// Writes the rules of this node, for the first family of the lab. The services of the IPv6
    /// rules have backends that no lab has.
    ///
    /// # Errors
    /// When the node is not one of the first two, or when the tool refuses.
    pub fn write_rules(self, node: &Node) -> Result<()> {
        if node.addresses()[0].is_ipv6() {
            return self.write_rules6(node);
        }
        match self {
            Self::Nftables => node.exec(&["nft", "-f", &format!("{RULES}/nftables-{}.nft", node.name())]),
            Self::Iptables => {
                node.exec(&["iptables-restore", &format!("{RULES}/iptables-{}.rules", node.name())])
            }
        }?;
        Ok(())
    }

    fn write_rules6(self, node: &Node) -> Result<()> {
        let name = node.name().replace("node", "kn");
        let (file, mut command) = match self {
            Self::Nftables => (format!("{RULES6}/nftables-{name}.nft"), Command::new("nft")),
            Self::Iptables => (format!("{RULES6}/ip6tables-{name}.rules"), Command::new("ip6tables-restore")),
        };
        let printed = std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
        let rules = match self {
            Self::Nftables => {
                command.args(["-f", "-"]);
                // The other tables of the node are iptables' own.
                let begin = printed.find("table ip6 kube-proxy {").context("no table of kube-proxy")?;
                let length = printed[begin..].find("\n}\n").context("the table has no end")?;
                printed[begin..begin + length + 3].to_owned()
            }
            Self::Iptables => printed.replace(COUNTED, ""),
        };
        let output =
            node.enter(|| process::output(&mut command, Some(rules.as_bytes()), process::COMMAND_DEADLINE))??;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{file} is not accepted on {}: {errors}", node.name());
        Ok(())
    }
}
