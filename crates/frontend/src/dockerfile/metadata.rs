//! What is said of a result beside its refs.

use std::collections::BTreeMap;

use bytes::Bytes;
use castor_dockerfile::{Target, platform};
use castor_oci::Platform;
use castor_ops::{Attested, BridgeError, LazyRef, Refs, SolveResult};
use serde::Serialize;

/// One target, built.
pub(super) struct Built {
    pub(super) reference: Option<LazyRef>,
    pub(super) target: Target,
    /// The platform that was asked for, or the default one.
    pub(super) platform: Platform,
    /// What a scanner will have to say of it.
    pub(super) attested: Option<Attested>,
}

impl Built {
    /// The name of a result for `platform`.
    pub(super) fn id(platform: &Platform) -> String {
        platform::format_all(&platform::normalize(platform))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Platforms {
    platforms: Vec<Export>,
}

#[derive(Serialize)]
struct Export {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Platform")]
    platform: Platform,
}

/// Joins targets into one result.
pub(super) fn result(built: Vec<Built>, multi_platform: bool) -> Result<SolveResult, BridgeError> {
    let mut metadata = BTreeMap::new();
    let mut refs = BTreeMap::new();
    let mut single = None;
    let mut platforms = Vec::new();
    let mut attestations = BTreeMap::new();
    for Built { reference, target, platform, attested } in built {
        let export = export(&platform, &target.config.platform);
        let key = |name: &str| if multi_platform { format!("{name}/{}", export.id) } else { name.to_owned() };
        metadata.insert(key("containerimage.config"), json(&target.config)?);
        if let Some(base) = &target.base_config {
            metadata.insert(key("containerimage.base.config"), json(base)?);
        }
        if let Some(epoch) = target.epoch {
            metadata.insert(key("source.date.epoch"), Bytes::from(epoch.to_string()));
        }
        if multi_platform {
            refs.insert(export.id.clone(), reference);
        } else {
            single = reference;
        }
        attestations.extend(attested.map(|attested| (export.id.clone(), vec![attested])));
        platforms.push(export);
    }
    metadata.insert("refs.platforms".to_owned(), json(&Platforms { platforms })?);
    let refs = if multi_platform { Refs::Map(refs) } else { Refs::Single(single) };
    Ok(SolveResult { refs, metadata, attestations })
}

fn export(wanted: &Platform, image: &Platform) -> Export {
    let mut platform = platform::normalize(wanted);
    let id = platform::format_all(&platform);
    if platform.os == "windows" && image.os == platform.os {
        if platform.os_version.is_empty() {
            platform.os_version.clone_from(&image.os_version);
        }
        if platform.os_features.is_empty() {
            platform.os_features.clone_from(&image.os_features);
        }
    }
    Export { id, platform }
}

/// JSON as Go writes it.
fn json(value: &impl Serialize) -> Result<Bytes, BridgeError> {
    serde_json::to_string(value).map(|text| escaped(&text)).map_err(|error| not_json(&error))
}

/// The same, for people.
pub(super) fn pretty(value: &impl Serialize) -> Result<Bytes, BridgeError> {
    serde_json::to_string_pretty(value).map(|text| escaped(&text)).map_err(|error| not_json(&error))
}

fn not_json(error: &serde_json::Error) -> BridgeError {
    BridgeError::unknown(format!("failed to marshal the frontend's result: {error}"))
}

/// Go escapes what could be taken for markup.
fn escaped(text: &str) -> Bytes {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // These stand in strings alone.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.into()
}
