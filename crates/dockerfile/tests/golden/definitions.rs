use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use castor_dockerfile::{Options, Target, platform};
use castor_llb::CapSet;
use castor_llb::{Definition, Graph, Limits};
use castor_proto::pb;
use prost::Message as _;
use serde::Deserialize;
use serde_json::Value;

use crate::corpus::{Resolver, read, report, run};

#[derive(Deserialize)]
pub struct Expected {
    /// `None`: the result is scratch.
    definition: Option<String>,
    config: Option<Value>,
    base: Option<Value>,
}

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
    epoch: Option<i64>,
}

/// Ids of progress groups are made up; they are replaced by numbers in the order of the vertices.
fn number_groups(definition: &mut pb::Definition) {
    let mut ids: Vec<String> = Vec::new();
    for metadata in definition.metadata.values_mut() {
        if let Some(group) = &mut metadata.progress_group {
            let number = ids.iter().position(|id| *id == group.id).unwrap_or_else(|| {
                ids.push(group.id.clone());
                ids.len() - 1
            });
            group.id = number.to_string();
        }
    }
}

/// A vertex that comes from no place has no entry in what castor sends: an encoder leaves the empty value of a map out, and
/// clients in Go find a null pointer there.
fn drop_empty_places(definition: &mut pb::Definition) {
    let Some(source) = &mut definition.source else { return };
    source.locations.retain(|_, places| !places.locations.is_empty());
    source.infos.iter_mut().filter_map(|info| info.definition.as_mut()).for_each(drop_empty_places);
}

fn compare(got: &Definition, want: &str) -> Option<String> {
    let mut want = pb::Definition::decode(STANDARD.decode(want).unwrap().as_slice()).unwrap();
    drop_empty_places(&mut want);
    let mut got = got.to_pb();
    for (index, (a, b)) in got.def.iter().zip(&want.def).enumerate() {
        if a != b {
            let show = |raw: &[u8]| format!("{:?}", pb::Op::decode(raw).unwrap());
            return Some(format!("op {index}\n     got {}\n    want {}", show(a), show(b)));
        }
    }
    if got.def.len() != want.def.len() {
        return Some(format!("{} ops, want {}", got.def.len(), want.def.len()));
    }
    number_groups(&mut got);
    number_groups(&mut want);
    for (digest, want) in &want.metadata {
        let got = got.metadata.get(digest);
        if got != Some(want) {
            return Some(format!("metadata of {digest}\n     got {got:?}\n    want {want:?}"));
        }
    }
    if got.metadata.len() != want.metadata.len() {
        return Some(format!("{} metadata, want {}", got.metadata.len(), want.metadata.len()));
    }
    let (got, want) = (got.source.unwrap_or_default(), want.source.unwrap_or_default());
    if got.locations != want.locations {
        return Some(format!("locations {:?}\n     want {:?}", got.locations, want.locations));
    }
    if got.infos != want.infos {
        return Some(format!("files {:?}\n want {:?}", got.infos, want.infos));
    }
    None
}

/// How a target differs from what BuildKit made.
pub fn compare_target(target: &Target, want: &Expected) -> Option<String> {
    match &want.definition {
        Some(want) => {
            if let Some(what) = compare(&target.definition, want) {
                return Some(what);
            }
            let decoded = Graph::decode_with(&target.definition.to_pb(), &Limits::default(), &CapSet::buildkit());
            if let Err(error) = decoded {
                return Some(format!("does not decode: {error}"));
            }
        }
        None if !target.definition.is_empty() => return Some("has ops, want scratch".into()),
        None => {}
    }
    let normal = |config: &Value| {
        let mut config = config.clone();
        // Go writes an empty list of layers as null; whoever exports the image replaces it.
        if config["rootfs"]["diff_ids"].is_null() {
            config["rootfs"]["diff_ids"] = Value::Array(Vec::new());
        }
        config
    };
    let config = serde_json::to_value(&target.config).unwrap();
    if let Some(want) = want.config.as_ref().map(normal).filter(|want| *want != config) {
        return Some(format!("config {config}\n  want {want}"));
    }
    let base = target.base_config.as_ref().map(|base| serde_json::to_value(base).unwrap());
    let want = want.base.as_ref().map(normal);
    (base != want).then(|| format!("base {base:?}\nwant {want:?}"))
}

fn differs(case: &Case) -> Option<String> {
    let options = Options::from_attrs(&case.attrs, &case.session, BTreeMap::new()).unwrap();
    let resolver = Resolver { ignore: case.ignore.clone() };
    if let Some(want) = &case.error {
        return match run(&case.dockerfile, &options, &resolver, None) {
            Ok(_) => Some(format!("no error, want {want}")),
            Err(error) => (!want.contains(error.message())).then(|| format!("error {error}\n     want {want}")),
        };
    }
    let platforms: Vec<_> = match options.platforms.as_slice() {
        [] => vec![None],
        list => list.iter().cloned().map(Some).collect(),
    };
    for target_platform in platforms {
        let key = match &target_platform {
            Some(platform) if options.multi_platform => platform::format_all(platform).replace('/', "-"),
            _ => String::new(),
        };
        let Some(want) = case.results.get(&key) else { return Some(format!("no expectation for {key:?}")) };
        let target = match run(&case.dockerfile, &options, &resolver, target_platform) {
            Ok(target) => target,
            Err(error) => return Some(format!("error {error}")),
        };
        if let Some(what) = compare_target(&target, want) {
            return Some(format!("{key} {what}"));
        }
        if case.epoch != target.epoch {
            return Some(format!("epoch {:?}, want {:?}", target.epoch, case.epoch));
        }
    }
    None
}

#[test]
fn definitions_and_configs_are_buildkits() {
    let cases: Vec<Case> = read("definitions.json");
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| differs(case).map(|what| format!("{}: {:?}\n  {what}", case.name, case.dockerfile)))
        .collect();
    report(cases.len(), &failures);
}
