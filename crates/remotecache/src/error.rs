//! Why a cache cannot be exported or imported.

use std::sync::Arc;

use castor_blobs::BlobError;
use castor_oci::Digest;
use castor_session::SessionError;
use castor_solver::CacheError;
use castor_store::StoreError;

use crate::config::ConfigError;

/// Why a cache cannot be exported or imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteCacheError {
    /// A kind of cache that does not exist.
    #[error("unknown cache exporter: {0:?}")]
    UnknownExporter(String),
    /// A kind of cache that does not exist.
    #[error("unknown cache importer: {0}")]
    UnknownImporter(String),
    /// Something of BuildKit's that castor does not do yet.
    #[error("cache {doing} of type {kind:?} is not supported by castor yet")]
    Unsupported {
        /// `export` or `import`.
        doing: &'static str,
        /// The type.
        kind: String,
    },
    /// An attribute is missing, or not of the form.
    #[error("{0}")]
    Attribute(String),
    /// What is to be imported is not to be had.
    #[error("failed to configure {kind} cache importer: {source}")]
    Configure {
        /// The type of the cache.
        kind: &'static str,
        /// Why.
        source: Box<RemoteCacheError>,
    },
    /// What was imported is no cache.
    #[error("invalid cache manifest of {from}: {reason}")]
    Manifest {
        /// Where it is.
        from: String,
        /// What is wrong.
        reason: String,
    },
    /// The config of a cache is malformed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A document is too large to be one.
    #[error("blob {digest} is too large ({size} > {limit})")]
    TooLarge {
        /// The document.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// A layer cannot be read.
    #[error("read layer {digest} of cache {from}: {reason}")]
    Read {
        /// Where it is.
        from: String,
        /// The layer.
        digest: Digest,
        /// Why.
        reason: String,
    },
    /// A blob could not be written.
    #[error("error writing {what}: {reason}")]
    Write {
        /// `layer blob`, `config blob` or `manifest blob`.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] castor_registry::Error),
    /// The client failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The content store failed.
    #[error(transparent)]
    Content(#[from] castor_content::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The local cache could not be read.
    #[error(transparent)]
    Keys(#[from] CacheError),
    /// A result is not to be had.
    #[error("load result {id}: {reason}")]
    Result {
        /// Its id.
        id: String,
        /// Why.
        reason: String,
    },
    /// A result has no blobs.
    #[error(transparent)]
    Blob(#[from] Arc<BlobError>),
    /// The build was cancelled.
    #[error("context canceled")]
    Cancelled,
}
