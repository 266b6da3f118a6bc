//! `prevResult`, as CHECK compares it: the result of ADD with the changes of later plugins.

use ipnet::IpNet;

use crate::config_error::ConfigError;
use crate::environment::Target;
use crate::fields::Fields;
use crate::mac::Mac;
use crate::pod::{Address, PodNetwork};
use crate::routes::Route;

/// The part of an earlier result that CHECK compares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PreviousResult {
    interfaces: Vec<Interface>,
    ips: Vec<(String, Option<String>)>,
    /// Destination and gateway.
    routes: Vec<(String, Option<String>)>,
}

#[derive(Debug, PartialEq, Eq)]
struct Interface {
    name: String,
    in_pod: bool,
    mac: String,
    /// Present from version 1.1.0 on.
    mtu: Option<u32>,
}

impl PreviousResult {
    pub(crate) fn parse(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let text = |fields: &Fields<'_>, key: &str| {
            Ok::<_, ConfigError>(fields.string(key)?.unwrap_or_default().to_owned())
        };
        let optional = |fields: &Fields<'_>, key: &str| {
            Ok::<_, ConfigError>(fields.string(key)?.filter(|text| !text.is_empty()).map(str::to_owned))
        };
        let interface = |fields: &Fields<'_>| {
            let mtu = fields.unsigned("mtu")?.and_then(|mtu| u32::try_from(mtu).ok()).filter(|mtu| *mtu != 0);
            let in_pod = optional(fields, "sandbox")?.is_some();
            Ok::<_, ConfigError>(Interface {
                name: text(fields, "name")?,
                in_pod,
                mac: text(fields, "mac")?,
                mtu,
            })
        };
        let ip = |fields: &Fields<'_>| Ok((text(fields, "address")?, optional(fields, "gateway")?));
        let route = |fields: &Fields<'_>| Ok((text(fields, "dst")?, optional(fields, "gw")?));
        Ok(PreviousResult {
            interfaces: fields.objects("interfaces")?.iter().map(interface).collect::<Result<_, _>>()?,
            ips: fields.objects("ips")?.iter().map(ip).collect::<Result<_, ConfigError>>()?,
            routes: fields.objects("routes")?.iter().map(route).collect::<Result<_, ConfigError>>()?,
        })
    }

    /// Returns where the result differs from the agent's answer about the attachment. Additional
    /// entries are allowed: other plugins add theirs.
    pub(crate) fn faults(&self, interface: &str, network: &PodNetwork) -> Vec<String> {
        let links =
            [(network.host_interface.as_str(), false, network.host_mac), (interface, true, network.pod_mac)];
        let missing_links =
            links.into_iter().filter(|(name, in_pod, mac)| self.mac(name, *in_pod) != Some(*mac));
        let missing_addresses = network
            .addresses
            .iter()
            .map(|pair| IpNet::from(pair.address))
            .filter(|net| !self.ips.iter().any(|(listed, _)| listed.parse() == Ok(*net)));
        missing_links
            .map(|(name, _, mac)| format!("prevResult has no interface {name} with the MAC address {mac}"))
            .chain(missing_addresses.map(|net| format!("prevResult has no address {net}")))
            .collect()
    }

    /// Returns the pod's network as far as the result contains it. CHECK uses it when the agent
    /// reports only faults. Results before 1.1.0 contain no MTU: then the function uses `mtu`.
    pub(crate) fn network(&self, target: &Target, mtu: u32) -> Option<PodNetwork> {
        let host_interface = target.attachment.host_interface();
        let pair = |(address, gateway): &(String, Option<String>)| {
            let address = address.parse::<IpNet>().ok()?.addr();
            let gateway = gateway.as_ref()?.parse().ok()?;
            (!address.is_loopback()).then_some(Address { address, gateway })
        };
        Some(PodNetwork {
            addresses: self.ips.iter().filter_map(pair).collect(),
            mtu: self.mtu(&target.attachment.interface).unwrap_or(mtu),
            pod_mac: self.mac(&target.attachment.interface, true)?,
            host_mac: self.mac(&host_interface, false)?,
            host_interface,
        })
    }

    /// Returns the MTU of the pod's interface, which a later plugin may have changed.
    pub(crate) fn mtu(&self, interface: &str) -> Option<u32> {
        self.interface(interface, true)?.mtu
    }

    /// Returns whether a route of Podwire is still in the result. A route without a gateway never
    /// was in it, so for such a route the answer is true.
    pub(crate) fn lists(&self, route: &Route) -> bool {
        let is_it = |(destination, gateway): &(String, Option<String>)| {
            let destination = destination.parse::<IpNet>().map(|net| net.trunc());
            let gateway = gateway.as_ref().map(|gateway| gateway.parse());
            destination == Ok(route.destination)
                && gateway.is_none_or(|gateway| gateway.ok() == route.gateway)
        };
        route.gateway.is_none() || self.routes.iter().any(is_it)
    }

    fn mac(&self, interface: &str, in_pod: bool) -> Option<Mac> {
        self.interface(interface, in_pod)?.mac.parse().ok()
    }

    fn interface(&self, name: &str, in_pod: bool) -> Option<&Interface> {
        self.interfaces.iter().find(|link| link.name == name && link.in_pod == in_pod)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fields::Keys;
    use crate::result::tests::{network, result_of, target};
    use crate::version::SpecVersion;

    fn parse(result: &Value) -> Result<PreviousResult, ConfigError> {
        PreviousResult::parse(&Fields::at("prevResult", result.as_object().unwrap(), Keys::Exact))
    }

    #[test]
    fn the_result_of_every_version_that_has_check_is_accepted_back() {
        for version in SpecVersion::ALL.into_iter().filter(|version| *version >= SpecVersion::V0_4_0) {
            let previous = parse(&result_of(version)).unwrap();
            assert_eq!(previous.faults("eth0", &network()), Vec::<String>::new());
            assert!(network().routes(&[]).unwrap().iter().all(|route| previous.lists(route)));
            assert_eq!(previous.network(&target(), 1450), Some(network()));
            assert_eq!(previous.mtu("eth0"), (version >= SpecVersion::V1_1_0).then_some(1450));
        }
    }

    #[test]
    fn a_route_that_a_later_plugin_took_out_is_not_looked_for() {
        let previous = parse(&json!({"routes": [{"dst": "10.0.0.0/8"}]})).unwrap();
        let routes = network().routes(&[]).unwrap();
        assert_eq!(routes.iter().map(|route| previous.lists(route)).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn a_previous_result_that_differs_is_told_item_by_item() {
        let result = json!({
            "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:99"}],
            "ips": [{"address": "10.244.1.8/32"}],
        });
        assert_eq!(
            parse(&result).unwrap().faults("eth0", &network()),
            [
                "prevResult has no interface pw02b3bfe94942 with the MAC address 02:00:00:00:00:02",
                "prevResult has no interface eth0 with the MAC address 02:00:00:00:00:01",
                "prevResult has no address 10.244.1.7/32",
            ]
        );
    }

    #[test]
    fn a_previous_result_of_the_wrong_type_names_the_field() {
        let result = json!({"ips": [{"address": 7}]});
        let error = parse(&result).unwrap_err();
        assert_eq!(error.to_string(), "prevResult.ips[0].address is 7, not a string");
    }
}
