//! What the daemon tells about a running build.
//!
//! The types serialise to the JSON that BuildKit's clients write: `--progress=rawjson`, `--trace`.

use std::collections::BTreeMap;

use castor_progress::Timestamp;
use castor_proto::{control, pb};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One message of news.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SolveStatus {
    /// Vertices, as they are now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vertexes: Vec<Vertex>,
    /// Work inside of vertices, as it is now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<VertexStatus>,
    /// What vertices printed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<VertexLog>,
    /// What they warn of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<VertexWarning>,
}

/// A step of the build.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vertex {
    /// Names it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// The steps it needs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// What users read.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// When work began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When work ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<Timestamp>,
    /// Its result came from the cache.
    #[serde(skip_serializing_if = "is_false")]
    pub cached: bool,
    /// Why it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Steps that are shown as one.
    #[serde(rename = "progressGroup", skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
}

/// Steps that are shown as one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Group {
    /// Names it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// What users read.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Shown only if a member that is not weak is.
    #[serde(skip_serializing_if = "is_false")]
    pub weak: bool,
}

/// A piece of work inside a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VertexStatus {
    /// Names it within its step, and is what users read.
    pub id: String,
    /// The step.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub vertex: String,
    /// What is done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Units in all; 0 if it is not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub total: i64,
    /// Units done.
    pub current: i64,
    /// When this was so.
    pub timestamp: Timestamp,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<Timestamp>,
}

/// What a step printed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VertexLog {
    /// The step.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub vertex: String,
    /// 1 is standard output, 2 standard error.
    #[serde(skip_serializing_if = "is_zero")]
    pub stream: i64,
    /// The bytes.
    #[serde(with = "base64")]
    pub data: bytes::Bytes,
    /// When.
    pub timestamp: Timestamp,
}

/// What a step warns of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VertexWarning {
    /// The step.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub vertex: String,
    /// 1 is the highest.
    #[serde(skip_serializing_if = "is_zero")]
    pub level: i64,
    /// One line.
    #[serde(with = "base64", skip_serializing_if = "bytes::Bytes::is_empty")]
    pub short: bytes::Bytes,
    /// More lines.
    #[serde(with = "base64_list", skip_serializing_if = "Vec::is_empty")]
    pub detail: Vec<bytes::Bytes>,
    /// Where to read on.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// The text it is about.
    #[serde(rename = "sourceInfo", skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceInfo>,
    /// The lines of that text.
    #[serde(rename = "range", skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Range>,
}

/// A text that steps come from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceInfo {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filename: String,
    /// The text.
    #[serde(with = "base64", skip_serializing_if = "bytes::Bytes::is_empty")]
    pub data: bytes::Bytes,
    /// Where it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<Definition>,
    /// Its language.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub language: String,
}

/// The definition of a text's origin.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Definition {
    /// Its operations.
    #[serde(with = "base64_list", skip_serializing_if = "Vec::is_empty")]
    pub def: Vec<bytes::Bytes>,
    /// What is known of them, by their digests.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, OpMetadata>,
    /// The texts that they come from in their turn.
    #[serde(rename = "Source", skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// What is known of an operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpMetadata {
    /// It runs whatever is in the cache.
    #[serde(skip_serializing_if = "is_false")]
    pub ignore_cache: bool,
    /// What people and frontends say of it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub description: BTreeMap<String, String>,
    /// What it asks of the daemon.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub caps: BTreeMap<String, bool>,
    /// The group it is shown in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_group: Option<Group>,
}

/// Where operations come from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// Places, by the operation's digest.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub locations: BTreeMap<String, Locations>,
    /// The texts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub infos: Vec<SourceInfo>,
}

/// The places of an operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Locations {
    /// Each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locations: Vec<Location>,
}

/// A place.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Location {
    /// Which text.
    #[serde(rename = "sourceIndex", skip_serializing_if = "is_zero_32")]
    pub source_index: i32,
    /// Where in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Range>,
}

/// A range of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Range {
    /// Its begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Position>,
    /// Its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<Position>,
}

/// A place in a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Position {
    /// The line, from 1.
    #[serde(skip_serializing_if = "is_zero_32")]
    pub line: i32,
    /// The character in it.
    #[serde(skip_serializing_if = "is_zero_32")]
    pub character: i32,
}

impl From<control::StatusResponse> for SolveStatus {
    fn from(response: control::StatusResponse) -> Self {
        Self {
            vertexes: response.vertexes.into_iter().map(Vertex::from).collect(),
            statuses: response.statuses.into_iter().map(VertexStatus::from).collect(),
            logs: response.logs.into_iter().map(VertexLog::from).collect(),
            warnings: response.warnings.into_iter().map(VertexWarning::from).collect(),
        }
    }
}

impl From<control::Vertex> for Vertex {
    fn from(vertex: control::Vertex) -> Self {
        Self {
            digest: vertex.digest,
            inputs: vertex.inputs,
            name: vertex.name,
            started: vertex.started.map(timestamp),
            completed: vertex.completed.map(timestamp),
            cached: vertex.cached,
            error: vertex.error,
            group: vertex.progress_group.map(Group::from),
        }
    }
}

