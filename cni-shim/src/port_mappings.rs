//! The `portMappings` capability: hostPorts (CNI conventions, "Dynamic Plugin specific fields").

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use podwire_cni::protocol::{PortMapping, Transport};

use crate::config_error::ConfigError;
use crate::fields::Fields;

/// An entry as it was written. Its host address may still have either family.
struct Entry {
    mapping: PortMapping,
    is_any_ipv6: bool,
    /// The full path of the host address, for messages.
    field: String,
}

/// Returns the requested mappings, and warnings for the operator about those that are left out.
///
/// Entries without a host port request nothing, as for the reference plugin: a runtime also lists a
/// pod's other ports.
pub(crate) fn parse(fields: &Fields<'_>) -> Result<(Vec<PortMapping>, Vec<String>), ConfigError> {
    let mut entries = Vec::new();
    for fields in fields.objects("portMappings")? {
        if let Some(host_port) = port(&fields, "hostPort")? {
            entries.push(entry(&fields, host_port)?);
        }
    }
    let mut warnings = Vec::new();
    let mut mappings = Vec::new();
    for entry in &entries {
        if entry.is_any_ipv6 && has_ipv4_form(&entries, entry) {
            warnings.push(format!(
                "{} is \"::\" beside an IPv4 address for the same port: it is ignored, because pods have only IPv4 addresses",
                entry.field
            ));
        } else if !mappings.contains(&entry.mapping) {
            mappings.push(entry.mapping);
        }
    }
    Ok((mappings, warnings))
}

fn entry(fields: &Fields<'_>, host_port: NonZeroU16) -> Result<Entry, ConfigError> {
    let missing = || ConfigError::Missing { field: fields.path_of("containerPort") };
    let (host_address, is_any_ipv6) = host_address(fields)?;
    let mapping = PortMapping {
        host_port,
        container_port: port(fields, "containerPort")?.ok_or_else(missing)?,
        protocol: transport(fields)?,
        host_address,
    };
    Ok(Entry { mapping, is_any_ipv6, field: fields.path_of("hostIP") })
}

/// Returns a port. Zero means "not set": in Go, a number that is not set is zero.
fn port(fields: &Fields<'_>, key: &str) -> Result<Option<NonZeroU16>, ConfigError> {
    let Some(number) = fields.unsigned(key)? else { return Ok(None) };
    match u16::try_from(number) {
        Ok(port) => Ok(NonZeroU16::new(port)),
        Err(_) => Err(ConfigError::Invalid {
            field: fields.path_of(key),
            found: number.to_string(),
            reason: "a port is between 1 and 65535".to_owned(),
        }),
    }
}

fn transport(fields: &Fields<'_>) -> Result<Transport, ConfigError> {
    let text = fields.string("protocol")?.unwrap_or_default();
    match text.to_ascii_lowercase().as_str() {
        "" | "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        _ => Err(ConfigError::Invalid {
            field: fields.path_of("protocol"),
            found: text.to_owned(),
            reason: "hostPorts work only with tcp and udp".to_owned(),
        }),
    }
}

/// Returns the host address (`None` for all addresses of the node), and whether it was written as
/// IPv6's "any".
///
/// - Alone, `::` means all addresses of the node, as for a socket.
/// - Beside an IPv4 form for the same port, `::` is only the IPv6 half of that form. It must not
///   open more IPv4 addresses than that form does.
/// - A particular IPv6 address is refused, because pods have none. Otherwise the user would find
///   out late that the pod does not answer at the requested address.
fn host_address(fields: &Fields<'_>) -> Result<(Option<Ipv4Addr>, bool), ConfigError> {
    let text = fields.string("hostIP")?.unwrap_or_default();
    if text.is_empty() {
        return Ok((None, false));
    }
    let invalid = |reason: &str| ConfigError::Invalid {
        field: fields.path_of("hostIP"),
        found: text.to_owned(),
        reason: reason.to_owned(),
    };
    match text.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(address) if address.is_unspecified() => Ok((None, address.is_ipv6())),
        Ok(IpAddr::V4(address)) => Ok((Some(address), false)),
        Ok(IpAddr::V6(_)) => {
            Err(invalid("pods have IPv4 addresses only: leave it out, or name an IPv4 address"))
        }
        Err(_) => Err(invalid("an address looks like 10.200.0.1")),
    }
}

