//! kube-proxy's rules, as kube-proxy wrote them for the running cluster of `testdata/kube-proxy`.
//! Its nodes have the names and addresses of a lab's nodes.

use anyhow::Result;

use crate::lab::Node;

/// The folder with `nft list table ip kube-proxy` and `iptables-save` of the two nodes.
const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/kube-proxy");

/// The proxy mode, and so the kind of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubeProxy {
    /// `--proxy-mode=nftables`.
    Nftables,
    /// `--proxy-mode=iptables`.
    Iptables,
}

impl KubeProxy {
    /// Writes the rules of this node.
    ///
    /// # Errors
    /// When the node is not one of the first two, or when the tool refuses.
    pub fn write_rules(self, node: &Node) -> Result<()> {
        match self {
            Self::Nftables => node.exec(&["nft", "-f", &format!("{RULES}/nftables-{}.nft", node.name())]),
            Self::Iptables => {
                node.exec(&["iptables-restore", &format!("{RULES}/iptables-{}.rules", node.name())])
            }
        }?;
        Ok(())
    }
}
