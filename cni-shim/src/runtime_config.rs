//! `runtimeConfig`: what the runtime requests for this one pod (CNI conventions, "Dynamic Plugin
//! specific fields").
//!
//! Keys match in upper or lower case, as in Go's decoder: containerd writes the field names of its
//! own structures.

use std::net::IpAddr;

use ipnet::IpNet;
use podwire_cni::protocol::{Bandwidth, PortMapping};

use crate::bandwidth;
use crate::config_error::ConfigError;
use crate::dns::Dns;
use crate::fields::{Fields, Keys};
use crate::mac::Mac;
use crate::port_mappings;

const KNOWN: [&str; 5] = ["ips", "dns", "mac", "portMappings", "bandwidth"];

/// The capabilities that this version applies, and warnings about other keys.
#[derive(Debug, Default)]
pub(crate) struct RuntimeConfig {
    /// Requested addresses, each with its full prefix length.
    pub(crate) addresses: Vec<IpNet>,
    /// hostPorts.
    pub(crate) port_mappings: Vec<PortMapping>,
    /// The pod side's link address.
    pub(crate) mac: Option<Mac>,
    /// How fast the pod may receive and send.
    pub(crate) bandwidth: Bandwidth,
    /// The pod's name resolution, without a domain.
    pub(crate) dns: Dns,
    pub(crate) warnings: Vec<String>,
}

impl RuntimeConfig {
    pub(crate) fn parse(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let unknown = fields.unknown(&KNOWN).into_iter();
        let warnings = unknown
            .map(|key| format!("unknown key {key:?} in the network configuration is ignored"))
            .collect();
        let port_mappings = port_mappings::parse(fields)?;
        let (addresses, mac, dns) = (addresses(fields)?, mac(fields)?, dns(fields)?);
        let bandwidth = bandwidth::parse(fields)?;
        Ok(RuntimeConfig { addresses, port_mappings, mac, bandwidth, dns, warnings })
    }
}

fn addresses(fields: &Fields<'_>) -> Result<Vec<IpNet>, ConfigError> {
    pod_addresses(&fields.strings("ips")?).map_err(|(found, reason)| ConfigError::Invalid {
        field: fields.path_of("ips"),
        found: found.to_owned(),
        reason: reason.to_owned(),
    })
}

/// Returns the addresses that a pod asks for, or the text that cannot be one of them and the reason.
///
/// A pod's address is alone on its link, so a written prefix length has no meaning. A pod has one
/// address of each family at most.
pub(crate) fn pod_addresses<'a>(texts: &[&'a str]) -> Result<Vec<IpNet>, (&'a str, &'static str)> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in texts {
        let prefixed = text.parse::<IpNet>().map(|net| net.addr());
        let address = prefixed
            .or_else(|_| text.parse::<IpAddr>())
            .map_err(|_| (*text, "an address looks like 10.244.1.7, 10.244.1.7/24 or fd00:10:244:1::7"))?
            .to_canonical();
        if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err((*text, "a pod has one address of each family at most"));
        }
        addresses.push(address);
    }
    Ok(addresses.into_iter().map(IpNet::from).collect())
}

fn mac(fields: &Fields<'_>) -> Result<Option<Mac>, ConfigError> {
    let Some(text) = fields.string("mac")?.filter(|text| !text.is_empty()) else { return Ok(None) };
    Mac::unicast(text).map(Some).ok_or_else(|| ConfigError::Invalid {
        field: fields.path_of("mac"),
        found: text.to_owned(),
        reason: Mac::UNICAST.to_owned(),
    })
}

fn dns(fields: &Fields<'_>) -> Result<Dns, ConfigError> {
    let Some(dns) = fields.object("dns", Keys::AnyCase)? else { return Ok(Dns::default()) };
    let owned = |key| Ok(dns.strings(key)?.into_iter().map(str::to_owned).collect());
    Ok(Dns {
        nameservers: owned("servers")?,
        domain: String::new(),
        search: owned("searches")?,
        options: owned("options")?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(value: &Value) -> Result<RuntimeConfig, ConfigError> {
        RuntimeConfig::parse(&Fields::root(value.as_object().unwrap(), Keys::AnyCase))
    }

    #[test]
    fn addresses_come_with_or_without_a_prefix_and_stand_alone() {
        for (written, addresses) in [
            (["10.244.1.7/24", "fd00::7"], ["10.244.1.7/32", "fd00::7/128"]),
            (["fd00::7/64", "10.244.1.7"], ["fd00::7/128", "10.244.1.7/32"]),
            (["fd00::7/64", "::ffff:10.244.1.7"], ["fd00::7/128", "10.244.1.7/32"]),
        ] {
            let parsed = parse(&json!({ "ips": written })).unwrap();
            assert_eq!(parsed.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), addresses);
        }
    }

    #[test]
    fn a_second_address_of_a_family_is_refused() {
        for texts in [["10.244.1.7", "10.244.1.8"], ["fd00::7/64", "fd00::8"]] {
            let error = parse(&json!({ "ips": texts })).unwrap_err();
            let said = format!("ips is {:?}: a pod has one address of each family", texts[1]);
            assert!(error.to_string().starts_with(&said), "{error}");
        }
    }

    #[test]
    fn an_address_that_is_none_is_named() {
        for text in ["10.244.1", "10.244.1.7/33", "", "localhost"] {
            let error = parse(&json!({"ips": [text]})).unwrap_err();
            assert!(error.to_string().starts_with(&format!("ips is {text:?}")), "{error}");
        }
    }

    #[test]
    fn a_link_address_is_unicast() {
        for value in [json!({"mac": "02:00:00:00:00:0a"}), json!({"Mac": "02:00:00:00:00:0A"})] {
            assert_eq!(parse(&value).unwrap().mac, Some(Mac([2, 0, 0, 0, 0, 10])));
        }
        for text in
            ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "02-00-00-00-00-01", "web"]
        {
            let error = parse(&json!({ "mac": text })).unwrap_err().to_string();
            assert!(error.starts_with(&format!("mac is {text:?}: ")), "{error}");
        }
    }

    #[test]
    fn nothing_asked_for_is_nothing_said() {
        let value =
            json!({"portMappings": [], "bandwidth": {"ingressRate": 0}, "ips": [], "mac": "", "dns": {}});
        let parsed = parse(&value).unwrap();
        assert_eq!(parsed.warnings, Vec::<String>::new());
        assert_eq!(parsed.dns, Dns::default());
    }

    #[test]
    fn an_unknown_key_is_a_warning_and_a_wrong_type_an_error() {
        assert_eq!(parse(&json!({"aliases": ["web"]})).unwrap().warnings.len(), 1);
        for (value, field) in [
            (json!({"portMappings": {"hostPort": 1}}), "portMappings"),
            (json!({"portMappings": [{"HostPort": "80"}]}), "portMappings[0].hostPort"),
            (json!({"bandwidth": {"IngressRate": "1M"}}), "bandwidth.ingressRate"),
            (json!({"dns": {"Servers": "10.96.0.10"}}), "dns.servers"),
            (json!({"mac": 2}), "mac"),
        ] {
            let error = parse(&value).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{field} is ")), "{error}");
        }
    }
}
