//! The JSON of a TOC, read entry by entry.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// An entry as it stands in the JSON. Absent and null are the same.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Entry<'a> {
    #[serde(borrow, default)]
    pub name: Text<'a>,
    #[serde(borrow, default, rename = "type")]
    pub kind: Text<'a>,
    #[serde(default)]
    pub size: Option<i64>,
    #[serde(borrow, default)]
    pub modtime: Text<'a>,
    #[serde(borrow, default, rename = "linkName")]
    pub link_name: Text<'a>,
    #[serde(default)]
    pub mode: Option<i64>,
    #[serde(default)]
    pub uid: Option<i64>,
    #[serde(default)]
    pub gid: Option<i64>,
    #[serde(default)]
    pub offset: Option<i64>,
    #[serde(default, rename = "endOffset")]
    pub end_offset: Option<i64>,
    #[serde(default, rename = "innerOffset")]
    pub inner_offset: Option<i64>,
    #[serde(default, rename = "devMajor")]
    pub dev_major: Option<i64>,
    #[serde(default, rename = "devMinor")]
    pub dev_minor: Option<i64>,
    /// Values in base64.
    #[serde(borrow, default)]
    pub xattrs: Option<BTreeMap<Cow<'a, str>, Text<'a>>>,
    #[serde(borrow, default)]
    pub digest: Text<'a>,
    #[serde(default, rename = "chunkOffset")]
    pub chunk_offset: Option<i64>,
    #[serde(default, rename = "chunkSize")]
    pub chunk_size: Option<i64>,
    #[serde(borrow, default, rename = "chunkDigest")]
    pub chunk_digest: Text<'a>,
    #[serde(borrow, default, rename = "chunkType")]
    pub chunk_type: Text<'a>,
}

/// A text that is borrowed from the JSON unless it has escapes; null is empty.
#[derive(Debug, Default)]
pub(super) struct Text<'a>(pub Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or null")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Text<'de>, E> {
                Ok(Text::default())
            }
        }

        deserializer.deserialize_any(TextVisitor)
    }
}

/// Reads a TOC, giving each entry to `each` as it comes: a TOC may be large, its tree is kept in another form. The
/// error of `each` ends it and is given back through `failure`.
pub(super) fn read_json<'a, E>(
    json: &'a [u8],
    each: &mut dyn FnMut(Entry<'a>) -> Result<(), E>,
) -> Result<(), Result<E, String>> {
    let mut failure = None;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let visitor = TocVisitor { each, failure: &mut failure };
    let result = deserializer.deserialize_map(visitor).and_then(|version| {
        deserializer.end()?;
        Ok(version)
    });
    match (failure, result) {
        (Some(failure), _) => Err(Ok(failure)),
        (None, Err(error)) => Err(Err(error.to_string())),
        (None, Ok(Some(1))) => Ok(()),
        (None, Ok(version)) => Err(Err(format!("version {} is not 1", version.unwrap_or(0)))),
    }
}

struct TocVisitor<'a, 'f, E> {
    each: &'f mut dyn FnMut(Entry<'a>) -> Result<(), E>,
    failure: &'f mut Option<E>,
}

impl<'de, E> Visitor<'de> for TocVisitor<'de, '_, E> {
    /// The version.
    type Value = Option<i64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut version, mut entries) = (None, false);
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match &*key {
                "version" => version = map.next_value()?,
                "entries" if entries => return Err(de::Error::duplicate_field("entries")),
                "entries" => {
                    entries = true;
                    map.next_value_seed(Entries { each: &mut *self.each, failure: &mut *self.failure })?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(version)
    }
}

struct Entries<'a, 'f, E> {
    each: &'f mut dyn FnMut(Entry<'a>) -> Result<(), E>,
    failure: &'f mut Option<E>,
}

impl<'de, E> DeserializeSeed<'de> for Entries<'de, '_, E> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, E> Visitor<'de> for Entries<'de, '_, E> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    /// No entries: Go writes null for an empty list.
    fn visit_unit<F: de::Error>(self) -> Result<(), F> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<Entry<'de>>()? {
            if let Err(error) = (self.each)(entry) {
                *self.failure = Some(error);
                return Err(de::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<String>, String> {
        let mut names = Vec::new();
        let result = read_json(json.as_bytes(), &mut |entry| {
            if &*entry.name == "stop" {
                return Err("stopped".to_owned());
            }
            names.push(entry.name.to_string());
            Ok(())
        });
        match result {
            Ok(()) => Ok(names),
            Err(Ok(error) | Err(error)) => Err(error),
        }
    }

    #[test]
    fn reads_entries_as_they_come() {
        let json = r#"{"entries":[{"name":"a","type":"reg","size":1,"NumLink":0,"x":[{}]},{"name":"b\n","uid":null}],"version":1}"#;
        assert_eq!(read(json).unwrap(), ["a", "b\n"]);
        assert_eq!(read(r#"{"version":1}"#).unwrap().len(), 0);
        assert_eq!(read("{\"version\":1,\"entries\":null} \n").unwrap().len(), 0);
    }

    #[test]
    fn refuses_what_is_no_toc() {
        assert_eq!(read(r#"{"version":1,"entries":[{"name":"stop"},{"name":"b"}]}"#).unwrap_err(), "stopped");
        assert_eq!(read(r#"{"version":2,"entries":[]}"#).unwrap_err(), "version 2 is not 1");
        assert_eq!(read(r#"{"entries":[]}"#).unwrap_err(), "version 0 is not 1");
        for json in [
            "",
            "[]",
            "null",
            "1",
            "{",
            r#"{"version":1}x"#,
            r#"{"version":1,"entries":{}}"#,
            r#"{"version":1,"entries":[null]}"#,
            r#"{"version":1,"entries":[1]}"#,
            r#"{"version":1,"entries":[],"entries":[]}"#,
            r#"{"version":1,"entries":[{"name":"a","name":"b"}]}"#,
            r#"{"version":1,"entries":[{"size":1.5}]}"#,
            r#"{"version":1,"entries":[{"size":18446744073709551615}]}"#,
            r#"{"version":1,"entries":[{"xattrs":[]}]}"#,
            r#"{"version":1,"entries":[{"name":7}]}"#,
        ] {
            assert!(read(json).is_err(), "{json}");
        }
        let deep = format!("{{\"version\":1,\"x\":{}", "[".repeat(100_000));
        assert!(read(&deep).is_err());
    }
}
