//! A streaming reader.

use std::io::{self, Read};

use super::header::Header;

/// Bounds of what a reader accepts.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of PAX records or of a GNU long name before one entry.
    pub extension: u64,
    /// Entries.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { extension: 1 << 20, entries: 20_000_000 }
    }
}

/// Why a tar cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// A header that is no header, or contradicts itself.
    #[error("invalid tar header at offset {offset}: {what}")]
    Malformed {
        /// Where the header starts in the stream.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Something that this reader refuses by name.
    #[error("unsupported tar entry {path:?}: {what}")]
    Unsupported {
        /// Its name.
        path: String,
        /// What it is.
        what: String,
    },
    /// A limit was passed.
    #[error("tar exceeds the limit of {limit} {what}")]
    Limit {
        /// The limit.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// The stream failed or ended early.
    #[error("read tar at offset {offset}")]
    Io {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
}

/// Reads a tar entry by entry: [`next`](Self::next) gives a header, and until it is called again the reader
/// itself (`Read`) gives that entry's data.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
}

impl<R: Read> Reader<R> {
    /// Reads from `input`, which should be buffered.
    pub fn new(input: R) -> Self {
        Self::with_limits(input, Limits::default())
    }

    /// The same with bounds of one's own.
    pub fn with_limits(input: R, limits: Limits) -> Self {
        let _ = limits;
        Self { input }
    }

    /// The next entry, or `None` at the end of the archive. Data of the entry before that was not read is skipped.
    #[expect(clippy::should_implement_trait, reason = "entries borrow the reader, which no Iterator can")]
    pub fn next(&mut self) -> Result<Option<Header>, TarError> {
        todo!()
    }

    /// Offset in the stream of the entry's first header block (PAX and GNU headers belong to the entry).
    pub fn header_offset(&self) -> u64 {
        todo!()
    }

    /// Offset in the stream of the entry's data.
    pub fn data_offset(&self) -> u64 {
        todo!()
    }

    /// The input, positioned after the blocks that ended the archive.
    pub fn into_inner(self) -> R {
        self.input
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.input.read(buf)
    }
}
