//! Flannel's `net-conf.json`, and the parts of it that Podwire does not support.

use ipnet::IpNet;
use podwire_common::names::VXLAN_OVERHEAD;
use serde_json::{Map, Value};

/// VNI and UDP port that flannel needs on Windows nodes.
const WINDOWS: (u32, u16) = (4096, 4789);
/// Keys that only matter where flannel itself assigns ranges to nodes.
const OWN_ALLOTMENT: [&str; 6] =
    ["SubnetLen", "SubnetMin", "SubnetMax", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"];

/// The parts of flannel's configuration that matter to Podwire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NetConf {
    /// The families of pods' addresses.
    pub(super) families: Families,
    /// How packets travel between nodes.
    pub(super) backend: Backend,
    /// Whether flannel writes nftables rules; otherwise it writes iptables rules.
    pub(super) nftables: bool,
    /// Notes for the operator about things that do not prevent a migration.
    pub(super) notes: Vec<String>,
}

/// The families of pods' addresses. At least one is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Families {
    /// `EnableIPv4`.
    pub(super) ipv4: bool,
    /// `EnableIPv6`.
    pub(super) ipv6: bool,
}

impl Families {
    /// Bytes that the tunnel adds to a packet of a pod. Flannel's tunnel packets with IPv6 inside
    /// have an IPv6 header, which is 20 bytes longer than an IPv4 header.
    pub(super) fn overhead(self) -> u32 {
        if self.ipv6 { VXLAN_OVERHEAD + 20 } else { VXLAN_OVERHEAD }
    }

    /// Returns the smallest MTU for pods, in bytes (RFC 791, RFC 8200 section 5).
    fn least_mtu(self) -> u32 {
        if self.ipv6 { 1280 } else { 576 }
    }
}

/// A backend with which Podwire's nodes can exchange packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    /// `vxlan`.
    Vxlan {
        /// Network identifier.
        vni: u32,
        /// UDP port; `None`: the kernel's default.
        port: Option<u16>,
        /// MTU of the packets between nodes in bytes; `None`: the MTU of the nodes' links.
        mtu: Option<u32>,
    },
    /// `host-gw`.
    HostGateway,
}

/// Parses flannel's configuration. Ignores the case of keys, as flannel's JSON decoder does.
///
/// # Errors
/// All obstacles to moving nodes, each with what to do.
pub(super) fn parse(text: &str) -> Result<NetConf, Vec<String>> {
    let keys: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
        vec![format!(
            "this is not a net-conf.json ({error}): give only the value of that key of flannel's ConfigMap"
        )]
    })?;
    let mut parser = Parser::default();
    let mut keys = Keys { prefix: "", keys };
    let families = parser.families(&mut keys);
    let nftables = parser.flag(&mut keys, "EnableNFTables", false);
    if OWN_ALLOTMENT.map(|key| keys.take(key)).iter().any(Option::is_some) {
        parser.notes.push("SubnetLen, SubnetMin, SubnetMax and those for IPv6 have an effect only where flannel assigns ranges itself (etcd). Podwire uses each node's spec.podCIDR, as flannel does with --kube-subnet-mgr. Without --kube-subnet-mgr, a cluster cannot be moved node by node.".into());
    }
    let backend = parser.backend(keys.take("Backend"), families);
    parser.rest(keys);
    match backend {
        Some(backend) if parser.obstacles.is_empty() => {
            Ok(NetConf { families, backend, nftables, notes: parser.notes })
        }
        _ => Err(parser.obstacles),
    }
}

/// Keys that the parser has not used yet.
struct Keys {
    /// The prefix of each name in messages.
    prefix: &'static str,
    keys: Map<String, Value>,
}

impl Keys {
    fn take(&mut self, name: &str) -> Option<Value> {
        let key = self.keys.keys().find(|key| key.eq_ignore_ascii_case(name))?.clone();
        self.keys.remove(&key).filter(|value| !value.is_null())
    }
}

