//! Lines → flags and arguments, by the rules of each instruction.

use super::Node;
use crate::error::{DockerfileError, Result};
use crate::gofmt::quote;

/// What separates words here. A newline does not occur.
fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// Splits at the first run of blanks.
fn split_once_blank(text: &str) -> Option<(&str, &str)> {
    let start = text.find(is_blank)?;
    Some((&text[..start], text[start..].trim_start_matches(is_blank)))
}

/// Splits at all runs of blanks; a run at an edge leaves an empty word.
fn split_blank(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some((word, more)) = split_once_blank(rest) {
        words.push(word.to_owned());
        rest = more;
    }
    words.push(rest.to_owned());
    words
}

/// Parses a line. `nested` is set for what is behind ONBUILD.
pub(super) fn node(line: &str, escape: char, nested: bool) -> Result<Node> {
    let trimmed = line.trim();
    let (name, rest) = split_once_blank(trimmed).map_or((trimmed, None), |(name, rest)| (name, Some(rest)));
    let (flags, rest) = rest.map_or((Vec::new(), String::new()), |rest| split_flags(rest, escape));
    let rest = rest.trim();
    let mut node = Node { name: name.to_owned(), flags, original: line.to_owned(), ..Node::default() };
    match name.to_lowercase().as_str() {
        "add" | "copy" => {
            (node.args, node.json) = json_or_words(rest)?;
            node.takes_heredocs = !node.json;
        }
        "volume" => (node.args, node.json) = json_or_words(rest)?,
        "run" => {
            (node.args, node.json) = json_or_text(rest)?;
            node.takes_heredocs = !node.json;
        }
        "cmd" | "entrypoint" | "shell" => (node.args, node.json) = json_or_text(rest)?,
        "arg" => node.args = quoted_words(rest, escape),
        "env" => node.args = name_values(rest, "ENV", escape)?,
        "label" => node.args = name_values(rest, "LABEL", escape)?,
        "expose" | "from" if !rest.is_empty() => node.args = split_blank(rest),
        "maintainer" | "stopsignal" | "user" | "workdir" if !rest.is_empty() => node.args = vec![rest.to_owned()],
        "healthcheck" => (node.args, node.json) = health_check(rest)?,
        // One level is enough: ONBUILD in ONBUILD is refused whatever is behind it.
        "onbuild" if !rest.is_empty() && !nested => {
            let child = self::node(rest, escape, true)?;
            node.takes_heredocs = child.takes_heredocs;
            node.args.push(child.name);
            node.args.extend(child.args);
        }
        _ => {}
    }
    Ok(node)
}

/// Takes the flags off the start of an instruction's arguments.
fn split_flags(line: &str, escape: char) -> (Vec<String>, String) {
    // BuildKit goes byte by byte and takes each byte for a character of its own, whatever the encoding; what is not
    // ASCII comes out as Latin-1. Flags are rarely that, but the digest of the op would differ.
    let bytes = line.as_bytes();
    let escape = u8::try_from(escape).unwrap_or(b'\\');
    let is_space = |byte: u8| char::from(byte).is_whitespace();
    let mut flags = Vec::new();
    let mut at = 0;
    loop {
        while at < bytes.len() && is_space(bytes[at]) {
            at += 1;
        }
        if at == bytes.len() {
            return (flags, String::new());
        }
        if !bytes[at..].starts_with(b"--") {
            return (flags, tail(line, at));
        }
        let mut word = String::new();
        let mut quote = None;
        let mut was_quoted = false;
        while at < bytes.len() && (quote.is_some() || !is_space(bytes[at])) {
            let mut byte = bytes[at];
            match quote {
                Some(open) if byte == open => {
                    quote = None;
                    at += 1;
                    continue;
                }
                None if matches!(byte, b'\'' | b'"') => {
                    quote = Some(byte);
                    was_quoted = true;
                    at += 1;
                    continue;
                }
                _ => {}
            }
            if byte == escape {
                at += 1;
                let Some(&next) = bytes.get(at) else { break };
                byte = next;
            }
            word.push(char::from(byte));
            at += 1;
        }
        if word == "--" {
            return (flags, if at < bytes.len() { tail(line, at) } else { String::new() });
        }
        if was_quoted || !word.is_empty() {
            flags.push(word);
        }
    }
}

/// The text from a byte on; bytes of a torn character are replaced.
fn tail(line: &str, at: usize) -> String {
    line.get(at..).map_or_else(|| String::from_utf8_lossy(&line.as_bytes()[at..]).into_owned(), str::to_owned)
}

