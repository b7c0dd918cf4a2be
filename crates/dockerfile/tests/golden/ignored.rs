use std::collections::BTreeMap;

use castor_dockerfile::Options;
use castor_llb::{CapSet, Graph, Limits, Op};
use serde::Deserialize;

use crate::corpus::{Resolver, read, report, run};

#[derive(Deserialize)]
struct Case {
    name: String,
    dockerfile: String,
    ignore: String,
    /// Attributes of the build context, but for the session.
    attrs: Option<BTreeMap<String, String>>,
    error: Option<String>,
}

fn differs(case: &Case) -> Option<String> {
    let options = Options::from_attrs(&BTreeMap::new(), "s", BTreeMap::new()).unwrap();
    let resolver = Resolver { ignore: BTreeMap::from([("context".to_owned(), case.ignore.clone())]) };
    // Errors of the transfer and of the solver.
    let elsewhere = |error: &String| error.contains("lstat ") || error.contains("cache key");
    let target = match (run(&case.dockerfile, &options, &resolver, None), &case.error) {
        (Ok(_), Some(want)) if elsewhere(want) => return None,
        (Ok(target), _) => target,
        (Err(error), Some(want)) if *want == format!("failed to solve: {error}") => return None,
        (Err(error), want) => return Some(format!("error {error}, want {want:?}")),
    };
    let graph = Graph::decode_with(&target.definition.to_pb(), &Limits::default(), &CapSet::buildkit()).unwrap();
    let mut attrs = graph.vertices.iter().find_map(|vertex| match &vertex.op {
        Op::Source(source) if source.identifier == "local://context" => Some(source.attrs.clone()),
        _ => None,
    })?;
    attrs.remove("local.session");
    let want = case.attrs.as_ref()?;
    (attrs != *want).then(|| format!("attributes {attrs:?}\n       want {want:?}"))
}

#[test]
fn contexts_leave_out_what_is_ignored() {
    let cases: Vec<Case> = read("ignore.json");
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| differs(case).map(|what| format!("{}: {:?}\n  {what}", case.name, case.ignore)))
        .collect();
    report(cases.len(), &failures);
}
