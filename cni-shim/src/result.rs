//! The plugin's standard output, in the version that the runtime asked for.

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::chain::Earlier;
use crate::dns::Dns;
use crate::environment::Target;
use crate::error::CniError;
use crate::pod::PodNetwork;
use crate::routes::Route;
use crate::version::SpecVersion;

/// The parts that an ADD has made.
pub(crate) struct Made<'a> {
    pub(crate) target: &'a Target,
    pub(crate) network: &'a PodNetwork,
    pub(crate) routes: &'a [Route],
    pub(crate) dns: &'a Dns,
}

/// Returns the result of an ADD (CNI specification, section "Result Types"): the entries of earlier
/// plugins, then Podwire's.
pub(crate) fn success(version: SpecVersion, made: &Made<'_>, earlier: Earlier) -> Value {
    let dns = earlier.dns.overridden_by(made.dns.clone()).to_json();
    // The route to the gateway itself is left out. It has no next hop, and the specification lets a
    // reader take a route without one for a route through the gateway.
    let routes = made.routes.iter().filter(|route| route.gateway.is_some());
    if version < SpecVersion::V0_3_0 {
        return of_before_0_3_0(version, made, dns);
    }
    let network = made.network;
    let mut interfaces = earlier.interfaces;
    interfaces.push(json!({"name": network.host_interface, "mac": network.host_mac.to_string()}));
    let pod_interface = interfaces.len();
    interfaces.push(json!({
        "name": made.target.attachment.interface,
        "mac": network.pod_mac.to_string(),
        "sandbox": made.target.netns,
    }));
    if version >= SpecVersion::V1_1_0 {
        // Both ends of a pair have the same MTU.
        interfaces[pod_interface - 1]["mtu"] = json!(network.mtu);
        interfaces[pod_interface]["mtu"] = json!(network.mtu);
    }
    let ips = network.addresses.iter().map(|pair| {
        let mut ip = json!({
            "interface": pod_interface,
            "address": IpNet::from(pair.address),
            "gateway": pair.gateway,
        });
        if version < SpecVersion::V1_0_0 {
            ip["version"] = json!(if pair.address.is_ipv4() { "4" } else { "6" });
        }
        ip
    });
    json!({
        "cniVersion": version.as_str(),
        "interfaces": interfaces,
        "ips": earlier.ips.into_iter().chain(ips).collect::<Vec<_>>(),
        "routes": earlier.routes.into_iter().chain(routes.map(|route| route.to_json(version))).collect::<Vec<_>>(),
        "dns": dns,
    })
}

/// Returns the old form: one address of each family, and the routes of that family with it.
fn of_before_0_3_0(version: SpecVersion, made: &Made<'_>, dns: Value) -> Value {
    let mut result = json!({"cniVersion": version.as_str(), "dns": dns});
    for pair in &made.network.addresses {
        let own = made.routes.iter().filter(|route| route.gateway == Some(pair.gateway));
        result[if pair.address.is_ipv4() { "ip4" } else { "ip6" }] = json!({
            "ip": IpNet::from(pair.address),
            "gateway": pair.gateway,
            "routes": own.map(|route| route.to_json(version)).collect::<Vec<_>>(),
        });
    }
    result
}

/// Returns the error object (CNI specification, section "Error").
pub(crate) fn error(version: SpecVersion, error: &CniError) -> Value {
    let mut object = json!({"cniVersion": version.as_str(), "code": error.code, "msg": error.message});
    if !error.details.is_empty() {
        object["details"] = json!(error.details);
    }
    object
}

