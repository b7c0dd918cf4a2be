//! Go templates, as `--format` takes them: fields, variables, pipelines, `if`, `with`, `range`, and the functions that
//! compare, count, pick and print, with `json`.

mod parse;
mod printf;

use parse::{Node, Operand, Pipeline};

use crate::data::Data as Value;

/// A template that cannot be read, or used on this.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("template: {0}")]
pub struct TemplateError(String);

fn wrong<T>(message: impl Into<String>) -> Result<T, TemplateError> {
    Err(TemplateError(message.into()))
}

/// A template.
#[derive(Debug)]
pub struct Template(Vec<Node>);

impl Template {
    /// Reads a template; `json` alone is `{{json .}}`.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let parsed = parse::parse(if text == "json" { "{{json .}}" } else { text });
        // Formats are one line.
        parsed.map(Self).map_err(|TemplateError(message)| TemplateError(format!(":1: {message}")))
    }

    /// The text that the template makes of `value`.
    pub fn render(&self, value: &Value) -> Result<String, TemplateError> {
        let mut run = Run { variables: vec![(String::new(), value.clone())], out: String::new() };
        run.nodes(&self.0, value)?;
        Ok(run.out)
    }
}

/// How a list of nodes ended.
#[derive(PartialEq, Eq)]
enum Flow {
    Whole,
    Break,
    Continue,
}

struct Run {
    /// The last ones hide those of the same name before them; the one without a name is all that was given.
    variables: Vec<(String, Value)>,
    out: String,
}

