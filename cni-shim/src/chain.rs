//! Podwire after other plugins in a list: reads their result, to which `podwire-cni` adds its own
//! part.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::config_error::ConfigError;
use crate::dns::Dns;
use crate::fields::{Fields, Keys};

/// The result of the plugins before this one. They have not made the pod's interface.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Earlier {
    pub(crate) interfaces: Vec<Value>,
    pub(crate) ips: Vec<Value>,
    pub(crate) routes: Vec<Value>,
    pub(crate) dns: Dns,
}

impl Earlier {
    /// Reads `prevResult`, if there is one.
    ///
    /// A Podwire pod has one interface, made by Podwire. So this refuses a result that already has
    /// that interface or an address of the pod. Loopback addresses may be there: the reference
    /// plugin `loopback` returns them.
    pub(crate) fn parse(previous: Option<&Value>, interface: &str) -> Result<Self, ConfigError> {
        let Some(map) = previous.and_then(Value::as_object) else { return Ok(Earlier::default()) };
        let fields = Fields::at("prevResult", map, Keys::Exact);
        for link in fields.objects("interfaces")? {
            let in_pod = link.string("sandbox")?.is_some_and(|sandbox| !sandbox.is_empty());
            if in_pod && link.string("name")? == Some(interface) {
                return Err(already(&link, "name", interface, "has made the pod's interface"));
            }
        }
        for ip in fields.objects("ips")? {
            let text = ip.string("address")?.unwrap_or_default();
            if !is_loopback(text) {
                return Err(already(&ip, "address", text, "has given the pod an address"));
            }
        }
        fields.objects("routes")?;
        let list = |key: &str| fields.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(Earlier {
            interfaces: list("interfaces"),
            ips: list("ips"),
            routes: list("routes"),
            dns: Dns::parse(&fields)?,
        })
    }
}

fn already(fields: &Fields<'_>, key: &str, found: &str, what: &str) -> ConfigError {
    ConfigError::Invalid {
        field: fields.path_of(key),
        found: found.to_owned(),
        reason: format!(
            "a plugin before podwire-cni in the list {what}, but podwire-cni does that itself: take that plugin out of the list, or put \
             podwire-cni into a list of its own with another interface name"
        ),
    }
}

fn is_loopback(address: &str) -> bool {
    let net = address.parse::<IpNet>().map(|net| net.addr());
    net.or_else(|_| address.parse::<IpAddr>()).is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_have_made_is_kept() {
        let previous = json!({
            "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/pod"}, {"name": "eth0"}],
            "ips": [{"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0}],
            "routes": [{"dst": "10.0.0.0/8"}],
            "dns": {"domain": "example.org"},
        });
        let earlier = Earlier::parse(Some(&previous), "eth0").unwrap();
        assert_eq!((earlier.interfaces.len(), earlier.ips.len(), earlier.routes.len()), (2, 2, 1));
        assert_eq!(earlier.dns.domain, "example.org");
        assert_eq!(Earlier::parse(None, "eth0").unwrap(), Earlier::default());
    }

    #[test]
    fn what_competes_with_our_interface_is_refused_by_name() {
        for (previous, field) in [
            (
                json!({"interfaces": [{"name": "eth0", "sandbox": "/run/netns/pod"}]}),
                "prevResult.interfaces[0].name",
            ),
            (json!({"ips": [{"address": "10.88.0.2/16"}]}), "prevResult.ips[0].address"),
            (json!({"ips": [{"address": "127.0.0.1/8"}, {}]}), "prevResult.ips[1].address"),
            (json!({"interfaces": [1]}), "prevResult.interfaces[0]"),
            (json!({"routes": {}}), "prevResult.routes"),
            (json!({"dns": {"search": "example.org"}}), "prevResult.dns.search"),
        ] {
            let error = Earlier::parse(Some(&previous), "eth0").unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field} is ")), "{error}");
        }
    }
}
