//! The bridge: what a frontend may ask of the build that it works for.
//!
//! `build` implements [`Bridge`]; the builtin frontends call it directly, external ones and clients through the
//! LLBBridge service of `castor-frontend`. Requests and results are typed; results stay lazy until something looks
//! into them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use castor_llb::op::{HostIp, Mount, NetMode};
use castor_llb::{Definition, ResolveMode};
use castor_oci::{Digest, Platform};
use castor_progress::Warning;
use castor_proto::Any;
use castor_proto::fsutil::Stat;

use crate::Container;

/// What a frontend may ask of its build.
#[async_trait]
pub trait Bridge: Send + Sync + 'static {
    /// Loads a definition, or runs another frontend. Results are lazy unless `request.evaluate`.
    async fn solve(&self, request: SolveRequest) -> Result<SolveResult, BridgeError>;

    /// What is known of a source without bringing it in.
    async fn resolve_source(&self, request: SourceMetaRequest) -> Result<SourceMeta, BridgeError>;

    /// Computes the result.
    async fn evaluate(&self, reference: &LazyRef) -> Result<(), BridgeError>;

    /// Reads a file of a result, or a range of it; computes the result if needed. Fails where there is no such file.
    async fn read_file(&self, reference: &LazyRef, request: ReadFile) -> Result<Bytes, BridgeError>;

    /// Lists a directory of a result.
    async fn read_dir(&self, reference: &LazyRef, request: ReadDir) -> Result<Vec<Stat>, BridgeError>;

    /// What is at a path of a result; links are followed.
    async fn stat_file(&self, reference: &LazyRef, path: &str) -> Result<Stat, BridgeError>;

    /// The latest time of a file in the archive that is at a path of a result, in seconds since 1970; `None` if what is
    /// there is no archive.
    async fn archive_time(&self, reference: &LazyRef, path: &str) -> Result<Option<i64>, BridgeError>;

    /// Runs a frontend that is a program: in a container of its own, on a copy of `root`, until it ends.
    async fn run(&self, root: &LazyRef, program: Program) -> Result<(), BridgeError>;

    /// Prepares a container for processes of the frontend.
    async fn container(&self, request: ContainerRequest) -> Result<Arc<Container>, BridgeError>;

    /// Warns the user.
    fn warn(&self, warning: Warning);

    /// The definitions that the client gave its frontend.
    fn inputs(&self) -> BTreeMap<String, Definition>;

    /// The options of the build, as the client sent them with Control.Solve.
    fn options(&self) -> BTreeMap<String, String>;

    /// The session of the build's client; empty if there is none.
    fn session(&self) -> String;

    /// The workers; the first platform of the first one is what the daemon builds natively.
    fn workers(&self) -> Vec<WorkerInfo>;

    /// Which frontends may run.
    fn frontends(&self) -> FrontendPolicy;
}

/// Which frontends may run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrontendPolicy {
    /// Names of those that may not.
    pub disabled: Vec<String>,
    /// Repositories of images that may be frontends, in full; empty for all.
    pub repositories: Vec<String>,
}

/// A frontend that is a program. It speaks to the build by its standard streams.
pub struct Program {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
    /// Where it starts.
    pub cwd: String,
    /// It gets no network.
    pub no_network: bool,
    /// What it is made of, as it finds it in `/run/config/buildkit/metadata/frontend.bin`.
    pub definition: Bytes,
    /// Its standard input.
    pub stdin: castor_executor::Input,
    /// Its standard output.
    pub stdout: castor_executor::Output,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The environment holds the options of the build.
        f.debug_struct("Program").field("args", &self.args).finish_non_exhaustive()
    }
}

/// A container that a frontend wants.
#[derive(Debug, Clone, Default)]
pub struct ContainerRequest {
    /// What is mounted.
    pub mounts: Vec<ContainerMount>,
    /// Its network.
    pub network: NetMode,
    /// Its host name; empty for the default one.
    pub hostname: String,
    /// More lines for `/etc/hosts`.
    pub extra_hosts: Vec<HostIp>,
}

