//! JSON as Go's `encoding/json` writes it: fields in the order they are added, empty ones left out, `<`, `>`, `&` and
//! the two line separators escaped. Op digests are taken over such bytes, so each one counts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A JSON object under construction.
#[derive(Debug)]
pub(super) struct Object {
    text: String,
}

impl Default for Object {
    fn default() -> Self {
        Self { text: "{".to_owned() }
    }
}

impl Object {
    fn key(&mut self, name: &str) {
        if self.text.len() > 1 {
            self.text.push(',');
        }
        string(&mut self.text, name);
        self.text.push(':');
    }

    /// A field whose value is JSON already.
    pub(super) fn raw(mut self, name: &str, json: &str) -> Self {
        self.key(name);
        self.text.push_str(json);
        self
    }

    /// A field whose value is JSON already, if there is one.
    pub(super) fn optional(self, name: &str, json: Option<String>) -> Self {
        match json {
            Some(json) => self.raw(name, &json),
            None => self,
        }
    }

    /// A text; there even if empty.
    pub(super) fn text_always(mut self, name: &str, value: &str) -> Self {
        self.key(name);
        string(&mut self.text, value);
        self
    }

    /// A text.
    pub(super) fn text(self, name: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.text_always(name, value) }
    }

    /// A number.
    pub(super) fn number(mut self, name: &str, value: impl Into<i64>) -> Self {
        let value = value.into();
        if value != 0 {
            self.key(name);
            self.text.push_str(&value.to_string());
        }
        self
    }

    /// A truth value.
    pub(super) fn flag(self, name: &str, value: bool) -> Self {
        if value { self.raw(name, "true") } else { self }
    }

    /// A list of texts.
    pub(super) fn texts(self, name: &str, values: &[String]) -> Self {
        self.list(name, values.iter().map(|value| quoted(value)))
    }

    /// Bytes.
    pub(super) fn bytes(self, name: &str, value: &[u8]) -> Self {
        if value.is_empty() { self } else { self.text_always(name, &STANDARD.encode(value)) }
    }

    /// A list of JSON values.
    pub(super) fn list(self, name: &str, values: impl Iterator<Item = String>) -> Self {
        let values: Vec<String> = values.collect();
        if values.is_empty() { self } else { self.raw(name, &array(&values)) }
    }

    /// The finished object.
    pub(super) fn finish(mut self) -> String {
        self.text.push('}');
        self.text
    }
}

/// An array of JSON values.
pub(super) fn array(values: &[String]) -> String {
    format!("[{}]", values.join(","))
}

/// A list of texts, which is `null` where Go would have a nil slice.
pub(super) fn texts_or_null(values: &[String]) -> String {
    if values.is_empty() {
        return "null".to_owned();
    }
    array(&values.iter().map(|value| quoted(value)).collect::<Vec<_>>())
}

/// Bytes, as a JSON string.
pub(super) fn base64(value: &[u8]) -> String {
    format!("\"{}\"", STANDARD.encode(value))
}

/// A JSON string.
pub(super) fn quoted(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    string(&mut out, value);
    out
}

fn string(out: &mut String, value: &str) {
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_as_go_does() {
        assert_eq!(
            quoted("a\"\\\u{8}\u{c}\n\r\t\u{1}\u{7f}<&>\u{2028}é"),
            "\"a\\\"\\\\\\b\\f\\n\\r\\t\\u0001\u{7f}\\u003c\\u0026\\u003e\\u2028é\""
        );
    }

    #[test]
    fn leaves_out_what_is_empty() {
        let object = Object::default().text("a", "").number("b", 0).flag("c", false).texts("d", &[]).bytes("e", b"");
        assert_eq!(object.number("f", -1).text_always("g", "").finish(), r#"{"f":-1,"g":""}"#);
    }
}