#[derive(Default)]
struct Parser {
    obstacles: Vec<String>,
    notes: Vec<String>,
}

impl Parser {
    fn families(&mut self, keys: &mut Keys) -> Families {
        let ipv4 = self.flag(keys, "EnableIPv4", true);
        let ipv6 = self.flag(keys, "EnableIPv6", false);
        if !ipv4 && !ipv6 {
            self.obstacles.push(
                "EnableIPv4 is false and EnableIPv6 is not true: pods need addresses of one family at least"
                    .into(),
            );
        }
        self.network(keys, "Network", ipv4, "the IPv4 network of all pods, such as \"10.244.0.0/16\"");
        self.network(keys, "IPv6Network", ipv6, "the IPv6 network of all pods, such as \"fd00:10:244::/48\"");
        if ipv4 && ipv6 {
            self.notes.push("EnableIPv4 and EnableIPv6 are both true: pods get an address of each family, in the order of the node's spec.podCIDRs. Flannel puts IPv4 first; on a node whose podCIDRs begin with IPv6, Podwire puts IPv6 first. Flannel tunnels each family between the nodes' addresses of that family: test both with the first node that you move.".into());
        }
        Families { ipv4, ipv6 }
    }

    /// Checks the network of a family. Flannel ignores the key if the family is off.
    fn network(&mut self, keys: &mut Keys, name: &str, is_on: bool, must: &str) {
        let found = keys.take(name);
        let text = found.as_ref().and_then(Value::as_str).unwrap_or_default();
        let is_of_family = |network: IpNet| network.addr().is_ipv4() == (name == "Network");
        if is_on && !text.parse().is_ok_and(is_of_family) {
            self.obstacles.push(format!("{name} is {}: it must be {must}", shown(found)));
        }
    }

    fn backend(&mut self, backend: Option<Value>, families: Families) -> Option<Backend> {
        let keys = match backend {
            Some(Value::Object(keys)) => keys,
            None => {
                self.obstacles.push("there is no Backend, so flannel uses `udp`, which Podwire does not support: make flannel use vxlan on all nodes first".into());
                return None;
            }
            other => {
                self.obstacles.push(format!("Backend is {}: it must be an object with a Type", shown(other)));
                return None;
            }
        };
        let mut keys = Keys { prefix: "Backend.", keys };
        let kind = keys.take("Type");
        let name = kind.as_ref().and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
        let backend = match name.as_str() {
            "vxlan" => self.vxlan(&mut keys, families),
            "host-gw" => Backend::HostGateway,
            "wireguard" | "ipsec" => {
                self.obstacles.push(format!("Backend.Type is {name}: Podwire does not encrypt, so its nodes cannot reach flannel's encrypting nodes. If you trust the network between the nodes, make flannel use vxlan on all nodes first"));
                return None;
            }
            _ => {
                self.obstacles.push(format!("Backend.Type is {}: Podwire's nodes can reach flannel's nodes only with vxlan or host-gw. Make flannel use vxlan on all nodes first", shown(kind)));
                return None;
            }
        };
        self.rest(keys);
        Some(backend)
    }

