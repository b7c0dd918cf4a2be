//! What can go wrong with layers.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use castor_oci::Digest;

use crate::source::{FetchError, LayerId};

/// Why a layer or an image tree could not be made or read.
///
/// Clonable, because one failure is told to everybody who waits for the same layer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// Its bytes could not be had.
    #[error("fetch layer {layer} of {image}: {source}")]
    Fetch {
        /// The layer.
        layer: Digest,
        /// The image it belongs to.
        image: String,
        /// Why.
        source: FetchError,
    },
    /// It must be lazy and cannot be.
    #[error("layer {layer} of {image} cannot be lazy, and lazy=require: {reason}")]
    NotLazy {
        /// The layer.
        layer: Digest,
        /// The image it belongs to.
        image: String,
        /// Why it cannot be.
        reason: String,
    },
    /// The bytes are not those that the digest names.
    #[error("verify layer {layer}: {what} is {actual}, want {expected}")]
    Mismatch {
        /// The layer.
        layer: Digest,
        /// What was compared.
        what: &'static str,
        /// The digest found.
        actual: Digest,
        /// The digest wanted.
        expected: Digest,
    },
    /// The content of the layer is not acceptable.
    #[error("unpack layer {layer}: {reason}")]
    Content {
        /// The layer.
        layer: Digest,
        /// Why.
        reason: String,
    },
    /// A file of castor's own state could not be used.
    #[error("{verb} {path}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// A layer object on disk is damaged or of another version; the object is made anew from its origin.
    #[error("layer object {layer}: {reason}")]
    Object {
        /// The layer.
        layer: LayerId,
        /// What is wrong.
        reason: String,
    },
    /// No such layer object.
    #[error("layer {0} is not here")]
    Unknown(LayerId),
    /// The kernel cannot mount layers here.
    #[error("mount image tree: {0}")]
    Mount(String),
    /// State could not be kept.
    #[error("store state: {0}")]
    State(String),
    /// The work was cancelled, or the engine is shutting down.
    #[error("cancelled")]
    Cancelled,
}

impl LayerError {
    /// An error of a file of our own.
    pub(crate) fn io(verb: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { verb, path: path.into(), source: Arc::new(source) }
    }
}

/// A read of a lazy layer that failed: what a build error must name.
#[derive(Debug, Clone)]
pub struct ReadError {
    /// Counts up over the life of the engine, so that a build can ask for what happened since it began.
    pub sequence: u64,
    /// The image.
    pub image: String,
    /// The layer.
    pub layer: Digest,
    /// The file in the layer.
    pub file: String,
    /// Why.
    pub cause: String,
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "read {} in layer {} of {}: {}", self.file, self.layer, self.image, self.cause)
    }
}
