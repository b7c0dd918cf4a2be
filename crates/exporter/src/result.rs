//! What is exported: refs by platform, and what the frontend said about them.

use std::collections::BTreeMap;

use bytes::Bytes;
use castor_oci::Platform;
use castor_store::ImmutableRef;
use serde::Deserialize;

/// Key of the metadata that lists the platforms of a result.
const PLATFORMS: &str = "refs.platforms";
/// Key of the metadata that is an image config; with a platform's id behind it where there are several.
const CONFIG: &str = "containerimage.config";

/// The result of a build, computed.
#[derive(Debug, Clone)]
pub struct BuildResult {
    /// One for each platform, in the frontend's order; a single one for a build that is not multi-platform.
    pub platforms: Vec<PlatformResult>,
    /// Whether the frontend made a map of results, even if of one.
    pub multi_platform: bool,
    /// What the frontend said.
    pub metadata: BTreeMap<String, Bytes>,
}

/// The result for one platform.
#[derive(Debug, Clone)]
pub struct PlatformResult {
    /// The frontend's name for it, such as `linux/amd64`.
    pub id: String,
    /// The platform.
    pub platform: Platform,
    /// The file system; `None` is an empty one.
    pub reference: Option<ImmutableRef>,
    /// The image config; empty if the frontend gave none.
    pub config: Bytes,
    /// What is attested of it, in the order it leaves in.
    pub attestations: Vec<Attestation>,
}

/// A statement about the result for one platform, in in-toto's form without its subject: that is the result itself, which
/// only the exporter can name (the manifest's digest, or the files').
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    /// What kind of statement it is: `https://slsa.dev/provenance/v1`.
    pub predicate_type: String,
    /// The statement, as JSON.
    pub predicate: Bytes,
    /// The name of its file where results leave as files: `provenance.json`.
    pub path: String,
    /// It is for images only, and no exporter need write it elsewhere.
    pub inline_only: bool,
    /// What it is about; nothing means the result.
    pub subjects: Vec<StatementSubject>,
    /// It is the bill of materials of the result itself, which tells what layer files are in once that is known.
    pub is_core: bool,
}

/// What a statement is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatementSubject {
    /// The result, under this name too unless that is empty.
    Result(String),
    /// Something else: its name, and its digests by algorithm.
    Other(String, BTreeMap<String, String>),
}

