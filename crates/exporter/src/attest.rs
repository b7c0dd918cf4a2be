//! What is attested of results, as in-toto's statements: in an image's index, or as files.

use std::collections::BTreeMap;

use castor_oci::{Descriptor, Digest, Platform, Reference, media_type};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::document::{self, Document};
use crate::{Attestation, StatementSubject};

/// The media type of a statement.
const STATEMENT: &str = "application/vnd.in-toto+json";
/// The type of every statement.
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Annotation that says what a statement is about.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// The type of a manifest of statements.
const ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
/// The config of what is no image.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// What it is.
const EMPTY_CONTENT: &str = "{}";
/// The same in base64.
const EMPTY_DATA: &str = "e30=";

/// Something that a statement is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Subject {
    name: String,
    digest: BTreeMap<String, String>,
}

impl Subject {
    pub(crate) fn new(name: impl Into<String>, digest: Digest) -> Self {
        Self { name: name.into(), digest: BTreeMap::from([("sha256".to_owned(), digest.hex().to_string())]) }
    }
}

/// What a statement is about, where `result` is what its result became.
fn subjects(attestation: &Attestation, result: &[Subject]) -> Vec<Subject> {
    if attestation.subjects.is_empty() {
        return result.to_vec();
    }
    let mut subjects = Vec::new();
    for subject in &attestation.subjects {
        match subject {
            StatementSubject::Result(name) => {
                for own in result {
                    subjects.push(own.clone());
                    if !matches!(name.as_str(), "" | "_") {
                        subjects.push(Subject { name: name.clone(), ..own.clone() });
                    }
                }
            }
            StatementSubject::Other(name, digest) => {
                let name = if name.is_empty() { "_" } else { name };
                subjects.push(Subject { name: name.to_owned(), digest: digest.clone() });
            }
        }
    }
    subjects
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Statement<'a> {
    #[serde(rename = "_type")]
    kind: &'static str,
    predicate_type: &'a str,
    subject: &'a [Subject],
    predicate: &'a RawValue,
}

/// The statement, without white space.
fn text(attestation: &Attestation, subjects: &[Subject]) -> serde_json::Result<String> {
    let predicate = match attestation.predicate.is_empty() {
        true => serde_json::value::to_raw_value(&())?,
        false => serde_json::from_slice(&attestation.predicate)?,
    };
    let statement = Statement {
        kind: STATEMENT_TYPE,
        predicate_type: &attestation.predicate_type,
        subject: &self::subjects(attestation, subjects),
        predicate: &predicate,
    };
    Ok(document::compact(&serde_json::to_string(&statement)?))
}

/// The statement in few bytes, as images carry it.
fn compact(attestation: &Attestation, subjects: &[Subject]) -> serde_json::Result<Vec<u8>> {
    Ok(document::escape(text(attestation, subjects)?))
}

/// The statement for a person to read, as files carry it.
pub(crate) fn file(attestation: &Attestation, subjects: &[Subject]) -> serde_json::Result<Vec<u8>> {
    Ok(document::escape(document::indent(&text(attestation, subjects)?)))
}

/// What names an image to others: a package URL, for one platform.
pub(crate) fn package_url(reference: &Reference, platform: &Platform) -> String {
    let familiar = reference.familiar();
    let without_digest = familiar.split('@').next().unwrap_or_default();
    let name = match reference.tag() {
        Some(tag) => without_digest.strip_suffix(tag).and_then(|name| name.strip_suffix(':')).unwrap_or(without_digest),
        None => without_digest,
    };
    let parts: Vec<String> = name.split('/').map(|part| query_escape(part, false)).collect();
    let mut url = format!("pkg:docker/{}", parts.join("/"));
    if let Some(tag) = reference.tag() {
        url.push('@');
        url.push_str(&query_escape(tag, true));
    }
    let mut qualifiers = Vec::new();
    if let Some(digest) = reference.digest() {
        qualifiers.push(format!("digest={}", query_escape(&digest.to_string(), false)));
    }
    let platform = platform.clone().normalize().to_string();
    qualifiers.push(format!("platform={}", query_escape(&platform, false)));
    format!("{url}?{}", qualifiers.join("&"))
}

