//! Definitions as files: read for a build, or shown to people.

use std::fmt::Write as _;

use castor_oci::Digest;
use castor_proto::{pb, protojson, sourcepolicy};
use prost::Message as _;
use serde_json::{Value, json};

use crate::connection::ClientError;

pub use castor_proto::pb::Definition;
pub use castor_proto::sourcepolicy::Policy;

fn invalid(what: &str, err: &dyn std::fmt::Display) -> ClientError {
    ClientError::Invalid(format!("{what}: {err}"))
}

/// Reads a definition.
pub fn read(bytes: &[u8]) -> Result<Definition, ClientError> {
    Definition::decode(bytes).map_err(|err| invalid("failed to parse input", &err))
}

/// Makes every step run, whatever is in the cache.
pub fn ignore_cache(definition: &mut Definition) -> Result<(), ClientError> {
    for bytes in &definition.def {
        pb::Op::decode(bytes.clone()).map_err(|err| invalid("failed to parse llb proto op", &err))?;
        definition.metadata.entry(Digest::of(bytes).to_string()).or_default().ignore_cache = true;
    }
    Ok(())
}

/// Reads rules for sources from their JSON.
pub fn policy(text: &[u8]) -> Result<Policy, ClientError> {
    let value: Value = serde_json::from_slice(text).map_err(|err| invalid("source policy", &err))?;
    let rules = value["rules"].as_array().map_or(&[][..], Vec::as_slice);
    Ok(Policy {
        version: value["version"].as_i64().unwrap_or_default(),
        rules: rules.iter().map(rule).collect::<Result<_, _>>()?,
    })
}

fn rule(value: &Value) -> Result<sourcepolicy::Rule, ClientError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let constraint = |value: &Value| {
        Ok(sourcepolicy::AttrConstraint {
            key: text(&value["key"]),
            value: text(&value["value"]),
            condition: number(&value["condition"], |name| {
                sourcepolicy::AttrMatch::from_str_name(name).map(Into::into)
            })?,
        })
    };
    let selector = |value: &Value| {
        let constraints = value["constraints"].as_array().map_or(&[][..], Vec::as_slice);
        Ok::<_, ClientError>(sourcepolicy::Selector {
            identifier: text(&value["identifier"]),
            match_type: number(&value["matchType"], |name| {
                sourcepolicy::MatchType::from_str_name(name).map(Into::into)
            })?,
            constraints: constraints.iter().map(constraint).collect::<Result<_, ClientError>>()?,
        })
    };
    let updates = |value: &Value| sourcepolicy::Update {
        identifier: text(&value["identifier"]),
        attrs: value["attrs"]
            .as_object()
            .map(|attrs| attrs.iter().map(|(name, value)| (name.clone(), text(value))).collect())
            .unwrap_or_default(),
    };
    Ok(sourcepolicy::Rule {
        action: number(&value["action"], |name| sourcepolicy::PolicyAction::from_str_name(name).map(Into::into))?,
        selector: value.get("selector").map(selector).transpose()?,
        updates: value.get("updates").map(updates),
    })
}

/// An enumeration's value, by name or number.
fn number(value: &Value, by_name: impl Fn(&str) -> Option<i32>) -> Result<i32, ClientError> {
    match value {
        Value::Null => Ok(0),
        Value::String(name) => {
            by_name(name).ok_or_else(|| ClientError::Invalid(format!("source policy: unknown value {name:?}")))
        }
        other => other
            .as_i64()
            .and_then(|number| i32::try_from(number).ok())
            .ok_or_else(|| ClientError::Invalid(format!("source policy: unknown value {other}"))),
    }
}

fn ops(definition: &Definition) -> Result<Vec<(String, pb::Op)>, ClientError> {
    let decode = |bytes: &bytes::Bytes| {
        let op = pb::Op::decode(bytes.clone()).map_err(|err| invalid("failed to parse op", &err))?;
        Ok((Digest::of(bytes).to_string(), op))
    };
    definition.def.iter().map(decode).collect()
}

/// Every operation as a line of JSON.
pub fn dump(definition: &Definition) -> Result<String, ClientError> {
    let mut text = String::new();
    for (digest, op) in ops(definition)? {
        let metadata = definition.metadata.get(&digest).map(metadata);
        let line = json!({ "Op": protojson::op(&op), "Digest": digest, "OpMetadata": metadata });
        let _ = writeln!(text, "{line}");
    }
    Ok(text)
}

