//! Words and variables as Dockerfiles know them: much like a shell's, but not quite.

use std::collections::BTreeSet;

use castor_llb::state::Env;

use crate::error::{DockerfileError, Result};
use crate::gofmt::quote;

mod pattern;

/// Splits into words and expands variables.
#[derive(Debug, Clone, Copy)]
pub struct Lexer {
    escape: char,
    raw_quotes: bool,
    raw_escapes: bool,
    skip_quotes: bool,
    skip_unset: bool,
}

/// A word, expanded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The text.
    pub text: String,
    /// Variables that were there.
    pub matched: BTreeSet<String>,
    /// Variables that were not.
    pub unmatched: BTreeSet<String>,
}

impl Lexer {
    /// A lexer with this escape character.
    pub fn new(escape: char) -> Self {
        Self { escape, raw_quotes: false, raw_escapes: false, skip_quotes: false, skip_unset: false }
    }

    /// Keeps quotes in the result.
    #[must_use]
    pub fn raw_quotes(self) -> Self {
        Self { raw_quotes: true, ..self }
    }

    /// Keeps escape characters in the result.
    #[must_use]
    pub fn raw_escapes(self) -> Self {
        Self { raw_escapes: true, ..self }
    }

    /// Takes quotes for ordinary characters.
    #[must_use]
    pub fn skip_quotes(self) -> Self {
        Self { skip_quotes: true, ..self }
    }

    /// Leaves variables that are not set as they stand.
    #[must_use]
    pub fn skip_unset(self) -> Self {
        Self { skip_unset: true, ..self }
    }

    fn run<'e>(self, text: &str, env: &'e Env) -> (Result<(String, Vec<String>)>, Walk<'e>) {
        let mut walk = Walk {
            lexer: self,
            chars: text.strip_prefix('\u{feff}').unwrap_or(text).chars().collect(),
            at: 0,
            depth: 0,
            env,
            raw_escapes: self.raw_escapes,
            clobbered: false,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
        };
        let result = walk
            .until(None, self.raw_escapes)
            .map_err(|error| DockerfileError::new(format!("failed to process {}: {error}", quote(text))));
        (result, walk)
    }

    /// Expands a text into one word. What was found of variables is there even if it fails.
    pub fn expand(self, text: &str, env: &Env) -> (Result<String>, Expanded) {
        let (result, walk) = self.run(text, env);
        let text = result.as_ref().map(|(text, _)| text.clone()).unwrap_or_default();
        let expanded = Expanded { text, matched: walk.matched, unmatched: walk.unmatched };
        (result.map(|(text, _)| text), expanded)
    }

    /// Expands a text into one word.
    pub fn word(self, text: &str, env: &Env) -> Result<String> {
        self.run(text, env).0.map(|(text, _)| text)
    }

    /// Expands a text and splits it at blanks that are not quoted.
    pub fn words(self, text: &str, env: &Env) -> Result<Vec<String>> {
        self.run(text, env).0.map(|(_, words)| words)
    }
}

/// Variables that hold variables grow fast; no word needs to be longer than this.
const MAX_WORD: usize = 1 << 20;

/// Nested `${…}` of a hostile file must not exhaust the stack.
const MAX_DEPTH: usize = 100;

struct Walk<'a> {
    lexer: Lexer,
    chars: Vec<char>,
    at: usize,
    depth: usize,
    env: &'a Env,
    raw_escapes: bool,
    /// The word under construction was lost; see [`Walk::until`].
    clobbered: bool,
    matched: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

/// Words under construction.
#[derive(Default)]
struct Words {
    word: String,
    words: Vec<String>,
    inside: bool,
}

impl Words {
    /// A character that separates if it is blank.
    fn push(&mut self, c: char) {
        if !c.is_whitespace() {
            self.push_raw(c);
        } else if self.inside && !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
            self.inside = false;
        }
    }

    fn push_raw(&mut self, c: char) {
        self.word.push(c);
        self.inside = true;
    }

    fn push_raw_text(&mut self, text: &str) {
        self.word.push_str(text);
        self.inside = true;
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.words.push(self.word);
        }
        self.words
    }
}

