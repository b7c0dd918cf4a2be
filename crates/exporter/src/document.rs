//! Image configs, manifests and indexes, byte for byte as BuildKit writes them.

use std::collections::BTreeMap;

use base64::Engine as _;
use castor_oci::{Annotations, Descriptor, Digest, History, Index, Manifest, media_type};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

/// The key of a config that holds cache records.
const INLINE_CACHE: &str = "moby.buildkit.cache.v0";

/// What is known of a layer that an image gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFacts {
    /// Digest of the uncompressed tar stream.
    pub diff_id: Digest,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// What made it.
    pub description: String,
}

/// A document of an image and its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Names it.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Document {
    pub(crate) fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        Self { descriptor: Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64), bytes }
    }
}

/// Why a config cannot become an image's.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is no JSON of the form.
    #[error("invalid image config for export: {0}")]
    Json(#[from] serde_json::Error),
    /// It is nothing.
    #[error("invalid null image config for export")]
    Null,
    /// It does not say for what the image is.
    #[error("invalid image config for export: missing {0}")]
    Missing(&'static str),
}

/// Completes a frontend's `config` to the config of an image with `layers`, lowest first: diff IDs, a history that has
/// one entry per layer, and times. Fields that castor does not know stay as they are.
///
/// Times of layers are cut to `epoch` where there is one. `cache` are the cache records that the image carries.
pub fn image_config(
    config: &[u8],
    layers: &[LayerFacts],
    epoch: Option<Timestamp>,
    cache: Option<&[u8]>,
    oci: bool,
) -> Result<Document, ConfigError> {
    #[derive(Serialize)]
    struct RootFs<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        diff_ids: Option<Vec<Digest>>,
    }
    // Keys in sorted order, values as they came: that is what BuildKit makes of a config.
    let fields: Option<BTreeMap<String, Box<RawValue>>> = serde_json::from_slice(config)?;
    let mut fields = fields.ok_or(ConfigError::Null)?;
    for key in ["os", "architecture"] {
        if fields.get(key).is_none_or(|value| matches!(value.get(), "\"\"" | "null")) {
            return Err(ConfigError::Missing(key));
        }
    }
    let history: Option<Vec<History>> =
        fields.get("history").map(|raw| serde_json::from_str(raw.get())).transpose()?.flatten();
    let history = complete_history(history.unwrap_or_default(), layers, epoch);
    let diff_ids = (!layers.is_empty()).then(|| layers.iter().map(|layer| layer.diff_id).collect());
    let mut set = |key: &str, value: Box<RawValue>| fields.insert(key.to_owned(), value);
    set("rootfs", serde_json::value::to_raw_value(&RootFs { kind: "layers", diff_ids })?);
    set("history", serde_json::value::to_raw_value(&(!history.is_empty()).then_some(&history))?);
    if !fields.contains_key("created") {
        let last = history.iter().rev().find_map(|entry| entry.created.as_ref());
        fields.insert("created".into(), serde_json::value::to_raw_value(&last)?);
    }
    if let Some(cache) = cache {
        let encoded = base64::engine::general_purpose::STANDARD.encode(cache);
        fields.insert(INLINE_CACHE.into(), serde_json::value::to_raw_value(&encoded)?);
    }
    let compact = compact(&serde_json::to_string(&fields)?);
    Ok(Document::new(if oci { media_type::OCI_CONFIG } else { media_type::DOCKER_CONFIG }, escape(compact)))
}

/// A history with as many entries that made a layer as there are layers, and a time in every entry.
fn complete_history(mut history: Vec<History>, layers: &[LayerFacts], epoch: Option<Timestamp>) -> Vec<History> {
    let created = |layer: &LayerFacts| {
        let time = layer.created?;
        Some(epoch.map_or(time, |epoch| time.min(epoch)).to_string())
    };
    let mut left = layers.iter();
    for entry in history.iter_mut().filter(|entry| !entry.empty_layer) {
        match left.next() {
            Some(layer) if entry.created.is_none() => entry.created = created(layer),
            Some(_) => {}
            // More entries than layers: the last ones made none.
            None => entry.empty_layer = true,
        }
    }
    history.extend(left.map(|layer| History {
        created: created(layer),
        created_by: layer.description.clone(),
        comment: "buildkit.exporter.image.v0".into(),
        ..History::default()
    }));
    // Entries without a layer take the time of the first new layer, or of the entry before them.
    let mut seen_gap = false;
    let mut time = None;
    for entry in &history {
        if entry.created.is_some() {
            time.clone_from(&entry.created);
            if seen_gap {
                break;
            }
        } else {
            seen_gap = true;
        }
    }
    let mut in_gap = false;
    for entry in &mut history {
        if entry.created.is_none() {
            in_gap = true;
            entry.created.clone_from(&time);
        } else if in_gap {
            time.clone_from(&entry.created);
        }
    }
    history
}

