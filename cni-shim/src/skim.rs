//! Reads some values of a JSON object, from an input of any size and depth.
//!
//! The rest is skipped and not kept. It may be text that a JSON decoder refuses, such as half of a
//! surrogate pair. So a call of the plugin needs bounded memory, and DEL depends only on the keys
//! that it uses.

use std::io::{self, BufReader, Bytes, Read};
use std::iter::Peekable;

use serde_json::{Map, Value};

/// The longest key that is compared with the wanted ones, bytes.
const LARGEST_KEY: usize = 256;
/// The largest value that is kept, bytes.
const LARGEST_VALUE: usize = 1 << 20;

/// Returns the values of the wanted keys. If a key occurs more than once, its last value counts.
///
/// # Errors
/// `InvalidData` when the input is no object, ends early, or a wanted value does not decode;
/// otherwise the input's own.
pub(crate) fn skim(input: impl Read, wanted: &[&str]) -> io::Result<Map<String, Value>> {
    let mut scanner = Scanner { bytes: BufReader::new(input).bytes().peekable() };
    if scanner.token()? != b'{' {
        return Err(invalid("it is not a JSON object"));
    }
    let mut found = Map::new();
    loop {
        match scanner.token()? {
            b'}' => break,
            b',' => {}
            b'"' => {
                let mut key = Kept::new(LARGEST_KEY);
                scanner.string(&mut key)?;
                if scanner.token()? != b':' {
                    return Err(invalid("a key without a value"));
                }
                let key = key.text().and_then(|text| serde_json::from_slice::<String>(text).ok());
                let key = key.filter(|key| wanted.contains(&key.as_str()));
                let mut value = Kept::new(if key.is_some() { LARGEST_VALUE } else { 0 });
                scanner.value(&mut value)?;
                if let Some(key) = key {
                    let text = value
                        .text()
                        .ok_or_else(|| invalid(&format!("{key} is larger than {LARGEST_VALUE} bytes")))?;
                    let value =
                        serde_json::from_slice(text).map_err(|error| invalid(&format!("{key}: {error}")))?;
                    found.insert(key, value);
                }
            }
            other => return Err(invalid(&format!("unexpected {:?}", char::from(other)))),
        }
    }
    // Reads the rest, so that a writer into a pipe can finish.
    for byte in scanner.bytes {
        byte?;
    }
    Ok(found)
}

/// The bytes that were read. It is empty if they were more than it may keep.
struct Kept {
    bytes: Vec<u8>,
    room: usize,
}

impl Kept {
    fn new(room: usize) -> Self {
        Self { bytes: Vec::new(), room }
    }

    fn push(&mut self, byte: u8) {
        match self.room.checked_sub(1) {
            Some(room) => {
                self.room = room;
                self.bytes.push(byte);
            }
            None => self.bytes = Vec::new(),
        }
    }

    fn text(&self) -> Option<&[u8]> {
        (!self.bytes.is_empty()).then_some(&self.bytes)
    }
}

struct Scanner<R: Read> {
    bytes: Peekable<Bytes<BufReader<R>>>,
}

impl<R: Read> Scanner<R> {
    fn next(&mut self) -> io::Result<u8> {
        self.bytes.next().unwrap_or_else(|| Err(invalid("EOF before the end of the object")))
    }

    /// Returns the next byte that is not whitespace.
    fn token(&mut self) -> io::Result<u8> {
        loop {
            let byte = self.next()?;
            if !byte.is_ascii_whitespace() {
                return Ok(byte);
            }
        }
    }

    /// Reads the rest of a string, after its opening quotation mark.
    fn string(&mut self, kept: &mut Kept) -> io::Result<()> {
        kept.push(b'"');
        loop {
            let byte = self.next()?;
            kept.push(byte);
            match byte {
                b'"' => return Ok(()),
                b'\\' => kept.push(self.next()?),
                _ => {}
            }
        }
    }

    fn value(&mut self, kept: &mut Kept) -> io::Result<()> {
        let mut byte = self.token()?;
        if b"}],:".contains(&byte) {
            return Err(invalid("a key without a value"));
        }
        let mut depth = 0_u64;
        loop {
            match byte {
                b'"' => self.string(kept)?,
                byte => kept.push(byte),
            }
            match byte {
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            // A number or a word has no end of its own: it ends before the next byte.
            if depth == 0 && (b"\"}]".contains(&byte) || self.ends_here()) {
                return Ok(());
            }
            byte = self.next()?;
        }
    }

    fn ends_here(&mut self) -> bool {
        match self.bytes.peek() {
            Some(Ok(byte)) => byte.is_ascii_whitespace() || b",}]".contains(byte),
            Some(Err(_)) | None => true,
        }
    }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const WANTED: [&str; 2] = ["name", "valid"];

    #[track_caller]
    fn check(input: impl AsRef<[u8]>, expected: &Value) {
        let found = skim(input.as_ref(), &WANTED).unwrap();
        assert_eq!(&Value::Object(found), expected);
    }

    #[test]
    fn wanted_values_are_as_a_decoder_has_them() {
        let input =
            json!({"name": "a \"b\" \\ {", "valid": [{"x": [1, "]"]}, null], "other": {"name": "no"}});
        check(input.to_string(), &json!({"name": "a \"b\" \\ {", "valid": [{"x": [1, "]"]}, null]}));
        check(
            serde_json::to_string_pretty(&input).unwrap(),
            &json!({"name": "a \"b\" \\ {", "valid": [{"x": [1, "]"]}, null]}),
        );
        check(r#"{"n\u0061me":1.5e3 ,"valid":true}"#, &json!({"name": 1500.0, "valid": true}));
        check(r#"{"name": 1, "name": 2}"#, &json!({"name": 2}));
        check(" { } ", &json!({}));
    }

    #[test]
    fn what_no_decoder_takes_is_passed_over() {
        let deep = format!("{{\"x\": {}{}, \"name\": 1}}", "[".repeat(100_000), "]".repeat(100_000));
        check(deep, &json!({"name": 1}));
        check(r#"{"x": "\ud800", "\ud800": "x", "name": 1}"#, &json!({"name": 1}));
        check(b"{\"x\": \"\xff\", \"\xff\": {\"\xfe\": 1}, \"name\": 1}", &json!({"name": 1}));
        check(format!("{{\"{0}\": \"{0}\", \"name\": 1}}", "k".repeat(4 << 20)), &json!({"name": 1}));
    }

    #[test]
    fn what_is_no_object_or_not_complete_is_refused() {
        for (input, said) in [
            ("", "EOF"),
            ("[]", "not a JSON object"),
            ("{", "EOF"),
            (r#"{"name": "a"#, "EOF"),
            (r#"{"x": [1, 2}"#, "EOF"),
            (r#"{"name"}"#, "without a value"),
            (r#"{"name":}"#, "without a value"),
            (r#"{name: 1}"#, "unexpected 'n'"),
            (r#"{"name": tru}"#, "name: EOF"),
            (r#"{"name": "\ud800"}"#, "name: "),
        ] {
            let error = skim(input.as_bytes(), &WANTED).unwrap_err();
            assert!(error.to_string().contains(said), "{input}: {error}");
        }
        let huge = format!("{{\"name\": \"{}\"}}", "x".repeat(LARGEST_VALUE));
        let error = skim(huge.as_bytes(), &WANTED).unwrap_err();
        assert!(error.to_string().contains("name is larger than"), "{error}");
    }
}