impl Run {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, TemplateError> {
        for node in nodes {
            let mark = self.variables.len();
            let flow = match node {
                Node::Text(text) => {
                    self.out.push_str(text);
                    Flow::Whole
                }
                Node::Action(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        self.out.push_str(&value.text());
                    }
                    // What is declared here is seen by what follows.
                    continue;
                }
                Node::If(branches, otherwise) => self.branch(branches, otherwise, dot, false)?,
                Node::With(branches, otherwise) => self.branch(branches, otherwise, dot, true)?,
                Node::Range(pipeline, body, otherwise) => self.range(pipeline, body, otherwise, dot)?,
                Node::Break => Flow::Break,
                Node::Continue => Flow::Continue,
            };
            self.variables.truncate(mark);
            if flow != Flow::Whole {
                return Ok(flow);
            }
        }
        Ok(Flow::Whole)
    }

    fn branch(
        &mut self,
        branches: &[(Pipeline, Vec<Node>)],
        otherwise: &[Node],
        dot: &Value,
        moves: bool,
    ) -> Result<Flow, TemplateError> {
        for (condition, body) in branches {
            let value = self.pipeline(condition, dot)?;
            if is_true(&value) {
                return self.scoped(body, if moves { &value } else { dot });
            }
        }
        self.scoped(otherwise, dot)
    }

    /// Variables that are declared in there end with it.
    fn scoped(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, TemplateError> {
        let mark = self.variables.len();
        let flow = self.nodes(nodes, dot);
        self.variables.truncate(mark);
        flow
    }

    fn range(
        &mut self,
        pipeline: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<Flow, TemplateError> {
        let items: Vec<(Value, Value)> = match self.commands(pipeline, dot)? {
            Value::List(items) => {
                items.into_iter().zip(0..).map(|(item, index)| (Value::Number(index), item)).collect()
            }
            Value::Map(map) => map.into_iter().map(|(name, value)| (Value::Text(name), value)).collect(),
            Value::Number(count) => (0..count).map(|number| (Value::Number(number), Value::Number(number))).collect(),
            Value::Null => Vec::new(),
            other => return wrong(format!("range can't iterate over {}", other.text())),
        };
        if items.is_empty() {
            return self.scoped(otherwise, dot);
        }
        for (key, item) in items {
            let mark = self.variables.len();
            match pipeline.variables.as_slice() {
                [] => {}
                [name] => self.set(name, item.clone(), pipeline.declares)?,
                [first, second, ..] => {
                    self.set(first, key, pipeline.declares)?;
                    self.set(second, item.clone(), pipeline.declares)?;
                }
            }
            let flow = self.nodes(body, &item)?;
            self.variables.truncate(mark);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::Whole)
    }

    fn set(&mut self, name: &str, value: Value, declares: bool) -> Result<(), TemplateError> {
        if declares {
            self.variables.push((name.to_owned(), value));
            return Ok(());
        }
        match self.variables.iter_mut().rev().find(|(known, _)| known == name) {
            Some((_, place)) => *place = value,
            None => return wrong(format!("undefined variable \"${name}\"")),
        }
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let value = self.commands(pipeline, dot)?;
        for name in &pipeline.variables {
            self.set(name, value.clone(), pipeline.declares)?;
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        // Each passes its value on as the last argument of the next.
        let mut passed: Option<Value> = None;
        for command in &pipeline.commands {
            passed = Some(self.command(command, passed.take(), dot)?);
        }
        passed.map_or_else(|| wrong("missing value for command"), Ok)
    }

    fn command(&mut self, command: &[Operand], passed: Option<Value>, dot: &Value) -> Result<Value, TemplateError> {
        let Some((first, rest)) = command.split_first() else { return wrong("missing value for command") };
        let Operand::Function(name) = first else {
            if !rest.is_empty() || passed.is_some() {
                return wrong("can't give argument to non-function");
            }
            return self.operand(first, dot);
        };
        if name == "and" || name == "or" {
            // The first that decides is the value; what follows is not looked at.
            let mut last = Value::Null;
            for operand in rest {
                last = self.operand(operand, dot)?;
                if is_true(&last) == (name == "or") {
                    return Ok(last);
                }
            }
            return Ok(passed.unwrap_or(last));
        }
        let mut arguments = rest.iter().map(|operand| self.operand(operand, dot)).collect::<Result<Vec<_>, _>>()?;
        arguments.extend(passed);
        call(name, &arguments)
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, TemplateError> {
        let (value, path) = match operand {
            Operand::Dot(path) => (dot.clone(), path),
            Operand::Variable(name, path) => match self.variables.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => (value.clone(), path),
                None => return wrong(format!("undefined variable \"${name}\"")),
            },
            Operand::Literal(value) => return Ok(value.clone()),
            Operand::Function(name) => return call(name, &[]),
            Operand::Pipeline(pipeline, path) => (self.commands(pipeline, dot)?, path),
        };
        path.iter().try_fold(value, |value, name| field(&value, name))
    }
}

fn call(name: &str, arguments: &[Value]) -> Result<Value, TemplateError> {
    use Value::{Bool, List, Map, Name, Null, Number, Record, Text, Time};
    let count = |length: usize| Number(i64::try_from(length).unwrap_or(i64::MAX));
    let value = match (name, arguments) {
        ("json", [value]) => Text(value.json()),
        ("len", [List(items)]) => count(items.len()),
        ("len", [Map(map)]) => count(map.len()),
        ("len", [Text(text)]) => count(text.len()),
        ("len", [Null]) => Number(0),
        ("not", [value]) => Bool(!is_true(value)),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => Bool(rest.iter().any(|other| equal(first, other))),
        ("ne", [a, b]) => Bool(!equal(a, b)),
        ("lt" | "le" | "gt" | "ge", [a, b]) => {
            let order = match (a, b) {
                (Number(a) | Name(_, a), Number(b) | Name(_, b)) => a.cmp(b),
                (Text(a), Text(b)) => a.cmp(b),
                _ => return wrong("incompatible types for comparison"),
            };
            Bool(match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            })
        }
        ("index", [value, keys @ ..]) => keys.iter().try_fold(value.clone(), |value, key| match (value, key) {
            (List(items), Number(index)) => {
                let item = usize::try_from(*index).ok().and_then(|index| items.get(index));
                item.cloned().map_or_else(|| wrong(format!("index out of range: {index}")), Ok)
            }
            (Map(map), Text(key)) => Ok(map.into_iter().find(|(name, _)| name == key).map_or(Null, |(_, value)| value)),
            (value, _) => wrong(format!("can't index {}", value.text())),
        })?,
        ("slice", [value, bounds @ ..]) => slice(value, bounds)?,
        ("print", values) => Text(printf::print(values)),
        ("println", values) => Text(values.iter().map(Value::text).collect::<Vec<_>>().join(" ") + "\n"),
        ("printf", [Text(format), values @ ..]) => Text(printf::printf(format, values)),
        ("json" | "len" | "not" | "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "index" | "slice" | "printf", values) => {
            let given: Vec<&str> = values
                .iter()
                .map(|value| match value {
                    Null => "nil",
                    Bool(_) => "bool",
                    Number(_) | Name(..) => "number",
                    Text(_) => "string",
                    Time(_) => "time.Time",
                    List(_) => "list",
                    Map(_) => "map",
                    Record(_) => "struct",
                })
                .collect();
            return wrong(format!("error calling {name}: cannot be used on ({})", given.join(", ")));
        }
        _ => return wrong(format!("function \"{name}\" not defined")),
    };
    Ok(value)
}

fn slice(value: &Value, bounds: &[Value]) -> Result<Value, TemplateError> {
    let length = match value {
        Value::List(items) => items.len(),
        Value::Text(text) => text.len(),
        other => return wrong(format!("can't slice {}", other.text())),
    };
    let bound = |place: usize, default: usize| match bounds.get(place) {
        None => Ok(default),
        Some(Value::Number(number)) => match usize::try_from(*number) {
            Ok(number) if number <= length => Ok(number),
            _ => wrong(format!("index out of range: {number}")),
        },
        Some(other) => wrong(format!("cannot index slice/array with {}", other.text())),
    };
    let (from, to) = (bound(0, 0)?, bound(1, length)?);
    if from > to {
        return wrong(format!("invalid slice index: {from} > {to}"));
    }
    Ok(match value {
        Value::List(items) => Value::List(items[from..to].to_vec()),
        Value::Text(text) => Value::Text(String::from_utf8_lossy(&text.as_bytes()[from..to]).into_owned()),
        other => other.clone(),
    })
}

/// A name is equal to its number.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Name(_, a), Value::Name(_, b) | Value::Number(b)) | (Value::Number(a), Value::Name(_, b)) => a == b,
        (a, b) => a == b,
    }
}

