//! Typed access to the fields of a JSON object. Errors name the field by its full path.

use serde_json::{Map, Value};

use crate::config_error::ConfigError;

/// How keys of an object are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Exactly.
    Exact,
    /// In upper or lower case, as in Go's decoder: containerd writes `HostPort`, but the
    /// conventions say `hostPort`.
    AnyCase,
}

/// A JSON object, and the path to it in the document.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
    keys: Keys,
}

impl<'a> Fields<'a> {
    /// Makes the fields of the document itself.
    pub(crate) fn root(map: &'a Map<String, Value>, keys: Keys) -> Self {
        Self::at("", map, keys)
    }

    /// Makes the fields of an object that was found at `path`.
    pub(crate) fn at(path: &str, map: &'a Map<String, Value>, keys: Keys) -> Self {
        Fields { path: path.to_owned(), map, keys }
    }

    /// Returns a field's full path, for messages.
    pub(crate) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Returns the full paths of the keys that are not in `known`.
    pub(crate) fn unknown(&self, known: &[&str]) -> Vec<String> {
        let unknown = self.map.keys().filter(|key| !known.iter().any(|known| self.same(key, known)));
        unknown.map(|key| self.path_of(key)).collect()
    }

    /// Returns a field's value; `null` counts as absent, as for Go.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.written(key).filter(|value| !value.is_null())
    }

    /// Returns a field's value, even if it is `null`.
    pub(crate) fn written(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).or_else(|| {
            self.map.iter().find_map(|(candidate, value)| self.same(candidate, key).then_some(value))
        })
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn unsigned(&self, key: &str) -> Result<Option<u64>, ConfigError> {
        self.typed(key, "a number, whole and not negative", Value::as_u64)
    }

    pub(crate) fn object(&self, key: &str, keys: Keys) -> Result<Option<Fields<'a>>, ConfigError> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Fields { path: self.path_of(key), map, keys }))
    }

    pub(crate) fn strings(&self, key: &str) -> Result<Vec<&'a str>, ConfigError> {
        let path = self.path_of(key);
        let list = self.typed(key, "a list of strings", Value::as_array)?.map_or(&[][..], Vec::as_slice);
        let typed = list.iter().enumerate().map(|(index, value)| {
            value.as_str().ok_or_else(|| wrong_type(format!("{path}[{index}]"), "a string", value))
        });
        typed.collect()
    }

    pub(crate) fn objects(&self, key: &str) -> Result<Vec<Fields<'a>>, ConfigError> {
        let list = self.typed(key, "a list of objects", Value::as_array)?.map_or(&[][..], Vec::as_slice);
        let typed = list.iter().enumerate().map(|(index, value)| {
            let path = format!("{}[{index}]", self.path_of(key));
            match value.as_object() {
                Some(map) => Ok(Fields { path, map, keys: self.keys }),
                None => Err(wrong_type(path, "an object", value)),
            }
        });
        typed.collect()
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| wrong_type(self.path_of(key), expected, value))
    }

    fn same(&self, written: &str, known: &str) -> bool {
        match self.keys {
            Keys::Exact => written == known,
            Keys::AnyCase => written.eq_ignore_ascii_case(known),
        }
    }
}

fn wrong_type(field: String, expected: &'static str, value: &Value) -> ConfigError {
    ConfigError::WrongType { field, expected, found: value.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(value: &Value, keys: Keys, test: impl FnOnce(Fields<'_>)) {
        test(Fields::root(value.as_object().unwrap(), keys));
    }

    #[test]
    fn keys_in_either_case_are_found_only_where_that_is_asked_for() {
        let value = json!({"HostPort": 80});
        check(&value, Keys::AnyCase, |fields| assert_eq!(fields.unsigned("hostPort").unwrap(), Some(80)));
        check(&value, Keys::Exact, |fields| assert_eq!(fields.unsigned("hostPort").unwrap(), None));
    }

    #[test]
    fn the_exact_key_wins_over_one_in_another_case() {
        check(&json!({"A": 1, "a": 2}), Keys::AnyCase, |fields| {
            assert_eq!(fields.unsigned("a").unwrap(), Some(2));
        });
    }

    #[test]
    fn a_wrong_type_is_named_by_its_full_path() {
        check(&json!({"outer": {"inner": [7]}}), Keys::Exact, |fields| {
            let inner = fields.object("outer", Keys::Exact).unwrap().unwrap();
            let error = inner.strings("inner").unwrap_err();
            assert_eq!(error.to_string(), "outer.inner[0] is 7, not a string");
        });
    }

    #[test]
    fn null_is_absent() {
        check(&json!({"a": null}), Keys::Exact, |fields| assert_eq!(fields.string("a").unwrap(), None));
    }
}
