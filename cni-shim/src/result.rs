//! What goes to standard output, in the version that the runtime asked for, and what comes back as `prevResult`.

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::config::ConfigError;
use crate::environment::Target;
use crate::error::CniError;
use crate::fields::Fields;
use crate::pod::{PodNetwork, default_of};
use crate::version::SpecVersion;

/// Position of the pod's link among the result's interfaces.
const POD_INTERFACE: usize = 1;

/// Name resolution, as results and configurations write it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dns {
    pub(crate) nameservers: Vec<String>,
    pub(crate) domain: String,
    pub(crate) search: Vec<String>,
    pub(crate) options: Vec<String>,
}

impl Dns {
    /// The same with whatever `other` says in its place.
    pub(crate) fn overridden_by(self, other: Dns) -> Dns {
        let lists = |own: Vec<String>, other: Vec<String>| if other.is_empty() { own } else { other };
        Dns {
            nameservers: lists(self.nameservers, other.nameservers),
            domain: if other.domain.is_empty() { self.domain } else { other.domain },
            search: lists(self.search, other.search),
            options: lists(self.options, other.options),
        }
    }

    fn to_json(&self) -> Value {
        let mut map = Map::new();
        let lists =
            [("nameservers", &self.nameservers), ("search", &self.search), ("options", &self.options)];
        for (key, list) in lists {
            if !list.is_empty() {
                map.insert(key.to_owned(), json!(list));
            }
        }
        if !self.domain.is_empty() {
            map.insert("domain".to_owned(), json!(self.domain));
        }
        Value::Object(map)
    }
}

/// The result of an ADD (CNI specification, section "Result Types").
pub(crate) fn success(version: SpecVersion, target: &Target, network: &PodNetwork, dns: &Dns) -> Value {
    let ips = network.addresses.iter().map(|pair| {
        let mut ip = json!({
            "interface": POD_INTERFACE,
            "address": IpNet::from(pair.address),
            "gateway": pair.gateway,
        });
        if version < SpecVersion::V1_0_0 {
            ip["version"] = json!(if pair.address.is_ipv4() { "4" } else { "6" });
        }
        ip
    });
    // The route to the gateway itself is left out: without a next hop of its own, the specification lets a reader
    // take it as one through the gateway.
    let routes =
        network.addresses.iter().map(|pair| json!({"dst": default_of(pair.gateway), "gw": pair.gateway}));
    json!({
        "cniVersion": version.as_str(),
        "interfaces": [
            {"name": network.host_interface, "mac": network.host_mac.to_string()},
            {
                "name": target.attachment.interface,
                "mac": network.pod_mac.to_string(),
                "sandbox": target.netns,
            },
        ],
        "ips": ips.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "dns": dns.to_json(),
    })
}

/// The error object (CNI specification, section "Error").
pub(crate) fn error(version: SpecVersion, error: &CniError) -> Value {
    let mut object = json!({"cniVersion": version.as_str(), "code": error.code, "msg": error.message});
    if !error.details.is_empty() {
        object["details"] = json!(error.details);
    }
    object
}

/// The answer to VERSION, in the version that the input names, if it names one.
pub(crate) fn versions(input: &[u8]) -> Value {
    let document = serde_json::from_slice::<Value>(input).unwrap_or_default();
    let asked = document["cniVersion"].as_str().filter(|version| !version.is_empty());
    json!({
        "cniVersion": asked.unwrap_or(SpecVersion::NEWEST.as_str()),
        "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str),
    })
}

/// The part of an earlier result that CHECK compares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PreviousResult {
    interfaces: Vec<(String, String)>,
    addresses: Vec<String>,
}