/// A field by its name in Go or in JSON: they differ in the case of letters and in underscores only.
fn field(value: &Value, name: &str) -> Result<Value, TemplateError> {
    let (Value::Map(fields) | Value::Record(fields)) = value else {
        return wrong(match value {
            Value::Null => format!("nil pointer evaluating .{name}"),
            _ => format!("can't evaluate field {name}"),
        });
    };
    if let Some((_, value)) = fields.iter().find(|(key, _)| key == name) {
        return Ok(value.clone());
    }
    let plain = |name: &str| name.replace(['_', '.'], "").to_lowercase();
    match fields.iter().find(|(key, _)| plain(key) == plain(name)) {
        Some((_, value)) => Ok(value.clone()),
        None => wrong(format!("can't evaluate field {name}")),
    }
}

fn is_true(value: &Value) -> bool {
    matches!(value, Value::Record(_)) || !value.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(template: &str, value: &Value) -> String {
        Template::parse(template).unwrap().render(value).unwrap()
    }

    fn records() -> Value {
        let record = |id: &str, used: bool, size: i64| {
            Value::map([("id", id.into()), ("inUse", used.into()), ("size", size.into()), ("media_type", "m".into())])
        };
        Value::List(vec![record("a", true, 1), record("b", false, 20), record("c", false, 3)])
    }

    #[test]
    fn templates() {
        let record = |id: &str, used: bool| Value::map([("id", id.into()), ("inUse", used.into())]);
        let value = Value::List(vec![record("a", true), record("b", false)]);
        assert_eq!(made("json", &value), r#"[{"id":"a","inUse":true},{"id":"b","inUse":false}]"#);
        assert_eq!(made("{{range .}}{{.ID}}:{{.InUse}} {{end}}", &value), "a:true b:false ");
        assert_eq!(made("{{ len . }}{{if .}}yes{{else}}no{{end}}", &value), "2yes");
        assert_eq!(made("{{range .}}{{if eq .id \"b\"}}B{{else}}-{{end}}{{end}}", &value), "-B");
        assert_eq!(made("{{range .}}{{.MediaType}}{{end}}", &records()), "mmm");
    }

    #[test]
    fn control() {
        let value = records();
        assert_eq!(
            made("{{range $i, $r := .}}{{$i}}={{$r.ID}}{{if $r.InUse}}*{{end}},{{end}}", &value),
            "0=a*,1=b,2=c,"
        );
        assert_eq!(made("{{range .}}{{if .InUse}}{{continue}}{{end}}{{.ID}}{{break}}{{end}}", &value), "b");
        assert_eq!(made("{{with index . 1}}{{.ID}} of {{len $}}{{end}}", &value), "b of 3");
        let sizes = "{{range .}}{{if lt .Size 2}}S{{else if lt .Size 10}}M{{else}}L{{end}}{{end}}";
        assert_eq!(made(sizes, &value), "SLM");
        assert_eq!(made("{{$n := 0}}{{range .}}{{$n = .Size}}{{end}}{{$n}}", &value), "3");
        assert_eq!(made("{{range .Nothing}}x{{else}}none{{end}}", &Value::map([("nothing", Value::Null)])), "none");
        assert_eq!(made("a {{- /* b */ -}} c\n{{- 1 -}}\n d", &value), "ac1d");
        assert_eq!(made("{{range 3}}{{.}}{{end}}", &value), "012");
    }

    #[test]
    fn functions() {
        let value = records();
        assert_eq!(made("{{(index . 0).ID | printf \"%-4s|%5d|%q\" \"x\" 7}}", &value), "x   |    7|\"a\"");
        assert_eq!(made("{{and true (not false) | json}} {{or \"\" 0 \"z\"}}", &value), "true z");
        assert_eq!(made("{{slice \"abcdef\" 1 3}} {{eq 3 1 2 3}} {{ge \"b\" \"a\"}}", &value), "bc true true");
        assert_eq!(made("{{print 1 2 \"a\" \"b\"}}|{{println 1 \"x\"}}", &value), "1 2a b|1 x\n".replace("a b", "ab"));
        let state = Value::record([("type", Value::Name("COMPLETE".into(), 1)), ("none", Value::Null)]);
        assert_eq!(
            made("{{.Type}} {{eq .Type 1}} {{json .}} {{if .Type}}y{{end}}", &state),
            "COMPLETE true {\"type\":1} y"
        );
        assert_eq!(made(r#"{{"\t\"é\x41"}}{{`\n`}}"#, &value), "\t\"éA\\n");
    }

    #[test]
    fn mistakes() {
        for text in [
            "{{",
            "{{range .}}",
            "{{end}}",
            "{{if .}}{{else}}{{else}}{{end}}",
            "{{else}}",
            "{{\"x}}",
            "{{(.}}",
            "{{|}}",
            "{{}}",
            "{{break}}",
            "{{1x}}",
            "{{/* }}",
            "{{if}}{{end}}",
            "{{ % }}",
            "{{template \"x\"}}",
        ] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
        for text in [
            "{{.nope}}",
            "{{nope .}}",
            "{{$x}}",
            "{{$x = 1}}",
            "{{index . 1 2}}",
            "{{len 5}}",
            "{{. 1}}",
            "{{lt 1 \"a\"}}",
        ] {
            assert!(Template::parse(text).unwrap().render(&Value::map([])).is_err(), "{text}");
        }
        let deep = "{{if 1}}".repeat(200);
        assert!(Template::parse(&deep).is_err());
        assert!(Template::parse(&format!("{{{{{}", "(".repeat(100_000))).is_err());
        assert!(Template::parse(&format!("{{{{{}}}}}", "(".repeat(1000))).is_err());
    }
}
