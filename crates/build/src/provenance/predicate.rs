//! SLSA's predicates, in the form and with the fields that BuildKit writes.

use std::collections::BTreeMap;

use bytes::Bytes;
use castor_llb::Definition;
use castor_oci::Platform;
use castor_progress::Timestamp;
use serde::Serialize;

use super::attest::{Provenance, Slsa};
use super::capture::{Capture, commit_digest, digest_set, redacted};
use super::purl;
use super::steps::{BuildConfig, Everything, Source};
use super::trail::ImageSource;

const BUILD_TYPE_V1: &str = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILD_TYPE_V02: &str = "https://mobyproject.org/buildkit@v1";
/// The behaviour of clients that name none, and all that castor has.
const COMPATIBILITY: i32 = 30;
/// The frontend whose version is told.
const DOCKERFILE: &str = "dockerfile.v0";

/// Digests by algorithm.
pub(crate) type DigestSet = BTreeMap<String, String>;

/// A secret, or an agent, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NamedAccess {
    pub(crate) id: String,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) optional: bool,
}

/// A directory of the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LocalDir {
    name: String,
}

/// Where the definition of the build comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ConfigSource {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) uri: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) digest: DigestSet,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) path: String,
}

/// What was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Parameters {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) frontend: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) args: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) secrets: Vec<NamedAccess>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ssh: Vec<NamedAccess>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) locals: Vec<LocalDir>,
    /// By the name of an input, what made it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) inputs: BTreeMap<String, RequestProvenance>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) root: Option<Box<RequestProvenance>>,
    #[serde(rename = "compatibilityVersion", skip_serializing_if = "is_zero")]
    pub(crate) compatibility: i32,
}

/// A request and where its sources are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct RequestProvenance {
    #[serde(rename = "configSource")]
    pub(crate) config_source: ConfigSource,
    pub(crate) request: Parameters,
}

impl Parameters {
    /// Leaves out what a short statement does not tell; whether anything was.
    fn scrub(&mut self) -> bool {
        let before = self.args.len();
        self.args.retain(|key, _| !key.starts_with("build-arg:") && !key.starts_with("label:"));
        self.secrets.clear();
        self.ssh.clear();
        let below = self.inputs.values_mut().chain(self.root.as_deref_mut());
        // All of them, whatever the first one had.
        let scrubbed = below.filter_map(|below| below.request.scrub().then_some(())).count();
        scrubbed > 0 || self.args.len() < before
    }
}

/// What a predicate says beyond what was captured.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Names the build.
    pub(crate) invocation: String,
    /// When it began.
    pub(crate) started: Timestamp,
    /// The daemon's platform.
    pub(crate) builder: Platform,
    /// The version of the builtin frontend.
    pub(crate) dockerfile: &'static str,
}

/// Something that went in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Material {
    #[serde(skip_serializing_if = "String::is_empty")]
    uri: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    digest: DigestSet,
}

/// What a build's metadata tells beyond SLSA.
#[derive(Debug, Clone, Default, Serialize)]
struct BuildkitMetadata {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    vcs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
}

/// A statement about one result. The same facts in either form.
#[derive(Debug, Clone)]
pub(crate) struct Predicate {
    version: Slsa,
    builder_id: String,
    config_source: ConfigSource,
    request: Parameters,
    config: Option<BuildConfig>,
    builder: String,
    dockerfile: &'static str,
    materials: Vec<Material>,
    invocation: String,
    started: String,
    metadata: BuildkitMetadata,
    hermetic: bool,
    complete_request: bool,
    complete_materials: bool,
    reproducible: bool,
}

