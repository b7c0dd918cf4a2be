//! Errors of the content store.

use std::sync::Arc;

use castor_oci::Digest;

/// Why the content store did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The blob is not here.
    #[error("content {0}: not found")]
    NotFound(Digest),
    /// The bytes written are not the blob that was to be.
    #[error("commit {reference}: unexpected digest {found}, want {wanted}")]
    DigestMismatch {
        /// The ingest.
        reference: String,
        /// What was written.
        found: Digest,
        /// What was wanted.
        wanted: Digest,
    },
    /// The length is not what was to be.
    #[error("commit {reference} ({digest}): unexpected size {found}, want {wanted}")]
    SizeMismatch {
        /// The ingest.
        reference: String,
        /// What was wanted.
        digest: Digest,
        /// Bytes there are.
        found: u64,
        /// Bytes wanted.
        wanted: u64,
    },
    /// Not all bytes are here.
    #[error("commit {reference} ({digest}): {missing} of {size} bytes are missing")]
    Incomplete {
        /// The ingest.
        reference: String,
        /// What it is to become.
        digest: Digest,
        /// Bytes missing.
        missing: u64,
        /// Bytes in all.
        size: u64,
    },
    /// Bytes outside of the ingest were written or read, or bytes that are not here were read.
    #[error("ingest {reference}: bytes {start}..{end} are {why}")]
    Range {
        /// The ingest.
        reference: String,
        /// First byte.
        start: u64,
        /// Byte behind the last.
        end: u64,
        /// What is wrong with them.
        why: &'static str,
    },
    /// The ingest was committed or discarded.
    #[error("ingest {reference} is {state}")]
    Ended {
        /// The ingest.
        reference: String,
        /// What it is.
        state: &'static str,
    },
    /// An ingest of that name is to become something else.
    #[error("ingest {reference} is of {found}, not of {wanted}")]
    OtherContent {
        /// The ingest.
        reference: String,
        /// What it is of.
        found: Digest,
        /// What was asked for.
        wanted: Digest,
    },
    /// The lease does not exist.
    #[error("lease {0:?}: not found")]
    NoLease(String),
    /// The lease exists already.
    #[error("lease {0:?}: already exists")]
    LeaseExists(String),
    /// Reading or writing a file failed.
    #[error("{action} {what}: {cause}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which blob, ingest or path.
        what: String,
        /// What the system said.
        cause: Arc<std::io::Error>,
    },
    /// The database failed.
    #[error(transparent)]
    Database(#[from] castor_metadb::Error),
    /// A record in the database cannot be read.
    #[error("record of {what} is damaged: {detail}")]
    Damaged {
        /// Which one.
        what: String,
        /// What is wrong.
        detail: String,
    },
}

impl Error {
    /// Whether it says that something is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_) | Self::NoLease(_))
    }

    pub(crate) fn io(action: &'static str, what: impl ToString) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.to_string();
        move |cause| Self::Io { action, what, cause: Arc::new(cause) }
    }
}
