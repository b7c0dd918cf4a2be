//! `.dockerignore`: the file's lines as patterns, and which paths they match.

use castor_llb::state::clean;
use regex::Regex;

/// Longest line, as BuildKit's scanner has it.
const MAX_LINE: usize = 64 * 1024;

/// Reads a `.dockerignore`. Lines that start with `#` are comments; patterns are cleaned and relative to the context.
pub fn read(text: &[u8]) -> Result<Vec<String>, String> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut patterns = Vec::new();
    for line in text.split(|&b| b == b'\n') {
        if line.len() >= MAX_LINE {
            return Err("bufio.Scanner: token too long".into());
        }
        if line.starts_with(b"#") {
            continue;
        }
        let line = String::from_utf8_lossy(line);
        let pattern = line.trim();
        if pattern.is_empty() {
            continue;
        }
        let (sign, pattern) = pattern.strip_prefix('!').map_or(("", pattern), |rest| ("!", rest.trim()));
        if pattern.is_empty() {
            patterns.push(sign.to_owned());
            continue;
        }
        let pattern = clean(pattern);
        let pattern = pattern.strip_prefix('/').filter(|rest| !rest.is_empty()).unwrap_or(&pattern);
        patterns.push(format!("{sign}{pattern}"));
    }
    Ok(patterns)
}

#[derive(Debug, Clone)]
enum Matcher {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Regex(Regex),
}

impl Matcher {
    fn compile(pattern: &str) -> Option<Self> {
        let mut regex = String::from("^");
        let mut kind = 'e';
        let mut chars = pattern.chars().peekable();
        let mut first = true;
        while let Some(c) = chars.next() {
            match c {
                '*' if chars.peek() == Some(&'*') => {
                    chars.next();
                    chars.next_if_eq(&'/');
                    if chars.peek().is_some() {
                        regex.push_str("(.*/)?");
                        kind = 'r';
                    } else if kind == 'e' {
                        kind = 'p';
                    } else {
                        regex.push_str(".*");
                        kind = 'r';
                    }
                    if first {
                        kind = 's';
                    }
                }
                '*' => {
                    regex.push_str("[^/]*");
                    kind = 'r';
                }
                '?' => {
                    regex.push_str("[^/]");
                    kind = 'r';
                }
                '\\' => {
                    if let Some(next) = chars.next() {
                        regex.push_str(&regex::escape(next.encode_utf8(&mut [0; 4])));
                        kind = 'r';
                    }
                }
                '[' | ']' => {
                    regex.push(c);
                    kind = 'r';
                }
                '-' => regex.push(c),
                c => regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
            }
            first = false;
        }
        Some(match kind {
            'p' => Self::Prefix(pattern.strip_suffix("**").unwrap_or(pattern).to_owned()),
            's' => Self::Suffix(pattern.strip_prefix("**").unwrap_or(pattern).to_owned()),
            'r' => Self::Regex(Regex::new(&format!("{regex}$")).ok()?),
            _ => Self::Exact(pattern.to_owned()),
        })
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(pattern) => path == pattern,
            Self::Prefix(pattern) => path.starts_with(pattern.as_str()),
            Self::Suffix(pattern) => {
                path.ends_with(pattern.as_str()) || pattern.strip_prefix('/').is_some_and(|rest| path == rest)
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

/// Patterns for the question whether a COPY asks for what is ignored. Only a hint: what is really left out is
/// decided where files are sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patterns {
    patterns: Vec<(String, Matcher)>,
    exceptions: bool,
}

impl Patterns {
    pub(crate) fn new(patterns: &[String]) -> Result<Self, String> {
        let mut new = Self::default();
        for pattern in patterns.iter().map(|pattern| pattern.trim()).filter(|pattern| !pattern.is_empty()) {
            let pattern = clean(pattern);
            if pattern == "!" {
                return Err("illegal exclusion pattern: \"!\"".into());
            }
            let (exception, pattern) = pattern.strip_prefix('!').map_or((false, pattern.as_str()), |rest| (true, rest));
            if !is_valid(pattern) {
                return Err("syntax error in pattern".into());
            }
            if exception {
                new.exceptions = true;
                continue;
            }
            if let Some(matcher) = Matcher::compile(pattern) {
                new.patterns.push((pattern.to_owned(), matcher));
            }
        }
        Ok(new)
    }

    /// Whether `source` of a COPY is ignored as a whole. With exceptions among the patterns that cannot be said.
    pub(crate) fn ignores(&self, source: &str) -> bool {
        if self.exceptions || self.patterns.is_empty() {
            return false;
        }
        let source = clean(source);
        let everything = |pattern: &str| matches!(pattern, "*" | "**" | "**/*");
        if matches!(source.as_str(), "." | "/") && !self.patterns.iter().any(|(pattern, _)| everything(pattern)) {
            return false;
        }
        let parents = source.match_indices('/').map(|(at, _)| &source[..at]);
        let paths: Vec<&str> = std::iter::once(source.as_str()).chain(parents).collect();
        self.patterns.iter().any(|(_, matcher)| paths.iter().any(|path| matcher.matches(path)))
    }
}

/// Whether Go's `path.Match` would take the pattern: classes are closed and not empty, escapes escape something.
fn is_valid(pattern: &str) -> bool {
    /// One character of a class; `false` if there is none.
    fn class_character(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> bool {
        match chars.next() {
            None | Some('-' | ']') => false,
            Some('\\') => chars.next().is_some() && chars.peek().is_some(),
            Some(_) => chars.peek().is_some(),
        }
    }
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.next().is_none() => return false,
            '[' => {
                chars.next_if_eq(&'^');
                let mut ranges = 0;
                while ranges == 0 || chars.next_if_eq(&']').is_none() {
                    if !class_character(&mut chars) {
                        return false;
                    }
                    if chars.next_if_eq(&'-').is_some() && !class_character(&mut chars) {
                        return false;
                    }
                    ranges += 1;
                }
            }
            _ => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_patterns() {
        let text = b"\xef\xbb\xbf# comment\n  # none\n/a/../b/\n! /c\n!\n\n./d  \n/\n";
        assert_eq!(read(text).unwrap(), ["# none", "b", "!c", "!", "d", "/"]);
    }

    #[test]
    fn tells_what_a_copy_cannot_find() {
        let ignores = |patterns: &[&str], source: &str| {
            Patterns::new(&patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>()).unwrap().ignores(source)
        };
        assert!(ignores(&["a"], "a/b"));
        assert!(ignores(&["*.md"], "./x.md"));
        assert!(ignores(&["**/x"], "a/b/x"));
        assert!(ignores(&["a/**"], "a/b"));
        assert!(!ignores(&["a", "!a/b"], "a"));
        assert!(!ignores(&["a"], "."));
        assert!(ignores(&["*"], "."));
        for (pattern, valid) in [
            ("[", false),
            ("[]a]", false),
            ("a\\", false),
            ("[a-]", false),
            ("[^]", false),
            ("[a-c]x", true),
            ("[\\]]", true),
        ] {
            assert_eq!(Patterns::new(&[pattern.into()]).is_ok(), valid, "{pattern}");
        }
    }
}
