//! Writing blobs front to back.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use bytes::Bytes;
use castor_metadb::Batch;
use castor_oci::{Digest, Hasher};

use crate::disk::{Disk, blocking};
use crate::ingest::Scratch;
use crate::{Commit, Error, Info};

/// Appends bytes, hashing as it goes; dropped without a commit, it leaves nothing. Also a blocking [`std::io::Write`].
#[derive(Debug)]
pub struct Writer {
    disk: Arc<Disk>,
    /// `None` only while [`append`](Self::append) has lent it to a blocking thread.
    open: Option<Open>,
    size: u64,
}

#[derive(Debug)]
struct Open {
    file: BufWriter<File>,
    hasher: Hasher,
    // Behind the file: removed after it is closed.
    scratch: Scratch,
}

impl Open {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn name(&self) -> String {
        self.scratch.path.display().to_string()
    }
}

fn lost() -> io::Error {
    io::Error::other("an earlier write to it was cancelled or failed")
}

impl Writer {
    pub(crate) fn new(disk: &Arc<Disk>) -> Result<Self, Error> {
        let (path, file) = disk.writer_file()?;
        let scratch = Scratch { path, published: false };
        let file = BufWriter::with_capacity(256 << 10, file);
        Ok(Self { disk: Arc::clone(disk), open: Some(Open { file, hasher: Hasher::new(), scratch }), size: 0 })
    }

    /// Appends `bytes` off the runtime's threads. If the future is dropped or fails, the writer is of no use any more.
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), Error> {
        let mut open = self.open.take().ok_or_else(|| Error::io("write", "content")(lost()))?;
        let length = bytes.len() as u64;
        let open = blocking(move || {
            open.write(&bytes).map_err(Error::io("write", open.name()))?;
            Ok(open)
        })
        .await?;
        self.open = Some(open);
        self.size += length;
        Ok(())
    }

    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Makes it a blob; `expected` is what digest and size must be, where they are known.
    pub async fn commit(self, expected: Option<(Digest, u64)>, commit: Commit) -> Result<Info, Error> {
        blocking(move || self.commit_blocking(expected, &commit)).await
    }

    /// [`commit`](Self::commit) for callers on a blocking thread.
    pub fn commit_blocking(self, expected: Option<(Digest, u64)>, commit: &Commit) -> Result<Info, Error> {
        let open = self.open.ok_or_else(|| Error::io("write", "content")(lost()))?;
        let name = open.name();
        let Open { file, hasher, mut scratch } = open;
        let file = file.into_inner().map_err(|e| Error::io("write", &name)(e.into_error()))?;
        let found = hasher.finish();
        if let Some((wanted, size)) = expected {
            let reference = format!("content {wanted}");
            if size != self.size {
                return Err(Error::SizeMismatch { reference, digest: wanted, found: self.size, wanted: size });
            }
            if wanted != found {
                return Err(Error::DigestMismatch { reference, found, wanted });
            }
        }
        file.sync_all().map_err(Error::io("sync", &name))?;
        let info = self.disk.publish(&scratch.path, found, self.size, commit, Batch::new())?;
        scratch.published = true;
        Ok(info)
    }
}

impl Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.open.as_mut().ok_or_else(lost)?.write(buf)?;
        self.size += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
