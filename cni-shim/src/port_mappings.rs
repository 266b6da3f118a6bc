//! The `portMappings` capability: hostPorts (CNI conventions, "Dynamic Plugin specific fields").

use std::net::IpAddr;
use std::num::NonZeroU16;

use podwire_cni::protocol::{PortMapping, Transport};

use crate::config_error::ConfigError;
use crate::fields::Fields;

/// Returns the requested mappings.
///
/// Entries without a host port request nothing, as for the reference plugin: a runtime also lists a
/// pod's other ports.
pub(crate) fn parse(fields: &Fields<'_>) -> Result<Vec<PortMapping>, ConfigError> {
    let mut mappings = Vec::new();
    for fields in fields.objects("portMappings")? {
        if let Some(host_port) = port(&fields, "hostPort")? {
            let mapping = mapping(&fields, host_port)?;
            if !mappings.contains(&mapping) {
                mappings.push(mapping);
            }
        }
    }
    Ok(mappings)
}

fn mapping(fields: &Fields<'_>, host_port: NonZeroU16) -> Result<PortMapping, ConfigError> {
    let missing = || ConfigError::Missing { field: fields.path_of("containerPort") };
    Ok(PortMapping {
        host_port,
        container_port: port(fields, "containerPort")?.ok_or_else(missing)?,
        protocol: transport(fields)?,
        host_address: host_address(fields)?,
    })
}

/// Compares the mappings with the families of the pod's addresses (`has_ipv4`, `has_ipv6`).
///
/// - All host addresses of a family that the pod lacks: a warning. A runtime may list both families
///   for every pod, and the reference plugin ignores the one that the pod lacks.
/// - A particular host address of such a family: an error. Otherwise the user would find out late
///   that the pod does not answer there.
pub(crate) fn unserved(
    mappings: &[PortMapping],
    has_ipv4: bool,
    has_ipv6: bool,
) -> Result<Vec<String>, ConfigError> {
    let mut warnings = Vec::new();
    for mapping in mappings {
        let Some(address) = mapping.host_address else { continue };
        let (is_served, family) = if address.is_ipv4() { (has_ipv4, "IPv4") } else { (has_ipv6, "IPv6") };
        if is_served {
            continue;
        }
        if !address.is_unspecified() {
            return Err(ConfigError::Invalid {
                field: "runtimeConfig.portMappings".to_owned(),
                found: mapping.to_string(),
                reason: format!(
                    "the pod has no {family} address: leave hostIP out, or name an address of the other family"
                ),
            });
        }
        warnings.push(format!("hostPort {mapping} is ignored: the pod has no {family} address"));
    }
    Ok(warnings)
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

/// Returns the host address. `None`: all addresses of the node. `0.0.0.0` and `::` are all addresses
/// of one family, as for Kubernetes' `hostIP`.
fn host_address(fields: &Fields<'_>) -> Result<Option<IpAddr>, ConfigError> {
    let text = fields.string("hostIP")?.unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse::<IpAddr>().map_err(|_| ConfigError::Invalid {
        field: fields.path_of("hostIP"),
        found: text.to_owned(),
        reason: "an address looks like 10.200.0.1 or fd00::1".to_owned(),
    })?;
    Ok(Some(address.to_canonical()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fields::Keys;

    fn check(entries: &Value) -> Result<Vec<String>, ConfigError> {
        let document = json!({ "portMappings": entries });
        let mappings = parse(&Fields::root(document.as_object().unwrap(), Keys::AnyCase))?;
        Ok(mappings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_mapping_is_read_in_either_case_of_keys_and_protocol() {
        for entries in [
            json!([{"hostPort": 9088, "containerPort": 8080, "protocol": "udp", "hostIP": "10.200.0.1"}]),
            json!([{"HostPort": 9088, "ContainerPort": 8080, "Protocol": "UDP", "HostIP": "10.200.0.1"}]),
        ] {
            assert_eq!(check(&entries).unwrap(), ["10.200.0.1:9088/udp to port 8080"]);
        }
    }

    #[test]
    fn without_protocol_it_is_tcp_and_each_any_is_its_own() {
        for (address, mapping) in [
            ("", "*:80/tcp to port 8080"),
            ("0.0.0.0", "0.0.0.0:80/tcp to port 8080"),
            ("::ffff:0.0.0.0", "0.0.0.0:80/tcp to port 8080"),
            ("::", "[::]:80/tcp to port 8080"),
            ("fd00::1", "[fd00::1]:80/tcp to port 8080"),
        ] {
            let entries = json!([{"hostPort": 80, "containerPort": 8080, "hostIP": address}]);
            assert_eq!(check(&entries).unwrap(), [mapping], "{address}");
        }
        let both = ["::", "0.0.0.0"].map(|ip| json!({"hostPort": 80, "containerPort": 80, "hostIP": ip}));
        assert_eq!(check(&json!(both)).unwrap().len(), 2);
    }

    #[test]
    fn an_entry_without_host_port_asks_for_nothing() {
        let entries =
            json!([{"containerPort": 8080}, {"hostPort": 0, "containerPort": 8080, "protocol": "sctp"}]);
        assert_eq!(check(&entries).unwrap(), [""; 0]);
    }

    #[test]
    fn repeated_entries_are_one() {
        let entry = json!({"hostPort": 80, "containerPort": 80});
        assert_eq!(check(&json!([entry, entry])).unwrap().len(), 1);
    }

    #[test]
    fn host_addresses_of_a_family_that_the_pod_lacks_are_told() {
        let unserved = |address: &str, has_ipv4: bool, has_ipv6: bool| {
            let port = NonZeroU16::new(80).unwrap();
            let host_address = (!address.is_empty()).then(|| address.parse().unwrap());
            let mapping =
                PortMapping { host_port: port, container_port: port, protocol: Transport::Tcp, host_address };
            unserved(&[mapping], has_ipv4, has_ipv6).map(|warnings| warnings.len()).map_err(|_| ())
        };
        for (address, only_ipv4, only_ipv6) in [
            ("", Ok(0), Ok(0)),
            ("0.0.0.0", Ok(0), Ok(1)),
            ("::", Ok(1), Ok(0)),
            ("10.200.0.1", Ok(0), Err(())),
            ("fd00::1", Err(()), Ok(0)),
        ] {
            let found = (unserved(address, true, false), unserved(address, false, true));
            assert_eq!(found, (only_ipv4, only_ipv6), "{address}");
            assert_eq!(unserved(address, true, true), Ok(0), "{address}");
        }
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
            (json!({"hostPort": 80, "containerPort": 80, "hostIP": "fd00:1"}), "hostIP is \"fd00:1\""),
            (json!({"hostPort": 80, "containerPort": 80, "hostIP": "10.200.0"}), "hostIP is \"10.200.0\""),
        ] {
            let error = check(&json!([entry])).unwrap_err().to_string();
            assert!(error.starts_with(&format!("portMappings[0].{field}")), "{entry}: {error}");
        }
    }
}