/// How a character that is not there is shown.
const NONE: char = char::REPLACEMENT_CHARACTER;

type Text<T = String> = std::result::Result<T, String>;

impl Walk<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        if c.is_some() {
            self.at += 1;
        }
        c
    }

    /// Processes up to a character, which is taken too; `None` is the end.
    ///
    /// BuildKit builds words in one buffer, whatever the depth: where a substitution has a word of its own, what was
    /// in the buffer before it is lost. It shows where texts are split into words (`EXPOSE 80${X:-1}` exposes 1), and
    /// in what counts as a heredoc.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Text<(String, Vec<String>)> {
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        self.depth += 1;
        let result = if self.depth > MAX_DEPTH {
            Err("substitutions are nested too deeply".to_owned())
        } else {
            self.until_stop(stop)
        };
        self.depth -= 1;
        self.raw_escapes = outer;
        self.clobbered = true;
        result
    }

    fn until_stop(&mut self, stop: Option<char>) -> Text<(String, Vec<String>)> {
        let mut result = String::new();
        let mut words = Words::default();
        while let Some(c) = self.peek() {
            if result.len() > MAX_WORD {
                return Err(format!("expansion exceeds the limit of {MAX_WORD} bytes"));
            }
            if stop == Some(c) {
                self.at += 1;
                return Ok((result, words.finish()));
            }
            match c {
                '$' => {
                    let text = self.dollar()?;
                    self.lose(&mut words);
                    text.chars().for_each(|c| words.push(c));
                    result.push_str(&text);
                }
                '\'' | '"' if !self.lexer.skip_quotes => {
                    let text = if c == '"' { self.double_quotes()? } else { self.single_quotes()? };
                    self.lose(&mut words);
                    words.push_raw_text(&text);
                    result.push_str(&text);
                }
                '<' => {
                    let text = self.maybe_heredoc();
                    words.push_raw_text(&text);
                    result.push_str(&text);
                }
                c if c == self.lexer.escape => {
                    self.at += 1;
                    if self.raw_escapes {
                        words.push_raw(c);
                        result.push(c);
                    }
                    let Some(c) = self.next() else { break };
                    words.push_raw(c);
                    result.push(c);
                }
                c => {
                    self.at += 1;
                    words.push(c);
                    result.push(c);
                }
            }
        }
        match stop {
            Some(stop) => Err(format!("unexpected end of statement while looking for matching {stop}")),
            None => Ok((result, words.finish())),
        }
    }

    /// Forgets the word under construction, if a substitution took its buffer.
    fn lose(&mut self, words: &mut Words) {
        if std::mem::take(&mut self.clobbered) {
            words.word.clear();
        }
    }

    fn single_quotes(&mut self) -> Text {
        let mut result = String::new();
        let open = self.next();
        result.extend(open.filter(|_| self.lexer.raw_quotes));
        loop {
            match self.next() {
                None => return Err("unexpected end of statement while looking for matching single-quote".into()),
                Some('\'') => {
                    result.extend(Some('\'').filter(|_| self.lexer.raw_quotes));
                    return Ok(result);
                }
                Some(c) => result.push(c),
            }
        }
    }

    fn double_quotes(&mut self) -> Text {
        let mut result = String::new();
        let open = self.next();
        result.extend(open.filter(|_| self.lexer.raw_quotes));
        loop {
            match self.peek() {
                None => return Err("unexpected end of statement while looking for matching double-quote".into()),
                Some('"') => {
                    self.at += 1;
                    result.extend(Some('"').filter(|_| self.lexer.raw_quotes));
                    return Ok(result);
                }
                Some('$') => {
                    result.push_str(&self.dollar()?);
                    if result.len() > MAX_WORD {
                        return Err(format!("expansion exceeds the limit of {MAX_WORD} bytes"));
                    }
                }
                Some(c) if c == self.lexer.escape => {
                    self.at += 1;
                    if self.raw_escapes {
                        result.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(next) if matches!(next, '"' | '$') || next == self.lexer.escape => {
                            self.at += 1;
                            result.push(next);
                        }
                        // Everything else is not escaped by it.
                        Some(_) => result.push(c),
                    }
                }
                Some(c) => {
                    self.at += 1;
                    result.push(c);
                }
            }
        }
    }

    /// `<<` and blanks behind it belong to the word that names a heredoc.
    fn maybe_heredoc(&mut self) -> String {
        self.at += 1;
        if self.peek() != Some('<') {
            return "<".into();
        }
        self.at += 1;
        let mut result = "<<".to_owned();
        while let Some(c) = self.peek().filter(|c| matches!(c, '\t' | '\r' | ' ')) {
            self.at += 1;
            result.push(c);
        }
        result
    }

    fn variable(&mut self, name: &str) -> Option<String> {
        let value = self.env.get(name).map(str::to_owned);
        let set = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        set.insert(name.to_owned());
        value
    }

    fn dollar(&mut self) -> Text {
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".into());
            }
            return match self.variable(&name) {
                None if self.lexer.skip_unset => Ok(format!("${name}")),
                value => Ok(value.unwrap_or_default()),
            };
        }
        self.at += 1;
        match self.peek() {
            None => return Err("syntax error: missing '}'".into()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".into()),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            Some('}') => match self.variable(&name) {
                None if self.lexer.skip_unset => Ok(format!("${{{name}}}")),
                value => Ok(value.unwrap_or_default()),
            },
            Some(':') => {
                let modifier = self.next();
                self.modified(&name, modifier, true)
            }
            Some(c @ ('+' | '-' | '?' | '#' | '%')) => self.modified(&name, Some(c), false),
            Some('/') => self.replaced(&name),
            c => Err(format!("unsupported modifier ({}) in substitution", c.unwrap_or(NONE))),
        }
    }

    /// `${name…word}` behind the modifier; with a colon, an empty value counts as none.
    fn modified(&mut self, name: &str, modifier: Option<char>, colon: bool) -> Text {
        let shown = format!("{}{}", if colon { ":" } else { "" }, modifier.unwrap_or(NONE));
        let unsupported = || Err(format!("unsupported modifier ({shown}) in substitution"));
        let trims = matches!(modifier, Some('#' | '%'));
        if colon && trims {
            return unsupported();
        }
        let word = match self.until(Some('}'), trims) {
            Ok((word, _)) => word,
            Err(_) if self.peek().is_none() => return Err("syntax error: missing '}'".into()),
            Err(error) => return Err(error),
        };
        let value = self.variable(name);
        let Some(value) = value else {
            if self.lexer.skip_unset {
                return Ok(format!("${{{name}{shown}{word}}}"));
            }
            return match modifier {
                Some('-') => Ok(word),
                Some('+') => Ok(String::new()),
                Some('?') => Err(required(name, &word, "is not allowed to be unset")),
                Some('#' | '%') => self.trimmed(modifier, &word, ""),
                _ => unsupported(),
            };
        };
        let missing = colon && value.is_empty();
        match modifier {
            Some('-') => Ok(if missing { word } else { value }),
            Some('+') => Ok(if missing { String::new() } else { word }),
            Some('?') if missing => Err(required(name, &word, "is not allowed to be empty")),
            Some('?') => Ok(value),
            Some('#' | '%') => self.trimmed(modifier, &word, &value),
            _ => unsupported(),
        }
    }

    fn trimmed(&self, modifier: Option<char>, word: &str, value: &str) -> Text {
        let sign = modifier.unwrap_or('#');
        let (pattern, greedy) = word.strip_prefix(sign).map_or((word, false), |pattern| (pattern, true));
        if sign == '#' {
            pattern::trim_prefix(pattern, value, greedy)
        } else {
            pattern::trim_suffix(pattern, value, greedy)
        }
    }

    /// `${name/pattern/replacement}` behind the first slash.
    fn replaced(&mut self, name: &str) -> Text {
        let all = self.peek() == Some('/');
        if all {
            self.at += 1;
        }
        let part = |walk: &mut Self, stop: char, missing: &str| match walk.until(Some(stop), true) {
            Ok((text, _)) => Ok(text),
            Err(_) if walk.peek().is_none() => Err(missing.to_owned()),
            Err(error) => Err(error),
        };
        let pattern = part(self, '/', "syntax error: missing '/' in ${}")?;
        let replacement = part(self, '}', "syntax error: missing '}'")?;
        let value = self.variable(name);
        if value.is_none() && self.lexer.skip_unset {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        pattern::replace(&pattern, &value.unwrap_or_default(), &replacement, all)
    }

    /// A variable's name: letters, digits and underscores, a number, or one special character.
    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            if name.is_empty() && is_digit(c) {
                while let Some(c) = self.peek().filter(|&c| is_digit(c)) {
                    self.at += 1;
                    name.push(c);
                }
                return name;
            }
            if name.is_empty() && matches!(c, '@' | '*' | '#' | '?' | '-' | '$' | '!') {
                self.at += 1;
                return c.to_string();
            }
            if !is_letter(c) && !is_digit(c) && c != '_' {
                break;
            }
            self.at += 1;
            name.push(c);
        }
        name
    }
}

