//! What clients may ask of a Dockerfile instead of a build: `frontend.lint`, its warnings, and
//! `frontend.subrequests.describe`, what else there is.

use std::collections::BTreeMap;

use bytes::Bytes;
use castor_dockerfile::DockerfileError;
use castor_dockerfile::lint::Warning;
use castor_llb::Range;
use castor_ops::{BridgeError, SolveResult};
use castor_proto::{gojson, pb};
use serde::Serialize;
use serde_json::{Value, json};

use super::metadata::pretty;
use super::outline::{OUTLINE, TARGETS};

/// Asks for warnings.
pub(super) const LINT: &str = "frontend.lint";
/// Asks for the requests that there are.
pub(super) const DESCRIBE: &str = "frontend.subrequests.describe";
/// Version of all.
pub(super) const VERSION: &str = "1.0.0";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    rule_name: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    url: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
    location: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Results {
    /// Go's nil where there are none.
    warnings: Option<Vec<Found>>,
    sources: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build_error: Option<Value>,
}

/// The answer to [`LINT`].
pub(super) fn lint(
    source: &pb::SourceInfo,
    mut warnings: Vec<Warning>,
    error: Option<&DockerfileError>,
) -> Result<SolveResult, BridgeError> {
    let location = |ranges: &[Range]| {
        let ranges = ranges.iter().map(|range| range.to_pb()).collect();
        gojson::location(&pb::Location { source_index: 0, ranges })
    };
    let found: Vec<Found> = warnings
        .iter()
        .map(|warning| Found {
            rule_name: warning.rule.name(),
            description: warning.rule.description(),
            url: warning.rule.url(),
            detail: warning.text.clone(),
            location: location(&warning.location),
        })
        .collect();
    let build_error = error.map(|error| {
        let ranges: Vec<Range> = error.locations().iter().flatten().cloned().collect();
        json!({"message": error.message(), "location": location(&ranges)})
    });
    let failed = !found.is_empty() || build_error.is_some();
    let results = Results {
        warnings: (!found.is_empty()).then_some(found),
        sources: vec![gojson::source_info(source)],
        build_error,
    };
    warnings.sort_by_key(|warning| warning.location.first().map(|range| range.start.line));
    let text: String = warnings.iter().map(|warning| describe_warning(warning, source)).collect();
    let status = if failed { "1" } else { "0" };
    answer([
        ("result.json", pretty(&results)?),
        ("result.txt", text.into()),
        ("result.statuscode", status.into()),
        ("version", VERSION.into()),
    ])
}

pub(super) fn answer<const N: usize>(metadata: [(&str, Bytes); N]) -> Result<SolveResult, BridgeError> {
    let metadata: BTreeMap<String, Bytes> =
        metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(SolveResult { metadata, ..SolveResult::default() })
}

/// A warning as people read it, with the lines that it is about.
fn describe_warning(warning: &Warning, source: &pb::SourceInfo) -> String {
    let (name, url) = (warning.rule.name(), warning.rule.url());
    let link = if url.is_empty() { String::new() } else { format!(" - {url}") };
    format!("\nWARNING: {name}{link}\n{}\n{}", warning.text, excerpt(source, &warning.location))
}

/// The lines of `ranges`, marked, with some around them.
fn excerpt(source: &pb::SourceInfo, ranges: &[Range]) -> String {
    let text = String::from_utf8_lossy(&source.data);
    let lines: Vec<&str> = text.split('\n').collect();
    let number = |line: i32| usize::try_from(line).unwrap_or_default();
    let last = |range: &Range| number(range.end.line.max(range.start.line));
    let first = ranges.iter().map(|range| number(range.start.line)).min().unwrap_or_default();
    if first == 0 || first > lines.len() {
        return String::new();
    }
    let end = ranges.iter().map(last).max().unwrap_or(first).min(lines.len());
    let mut wanted = if end == first { 4 } else { 2 };
    let (mut from, mut to) = (first, end);
    while wanted > 0 {
        // A line above and one below in turn, as long as there are some; each turn counts once more.
        if from > 1 {
            from -= 1;
            wanted -= 1;
        }
        if to != lines.len() {
            to += 1;
            wanted -= i32::from(wanted > 0);
        }
        wanted -= i32::from(wanted > 0);
    }
    let mut out = format!("{}:{first}\n--------------------\n", source.filename);
    for line in from..=to {
        let marked = ranges.iter().any(|range| number(range.start.line) <= line && line <= last(range));
        out.push_str(&format!(" {line:3} | {} {}\n", if marked { ">>>" } else { "   " }, lines[line - 1]));
    }
    out.push_str("--------------------\n");
    out
}

