//! Directives: `# name=value` lines at the head of the file.

use castor_llb::Range;

use crate::error::{DockerfileError, Result};

/// A directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// `syntax`, `escape` or `check`.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Its line, counted from 1.
    pub line: i32,
}

/// Splits `name = value`; the name in lower case, if it is that of a directive.
pub fn key_value(text: &str) -> Option<(String, String)> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    // What counts as a space here is what does for Go's `\s`.
    let space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{c}');
    let behind = rest.trim_start_matches(space).strip_prefix('=')?;
    // Nothing but blanks is a value of one blank.
    let value = match behind.trim_matches(space) {
        "" => behind.get(behind.len().saturating_sub(1)..).unwrap_or_default(),
        value => value,
    };
    let name = name.to_lowercase();
    let known = matches!(name.as_str(), "syntax" | "escape" | "check");
    (known && !value.is_empty() && !value.contains('\n')).then(|| (name, value.to_owned()))
}

/// Reads directives until the first line that is none.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    line: i32,
    comment: &'static str,
    seen: Vec<String>,
    done: bool,
}

impl Reader {
    pub(crate) fn new(comment: &'static str, line: i32) -> Self {
        Self { line, comment, seen: Vec::new(), done: false }
    }

    pub(crate) fn line(&mut self, line: &str) -> Result<Option<Directive>> {
        self.line += 1;
        if self.done {
            return Ok(None);
        }
        let Some((name, value)) = line.strip_prefix(self.comment).and_then(key_value) else {
            self.done = true;
            return Ok(None);
        };
        if self.seen.contains(&name) {
            return Err(DockerfileError::new(format!("only one {name} parser directive can be used")));
        }
        self.seen.push(name.clone());
        Ok(Some(Directive { name, value, line: self.line }))
    }
}

/// A directive found without parsing the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// The value up to the first space.
    pub first_word: String,
    /// The whole value.
    pub value: String,
    /// Where it stands.
    pub location: Vec<Range>,
}

/// Finds the `syntax` that a file names: as `# syntax=`, as `// syntax=`, or as JSON. A `#!` line comes before it.
pub fn detect_syntax(text: &[u8]) -> Option<Detected> {
    detect("syntax", text, true)
}

/// Finds the `check` directive of a file.
pub fn detect_check(text: &[u8]) -> Option<Detected> {
    detect("check", text, false)
}

fn detect(name: &str, text: &[u8], any_format: bool) -> Option<Detected> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let (text, line) = match text.strip_prefix(b"#!") {
        None => (text, 0),
        Some(rest) => {
            let end = rest.iter().position(|&b| b == b'\n').map_or(rest.len(), |end| end + 1);
            (&rest[end..], 1)
        }
    };
    let from_comments = |comment| {
        let mut reader = Reader::new(comment, line);
        // Directives are few and short; what comes behind them is never looked at.
        for raw in text.split(|&b| b == b'\n') {
            if reader.done || raw.len() > super::MAX_LINE {
                return None;
            }
            let text = String::from_utf8_lossy(raw);
            let directive = reader.line(text.trim_end_matches('\r')).ok()?;
            if let Some(directive) = directive.filter(|directive| directive.name == name) {
                return Some(Detected {
                    first_word: directive.value.split(' ').next().unwrap_or_default().to_owned(),
                    location: vec![Range::lines(directive.line, directive.line)],
                    value: directive.value,
                });
            }
        }
        None
    };
    let found = from_comments("#");
    if found.is_some() || !any_format {
        return found;
    }
    if let Some(found) = from_comments("//") {
        return Some(found);
    }
    let json: serde_json::Value = serde_json::from_slice(text).ok()?;
    let value = json.get(name)?.as_str()?.to_owned();
    Some(Detected { first_word: value.clone(), value, location: vec![Range::lines(line, line)] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_syntax_in_all_its_forms() {
        for (text, want, line) in [
            ("# syntax=a/b:1 x\nFROM x", Some("a/b:1"), 1),
            ("\u{feff}#SYNTAX = a\n", Some("a"), 1),
            ("#!/bin/x\n# escape=`\n# syntax=a", Some("a"), 3),
            ("// syntax=a\n", Some("a"), 1),
            ("{\"syntax\":\"a\"}", Some("a"), 0),
            ("# comment\n# syntax=a\n", None, 0),
            ("\n# syntax=a\n", None, 0),
            ("# syntax=\n", None, 0),
            ("# syntax=  \n", Some(""), 1),
        ] {
            let found = detect_syntax(text.as_bytes());
            assert_eq!(found.as_ref().map(|found| found.first_word.as_str()), want, "{text}");
            if let Some(found) = found {
                assert_eq!(found.location[0].start.line, line, "{text}");
            }
        }
    }
}
