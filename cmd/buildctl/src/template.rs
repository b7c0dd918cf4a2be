//! Go templates, as far as `--format` needs them: fields, `json`, `len`, `range`, `if`, comparisons by `eq` and `ne`.

use crate::data::Data as Value;

/// A template that cannot be read, or used on this.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("template: {0}")]
pub struct TemplateError(String);

#[derive(Debug)]
enum Part {
    Text(String),
    Show(Vec<String>),
    Range(Vec<String>, Vec<Part>, Vec<Part>),
    If(Vec<String>, Vec<Part>, Vec<Part>),
}

/// A template.
#[derive(Debug)]
pub struct Template(Vec<Part>);

/// What ended a list of parts.
enum Stop {
    Text,
    End,
    Else,
}

impl Template {
    /// Reads a template; `json` alone is `{{json .}}`.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let text = if text == "json" { "{{json .}}" } else { text };
        let mut rest = text;
        match parse(&mut rest)? {
            (parts, Stop::Text) => Ok(Self(parts)),
            _ => Err(TemplateError("unexpected {{end}} or {{else}}".to_owned())),
        }
    }

    /// The text that the template makes of `value`.
    pub fn render(&self, value: &Value) -> Result<String, TemplateError> {
        let mut out = String::new();
        render(&self.0, value, value, &mut out)?;
        Ok(out)
    }
}

fn parse(rest: &mut &str) -> Result<(Vec<Part>, Stop), TemplateError> {
    let mut parts = Vec::new();
    loop {
        let Some((text, after)) = rest.split_once("{{") else {
            parts.push(Part::Text(std::mem::take(rest).to_owned()));
            return Ok((parts, Stop::Text));
        };
        let (action, after) = after.split_once("}}").ok_or_else(|| TemplateError("unclosed action".to_owned()))?;
        // `{{-` and `-}}` take the white space away.
        let (text, action) = match action.strip_prefix("- ") {
            Some(action) => (text.trim_end(), action),
            None => (text, action),
        };
        let (action, after) = match action.strip_suffix(" -") {
            Some(action) => (action, after.trim_start()),
            None => (action, after),
        };
        parts.push(Part::Text(text.to_owned()));
        *rest = after;
        let mut words = words(action)?;
        match words.first().map(String::as_str) {
            None => return Err(TemplateError("missing value for command".to_owned())),
            Some("end") => return Ok((parts, Stop::End)),
            Some("else") => return Ok((parts, Stop::Else)),
            Some(keyword @ ("range" | "if")) => {
                let is_range = keyword == "range";
                words.remove(0);
                let (body, end) = parse(rest)?;
                let (otherwise, end) = if matches!(end, Stop::Else) { parse(rest)? } else { (Vec::new(), end) };
                if !matches!(end, Stop::End) {
                    return Err(TemplateError("unexpected EOF".to_owned()));
                }
                parts.push(if is_range {
                    Part::Range(words, body, otherwise)
                } else {
                    Part::If(words, body, otherwise)
                });
            }
            Some(_) => parts.push(Part::Show(words)),
        }
    }
}

/// The words of an action; quoted text keeps its quote as a mark.
fn words(action: &str) -> Result<Vec<String>, TemplateError> {
    let mut words = Vec::new();
    let mut rest = action.trim();
    while !rest.is_empty() {
        let end = match rest.as_bytes()[0] {
            quote @ (b'"' | b'`') => {
                let close = rest[1..].find(quote as char);
                close.ok_or_else(|| TemplateError("unterminated quoted string".to_owned()))? + 2
            }
            _ => rest.find(char::is_whitespace).unwrap_or(rest.len()),
        };
        let word = &rest[..end];
        words.push(if word.starts_with(['"', '`']) { format!("\"{}", &word[1..end - 1]) } else { word.to_owned() });
        rest = rest[end..].trim_start();
    }
    Ok(words)
}

fn render(parts: &[Part], dot: &Value, root: &Value, out: &mut String) -> Result<(), TemplateError> {
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Show(words) => out.push_str(&shown(&evaluate(words, dot, root)?)),
            Part::If(words, body, otherwise) => {
                let chosen = if is_true(&evaluate(words, dot, root)?) { body } else { otherwise };
                render(chosen, dot, root, out)?;
            }
            Part::Range(words, body, otherwise) => {
                let items: Vec<Value> = match evaluate(words, dot, root)? {
                    Value::List(items) => items,
                    Value::Map(map) => map.into_iter().map(|(_, value)| value).collect(),
                    Value::Null => Vec::new(),
                    other => return Err(TemplateError(format!("range can't iterate over {}", other.json()))),
                };
                if items.is_empty() {
                    render(otherwise, dot, root, out)?;
                }
                for item in &items {
                    render(body, item, root, out)?;
                }
            }
        }
    }
    Ok(())
}

