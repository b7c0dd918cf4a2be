//! What can go wrong in the store.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use castor_layerfs::LayerError;
use castor_snapshot::SnapshotError;

/// Why something could not be done with a ref.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No such record.
    #[error("record {0} does not exist")]
    NotFound(String),
    /// A writable record is in use by somebody else.
    #[error("record {0} is locked")]
    Locked(String),
    /// A record is not of the kind that is needed.
    #[error("record {id} is not {wanted}")]
    Kind {
        /// The record.
        id: String,
        /// What it would have to be.
        wanted: &'static str,
    },
    /// A layer failed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A snapshot failed.
    #[error(transparent)]
    Snapshot(Arc<SnapshotError>),
    /// The database failed.
    #[error("store records: {0}")]
    Database(#[from] castor_metadb::Error),
    /// Content failed.
    #[error("store content: {0}")]
    Content(String),
    /// A stored record cannot be understood.
    #[error("record {id} is damaged: {reason}")]
    Damaged {
        /// The record.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// A file could not be used.
    #[error("{verb} {path}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// A path is not there; reads as BuildKit says it.
    #[error("failed to calculate checksum of ref {record}: {path:?}: not found")]
    PathNotFound {
        /// The record.
        record: String,
        /// The path, as it was looked for.
        path: String,
    },
    /// A pattern or path cannot be used.
    #[error("failed to calculate checksum of ref {record}: {reason}")]
    Checksum {
        /// The record.
        record: String,
        /// What is wrong.
        reason: String,
    },
    /// A filter cannot be parsed.
    #[error(transparent)]
    Filter(#[from] crate::FilterError),
    /// Nobody wants it any more.
    #[error("context canceled")]
    Cancelled,
}

impl From<SnapshotError> for StoreError {
    fn from(error: SnapshotError) -> Self {
        Self::Snapshot(Arc::new(error))
    }
}

impl StoreError {
    pub(crate) fn io(verb: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { verb, path: path.into(), source: Arc::new(source) }
    }
}
