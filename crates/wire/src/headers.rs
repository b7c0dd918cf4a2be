//! Lists of texts as metadata.
//!
//! A key may come several times, once for each text. If one of the texts cannot
//! be a header, all of them are escaped as in a query, and a second key says so.

use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};

/// Follows a key whose texts are escaped.
const ENCODED: &str = "-encoded";

/// Adds `texts` under `key`, which must be a valid header name.
pub fn insert<S: AsRef<str>>(metadata: &mut MetadataMap, key: &'static str, texts: &[S]) {
    let plain = texts.iter().all(|text| text.as_ref().bytes().all(|byte| (0x20..0x7f).contains(&byte)));
    let name = MetadataKey::<Ascii>::from_static(key);
    for text in texts {
        let text = if plain { text.as_ref().to_owned() } else { escape(text.as_ref()) };
        if let Ok(value) = MetadataValue::try_from(text) {
            metadata.append(name.clone(), value);
        }
    }
    if !plain && let Ok(name) = MetadataKey::<Ascii>::from_bytes(format!("{key}{ENCODED}").as_bytes()) {
        metadata.insert(name, MetadataValue::from_static("1"));
    }
}

/// The texts under `key`. What is no text is left out.
pub fn get(metadata: &MetadataMap, key: &str) -> Vec<String> {
    let encoded = metadata
        .get(format!("{key}{ENCODED}"))
        .is_some_and(|value| matches!(value.as_bytes(), b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True"));
    metadata
        .get_all(key)
        .iter()
        .filter_map(|value| std::str::from_utf8(value.as_bytes()).ok())
        .filter_map(|text| if encoded { unescape(text) } else { Some(text.to_owned()) })
        .collect()
}

/// The first text under `key`.
pub fn first(metadata: &MetadataMap, key: &str) -> Option<String> {
    get(metadata, key).into_iter().next()
}

fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            b' ' => escaped.push('+'),
            byte => {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "%{byte:02X}");
            }
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let high = char::from(rest.next()?).to_digit(16)?;
                let low = char::from(rest.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_texts_are_not_touched() {
        let mut metadata = MetadataMap::new();
        insert(&mut metadata, "exclude-patterns", &["a b", "100%", "!x+y", ""]);
        assert!(metadata.get("exclude-patterns-encoded").is_none());
        assert_eq!(get(&metadata, "exclude-patterns"), ["a b", "100%", "!x+y", ""]);
    }

    #[test]
    fn one_strange_text_escapes_all() {
        let mut metadata = MetadataMap::new();
        insert(&mut metadata, "exclude-patterns", &["a b", "ünï%", "line\nbreak"]);
        let raw: Vec<_> = metadata.get_all("exclude-patterns").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(raw, ["a+b", "%C3%BCn%C3%AF%25", "line%0Abreak"]);
        assert_eq!(metadata.get("exclude-patterns-encoded").unwrap(), "1");
        assert_eq!(get(&metadata, "exclude-patterns"), ["a b", "ünï%", "line\nbreak"]);
    }
}
