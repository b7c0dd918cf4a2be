//! The definition of a result as numbered steps.

use std::collections::{BTreeMap, HashMap};

use castor_oci::Digest;
use castor_proto::{gojson, pb};
use prost::Message as _;
use serde::Serialize;
use serde_json::Value;

/// Attributes of sources that are between one client and one daemon.
const PASSING: [&str; 2] = ["local.session", "local.unique"];

/// The steps of a definition, inputs before what needs them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct BuildConfig {
    #[serde(rename = "llbDefinition", skip_serializing_if = "Vec::is_empty")]
    pub(crate) definition: Vec<Step>,
    #[serde(rename = "digestMapping", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) digests: BTreeMap<String, String>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Step {
    pub(crate) id: String,
    pub(crate) op: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) inputs: Vec<String>,
}

/// Source files, and which of their lines became which steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Source {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) locations: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) infos: Vec<Value>,
}

impl BuildConfig {
    /// The steps of `definition`. A definition that was loaded has them all; of another one, nothing is said.
    pub(crate) fn of(definition: &pb::Definition) -> Self {
        numbered(definition).unwrap_or_default()
    }

    fn name(&self, digest: &str) -> Option<&String> {
        self.digests.get(digest)
    }
}

impl Source {
    /// The source files of `definition`, whose steps are `config`.
    pub(crate) fn of(definition: &pb::Definition, config: &BuildConfig) -> Option<Self> {
        let source = definition.source.as_ref().filter(|source| !source.infos.is_empty())?;
        let locations = source
            .locations
            .iter()
            .filter_map(|(digest, all)| Some((config.name(digest)?.clone(), gojson::locations(all))))
            .collect();
        let infos = source.infos.iter().map(|info| {
            let mut value = gojson::source_info(&pb::SourceInfo { definition: None, ..info.clone() });
            let steps = info.definition.as_ref().map(BuildConfig::of).unwrap_or_default();
            if let (Value::Object(fields), Ok(Value::Object(steps))) = (&mut value, serde_json::to_value(&steps)) {
                fields.extend(steps);
            }
            value
        });
        Some(Self { locations, infos: infos.collect() })
    }
}

fn numbered(definition: &pb::Definition) -> Option<BuildConfig> {
    let mut ops: HashMap<String, pb::Op> = HashMap::new();
    let mut last = String::new();
    for bytes in &definition.def {
        last = Digest::of(bytes).to_string();
        ops.insert(last.clone(), pb::Op::decode(bytes.clone()).ok()?);
    }
    let order = ordered(&ops, &last)?;
    let digests: BTreeMap<String, String> =
        order.iter().enumerate().map(|(index, digest)| (digest.clone(), format!("step{index}"))).collect();
    let mut steps = Vec::with_capacity(order.len());
    for digest in &order {
        let op = ops.get_mut(digest)?;
        if let Some(pb::op::Op::Source(source)) = &mut op.op {
            source.attrs.retain(|key, _| !PASSING.contains(&key.as_str()));
        }
        let inputs = op
            .inputs
            .iter()
            .map(|input| Some(format!("{}:{}", digests.get(&input.digest)?, input.index)))
            .collect::<Option<_>>()?;
        steps.push(Step { id: digests.get(digest)?.clone(), op: gojson::op(op), inputs });
    }
    Some(BuildConfig { definition: steps, digests })
}

/// Depth first, inputs first. Without recursion: definitions are deep.
fn ordered(ops: &HashMap<String, pb::Op>, last: &str) -> Option<Vec<String>> {
    let mut order: Vec<String> = Vec::with_capacity(ops.len());
    let mut seen: std::collections::HashSet<&str> = [last].into();
    let mut stack: Vec<(&str, usize)> = vec![(last, 0)];
    while let Some((digest, next)) = stack.pop() {
        let op = ops.get(digest)?;
        match op.inputs.get(next) {
            Some(input) => {
                stack.push((digest, next + 1));
                if seen.insert(&input.digest) {
                    stack.push((&input.digest, 0));
                }
            }
            None => order.push(digest.to_owned()),
        }
    }
    Some(order)
}

/// Steps and sources, for those who ask for everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Everything {
    /// The steps.
    pub(crate) config: BuildConfig,
    /// The source files.
    pub(crate) source: Option<Source>,
}

impl Everything {
    /// Of a definition.
    pub(crate) fn of(definition: &pb::Definition) -> Self {
        let config = BuildConfig::of(definition);
        let source = Source::of(definition, &config);
        Self { config, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_llb::{MarshalOptions, State};

    #[test]
    fn steps_are_numbered_from_the_sources_on() {
        let base = State::scratch().env("A", "1");
        assert!(BuildConfig::of(&base.marshal(&MarshalOptions::default()).unwrap().to_pb()).definition.is_empty());
        let input = |digest: &Digest| pb::Input { digest: digest.to_string(), index: 0 };
        let source = pb::Op {
            op: Some(pb::op::Op::Source(pb::SourceOp {
                identifier: "local://context".into(),
                attrs: [("local.session", "s"), ("local.followpaths", "[]")]
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            })),
            ..pb::Op::default()
        };
        let bytes = |op: &pb::Op| bytes::Bytes::from(op.encode_to_vec());
        let first = bytes(&source);
        let end = bytes(&pb::Op { inputs: vec![input(&Digest::of(&first))], ..pb::Op::default() });
        let definition = pb::Definition { def: vec![first.clone(), end], ..pb::Definition::default() };
        let config = BuildConfig::of(&definition);
        let ids: Vec<_> = config.definition.iter().map(|step| (step.id.as_str(), step.inputs.len())).collect();
        assert_eq!(ids, [("step0", 0), ("step1", 1)]);
        assert_eq!(config.definition[1].inputs, ["step0:0"]);
        assert_eq!(config.digests[&Digest::of(&first).to_string()], "step0");
        let op = config.definition[0].op.to_string();
        assert!(op.contains("followpaths") && !op.contains("session"), "{op}");
    }

    #[test]
    fn a_definition_that_goes_in_circles_has_an_end() {
        let op = pb::Op { inputs: vec![pb::Input { digest: "x".into(), index: 0 }], ..pb::Op::default() };
        let ops = [("x".to_owned(), op)].into();
        assert_eq!(ordered(&ops, "x").unwrap(), ["x"]);
        assert!(ordered(&ops, "y").is_none());
    }
}
