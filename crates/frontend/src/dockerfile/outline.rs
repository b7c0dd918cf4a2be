//! What clients may ask about targets: `frontend.outline`, what one can be given, and `frontend.targets`, which there are.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use castor_dockerfile::{ListedTarget, Outline, OutlineMount};
use castor_llb::Range;
use castor_ops::{BridgeError, SolveResult};
use castor_proto::{gojson, pb};
use serde::Serialize;
use serde_json::Value;

use super::lint::{VERSION, answer};
use super::metadata::pretty;

/// Asks what a target can be given.
pub(super) const OUTLINE: &str = "frontend.outline";
/// Asks which targets there are.
pub(super) const TARGETS: &str = "frontend.targets";

#[derive(Serialize)]
struct OutlineJson {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<ArgJson>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<MountJson>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<MountJson>,
    sources: Vec<String>,
}

#[derive(Serialize)]
struct ArgJson {
    name: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Value>,
}

#[derive(Serialize)]
struct MountJson {
    name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Value>,
}

#[derive(Serialize)]
struct ListJson {
    targets: Option<Vec<TargetJson>>,
    sources: Vec<String>,
}

#[derive(Serialize)]
struct TargetJson {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    base: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    platform: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Value>,
}

fn location(ranges: &[Range]) -> Option<Value> {
    let wire = pb::Location { source_index: 0, ranges: ranges.iter().map(|range| range.to_pb()).collect() };
    (!ranges.is_empty()).then(|| gojson::location(&wire))
}

fn mounts(mounts: Vec<OutlineMount>) -> Vec<MountJson> {
    let mount = |mount: OutlineMount| MountJson {
        name: mount.name,
        required: mount.required,
        location: location(&mount.location),
    };
    mounts.into_iter().map(mount).collect()
}

/// Columns as Go's `tabwriter` sets them: each as wide as its widest cell, `gap` spaces behind it; the last as it is.
fn table(rows: &[Vec<String>], gap: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default() + gap).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            if column + 1 == row.len() {
                text.push_str(cell);
            } else {
                text.push_str(&format!("{cell:width$}", width = widths[column]));
            }
        }
        text.push('\n');
    }
    text
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).into()
}

fn outline_text(outline: &Outline) -> String {
    let mut text = String::new();
    if !(outline.name.is_empty() && outline.description.is_empty()) {
        let name = if outline.name.is_empty() { "(default)" } else { &outline.name };
        let mut rows = vec![row(["TARGET:", name])];
        if !outline.description.is_empty() {
            rows.push(row(["DESCRIPTION:", &outline.description]));
        }
        text.push_str(&table(&rows, 1));
        text.push('\n');
    }
    if !outline.args.is_empty() {
        let mut rows = vec![row(["BUILD ARG", "VALUE", "DESCRIPTION"])];
        rows.extend(outline.args.iter().map(|arg| row([&arg.name, &arg.value, &arg.description])));
        text.push_str(&table(&rows, 3));
        text.push('\n');
    }
    for (title, mounts) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if !mounts.is_empty() {
            let mut rows = vec![row([title, "REQUIRED"])];
            rows.extend(mounts.iter().map(|mount| row([&mount.name, if mount.required { "true" } else { "" }])));
            text.push_str(&table(&rows, 3));
            text.push('\n');
        }
    }
    text
}

/// The answer to [`OUTLINE`].
pub(super) fn outline(outline: Outline, dockerfile: &[u8]) -> Result<SolveResult, BridgeError> {
    let text = outline_text(&outline);
    let args = outline.args.into_iter().map(|arg| ArgJson {
        name: arg.name,
        description: arg.description,
        value: arg.value,
        location: location(&arg.location),
    });
    let json = OutlineJson {
        name: outline.name,
        description: outline.description,
        args: args.collect(),
        secrets: mounts(outline.secrets),
        ssh: mounts(outline.ssh),
        sources: vec![STANDARD.encode(dockerfile)],
    };
    answer([("result.json", pretty(&json)?), ("result.txt", text.into()), ("version", VERSION.into())])
}

/// The answer to [`TARGETS`].
pub(super) fn targets(targets: Vec<ListedTarget>, dockerfile: &[u8]) -> Result<SolveResult, BridgeError> {
    let mut rows = vec![row(["TARGET", "DESCRIPTION"])];
    rows.extend(targets.iter().map(|target| {
        let name = match (target.name.as_str(), target.default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        vec![name, target.description.clone()]
    }));
    let listed: Vec<TargetJson> = targets
        .into_iter()
        .map(|target| TargetJson {
            name: target.name,
            default: target.default,
            description: target.description,
            base: target.base,
            platform: target.platform,
            location: location(&target.location),
        })
        .collect();
    let json = ListJson { targets: (!listed.is_empty()).then_some(listed), sources: vec![STANDARD.encode(dockerfile)] };
    answer([("result.json", pretty(&json)?), ("result.txt", table(&rows, 1).into()), ("version", VERSION.into())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_dockerfile::OutlineArg;

    #[test]
    fn outlines_are_json_and_tables() {
        let arg = OutlineArg {
            name: "A".into(),
            description: "says how".into(),
            value: "1".into(),
            location: vec![Range::lines(2, 2)],
        };
        let secret = OutlineMount { name: "s".into(), required: true, location: vec![Range::lines(4, 4)] };
        let given = Outline {
            name: "one".into(),
            description: "makes a".into(),
            args: vec![arg],
            secrets: vec![secret],
            ssh: Vec::new(),
        };
        let result = outline(given, b"FROM x").unwrap();
        let json: Value = serde_json::from_slice(&result.metadata["result.json"]).unwrap();
        assert_eq!(json["args"][0]["location"]["ranges"][0]["start"]["line"], 2);
        assert_eq!((&json["secrets"][0]["required"], &json["sources"][0]), (&true.into(), &"RlJPTSB4".into()));
        assert!(json.get("ssh").is_none());
        let text = String::from_utf8(result.metadata["result.txt"].to_vec()).unwrap();
        let want = "TARGET:      one\nDESCRIPTION: makes a\n\nBUILD ARG   VALUE   DESCRIPTION\nA           1       says how\n\n\
                    SECRET   REQUIRED\ns        true\n\n";
        assert_eq!(text, want);
    }

    #[test]
    fn targets_are_json_and_a_table() {
        let target = |name: &str, default| ListedTarget { name: name.into(), default, ..ListedTarget::default() };
        let result = targets(vec![target("one", false), target("", true)], b"").unwrap();
        let text = String::from_utf8(result.metadata["result.txt"].to_vec()).unwrap();
        assert_eq!(text, "TARGET    DESCRIPTION\none       \n(default) \n");
        let json: Value = serde_json::from_slice(&result.metadata["result.json"]).unwrap();
        assert_eq!((&json["targets"][0]["name"], &json["targets"][1]["default"]), (&"one".into(), &true.into()));
    }
}