/// A mount of a container.
#[derive(Debug, Clone)]
pub struct ContainerMount {
    /// Where, and how.
    pub mount: Mount,
    /// The result that is shown; without one, an empty directory.
    pub reference: Option<LazyRef>,
}

/// A sub-build: either `definition` or `frontend`.
#[derive(Debug, Clone, Default)]
pub struct SolveRequest {
    /// What to build; `None` or an empty one without `frontend` is the empty result.
    pub definition: Option<Definition>,
    /// The frontend that makes the definition; empty if there is one already.
    pub frontend: String,
    /// The frontend's options.
    pub options: BTreeMap<String, String>,
    /// The frontend's inputs.
    pub inputs: BTreeMap<String, Definition>,
    /// Caches to look into.
    pub cache_imports: Vec<CacheImport>,
    /// Compute the result before answering.
    pub evaluate: bool,
}

/// A cache to look into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheImport {
    /// `registry`, `local` and so on.
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// What a frontend made.
#[derive(Debug, Clone, Default)]
pub struct SolveResult {
    /// The results.
    pub refs: Refs,
    /// Facts about them, image configurations among them.
    pub metadata: BTreeMap<String, Bytes>,
    /// What the frontend attests of them, by the platform of the result.
    pub attestations: BTreeMap<String, Vec<Attested>>,
}

impl SolveResult {
    /// All refs that are not scratch, those that attestations are in among them.
    pub fn all_refs(&self) -> impl Iterator<Item = &LazyRef> {
        let attested = self.attestations.values().flatten().filter_map(|one| one.reference.as_ref());
        self.refs.iter().chain(attested)
    }
}

/// What a frontend attests of a result. The statements themselves are files of a ref, read when the result leaves.
#[derive(Debug, Clone, Default)]
pub struct Attested {
    /// A directory with whole statements of in-toto's form, rather than a file with a predicate.
    pub bundle: bool,
    /// What BuildKit's parts tell each other of it: `reason`, `sbom-core`, `inline-only`.
    pub metadata: BTreeMap<String, Bytes>,
    /// Where the file or the directory is.
    pub reference: Option<LazyRef>,
    /// Its path there.
    pub path: String,
    /// The predicate's type; of a bundle, that of all statements in it, or empty for any.
    pub predicate_type: String,
    /// What the predicate is about; nothing means the result.
    pub subjects: Vec<AttestedSubject>,
}

/// What a predicate is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestedSubject {
    /// The result itself, whatever it becomes, and not what the digests name.
    pub is_result: bool,
    /// A name for it; empty for none.
    pub name: String,
    /// Its digests, as the frontend gave them.
    pub digests: Vec<String>,
}

/// The refs of a result. A ref that is `None` is scratch.
#[derive(Debug, Clone)]
pub enum Refs {
    /// One result.
    Single(Option<LazyRef>),
    /// One for each platform.
    Map(BTreeMap<String, Option<LazyRef>>),
}

impl Default for Refs {
    fn default() -> Self {
        Self::Single(None)
    }
}

impl Refs {
    /// All refs that are not scratch.
    pub fn iter(&self) -> impl Iterator<Item = &LazyRef> {
        let (single, map) = match self {
            Self::Single(single) => (Some(single), None),
            Self::Map(map) => (None, Some(map)),
        };
        single.into_iter().chain(map.into_iter().flat_map(BTreeMap::values)).flatten()
    }
}

/// A result that need not have been computed: a checked definition and a name that only this build knows.
#[derive(Clone)]
pub struct LazyRef(Arc<Lazy>);

struct Lazy {
    id: String,
    definition: Definition,
    graph: Arc<castor_llb::Graph>,
}

impl LazyRef {
    /// A result of `graph`, which is what `definition` decodes to. `id` must be unguessable: who knows it may read.
    pub fn new(id: String, definition: Definition, graph: Arc<castor_llb::Graph>) -> Self {
        Self(Arc::new(Lazy { id, definition, graph }))
    }