impl PreviousResult {
    pub(crate) fn parse(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let text = |fields: &Fields<'_>, key: &str| {
            Ok::<_, ConfigError>(fields.string(key)?.unwrap_or_default().to_owned())
        };
        let interfaces = fields.objects("interfaces")?;
        let ips = fields.objects("ips")?;
        Ok(PreviousResult {
            interfaces: interfaces
                .iter()
                .map(|interface| Ok((text(interface, "name")?, text(interface, "mac")?)))
                .collect::<Result<_, ConfigError>>()?,
            addresses: ips.iter().map(|ip| text(ip, "address")).collect::<Result<_, _>>()?,
        })
    }

    /// Where it is not what the agent says of the attachment. More than that may be in it: other plugins add theirs.
    pub(crate) fn faults(&self, interface: &str, network: &PodNetwork) -> Vec<String> {
        let pod_mac = network.pod_mac.to_string();
        let host_mac = network.host_mac.to_string();
        let links = [(network.host_interface.as_str(), host_mac), (interface, pod_mac)];
        let missing_links = links.into_iter().filter(|(name, mac)| {
            !self.interfaces.iter().any(|(listed, at)| listed == name && at.eq_ignore_ascii_case(mac))
        });
        let missing_addresses = network
            .addresses
            .iter()
            .map(|pair| IpNet::from(pair.address))
            .filter(|net| !self.addresses.iter().any(|listed| listed.parse() == Ok(*net)));
        missing_links
            .map(|(name, mac)| format!("prevResult has no interface {name} with the MAC address {mac}"))
            .chain(missing_addresses.map(|net| format!("prevResult has no address {net}")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use podwire_cni::protocol::Attachment;

    use super::*;
    use crate::fields::Keys;
    use crate::pod::Address;

    fn target() -> Target {
        Target {
            attachment: Attachment { container_id: "c1".into(), interface: "eth0".into() },
            netns: "/run/netns/pod".into(),
            pod: None,
        }
    }

    fn network() -> PodNetwork {
        PodNetwork {
            addresses: vec![Address {
                address: "10.244.1.7".parse().unwrap(),
                gateway: "10.244.1.1".parse().unwrap(),
            }],
            mtu: 1450,
            pod_mac: "02:00:00:00:00:01".parse().unwrap(),
            host_mac: "02:00:00:00:00:02".parse().unwrap(),
            host_interface: "pw0123456789ab".into(),
        }
    }

    #[test]
    fn a_result_has_the_shape_of_the_version_asked_for() {
        for version in SpecVersion::ALL {
            let mut expected = json!({
                "cniVersion": version.as_str(),
                "interfaces": [
                    {"name": "pw0123456789ab", "mac": "02:00:00:00:00:02"},
                    {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/pod"},
                ],
                "ips": [{"interface": 1, "address": "10.244.1.7/32", "gateway": "10.244.1.1"}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}],
                "dns": {"nameservers": ["10.96.0.10"], "domain": "cluster.local"},
            });
            if version != SpecVersion::V1_0_0 {
                expected["ips"][0]["version"] = json!("4");
            }
            let dns = Dns {
                nameservers: vec!["10.96.0.10".into()],
                domain: "cluster.local".into(),
                ..Dns::default()
            };
            assert_eq!(success(version, &target(), &network(), &dns), expected);
        }
    }

    #[test]
    fn an_error_has_code_message_and_details_only_where_there_are_any() {
        let plain = CniError::new(7, "mtu is missing");
        assert_eq!(
            error(SpecVersion::V0_4_0, &plain),
            json!({"cniVersion": "0.4.0", "code": 7, "msg": "mtu is missing"})
        );
        assert_eq!(error(SpecVersion::V0_4_0, &plain.with_details("more"))["details"], "more");
    }

    #[test]
    fn versions_are_told_in_the_version_of_the_input() {
        for (input, version) in
            [(r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), ("", "1.0.0"), ("{}", "1.0.0"), ("[", "1.0.0")]
        {
            let answer = versions(input.as_bytes());
            assert_eq!(answer["cniVersion"], version, "{input}");
            assert_eq!(answer["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0"]));
        }
    }

    #[test]
    fn the_result_of_every_version_is_accepted_back() {
        for version in SpecVersion::ALL {
            let result = success(version, &target(), &network(), &Dns::default());
            let fields = Fields::at("prevResult", result.as_object().unwrap(), Keys::Exact);
            let previous = PreviousResult::parse(&fields).unwrap();
            assert_eq!(previous.faults("eth0", &network()), Vec::<String>::new());
        }
    }

    #[test]
    fn a_previous_result_that_differs_is_told_item_by_item() {
        let result = json!({
            "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:99"}],
            "ips": [{"address": "10.244.1.8/32"}],
        });
        let fields = Fields::at("prevResult", result.as_object().unwrap(), Keys::Exact);
        assert_eq!(
            PreviousResult::parse(&fields).unwrap().faults("eth0", &network()),
            [
                "prevResult has no interface pw0123456789ab with the MAC address 02:00:00:00:00:02",
                "prevResult has no interface eth0 with the MAC address 02:00:00:00:00:01",
                "prevResult has no address 10.244.1.7/32",
            ]
        );
    }

    #[test]
    fn a_previous_result_of_the_wrong_type_names_the_field() {
        let result = json!({"ips": [{"address": 7}]});
        let fields = Fields::at("prevResult", result.as_object().unwrap(), Keys::Exact);
        let error = PreviousResult::parse(&fields).unwrap_err();
        assert_eq!(error.to_string(), "prevResult.ips[0].address is 7, not a string");
    }
}
