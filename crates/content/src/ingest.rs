//! Ingests: blobs in the making, filled by ranges in any order.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use castor_oci::Digest;

use crate::{Commit, Error, Info};

/// A blob in the making: a sparse file and the set of ranges that are in it. Survives a restart with what was there at the
/// last [`checkpoint`](Self::checkpoint). Clones are the same ingest.
#[derive(Debug, Clone)]
pub struct Ingest {
    inner: Arc<()>,
}

impl Ingest {
    /// Its name.
    pub fn reference(&self) -> &str {
        let _ = &self.inner;
        todo!()
    }

    /// The digest it is to have.
    pub fn digest(&self) -> Digest {
        todo!()
    }

    /// The size it is to have.
    pub fn size(&self) -> u64 {
        todo!()
    }

    /// Writes `bytes` at `offset` and marks them present. Blocks on the file.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let _ = (offset, bytes);
        todo!()
    }

    /// [`write_at`](Self::write_at) off the runtime's threads.
    pub async fn write(&self, offset: u64, bytes: Bytes) -> Result<(), Error> {
        let _ = (offset, bytes);
        todo!()
    }

    /// Fills `buf` from `offset`; all of it must be present. Blocks on the file.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let _ = (buf, offset);
        todo!()
    }

    /// The parts of `range` that are not here.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let _ = range;
        todo!()
    }

    /// Bytes that are here.
    pub fn present(&self) -> u64 {
        todo!()
    }

    /// Makes what is here now survive a crash: syncs the file, then records the ranges. Blocks on the file.
    pub fn checkpoint(&self) -> Result<(), Error> {
        todo!()
    }

    /// Gives the space of `range` back; its bytes are missing afterwards. Blocks on the file.
    pub fn punch(&self, range: Range<u64>) -> Result<(), Error> {
        let _ = range;
        todo!()
    }

    /// Verifies size and digest and makes it a blob. When the digest is wrong, all its bytes are dropped: the ingest is
    /// empty and can be filled anew.
    pub async fn commit(&self, commit: Commit) -> Result<Info, Error> {
        let _ = commit;
        todo!()
    }

    /// Drops it and its bytes.
    pub async fn discard(&self) -> Result<(), Error> {
        todo!()
    }
}
