//! The cache config, version 0, as BuildKit writes it: layers that stand on each other, and records that lead to them.

use castor_oci::Digest;
use castor_progress::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

/// The media type of a cache config.
pub const MEDIA_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";

/// A cache: its records and the layers of their results. Places in these lists are what they name each other by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheConfig {
    /// The layers.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<CacheLayer>,
    /// The records.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<CacheRecord>,
}

/// A layer on another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheLayer {
    /// Its blob, which the manifest describes.
    pub blob: Digest,
    /// The layer below; -1 if there is none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parent: i64,
}

/// A key and the results it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRecord {
    /// Results that are a layer with all below it.
    #[serde(rename = "layers", default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<CacheResult>,
    /// Results that are layers in an order of their own.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub chains: Vec<ChainedResult>,
    /// What the operation and its output are named by.
    pub digest: Digest,
    /// Per input of the operation, the records that may stand there.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Vec<CacheInput>>,
}

/// A result that is a layer with all below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheResult {
    /// The uppermost layer.
    pub layer: usize,
    /// When it was made.
    #[serde(rename = "createdAt", default)]
    pub created: Timestamp,
}

/// A result that is a list of layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainedResult {
    /// The layers, lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<usize>,
    /// When it was made.
    #[serde(rename = "createdAt", default)]
    pub created: Timestamp,
}

/// A record in the place of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheInput {
    /// Which part of the input matters.
    #[serde(default, deserialize_with = "no_selector", skip_serializing_if = "Option::is_none")]
    pub selector: Option<Digest>,
    /// The record.
    pub link: usize,
}

/// What Go's encoder leaves out.
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Go writes a nil list as null.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// An empty selector is none.
fn no_selector<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Digest>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    match text.filter(|text| !text.is_empty()) {
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
        None => Ok(None),
    }
}

/// Why a cache config cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It is no JSON of the form.
    #[error("parse cache config: {0}")]
    Json(String),
    /// A record names one that is not there.
    #[error("invalid record ID: {0}")]
    NoRecord(usize),
    /// A record has an input without anything that may stand there.
    #[error("invalid empty input for record {0}")]
    EmptyInput(usize),
    /// A result names a layer that is not there.
    #[error("invalid layer index {0}")]
    NoLayer(i64),
    /// A layer that stands on itself.
    #[error("invalid looping layer {0}")]
    LoopingLayer(usize),
}

impl CacheConfig {
    /// Reads a config and checks that all it names is there.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_slice(bytes).map_err(|error| ConfigError::Json(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Checks that all that it names is there.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        for (number, record) in self.records.iter().enumerate() {
            for alternatives in &record.inputs {
                if alternatives.is_empty() {
                    return Err(ConfigError::EmptyInput(number));
                }
                if let Some(bad) = alternatives.iter().find(|input| input.link >= self.records.len()) {
                    return Err(ConfigError::NoRecord(bad.link));
                }
            }
            let named = record.results.iter().map(|result| result.layer);
            let mut named = named.chain(record.chains.iter().flat_map(|chain| chain.layers.iter().copied()));
            if let Some(bad) = named.find(|layer| *layer >= self.layers.len()) {
                return Err(ConfigError::NoLayer(i64::try_from(bad).unwrap_or(i64::MAX)));
            }
        }
        Ok(())
    }

    /// The layers from the lowest to `layer`.
    #[cfg(test)]
    pub(crate) fn chain(&self, layer: usize) -> Result<Vec<usize>, ConfigError> {
        let mut chain = vec![layer];
        let mut parent = self.layers.get(layer).map_or(-1, |layer| layer.parent);
        while parent != -1 {
            let index = usize::try_from(parent).ok().filter(|index| *index < self.layers.len());
            let index = index.ok_or(ConfigError::NoLayer(parent))?;
            if chain.len() > self.layers.len() {
                return Err(ConfigError::LoopingLayer(layer));
            }
            chain.push(index);
            parent = self.layers[index].parent;
        }
        chain.reverse();
        Ok(chain)
    }

    /// The config as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings, numbers and lists always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_reads_and_writes_as_gos() {
        let (a, b) = (Digest::of("a"), Digest::of("b"));
        let text = format!(
            r#"{{"layers":[{{"blob":"{a}","parent":-1}},{{"blob":"{b}"}}],"records":[{{"digest":"{a}"}},{{"layers":[{{"layer":1,"createdAt":"2026-11-24T09:10:01.625529483Z"}}],"digest":"{b}","inputs":[[{{"selector":"{a}","link":0}},{{"link":0}}]]}}]}}"#
        );
        let config = CacheConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.layers[1].parent, 0);
        assert_eq!(config.chain(1).unwrap(), [0, 1]);
        assert_eq!(String::from_utf8(config.to_bytes()).unwrap(), text);
        let nulls = format!(r#"{{"layers":null,"records":[{{"digest":"{a}","inputs":null,"layers":null}}]}}"#);
        assert_eq!(CacheConfig::parse(nulls.as_bytes()).unwrap().records.len(), 1);
    }

    #[test]
    fn what_is_named_must_be_there() {
        let a = Digest::of("a");
        let parse = |text: String| CacheConfig::parse(text.as_bytes()).unwrap_err();
        assert_eq!(
            parse(format!(r#"{{"records":[{{"digest":"{a}","inputs":[[{{"link":1}}]]}}]}}"#)),
            ConfigError::NoRecord(1)
        );
        assert_eq!(parse(format!(r#"{{"records":[{{"digest":"{a}","inputs":[[]]}}]}}"#)), ConfigError::EmptyInput(0));
        assert_eq!(
            parse(format!(r#"{{"records":[{{"digest":"{a}","layers":[{{"layer":3}}]}}]}}"#)),
            ConfigError::NoLayer(3)
        );
        assert!(matches!(parse("7".into()), ConfigError::Json(_)));
        let looping = CacheConfig {
            layers: vec![CacheLayer { blob: a, parent: 1 }, CacheLayer { blob: a, parent: 0 }],
            records: Vec::new(),
        };
        assert_eq!(looping.chain(0), Err(ConfigError::LoopingLayer(0)));
        let beyond = CacheConfig { layers: vec![CacheLayer { blob: a, parent: -2 }], records: Vec::new() };
        assert_eq!(beyond.chain(0), Err(ConfigError::NoLayer(-2)));
    }
}
