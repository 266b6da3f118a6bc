//! One value of a larger document, converted to JSON from the document's format.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// The largest value in bytes. etcd takes at most 1.5 MiB.
const LARGEST: usize = 2 << 20;

/// The text of a value. The agent decodes a large list value by value, and holds the text of only
/// one at a time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Json(pub(super) String);

impl<'de> de::Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut text = String::new();
        deserializer.deserialize_any(Writer(&mut text))?;
        Ok(Self(text))
    }
}

/// Appends the values that it visits.
struct Writer<'a>(&'a mut String);

impl Writer<'_> {
    fn push<E: de::Error>(&mut self, text: &str) -> Result<(), E> {
        if self.0.len() + text.len() > LARGEST {
            return Err(E::custom(format!("an entry has more than {LARGEST} bytes")));
        }
        self.0.push_str(text);
        Ok(())
    }

    fn again(&mut self) -> Writer<'_> {
        Writer(self.0)
    }
}

impl<'de> DeserializeSeed<'de> for Writer<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Writer<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(mut self) -> Result<(), E> {
        self.push("null")
    }

    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(mut self, value: bool) -> Result<(), E> {
        self.push(if value { "true" } else { "false" })
    }

    fn visit_i64<E: de::Error>(mut self, value: i64) -> Result<(), E> {
        self.push(&value.to_string())
    }

    fn visit_u64<E: de::Error>(mut self, value: u64) -> Result<(), E> {
        self.push(&value.to_string())
    }

    fn visit_f64<E: de::Error>(mut self, value: f64) -> Result<(), E> {
        self.push(&Value::from(value).to_string())
    }

    fn visit_str<E: de::Error>(mut self, value: &str) -> Result<(), E> {
        self.push(&Value::from(value).to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut sequence: A) -> Result<(), A::Error> {
        self.push("[")?;
        let mut separator = "";
        // The separator is written first, and removed again if the sequence ends there.
        loop {
            let before = self.0.len();
            self.push(separator)?;
            if sequence.next_element_seed(self.again())?.is_none() {
                self.0.truncate(before);
                return self.push("]");
            }
            separator = ",";
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        self.push("{")?;
        let mut separator = "";
        while let Some(key) = map.next_key::<String>()? {
            self.push(separator)?;
            self.push(&Value::from(key).to_string())?;
            self.push(":")?;
            map.next_value_seed(self.again())?;
            separator = ",";
        }
        self.push("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_the_same_in_json_and_in_yaml() {
        let json = r#"{"a":[1,-2,2.5,true,null,"b\"c"],"d":{},"e":[[]]}"#;
        assert_eq!(serde_json::from_str::<Json>(json).unwrap(), Json(json.into()));
        let yaml = "a:\n- 1\n- -2\n- 2.5\n- true\n- null\n- b\"c\nd: {}\ne:\n- []\n";
        assert_eq!(serde_saphyr::from_str::<Json>(yaml).unwrap(), Json(json.into()));
    }

    #[test]
    fn a_value_that_is_too_large_is_refused() {
        let large = |bytes: usize| serde_json::from_str::<Json>(&format!("\"{}\"", "x".repeat(bytes)));
        assert_eq!(large(LARGEST - 2).unwrap().0.len(), LARGEST);
        assert!(large(LARGEST - 1).unwrap_err().to_string().contains("2097152"));
    }
}