/// The manifest of an image.
pub fn manifest(config: Descriptor, layers: Vec<Descriptor>, annotations: Annotations, oci: bool) -> Document {
    let kind = if oci { media_type::OCI_MANIFEST } else { media_type::DOCKER_MANIFEST };
    let empty = layers.is_empty();
    let manifest = Manifest {
        schema_version: 2,
        media_type: kind.into(),
        artifact_type: None,
        config,
        layers,
        subject: None,
        annotations,
    };
    let text = pretty(&manifest);
    // An image without layers has Go's nil list.
    let text = if empty { text.replacen("\"layers\": []", "\"layers\": null", 1) } else { text };
    Document::new(kind, escape(text))
}

/// The index of the images of several platforms.
pub fn index(manifests: Vec<Descriptor>, annotations: Annotations, oci: bool) -> Document {
    let kind = if oci { media_type::OCI_INDEX } else { media_type::DOCKER_LIST };
    Document::new(kind, escape(pretty(&Index { schema_version: 2, media_type: kind.into(), manifests, annotations })))
}

fn pretty(value: &impl Serialize) -> String {
    // Strings, numbers and maps with string keys always serialise.
    serde_json::to_string_pretty(value).expect("documents serialise")
}

/// JSON without the white space between its tokens.
pub(crate) fn compact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in text.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if c.is_ascii_whitespace() {
            continue;
        } else {
            in_string = c == '"';
        }
        out.push(c);
    }
    out
}

/// What indenting may add: a text that is nested without end would become as long as its square.
const INDENTED: usize = 64 << 20;

/// Compact JSON, one thing a line, two spaces a level; as it was, if that were much longer.
pub(crate) fn indent(text: &str) -> String {
    let longest = text.len() * 8 + INDENTED;
    let mut out = String::with_capacity(text.len() * 2);
    let (mut in_string, mut escaped, mut level) = (false, false, 0_usize);
    let mut characters = text.chars().peekable();
    let line = |out: &mut String, level: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", level));
    };
    while let Some(c) = characters.next() {
        if out.len() > longest {
            return text.to_owned();
        }
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            out.push(c);
            continue;
        }
        match c {
            '{' | '[' if matches!(characters.peek(), Some('}' | ']')) => {
                out.push(c);
                out.extend(characters.next());
            }
            '{' | '[' => {
                level += 1;
                out.push(c);
                line(&mut out, level);
            }
            '}' | ']' => {
                level = level.saturating_sub(1);
                line(&mut out, level);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, level);
            }
            ':' => out.push_str(": "),
            c => {
                in_string = c == '"';
                out.push(c);
            }
        }
    }
    out
}

