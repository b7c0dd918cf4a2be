//! Why a blob cannot be made.

use castor_archive::CodecError;
use castor_estargz::BuildError;
use castor_oci::Digest;
use castor_snapshot::SnapshotError;
use castor_store::StoreError;
use castor_task::Aborted;

/// Why a blob cannot be made or had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The content store failed.
    #[error(transparent)]
    Content(#[from] castor_content::Error),
    /// Snapshots could not be compared.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The codec failed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// eStargz could not be written.
    #[error(transparent)]
    Estargz(#[from] BuildError),
    /// A blob is not in the form that its descriptor says.
    #[error("decompress layer {layer}: {source}")]
    Decompress {
        /// The layer.
        layer: Digest,
        /// What is wrong.
        source: std::io::Error,
    },
    /// A blob could not be written.
    #[error("write layer: {0}")]
    Write(#[from] std::io::Error),
    /// Neither the image nor the layer says what it contains.
    #[error("layer {layer} of {image} has no diff ID")]
    NoDiffId {
        /// The image.
        image: String,
        /// The layer.
        layer: Digest,
    },
    /// The work was cut off.
    #[error(transparent)]
    Aborted(#[from] Aborted),
}
