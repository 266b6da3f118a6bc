//! A list of objects, as `kubectl get … -o json` (or `-o yaml`) prints it, or a single object.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use thiserror::Error;

use super::json::Json;

/// Bytes that are read at a time.
const CHUNK: usize = 64 << 10;
/// The deepest nesting of YAML. The objects have fewer than 10 levels.
const MAX_DEPTH: usize = 64;

/// The reason why a file as a whole cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// The text is neither JSON nor YAML, or it is no such list.
    #[error("decode {what} {}: {reason} (expected: the output of `{command} -o json` or `-o yaml`)", path.display())]
    Decode {
        /// The list, in words.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The place and the reason.
        reason: String,
        /// The command that prints such a list.
        command: &'static str,
    },
}

/// What the agent keeps of a list. A list is read one entry at a time.
pub(crate) trait Entries: Default {
    /// The list, in words for messages.
    const WHAT: &'static str;
    /// The command that prints such a list.
    const COMMAND: &'static str;
    /// The values of `kind` of such a list.
    const LISTS: &'static [&'static str];
    /// The kinds of objects that may be in the list, or alone in the file.
    const OBJECTS: &'static [&'static str];
    /// The most entries of a list.
    const MOST: usize;

    /// Adds the JSON text of an object. An object that does not decode becomes a problem.
    fn add_json(&mut self, text: &str);

    /// Returns the number of entries so far, with those that the agent has no use for.
    fn len(&self) -> usize;
}

/// Decodes a list or a single object. Leaves out entries that do not decode, and names them among
/// the problems.
///
/// Decodes one entry at a time, because a list of 5,000 nodes has 30 MB. JSON is decoded while it
/// is read; the text of YAML is held as a whole.
///
/// # Errors
/// [`FileError::Decode`] when the text as a whole is neither.
pub(crate) fn parse<E: Entries>(path: &Path, file: impl Read) -> Result<E, FileError> {
    let decode = || {
        let mut reader = BufReader::with_capacity(CHUNK, file);
        let start = reader.fill_buf().map_err(|error| error.to_string())?;
        let is_json = start.trim_ascii_start().starts_with(b"{");
        if is_json { from_json(reader) } else { from_yaml(reader) }
    };
    decode().map_err(|reason| FileError::Decode {
        what: E::WHAT,
        path: path.into(),
        reason,
        command: E::COMMAND,
    })
}

/// Reads JSON, and holds one entry at a time.
fn from_json<E: Entries>(reader: impl Read) -> Result<E, String> {
    let mut deserializer = serde_json::Deserializer::from_reader(reader);
    let document = Document::deserialize(&mut deserializer);
    let document = document.and_then(|document| deserializer.end().map(|()| document));
    document.map_err(|error| error.to_string())?.entries()
}

/// Reads YAML. Holds the text as a whole, but only one decoded entry at a time.
fn from_yaml<E: Entries>(reader: impl Read) -> Result<E, String> {
    let text = std::io::read_to_string(reader).map_err(|error| error.to_string())?;
    // The budget counts the whole document, including parts that are not kept. So its other limits
    // are off, and the lists of large clusters pass.
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: usize::MAX,
            max_events: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
    };
    let document: Document<E> =
        serde_saphyr::from_str_with_options(&text, options).map_err(|error| error.to_string())?;
    document.entries()
}

fn other_kind(kind: Option<&str>) -> String {
    kind.map_or_else(|| "there is no `kind`".into(), |kind| format!("`kind` is `{kind}`"))
}

/// A list, or one object. `kind` says which, and it comes after the entries.
struct Document<E> {
    kind: Option<String>,
    items: E,
    /// The object's other fields, as JSON.
    fields: Vec<(String, Json)>,
}

impl<E: Entries> Document<E> {
    fn entries(self) -> Result<E, String> {
        match self.kind.as_deref() {
            Some(kind) if E::LISTS.contains(&kind) => Ok(self.items),
            Some(kind) if E::OBJECTS.contains(&kind) => {
                let mut text = format!("{{\"kind\":{}", Value::from(kind));
                for (name, Json(value)) in &self.fields {
                    text += &format!(",{}:{value}", Value::from(name.as_str()));
                }
                text += "}";
                let mut entries = E::default();
                entries.add_json(&text);
                Ok(entries)
            }
            kind => Err(other_kind(kind)),
        }
    }
}

impl<'de, E: Entries> Deserialize<'de> for Document<E> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<E>(PhantomData<E>);

        impl<'de, E: Entries> Visitor<'de> for Fields<E> {
            type Value = Document<E>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list or an object ({})", E::OBJECTS.join(", "))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document<E>, A::Error> {
                let mut document = Document { kind: None, items: E::default(), fields: Vec::new() };
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "kind" => document.kind = map.next_value()?,
                        "items" => document.items = map.next_value::<Items<E>>()?.0,
                        _ => document.fields.push((name, map.next_value()?)),
                    }
                }
                Ok(document)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// The entries of a list.
struct Items<E>(E);

impl<'de, E: Entries> Deserialize<'de> for Items<E> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneByOne<E>(PhantomData<E>);

        impl<'de, E: Entries> Visitor<'de> for OneByOne<E> {
            type Value = E;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of objects in `items`")
            }

            fn visit_unit<Error>(self) -> Result<E, Error> {
                Ok(E::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<E, A::Error> {
                let mut entries = E::default();
                while let Some(Json(item)) = items.next_element()? {
                    if entries.len() == E::MOST {
                        return Err(A::Error::custom(format!("there are more than {} entries", E::MOST)));
                    }
                    entries.add_json(&item);
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_any(OneByOne(PhantomData)).map(Items)
    }
}
