use std::collections::BTreeMap;

use castor_dockerfile::Options;
use serde::Deserialize;
use serde_json::Value;

use crate::corpus::{Resolver, read, report, run};

#[derive(Deserialize)]
struct Case {
    name: String,
    dockerfile: String,
    #[serde(default)]
    build_args: BTreeMap<String, String>,
    value: Option<String>,
    config: Option<Value>,
    error: Option<String>,
}

fn differs(case: &Case) -> Option<String> {
    let attrs = case.build_args.iter().map(|(k, v)| (format!("build-arg:{k}"), v.clone())).collect();
    let options = Options::from_attrs(&attrs, "s", BTreeMap::new()).unwrap();
    let result = run(&case.dockerfile, &options, &Resolver::default(), None);
    let got = match (&result, &case.error) {
        (Err(error), Some(want)) => {
            let got = format!("failed to solve: {error}");
            return (got != *want).then(|| format!("error {got:?}\n     want {want:?}"));
        }
        (Err(error), None) => return Some(format!("error {error}")),
        (Ok(_), Some(want)) => return Some(format!("no error, want {want:?}")),
        (Ok(target), None) => &target.config.config,
    };
    if let Some(want) = &case.value {
        let got = got.labels.get("v");
        if got != Some(want) {
            return Some(format!("value {got:?}\n     want {want:?}"));
        }
    }
    if let Some(want) = &case.config {
        let got = serde_json::to_value(got).unwrap();
        if got != *want {
            return Some(format!("config {got}\n     want {want}"));
        }
    }
    None
}

#[test]
fn variables_expand_as_in_buildkit() {
    let cases: Vec<Case> = read("expand.json");
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| differs(case).map(|what| format!("{}: {:?}\n  {what}", case.name, case.dockerfile)))
        .collect();
    report(cases.len(), &failures);
}
