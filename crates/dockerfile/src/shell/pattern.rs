//! Patterns of `${x#…}`, `${x%…}` and `${x/…}`: `*`, `?` and escapes.

use regex::Regex;

fn compile(pattern: &str, greedy: bool, anchored: bool) -> Result<Regex, String> {
    let mut out = String::with_capacity(pattern.len() + 4);
    if anchored {
        out.push('^');
    }
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' => out.push_str(if greedy { ".*" } else { ".*?" }),
            '?' => out.push('.'),
            // A slash and a brace are escaped because of what is around the pattern, not in it.
            '\\' if matches!(chars.peek(), Some('}' | '/')) => {}
            '\\' => match chars.next() {
                Some(c @ ('*' | '?' | '\\')) => {
                    out.push('\\');
                    out.push(c);
                }
                c => {
                    return Err(format!("invalid escape '\\{}'", c.unwrap_or(char::REPLACEMENT_CHARACTER)));
                }
            },
            c => out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    Regex::new(&out).map_err(|error| error.to_string())
}

fn in_substitution(pattern: &str) -> impl Fn(String) -> String {
    move |error| format!("invalid pattern ({pattern}) in substitution: {error}")
}

/// `${x#pattern}`, `${x##pattern}`.
pub(super) fn trim_prefix(pattern: &str, value: &str, greedy: bool) -> Result<String, String> {
    let regex = compile(pattern, greedy, true).map_err(in_substitution(pattern))?;
    Ok(regex.find(value).map_or(value, |found| &value[found.end()..]).to_owned())
}

/// `${x%pattern}`, `${x%%pattern}`. The shortest match at the end is found in the reversed text.
pub(super) fn trim_suffix(pattern: &str, value: &str, greedy: bool) -> Result<String, String> {
    let reversed: String = value.chars().rev().collect();
    let trimmed = trim_prefix(&reverse_pattern(pattern), &reversed, greedy)?;
    Ok(trimmed.chars().rev().collect())
}

/// Reverses, but leaves escapes before what they escape.
fn reverse_pattern(pattern: &str) -> String {
    let mut units: Vec<String> = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        let mut unit = c.to_string();
        if c == '\\' {
            unit.extend(chars.next());
        }
        units.push(unit);
    }
    units.into_iter().rev().collect()
}

/// `${x/pattern/replacement}`, `${x//pattern/replacement}`.
pub(super) fn replace(pattern: &str, value: &str, replacement: &str, all: bool) -> Result<String, String> {
    let regex = compile(pattern, true, false).map_err(in_substitution(pattern))?;
    if all {
        // In the replacement of all matches, `$1` and the like stand for groups, of which there are none.
        return Ok(regex.replace_all(value, replacement).into_owned());
    }
    Ok(match regex.find(value) {
        None => value.to_owned(),
        Some(found) => format!("{}{replacement}{}", &value[..found.start()], &value[found.end()..]),
    })
}