/// The escapes that Go's encoder adds for the sake of HTML; these characters only stand inside strings.
pub(crate) fn escape(text: String) -> Vec<u8> {
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return text.into_bytes();
    }
    let mut out = String::with_capacity(text.len() + 64);
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(text: &str, second: i64) -> LayerFacts {
        LayerFacts {
            diff_id: Digest::of(text),
            created: Some(Timestamp::new(second, 0).unwrap()),
            description: format!("made {text}"),
        }
    }

    fn history(created_by: &str, empty_layer: bool) -> History {
        History { created_by: created_by.into(), empty_layer, ..History::default() }
    }

    #[test]
    fn what_is_nested_without_end_is_not_indented() {
        assert_eq!(indent("{\"a\":[1,{}]}"), "{\n  \"a\": [\n    1,\n    {}\n  ]\n}");
        let deep = [vec!["["; 50_000], vec!["]"; 50_000]].concat().concat();
        assert_eq!(indent(&deep), deep);
    }

    #[test]
    fn a_pushed_image_has_the_bytes_of_buildkits() {
        // The digests are what BuildKit gives for the same input (golden case exporter/image-push).
        let config = r#"{"architecture":"amd64","os":"linux",
            "config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","A=1"],"WorkingDir":"/"},
            "rootfs":{"type":"layers","diff_ids":null},
            "history":[{"created":"2023-11-14T22:13:20Z","created_by":"COPY a.txt dir /o/ # buildkit","comment":"buildkit.dockerfile.v0"},
                {"created":"2023-11-14T22:13:20Z","created_by":"ENV A=1","comment":"buildkit.dockerfile.v0","empty_layer":true}]}"#;
        let diff_id = "sha256:b01d04ee7ea416e79c188168c7841d443fc516658bb43e1dd569cb9a9fbbc778".parse().unwrap();
        let layer = LayerFacts { diff_id, created: None, description: String::new() };
        let config = image_config(config.as_bytes(), &[layer], None, None, true).unwrap();
        assert_eq!(
            config.descriptor.digest.to_string(),
            "sha256:308bb7f3d704124a56d1decf4eb7e52da1995cc6f5f4e617fd3d6c221efea9d4",
            "{}",
            String::from_utf8_lossy(&config.bytes)
        );
        let mut layer = Descriptor::new(media_type::OCI_LAYER, diff_id, 4096);
        layer.annotations.insert("buildkit/rewritten-timestamp".into(), "1700000000".into());
        let manifest = manifest(config.descriptor, vec![layer], Annotations::new(), true);
        assert_eq!(
            manifest.descriptor.digest.to_string(),
            "sha256:50a1a677d51114c3d17363b8645bfa4008e43b652a779a8e71d1878afd5b3867"
        );
    }

    #[test]
    fn an_image_without_layers_has_gos_nulls() {
        // Golden case exporter/empty-result.
        let config = r#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/"}}"#;
        let config = image_config(config.as_bytes(), &[], None, None, true).unwrap();
        let manifest = manifest(config.descriptor, vec![], Annotations::new(), true);
        assert_eq!(
            manifest.descriptor.digest.to_string(),
            "sha256:6cddc7c291e3d05059404a670e53a4e87166bd3f22ea50b9ae60f9d0c4423775"
        );
    }

    #[test]
    fn the_history_gets_an_entry_per_layer_and_a_time_in_each() {
        let layers = [facts("a", 10), facts("b", 20), facts("c", 30)];
        let old = History { created: Some("1970-01-01T00:00:05Z".into()), ..history("base", false) };
        let done = complete_history(vec![old, history("ENV", true), history("RUN", false)], &layers, None);
        let seen: Vec<_> =
            done.iter().map(|entry| (entry.created_by.as_str(), entry.created.as_deref().unwrap())).collect();
        assert_eq!(
            seen,
            [
                ("base", "1970-01-01T00:00:05Z"),
                ("ENV", "1970-01-01T00:00:20Z"),
                ("RUN", "1970-01-01T00:00:20Z"),
                ("made c", "1970-01-01T00:00:30Z"),
            ]
        );
    }

    #[test]
    fn entries_beyond_the_layers_are_empty_and_the_epoch_cuts_times() {
        let epoch = Some(Timestamp::new(15, 0).unwrap());
        let done = complete_history(vec![history("RUN a", false), history("RUN b", false)], &[facts("a", 20)], epoch);
        assert_eq!(done[0].created.as_deref(), Some("1970-01-01T00:00:15Z"));
        assert!(!done[0].empty_layer && done[1].empty_layer);
    }

    #[test]
    fn unknown_fields_and_html_are_kept_as_go_writes_them() {
        let config = image_config(
            br#"{ "os": "linux", "architecture": "amd64", "x": {"b": "<&>", "a": 1} , "config": null}"#,
            &[],
            None,
            None,
            false,
        )
        .unwrap();
        let text = String::from_utf8(config.bytes).unwrap();
        assert!(text.contains(r#""x":{"b":"\u003c\u0026\u003e","a":1}"#), "{text}");
    }
}
