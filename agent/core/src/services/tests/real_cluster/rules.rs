//! Reads what kube-proxy does from its nftables rules (`nft list ruleset`).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{Behaviour, describe, key};

/// kube-proxy's table of a family: its maps, sets and chains by name, each as its lines.
struct Table<'a> {
    family: &'static str,
    blocks: BTreeMap<&'a str, Vec<&'a str>>,
}

/// What a chain for clients does with them.
struct Chain {
    inside: String,
    outside: Option<String>,
    keeps_client: bool,
    affinity: u32,
}

/// Returns what all frontends of a node do.
pub fn behaviour(rules: &str) -> Behaviour {
    let tables = [("IPv4", "table ip kube-proxy {"), ("IPv6", "table ip6 kube-proxy {")];
    let tables = tables.map(|(family, start)| {
        let rules = rules.split_once(start).unwrap().1;
        Table::parse(family, rules.split_once("\n}").unwrap().0)
    });
    tables.iter().flat_map(Table::behaviour).collect()
}

impl<'a> Table<'a> {
    fn parse(family: &'static str, rules: &'a str) -> Self {
        let mut blocks = BTreeMap::new();
        let mut block = "";
        for line in rules.lines().map(str::trim) {
            if let Some(start) = line.strip_suffix(" {") {
                block = start.split_once(' ').unwrap().1;
                blocks.insert(block, Vec::new());
            } else if !block.is_empty() && !["", "}"].contains(&line) {
                blocks.get_mut(block).unwrap().push(line);
            }
        }
        Self { family, blocks }
    }

    fn behaviour(&self) -> Behaviour {
        let cluster_ips = self.elements("cluster-ips");
        let verdicts: BTreeMap<_, _> = self
            .elements("no-endpoint-services")
            .into_iter()
            .chain(self.elements("no-endpoint-nodeports"))
            .collect();
        let chains = self.elements("service-ips").into_iter().chain(self.elements("service-nodeports"));
        let ranges = self.elements("firewall-ips");

        let mut behaviour = Behaviour::new();
        let mut insert = |element: &str, chain: Chain| {
            let parts: Vec<_> = element.split(" . ").collect();
            let (address, [protocol, port]) = match parts[..] {
                [address, protocol, port] => (address, [protocol, port]),
                [protocol, port] => (self.family, [protocol, port]),
                _ => panic!("{element}"),
            };
            let ranges = ranges.get(element).map_or_else(Vec::new, |verdict| self.sources(verdict));
            let is_cluster_ip = cluster_ips.contains_key(address);
            let verdict = || verdicts.get(element).map(|verdict| outcome(verdict));
            let outside = chain.outside.or_else(verdict).filter(|_| !is_cluster_ip);
            let words =
                describe(&chain.inside, outside.as_deref(), chain.keeps_client, &ranges, chain.affinity);
            behaviour.insert(key(address, protocol, port), words);
        };
        for (element, verdict) in &verdicts {
            let outcome = outcome(verdict);
            insert(element, Chain { inside: outcome, outside: None, keeps_client: false, affinity: 0 });
        }
        for (element, verdict) in chains {
            insert(&element, self.chain(verdict.strip_prefix("goto ").unwrap()));
        }
        behaviour
    }

    /// Returns the elements of a map or set, with their verdicts.
    fn elements(&self, name: &str) -> BTreeMap<String, String> {
        let text = self.blocks[name].join(" ");
        let elements = text.split_once("elements = {").map_or("", |(_, elements)| elements);
        let elements = elements.trim_end_matches('}').split(',').map(str::trim);
        let parse = |element: &str| {
            let (element, verdict) = element.rsplit_once(" : ").unwrap_or((element, ""));
            let element = element.split_once(" comment ").map_or(element, |(element, _)| element);
            (element.trim().to_string(), verdict.trim().to_string())
        };
        elements.filter(|element| !element.is_empty()).map(parse).collect()
    }

    fn chain(&self, name: &str) -> Chain {
        let lines = &self.blocks[name];
        if !name.starts_with("external-") {
            let (backends, affinity) = self.backends(name);
            return Chain {
                inside: backends.clone(),
                outside: Some(backends),
                keeps_client: false,
                affinity,
            };
        }
        let goto = |line: &&str| line.split_once("goto ").unwrap().1.split(' ').next().unwrap().to_string();
        let outside = lines.iter().find(|line| line.starts_with("goto ")).map(goto);
        let short_circuit = lines.iter().find(|line| line.contains("short-circuit pod traffic")).map(goto);
        let masquerades = lines.iter().any(|line| line.starts_with("meta mark set"));
        let inside = short_circuit.or_else(|| outside.clone()).unwrap();
        let (inside, affinity) = self.backends(&inside);
        let outside = outside.map(|chain| self.backends(&chain).0);
        Chain { inside, outside, keeps_client: !masquerades, affinity }
    }

    /// Returns the backends of a chain, and for how many seconds clients keep them.
    fn backends(&self, chain: &str) -> (String, u32) {
        let last = *self.blocks[chain].last().unwrap();
        let choices = last.rsplit_once("{ ").unwrap().1.trim_end_matches(" }").split(", ");
        let choices = choices.map(|choice| choice.split_once(" : ").unwrap().1);
        let mut affinity = 0;
        let mut backends: Vec<SocketAddr> = choices
            .map(|choice| match choice.strip_prefix("goto ") {
                Some(endpoint) => {
                    affinity = self.timeout(&endpoint.replacen("endpoint-", "affinity-", 1));
                    self.blocks[endpoint].last().unwrap().rsplit_once(' ').unwrap().1.parse().unwrap()
                }
                None => {
                    let (address, port) = choice.split_once(" . ").unwrap();
                    SocketAddr::new(address.parse().unwrap(), port.parse().unwrap())
                }
            })
            .collect();
        backends.sort();
        (backends.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), affinity)
    }

    fn timeout(&self, set: &str) -> u32 {
        let timeout = self.blocks[set].iter().find_map(|line| line.strip_prefix("timeout ")).unwrap();
        timeout.strip_suffix('m').unwrap().parse::<u32>().unwrap() * 60
    }

    /// Returns the sources that a firewall chain lets pass.
    fn sources(&self, verdict: &str) -> Vec<String> {
        let [line] = self.blocks[verdict.strip_prefix("goto ").unwrap()][..] else { panic!("{verdict}") };
        let sources = line.split_once("saddr != ").unwrap().1.strip_suffix(" drop").unwrap();
        sources.trim_matches(['{', '}', ' ']).split(", ").map(Into::into).collect()
    }
}

fn outcome(verdict: &str) -> String {
    match verdict {
        "drop" => "dropped".into(),
        "goto reject-chain" => "refused".into(),
        unknown => panic!("{unknown}"),
    }
}