impl Predicate {
    /// A statement about the result of `definition`, of which `capture` is known, as `wanted`.
    pub(crate) fn new(capture: &Capture, definition: &Definition, wanted: &Provenance, facts: &Facts) -> Self {
        let (config_source, args) = capture.config_source(capture.request.args.clone());
        let (vcs, args): (BTreeMap<_, _>, BTreeMap<_, _>) =
            args.into_iter().partition(|(key, _)| key.starts_with("vcs:"));
        let mut request = Parameters { args, ..capture.request.clone() };
        request.locals = capture.local.iter().map(|name| LocalDir { name: name.clone() }).collect();
        request.compatibility = COMPATIBILITY;
        let complete_materials = !capture.incomplete && capture.local.is_empty();
        let mut complete_request = !request.frontend.is_empty();
        let mut metadata = BuildkitMetadata { vcs: version_control(vcs), source: None };
        let mut config = None;
        if wanted.max {
            let everything = Everything::of(&definition.to_pb());
            metadata.source = everything.source;
            config = Some(everything.config);
        } else if request.scrub() {
            complete_request = false;
        }
        Self {
            version: wanted.version,
            builder_id: wanted.builder_id.clone(),
            config_source,
            dockerfile: if request.frontend == DOCKERFILE { facts.dockerfile } else { "" },
            request,
            config,
            builder: facts.builder.clone().normalize().to_string(),
            materials: materials(capture),
            invocation: facts.invocation.clone(),
            started: facts.started.to_string(),
            metadata,
            hermetic: complete_materials && !capture.network,
            complete_request,
            complete_materials,
            reproducible: wanted.reproducible,
        }
    }

    /// Its type.
    pub(crate) fn kind(&self) -> &'static str {
        self.version.predicate_type()
    }

    /// Whether everything that went in is named.
    pub(crate) fn names_all_materials(&self) -> bool {
        self.complete_materials
    }

    /// The statement, of a build that ended at `finished`.
    pub(crate) fn to_json(&self, finished: Timestamp) -> Bytes {
        let finished = finished.to_string();
        // Texts, numbers and maps with text keys always serialise.
        let text = match self.version {
            Slsa::V1 => serde_json::to_string_pretty(&self.v1(&finished)).expect("predicates serialise"),
            Slsa::V02 => serde_json::to_string_pretty(&self.v02(&finished)).expect("predicates serialise"),
        };
        text.into()
    }

    fn v1<'a>(&'a self, finished: &'a str) -> v1::Predicate<'a> {
        v1::Predicate {
            build_definition: v1::BuildDefinition {
                build_type: BUILD_TYPE_V1,
                resolved_dependencies: &self.materials,
                external_parameters: v1::External { config_source: &self.config_source, request: &self.request },
                internal_parameters: v1::Internal {
                    build_config: self.config.as_ref(),
                    builder_platform: &self.builder,
                    dockerfile_version: self.dockerfile,
                },
            },
            run_details: v1::RunDetails {
                builder: v1::Builder { id: &self.builder_id },
                metadata: v1::Metadata {
                    invocation_id: &self.invocation,
                    started_on: &self.started,
                    finished_on: finished,
                    buildkit_metadata: &self.metadata,
                    hermetic: self.hermetic,
                    completeness: v1::Completeness {
                        request: self.complete_request,
                        resolved_dependencies: self.complete_materials,
                    },
                    reproducible: self.reproducible,
                },
            },
        }
    }

    fn v02<'a>(&'a self, finished: &'a str) -> v02::Predicate<'a> {
        v02::Predicate {
            builder: v1::Builder { id: &self.builder_id },
            build_type: BUILD_TYPE_V02,
            materials: &self.materials,
            invocation: v02::Invocation {
                config_source: v02::ConfigSource {
                    uri: &self.config_source.uri,
                    digest: &self.config_source.digest,
                    entry_point: &self.config_source.path,
                },
                parameters: &self.request,
                environment: v02::Environment { platform: &self.builder, dockerfile_version: self.dockerfile },
            },
            build_config: self.config.as_ref(),
            metadata: v02::Metadata {
                invocation_id: &self.invocation,
                started_on: &self.started,
                finished_on: finished,
                completeness: v02::Completeness {
                    parameters: self.complete_request,
                    environment: true,
                    materials: self.complete_materials,
                },
                reproducible: self.reproducible,
                buildkit_metadata: &self.metadata,
                hermetic: self.hermetic,
            },
        }
    }
}

