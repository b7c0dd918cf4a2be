//! The rules of `.dockerignore`, and of every include and exclude list.

use regex::Regex;

use crate::glob::{self, BadPattern};
use crate::path;

/// A list of rules that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A rule that is only a `!`.
    #[error("illegal exclusion pattern: \"!\"")]
    LoneExclamation,
    /// A malformed rule.
    #[error("{0}")]
    Bad(#[from] BadPattern),
}

/// Rules in their order. A path matches if the last rule that speaks of it, or
/// of a directory above it, does not start with `!`.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    rules: Vec<Rule>,
    exceptions: bool,
}

/// Which rules hold for a directory; its children inherit them.
#[derive(Debug, Clone, Default)]
pub struct ParentMatches(Vec<bool>);

#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// The cleaned text without its `!`.
    pub text: Vec<u8>,
    /// It takes matches back.
    pub exception: bool,
    matcher: Matcher,
}

#[derive(Debug, Clone)]
enum Matcher {
    Exact,
    /// What precedes a final `**`.
    Prefix(Vec<u8>),
    /// What follows a leading `**`, where nothing else is special.
    Suffix(Vec<u8>),
    Regex(Box<Regex>),
    /// Well-formed as a glob, meaningless as a rule: an error once it is asked.
    Bad,
}

impl Patterns {
    /// Reads rules. Empty ones are dropped.
    pub fn new<S: AsRef<[u8]>>(rules: impl IntoIterator<Item = S>) -> Result<Self, PatternError> {
        let mut patterns = Self::default();
        for rule in rules {
            let rule = trimmed(rule.as_ref());
            if rule.is_empty() {
                continue;
            }
            let cleaned = path::clean(rule);
            let (text, exception) = match cleaned.strip_prefix(b"!") {
                Some(b"") => return Err(PatternError::LoneExclamation),
                Some(rest) => (rest.to_owned(), true),
                None => (cleaned, false),
            };
            glob::check(&path::characters(&text))?;
            patterns.exceptions |= exception;
            patterns.rules.push(Rule { matcher: Matcher::compile(&text), text, exception });
        }
        Ok(patterns)
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether any rule starts with `!`.
    pub fn has_exceptions(&self) -> bool {
        self.exceptions
    }

    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether `path`, or a directory above it, matches.
    pub fn matches(&self, path: impl AsRef<[u8]>) -> Result<bool, BadPattern> {
        Ok(self.matches_below(path, None)?.0)
    }

    /// As [`matches`](Self::matches) for a walk: what is known of the directory
    /// above is not found out again. Gives what holds for the path's children.
    pub fn matches_below(
        &self,
        path: impl AsRef<[u8]>,
        parent: Option<&ParentMatches>,
    ) -> Result<(bool, ParentMatches), BadPattern> {
        let path = path.as_ref();
        let parent = parent.filter(|parent| parent.0.len() == self.rules.len());
        let mut matched = false;
        let mut all = vec![false; self.rules.len()];
        for (index, rule) in self.rules.iter().enumerate() {
            let mut hit = parent.is_some_and(|parent| parent.0[index]);
            if !hit {
                // A rule that could not change the verdict is not asked; that
                // is also why it is not known to hold for the children.
                if rule.exception != matched {
                    continue;
                }
                hit = rule.matches(path)?;
                if !hit && parent.is_none() {
                    hit = rule.matches_parent_of(path)?;
                }
            }
            all[index] = hit;
            if hit {
                matched = !rule.exception;
            }
        }
        Ok((matched, ParentMatches(all)))
    }
}

impl Rule {
    fn matches(&self, path: &[u8]) -> Result<bool, BadPattern> {
        Ok(match &self.matcher {
            Matcher::Exact => path == self.text,
            Matcher::Prefix(prefix) => path.starts_with(prefix),
            Matcher::Suffix(suffix) => path.ends_with(suffix) || suffix.strip_prefix(b"/") == Some(path),
            Matcher::Regex(regex) => regex.is_match(&path::characters(path)),
            Matcher::Bad => return Err(BadPattern),
        })
    }

