//! One layer: an object on disk and, while bytes are missing, what fetches them.

use std::sync::Arc;
use std::time::Duration;

use castor_oci::{Descriptor, Digest};

use crate::error::{LayerError, ReadError};
use crate::source::{BlobOpener, LayerId};

/// How a layer came, or comes, to be here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerState {
    /// Mounted before its bytes are here.
    Lazy,
    /// Fetched first, because of `reason`.
    Eager {
        /// Why it is not lazy.
        reason: String,
    },
    /// All its bytes are here.
    Complete,
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Lazy or eager, and why.
    pub state: LayerState,
    /// Compressed bytes fetched by this daemon.
    pub fetched: u64,
    /// Compressed size of the layer.
    pub size: u64,
    /// Requests made.
    pub requests: u64,
    /// Time that readers have waited for it, summed.
    pub waiting: Duration,
    /// Chunks here, of all.
    pub chunks: (u64, u64),
}

/// A layer object in use. Dropping the last handle stops its fetches; the object stays on disk.
#[derive(Debug)]
pub struct Layer {}

impl Layer {
    /// What names it.
    pub fn id(&self) -> LayerId {
        todo!()
    }

    /// Its descriptor, with annotations, as the image named it.
    pub fn descriptor(&self) -> Descriptor {
        todo!()
    }

    /// The repositories that are known to have the blob, and can be asked to mount it across.
    pub fn origins(&self) -> Vec<String> {
        todo!()
    }

    /// How it is here.
    pub fn state(&self) -> LayerState {
        todo!()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        todo!()
    }

    /// Waits until it can be mounted: for a lazy layer at once, for an eager one when all bytes are here and verified.
    pub async fn ready(&self) -> Result<(), LayerError> {
        todo!()
    }

    /// Fetches what is missing, verifies blob digest and diff ID, and commits the blob to the content store.
    pub async fn complete(&self) -> Result<(), LayerError> {
        todo!()
    }

    /// The diff ID, if the tar stream was verified.
    pub fn verified(&self) -> Option<Digest> {
        todo!()
    }

    /// Adds a way to read the blob: another client's credentials, or the first one after a restart.
    pub fn attach(&self, opener: Arc<dyn BlobOpener>) {
        let _ = opener;
        todo!()
    }

    /// Failed reads with a sequence number of at least `since`.
    pub fn errors(&self, since: u64) -> Vec<ReadError> {
        let _ = since;
        todo!()
    }

    /// Takes the recorded failures.
    pub fn take_errors(&self) -> Vec<ReadError> {
        todo!()
    }
}