    fn vxlan(&mut self, keys: &mut Keys, families: Families) -> Backend {
        let vni = self.number(keys, "VNI", (1 << 24) - 1).unwrap_or(podwire_common::names::VNI);
        // 0 makes the kernel take its default port.
        let port = self
            .number(keys, "Port", u16::MAX.into())
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0);
        let mtu = self.number(keys, "MTU", u16::MAX.into()).filter(|mtu| *mtu != 0);
        let (overhead, least) = (families.overhead(), families.least_mtu());
        if let Some(mtu) = mtu.filter(|mtu| *mtu < least + overhead) {
            self.obstacles.push(format!("Backend.MTU is {mtu}: it must leave {overhead} bytes for the tunnel and at least {least} bytes for pods' packets"));
        }
        if self.flag(keys, "DirectRouting", false) {
            self.obstacles.push("Backend.DirectRouting is true: flannel's nodes send to nodes on the same link outside the tunnel, and Podwire refuses such packets in its VXLAN mode. Set it to false and restart flannel's pods (`kubectl -n kube-flannel rollout restart daemonset kube-flannel-ds`) before you move the first node".into());
        }
        if self.flag(keys, "GBP", false) {
            self.obstacles.push("Backend.GBP is true: Podwire does not support VXLAN's group policy and refuses such packets. Set it to false, remove flannel's device on each node, and restart flannel's pods before you move the first node".into());
        }
        // `Learning` does not matter: nothing uses what flannel's device would learn from our
        // frames.
        self.flag(keys, "Learning", false);
        let for_windows = [keys.take("MacPrefix"), keys.take("Name")].iter().any(Option::is_some);
        if for_windows || vni == WINDOWS.0 || port == Some(WINDOWS.1) {
            self.notes.push("Flannel needs VNI 4096, port 4789, MacPrefix and Name for Windows nodes. Podwire does not run on Windows, and the traffic between its nodes and Windows nodes is not tested: test it with the first node that you move. Flannel must stay on the Windows nodes, and its annotations on all nodes.".into());
        }
        Backend::Vxlan { vni, port, mtu }
    }

    fn flag(&mut self, keys: &mut Keys, name: &str, otherwise: bool) -> bool {
        match keys.take(name) {
            None => otherwise,
            Some(Value::Bool(value)) => value,
            other => {
                self.obstacles.push(format!(
                    "{}{name} is {}: it must be true or false",
                    keys.prefix,
                    shown(other)
                ));
                otherwise
            }
        }
    }

    fn number(&mut self, keys: &mut Keys, name: &str, most: u32) -> Option<u32> {
        let value = keys.take(name)?;
        let number =
            value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|number| *number <= most);
        if number.is_none() {
            self.obstacles
                .push(format!("{}{name} is {value}: it must be a number from 0 to {most}", keys.prefix));
        }
        number
    }

    /// Adds a note for each key that the parser has not used.
    fn rest(&mut self, keys: Keys) {
        for name in keys.keys.keys() {
            self.notes.push(format!(
                "{}{name} is not known to Podwire, so the configuration leaves it out: flannel's documentation describes it.",
                keys.prefix
            ));
        }
    }
}

