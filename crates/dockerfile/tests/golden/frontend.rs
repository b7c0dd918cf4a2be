use std::collections::BTreeMap;
use std::fmt::Write as _;

use castor_dockerfile::lint::Warning;
use castor_dockerfile::parser::directive::detect_syntax;
use castor_dockerfile::{Options, Target, frontend_caps, platform};
use castor_llb::{CapSet, Graph, Limits};
use castor_oci::Digest;
use castor_proto::pb;
use serde::Deserialize;

use crate::corpus::{Resolver, read, report, run};

/// What came out, by fingerprint; see [`fingerprint`].
#[derive(Deserialize)]
struct Expected {
    #[serde(default)]
    definition: String,
    #[serde(default)]
    config: String,
    #[serde(default)]
    base: String,
}

/// One call of the whole frontend: options, syntax detection, all platforms.
#[derive(Deserialize)]
struct Case {
    name: String,
    dockerfile: String,
    attrs: BTreeMap<String, String>,
    session: String,
    #[serde(default)]
    ignore: BTreeMap<String, String>,
    #[serde(default)]
    results: BTreeMap<String, Expected>,
    error: Option<String>,
    /// Lines that each place of the error covers.
    #[serde(default)]
    lines: Vec<Vec<i32>>,
    warnings: Vec<String>,
}

struct Failure {
    message: String,
    lines: Vec<Vec<i32>>,
    warnings: Vec<String>,
}

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { message: error.to_string(), lines: Vec::new(), warnings: Vec::new() }
    }
}

/// Whole answers would be many megabytes; these are the first digits of their digests.
fn fingerprint(text: &str) -> String {
    Digest::of(text).hex()[..24].to_owned()
}

/// A definition as lines: ops by digest, metadata, files, places. Ids of groups, made up, become numbers.
fn canonical(definition: &pb::Definition) -> String {
    let mut out = String::new();
    for op in &definition.def {
        writeln!(out, "op {}", Digest::of(op)).unwrap();
    }
    let mut ids: Vec<&str> = Vec::new();
    for (digest, metadata) in &definition.metadata {
        writeln!(out, "metadata {digest} {}", metadata.ignore_cache).unwrap();
        for (key, value) in &metadata.description {
            writeln!(out, "description {key}={value}").unwrap();
        }
        for cap in metadata.caps.keys() {
            writeln!(out, "cap {cap}").unwrap();
        }
        if let Some(group) = &metadata.progress_group {
            let number = ids.iter().position(|id| *id == group.id).unwrap_or_else(|| {
                ids.push(&group.id);
                ids.len() - 1
            });
            writeln!(out, "group {number} {} {}", group.name, group.weak).unwrap();
        }
        if let Some(limits) = &metadata.linux_resources {
            let pb::LinuxResources { memory, memory_swap, cpu_shares, cpu_period, cpu_quota, cpuset_cpus, cpuset_mems } =
                limits;
            writeln!(
                out,
                "resources {memory} {memory_swap} {cpu_shares} {cpu_period} {cpu_quota} {cpuset_cpus} {cpuset_mems}"
            )
            .unwrap();
        }
    }
    let source = definition.source.clone().unwrap_or_default();
    for file in &source.infos {
        writeln!(out, "file {} {} {}", file.filename, file.language, Digest::of(&file.data)).unwrap();
        out.extend(file.definition.as_ref().map(canonical));
    }
    for (digest, list) in &source.locations {
        for location in &list.locations {
            write!(out, "location {digest} {}", location.source_index).unwrap();
            for range in &location.ranges {
                let (start, end) = (range.start.unwrap(), range.end.unwrap());
                write!(out, " {}.{}-{}.{}", start.line, start.character, end.line, end.character).unwrap();
            }
            out.push('\n');
        }
    }
    out
}

