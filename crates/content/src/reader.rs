//! Reading blobs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use castor_oci::Digest;
use futures::stream::{self, BoxStream};

/// A blob, open for reading; clones share the file.
#[derive(Debug, Clone)]
pub struct Blob {
    digest: Digest,
    size: u64,
    file: Arc<File>,
}

impl Blob {
    pub(crate) fn new(digest: Digest, size: u64, file: File) -> Self {
        Self { digest, size, file: Arc::new(file) }
    }

    /// Its digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file behind it; its position means nothing.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Reads into `buf` from `offset`; fewer bytes only at the end. Blocks on the file.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// A [`Read`](io::Read) from `offset` to the end, with its own position. Blocks on the file.
    pub fn reader(&self, offset: u64) -> BlobRead {
        BlobRead { blob: self.clone(), at: offset }
    }

    /// The bytes from `offset` to the end, read off the runtime's threads.
    pub fn stream(&self, offset: u64) -> BoxStream<'static, io::Result<Bytes>> {
        const CHUNK: usize = 256 << 10;
        let blob = self.clone();
        Box::pin(stream::try_unfold(offset, move |at| {
            let blob = blob.clone();
            async move {
                if at >= blob.size {
                    return Ok(None);
                }
                let want = CHUNK.min(usize::try_from(blob.size - at).unwrap_or(CHUNK));
                let read = castor_task::blocking(move || {
                    let mut buf = vec![0; want];
                    let n = blob.read_at(&mut buf, at)?;
                    if n < want {
                        return Err(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            format!("content {} ends at byte {}", blob.digest, at + n as u64),
                        ));
                    }
                    Ok(Bytes::from(buf))
                });
                let bytes = read.await?;
                let next = at + bytes.len() as u64;
                Ok(Some((bytes, next)))
            }
        }))
    }
}

#[async_trait]
impl castor_registry::BlobSource for Blob {
    async fn open(&self) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        Ok(self.stream(0))
    }
}

/// Sequential reading of a [`Blob`].
#[derive(Debug)]
pub struct BlobRead {
    blob: Blob,
    at: u64,
}

impl io::Read for BlobRead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.blob.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
