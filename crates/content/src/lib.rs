//! The content store: blobs by digest, ingests that fill by ranges, leases that keep both from the collector.
//!
//! A blob appears by one rename, after its bytes were verified and synced: what [`ContentStore::info`] finds is whole
//! and right. See [`Local`] for the form on disk.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod disk;
mod error;
mod fetch;
mod ingest;
mod lease;
mod local;
mod ranges;
mod reader;
mod writer;

use std::collections::BTreeMap;

use async_trait::async_trait;
use castor_oci::{Descriptor, Digest};

pub use error::Error;
pub use fetch::{FetchError, fetch};
pub use ingest::Ingest;
pub use lease::{Lease, Leases, Resource};
pub use local::{Collected, IngestInfo, Local, Usage};
pub use ranges::RangeSet;
pub use reader::Blob;
pub use writer::Writer;

/// Labels of a blob or lease.
pub type Labels = BTreeMap<String, String>;

/// Prefix of the labels by which one blob keeps others: the value is a digest. Containerd's spelling.
pub const LABEL_GC_REF: &str = "containerd.io/gc.ref.content";

/// What is known of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its labels.
    pub labels: Labels,
    /// When it was committed, nanoseconds since the epoch.
    pub created: i128,
}

/// What happens when bytes become a blob.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// Labels to set; those that the blob has already stay.
    pub labels: Labels,
    /// The lease that holds the blob from its first moment on.
    pub lease: Option<String>,
}

/// Blobs by digest.
#[async_trait]
pub trait ContentStore: Send + Sync + 'static {
    /// What is known of the blob, `None` if it is not here.
    async fn info(&self, digest: &Digest) -> Result<Option<Info>, Error>;

    /// [`info`](Self::info), with the labels and the lease of `commit` given to the blob if it is here: it cannot be collected
    /// in between.
    async fn hold(&self, digest: &Digest, commit: &Commit) -> Result<Option<Info>, Error>;

    /// The blob, opened; stays readable when it is deleted meanwhile.
    async fn open(&self, digest: &Digest) -> Result<Blob, Error>;

    /// The ingest named `reference`, resumed where it was or begun; `expected` says what it will become.
    async fn ingest(&self, reference: &str, expected: &Descriptor) -> Result<Ingest, Error>;

    /// Bytes on disk of the ingest `reference`; 0 if there is none.
    async fn ingest_space(&self, reference: &str) -> Result<u64, Error>;

    /// Drops the ingest `reference` and its bytes, if there is one, also where it is open. Returns the bytes on disk that
    /// this freed.
    async fn discard(&self, reference: &str) -> Result<u64, Error>;

    /// A writer that appends and hashes as it goes; begins anew each time.
    async fn writer(&self) -> Result<Writer, Error>;

    /// Deletes the blob; one that is not here is an error.
    async fn delete(&self, digest: &Digest) -> Result<(), Error>;

    /// All blobs, by digest.
    async fn walk(&self) -> Result<Vec<Info>, Error>;

    /// Sets labels; an empty value removes one. Returns the blob as it is then.
    async fn set_labels(&self, digest: &Digest, labels: &Labels) -> Result<Info, Error>;

    /// Removes what neither a lease nor `roots` hold. A store that somebody else collects does nothing.
    async fn collect(&self, roots: &[Resource]) -> Result<Collected, Error> {
        let _ = roots;
        Ok(Collected::default())
    }
}
