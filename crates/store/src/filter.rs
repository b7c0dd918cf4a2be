//! Filters in containerd's syntax: `selector[,selector…]`, all of which must hold.
//!
//! A selector is a field alone (it is there), `field==value`, `field!=value` or `field~=regex`. Fields are words with
//! dots between them, values words or Go string literals; a regular expression may also stand between `/` or `|`.

use std::fmt;
use std::str::FromStr;

use regex::Regex;

use crate::RecordInfo;

/// The longest filter that is read.
const MAX_LENGTH: usize = 16 << 10;

/// A filter of records.
#[derive(Debug, Clone)]
pub struct Filter {
    text: String,
    selectors: Vec<Selector>,
}

#[derive(Debug, Clone)]
struct Selector {
    field: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Box<Regex>),
}

/// A filter that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse filter {text:?}: {reason}")]
pub struct FilterError {
    /// The filter.
    pub text: String,
    /// What is wrong.
    pub reason: String,
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Filter {}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Filter {
    /// Whether the record fits.
    pub fn matches(&self, record: &RecordInfo) -> bool {
        self.matches_fields(|path| field(record, path))
    }

    /// Whether something fits whose fields are given by path: the value of one that is there.
    pub fn matches_fields(&self, value: impl Fn(&[String]) -> Option<String>) -> bool {
        self.selectors.iter().all(|selector| {
            let value = value(&selector.field);
            match (&selector.test, value) {
                (Test::Present, value) => value.is_some(),
                (Test::Equal(want), value) => value.as_ref() == Some(want),
                (Test::NotEqual(want), value) => value.as_ref() != Some(want),
                (Test::Matches(regex), value) => value.is_some_and(|value| regex.is_match(&value)),
            }
        })
    }

    /// Whether the record fits any of `filters`, or there are none.
    pub fn any(filters: &[Self], record: &RecordInfo) -> bool {
        filters.is_empty() || filters.iter().any(|filter| filter.matches(record))
    }
}

/// The value of a field, if the record has it. Flags have an empty value.
fn field(record: &RecordInfo, path: &[String]) -> Option<String> {
    let flag = |set: bool| set.then(String::new);
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match path {
        [name] => match name.as_str() {
            "id" => text(&record.id),
            "parents" => text(&record.parents.join(";")),
            "description" => text(&record.description),
            "inuse" => flag(record.in_use),
            "mutable" => flag(record.mutable),
            "immutable" => flag(!record.mutable),
            "type" => text(record.record_type.as_str()),
            "shared" => flag(record.shared),
            "private" => flag(!record.shared),
            _ => None,
        },
        _ => None,
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let fail = |reason: String| FilterError { text: text.chars().take(200).collect(), reason };
        if text.len() > MAX_LENGTH {
            return Err(fail(format!("longer than {MAX_LENGTH} bytes")));
        }
        let selectors = Parser { rest: text }.filter().map_err(fail)?;
        Ok(Self { text: text.to_owned(), selectors })
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn filter(&mut self) -> Result<Vec<Selector>, String> {
        let mut selectors = Vec::new();
        if self.rest.is_empty() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            if self.rest.is_empty() {
                return Ok(selectors);
            }
            if !self.eat(",") {
                return Err(format!("unexpected {:?}", self.rest));
            }
        }
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn selector(&mut self) -> Result<Selector, String> {
        let mut path = vec![self.field()?];
        while self.eat(".") {
            path.push(self.field()?);
        }
        let test = if self.eat("==") {
            Test::Equal(self.value(false)?)
        } else if self.eat("!=") {
            Test::NotEqual(self.value(false)?)
        } else if self.eat("~=") {
            let pattern = self.value(true)?;
            let regex = regex::RegexBuilder::new(&pattern).size_limit(1 << 20).build();
            Test::Matches(Box::new(regex.map_err(|error| error.to_string())?))
        } else {
            Test::Present
        };
        Ok(Selector { field: path, test })
    }

    fn field(&mut self) -> Result<String, String> {
        if self.rest.starts_with('"') {
            return self.quoted('"');
        }
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        if end == 0 {
            return Err(format!("expected field or quoted, got {:?}", self.rest));
        }
        let (field, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(field.to_owned())
    }

    fn value(&mut self, pattern: bool) -> Result<String, String> {
        match self.rest.chars().next() {
            Some('"') => self.quoted('"'),
            Some(mark @ ('/' | '|')) if pattern => self.quoted(mark),
            _ => {
                let end =
                    self.rest.find(|c: char| c == ',' || c.is_whitespace() || c == '"').unwrap_or(self.rest.len());
                if end == 0 {
                    return Err("expected value or quoted".to_owned());
                }
                let (value, rest) = self.rest.split_at(end);
                self.rest = rest;
                Ok(value.to_owned())
            }
        }
    }

    /// A literal between two `mark`s. Between double quotes escapes are Go's; elsewhere a backslash escapes the mark only.
    fn quoted(&mut self, mark: char) -> Result<String, String> {
        let mut value = String::new();
        let mut chars = self.rest.char_indices();
        chars.next();
        while let Some((index, c)) = chars.next() {
            if c == mark {
                self.rest = &self.rest[index + c.len_utf8()..];
                return Ok(value);
            }
            if c != '\\' {
                value.push(c);
                continue;
            }
            let Some((_, escaped)) = chars.next() else { break };
            if mark != '"' {
                if escaped != mark {
                    value.push('\\');
                }
                value.push(escaped);
                continue;
            }
            let digits = |chars: &mut std::str::CharIndices<'_>, count: usize| {
                let text: String = chars.by_ref().take(count).map(|(_, c)| c).collect();
                u32::from_str_radix(&text, 16).ok().and_then(char::from_u32)
            };
            let plain = match escaped {
                'a' => Some('\x07'),
                'b' => Some('\x08'),
                'f' => Some('\x0c'),
                'n' => Some('\n'),
                'r' => Some('\r'),
                't' => Some('\t'),
                'v' => Some('\x0b'),
                '\\' | '"' | '\'' => Some(escaped),
                'x' => digits(&mut chars, 2),
                'u' => digits(&mut chars, 4),
                'U' => digits(&mut chars, 8),
                _ => None,
            };
            value.push(plain.ok_or_else(|| format!("unknown escape \\{escaped}"))?);
        }
        Err("quoted literal not terminated".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use castor_progress::Timestamp;

    use super::*;
    use crate::RecordType;

    fn record() -> RecordInfo {
        RecordInfo {
            id: "abc".into(),
            mutable: true,
            in_use: false,
            size: 1,
            parents: vec!["p".into(), "q".into()],
            created: Timestamp::UNIX_EPOCH,
            last_used: None,
            usage_count: 0,
            description: "mount /from exec, \"quoted\"".into(),
            record_type: RecordType::CacheMount,
            shared: false,
        }
    }

    #[test]
    fn selects_as_containerd_does() {
        let matches = |text: &str| text.parse::<Filter>().unwrap().matches(&record());
        for text in [
            "",
            "id",
            "id==abc",
            "type==exec.cachemount",
            "type!=regular",
            "mutable",
            "private",
            "mutable,private,id==abc",
            "id~=^a",
            "id~=/^a.c$/",
            "description~=|/from|",
            "description==\"mount /from exec, \\\"quoted\\\"\"",
            "parents~=q",
            "nothing!=x",
        ] {
            assert!(matches(text), "{text}");
        }
        for text in ["id==ab", "immutable", "inuse", "shared", "nothing", "mutable,shared", "id~=^b", "labels.x"] {
            assert!(!matches(text), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_filter() {
        for text in ["==x", "id==", "id==a b", "id~=(", "id==\"x", "id,", "id==\"\\q\""] {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
    }

    #[test]
    fn several_are_alternatives() {
        let filters = ["id==x", "id==abc"].map(|text| text.parse().unwrap());
        assert!(Filter::any(&filters, &record()) && Filter::any(&[], &record()));
        assert!(!Filter::any(&filters[..1], &record()));
    }
}