fn compare(target: &Target, want: &Expected) -> Option<String> {
    let of_config = |config: &castor_oci::ImageConfig| serde_json::to_value(config).unwrap().to_string();
    let definition = if target.definition.is_empty() { String::new() } else { canonical(&target.definition.to_pb()) };
    let config = of_config(&target.config);
    let base = target.base_config.as_ref().map(of_config).unwrap_or_default();
    for (what, got, want) in
        [("definition", definition, &want.definition), ("config", config, &want.config), ("base", base, &want.base)]
    {
        let print = if got.is_empty() { String::new() } else { fingerprint(&got) };
        if print != *want {
            return Some(format!("another {what}:\n{got}"));
        }
    }
    let decoded = Graph::decode_with(&target.definition.to_pb(), &Limits::default(), &CapSet::buildkit());
    match decoded {
        Err(error) if !target.definition.is_empty() => Some(format!("does not decode: {error}")),
        _ => None,
    }
}

type Targets = BTreeMap<String, Target>;

fn frontend(case: &Case) -> Result<(Targets, Vec<String>), Failure> {
    let options = Options::from_attrs(&case.attrs, &case.session, BTreeMap::new())?;
    frontend_caps(case.attrs.get("frontend.caps").map_or("", String::as_str))?;
    if let Some(syntax) = detect_syntax(case.dockerfile.as_bytes()) {
        let lines = vec![syntax.location.iter().map(|range| range.start.line).collect()];
        return Err(Failure { message: format!("forwarded to {}", syntax.first_word), lines, warnings: Vec::new() });
    }
    let resolver = Resolver { ignore: case.ignore.clone() };
    let platforms: Vec<_> = match options.platforms.as_slice() {
        [] => vec![None],
        list => list.iter().cloned().map(Some).collect(),
    };
    let mut targets = Targets::new();
    let mut warnings: Option<Vec<String>> = None;
    for target_platform in platforms {
        let key = match (&target_platform, options.multi_platform) {
            (_, false) => String::new(),
            (Some(platform), true) => platform::format_all(platform).replace('/', "-"),
            (None, true) => "linux-amd64".to_owned(),
        };
        let messages = |list: &[Warning]| list.iter().map(Warning::message).collect::<Vec<_>>();
        let target = run(&case.dockerfile, &options, &resolver, target_platform).map_err(|error| Failure {
            message: error.message().to_owned(),
            warnings: warnings.clone().unwrap_or_else(|| messages(error.warnings())),
            lines: error
                .locations()
                .iter()
                .map(|ranges| ranges.iter().map(|range| range.start.line).collect())
                .collect(),
        })?;
        warnings.get_or_insert(messages(&target.warnings));
        targets.insert(key, target);
    }
    Ok((targets, warnings.unwrap_or_default()))
}

fn differs(case: &Case) -> Option<String> {
    let (targets, warnings) = match (frontend(case), &case.error) {
        (Err(failure), Some(want)) if failure.message == *want => {
            if failure.lines != case.lines {
                return Some(format!("lines {:?}\n want {:?} ({want})", failure.lines, case.lines));
            }
            return compare_warnings(failure.warnings, &case.warnings);
        }
        (Err(failure), want) => return Some(format!("error {}\n want {want:?}", failure.message)),
        (Ok(_), Some(want)) => return Some(format!("no error, want {want}")),
        (Ok(result), None) => result,
    };
    for (key, want) in &case.results {
        let Some(target) = targets.get(key) else { return Some(format!("no result for {key:?}")) };
        if let Some(what) = compare(target, want) {
            return Some(format!("{key} {what}"));
        }
    }
    compare_warnings(warnings, &case.warnings)
}

/// The order of warnings about one line is not fixed.
fn compare_warnings(mut got: Vec<String>, want: &[String]) -> Option<String> {
    let mut want = want.to_vec();
    got.sort();
    want.sort();
    (got != want).then(|| format!("warnings {got:?}\n    want {want:?}"))
}

#[test]
fn the_frontend_answers_as_buildkits() {
    let cases: Vec<Case> = read("frontend.json");
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let (name, text, attrs) = (&case.name, &case.dockerfile, &case.attrs);
            differs(case).map(|what| format!("{name}: {text:?} {attrs:?}\n  {what}"))
        })
        .collect();
    report(cases.len(), &failures);
}
