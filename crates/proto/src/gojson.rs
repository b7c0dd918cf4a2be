//! Definitions and places in texts in the JSON that Go's `encoding/json` makes of their generated structs: the form that they have in
//! [`crate::errdefs::SourceInfo`], in the answers of frontends and in provenance. Zero values are left out, bytes are base64.

mod op;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

pub use op::op;

use crate::pb;

/// A definition.
pub fn definition(definition: &pb::Definition) -> Value {
    let ops: Vec<Value> = definition.def.iter().map(|op| STANDARD.encode(op).into()).collect();
    let metadata: Map<String, Value> =
        definition.metadata.iter().map(|(digest, metadata)| (digest.clone(), op_metadata(metadata))).collect();
    let source = definition.source.as_ref().map(source);
    object([
        ("def", Value::Array(ops)),
        ("metadata", Value::Object(metadata)),
        ("Source", source.unwrap_or(Value::Null)),
    ])
}

fn op_metadata(metadata: &pb::OpMetadata) -> Value {
    let group = metadata
        .progress_group
        .as_ref()
        .map(|group| object([("id", json!(group.id)), ("name", json!(group.name)), ("weak", json!(group.weak))]));
    let resources = metadata.linux_resources.as_ref().map(|limits| {
        object([
            ("memory", json!(limits.memory)),
            ("memorySwap", json!(limits.memory_swap)),
            ("cpuShares", json!(limits.cpu_shares)),
            ("cpuPeriod", json!(limits.cpu_period)),
            ("cpuQuota", json!(limits.cpu_quota)),
            ("cpusetCpus", json!(limits.cpuset_cpus)),
            ("cpusetMems", json!(limits.cpuset_mems)),
        ])
    });
    let export = metadata.export_cache.as_ref().map(|export| object([("Value", json!(export.value))]));
    object([
        ("ignore_cache", json!(metadata.ignore_cache)),
        ("description", json!(metadata.description)),
        ("export_cache", export.unwrap_or(Value::Null)),
        ("caps", json!(metadata.caps)),
        ("progress_group", group.unwrap_or(Value::Null)),
        ("linux_resources", resources.unwrap_or(Value::Null)),
    ])
}

fn source(source: &pb::Source) -> Value {
    let locations: Map<String, Value> =
        source.locations.iter().map(|(digest, all)| (digest.clone(), locations(all))).collect();
    let infos: Vec<Value> = source.infos.iter().map(source_info).collect();
    object([("locations", Value::Object(locations)), ("infos", Value::Array(infos))])
}

/// The places of one operation.
pub fn locations(all: &pb::Locations) -> Value {
    object([("locations", all.locations.iter().map(location).collect())])
}

/// A place in a text.
pub fn location(location: &pb::Location) -> Value {
    let position = |at: &pb::Position| object([("line", json!(at.line)), ("character", json!(at.character))]);
    let range = |range: &pb::Range| {
        object([
            ("start", range.start.as_ref().map_or(Value::Null, position)),
            ("end", range.end.as_ref().map_or(Value::Null, position)),
        ])
    };
    let ranges: Vec<Value> = location.ranges.iter().map(range).collect();
    object([("sourceIndex", json!(location.source_index)), ("ranges", Value::Array(ranges))])
}

/// A text and where it can be had.
pub fn source_info(info: &pb::SourceInfo) -> Value {
    object([
        ("filename", json!(info.filename)),
        ("data", json!(STANDARD.encode(&info.data))),
        ("definition", info.definition.as_ref().map_or(Value::Null, definition)),
        ("language", json!(info.language)),
    ])
}

/// An object without its fields of value zero. A message that is there stays, even if it is empty.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let is_zero = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(_) => false,
    };
    // Maps, unlike messages, are left out when they are empty.
    let empty_map = |name: &str, value: &Value| {
        matches!(name, "metadata" | "description" | "caps" | "locations")
            && value.as_object().is_some_and(Map::is_empty)
    };
    let kept = fields.into_iter().filter(|(name, value)| !is_zero(value) && !empty_map(name, value));
    Value::Object(kept.map(|(name, value)| (name.to_owned(), value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_has_the_json_of_the_original() {
        let metadata = pb::OpMetadata {
            description: [("a".to_owned(), "b".to_owned())].into(),
            caps: [("source.local".to_owned(), true)].into(),
            export_cache: Some(pb::ExportCache { value: false }),
            ..pb::OpMetadata::default()
        };
        let inner = pb::Definition {
            def: vec![b"op".as_slice().into(), bytes::Bytes::new()],
            metadata: [("sha256:1".to_owned(), metadata)].into(),
            source: None,
        };
        let json = definition(&inner).to_string();
        assert_eq!(
            json,
            r#"{"def":["b3A=",""],"metadata":{"sha256:1":{"caps":{"source.local":true},"description":{"a":"b"},"export_cache":{}}}}"#
        );
        let info = pb::SourceInfo { filename: "f".into(), definition: Some(inner), ..pb::SourceInfo::default() };
        let range = pb::Range { start: Some(pb::Position { line: 1, character: 0 }), end: None };
        let place = pb::Location { source_index: 0, ranges: vec![range] };
        let locations = [("sha256:1".to_owned(), pb::Locations { locations: vec![place] })].into();
        let outer =
            pb::Definition { source: Some(pb::Source { locations, infos: vec![info] }), ..pb::Definition::default() };
        let value = definition(&outer);
        assert_eq!(value["Source"]["locations"]["sha256:1"]["locations"][0]["ranges"][0]["start"]["line"], 1);
        assert_eq!(value["Source"]["infos"][0]["definition"]["def"][0], "b3A=");
    }
}