fn metadata(metadata: &pb::OpMetadata) -> Value {
    let mut value = json!({});
    if metadata.ignore_cache {
        value["ignore_cache"] = true.into();
    }
    if !metadata.description.is_empty() {
        value["description"] = json!(metadata.description);
    }
    if let Some(export) = &metadata.export_cache {
        value["export_cache"] = json!({ "Value": export.value });
    }
    if !metadata.caps.is_empty() {
        value["caps"] = json!(metadata.caps);
    }
    if let Some(group) = &metadata.progress_group {
        value["progress_group"] = json!({ "id": group.id, "name": group.name, "weak": group.weak });
    }
    value
}

/// The graph in the language of Graphviz.
pub fn dot(definition: &Definition) -> Result<String, ClientError> {
    let ops = ops(definition)?;
    let mut text = String::from("digraph {\n");
    for (digest, op) in &ops {
        let (label, shape) = node(digest, op);
        let _ = writeln!(text, "  {digest:?} [label={label:?} shape={shape:?}];");
    }
    for (digest, op) in &ops {
        for (index, input) in op.inputs.iter().enumerate() {
            let mounts = match &op.op {
                Some(pb::op::Op::Exec(exec)) => exec.mounts.as_slice(),
                _ => &[],
            };
            let mounted = mounts.iter().rev().find(|mount| mount.input == index as i64 && mount.dest != "/");
            let label = mounted.map_or("", |mount| mount.dest.as_str());
            let _ = writeln!(text, "  {:?} -> {digest:?} [label={label:?}];", input.digest);
        }
    }
    text += "}\n";
    Ok(text)
}

fn node(digest: &str, op: &pb::Op) -> (String, &'static str) {
    use pb::file_action::Action;
    use pb::op::Op;
    let action = |action: &pb::FileAction| match &action.action {
        Some(Action::Copy(copy)) => format!("copy{{src={}, dest={}}}", copy.src, copy.dest),
        Some(Action::Mkfile(file)) => format!("mkfile{{path={}}}", file.path),
        Some(Action::Mkdir(dir)) => format!("mkdir{{path={}}}", dir.path),
        Some(Action::Rm(rm)) => format!("rm{{path={}}}", rm.path),
        Some(Action::Symlink(link)) => format!("symlink{{oldpath={}, newpath={}}}", link.oldpath, link.newpath),
        None => String::new(),
    };
    match &op.op {
        Some(Op::Source(source)) => (source.identifier.clone(), "ellipse"),
        Some(Op::Exec(exec)) => (exec.meta.as_ref().map(|meta| meta.args.join(" ")).unwrap_or_default(), "box"),
        Some(Op::Build(_)) => ("build".to_owned(), "box3d"),
        Some(Op::Merge(_)) => ("merge".to_owned(), "invtriangle"),
        Some(Op::Diff(_)) => ("diff".to_owned(), "doublecircle"),
        Some(Op::File(file)) => (file.actions.iter().map(action).collect::<Vec<_>>().join(","), "note"),
        _ => (digest.to_owned(), "plaintext"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Definition {
        let source = pb::SourceOp { identifier: "local://context".into(), ..pb::SourceOp::default() };
        let first = pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() }.encode_to_vec();
        let input = pb::Input { digest: Digest::of(&first).to_string(), index: 0 };
        let last = pb::Op { inputs: vec![input], ..pb::Op::default() }.encode_to_vec();
        Definition { def: vec![first.into(), last.into()], ..Definition::default() }
    }

    #[test]
    fn every_step_ignores_the_cache() {
        let mut definition = definition();
        ignore_cache(&mut definition).unwrap();
        assert_eq!(definition.metadata.len(), 2);
        assert!(definition.metadata.values().all(|metadata| metadata.ignore_cache));
    }

    #[test]
    fn graphs() {
        let text = dot(&definition()).unwrap();
        assert!(text.contains("[label=\"local://context\" shape=\"ellipse\"];"), "{text}");
        assert_eq!(text.matches("->").count(), 1);
        assert_eq!(dump(&definition()).unwrap().lines().count(), 2);
    }

    #[test]
    fn policies() {
        let text = br#"{"version":1,"rules":[{"action":"DENY","selector":{"identifier":"docker-image://*","matchType":"WILDCARD"}},
            {"action":2,"selector":{"identifier":"a"},"updates":{"identifier":"b","attrs":{"k":"v"}}}]}"#;
        let policy = policy(text).unwrap();
        assert_eq!(policy.rules.len(), 2);
        assert_eq!(policy.rules[0].action, i32::from(sourcepolicy::PolicyAction::from_str_name("DENY").unwrap()));
        assert_eq!(policy.rules[1].updates.as_ref().unwrap().attrs["k"], "v");
        assert!(super::policy(br#"{"rules":[{"action":"WAT"}]}"#).is_err());
    }
}
