//! The attributes of cache exports and imports.

use castor_blobs::{Compression, Form};
use castor_oci::Reference;

use crate::error::RemoteCacheError;
use crate::imported::Attrs;

/// Kinds that BuildKit has and castor has not.
const ELSEWHERE: [&str; 3] = ["gha", "s3", "azblob"];

/// Which results are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Those of the result itself, and of others whose blobs exist already.
    #[default]
    Min,
    /// All.
    Max,
}

/// Where a cache goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Into the image that is exported.
    Inline,
    /// Into a repository.
    Registry { reference: Reference, insecure: bool },
    /// Into a directory at the client.
    Client { directory: String },
}

/// A cache export, as its attributes describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    pub(crate) target: Target,
    pub(crate) mode: Mode,
    pub(crate) compression: Compression,
    /// OCI's media types.
    pub(crate) oci: bool,
    /// A manifest with layers, rather than an index of blobs.
    pub(crate) image_manifest: bool,
    ignore_error: bool,
}

/// Where a cache comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Registry { reference: Reference, insecure: bool },
    Client { directory: String, digest: castor_oci::Digest },
}

fn bad(text: impl Into<String>) -> RemoteCacheError {
    RemoteCacheError::Attribute(text.into())
}

/// Go's booleans.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

fn flag(attrs: &Attrs, key: &str) -> Result<Option<bool>, RemoteCacheError> {
    let read = |text: &String| {
        parse_bool(text)
            .ok_or_else(|| bad(format!("failed to parse {key}: strconv.ParseBool: parsing {text:?}: invalid syntax")))
    };
    attrs.get(key).map(read).transpose()
}

fn reference(attrs: &Attrs) -> Result<Reference, RemoteCacheError> {
    let text = attrs.get("ref").filter(|text| !text.is_empty()).ok_or_else(|| bad("missing ref"))?;
    text.parse().map_err(|error| bad(format!("{text}: {error}")))
}

fn compression(attrs: &Attrs) -> Result<Compression, RemoteCacheError> {
    let mut compression = Compression::default();
    if let Some(name) = attrs.get("compression") {
        compression.form =
            Form::parse(name).ok_or_else(|| bad(format!("unsupported layer compression type {name}")))?;
    }
    if let Some(text) = attrs.get("compression-level") {
        let level: Option<u32> = text.parse().ok().filter(|level| *level <= 22);
        compression.level =
            Some(level.ok_or_else(|| bad(format!("invalid value {text:?} specified for compression-level")))?);
    }
    if let Some(text) = attrs.get("force-compression") {
        let read = if text.is_empty() { Some(true) } else { parse_bool(text) };
        compression.force =
            read.ok_or_else(|| bad(format!("non-bool value {text} specified for force-compression")))?;
    }
    Ok(compression)
}

impl ExportOptions {
    /// Reads the attributes of an export of `kind`.
    pub fn parse(kind: &str, attrs: &Attrs) -> Result<Self, RemoteCacheError> {
        let configured = |error: RemoteCacheError| bad(format!("failed to configure {kind} cache exporter: {error}"));
        let target = match kind {
            "inline" => Target::Inline,
            "registry" => Target::Registry {
                reference: reference(attrs).map_err(configured)?,
                insecure: flag(attrs, "registry.insecure").map_err(configured)?.unwrap_or(false),
            },
            "local" => match attrs.get("dest").filter(|dest| !dest.is_empty()) {
                Some(directory) => Target::Client { directory: directory.clone() },
                None => return Err(configured(bad("local cache exporter requires dest"))),
            },
            kind if ELSEWHERE.contains(&kind) => {
                return Err(RemoteCacheError::Unsupported { doing: "export", kind: kind.to_owned() });
            }
            kind => return Err(RemoteCacheError::UnknownExporter(kind.to_owned())),
        };
        let oci = flag(attrs, "oci-mediatypes").map_err(configured)?.unwrap_or(true);
        let image_manifest = flag(attrs, "image-manifest").map_err(configured)?.unwrap_or(oci);
        if image_manifest && !oci {
            return Err(bad("invalid configuration for remote cache, OCI mediatypes are required for image-manifest \
                 cache format"));
        }
        Ok(Self {
            target,
            // What BuildKit does not know, it ignores here.
            mode: if attrs.get("mode").is_some_and(|mode| mode == "max") { Mode::Max } else { Mode::Min },
            compression: compression(attrs).map_err(configured)?,
            oci,
            image_manifest,
            ignore_error: attrs.get("ignore-error").and_then(|text| parse_bool(text)).unwrap_or(false),
        })
    }

