//! What frontends and scanners attest: files and directories of refs, read into statements.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use castor_mount::{Root, RootError};
use castor_solver::Cx;
use castor_store::{ImmutableRef, StoreError};
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde_json::Value;

use crate::{Attestation, StatementSubject};

/// The largest file.
const MAX_BYTES: u64 = 40 << 20;
/// The most files of a directory, and all of their bytes.
const MAX_FILES: usize = 1000;
const MAX_BUNDLE: u64 = 160 << 20;
/// What only the daemon says.
const PROVENANCE: &str = "https://slsa.dev/provenance/";
/// The type of bills of materials.
const SPDX: &str = "https://spdx.dev/Document";

/// What a frontend attests of a result, where it can be read.
#[derive(Debug, Clone)]
pub struct Claim {
    /// A directory of whole statements, rather than a file with a predicate.
    pub bundle: bool,
    /// Where it is; `None` is an empty file system.
    pub reference: Option<ImmutableRef>,
    /// Its path there.
    pub path: String,
    /// The predicate's type; of a bundle, that of all of its statements, or empty for any.
    pub predicate_type: String,
    /// What it is about.
    pub subjects: Vec<StatementSubject>,
    /// For images only.
    pub inline_only: bool,
    /// How the file is called, up to its first dot, that is the bill of materials of the result itself.
    pub core: Option<String>,
}