    fn matches_parent_of(&self, path: &[u8]) -> Result<bool, BadPattern> {
        for (slash, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            if self.matches(&path[..slash])? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The part of the rule that names a directory whose contents it may speak
    /// of, without a final `/*` or `/**`.
    pub(crate) fn without_trailing_glob(&self) -> &[u8] {
        let text = self.text.strip_suffix(b"/**").unwrap_or(&self.text);
        text.strip_suffix(b"/*").unwrap_or(text)
    }
}

impl Matcher {
    /// The kind of matcher follows from which special characters come first and
    /// last; the forms without a regular expression are also the exact meaning
    /// of such rules, so this is not only a matter of speed.
    fn compile(rule: &[u8]) -> Self {
        let mut kind = Kind::Exact;
        let mut regex = String::from("^");
        let text = path::characters(rule);
        let mut chars = text.chars().peekable();
        let mut first = true;
        while let Some(c) = chars.next() {
            match c {
                '*' if chars.next_if_eq(&'*').is_some() => {
                    // `**/` is `**`.
                    chars.next_if_eq(&'/');
                    if chars.peek().is_none() {
                        if kind == Kind::Exact {
                            kind = Kind::Prefix;
                        } else {
                            regex.push_str(".*");
                            kind = Kind::Regex;
                        }
                    } else {
                        regex.push_str("(.*/)?");
                        kind = Kind::Regex;
                    }
                    if first {
                        kind = Kind::Suffix;
                    }
                }
                '*' => {
                    regex.push_str("[^/]*");
                    kind = Kind::Regex;
                }
                '?' => {
                    regex.push_str("[^/]");
                    kind = Kind::Regex;
                }
                '\\' => match chars.next() {
                    Some(escaped) => {
                        if !push_escaped(&mut regex, escaped) {
                            return Self::Bad;
                        }
                        kind = Kind::Regex;
                    }
                    None => regex.push_str("\\\\"),
                },
                '[' => {
                    push_class(&mut regex, &mut chars);
                    kind = Kind::Regex;
                }
                ']' => {
                    regex.push_str("\\]");
                    kind = Kind::Regex;
                }
                // An anchor in the middle of a rule that is a regular
                // expression never holds; in an exact rule it is itself.
                '^' => regex.push('^'),
                c => push_literal(&mut regex, c),
            }
            first = false;
        }
        match kind {
            Kind::Exact => Self::Exact,
            Kind::Prefix => Self::Prefix(rule[..rule.len() - 2].to_owned()),
            Kind::Suffix => Self::Suffix(rule[2..].to_owned()),
            // A regular expression is text.
            Kind::Regex if std::str::from_utf8(rule).is_err() => Self::Bad,
            Kind::Regex => {
                regex.push('$');
                Regex::new(&regex).map_or(Self::Bad, |regex| Self::Regex(Box::new(regex)))
            }
        }
    }
}

/// Without the white space around it.
fn trimmed(rule: &[u8]) -> &[u8] {
    std::str::from_utf8(rule).map_or_else(|_| rule.trim_ascii(), |text| text.trim().as_bytes())
}

#[derive(PartialEq)]
enum Kind {
    Exact,
    Prefix,
    Suffix,
    Regex,
}

fn push_literal(regex: &mut String, c: char) {
    regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
}

/// What a backslash and a character mean to Go's regular expressions; false
/// where they mean nothing.
fn push_escaped(regex: &mut String, c: char) -> bool {
    let text = match c {
        'd' => "[0-9]",
        'D' => "[^0-9]",
        'w' => "[0-9A-Za-z_]",
        'W' => "[^0-9A-Za-z_]",
        's' => "[\\t\\n\\x0C\\r ]",
        'S' => "[^\\t\\n\\x0C\\r ]",
        'b' => "(?-u:\\b)",
        'B' => "(?-u:\\B)",
        'A' => "\\A",
        'z' => "\\z",
        'a' => "\\x07",
        'f' => "\\x0C",
        't' => "\\t",
        'n' => "\\n",
        'r' => "\\r",
        'v' => "\\x0B",
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => {
            push_literal(regex, c);
            return true;
        }
        _ => return false,
    };
    regex.push_str(text);
    true
}

/// Copies a character class up to its bracket, so that characters which only
/// this engine takes for operators are themselves. The glob check has made sure
/// that the class is closed.
fn push_class(regex: &mut String, chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    regex.push('[');
    if chars.next_if_eq(&'^').is_some() {
        regex.push('^');
    }
    let mut previous_dash = false;
    while let Some(c) = chars.next() {
        match c {
            ']' => break,
            '\\' => {
                if let Some(escaped) = chars.next() {
                    if escaped.is_ascii_alphanumeric() {
                        regex.push('\\');
                        regex.push(escaped);
                    } else {
                        push_literal(regex, escaped);
                    }
                }
                previous_dash = false;
                continue;
            }
            '-' if previous_dash => regex.push_str("\\-"),
            '-' => regex.push('-'),
            '[' | '&' | '~' | '^' => {
                regex.push('\\');
                regex.push(c);
            }
            c => regex.push(c),
        }
        previous_dash = c == '-';
    }
    regex.push(']');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(rules: &[&str], path: &str) -> bool {
        Patterns::new(rules).unwrap().matches(path).unwrap()
    }

    #[test]
    fn single_rules() {
        let cases = [
            ("**", "file", true),
            ("**", "dir/file", true),
            ("**/", "file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir", false),
            ("dir/**", "dir/dir2/file", true),
            ("**/dir", "dir", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/*", "dir/dir2/dir2/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**/file*txt", "dir/dir/filetxt", true),
            ("**/**/*.txt", "dir/file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/dir/file.txt", true),
            ("a[b-d]e", "ae", false),
            ("a[b-d]e", "ace", true),
            ("a[^b-d]e", "aze", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcdef", false),
            ("abc?def", "abcZdef", true),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("**/foo/bar", "foo/bar", true),
            ("**/foo/bar", "dir/foo/bar", true),
            ("abc/**", "abc/def", true),
            ("**/.foo", "bar.foo", false),
            ("./bar.*", "bar.z", true),
            ("a(b)c/def", "a(b)c/def", true),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            (
                "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
                "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
                true,
            ),
            ("dist/*.whl", "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", true),
            ("br[[]1]", "br[1]", true),
            ("x[&&]y", "x&y", true),
            ("[a-c]\\d", "b7", true),
        ];
        for (rule, path, want) in cases {
            assert_eq!(matches(&[rule], path), want, "{rule:?} {path:?}");
        }
    }

    #[test]
    fn later_rules_win_and_directories_pass_their_match_on() {
        assert!(matches(&["docs"], "docs/README.md"));
        assert!(!matches(&["docs", "!docs/README.md"], "docs/README.md"));
        assert!(matches(&["docs", "!docs/README.md"], "docs/other"));
        assert!(!matches(&["**", "!util/docker/web"], "util/docker/web/foo"));
        assert!(matches(&["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo"));
        assert!(!matches(&["!a", "!b"], "a"));
    }

    #[test]
    fn a_walk_decides_as_a_single_question_does() {
        let lists: &[&[&str]] = &[
            &["*", "!dir"],
            &["dir", "!dir/sub"],
            &["**/a.txt", "!dir/**"],
            &["dir/*", "!dir/sub/deep", "dir/sub/deep/z"],
        ];
        for rules in lists {
            let patterns = Patterns::new(*rules).unwrap();
            for path in ["dir/sub/deep/z", "src/pkg/x.go", "dir/a.txt", "a.txt", "dir/sub/a.txt"] {
                let mut parent: Option<ParentMatches> = None;
                let mut verdict = false;
                let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
                for end in ends {
                    let (hit, matches) = patterns.matches_below(&path[..end], parent.as_ref()).unwrap();
                    (verdict, parent) = (hit, Some(matches));
                }
                assert_eq!(verdict, patterns.matches(path).unwrap(), "{rules:?} {path:?}");
            }
        }
    }

    #[test]
    fn a_rule_that_was_not_asked_of_a_directory_is_not_inherited() {
        // Docker's walk differs here from Docker's single question: when the
        // walk came to src/pkg, the first rule had decided already and the last
        // one was not asked.
        let patterns = Patterns::new(["**", "!**/*.go", "src/pkg"]).unwrap();
        let (_, src) = patterns.matches_below("src", None).unwrap();
        let (hit, pkg) = patterns.matches_below("src/pkg", Some(&src)).unwrap();
        assert!(hit);
        assert!(!patterns.matches_below("src/pkg/x.go", Some(&pkg)).unwrap().0);
        assert!(patterns.matches("src/pkg/x.go").unwrap());
    }

    #[test]
    fn names_that_are_no_text_match_too() {
        let cases: &[(&[u8], bool)] = &[
            (b"caf?", true),
            (b"caf*", true),
            (b"**/caf\xe9", true),
            (b"caf\xe9", true),
            (b"caf\xe9/**", false),
            (b"caf\xe8", false),
            (b"caf", false),
        ];
        for (rule, want) in cases {
            assert_eq!(Patterns::new([rule]).unwrap().matches(b"caf\xe9"), Ok(*want), "{rule:?}");
        }
        assert!(Patterns::new(["d"]).unwrap().matches(b"d/caf\xe9").unwrap());
        assert_eq!(Patterns::new([b"*\xe9"]).unwrap().matches(b"caf\xe9"), Err(BadPattern), "as a regular expression");
    }

    #[test]
    fn malformed_rules_are_refused() {
        assert_eq!(Patterns::new(["!"]).unwrap_err(), PatternError::LoneExclamation);
        assert!(matches!(Patterns::new(["a["]), Err(PatternError::Bad(_))));
        assert_eq!(Patterns::new(["\\q"]).unwrap().matches("q"), Err(BadPattern));
        assert!(Patterns::new([" ", ""]).unwrap().is_empty());
    }
}