/// Words in which quotes and escapes are kept; blanks inside quotes do not separate.
fn quoted_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut in_word = false;
    let mut blank_ok = false;
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if !in_word {
            if c.is_whitespace() {
                continue;
            }
            in_word = true;
        }
        match quote {
            None if c.is_whitespace() => {
                if blank_ok || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                in_word = false;
                blank_ok = false;
                continue;
            }
            None if matches!(c, '\'' | '"') => {
                quote = Some(c);
                blank_ok = true;
            }
            Some(open) if c == open => quote = None,
            _ => {}
        }
        // Nothing is escaped in single quotes; an escape at the very end is dropped.
        if c == escape && quote != Some('\'') {
            let Some(next) = chars.next() else { break };
            word.push(c);
            word.push(next);
            continue;
        }
        word.push(c);
    }
    if in_word && (blank_ok || !word.is_empty()) {
        words.push(word);
    }
    words
}

/// `name=value …` or `name value`: triples of name, value and the separator.
fn name_values(text: &str, instruction: &str, escape: char) -> Result<Vec<String>> {
    let words = quoted_words(text, escape);
    let Some(first) = words.first() else { return Ok(Vec::new()) };
    if !first.contains('=') {
        let Some((name, value)) = split_once_blank(text) else {
            return Err(DockerfileError::new(format!("{instruction} must have two arguments")));
        };
        return Ok(vec![name.to_owned(), value.to_owned(), String::new()]);
    }
    let mut triples = Vec::with_capacity(words.len() * 3);
    for word in &words {
        let Some((name, value)) = word.split_once('=') else {
            return Err(DockerfileError::new(format!(
                "Syntax error - can't find = in {}. Must be of the form: name=value",
                quote(word)
            )));
        };
        triples.extend([name.to_owned(), value.to_owned(), "=".to_owned()]);
    }
    Ok(triples)
}

/// A JSON list of strings; `None` if the text is no JSON list.
fn json_list(text: &str) -> Result<Option<Vec<String>>> {
    if !text.trim_start().starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else { return Ok(None) };
    let strings = values.into_iter().map(|value| match value {
        serde_json::Value::String(text) => Ok(text),
        _ => Err(DockerfileError::new("when using JSON array syntax, arrays must be comprised of strings only")),
    });
    strings.collect::<Result<_>>().map(Some)
}

fn json_or_text(text: &str) -> Result<(Vec<String>, bool)> {
    if text.is_empty() {
        return Ok((Vec::new(), false));
    }
    Ok(json_list(text)?.map_or_else(|| (vec![text.to_owned()], false), |list| (list, true)))
}

fn json_or_words(text: &str) -> Result<(Vec<String>, bool)> {
    if text.is_empty() {
        return Ok((Vec::new(), false));
    }
    Ok(json_list(text)?.map_or_else(|| (split_blank(text), false), |list| (list, true)))
}

fn health_check(text: &str) -> Result<(Vec<String>, bool)> {
    // Byte by byte, as in [`split_flags`].
    let bytes = text.as_bytes();
    let is_space = |byte: &u8| char::from(*byte).is_whitespace();
    let end = bytes.iter().position(is_space).unwrap_or(bytes.len());
    if end == 0 {
        return Ok((Vec::new(), false));
    }
    let kind = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let blanks = bytes[end..].iter().take_while(|byte| is_space(byte)).count();
    let (mut args, json) = json_or_text(&tail(text, end + blanks))?;
    args.insert(0, kind);
    Ok((args, json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_first_and_lose_their_quotes() {
        let node = node("COPY --from=\"a b\" --x='\\'' -- --y z", '\\', false).unwrap();
        assert_eq!(node.flags, ["--from=a b", "--x='"]);
        assert_eq!(node.args, ["--y", "z"]);
        let node = self::node("RUN --chown=é x", '\\', false).unwrap();
        assert_eq!(node.flags, ["--chown=Ã©"]);
    }

    #[test]
    fn names_and_values_keep_quotes_and_escapes() {
        let args = |line: &str| node(line, '\\', false).unwrap().args;
        assert_eq!(args("ENV a=\"b c\" d=e\\ f"), ["a", "\"b c\"", "=", "d", "e\\ f", "="]);
        assert_eq!(args("ENV a b  c"), ["a", "b  c", ""]);
        assert_eq!(args("ARG a b='c d' \"\""), ["a", "b='c d'", "\"\""]);
        assert!(node("ENV a", '\\', false).is_err());
        assert!(node("LABEL a=b c", '\\', false).is_err());
    }

    #[test]
    fn json_lists_hold_strings() {
        let both = |line: &str| node(line, '\\', false).map(|node| (node.args, node.json));
        assert_eq!(both("CMD [\"a\", \"b\"]").unwrap(), (vec!["a".into(), "b".into()], true));
        assert_eq!(both("CMD [\"a\", b]").unwrap(), (vec!["[\"a\", b]".into()], false));
        assert!(both("CMD [1]").is_err());
        assert_eq!(both("COPY [\"a\", b]").unwrap(), (vec!["[\"a\",".into(), "b]".into()], false));
        assert_eq!(both("CMD []").unwrap(), (vec![], true));
        assert_eq!(both("HEALTHCHECK CMD [\"x\"]").unwrap(), (vec!["CMD".into(), "x".into()], true));
    }
}