/// Why a claim cannot become statements. The words are BuildKit's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// A file without a path.
    #[error("attestation does not have set path")]
    NoPath,
    /// Nothing to read.
    #[error("attestation does not have available content")]
    NoContent,
    /// Provenance is the daemon's to state.
    #[error("frontend may not set provenance attestations")]
    Provenance,
    /// The same, in a bundle.
    #[error("frontend may not bundle provenance attestations")]
    BundledProvenance,
    /// A statement of another kind than the bundle is said to have.
    #[error("bundle entry {found} does not match required predicate type {wanted}")]
    Kind {
        /// The statement's.
        found: String,
        /// The bundle's.
        wanted: String,
    },
    /// No statement.
    #[error("cannot decode in-toto statement: {path}: {source}")]
    Statement {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Too much of it.
    #[error("{path} exceeds {limit} {unit}")]
    Large {
        /// The file or directory.
        path: String,
        /// How much there may be.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// A file could not be read.
    #[error("cannot read in-toto attestation: {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is not there.
    #[error("cannot read in-toto attestation: {0}")]
    Open(#[from] RootError),
    /// Its file system could not be mounted.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A statement of in-toto's form, as far as it is looked into.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(default)]
    predicate_type: String,
    #[serde(default)]
    subject: Option<Vec<Subject>>,
    #[serde(default)]
    predicate: Value,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    name: String,
    #[serde(default)]
    digest: Option<BTreeMap<String, String>>,
}

/// Reads what was attested of one platform's result: the bill of materials of the result itself first, then everything else
/// in its order.
pub async fn read_claims(cx: &Cx, claims: Vec<Claim>) -> Result<Vec<Attestation>, ClaimError> {
    let (mut first, mut others) = (Vec::new(), Vec::new());
    for claim in claims {
        if !claim.bundle && claim.path.is_empty() {
            return Err(ClaimError::NoPath);
        }
        if !claim.bundle && claim.predicate_type.starts_with(PROVENANCE) {
            return Err(ClaimError::Provenance);
        }
        let reference = claim.reference.as_ref().ok_or(ClaimError::NoContent)?;
        let mounting = match reference.is_scratch() {
            true => return Err(ClaimError::NoContent),
            false => reference.mount(cx).await?,
        };
        let core = claim.core.clone();
        // The files of a lazy layer come as they are read.
        let read = castor_task::reading(move || read(&Root::open(mounting.path())?, &claim)).await?;
        for attestation in read {
            let is_first = core.as_deref().is_some_and(|core| stem(&attestation.path) == core);
            if is_first { first.push(attestation) } else { others.push(attestation) }
        }
    }
    first.append(&mut others);
    Ok(first)
}

/// A name up to its first dot.
fn stem(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

/// Reads one claim. Blocks.
fn read(root: &Root, claim: &Claim) -> Result<Vec<Attestation>, ClaimError> {
    if !claim.bundle {
        let predicate = bytes(root.open_file(&claim.path)?, &claim.path)?;
        let kind = claim.predicate_type.clone();
        return Ok(vec![attestation(claim, claim.path.clone(), kind, predicate.into(), claim.subjects.clone())]);
    }
    let mut all = Vec::new();
    let mut total = 0;
    for name in names(root, &claim.path)? {
        let path = Path::new(&claim.path).join(&name);
        let shown = path.display().to_string();
        let content = bytes(root.open_file(&path)?, &shown)?;
        total += content.len() as u64;
        if total > MAX_BUNDLE {
            return Err(ClaimError::Large { path: claim.path.clone(), limit: MAX_BUNDLE, unit: "bytes" });
        }
        let bad = |source| ClaimError::Statement { path: shown.clone(), source };
        let statement: Statement = serde_json::from_slice(&content).map_err(bad)?;
        let kind = statement.predicate_type;
        if !claim.predicate_type.is_empty() && kind != claim.predicate_type {
            return Err(ClaimError::Kind { found: kind, wanted: claim.predicate_type.clone() });
        }
        if kind.starts_with(PROVENANCE) {
            return Err(ClaimError::BundledProvenance);
        }
        // Written again, so that equal statements are equal bytes.
        let predicate = serde_json::to_vec(&statement.predicate).map_err(bad)?;
        let subject = |subject: Subject| StatementSubject::Other(subject.name, subject.digest.unwrap_or_default());
        let subjects = statement.subject.into_iter().flatten().map(subject).collect();
        all.push(attestation(claim, shown, kind, predicate.into(), subjects));
    }
    Ok(all)
}

fn attestation(
    claim: &Claim,
    path: String,
    predicate_type: String,
    predicate: Bytes,
    subjects: Vec<StatementSubject>,
) -> Attestation {
    let base = path.rsplit('/').next().unwrap_or_default();
    let is_core = predicate_type == SPDX && claim.core.as_deref().is_some_and(|core| stem(base) == core);
    Attestation { predicate_type, predicate, path, inline_only: claim.inline_only, subjects, is_core }
}

/// The names in the directory `path`, in order.
fn names(root: &Root, path: &str) -> Result<Vec<PathBuf>, ClaimError> {
    let shown = if path.is_empty() { "/" } else { path };
    let failed = |source| ClaimError::Read { path: shown.to_owned(), source };
    let directory = root.open_at(shown, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd())).map_err(failed)? {
        names.push(PathBuf::from(entry.map_err(failed)?.file_name()));
        if names.len() > MAX_FILES {
            return Err(ClaimError::Large { path: shown.to_owned(), limit: MAX_FILES as u64, unit: "files" });
        }
    }
    names.sort();
    Ok(names)
}

fn bytes(file: File, path: &str) -> Result<Vec<u8>, ClaimError> {
    let mut content = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut content);
    read.map_err(|source| ClaimError::Read { path: path.to_owned(), source })?;
    match content.len() as u64 > MAX_BYTES {
        true => Err(ClaimError::Large { path: path.to_owned(), limit: MAX_BYTES, unit: "bytes" }),
        false => Ok(content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(bundle: bool, path: &str, kind: &str) -> Claim {
        Claim {
            bundle,
            reference: None,
            path: path.into(),
            predicate_type: kind.into(),
            subjects: Vec::new(),
            inline_only: false,
            core: Some("sbom".into()),
        }
    }

    fn files(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn a_bundle_is_its_statements() {
        let (_dir, root) = files(&[
            ("b/sbom.spdx.json", r#"{"predicateType":"https://spdx.dev/Document","predicate":{"b":1,"a":"<"}}"#),
            (
                "b/a.json",
                r#"{"predicateType":"https://x/","subject":[{"name":"n","digest":{"sha1":"12"}}],"predicate":null}"#,
            ),
        ]);
        let read = read(&root, &claim(true, "/b", "")).unwrap();
        let shown: Vec<_> = read.iter().map(|one| (one.path.as_str(), &one.predicate[..], one.is_core)).collect();
        assert_eq!(shown, [("/b/a.json", &b"null"[..], false), ("/b/sbom.spdx.json", br#"{"a":"<","b":1}"#, true)]);
        let digests = BTreeMap::from([("sha1".to_owned(), "12".to_owned())]);
        assert_eq!(read[0].subjects, [StatementSubject::Other("n".into(), digests)]);
    }

    #[test]
    fn what_is_no_statement_is_refused() {
        let (dir, root) = files(&[
            ("p/p.json", r#"{"predicateType":"https://slsa.dev/provenance/v1","predicate":{}}"#),
            ("two/t.json", r#"{"predicateType":"https://x/"} {}"#),
            ("d/d/x.json", "{}"),
        ]);
        let error = |path: &str, kind: &str| read(&root, &claim(true, path, kind)).unwrap_err().to_string();
        assert_eq!(error("p", ""), "frontend may not bundle provenance attestations");
        let mismatch = "bundle entry https://slsa.dev/provenance/v1 does not match required predicate type https://y/";
        assert_eq!(error("p", "https://y/"), mismatch);
        assert!(error("two", "").starts_with("cannot decode in-toto statement: two/t.json: "));
        assert!(error("d", "").contains("not a regular file"), "{}", error("d", ""));
        assert!(error("none", "").contains("none"));
        // A link leads nowhere but into the root.
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        assert!(read(&root, &claim(true, "link", "")).is_err());
        let large = File::create(dir.path().join("large.json")).unwrap();
        large.set_len(MAX_BYTES + 1).unwrap();
        let error = read(&root, &claim(false, "large.json", "https://x/")).unwrap_err();
        assert_eq!(error.to_string(), "large.json exceeds 41943040 bytes");
    }
}