/// Percent-encoding; a path keeps a few characters more than a query.
fn query_escape(text: &str, path: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b'$' | b'&' | b'+' | b'=' | b':' | b'@' if path => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// A manifest of statements and what it consists of.
#[derive(Debug)]
pub(crate) struct AttestationManifest {
    pub(crate) manifest: Document,
    /// Its config and the statements.
    pub(crate) blobs: Vec<Document>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config<'a> {
    media_type: &'a str,
    digest: Digest,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
    config: Config<'a>,
    layers: Vec<Descriptor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Descriptor>,
}

/// The manifest of what is attested of the image `target`. As an `artifact` it says so, and whose it is; otherwise it looks
/// like an image, for those who know nothing else.
pub(crate) fn manifest(
    attestations: &[&Attestation],
    target: &Descriptor,
    subjects: &[Subject],
    artifact: bool,
) -> serde_json::Result<AttestationManifest> {
    let statements = attestations.iter().map(|attestation| {
        let mut statement = Document::new(STATEMENT, compact(attestation, subjects)?);
        let annotations = &mut statement.descriptor.annotations;
        annotations.insert(PREDICATE_TYPE.to_owned(), attestation.predicate_type.clone());
        Ok(statement)
    });
    let statements: Vec<Document> = statements.collect::<serde_json::Result<_>>()?;
    let layers: Vec<Descriptor> = statements.iter().map(|statement| statement.descriptor.clone()).collect();
    let config = match artifact {
        true => Document::new(EMPTY, EMPTY_CONTENT.as_bytes().to_vec()),
        false => Document::new(media_type::OCI_CONFIG, image_config(&layers)?),
    };
    let bytes = manifest_bytes(&config, layers, target, artifact)?;
    let mut manifest = Document::new(media_type::OCI_MANIFEST, bytes);
    manifest.descriptor.annotations = BTreeMap::from([
        ("vnd.docker.reference.digest".to_owned(), target.digest.to_string()),
        ("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned()),
    ]);
    manifest.descriptor.platform = Some(Platform::new("unknown", "unknown", ""));
    let mut blobs = statements;
    blobs.push(config);
    Ok(AttestationManifest { manifest, blobs })
}

fn manifest_bytes(
    config: &Document,
    layers: Vec<Descriptor>,
    target: &Descriptor,
    artifact: bool,
) -> serde_json::Result<Vec<u8>> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST,
        artifact_type: artifact.then_some(ARTIFACT),
        config: Config {
            media_type: &config.descriptor.media_type,
            digest: config.descriptor.digest,
            size: config.descriptor.size,
            data: artifact.then_some(EMPTY_DATA),
        },
        layers,
        subject: artifact.then(|| Descriptor::new(target.media_type.as_str(), target.digest, target.size)),
    };
    Ok(document::escape(serde_json::to_string_pretty(&manifest)?))
}

