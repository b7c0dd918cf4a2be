//! What a conversion asks from outside.

use async_trait::async_trait;
use castor_llb::{Definition, OnlySource, ResolveMode};
use castor_oci::{Digest, Platform};

/// Why a look-up failed; shown to users after the name of what was looked up.
pub type LookupError = Box<dyn std::error::Error + Send + Sync>;

/// An image whose config is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLookup {
    /// The reference, complete (host, repository, tag or digest).
    pub reference: String,
    /// For which platform.
    pub platform: Option<Platform>,
    /// When to ask the registry.
    pub mode: ResolveMode,
    /// Name of the vertex that shows the look-up.
    pub log_name: String,
    /// Set if the image is in an OCI layout of the client.
    pub oci_layout: Option<OciLayoutLookup>,
}

/// Where in the client an OCI layout is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciLayoutLookup {
    /// The session to ask.
    pub session: String,
    /// The store in it.
    pub store: String,
}

/// An image's config.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// The reference, perhaps another one than asked for (mirrors and policies may change it).
    pub reference: String,
    /// Digest of the manifest or index, if it is known.
    pub digest: Option<Digest>,
    /// The config document.
    pub config: Vec<u8>,
}

/// A context whose `.dockerignore` is wanted.
#[derive(Debug, Clone)]
pub enum IgnoreLookup {
    /// The main context. If a `<Dockerfile>.dockerignore` was found beside the Dockerfile, that is the answer;
    /// otherwise build `source` and read `.dockerignore` in it.
    Main {
        /// Makes a directory with the file in it, if it exists.
        source: Definition,
    },
    /// A named context: build `source`, which must succeed, and read `.dockerignore` in it.
    Named {
        /// Makes a directory with the file in it, if it exists.
        source: Definition,
    },
}

/// A `.dockerignore`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IgnoreFile {
    /// Its name, for messages.
    pub name: String,
    /// Its text.
    pub data: Vec<u8>,
}

/// A source that is asked when it was made.
#[derive(Debug, Clone)]
pub struct TimeLookup {
    /// The source.
    pub source: OnlySource,
    /// Name of the vertex that shows the look-up.
    pub log_name: String,
}

/// Answers the questions of a conversion.
#[async_trait]
pub trait MetaResolver: Send + Sync {
    /// The config of an image. Called for the images that the target needs, all at once.
    async fn image_config(&self, image: &ImageLookup) -> Result<ResolvedImage, LookupError>;

    /// When a source was made, in seconds since 1970: a commit's time; when a web server's file was last modified, or, if
    /// that is not said and it is an archive, the latest time of a file in it. `None` if it has no time.
    async fn source_time(&self, source: &TimeLookup) -> Result<Option<i64>, LookupError>;

    /// The `.dockerignore` of a context; `None` if there is none.
    async fn ignore_file(&self, context: &IgnoreLookup) -> Result<Option<IgnoreFile>, LookupError>;
}