fn required(name: &str, word: &str, default: &str) -> String {
    format!("{name}: {}", if word.is_empty() { default } else { word })
}

fn is_letter(c: char) -> bool {
    use std::sync::LazyLock;
    static LETTER: LazyLock<Option<regex::Regex>> = LazyLock::new(|| regex::Regex::new(r"^\p{L}$").ok());
    if c.is_ascii() {
        return c.is_ascii_alphabetic();
    }
    LETTER.as_ref().is_some_and(|pattern| pattern.is_match(c.encode_utf8(&mut [0; 4])))
}

fn is_digit(c: char) -> bool {
    use std::sync::LazyLock;
    static DIGIT: LazyLock<Option<regex::Regex>> = LazyLock::new(|| regex::Regex::new(r"^\p{Nd}$").ok());
    if c.is_ascii() {
        return c.is_ascii_digit();
    }
    DIGIT.as_ref().is_some_and(|pattern| pattern.is_match(c.encode_utf8(&mut [0; 4])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Env {
        let mut env = Env::default();
        env.set("A", "foo");
        env.set("E", "");
        env
    }

    #[test]
    fn expands_and_splits() {
        let lexer = Lexer::new('\\');
        assert_eq!(lexer.word("\"$A\\$A\" '$A'", &env()).unwrap(), "foo$A $A");
        assert_eq!(lexer.words("a \"b c\" $A'x'", &env()).unwrap(), ["a", "b c", "foox"]);
        assert_eq!(lexer.words("  ", &env()).unwrap(), Vec::<String>::new());
        let (_, expanded) = lexer.expand("$A$B${C:-$A}", &env());
        assert_eq!(expanded.text, "foofoo");
        assert_eq!(expanded.unmatched.into_iter().collect::<Vec<_>>(), ["B", "C"]);
    }

    #[test]
    fn words_lose_what_is_before_a_substitution_with_a_word() {
        let words = |text| Lexer::new('\\').words(text, &env()).unwrap();
        assert_eq!(words("a 80${X:-1}x"), ["a", "1x"]);
        assert_eq!(words("80\"${X:-1}\""), ["1"]);
        assert_eq!(words("80$A"), ["80foo"]);
    }

    #[test]
    fn leaves_the_unset_alone_where_asked_to() {
        let lexer = Lexer::new('\\').skip_unset().raw_quotes();
        let text = "echo \"$A $B\" ${B:-x} ${B/a/b} '$A'";
        assert_eq!(lexer.word(text, &env()).unwrap(), "echo \"foo $B\" ${B:-x} ${B/a/b} '$A'");
    }

    #[test]
    fn words_do_not_grow_beyond_all_bounds() {
        let mut env = Env::default();
        env.set("A", &"x".repeat(MAX_WORD / 4));
        for text in ["$A$A$A$A$A$A", "\"$A$A$A$A$A$A\""] {
            assert!(Lexer::new('\\').word(text, &env).is_err());
        }
        assert!(Lexer::new('\\').word("$A$A", &env).is_ok());
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let text = "${A:-".repeat(10_000);
        assert!(Lexer::new('\\').word(&text, &Env::default()).is_err());
    }
}
