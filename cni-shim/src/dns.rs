//! Name resolution, as the configuration, the runtime and earlier plugins set it.

use serde_json::{Map, Value, json};

use crate::config_error::ConfigError;
use crate::fields::{Fields, Keys};

/// Name resolution, as results and configurations write it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dns {
    pub(crate) nameservers: Vec<String>,
    pub(crate) domain: String,
    pub(crate) search: Vec<String>,
    pub(crate) options: Vec<String>,
}

impl Dns {
    /// Reads the key `dns` of a configuration or a result.
    pub(crate) fn parse(fields: &Fields<'_>) -> Result<Dns, ConfigError> {
        let Some(dns) = fields.object("dns", Keys::AnyCase)? else { return Ok(Dns::default()) };
        let owned = |key| Ok(dns.strings(key)?.into_iter().map(str::to_owned).collect());
        Ok(Dns {
            nameservers: owned("nameservers")?,
            domain: dns.string("domain")?.unwrap_or_default().to_owned(),
            search: owned("search")?,
            options: owned("options")?,
        })
    }

    /// Returns these settings, replaced by those that `other` sets.
    pub(crate) fn overridden_by(self, other: Dns) -> Dns {
        let lists = |own: Vec<String>, other: Vec<String>| if other.is_empty() { own } else { other };
        Dns {
            nameservers: lists(self.nameservers, other.nameservers),
            domain: if other.domain.is_empty() { self.domain } else { other.domain },
            search: lists(self.search, other.search),
            options: lists(self.options, other.options),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
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
