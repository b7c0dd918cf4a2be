//! A small key-value store with redb behind it: castor's records, leases and cache keys live in it.
//!
//! Callers see [`KeyValue`]: tables of byte strings, prefix scans, atomic [`Batch`]es. All writes go through one queue
//! and one writer thread, so they are ordered: after a crash the database holds a prefix of what was written, and
//! everything that a [`KeyValue::write`] or [`KeyValue::flush`] returned for. Reads see queued writes at once.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod batch;
mod db;
mod memory;

use async_trait::async_trait;

pub use batch::Batch;
pub use db::{Db, Migration};
pub use memory::Memory;

/// Why the database could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The file was written by a newer castor.
    #[error("open database {path}: its format is {found}, this castor knows formats up to {known}: use a newer castor")]
    TooNew {
        /// The file.
        path: String,
        /// The format it has.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// The file was written by an older castor and nobody said how to migrate it.
    #[error("open database {path}: its format is {found}, this castor wants {wanted} and cannot migrate it")]
    TooOld {
        /// The file.
        path: String,
        /// The format it has.
        found: u32,
        /// The format wanted.
        wanted: u32,
    },
    /// Another process has the file open.
    #[error("open database {path}: another process has it open")]
    Locked {
        /// The file.
        path: String,
    },
    /// Opening, reading or writing failed.
    #[error("{action} database {path}: {cause}")]
    Storage {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: String,
        /// What the storage said.
        cause: String,
    },
    /// The database was closed, or an earlier write failed and no more are taken.
    #[error("database {path} takes no more writes: {cause}")]
    Closed {
        /// The file.
        path: String,
        /// Why.
        cause: String,
    },
}

/// Key and value pairs, in the order of their keys.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Ordered tables of byte strings with atomic batches.
#[async_trait]
pub trait KeyValue: Send + Sync + 'static {
    /// The value under `key` in `table`; a table that was never written is empty.
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, Error>;

    /// All pairs of `table` whose key begins with `prefix`, in key order, as of one moment.
    fn scan_prefix(&self, table: &str, prefix: &[u8]) -> Result<Pairs, Error>;

    /// Applies `batch` atomically and returns once it, and everything queued before it, is durable.
    ///
    /// The batch is queued before the first await: dropping the future does not take it back.
    async fn write(&self, batch: Batch) -> Result<(), Error>;

    /// Queues `batch`: visible to reads at once, durable within about 100 ms, in order with all other writes.
    ///
    /// A failure of the storage shows in the next [`write`](Self::write) or [`flush`](Self::flush).
    fn write_soon(&self, batch: Batch);

    /// Returns once everything queued so far is durable.
    async fn flush(&self) -> Result<(), Error>;
}
