//! Places where the host's firewall may drop pods' packets that the host stack forwards, and the
//! remedies. Podwire writes no firewall rules: it names the missing ones.

use std::fmt;

use podwire_common::names::{VETH_PREFIX, VXLAN_DEVICE};

/// The name of firewalld's table.
pub const FIREWALLD: &str = "firewalld";

/// A place of the host's firewall that drops forwarded packets unless a rule accepts them. The
/// agent has recognised no rule there that accepts pods' packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// An nftables base chain with policy drop, for example iptables-nft's `FORWARD`.
    Nftables {
        /// Family of the table.
        family: Family,
        /// The table's name.
        table: String,
        /// The chain's name.
        chain: String,
    },
    /// The FORWARD chain of legacy iptables, with policy DROP.
    LegacyIptables,
    /// The FORWARD chain of legacy ip6tables, with policy DROP.
    LegacyIp6tables,
    /// firewalld's forward chain. Its policy is accept, but its last rule refuses packets that no
    /// zone accepted.
    Firewalld,
    /// A chain of nftables on the prerouting hook with a rule that drops packets which arrive by
    /// another link than the one that leads back to their source. Answers of other nodes to pods
    /// arrive in the tunnel, and the route to a node leads to an uplink. firewalld has such a rule
    /// for IPv6 (`IPv6_rpfilter`); for IPv4 the kernel has a switch, which the agent sets.
    ReversePath {
        /// Family of the table.
        family: Family,
        /// The table's name.
        table: String,
        /// The chain's name.
        chain: String,
        /// The family of the packets that the rule sees.
        sees: Family,
    },
}

/// A family of nftables tables that sees forwarded IP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// IPv4 and IPv6.
    Inet,
}

impl Place {
    /// Returns whether the place sees IPv4 packets.
    pub fn sees_ipv4(&self) -> bool {
        !matches!(
            self,
            Self::Nftables { family: Family::Ip6, .. }
                | Self::ReversePath { sees: Family::Ip6, .. }
                | Self::LegacyIp6tables
        )
    }

    /// Returns whether the place sees IPv6 packets.
    pub fn sees_ipv6(&self) -> bool {
        !matches!(
            self,
            Self::Nftables { family: Family::Ip, .. }
                | Self::ReversePath { sees: Family::Ip, .. }
                | Self::LegacyIptables
        )
    }

    /// Returns whether the place matters only to what arrives in the tunnel.
    pub fn sees_tunnel_only(&self) -> bool {
        matches!(self, Self::ReversePath { .. })
    }

    /// Returns a short name of the place: a metric's label.
    pub fn label(&self) -> String {
        match self {
            Self::Nftables { family, table, chain } | Self::ReversePath { family, table, chain, .. } => {
                format!("nftables {family} {table} {chain}")
            }
            Self::LegacyIptables => "legacy iptables filter FORWARD".to_owned(),
            Self::LegacyIp6tables => "legacy ip6tables filter FORWARD".to_owned(),
            Self::Firewalld => "firewalld".to_owned(),
        }
    }

    /// Returns the text for an operator: what may happen, why, and the remedy.
    pub fn warning(&self, vxlan_port: Option<u16>) -> String {
        let why = match self {
            Self::Nftables { family, table, chain } => {
                format!("the policy of chain {chain} in nftables table {family} {table} is drop")
            }
            Self::LegacyIptables => "the policy of chain FORWARD in legacy iptables is DROP".to_owned(),
            Self::LegacyIp6tables => "the policy of chain FORWARD in legacy ip6tables is DROP".to_owned(),
            Self::Firewalld => "firewalld refuses packets that none of its zones accepts".to_owned(),
            Self::ReversePath { family, table, chain, .. } => {
                format!(
                    "a rule of chain {chain} in nftables table {family} {table} drops what arrives by another link \
                     than the one that leads back to its source"
                )
            }
        };
        let remedies =
            self.remedies(vxlan_port).iter().map(|command| format!("`{command}`")).collect::<Vec<_>>();
        let what = match self {
            Self::ReversePath { .. } => {
                "the host's firewall drops what processes of other nodes answer to pods by a service, because it \
                 arrives in the tunnel"
            }
            _ => {
                "the host's firewall may drop pods' packets to services and the world unless a rule accepts them \
                 (traffic between pods does not pass there)"
            }
        };
        format!("{what}: {why}; let them pass with {}", remedies.join(", "))
    }