/// Returns the answer to VERSION, in the version that the input names, if it names one.
pub(crate) fn versions(input: &[u8]) -> Value {
    let document = serde_json::from_slice::<Value>(input).unwrap_or_default();
    let asked = document["cniVersion"].as_str().filter(|version| !version.is_empty());
    json!({
        "cniVersion": asked.unwrap_or(SpecVersion::NEWEST.as_str()),
        "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use podwire_cni::protocol::Attachment;

    use super::*;
    use crate::pod::Address;

    pub(crate) fn target() -> Target {
        Target {
            attachment: Attachment { container_id: "c1".into(), interface: "eth0".into() },
            netns: "/run/netns/pod".into(),
            pod: None,
            addresses: Vec::new(),
            mac: None,
        }
    }

    pub(crate) fn network() -> PodNetwork {
        PodNetwork {
            addresses: vec![Address {
                address: "10.244.1.7".parse().unwrap(),
                gateway: "10.244.1.1".parse().unwrap(),
            }],
            mtu: 1450,
            pod_mac: "02:00:00:00:00:01".parse().unwrap(),
            host_mac: "02:00:00:00:00:02".parse().unwrap(),
            host_interface: target().attachment.host_interface(),
        }
    }

    pub(crate) fn result_of(version: SpecVersion) -> Value {
        after(version, Earlier::default())
    }

    fn after(version: SpecVersion, earlier: Earlier) -> Value {
        let dns =
            Dns { nameservers: vec!["10.96.0.10".into()], domain: "cluster.local".into(), ..Dns::default() };
        let routes = network().routes(&[]).unwrap();
        success(
            version,
            &Made { target: &target(), network: &network(), routes: &routes, dns: &dns },
            earlier,
        )
    }

    #[test]
    fn a_result_has_the_shape_of_the_version_asked_for() {
        for version in SpecVersion::ALL {
            let dns = json!({"nameservers": ["10.96.0.10"], "domain": "cluster.local"});
            let routes = json!([{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}]);
            let mut expected = json!({
                "cniVersion": version.as_str(),
                "interfaces": [
                    {"name": network().host_interface, "mac": "02:00:00:00:00:02"},
                    {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/pod"},
                ],
                "ips": [{"interface": 1, "address": "10.244.1.7/32", "gateway": "10.244.1.1"}],
                "routes": routes,
                "dns": dns,
            });
            match version {
                SpecVersion::V0_1_0 | SpecVersion::V0_2_0 => {
                    let ip4 = json!({"ip": "10.244.1.7/32", "gateway": "10.244.1.1", "routes": routes});
                    expected = json!({"cniVersion": version.as_str(), "ip4": ip4, "dns": dns});
                }
                SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0 => {
                    expected["ips"][0]["version"] = json!("4");
                }
                SpecVersion::V1_0_0 => {}
                SpecVersion::V1_1_0 => {
                    expected["interfaces"][0]["mtu"] = json!(1450);
                    expected["interfaces"][1]["mtu"] = json!(1450);
                }
            }
            assert_eq!(result_of(version), expected);
        }
    }

    #[test]
    fn later_in_a_list_our_part_comes_after_the_others() {
        let earlier = Earlier {
            interfaces: vec![json!({"name": "lo", "sandbox": "/run/netns/pod", "socketPath": "/run/x"})],
            ips: vec![json!({"address": "127.0.0.1/8", "interface": 0})],
            routes: vec![json!({"dst": "10.0.0.0/8"})],
            dns: Dns {
                nameservers: vec!["192.0.2.1".into()],
                search: vec!["example.org".into()],
                ..Dns::default()
            },
        };
        let result = after(SpecVersion::V1_0_0, earlier);
        let names = |key: &str, field: &str| -> Vec<Value> {
            result[key].as_array().unwrap().iter().map(|entry| entry[field].clone()).collect()
        };
        assert_eq!(
            names("interfaces", "name"),
            [json!("lo"), json!(network().host_interface), json!("eth0")]
        );
        assert_eq!(result["interfaces"][0]["socketPath"], "/run/x");
        assert_eq!(names("ips", "interface"), [0, 2]);
        assert_eq!(names("routes", "dst"), ["10.0.0.0/8", "0.0.0.0/0"]);
        assert_eq!(
            result["dns"],
            json!({"nameservers": ["10.96.0.10"], "domain": "cluster.local", "search": ["example.org"]})
        );
    }

    #[test]
    fn error_has_code_message_and_details_only_if_there_are_any() {
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
            [(r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), ("", "1.1.0"), ("{}", "1.1.0"), ("[", "1.1.0")]
        {
            let answer = versions(input.as_bytes());
            assert_eq!(answer["cniVersion"], version, "{input}");
            assert_eq!(
                answer["supportedVersions"],
                json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
            );
        }
    }
}