fn evaluate(words: &[String], dot: &Value, root: &Value) -> Result<Value, TemplateError> {
    // A pipeline passes its value on as the last argument.
    let mut value: Option<Value> = None;
    for command in words.split(|word| word == "|") {
        let (name, arguments) = command.split_first().ok_or_else(|| TemplateError("missing value".to_owned()))?;
        let mut arguments = arguments.iter().map(|word| term(word, dot, root)).collect::<Result<Vec<_>, _>>()?;
        arguments.extend(value.take());
        value = Some(match (name.as_str(), arguments.as_slice()) {
            ("json", [value]) => Value::Text(value.json()),
            ("len", [Value::List(items)]) => Value::Number(items.len() as i64),
            ("len", [Value::Map(map)]) => Value::Number(map.len() as i64),
            ("len", [Value::Text(text)]) => Value::Number(text.len() as i64),
            ("len", [Value::Null]) => Value::Number(0),
            ("not", [value]) => Value::Bool(!is_true(value)),
            ("eq", [a, b]) => Value::Bool(a == b),
            ("ne", [a, b]) => Value::Bool(a != b),
            ("index", [Value::List(items), Value::Number(index)]) => {
                let item = usize::try_from(*index).ok().and_then(|index| items.get(index));
                item.cloned().ok_or_else(|| TemplateError(format!("index out of range: {index}")))?
            }
            ("index", [Value::Map(map), Value::Text(key)]) => {
                map.iter().find(|(name, _)| name == key).map_or(Value::Null, |(_, value)| value.clone())
            }
            (_, []) => term(name, dot, root)?,
            _ => return Err(TemplateError(format!("function \"{name}\" not defined"))),
        });
    }
    value.ok_or_else(|| TemplateError("missing value".to_owned()))
}

fn term(word: &str, dot: &Value, root: &Value) -> Result<Value, TemplateError> {
    if let Some(text) = word.strip_prefix('"') {
        return Ok(Value::Text(text.to_owned()));
    }
    if let Ok(number) = word.parse::<i64>() {
        return Ok(Value::Number(number));
    }
    if let "true" | "false" = word {
        return Ok(Value::Bool(word == "true"));
    }
    let (mut value, path) = match word.strip_prefix('$') {
        Some(path) => (root, path),
        None => (dot, word),
    };
    let path = path.strip_prefix('.').ok_or_else(|| TemplateError(format!("function \"{word}\" not defined")))?;
    for name in path.split('.').filter(|name| !name.is_empty()) {
        value = field(value, name).ok_or_else(|| TemplateError(format!("can't evaluate field {name}")))?;
    }
    Ok(value.clone())
}

/// A field by its name in Go or in JSON: they differ in the case of letters only.
fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let Value::Map(map) = value else { return None };
    let exact = map.iter().find(|(key, _)| key == name);
    exact.or_else(|| map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))).map(|(_, value)| value)
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => *number != 0,
        Value::Text(text) => !text.is_empty(),
        Value::List(items) => !items.is_empty(),
        Value::Map(map) => !map.is_empty(),
    }
}

/// A value as Go prints it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Text(text) => text.clone(),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(shown).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Map(map) => {
            let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", shown(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.json(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn made(template: &str, value: &Value) -> String {
        Template::parse(template).unwrap().render(value).unwrap()
    }

    #[test]
    fn templates() {
        let record = |id: &str, used: bool| Value::map([("id", id.into()), ("inUse", used.into())]);
        let value = Value::List(vec![record("a", true), record("b", false)]);
        assert_eq!(made("json", &value), r#"[{"id":"a","inUse":true},{"id":"b","inUse":false}]"#);
        assert_eq!(made("{{range .}}{{.ID}}:{{.InUse}} {{end}}", &value), "a:true b:false ");
        assert_eq!(made("{{ len . }}{{if .}}yes{{else}}no{{end}}", &value), "2yes");
        assert_eq!(made("{{range .}}{{if eq .id \"b\"}}B{{else}}-{{end}}{{end}}", &value), "-B");
    }

    #[test]
    fn mistakes() {
        assert!(Template::parse("{{").is_err());
        assert!(Template::parse("{{range .}}").is_err());
        assert!(Template::parse("{{end}}").is_err());
        assert!(Template::parse("{{.nope}}").unwrap().render(&Value::map([])).is_err());
        assert!(Template::parse("{{nope .}}").unwrap().render(&Value::map([])).is_err());
    }
}
