//! Go's `filepath.Match`: patterns for one path, where `*` and `?` stop at a
//! slash.

/// A pattern that is malformed: an open class, an empty one, or a trailing
/// backslash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub struct BadPattern;

#[derive(Debug, PartialEq)]
enum Token {
    /// Any run without a slash.
    Star,
    /// One character but a slash.
    Any,
    One(char),
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// Whether `name` matches `pattern` as a whole. A byte of it that is not part of a character counts for one.
pub fn glob_match(pattern: &str, name: impl AsRef<[u8]>) -> Result<bool, BadPattern> {
    let tokens = parse(pattern)?;
    let name: Vec<char> = crate::path::characters(name.as_ref()).chars().collect();
    Ok(matches(&tokens, &name))
}

/// Whether the pattern is well-formed.
pub(crate) fn check(pattern: &str) -> Result<(), BadPattern> {
    parse(pattern).map(|_| ())
}

/// Whether the name is a pattern at all. An escaped character is none.
pub fn has_wildcards(name: &str) -> bool {
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

fn parse(pattern: &str) -> Result<Vec<Token>, BadPattern> {
    let mut chars = pattern.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => Token::One(chars.next().ok_or(BadPattern)?),
            '[' => {
                let negated = chars.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                loop {
                    if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
                        break;
                    }
                    let low = class_char(&mut chars)?;
                    let high = if chars.next_if_eq(&'-').is_some() { class_char(&mut chars)? } else { low };
                    ranges.push((low, high));
                }
                Token::Class { negated, ranges }
            }
            c => Token::One(c),
        });
    }
    Ok(tokens)
}

/// One end of a range. The class must go on after it.
fn class_char(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, BadPattern> {
    let c = match chars.next().ok_or(BadPattern)? {
        '-' | ']' => return Err(BadPattern),
        '\\' => chars.next().ok_or(BadPattern)?,
        c => c,
    };
    if chars.peek().is_none() { Err(BadPattern) } else { Ok(c) }
}

/// Greedy with one point of return: a later star makes an earlier one's choice
/// final, because whatever the earlier could skip the later can skip too, up to
/// the next slash, which neither can.
fn matches(tokens: &[Token], name: &[char]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match tokens.get(token) {
            None if at == name.len() => return true,
            None => false,
            Some(Token::Star) => {
                retry = Some((token + 1, at));
                token += 1;
                continue;
            }
            Some(one) => name.get(at).is_some_and(|&c| accepts(one, c)),
        };
        if step {
            token += 1;
            at += 1;
            continue;
        }
        match retry {
            Some((after, from)) if from < name.len() && name[from] != '/' => {
                retry = Some((after, from + 1));
                token = after;
                at = from + 1;
            }
            _ => return false,
        }
    }
}

fn accepts(token: &Token, c: char) -> bool {
    match token {
        Token::Any => c != '/',
        Token::One(one) => *one == c,
        Token::Class { negated, ranges } => ranges.iter().any(|&(low, high)| low <= c && c <= high) != *negated,
        Token::Star => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stop_at_slashes() {
        let cases = [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a/b", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a?b", "a/b", false),
            ("ab[c]", "abc", true),
            ("ab[^e-g]", "abf", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "acb", false),
            ("[\\]a]", "]", true),
            ("[x\\-]", "-", true),
            ("*x", "xxx", true),
            ("", "", true),
            ("*", "", true),
            ("?", "ü", true),
        ];
        for (pattern, name, want) in cases {
            assert_eq!(glob_match(pattern, name), Ok(want), "{pattern:?} {name:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_characters_count_for_one() {
        for (pattern, want) in [("caf?", true), ("*", true), ("c[^x]f*", true), ("café", false), ("caf", false)] {
            assert_eq!(glob_match(pattern, b"caf\xe9"), Ok(want), "{pattern:?}");
        }
    }

    #[test]
    fn a_pattern_has_a_wildcard_that_is_not_escaped() {
        assert!(has_wildcards("a*") && !has_wildcards("a\\*") && has_wildcards("[a]"));
    }

    #[test]
    fn malformed_patterns_are_told() {
        for pattern in ["[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "a\\", "[a-\\", "*["] {
            assert_eq!(check(pattern), Err(BadPattern), "{pattern:?}");
        }
    }
}