/// The config of statements that look like an image's layers.
fn image_config(layers: &[Descriptor]) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Empty {}
    #[derive(Serialize)]
    struct RootFs {
        #[serde(rename = "type")]
        kind: &'static str,
        diff_ids: Vec<Digest>,
    }
    #[derive(Serialize)]
    struct Image {
        architecture: &'static str,
        os: &'static str,
        config: Empty,
        rootfs: RootFs,
    }
    serde_json::to_vec(&Image {
        architecture: "unknown",
        os: "unknown",
        config: Empty {},
        rootfs: RootFs { kind: "layers", diff_ids: layers.iter().map(|layer| layer.digest).collect() },
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn attestation(predicate: &str) -> Attestation {
        Attestation {
            predicate_type: "https://slsa.dev/provenance/v1".into(),
            predicate: Bytes::copy_from_slice(predicate.as_bytes()),
            path: "provenance.json".into(),
            inline_only: false,
            subjects: Vec::new(),
            is_core: false,
        }
    }

    fn statement(digest: &str, size: u64) -> Descriptor {
        let mut layer = Descriptor::new(STATEMENT, digest.parse().unwrap(), size);
        layer.annotations.insert(PREDICATE_TYPE.into(), "https://slsa.dev/provenance/v1".into());
        layer
    }

    #[test]
    fn manifests_of_statements_have_the_bytes_of_buildkits() {
        // The digests are what BuildKit gives for the same statements (golden cases exporter/provenance-min and
        // oci-artifact-false).
        let target = Descriptor::new(
            media_type::OCI_MANIFEST,
            "sha256:50a1a677d51114c3d17363b8645bfa4008e43b652a779a8e71d1878afd5b3867".parse().unwrap(),
            557,
        );
        let layer = statement("sha256:08d60a5036bd4c86543ece9d1ba380250c1baea0faf902455eb196ce4790812c", 797);
        let empty = Document::new(EMPTY, EMPTY_CONTENT.as_bytes().to_vec());
        let bytes = manifest_bytes(&empty, vec![layer], &target, true).unwrap();
        assert_eq!(
            Digest::of(&bytes).to_string(),
            "sha256:d642c84ef18c8366c142253d477d72ce01db721d8761582e42d18c2926679719",
            "{}",
            String::from_utf8_lossy(&bytes)
        );
        let layer = statement("sha256:8e3ca81eaebe3b116dffce91d3ed70166169851c9369e8af43109c70c85f3653", 798);
        let config = Document::new(media_type::OCI_CONFIG, image_config(std::slice::from_ref(&layer)).unwrap());
        assert_eq!(
            config.descriptor.digest.to_string(),
            "sha256:39582c1ad0bcd0e1a784c8414f880f656629fc4fb83d7b23d9dcb7dbaa9952f4"
        );
        let bytes = manifest_bytes(&config, vec![layer], &target, false).unwrap();
        assert_eq!(
            Digest::of(&bytes).to_string(),
            "sha256:3a8a07137781d0581579d6b8dc7fb13d95e2e42acb47bd15d8594a6593bf4792"
        );
    }

    #[test]
    fn a_statement_names_the_image_and_keeps_its_predicate() {
        let target = Descriptor::new(media_type::OCI_MANIFEST, Digest::of("m"), 1);
        let subjects = [Subject::new("a", target.digest)];
        let made = manifest(&[&attestation("{\"b\": \"<x>\",\n \"a\": 1}")], &target, &subjects, true).unwrap();
        let hex = target.digest.hex().to_string();
        assert_eq!(
            String::from_utf8(made.blobs[0].bytes.clone()).unwrap(),
            format!(
                r#"{{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://slsa.dev/provenance/v1","subject":[{{"name":"a","digest":{{"sha256":"{hex}"}}}}],"predicate":{{"b":"\u003cx\u003e","a":1}}}}"#
            )
        );
        assert_eq!(made.manifest.descriptor.annotations["vnd.docker.reference.digest"], target.digest.to_string());
        assert_eq!(made.manifest.descriptor.platform.as_ref().unwrap().to_string(), "unknown/unknown");
        let text = String::from_utf8(file(&attestation("{\"b\":{},\"c\":[1,[]]}"), &[]).unwrap()).unwrap();
        let wanted = "{\n  \"_type\": \"https://in-toto.io/Statement/v1\",\n  \"predicateType\": \
             \"https://slsa.dev/provenance/v1\",\n  \"subject\": [],\n  \"predicate\": {\n    \"b\": {},\n    \
             \"c\": [\n      1,\n      []\n    ]\n  }\n}";
        assert_eq!(text, wanted);
    }

    #[test]
    fn statements_may_be_about_something_else() {
        let own = [Subject::new("a", Digest::of("a")), Subject::new("b", Digest::of("b"))];
        let digests = BTreeMap::from([("sha1".to_owned(), "1234".to_owned())]);
        let named = |subjects: Vec<StatementSubject>| {
            let attestation = Attestation { subjects, ..attestation("{}") };
            subjects_of(&attestation, &own)
        };
        assert_eq!(named(vec![]), ["a", "b"]);
        assert_eq!(named(vec![StatementSubject::Result("x".into())]), ["a", "x", "b", "x"]);
        let other = |name: &str| StatementSubject::Other(name.into(), digests.clone());
        assert_eq!(named(vec![other(""), other("y"), StatementSubject::Result(String::new())]), ["_", "y", "a", "b"]);
        let about = Attestation { subjects: vec![other("y")], ..attestation("{}") };
        assert_eq!(subjects(&about, &own)[0].digest, digests);
    }

    fn subjects_of(attestation: &Attestation, own: &[Subject]) -> Vec<String> {
        subjects(attestation, own).into_iter().map(|subject| subject.name).collect()
    }

    #[test]
    fn images_are_named_as_packages() {
        let url = |name: &str, platform: &str| package_url(&name.parse().unwrap(), &platform.parse().unwrap());
        assert_eq!(url("busybox", "linux/amd64"), "pkg:docker/busybox@latest?platform=linux%2Famd64");
        assert_eq!(
            url("localhost:5000/a/b:v1", "linux/arm64/v8"),
            "pkg:docker/localhost%3A5000/a/b@v1?platform=linux%2Farm64"
        );
    }
}
