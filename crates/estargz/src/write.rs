//! Writing eStargz.

use std::io::{self, Read, Write};

use castor_archive::tar::TarError;
use castor_oci::Digest;

/// How an eStargz blob is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// gzip level 0 to 9; `None` is the default (6).
    pub level: Option<u32>,
    /// Uncompressed size at which files are cut into chunks.
    pub chunk_size: u64,
    /// Threads that compress; the bytes do not depend on it.
    pub threads: usize,
    /// Files to be fetched first, in this order: they and their parents are moved to the front, followed by a
    /// landmark. `None` keeps the tar as it is, byte for byte, and writes no landmark.
    pub prioritized: Option<Vec<Vec<u8>>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { level: None, chunk_size: 4 << 20, threads: 1, prioritized: None }
    }
}

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob.
    pub size: u64,
    /// Digest of the uncompressed blob, TOC included.
    pub diff_id: Digest,
    /// Size of the uncompressed blob, TOC included.
    pub uncompressed_size: u64,
    /// Digest of the TOC.
    pub toc_digest: Digest,
}

/// Why a blob cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The tar cannot be read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The tar has an entry that a TOC stands under.
    #[error("cannot convert to eStargz: the layer has an entry called {0:?}")]
    Reserved(String),
    /// A level that gzip does not have.
    #[error("invalid eStargz compression level {0}: want 0 to 9")]
    Level(u32),
    /// Input or output failed.
    #[error("write eStargz layer")]
    Io(#[from] io::Error),
}

/// Makes eStargz blobs.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    options: Options,
}

impl Builder {
    /// A builder with these options.
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    /// Converts a tar to an eStargz blob.
    pub fn build(&self, tar: impl Read, out: &mut dyn Write) -> Result<Built, BuildError> {
        let _ = (tar, out, &self.options);
        todo!()
    }
}