    /// Names it within the build.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// What makes it.
    pub fn definition(&self) -> &Definition {
        &self.0.definition
    }

    /// What makes it, decoded.
    pub fn graph(&self) -> &Arc<castor_llb::Graph> {
        &self.0.graph
    }
}

impl fmt::Debug for LazyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LazyRef").field(&self.0.id).finish()
    }
}

/// A question about a source.
#[derive(Debug, Clone, Default)]
pub struct SourceMetaRequest {
    /// Its identifier, `docker-image://...`.
    pub identifier: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
    /// The platform wanted; the daemon's own if `None`.
    pub platform: Option<Platform>,
    /// Name of the vertex that the look-up is shown as; empty gives a default one.
    pub log_name: String,
    /// When to ask the registry.
    pub resolve_mode: ResolveMode,
    /// The image's configuration is not wanted.
    pub no_config: bool,
    /// The commit itself is wanted too.
    pub git_objects: bool,
}

/// What is known of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceMeta {
    /// The source to use.
    pub identifier: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
    /// For images.
    pub image: Option<ImageMeta>,
    /// For git repositories.
    pub git: Option<GitMeta>,
    /// For files of web servers.
    pub http: Option<HttpMeta>,
}

/// What is known of a git repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitMeta {
    /// What the reference names: a commit or a tag.
    pub checksum: String,
    /// The reference in full.
    pub reference: String,
    /// The commit, where a tag is named.
    pub commit_checksum: String,
    /// The commit as it is stored, if that was asked for.
    pub commit_object: Bytes,
    /// The tag as it is stored.
    pub tag_object: Bytes,
}

/// What is known of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpMeta {
    /// Its digest.
    pub checksum: String,
    /// Its name.
    pub filename: String,
    /// When it was last modified, seconds since 1970.
    pub last_modified: Option<i64>,
}

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageMeta {
    /// Digest of what the reference names: of the index if there is one.
    pub digest: Digest,
    /// The image configuration of the platform wanted; empty if not wanted.
    pub config: Bytes,
}

/// Which part of which file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadFile {
    /// The file.
    pub path: String,
    /// Where to start.
    pub offset: u64,
    /// How much; `None` is all.
    pub length: Option<u64>,
}

/// Which part of which directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadDir {
    /// The directory.
    pub path: String,
    /// Only names that match; empty is all.
    pub include_pattern: String,
}

/// Who builds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Names it.
    pub id: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What it builds, its own platform first.
    pub platforms: Vec<Platform>,
}

/// A failure, as clients see it: a gRPC code, a message, and typed details in their wire form, so that what a client
/// sent comes back unchanged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct BridgeError {
    /// The gRPC code.
    pub code: i32,
    /// The message.
    pub message: String,
    /// BuildKit's error details (`castor_proto::errdefs`).
    pub details: Vec<Any>,
}

/// gRPC codes that bridges use.
pub mod code {
    /// Cancelled by somebody.
    pub const CANCELLED: i32 = 1;
    /// Anything.
    pub const UNKNOWN: i32 = 2;
    /// The request makes no sense.
    pub const INVALID_ARGUMENT: i32 = 3;
    /// There is no such thing.
    pub const NOT_FOUND: i32 = 5;
    /// Something is there already.
    pub const ALREADY_EXISTS: i32 = 6;
    /// castor does not do this.
    pub const UNIMPLEMENTED: i32 = 12;
}

impl BridgeError {
    /// An error with a code.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new() }
    }

    /// An error without a particular code.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(code::UNKNOWN, message)
    }

    /// A feature that castor does not have.
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(code::UNIMPLEMENTED, message)
    }

    /// The same with `prefix: ` before the message.
    #[must_use]
    pub fn context(mut self, prefix: impl fmt::Display) -> Self {
        self.message = format!("{prefix}: {}", self.message);
        self
    }

    /// The same with another detail.
    #[must_use]
    pub fn with_detail(mut self, detail: Any) -> Self {
        self.details.push(detail);
        self
    }
}