impl From<control::VertexStatus> for VertexStatus {
    fn from(status: control::VertexStatus) -> Self {
        Self {
            id: status.id,
            vertex: status.vertex,
            name: status.name,
            total: status.total,
            current: status.current,
            timestamp: status.timestamp.map(timestamp).unwrap_or_default(),
            started: status.started.map(timestamp),
            completed: status.completed.map(timestamp),
        }
    }
}

impl From<control::VertexLog> for VertexLog {
    fn from(log: control::VertexLog) -> Self {
        Self {
            vertex: log.vertex,
            stream: log.stream,
            data: log.msg,
            timestamp: log.timestamp.map(timestamp).unwrap_or_default(),
        }
    }
}

impl From<control::VertexWarning> for VertexWarning {
    fn from(warning: control::VertexWarning) -> Self {
        Self {
            vertex: warning.vertex,
            level: warning.level,
            short: warning.short,
            detail: warning.detail,
            url: warning.url,
            source: warning.info.map(SourceInfo::from),
            ranges: warning.ranges.into_iter().map(Range::from).collect(),
        }
    }
}

impl From<pb::Range> for Range {
    fn from(range: pb::Range) -> Self {
        let position = |at: pb::Position| Position { line: at.line, character: at.character };
        Self { start: range.start.map(position), end: range.end.map(position) }
    }
}

impl From<pb::ProgressGroup> for Group {
    fn from(group: pb::ProgressGroup) -> Self {
        Self { id: group.id, name: group.name, weak: group.weak }
    }
}

impl From<pb::SourceInfo> for SourceInfo {
    fn from(info: pb::SourceInfo) -> Self {
        Self {
            filename: info.filename,
            data: info.data,
            definition: info.definition.map(Definition::from),
            language: info.language,
        }
    }
}

impl From<pb::Definition> for Definition {
    fn from(definition: pb::Definition) -> Self {
        let metadata = |metadata: pb::OpMetadata| OpMetadata {
            ignore_cache: metadata.ignore_cache,
            description: metadata.description,
            caps: metadata.caps,
            progress_group: metadata.progress_group.map(Group::from),
        };
        let location = |location: pb::Location| Location {
            source_index: location.source_index,
            ranges: location.ranges.into_iter().map(Range::from).collect(),
        };
        let locations =
            |list: pb::Locations| Locations { locations: list.locations.into_iter().map(location).collect() };
        let source = |source: pb::Source| Source {
            locations: source.locations.into_iter().map(|(digest, list)| (digest, locations(list))).collect(),
            infos: source.infos.into_iter().map(SourceInfo::from).collect(),
        };
        Self {
            def: definition.def,
            metadata: definition.metadata.into_iter().map(|(digest, value)| (digest, metadata(value))).collect(),
            source: definition.source.map(source),
        }
    }
}

/// The time of a wire message; one that no calendar has is the epoch.
pub fn timestamp(wire: castor_proto::Timestamp) -> Timestamp {
    Timestamp::new(wire.seconds, wire.nanos).unwrap_or_default()
}

/// The JSON of a value as Go's encoder writes it: what HTML would take for markup is escaped.
pub fn go_json(value: &impl Serialize) -> Result<String, serde_json::Error> {
    // Outside of strings JSON has none of these characters.
    Ok(serde_json::to_string(value)?
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029"))
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(value: &bool) -> bool {
    !value
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(value: &i64) -> bool {
    *value == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero_32(value: &i32) -> bool {
    *value == 0
}

mod base64 {
    use super::{Deserialize, Deserializer, Serializer};
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;

    pub fn serialize<S: Serializer>(bytes: &bytes::Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bytes::Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(bytes::Bytes::from).map_err(D::Error::custom)
    }
}

mod base64_list {
    use super::{Deserialize, Deserializer, Serializer};
    use serde::Serialize;

    #[derive(Serialize, Deserialize)]
    struct Item(#[serde(with = "super::base64")] bytes::Bytes);

    pub fn serialize<S: Serializer>(list: &[bytes::Bytes], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().cloned().map(Item))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<bytes::Bytes>, D::Error> {
        Ok(Vec::<Item>::deserialize(deserializer)?.into_iter().map(|item| item.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_writes_it() {
        let at = Timestamp::new(1_700_000_000, 120_000_000).unwrap();
        let status = SolveStatus {
            vertexes: vec![Vertex {
                digest: "sha256:aa".into(),
                name: "RUN a && b > c".into(),
                started: Some(at),
                ..Vertex::default()
            }],
            statuses: vec![VertexStatus {
                id: "s".into(),
                vertex: "sha256:aa".into(),
                name: String::new(),
                total: 0,
                current: 0,
                timestamp: at,
                started: None,
                completed: None,
            }],
            logs: vec![VertexLog { vertex: "v".into(), stream: 1, data: "hi\n".into(), timestamp: at }],
            warnings: Vec::new(),
        };
        assert_eq!(
            go_json(&status).unwrap(),
            concat!(
                r#"{"vertexes":[{"digest":"sha256:aa","name":"RUN a \u0026\u0026 b \u003e c","started":"2023-11-14T22:13:20.12Z"}],"#,
                r#""statuses":[{"id":"s","vertex":"sha256:aa","current":0,"timestamp":"2023-11-14T22:13:20.12Z"}],"#,
                r#""logs":[{"vertex":"v","stream":1,"data":"aGkK","timestamp":"2023-11-14T22:13:20.12Z"}]}"#
            )
        );
    }
}
