//! Why a result could not leave.

use std::sync::Arc;

use castor_blobs::BlobError;
use castor_oci::Digest;
use castor_store::StoreError;

use crate::document::ConfigError;
use crate::{InlineError, OptionError, ResultError};

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// Attributes are not accepted.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The result is not of the form.
    #[error(transparent)]
    Result(#[from] ResultError),
    /// A frontend's image config is malformed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A statement is no JSON.
    #[error("failed to marshal attestation: {0}")]
    Attestation(#[source] serde_json::Error),
    /// Two statements have the same file.
    #[error("duplicate attestation path name {0}")]
    SameAttestation(String),
    /// Cache records could not be made.
    #[error(transparent)]
    Inline(#[from] InlineError),
    /// A layer has no blob.
    #[error(transparent)]
    Blob(#[from] Arc<BlobError>),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A blob was not pushed.
    #[error("failed to push {reference}: layer {digest}: {source}")]
    PushBlob {
        /// Where to.
        reference: String,
        /// The blob.
        digest: Digest,
        /// Why.
        source: Box<castor_registry::Error>,
    },
    /// A manifest was not pushed.
    #[error("failed to push {reference}: {source}")]
    PushManifest {
        /// Where to.
        reference: String,
        /// Why.
        source: Box<castor_registry::Error>,
    },
    /// A push without a name to push to.
    #[error("image name is required for push")]
    NoName,
    /// The client did not take the result.
    #[error("{0}")]
    Client(String),
    /// The result's files could not be read.
    #[error("read result: {0}")]
    Read(#[from] std::io::Error),
    /// The build was cancelled.
    #[error("context canceled")]
    Cancelled,
}
