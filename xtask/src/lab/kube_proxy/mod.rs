//! kube-proxy's rules, as kube-proxy wrote them for two running clusters: one with IPv4 alone, whose
//! nodes have the names and addresses of a lab's nodes, and one with both families.

mod services;

use std::fs;

use anyhow::{Context as _, Result};

pub use services::Proxied;

use crate::lab::Node;

/// The folder with `nft list table ip kube-proxy` and `iptables-save` of the two nodes of the IPv4
/// cluster.
const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/kube-proxy");
/// The same of the cluster with both families: its nftables files have both tables, and the folder
/// has the output of `ip6tables-save` too.
const DUAL_STACK_RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/dual-stack/kube-proxy");
/// Addresses of the cluster with both families, and those of a lab's nodes and pods in their place.
/// A network that contains all of these stays as it is.
const RENUMBERED: [(&str, &str); 8] = [
    ("172.31.0.", "10.200.0."),
    ("10.244.1.", "10.244.2."),
    ("10.244.0.", "10.244.1."),
    ("10.244.1.0/16", "10.244.0.0/16"),
    ("fd00:172:31::", "fd00:10:200::"),
    ("fd00:10:244:1::", "fd00:10:244:2::"),
    ("fd00:10:244::", "fd00:10:244:1::"),
    ("fd00:10:244:1::/48", "fd00:10:244::/48"),
];
/// A match that only counts, and needs an object that the kernel of a test need not have. Its name
/// follows.
const ACCOUNTING: &str = " -m nfacct --nfacct-name  ";

/// The proxy mode, and so the kind of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubeProxy {
    /// `--proxy-mode=nftables`.
    Nftables,
    /// `--proxy-mode=iptables`.
    Iptables,
}

impl KubeProxy {
    /// Writes the rules of this node in the IPv4 cluster, or those of the cluster with both families
    /// if the lab's first family is IPv6.
    ///
    /// # Errors
    /// When the node is not one of the first two, or when the tool refuses.
    pub fn write_rules(self, node: &Node) -> Result<()> {
        if node.addresses()[0].is_ipv6() {
            return self.write_dual_stack_rules(node);
        }
        match self {
            Self::Nftables => node.exec(&["nft", "-f", &format!("{RULES}/nftables-{}.nft", node.name())]),
            Self::Iptables => {
                node.exec(&["iptables-restore", &format!("{RULES}/iptables-{}.rules", node.name())])
            }
        }?;
        Ok(())
    }

    /// Writes the rules of this node in the cluster with both families, with the addresses of the
    /// lab's nodes and pods. Those of services stay.
    ///
    /// # Errors
    /// As [`Self::write_rules`].
    pub fn write_dual_stack_rules(self, node: &Node) -> Result<()> {
        let name = node.name().replace("node", "kn");
        let files: &[_] = match self {
            Self::Nftables => &[("nft", "nftables", "nft")],
            Self::Iptables => {
                &[("iptables-restore", "iptables", "rules"), ("ip6tables-restore", "ip6tables", "rules")]
            }
        };
        for (tool, kind, ending) in files {
            let file = format!("{kind}-{name}.{ending}");
            let rules = fs::read_to_string(format!("{DUAL_STACK_RULES}/{file}"))
                .with_context(|| format!("read kube-proxy's rules {file}"))?;
            let path = node.state_dir().with_file_name(file);
            fs::write(&path, of_lab(&rules)).with_context(|| format!("write {}", path.display()))?;
            let path = path.to_string_lossy();
            match self {
                Self::Nftables => node.exec(&[tool, "-f", &path])?,
                Self::Iptables => node.exec(&[tool, &path])?,
            };
        }
        Ok(())
    }
}

/// Returns a text from the cluster with both families, with the addresses of a lab's nodes and pods.
#[must_use]
pub fn renumbered(text: &str) -> String {
    RENUMBERED.iter().fold(text.to_owned(), |text, (captured, here)| text.replace(captured, here))
}

fn of_lab(rules: &str) -> String {
    let rules = renumbered(rules);
    let mut parts = rules.split(ACCOUNTING);
    let first = parts.next().unwrap_or_default().to_owned();
    let behind_name =
        |part: &str| part.split_once(' ').map_or_else(String::new, |(_, rest)| format!(" {rest}"));
    parts.map(behind_name).fold(first, |rules, part| rules + &part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_get_the_labs_addresses_and_count_nothing() {
        let captured = "-A A -s fd00:10:244::/48 -m nfacct --nfacct-name  name -j B\n-A B -j DNAT --to-destination [fd00:10:244:1::4]:80\n10.244.0.0/16 172.31.0.2 10.244.0.3 10.244.1.4\n";
        let expected = "-A A -s fd00:10:244::/48 -j B\n-A B -j DNAT --to-destination [fd00:10:244:2::4]:80\n10.244.0.0/16 10.200.0.2 10.244.1.3 10.244.2.4\n";
        assert_eq!(of_lab(captured), expected);
    }
}