fn version_control(args: BTreeMap<String, String>) -> BTreeMap<String, String> {
    args.into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| {
            let key = key.trim_start_matches("vcs:").to_owned();
            let value = if key == "source" { redacted(&value) } else { value };
            (key, value)
        })
        .collect()
}

fn materials(capture: &Capture) -> Vec<Material> {
    let image = |image: &ImageSource, blob: bool| {
        let kind = if image.local { "oci" } else { "docker" };
        // The reference was one when the image was brought in.
        let uri = purl::of_image(kind, &image.reference, image.platform.as_ref(), blob)?;
        Some(Material { uri, digest: image.digest.map(|digest| digest_set(&digest.to_string())).unwrap_or_default() })
    };
    let mut materials: Vec<Material> = capture.images.iter().filter_map(|source| image(source, false)).collect();
    materials.extend(capture.blobs.iter().filter_map(|source| image(source, true)));
    materials
        .extend(capture.git.iter().map(|(url, commit)| Material { uri: url.clone(), digest: commit_digest(commit) }));
    materials
        .extend(capture.http.iter().map(|(url, digest)| Material { uri: url.clone(), digest: digest_set(digest) }));
    materials
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(value: &i32) -> bool {
    *value == 0
}

/// Version 1's form. Fields stand in the order in which BuildKit writes them.
mod v1 {
    use serde::Serialize;

    use super::{BuildConfig, BuildkitMetadata, ConfigSource, Material, Parameters, is_false};

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Predicate<'a> {
        pub(super) build_definition: BuildDefinition<'a>,
        pub(super) run_details: RunDetails<'a>,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct BuildDefinition<'a> {
        pub(super) build_type: &'a str,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        pub(super) resolved_dependencies: &'a [Material],
        pub(super) external_parameters: External<'a>,
        pub(super) internal_parameters: Internal<'a>,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct External<'a> {
        pub(super) config_source: &'a ConfigSource,
        pub(super) request: &'a Parameters,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Internal<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) build_config: Option<&'a BuildConfig>,
        pub(super) builder_platform: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        pub(super) dockerfile_version: &'a str,
    }

    #[derive(Serialize)]
    pub(super) struct RunDetails<'a> {
        pub(super) builder: Builder<'a>,
        pub(super) metadata: Metadata<'a>,
    }

    #[derive(Serialize)]
    pub(super) struct Builder<'a> {
        pub(super) id: &'a str,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Metadata<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        pub(super) invocation_id: &'a str,
        pub(super) started_on: &'a str,
        pub(super) finished_on: &'a str,
        #[serde(rename = "buildkit_metadata")]
        pub(super) buildkit_metadata: &'a BuildkitMetadata,
        #[serde(rename = "buildkit_hermetic", skip_serializing_if = "is_false")]
        pub(super) hermetic: bool,
        #[serde(rename = "buildkit_completeness")]
        pub(super) completeness: Completeness,
        #[serde(rename = "buildkit_reproducible", skip_serializing_if = "is_false")]
        pub(super) reproducible: bool,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Completeness {
        pub(super) request: bool,
        pub(super) resolved_dependencies: bool,
    }
}

/// Version 0.2's form.
mod v02 {
    use serde::Serialize;

    use super::{BuildConfig, BuildkitMetadata, DigestSet, Material, Parameters, is_false, v1};

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Predicate<'a> {
        pub(super) builder: v1::Builder<'a>,
        pub(super) build_type: &'a str,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        pub(super) materials: &'a [Material],
        pub(super) invocation: Invocation<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) build_config: Option<&'a BuildConfig>,
        pub(super) metadata: Metadata<'a>,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Invocation<'a> {
        pub(super) config_source: ConfigSource<'a>,
        pub(super) parameters: &'a Parameters,
        pub(super) environment: Environment<'a>,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct ConfigSource<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        pub(super) uri: &'a str,
        #[serde(skip_serializing_if = "DigestSet::is_empty")]
        pub(super) digest: &'a DigestSet,
        #[serde(skip_serializing_if = "str::is_empty")]
        pub(super) entry_point: &'a str,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Environment<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        pub(super) dockerfile_version: &'a str,
        pub(super) platform: &'a str,
    }

    #[derive(Serialize)]
    pub(super) struct Metadata<'a> {
        #[serde(rename = "buildInvocationID", skip_serializing_if = "str::is_empty")]
        pub(super) invocation_id: &'a str,
        #[serde(rename = "buildStartedOn")]
        pub(super) started_on: &'a str,
        #[serde(rename = "buildFinishedOn")]
        pub(super) finished_on: &'a str,
        pub(super) completeness: Completeness,
        pub(super) reproducible: bool,
        #[serde(rename = "https://mobyproject.org/buildkit@v1#metadata")]
        pub(super) buildkit_metadata: &'a BuildkitMetadata,
        #[serde(rename = "https://mobyproject.org/buildkit@v1#hermetic", skip_serializing_if = "is_false")]
        pub(super) hermetic: bool,
    }

    #[derive(Serialize)]
    pub(super) struct Completeness {
        pub(super) parameters: bool,
        pub(super) environment: bool,
        pub(super) materials: bool,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn facts() -> Facts {
        Facts {
            invocation: "id".into(),
            started: Timestamp::UNIX_EPOCH,
            builder: "linux/amd64".parse().unwrap(),
            dockerfile: "1.2.3",
        }
    }

    fn capture() -> Capture {
        let mut capture = Capture::default();
        capture.request.frontend = DOCKERFILE.into();
        capture.request.args = [
            ("build-arg:A", "secret"),
            ("target", "t"),
            ("vcs:source", "https://u:p@host/x"),
            ("vcs:revision", ""),
            ("filename", "Dockerfile"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        capture.request.secrets = vec![NamedAccess { id: "key".into(), optional: true }];
        capture.local.insert("context".into());
        capture.network = true;
        capture.images.push(ImageSource {
            reference: "docker.io/library/a:1".into(),
            platform: Some("linux/amd64".parse().unwrap()),
            digest: Some(castor_oci::Digest::of("a")),
            local: false,
        });
        capture
    }

    fn json(wanted: &Provenance) -> Value {
        let predicate = Predicate::new(&capture(), &Definition::default(), wanted, &facts());
        serde_json::from_slice(&predicate.to_json(Timestamp::UNIX_EPOCH)).unwrap()
    }

    #[test]
    fn a_short_statement_tells_no_arguments_and_no_secrets() {
        let digest = castor_oci::Digest::of("a").to_string();
        let want = json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE_V1,
                "resolvedDependencies": [
                    {"uri": "pkg:docker/a@1?platform=linux%2Famd64", "digest": {"sha256": digest.split_once(':').unwrap().1}}
                ],
                "externalParameters": {
                    "configSource": {"path": "Dockerfile"},
                    "request": {
                        "frontend": "dockerfile.v0",
                        "args": {"target": "t"},
                        "locals": [{"name": "context"}],
                        "compatibilityVersion": 30,
                    },
                },
                "internalParameters": {"builderPlatform": "linux/amd64", "dockerfileVersion": "1.2.3"},
            },
            "runDetails": {
                "builder": {"id": ""},
                "metadata": {
                    "invocationId": "id",
                    "startedOn": "1970-01-01T00:00:00Z",
                    "finishedOn": "1970-01-01T00:00:00Z",
                    "buildkit_metadata": {"vcs": {"source": "https://xxxxx:xxxxx@host/x"}},
                    "buildkit_completeness": {"request": false, "resolvedDependencies": false},
                },
            },
        });
        assert_eq!(json(&Provenance { max: false, ..Provenance::default() }), want);
    }

    #[test]
    fn a_long_one_tells_them() {
        let json = json(&Provenance { version: Slsa::V02, builder_id: "me".into(), ..Provenance::default() });
        assert_eq!(json["invocation"]["parameters"]["secrets"], json!([{"id": "key", "optional": true}]));
        assert_eq!(json["invocation"]["parameters"]["args"]["build-arg:A"], "secret");
        assert_eq!(json["metadata"]["completeness"]["parameters"], true);
        assert_eq!((&json["builder"]["id"], &json["buildConfig"]), (&json!("me"), &json!({})));
    }
}