/// The answer to [`DESCRIBE`].
pub(super) fn describe() -> Result<SolveResult, BridgeError> {
    let target = json!([{"name": "target", "description": "Target build stage"}]);
    let about_targets = "List all parameters current build target supports";
    let described = [
        (OUTLINE, about_targets, &["result.json", "result.txt"][..], target),
        (TARGETS, "List all targets current build supports", &["result.json", "result.txt"], json!([])),
        (LINT, "Lint a Dockerfile", &["result.json", "result.txt", "result.statuscode"], Value::Null),
        (DESCRIBE, "List available subrequest types", &["result.json", "result.txt"], Value::Null),
    ];
    let short = |name: &str| name.trim_start_matches("frontend.").to_owned();
    let width = described.iter().map(|(name, ..)| short(name).len()).max().unwrap_or_default();
    let mut text = format!("{:width$} {:7} DESCRIPTION\n", "NAME", "VERSION");
    let mut list = Vec::new();
    for (name, description, metadata, options) in described {
        text.push_str(&format!("{:width$} {VERSION:7} {description}\n", short(name)));
        let metadata: Vec<Value> = metadata.iter().map(|name| json!({"name": name, "description": ""})).collect();
        list.push(json!({
            "name": name, "version": VERSION, "type": "rpc", "description": description,
            "opts": options, "inputs": null, "metadata": metadata, "refs": null,
        }));
    }
    answer([("result.json", pretty(&list)?), ("result.txt", text.into()), ("version", VERSION.into())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_dockerfile::lint::Rule;

    fn source() -> pb::SourceInfo {
        let data = Bytes::from_static(b"from scratch\nCOPY a /\nCOPY b /\nCOPY c /\nCOPY d /\n");
        pb::SourceInfo { filename: "Dockerfile".into(), data, ..pb::SourceInfo::default() }
    }

    #[test]
    fn warnings_are_answered_as_json_and_as_text() {
        let warning = Warning {
            rule: Rule::ConsistentInstructionCasing,
            text: "Command 'from' should match".into(),
            location: vec![Range::lines(1, 1)],
        };
        let result = lint(&source(), vec![warning], None).unwrap();
        let json: Value = serde_json::from_slice(&result.metadata["result.json"]).unwrap();
        assert_eq!(json["warnings"][0]["ruleName"], "ConsistentInstructionCasing");
        assert_eq!(json["warnings"][0]["location"]["ranges"][0]["start"]["line"], 1);
        assert_eq!(json["sources"][0]["filename"], "Dockerfile");
        assert_eq!(&result.metadata["result.statuscode"][..], b"1");
        let text = String::from_utf8(result.metadata["result.txt"].to_vec()).unwrap();
        assert!(text.starts_with("\nWARNING: ConsistentInstructionCasing - https://"), "{text}");
        assert!(
            text.contains("Dockerfile:1\n--------------------\n   1 | >>> from scratch\n   2 |     COPY a /\n"),
            "{text}"
        );
    }

    #[test]
    fn nothing_found_is_a_success() {
        let result = lint(&source(), Vec::new(), None).unwrap();
        let json: Value = serde_json::from_slice(&result.metadata["result.json"]).unwrap();
        assert_eq!(json["warnings"], Value::Null);
        assert_eq!(&result.metadata["result.statuscode"][..], b"0");
    }

    #[test]
    fn the_requests_are_described() {
        let result = describe().unwrap();
        let text = String::from_utf8(result.metadata["result.txt"].to_vec()).unwrap();
        assert!(
            text.contains("lint                 1.0.0   Lint a Dockerfile\n") && text.contains("outline "),
            "{text}"
        );
    }
}
