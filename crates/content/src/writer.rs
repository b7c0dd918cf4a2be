//! Writing blobs front to back.

use bytes::Bytes;
use castor_oci::Digest;

use crate::{Commit, Error, Info};

/// Appends bytes, hashing as it goes; dropped without a commit, it leaves nothing. Also a blocking [`std::io::Write`].
#[derive(Debug)]
pub struct Writer {}

impl Writer {
    /// Appends `bytes` off the runtime's threads.
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), Error> {
        let _ = bytes;
        todo!()
    }

    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        todo!()
    }

    /// Makes it a blob; `expected` is what digest and size must be, where they are known.
    pub async fn commit(self, expected: Option<(Digest, u64)>, commit: Commit) -> Result<Info, Error> {
        let _ = (expected, commit);
        todo!()
    }
}

impl std::io::Write for Writer {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let _ = buf;
        todo!()
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