/// Why refs and metadata do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// The list of platforms is no JSON of the form.
    #[error("failed to parse platforms passed to exporter: {0}")]
    Platforms(#[from] serde_json::Error),
    /// A list of no platforms.
    #[error("invalid empty platforms index for exporter")]
    NoPlatform,
    /// A platform without an id.
    #[error("invalid empty platform key for exporter")]
    NoId,
    /// A platform that says not enough.
    #[error("invalid platform value {0:?} for exporter")]
    Platform(String),
    /// An image config that says half of its platform.
    #[error("invalid image config: os and architecture must be specified together")]
    HalfPlatform,
    /// Several results and no list of their platforms.
    #[error("unable to export multiple refs, missing platforms mapping")]
    NoPlatforms,
    /// A platform without a result.
    #[error("failed to find ref for ID {0}")]
    NoRef(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Platforms {
    /// Go's nil where there are none.
    #[serde(default)]
    platforms: Option<Vec<Named>>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Platform", default)]
    platform: Platform,
}

impl BuildResult {
    /// A result that is not multi-platform. `native` is the platform of a frontend that named none.
    pub fn single(
        reference: Option<ImmutableRef>,
        metadata: BTreeMap<String, Bytes>,
        native: &Platform,
    ) -> Result<Self, ResultError> {
        let named = match platforms(&metadata)?.and_then(|list| list.into_iter().next()) {
            None => of_config(&metadata)?,
            named => named,
        };
        let (id, platform) =
            named.map_or_else(|| (native.to_string(), native.clone()), |named| (named.id, named.platform));
        let config = config(&metadata, &id);
        let only = PlatformResult { id, platform, reference, config, attestations: Vec::new() };
        Ok(Self { platforms: vec![only], multi_platform: false, metadata })
    }

    /// A result for several platforms.
    pub fn map(
        refs: BTreeMap<String, Option<ImmutableRef>>,
        metadata: BTreeMap<String, Bytes>,
    ) -> Result<Self, ResultError> {
        let list = platforms(&metadata)?.ok_or(ResultError::NoPlatforms)?;
        let platforms = list
            .into_iter()
            .map(|named| {
                // The same platform may stand there twice.
                let reference = refs.get(&named.id).cloned().ok_or_else(|| ResultError::NoRef(named.id.clone()))?;
                let config = config(&metadata, &named.id);
                Ok(PlatformResult {
                    id: named.id,
                    platform: named.platform,
                    reference,
                    config,
                    attestations: Vec::new(),
                })
            })
            .collect::<Result<_, ResultError>>()?;
        Ok(Self { platforms, multi_platform: true, metadata })
    }

    /// What the frontend said under `key`, as text.
    pub fn text(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(self.metadata.get(key)?).ok()
    }
}

fn platforms(metadata: &BTreeMap<String, Bytes>) -> Result<Option<Vec<Named>>, ResultError> {
    let Some(bytes) = metadata.get(PLATFORMS) else { return Ok(None) };
    let list = match bytes.is_empty() {
        true => Vec::new(),
        false => {
            serde_json::from_slice::<Option<Platforms>>(bytes)?.and_then(|list| list.platforms).unwrap_or_default()
        }
    };
    if list.is_empty() {
        return Err(ResultError::NoPlatform);
    }
    for Named { id, platform } in &list {
        if id.is_empty() {
            return Err(ResultError::NoId);
        }
        if platform.os.is_empty() || platform.architecture.is_empty() {
            return Err(ResultError::Platform(format!("{}/{}", platform.os, platform.architecture)));
        }
    }
    Ok(Some(list))
}

/// The platform that an image config names.
fn of_config(metadata: &BTreeMap<String, Bytes>) -> Result<Option<Named>, ResultError> {
    let Some(config) = metadata.get(CONFIG) else { return Ok(None) };
    let Some(platform) = serde_json::from_slice::<Option<Platform>>(config)? else { return Ok(None) };
    match (platform.os.is_empty(), platform.architecture.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => {
            let platform = platform.normalize();
            Ok(Some(Named { id: platform.to_string(), platform }))
        }
        _ => Err(ResultError::HalfPlatform),
    }
}

fn config(metadata: &BTreeMap<String, Bytes>, id: &str) -> Bytes {
    metadata.get(&format!("{CONFIG}/{id}")).or_else(|| metadata.get(CONFIG)).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, &str)]) -> BTreeMap<String, Bytes> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), Bytes::copy_from_slice(value.as_bytes()))).collect()
    }

    const TWO: &str = r#"{"Platforms":[{"ID":"linux/arm64","Platform":{"architecture":"arm64","os":"linux"}},
        {"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}}]}"#;

    #[test]
    fn platforms_keep_the_frontends_order_and_their_configs() {
        let metadata = metadata(&[(PLATFORMS, TWO), ("containerimage.config/linux/amd64", "{}")]);
        let refs = [("linux/amd64".to_owned(), None), ("linux/arm64".to_owned(), None)].into();
        let result = BuildResult::map(refs, metadata).unwrap();
        let seen: Vec<_> = result.platforms.iter().map(|p| (p.id.as_str(), &p.config[..])).collect();
        assert_eq!(seen, [("linux/arm64", &b""[..]), ("linux/amd64", b"{}")]);
    }

    #[test]
    fn a_map_must_fit_its_list() {
        let one = || [("linux/amd64".to_owned(), None)].into();
        let missing = BuildResult::map(one(), metadata(&[(PLATFORMS, TWO)])).unwrap_err();
        assert_eq!(missing.to_string(), "failed to find ref for ID linux/arm64");
        assert!(matches!(BuildResult::map(one(), metadata(&[])), Err(ResultError::NoPlatforms)));
    }

    #[test]
    fn a_single_result_takes_the_native_platform_if_none_was_named() {
        let native = Platform::new("linux", "amd64", "");
        let result = BuildResult::single(None, metadata(&[(CONFIG, "{}")]), &native).unwrap();
        assert_eq!((result.platforms[0].id.as_str(), result.multi_platform), ("linux/amd64", false));
        assert_eq!(&result.platforms[0].config[..], b"{}");
    }
}
