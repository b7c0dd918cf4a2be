//! What identifies an op for the cache: digests byte-equal to BuildKit's, so that caches of the one serve the other.
//!
//! Each digest is that of a JSON document (of a short text, for sources) that holds what matters of the op and nothing
//! that does not: not the addresses of extra hosts, not proxies, not which part of an input is mounted. What matters
//! of the *inputs* is said apart, by [`InputKey`]s.

mod exec;
mod file;
mod json;

use castor_oci::{Digest, Platform};
use castor_proto::pb;

pub use exec::{exec, exec_inputs};
pub use file::{file, file_inputs};
use json::Object;

use crate::OpError;

/// How an input matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputKey {
    /// Digest of the paths that matter, for keys by definition.
    pub selector: Option<Digest>,
    /// The paths whose content matters; `None`: only the definition counts. No paths: all content.
    pub content: Option<Vec<Selector>>,
}

/// Paths of an input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// The path, perhaps a pattern.
    pub path: String,
    /// The path is a pattern.
    pub wildcard: bool,
    /// Follow a link at its end.
    pub follow_links: bool,
    /// Only what these match.
    pub include_patterns: Vec<String>,
    /// Not what these match.
    pub exclude_patterns: Vec<String>,
    /// Paths that must exist.
    pub required_paths: Vec<String>,
}

impl Selector {
    fn filters(&self) -> bool {
        self.wildcard || !self.include_patterns.is_empty() || !self.exclude_patterns.is_empty()
    }
}

/// Digest of a merge.
pub fn merge(op: &pb::MergeOp) -> Digest {
    let input = |input: &pb::MergeInput| Object::default().number("input", input.input).finish();
    let merge = Object::default().list("inputs", op.inputs.iter().map(input)).finish();
    Digest::of(Object::default().text("Type", "buildkit.merge.v0").raw("Merge", &merge).finish())
}

/// Digest of a diff.
pub fn diff(op: &pb::DiffOp) -> Digest {
    let side = |input: i64| Object::default().number("input", input).finish();
    let diff = Object::default()
        .optional("lower", op.lower.as_ref().map(|lower| side(lower.input)))
        .optional("upper", op.upper.as_ref().map(|upper| side(upper.input)))
        .finish();
    Digest::of(Object::default().text("Type", "buildkit.diff.v0").raw("Diff", &diff).finish())
}

/// Digest of a passthrough.
pub fn passthrough(op: &pb::PassthroughOp) -> Digest {
    let outputs = op.outputs.iter().map(i64::to_string);
    let inner = Object::default().text("id", &op.id).list("outputs", outputs).finish();
    Digest::of(Object::default().text("Type", "buildkit.passthrough.v0").raw("Passthrough", &inner).finish())
}

/// Digest of a source that has the key `key`.
pub fn source(key: &str) -> Digest {
    Digest::of(format!("buildkit.source.v0:{key}"))
}

/// Key of an image by the manifest that its reference names. Two images with the same layers differ in it.
pub fn image_manifest(manifest: Digest, platform: &Platform, layer_limit: Option<usize>) -> Digest {
    let limit = layer_limit.and_then(|limit| i64::try_from(limit).ok()).unwrap_or_default();
    let object = Object::default().text_always("Digest", &manifest.to_string());
    Digest::of(with_platform(object, platform, "Arch").number("Limit", limit).finish())
}

/// Key of a file from a web server: called `name`, with this digest, last modified at `modified` if that is known.
pub fn http(source: &castor_llb::HttpSource, name: &str, checksum: &str, modified: Option<&str>) -> Digest {
    let headers = source
        .headers
        .iter()
        .map(|(name, value)| Object::default().text_always("Name", name).text_always("Value", value).finish());
    let object = Object::default()
        .text_always("Filename", name)
        .raw("Perm", &source.perm.to_string())
        .raw("UID", &source.uid.to_string())
        .raw("GID", &source.gid.to_string())
        .text_always("Checksum", checksum)
        .text("LastModTime", modified.unwrap_or_default())
        .text("AuthHeaderSecret", &source.auth_header_secret)
        .list("Header", headers);
    Digest::of(object.finish())
}

/// Key of a git repository at `commit`, which `reference` named if that is known.
pub fn git(source: &castor_llb::GitSource, commit: &str, reference: &str) -> String {
    let mut key = commit.to_owned();
    if source.keep_git_dir {
        key.push_str(".git");
        if !reference.is_empty() {
            key.push('#');
            key.push_str(reference);
        }
    }
    if !source.subdir.is_empty() {
        key.push(':');
        key.push_str(&source.subdir);
    }
    if source.skip_submodules {
        key.push_str("(skip-submodules)");
    }
    if !source.mtime.is_empty() && source.mtime != "checkout" {
        key.push_str(&format!("(mtime={})", source.mtime));
    }
    key
}

/// Key of a client's directory.
pub fn local(name: &str, session: &str, source: &castor_llb::LocalSource) -> String {
    let metadata_only = source.metadata_only.is_some();
    let object = Object::default()
        .text_always("SessionID", session)
        .raw("IncludePatterns", &json::texts_or_null(&source.include_patterns))
        .raw("ExcludePatterns", &json::texts_or_null(&source.exclude_patterns))
        .raw("FollowPaths", &json::texts_or_null(&source.follow_paths))
        .flag("MetadataTransfer", metadata_only)
        .texts("MetadataExceptions", source.metadata_only.as_deref().unwrap_or_default());
    format!("session:{name}:{}", Digest::of(object.finish()))
}

fn with_platform(object: Object, platform: &Platform, architecture: &str) -> Object {
    object
        .text_always("OS", &platform.os)
        .text_always(architecture, &platform.architecture)
        .text("Variant", &platform.variant)
        .text("OSVersion", &platform.os_version)
        .texts("OSFeatures", &platform.os_features)
}

/// Paths without those that lie below others, sorted.
fn outermost(paths: &[String]) -> Vec<String> {
    let mut sorted: Vec<String> = paths.to_vec();
    sorted.sort();
    sorted.dedup();
    if sorted.len() < 2 {
        return sorted;
    }
    let below = |path: &String, parent: &String| {
        let prefix = if parent.ends_with('/') { parent.clone() } else { format!("{parent}/") };
        path != parent && path.starts_with(&prefix)
    };
    let keep: Vec<bool> = sorted.iter().map(|path| !sorted.iter().any(|parent| below(path, parent))).collect();
    sorted.into_iter().zip(keep).filter_map(|(path, keep)| keep.then_some(path)).collect()
}

fn joined(parts: impl IntoIterator<Item = String>) -> Digest {
    Digest::of(parts.into_iter().collect::<Vec<_>>().join("\0"))
}

/// The digest of the content digests of several selectors, in their order.
pub fn content(digests: &[Digest]) -> Digest {
    joined(digests.iter().map(Digest::to_string))
}

fn input_index(input: i64, count: usize, what: &str) -> Result<usize, OpError> {
    usize::try_from(input)
        .ok()
        .filter(|&input| input < count)
        .ok_or_else(|| OpError::Invalid(format!("invalid input index {input} in {what} with {count} inputs")))
}
