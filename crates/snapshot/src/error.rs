//! What can go wrong with snapshots.

use std::io;
use std::path::PathBuf;

use castor_layerfs::LayerError;
use castor_mount::MountError;

use crate::traits::SnapshotId;

/// Why something could not be done with a snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// No such snapshot.
    #[error("snapshot {0} does not exist")]
    NotFound(SnapshotId),
    /// There is one of this name, and it is another.
    #[error("snapshot {0} exists already")]
    Exists(SnapshotId),
    /// It is of the wrong kind for this.
    #[error("snapshot {id} is {actual}, want {wanted}")]
    Kind {
        /// The snapshot.
        id: SnapshotId,
        /// What it is.
        actual: &'static str,
        /// What it would have to be.
        wanted: &'static str,
    },
    /// A layer failed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A file of castor's state or of the snapshot could not be used.
    #[error("{verb} {path}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// State could not be read or kept.
    #[error("store state: {0}")]
    State(String),
    /// The layer's tar stream could not be written.
    #[error("write layer: {0}")]
    Write(io::Error),
}

impl SnapshotError {
    pub(crate) fn io(verb: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { verb, path: path.into(), source }
    }
}
