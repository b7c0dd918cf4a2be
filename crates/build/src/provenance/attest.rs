//! What a client wants attested: the options `attest:…` of its build.

use std::collections::BTreeMap;

use castor_frontend::SbomOptions;

/// Why attestations cannot be made as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AttestError {
    /// A kind that nobody knows.
    #[error("unknown attestation type {0:?}")]
    Kind(String),
    /// What a bill of materials is to be made by is no image.
    #[error("{0}")]
    Sbom(String),
    /// A version of SLSA that nobody knows.
    #[error("invalid provenance SLSA version: {0}")]
    Version(String),
    /// No version.
    #[error("provenance SLSA version cannot be empty")]
    NoVersion,
    /// A mode that nobody knows.
    #[error("invalid mode {0:?}")]
    Mode(String),
    /// A flag that is neither true nor false.
    #[error("failed to parse {0} flag {1:?}")]
    Flag(&'static str, String),
    /// The attributes are no CSV.
    #[error("failed to parse {0}: unterminated quote")]
    Csv(String),
}

/// Which form of SLSA's predicate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Slsa {
    /// v1.
    #[default]
    V1,
    /// v0.2.
    V02,
}

impl Slsa {
    /// The predicate's type.
    pub(crate) fn predicate_type(self) -> &'static str {
        match self {
            Self::V1 => "https://slsa.dev/provenance/v1",
            Self::V02 => "https://slsa.dev/provenance/v0.2",
        }
    }
}

/// How provenance is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Provenance {
    /// The form.
    pub(crate) version: Slsa,
    /// With the definition, the source files, arguments and names of secrets.
    pub(crate) max: bool,
    /// The client says that the build is reproducible.
    pub(crate) reproducible: bool,
    /// Only for images.
    pub(crate) inline_only: bool,
    /// Fail where something that went in cannot be named.
    pub(crate) complete_materials: bool,
    /// Who builds, as the client wants it named.
    pub(crate) builder_id: String,
    /// The file's name where results leave as files.
    pub(crate) filename: String,
}

impl Default for Provenance {
    fn default() -> Self {
        Self {
            version: Slsa::V1,
            max: true,
            reproducible: false,
            inline_only: false,
            complete_materials: false,
            builder_id: String::new(),
            filename: "provenance.json".into(),
        }
    }
}

/// What is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// Provenance, if it is wanted.
    pub(crate) provenance: Option<Provenance>,
    /// A bill of materials, if it is wanted.
    pub(crate) sbom: Option<SbomOptions>,
}

impl Wishes {
    /// Reads the options of a build.
    pub(crate) fn of(options: &BTreeMap<String, String>) -> Result<Self, AttestError> {
        let mut wishes = Self::default();
        for (key, value) in options {
            let Some(kind) = key.strip_prefix("attest:").or_else(|| key.strip_prefix("build-arg:BUILDKIT_ATTEST_"))
            else {
                continue;
            };
            match kind.to_ascii_lowercase().as_str() {
                "provenance" => wishes.provenance = Some(provenance(value)?),
                "sbom" => wishes.sbom = Some(sbom(value)?),
                kind => return Err(AttestError::Kind(kind.to_owned())),
            }
        }
        Ok(wishes)
    }

    /// Who builds, as the client wants it named; for the record of a build, whatever else was wanted.
    pub(crate) fn builder_id(&self) -> &str {
        self.provenance.as_ref().map_or("", |provenance| &provenance.builder_id)
    }
}

fn sbom(text: &str) -> Result<SbomOptions, AttestError> {
    let fields = csv_fields(text).ok_or_else(|| AttestError::Csv("sbom".into()))?;
    let attributes = fields.iter().map(|field| field.split_once('=').unwrap_or((field.as_str(), "")));
    SbomOptions::new(attributes).map_err(|error| AttestError::Sbom(error.message))
}

fn provenance(text: &str) -> Result<Provenance, AttestError> {
    let mut provenance = Provenance::default();
    for field in csv_fields(text).ok_or_else(|| AttestError::Csv("provenance".into()))? {
        let (key, value) = field.split_once('=').unwrap_or((field.as_str(), ""));
        match key {
            "version" => {
                provenance.version = match value {
                    "v1" => Slsa::V1,
                    "v0.2" => Slsa::V02,
                    "" => return Err(AttestError::NoVersion),
                    other => return Err(AttestError::Version(other.to_owned())),
                }
            }
            "mode" => {
                provenance.max = match value {
                    "min" => false,
                    "max" | "full" => true,
                    other => return Err(AttestError::Mode(other.to_owned())),
                }
            }
            "reproducible" => provenance.reproducible = flag("reproducible", value)?,
            "complete-materials" => provenance.complete_materials = flag("complete-materials", value)?,
            // What is no truth value here counts as no, in BuildKit too.
            "inline-only" => provenance.inline_only = truth(value).unwrap_or(false),
            "builder-id" => value.clone_into(&mut provenance.builder_id),
            "filename" => value.clone_into(&mut provenance.filename),
            // `capture-usage` asks for samples of what steps used, which castor does not take; others say nothing to
            // BuildKit either.
            _ => {}
        }
    }
    Ok(provenance)
}

fn flag(name: &'static str, value: &str) -> Result<bool, AttestError> {
    truth(value).ok_or_else(|| AttestError::Flag(name, value.to_owned()))
}

/// A truth value as Go reads it.
fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The fields of one line of CSV; none where a quote does not end.
pub(crate) fn csv_fields(line: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    if line.is_empty() {
        return Some(fields);
    }
    let (mut field, mut quoted) = (String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    fields.push(field);
    (!quoted).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(key: &str, value: &str) -> Result<Wishes, AttestError> {
        Wishes::of(&[(key.to_owned(), value.to_owned()), ("target".to_owned(), "x".to_owned())].into())
    }

    #[test]
    fn what_buildx_asks_for_by_default_is_understood() {
        let asked = wishes("attest:provenance", "mode=min,inline-only=true").unwrap().provenance.unwrap();
        assert!(!asked.max && asked.inline_only && asked.version == Slsa::V1);
        let full = wishes("build-arg:BUILDKIT_ATTEST_PROVENANCE", "").unwrap().provenance.unwrap();
        assert_eq!(full, Provenance::default());
        let quoted = wishes("attest:provenance", "\"builder-id=a,b\",version=v0.2").unwrap();
        assert_eq!(quoted.builder_id(), "a,b");
        assert_eq!(wishes("x", "").unwrap(), Wishes::default());
    }

    #[test]
    fn bad_wishes_are_named() {
        for (key, value, word) in [
            ("attest:sbom", "generator=", "generator"),
            ("attest:sbom", "\"generator=x", "quote"),
            ("attest:vibes", "", "vibes"),
            ("attest:provenance", "mode=huge", "huge"),
            ("attest:provenance", "version=v9", "v9"),
            ("attest:provenance", "version=", "empty"),
            ("attest:provenance", "reproducible=perhaps", "perhaps"),
            ("attest:provenance", "\"mode=min", "quote"),
        ] {
            let error = wishes(key, value).unwrap_err().to_string();
            assert!(error.contains(word), "{key}={value}: {error}");
        }
    }
}
