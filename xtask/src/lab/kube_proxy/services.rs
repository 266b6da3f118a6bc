//! Rules for any services, in the form in which kube-proxy writes them.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use anyhow::{Context as _, Result};

use super::KubeProxy;
use crate::lab::Node;

/// Ports of a service for which [`KubeProxy::add_services`] writes rules.
#[derive(Clone, Debug)]
pub struct Proxied {
    /// Namespace and name of the service, with a slash between them.
    pub service: String,
    /// The ClusterIP.
    pub address: IpAddr,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The ports.
    pub ports: RangeInclusive<u16>,
    /// The port of the endpoints. `None`: the port that the client asked for.
    pub target: Option<u16>,
    /// The endpoints.
    pub endpoints: Vec<IpAddr>,
}

impl KubeProxy {
    /// Adds rules for services to those of [`Self::write_rules`], in the same form.
    ///
    /// In the chain of all services, iptables looks at one rule after the other. So all ports of a
    /// [`Proxied`] have one rule, and the first of these services comes behind half of the others.
    ///
    /// # Errors
    /// When the tool refuses.
    pub fn add_services(self, node: &Node, services: &[Proxied]) -> Result<()> {
        let [v4, v6]: [Vec<_>; 2] = [true, false]
            .map(|is_v4| services.iter().filter(|service| service.address.is_ipv4() == is_v4).collect());
        for (services, nft, iptables) in [(v4, "ip", "iptables-restore"), (v6, "ip6", "ip6tables-restore")] {
            if services.is_empty() {
                continue;
            }
            let path = node.state_dir().with_file_name(format!("services-{nft}"));
            let rules = match self {
                Self::Nftables => nftables(&services, nft),
                Self::Iptables => self::iptables(&services),
            };
            fs::write(&path, rules).with_context(|| format!("write {}", path.display()))?;
            let path = path.to_string_lossy();
            match self {
                Self::Nftables => node.exec(&["nft", "-f", &path])?,
                Self::Iptables => node.exec(&[iptables, "--noflush", &path])?,
            };
        }
        Ok(())
    }
}

fn nftables(services: &[&Proxied], family: &str) -> String {
    let (mut chains, mut rows, mut addresses) = (String::new(), Vec::new(), Vec::new());
    for (number, Proxied { service, address, protocol, ports, target, endpoints }) in
        services.iter().enumerate()
    {
        addresses.push(address.to_string());
        for port in ports.clone() {
            let chain = format!("service-{number:08X}-{service}/{protocol}/{port}");
            let to = (0..)
                .zip(endpoints)
                .map(|(index, endpoint)| format!("{index} : {endpoint} . {}", target.unwrap_or(port)));
            let (count, to) = (endpoints.len(), to.collect::<Vec<_>>().join(", "));
            let _ = writeln!(
                chains,
                "add chain {family} kube-proxy {chain}\nadd rule {family} kube-proxy {chain} meta l4proto {protocol} dnat {family} to numgen random mod {count} map {{ {to} }}"
            );
            rows.push(format!("{address} . {protocol} . {port} : goto {chain}"));
        }
    }
    addresses.sort();
    addresses.dedup();
    format!(
        "{chains}add element {family} kube-proxy cluster-ips {{ {} }}\nadd element {family} kube-proxy service-ips {{ {} }}\n",
        addresses.join(", "),
        rows.join(",\n")
    )
}

