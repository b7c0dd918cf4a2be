use std::collections::BTreeMap;

use castor_dockerfile::Options;
use castor_dockerfile::lint::Warning;
use serde::Deserialize;

use crate::corpus::{Resolver, read, report, run};

#[derive(Deserialize)]
struct Case {
    name: String,
    /// `None`: a line of 70000 characters.
    dockerfile: Option<String>,
    attrs: BTreeMap<String, String>,
    exit: i32,
    error: Option<String>,
    /// Name of the vertex that failed; the frontend's own errors have none.
    failed_step: Option<String>,
    source_excerpt: Option<String>,
    #[serde(default)]
    ignore: BTreeMap<String, String>,
    warnings: Vec<String>,
    steps: Vec<String>,
}

/// Errors that arise elsewhere: on the client, in the daemon before or after the frontend, in the context.
const ELSEWHERE: [&str; 20] = [
    "copy-missing",
    "frontend-unknown",
    "local-missing-dir",
    "missing-dockerfile-case",
    "missing-dockerfile-named",
    "mount-bind-missing-source",
    "network-host-not-allowed",
    "opt-bad-cache-export",
    "opt-bad-export",
    "opt-bad-export-attr",
    "opt-named-context-missing-local",
    "syntax-directive-missing",
    "add-404",
    "add-bad-url",
    "add-wrong-checksum",
    "copy-chown-name-scratch",
    "copy-dir-over-file",
    "copy-file-over-dir",
    "copy-ignored",
    "copy-json-bad",
];

/// The lines that an excerpt marks.
fn marked(excerpt: Option<&str>) -> Vec<i32> {
    let lines = excerpt.unwrap_or_default().lines();
    lines.filter_map(|line| line.split_once(" | >>>")).map(|(number, _)| number.trim().parse().unwrap()).collect()
}

fn compare_warnings(got: &[Warning], want: &[String]) -> Option<String> {
    let got: Vec<String> = got.iter().map(Warning::message).collect();
    (got != want).then(|| format!("warnings {got:?}\n     want {want:?}"))
}

fn differs(case: &Case) -> Option<String> {
    let long = || format!("FROM golden.test/base:1\nRUN echo {}; false\n", "x".repeat(70_000));
    let dockerfile = case.dockerfile.clone().unwrap_or_else(long);
    let options = match Options::from_attrs(&case.attrs, "s", BTreeMap::new()) {
        Ok(options) => options,
        Err(error) => {
            let want = case.error.clone().unwrap_or_default();
            return (error.to_string() != want).then(|| format!("error {error}\n     want {want}"));
        }
    };
    let resolver = Resolver { ignore: case.ignore.clone() };
    let result = run(&dockerfile, &options, &resolver, None);
    let metadata = |step: &str| step.starts_with("[internal] load metadata");
    let in_frontend = case.exit != 0
        && case.failed_step.as_deref().is_none_or(metadata)
        && !ELSEWHERE.contains(&case.name.as_str())
        // A build that got as far as its first step had a definition.
        && !case.steps.iter().any(|step| step.starts_with('[') && step.contains("/1] "));
    match result {
        Ok(_) if in_frontend => Some(format!("no error, want {:?}", case.error)),
        Ok(target) => compare_warnings(&target.warnings, &case.warnings),
        Err(error) if !in_frontend => Some(format!("error {error}, want it elsewhere: {:?}", case.error)),
        Err(error) => {
            let want = case.error.clone().unwrap_or_default();
            if error.message() != want {
                return Some(format!("error {}\n     want {want}", error.message()));
            }
            // The client prints the outermost place first, and the corpus kept that one. Line 0 cannot be shown.
            let ranges = error.locations().last().map(Vec::as_slice).unwrap_or_default();
            let got: Vec<i32> = ranges.iter().map(|range| range.start.line).filter(|&line| line > 0).collect();
            let want = marked(case.source_excerpt.as_deref());
            if got != want {
                return Some(format!("lines {got:?}\n want {want:?}"));
            }
            compare_warnings(error.warnings(), &case.warnings)
        }
    }
}

#[test]
fn errors_and_warnings_are_buildkits() {
    let cases: Vec<Case> = read("errors.json");
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| differs(case).map(|what| format!("{}: {:?}\n  {what}", case.name, case.dockerfile)))
        .collect();
    report(cases.len(), &failures);
}
