//! kube-proxy, by the rules that it wrote for a running cluster: that of `testdata/kube-proxy`, whose nodes have the names and
//! addresses of a lab's.

use anyhow::Result;

use crate::lab::Node;

/// `nft list table ip kube-proxy` and `iptables-save` of the two nodes.
const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/kube-proxy");

/// How kube-proxy writes its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubeProxy {
    /// `--proxy-mode=nftables`.
    Nftables,
    /// `--proxy-mode=iptables`.
    Iptables,
}

impl KubeProxy {
    /// Writes that node's rules.
    ///
    /// # Errors
    /// When the node is none of the first two, or the tool refuses.
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
