//! The details that BuildKit attaches to errors.
//!
//! They travel as `google.protobuf.Any` whose value is JSON, in two dialects:
//! most are Go structs written by `encoding/json` (numbers are numbers, bytes
//! are base64, zero values are left out), [`Solve`] is protobuf's own JSON
//! (64-bit numbers are strings, see [`crate::protojson`]).

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::pb;

/// A detail that can be attached to an error.
pub trait Detail: Serialize + DeserializeOwned {
    /// The type url of the `Any` that carries it.
    const TYPE_URL: &'static str;
}

macro_rules! detail {
    ($($name:ident => $url:literal,)*) => {
        $(impl Detail for $name {
            const TYPE_URL: &'static str = concat!("github.com/moby/buildkit/", $url, "+json");
        })*
    };
}

detail! {
    Vertex => "errdefs.Vertex",
    Source => "errdefs.Source",
    Solve => "errdefs.Solve",
    Frontend => "errdefs.Frontend",
    FrontendCap => "errdefs.FrontendCap",
    Subrequest => "errdefs.Subrequest",
    CompatibilityFeature => "errdefs.CompatibilityFeature",
    Stack => "stack.Stack",
}

/// Which vertex failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vertex {
    /// The digest the client knows the vertex by.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
}

/// Where in the user's text the error is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// The text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<SourceInfo>,
    /// The lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Range>,
}

/// A text of the user's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceInfo {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filename: String,
    /// Its bytes.
    #[serde(with = "base64_bytes", skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<u8>,
    /// Where it can be had; carried on as it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<serde_json::Value>,
    /// Its language, such as `Dockerfile`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub language: String,
}

/// A range of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Range {
    /// The first position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Position>,
    /// The last position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<Position>,
}

/// A place in a text; lines count from 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Position {
    /// The line.
    #[serde(skip_serializing_if = "is_zero")]
    pub line: i32,
    /// The character in the line.
    #[serde(skip_serializing_if = "is_zero")]
    pub character: i32,
}

/// What a failed operation had before it, for looking into it afterwards.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Solve {
    /// Ids of the references the operation got as inputs.
    #[serde(rename = "inputIDs", skip_serializing_if = "Vec::is_empty")]
    pub input_ids: Vec<String>,
    /// Ids of the references of its mounts as they were when it failed.
    #[serde(rename = "mountIDs", skip_serializing_if = "Vec::is_empty")]
    pub mount_ids: Vec<String>,
    /// The operation in protobuf's JSON, from [`crate::protojson::op`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<serde_json::Value>,
    /// The file action that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<Index>,
    /// The input whose contents could not be hashed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Index>,
    /// The description of the operation's metadata.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub description: BTreeMap<String, String>,
}

/// A place in a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Index {
    /// Counted from 0.
    #[serde(with = "text_number", skip_serializing_if = "is_zero_64")]
    pub index: i64,
}

/// Which frontend failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Frontend {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its image.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
}

/// A capability that the frontend lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FrontendCap {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// A request that the frontend does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subrequest {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// A feature that the asked compatibility version does not have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CompatibilityFeature {
    /// The version.
    #[serde(skip_serializing_if = "is_zero_64")]
    pub version: i64,
    /// The feature.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub feature: String,
}

/// Where in a program an error comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stack {
    /// The calls, innermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub frames: Vec<Frame>,
    /// The program's arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmdline: Vec<String>,
    /// The process.
    #[serde(skip_serializing_if = "is_zero")]
    pub pid: i32,
    /// The program's version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The revision it was built from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revision: String,
}

/// One call of a [`Stack`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Frame {
    /// The function.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The source file.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// The line in it.
    #[serde(skip_serializing_if = "is_zero")]
    pub line: i32,
}

impl Source {
    /// A source from its wire form.
    pub fn new(info: &pb::SourceInfo, ranges: &[pb::Range]) -> Self {
        let position = |at: &pb::Position| Position { line: at.line, character: at.character };
        Self {
            info: Some(SourceInfo {
                filename: info.filename.clone(),
                data: info.data.to_vec(),
                definition: info.definition.as_ref().map(crate::gojson::definition),
                language: info.language.clone(),
            }),
            ranges: ranges
                .iter()
                .map(|range| Range { start: range.start.as_ref().map(position), end: range.end.as_ref().map(position) })
                .collect(),
        }
    }
}

fn is_zero(number: &i32) -> bool {
    *number == 0
}

fn is_zero_64(number: &i64) -> bool {
    *number == 0
}

mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        STANDARD.decode(text).map_err(de::Error::custom)
    }
}

/// A 64-bit number that is text in protobuf's JSON; readers take both.
mod text_number {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(number: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(i64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(number),
            Either::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_have_the_json_of_the_original() {
        let source = Source {
            info: Some(SourceInfo {
                filename: "Dockerfile".into(),
                data: b"FROM scratch\n".to_vec(),
                language: "Dockerfile".into(),
                ..SourceInfo::default()
            }),
            ranges: vec![Range {
                start: Some(Position { line: 1, character: 0 }),
                end: Some(Position { line: 2, character: 3 }),
            }],
        };
        let json = serde_json::to_string(&source).unwrap();
        assert_eq!(
            json,
            r#"{"info":{"filename":"Dockerfile","data":"RlJPTSBzY3JhdGNoCg==","language":"Dockerfile"},"ranges":[{"start":{"line":1},"end":{"line":2,"character":3}}]}"#
        );
        assert_eq!(serde_json::from_str::<Source>(&json).unwrap(), source);

        let solve = Solve {
            input_ids: vec!["a".into()],
            mount_ids: vec!["b".into(), String::new()],
            file: Some(Index { index: 3 }),
            ..Solve::default()
        };
        let json = serde_json::to_string(&solve).unwrap();
        assert_eq!(json, r#"{"inputIDs":["a"],"mountIDs":["b",""],"file":{"index":"3"}}"#);
        assert_eq!(serde_json::from_str::<Solve>(&json).unwrap(), solve);
        assert_eq!(Vertex::TYPE_URL, "github.com/moby/buildkit/errdefs.Vertex+json");
    }
}