fn has_ipv4_form(entries: &[Entry], any_ipv6: &Entry) -> bool {
    let key = |entry: &Entry| (entry.mapping.host_port, entry.mapping.protocol);
    entries.iter().any(|entry| !entry.is_any_ipv6 && key(entry) == key(any_ipv6))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fields::Keys;

    fn check(entries: &Value) -> Result<(Vec<String>, usize), ConfigError> {
        let document = json!({ "portMappings": entries });
        let (mappings, warnings) = parse(&Fields::root(document.as_object().unwrap(), Keys::AnyCase))?;
        Ok((mappings.iter().map(ToString::to_string).collect(), warnings.len()))
    }

    #[test]
    fn a_mapping_is_read_in_either_case_of_keys_and_protocol() {
        for entries in [
            json!([{"hostPort": 9088, "containerPort": 8080, "protocol": "udp", "hostIP": "10.200.0.1"}]),
            json!([{"HostPort": 9088, "ContainerPort": 8080, "Protocol": "UDP", "HostIP": "10.200.0.1"}]),
        ] {
            assert_eq!(check(&entries).unwrap(), (vec!["10.200.0.1:9088/udp to port 8080".to_owned()], 0));
        }
    }

    #[test]
    fn without_protocol_and_host_address_it_is_tcp_on_every_address() {
        for address in ["", "0.0.0.0", "::", "::ffff:0.0.0.0"] {
            let entries = json!([{"hostPort": 80, "containerPort": 8080, "hostIP": address}]);
            assert_eq!(check(&entries).unwrap(), (vec!["*:80/tcp to port 8080".to_owned()], 0), "{address}");
        }
    }

    #[test]
    fn an_entry_without_host_port_asks_for_nothing() {
        let entries =
            json!([{"containerPort": 8080}, {"hostPort": 0, "containerPort": 8080, "protocol": "sctp"}]);
        assert_eq!(check(&entries).unwrap(), (vec![], 0));
    }

    #[test]
    fn repeated_entries_are_one() {
        let entry = json!({"hostPort": 80, "containerPort": 80});
        assert_eq!(check(&json!([entry, entry])).unwrap().0.len(), 1);
    }

    #[test]
    fn any_ipv6_address_beside_an_ipv4_form_opens_nothing_more() {
        for (address, mapping) in
            [("10.200.0.1", "10.200.0.1:80/tcp to port 80"), ("", "*:80/tcp to port 80")]
        {
            let entries = json!([
                {"hostPort": 80, "containerPort": 80, "hostIP": "::"},
                {"hostPort": 80, "containerPort": 80, "hostIP": address},
            ]);
            assert_eq!(check(&entries).unwrap(), (vec![mapping.to_owned()], 1), "{address}");
        }
        let other_port = json!([
            {"hostPort": 80, "containerPort": 80, "hostIP": "::"},
            {"hostPort": 81, "containerPort": 80, "hostIP": "10.200.0.1"},
        ]);
        assert_eq!(check(&other_port).unwrap().0.len(), 2);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        for (entry, field) in [
            (json!({"hostPort": 65536, "containerPort": 80}), "hostPort is "),
            (json!({"hostPort": -1, "containerPort": 80}), "hostPort is "),
            (json!({"hostPort": 80, "containerPort": 65536}), "containerPort is "),
            (json!({"hostPort": 80, "containerPort": 0}), "containerPort is missing"),
            (json!({"hostPort": 80}), "containerPort is missing"),
            (json!({"hostPort": 80, "containerPort": 80, "protocol": "SCTP"}), "protocol is \"SCTP\""),
            (json!({"hostPort": 80, "containerPort": 80, "hostIP": "fd00::1"}), "hostIP is \"fd00::1\""),
            (json!({"hostPort": 80, "containerPort": 80, "hostIP": "10.200.0"}), "hostIP is \"10.200.0\""),
        ] {
            let error = check(&json!([entry])).unwrap_err().to_string();
            assert!(error.starts_with(&format!("portMappings[0].{field}")), "{entry}: {error}");
        }
    }
}