fn iptables(services: &[&Proxied]) -> String {
    let (mut chains, mut rows, mut rules) = (String::new(), Vec::new(), String::new());
    for (number, Proxied { service, address, protocol, ports, target, endpoints }) in
        services.iter().enumerate()
    {
        let (of_service, length) =
            (format!("KUBE-SVC-{number:016X}"), if address.is_ipv4() { 32 } else { 128 });
        let port = match (ports.start(), ports.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}:{last}"),
        };
        let comment = format!("-m comment --comment \"{service}:{protocol}\"");
        let of_address =
            format!("-d {address}/{length} -p {protocol} {comment} -m {protocol} --dport {port}");
        let _ = writeln!(chains, ":{of_service} - [0:0]");
        rows.push(format!("KUBE-SERVICES {of_address} -j {of_service}\n"));
        let cluster = if address.is_ipv4() { "10.244.0.0/16" } else { "fd00:10:244::/48" };
        let _ = writeln!(rules, "-A {of_service} ! -s {cluster} {of_address} -j KUBE-MARK-MASQ");
        for (index, endpoint) in endpoints.iter().enumerate() {
            let of_endpoint = format!("KUBE-SEP-{number:08X}{index:08X}");
            let chance = match endpoints.len() - index {
                1 => String::new(),
                left => format!("-m statistic --mode random --probability {:.11} ", 1.0 / left as f64),
            };
            let to = match (endpoint, target) {
                (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
                (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
                (address, None) => address.to_string(),
            };
            let _ = writeln!(chains, ":{of_endpoint} - [0:0]");
            let _ = writeln!(rules, "-A {of_service} {comment} {chance}-j {of_endpoint}");
            let _ = writeln!(rules, "-A {of_endpoint} -s {endpoint}/{length} {comment} -j KUBE-MARK-MASQ");
            let _ = writeln!(
                rules,
                "-A {of_endpoint} -p {protocol} {comment} -m {protocol} -j DNAT --to-destination {to}"
            );
        }
    }
    // Each is inserted as the first rule: the last one here is the first one there.
    let half = rows.len() / 2;
    rows[..=half].rotate_left(1);
    let rows: String = rows.iter().map(|row| format!("-I {row}")).collect();
    format!("*nat\n{chains}{rows}{rules}COMMIT\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NFTABLES: &str = include_str!("../../../../testdata/kube-proxy/nftables-node1.nft");
    const IPTABLES: &str = include_str!("../../../../testdata/kube-proxy/iptables-node1.rules");

    /// Two services of the captured cluster.
    fn services() -> Vec<Proxied> {
        let service = |name: &str, address: [u8; 4], endpoints: &[[u8; 4]]| Proxied {
            service: format!("default/{name}"),
            address: address.into(),
            protocol: "tcp",
            ports: 80..=80,
            target: Some(8080),
            endpoints: endpoints.iter().map(|endpoint| IpAddr::from(*endpoint)).collect(),
        };
        let pods = [[10, 244, 1, 3], [10, 244, 2, 2], [10, 244, 2, 3]];
        vec![service("web", [10, 96, 66, 215], &pods), service("solo", [10, 96, 93, 248], &[[10, 244, 2, 4]])]
    }

    /// Returns a rule's words without its comment, and without the ends of names, which are hashes, and
    /// of probabilities, which the kernel rounds.
    fn words(rule: &str) -> Vec<&str> {
        let parts: Vec<&str> = rule.split('"').collect();
        let uncommented = parts.into_iter().step_by(2).flat_map(str::split_whitespace);
        let words = uncommented.filter(|word| !["-m", "comment", "--comment", "goto"].contains(word));
        let hashed = ["KUBE-SVC-", "KUBE-SEP-", "service-"];
        let without_hash =
            |word| hashed.into_iter().find(|kind| str::starts_with(word, kind)).unwrap_or(word);
        words.map(without_hash).map(|word| if word.starts_with("0.") { &word[..8] } else { word }).collect()
    }

    #[test]
    fn rules_have_the_form_of_captured_rules() {
        let services = services();
        let services: Vec<_> = services.iter().collect();
        let captured: BTreeSet<_> = IPTABLES.lines().map(words).collect();
        let written = iptables(&services);
        for line in written.lines().filter(|line| line.starts_with('-')) {
            let line = line.replace("-I ", "-A ");
            assert!(captured.contains(&words(&line)), "{line}");
        }
        let written = nftables(&services, "ip");
        let rules: Vec<_> = written.lines().filter(|line| line.starts_with("add rule")).collect();
        assert_eq!(rules.len(), 2);
        for rule in rules {
            let (_, rule) = rule.split_once(" meta ").unwrap();
            assert!(NFTABLES.contains(rule), "{rule}");
        }
        assert!(NFTABLES.contains("10.96.66.215 . tcp . 80 : goto service-"));
        assert!(written.contains("10.96.66.215 . tcp . 80 : goto service-"));
    }

    #[test]
    fn measured_service_stands_behind_half_of_the_others() {
        let services =
            (0..5).map(|number| Proxied { service: format!("default/{number}"), ..services().remove(1) });
        let services: Vec<_> = services.collect();
        let written = iptables(&services.iter().collect::<Vec<_>>());
        let rows: Vec<_> = written.lines().filter(|line| line.starts_with("-I")).collect();
        // Each -I puts its rule before those of the lines above.
        assert_eq!(rows.iter().rev().position(|row| row.contains("default/0:")), Some(2), "{written}");
    }
}