fn shown(value: Option<Value>) -> String {
    value.map_or_else(|| "missing".into(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vxlan(backend: &str) -> Result<NetConf, Vec<String>> {
        parse(&format!(r#"{{ "Network": "10.244.0.0/16", "Backend": {backend} }}"#))
    }

    fn refused(text: &str, expected: &str) {
        let obstacles = parse(text).expect_err(text);
        assert!(obstacles.iter().any(|obstacle| obstacle.contains(expected)), "{text}: {obstacles:?}");
    }

    fn noted(text: &str, expected: &[&str]) {
        let notes = parse(text).unwrap_or_else(|obstacles| panic!("{text}: {obstacles:?}")).notes;
        assert_eq!(notes.len(), expected.len(), "{text}: {notes:?}");
        for (note, expected) in notes.iter().zip(expected) {
            assert!(note.contains(expected), "{text}: {note}");
        }
    }

    #[test]
    fn what_flannel_takes_without_being_told_is_taken() {
        let backend = Backend::Vxlan { vni: 1, port: None, mtu: None };
        let families = Families { ipv4: true, ipv6: false };
        assert_eq!(
            vxlan(r#"{ "Type": "vxlan" }"#),
            Ok(NetConf { families, backend, nftables: false, notes: Vec::new() })
        );
        assert_eq!(
            vxlan(r#"{ "type": "vxlan", "Port": 0, "MTU": 0, "Learning": true }"#).unwrap().backend,
            backend
        );
    }

    #[test]
    fn what_podwire_cannot_join_is_refused_by_name() {
        refused("10.244.0.0/16", "not a net-conf.json");
        refused(r#"{ "Backend": { "Type": "vxlan" } }"#, "Network is missing");
        refused(r#"{ "Network": "fd00::/48", "Backend": { "Type": "vxlan" } }"#, "Network is \"fd00::/48\"");
        let only6 = r#""EnableIPv4": false, "EnableIPv6": true"#;
        for (keys, expected) in [
            (r#""EnableIPv4": false"#, "one family at least"),
            (only6, "IPv6Network is missing"),
            (r#""Network": "10.244.0.0/16", "EnableIPv6": true"#, "IPv6Network is missing"),
            (&format!(r#"{only6}, "IPv6Network": "10.244.0.0/16""#), "IPv6Network is \"10.244.0.0/16\""),
        ] {
            refused(&format!(r#"{{ {keys}, "Backend": {{ "Type": "vxlan" }} }}"#), expected);
        }
        refused(
            &format!(
                r#"{{ {only6}, "IPv6Network": "fd00::/48", "Backend": {{ "Type": "vxlan", "MTU": 1349 }} }}"#
            ),
            "it must leave 70 bytes for the tunnel and at least 1280 bytes",
        );
        refused(r#"{ "Network": "10.244.0.0/16" }"#, "there is no Backend");
        let network = r#""Network": "10.244.0.0/16""#;
        for (backend, expected) in [
            (r#""vxlan""#, "Backend is \"vxlan\""),
            (r#"{}"#, "Backend.Type is missing"),
            (r#"{ "Type": "udp" }"#, "Backend.Type is \"udp\""),
            (r#"{ "Type": "wireguard", "PSK": "x" }"#, "does not encrypt"),
            (r#"{ "Type": "vxlan", "VNI": 16777216 }"#, "Backend.VNI is 16777216"),
            (r#"{ "Type": "vxlan", "Port": "8472" }"#, "Backend.Port is \"8472\""),
            (r#"{ "Type": "vxlan", "MTU": 600 }"#, "Backend.MTU is 600"),
            (r#"{ "Type": "vxlan", "DirectRouting": true }"#, "Backend.DirectRouting"),
            (r#"{ "Type": "vxlan", "DirectRouting": "yes" }"#, "must be true or false"),
            (r#"{ "Type": "vxlan", "GBP": true }"#, "Backend.GBP"),
        ] {
            refused(&format!(r#"{{ {network}, "Backend": {backend} }}"#), expected);
        }
    }

    #[test]
    fn what_is_lost_or_not_known_is_noted() {
        let conf = |more: &str, backend: &str| {
            format!(r#"{{ "Network": "10.244.0.0/16", {more} "Backend": {{ {backend} }} }}"#)
        };
        let vxlan = r#""Type": "vxlan""#;
        noted(&conf("", vxlan), &[]);
        noted(&conf(r#""EnableIPv6": true, "IPv6Network": "fd00::/48","#, vxlan), &["in the order of"]);
        let only6 = r#"{ "EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": { "Type": "vxlan", "MTU": 1350 } }"#;
        noted(only6, &[]);
        assert_eq!(parse(only6).unwrap().families, Families { ipv4: false, ipv6: true });
        noted(&conf(r#""IPv6SubnetLen": 64,"#, vxlan), &["--kube-subnet-mgr"]);
        noted(&conf(r#""SubnetLen": 24, "SubnetMin": "10.244.1.0","#, vxlan), &["--kube-subnet-mgr"]);
        noted(&conf(r#""Colour": "red","#, vxlan), &["Colour is not known"]);
        noted(&conf("", r#""Type": "vxlan", "VNI": 4096, "Port": 4789"#), &["Windows"]);
        noted(&conf("", r#""Type": "host-gw", "VNI": 1"#), &["Backend.VNI is not known"]);
    }
}