    /// Returns commands that let pods' packets pass in both directions. `vxlan_port`: the tunnel's
    /// port, if the node has a tunnel.
    pub fn remedies(&self, vxlan_port: Option<u16>) -> Vec<String> {
        let nft = |family, table, chain, side| {
            format!("nft insert rule {family} {table} {chain} {side} \"{VETH_PREFIX}*\" accept")
        };
        let iptables = |program| {
            ["-i", "-o"].map(|side| format!("{program} -I FORWARD {side} {VETH_PREFIX}+ -j ACCEPT")).to_vec()
        };
        match self {
            // Rules that iptables made are changed with iptables. Name the variant: `iptables`
            // alone is iptables-nft on some hosts and iptables-legacy on others, and rules of the
            // wrong variant do not help.
            Self::Nftables { family: Family::Ip, table, chain }
                if table == "filter" && chain == "FORWARD" =>
            {
                iptables("iptables-nft")
            }
            Self::Nftables { family: Family::Ip6, table, chain }
                if table == "filter" && chain == "FORWARD" =>
            {
                iptables("ip6tables-nft")
            }
            Self::Nftables { family, table, chain } => {
                ["iifname", "oifname"].map(|side| nft(family, table, chain, side)).to_vec()
            }
            Self::ReversePath { table, .. } if table == FIREWALLD => {
                let switch = "s/^IPv6_rpfilter=.*/IPv6_rpfilter=no/";
                vec![
                    format!("sed -i '{switch}' /etc/firewalld/firewalld.conf"),
                    "systemctl restart firewalld".to_owned(),
                ]
            }
            Self::ReversePath { family, table, chain, .. } => {
                vec![format!("nft insert rule {family} {table} {chain} iifname \"{VXLAN_DEVICE}\" accept")]
            }
            Self::LegacyIptables => iptables("iptables-legacy"),
            Self::LegacyIp6tables => iptables("ip6tables-legacy"),
            // firewalld accepts packets that belong to a connection, so replies need no rule. But
            // replies from other nodes come in the tunnel, and firewalld closes its port as well.
            Self::Firewalld => {
                let trust = format!("firewall-cmd --permanent --zone=trusted --add-interface={VETH_PREFIX}+");
                let open = vxlan_port.map(|port| format!("firewall-cmd --permanent --add-port={port}/udp"));
                [trust].into_iter().chain(open).chain(["firewall-cmd --reload".to_owned()]).collect()
            }
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nftables(family: Family, table: &str, chain: &str) -> Place {
        Place::Nftables { family, table: table.into(), chain: chain.into() }
    }

    fn reverse_path(table: &str, sees: Family) -> Place {
        Place::ReversePath { family: Family::Inet, table: table.into(), chain: "pre".into(), sees }
    }

    #[test]
    fn each_place_is_cured_with_its_own_tool() {
        for (place, first) in [
            (nftables(Family::Ip, "filter", "FORWARD"), "iptables-nft -I FORWARD -i pw+ -j ACCEPT"),
            (nftables(Family::Ip6, "filter", "FORWARD"), "ip6tables-nft -I FORWARD -i pw+ -j ACCEPT"),
            (
                nftables(Family::Inet, "filter", "FORWARD"),
                "nft insert rule inet filter FORWARD iifname \"pw*\" accept",
            ),
            (
                nftables(Family::Ip, "host", "forward"),
                "nft insert rule ip host forward iifname \"pw*\" accept",
            ),
            (
                nftables(Family::Ip6, "host", "forward"),
                "nft insert rule ip6 host forward iifname \"pw*\" accept",
            ),
            (Place::LegacyIptables, "iptables-legacy -I FORWARD -i pw+ -j ACCEPT"),
            (Place::LegacyIp6tables, "ip6tables-legacy -I FORWARD -i pw+ -j ACCEPT"),
            (Place::Firewalld, "firewall-cmd --permanent --zone=trusted --add-interface=pw+"),
            (
                reverse_path("firewalld", Family::Ip6),
                "sed -i 's/^IPv6_rpfilter=.*/IPv6_rpfilter=no/' /etc/firewalld/firewalld.conf",
            ),
            (
                reverse_path("host", Family::Inet),
                "nft insert rule inet host pre iifname \"podwire-vxlan\" accept",
            ),
        ] {
            let (said, remedies) = (place.warning(Some(8472)), place.remedies(Some(8472)));
            assert_eq!(remedies[0], first);
            assert!(remedies.iter().all(|command| said.contains(&format!("`{command}`"))), "{said}");
        }
    }

    #[test]
    fn only_firewalld_closes_the_tunnels_port() {
        let opens = |place: &Place, port| place.warning(port).contains("--add-port=4789/udp");
        assert!(opens(&Place::Firewalld, Some(4789)));
        assert!(!opens(&Place::Firewalld, None), "direct routing has no tunnel");
        assert!(!opens(&Place::LegacyIptables, Some(4789)));
    }

    #[test]
    fn a_place_sees_the_families_of_its_table() {
        for (place, sees) in [
            (nftables(Family::Ip, "t", "c"), (true, false)),
            (nftables(Family::Ip6, "t", "c"), (false, true)),
            (nftables(Family::Inet, "t", "c"), (true, true)),
            (Place::LegacyIptables, (true, false)),
            (Place::LegacyIp6tables, (false, true)),
            (Place::Firewalld, (true, true)),
            (reverse_path("host", Family::Ip), (true, false)),
            (reverse_path("host", Family::Ip6), (false, true)),
            (reverse_path("host", Family::Inet), (true, true)),
        ] {
            assert_eq!((place.sees_ipv4(), place.sees_ipv6()), sees, "{place:?}");
        }
    }

    #[test]
    fn a_label_names_the_chain() {
        assert_eq!(nftables(Family::Inet, "host", "fwd").label(), "nftables inet host fwd");
    }
}
