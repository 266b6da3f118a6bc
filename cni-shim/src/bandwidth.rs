//! The `bandwidth` capability: how fast a pod may receive and send (CNI conventions, "Dynamic
//! Plugin specific fields").

use std::num::NonZeroU64;

use podwire_cni::protocol::{Bandwidth, Limit};

use crate::config_error::ConfigError;
use crate::fields::{Fields, Keys};

/// The lowest rate, bits per second: a full-sized packet of Ethernet's usual 1500 bytes takes one
/// second. At lower rates a TCP transfer does not start.
const LEAST_RATE: u64 = 12_000;

/// Returns the requested limits. A rate of 0 means no limit, as for the reference plugin.
pub(crate) fn parse(fields: &Fields<'_>) -> Result<Bandwidth, ConfigError> {
    let Some(fields) = fields.object("bandwidth", Keys::AnyCase)? else { return Ok(Bandwidth::default()) };
    Ok(Bandwidth {
        ingress: limit(&fields, "ingressRate", "ingressBurst")?,
        egress: limit(&fields, "egressRate", "egressBurst")?,
    })
}

fn limit(fields: &Fields<'_>, rate_key: &str, burst_key: &str) -> Result<Option<Limit>, ConfigError> {
    let number = |key: &str| Ok(fields.unsigned(key)?.and_then(NonZeroU64::new));
    let invalid = |key: &str, found: NonZeroU64, reason: String| ConfigError::Invalid {
        field: fields.path_of(key),
        found: found.to_string(),
        reason,
    };
    match (number(rate_key)?, number(burst_key)?) {
        (None, None) => Ok(None),
        (None, Some(burst)) => {
            Err(invalid(burst_key, burst, format!("a burst needs a rate: set {rate_key} as well")))
        }
        (Some(rate), _) if rate.get() < LEAST_RATE => {
            let reason =
                format!("a rate is in bits per second, {LEAST_RATE} at least; 0 or no rate means no limit");
            Err(invalid(rate_key, rate, reason))
        }
        (Some(rate), burst) => Ok(Some(Limit { rate, burst })),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(value: &Value) -> Result<Bandwidth, ConfigError> {
        let document = json!({ "bandwidth": value });
        parse(&Fields::root(document.as_object().unwrap(), Keys::AnyCase))
    }

    fn limit(rate: u64, burst: Option<u64>) -> Option<Limit> {
        Some(Limit { rate: NonZeroU64::new(rate).unwrap(), burst: burst.and_then(NonZeroU64::new) })
    }

    #[test]
    fn limits_are_read_in_either_case_of_the_keys() {
        let expected =
            Bandwidth { ingress: limit(50_000_000, Some(4_294_967_295)), egress: limit(20_000_000, None) };
        for value in [
            json!({"ingressRate": 50_000_000, "ingressBurst": 4_294_967_295_u64, "egressRate": 20_000_000}),
            json!({"IngressRate": 50_000_000, "IngressBurst": 4_294_967_295_u64, "EgressRate": 20_000_000}),
        ] {
            assert_eq!(check(&value).unwrap(), expected);
        }
    }

    #[test]
    fn nothing_and_zero_are_no_limit() {
        for value in
            [json!(null), json!({}), json!({"ingressRate": 0, "ingressBurst": 0, "egressRate": null})]
        {
            assert_eq!(check(&value).unwrap(), Bandwidth::default(), "{value}");
        }
        assert_eq!(check(&json!({"egressRate": 12_000})).unwrap().egress, limit(12_000, None));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        for (value, field) in [
            (json!({"ingressRate": 11_999}), "ingressRate is \"11999\": a rate is in bits per second"),
            (json!({"EgressRate": 1}), "egressRate is \"1\": a rate is in bits per second"),
            (json!({"ingressBurst": 1}), "ingressBurst is \"1\": a burst needs a rate"),
            (json!({"egressRate": 0, "egressBurst": 1}), "egressBurst is \"1\": a burst needs a rate"),
            (json!({"ingressRate": "1M"}), "ingressRate is \"1M\", not a number"),
            (json!({"ingressRate": -1}), "ingressRate is -1, not a number"),
            (json!({"egressRate": 1.5}), "egressRate is 1.5, not a number"),
            (json!({"egressBurst": []}), "egressBurst is [], not a number"),
        ] {
            let error = check(&value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("bandwidth.{field}")), "{value}: {error}");
        }
    }
}