    /// Whether the cache goes into the image that is exported.
    pub fn is_inline(&self) -> bool {
        self.target == Target::Inline
    }

    /// Whether a build succeeds where this fails.
    pub fn ignores_errors(&self) -> bool {
        self.ignore_error
    }

    /// What its vertex is called.
    pub fn name(&self) -> &'static str {
        match self.target {
            Target::Inline => "exporting inline cache",
            Target::Registry { .. } => "exporting cache to registry",
            Target::Client { .. } => "exporting cache to client directory",
        }
    }
}

impl Source {
    pub(crate) fn parse(kind: &str, attrs: &Attrs) -> Result<Self, RemoteCacheError> {
        let configured = |error: RemoteCacheError| bad(format!("failed to configure {kind} cache importer: {error}"));
        match kind {
            "registry" => Ok(Self::Registry {
                reference: reference(attrs).map_err(configured)?,
                insecure: flag(attrs, "registry.insecure").map_err(configured)?.unwrap_or(false),
            }),
            "local" => {
                let text = attrs.get("digest").filter(|text| !text.is_empty());
                let text = text.ok_or_else(|| configured(bad("local cache importer requires explicit digest")))?;
                let digest = text.parse().map_err(|error| configured(bad(format!("digest {text:?}: {error}"))))?;
                let directory = attrs.get("src").filter(|src| !src.is_empty());
                let directory = directory.ok_or_else(|| configured(bad("local cache importer requires src")))?;
                Ok(Self::Client { directory: directory.clone(), digest })
            }
            kind if ELSEWHERE.contains(&kind) => {
                Err(RemoteCacheError::Unsupported { doing: "import", kind: kind.to_owned() })
            }
            kind => Err(RemoteCacheError::UnknownImporter(kind.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(pairs: &[(&str, &str)]) -> Attrs {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn defaults_are_buildkits() {
        let options = ExportOptions::parse("registry", &attrs(&[("ref", "example.com/a")])).unwrap();
        assert!(options.oci && options.image_manifest && !options.ignores_errors() && options.mode == Mode::Min);
        assert_eq!(options.compression, Compression::default());
        let Target::Registry { reference, insecure: false } = options.target else { panic!("{options:?}") };
        assert_eq!(reference.to_string(), "example.com/a:latest");
        let docker = attrs(&[("dest", "d"), ("oci-mediatypes", "false"), ("mode", "max"), ("ignore-error", "true")]);
        let options = ExportOptions::parse("local", &docker).unwrap();
        assert!(!options.image_manifest && options.mode == Mode::Max && options.ignores_errors());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let export =
            |kind: &str, pairs: &[(&str, &str)]| ExportOptions::parse(kind, &attrs(pairs)).unwrap_err().to_string();
        assert_eq!(export("registry", &[]), "failed to configure registry cache exporter: missing ref");
        assert_eq!(
            export("local", &[]),
            "failed to configure local cache exporter: local cache exporter requires dest"
        );
        assert_eq!(export("s3", &[]), "cache export of type \"s3\" is not supported by castor yet");
        assert_eq!(export("x", &[]), "unknown cache exporter: \"x\"");
        assert!(export("local", &[("dest", "d"), ("compression", "lzma")]).contains("compression type lzma"));
        assert!(
            export("local", &[("dest", "d"), ("image-manifest", "true"), ("oci-mediatypes", "0")])
                .starts_with("invalid configuration for remote cache")
        );
        let import = |kind: &str, pairs: &[(&str, &str)]| Source::parse(kind, &attrs(pairs)).unwrap_err().to_string();
        assert!(import("local", &[("src", "d")]).ends_with("local cache importer requires explicit digest"));
        assert!(import("local", &[("src", "d"), ("digest", "x")]).contains("digest \"x\""));
        assert_eq!(import("gha", &[]), "cache import of type \"gha\" is not supported by castor yet");
        assert_eq!(import("x", &[]), "unknown cache importer: x");
    }
}
