//! Archives of layers: tar as Go's `archive/tar` writes it, read from anyone, the codecs around it, and
//! the listing that one layer's entries are normalised into.
//!
//! * [`tar`]: headers, a streaming reader and a writer whose bytes equal BuildKit's;
//! * [`codec`]: gzip, zstd, bzip2 and xz streams, told apart by their first bytes;
//! * [`hashing`]: readers and writers that digest and count what flows through them;
//! * [`layer`]: whiteout names and the other conventions of a layer tar;
//! * [`listing`]: entries of a layer, from a tar or from a table of contents, as one clean tree;
//! * [`ReadAt`]: random access to a blob.
//!
//! Nothing here opens a file or a socket, and whatever is read is treated as hostile: sizes, counts and
//! depths are bounded, and malformed input is an error, never a panic.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod codec;
pub mod hashing;
pub mod layer;
pub mod listing;
pub mod names;
pub mod ordered;
mod pgzip;
pub mod read_at;
pub mod tar;
pub mod xattrs;

pub use codec::{Codec, CodecError, Compression, Encoder, decompress};
pub use hashing::{HashingReader, HashingWriter};
pub use listing::Listing;
pub use read_at::ReadAt;

/// A point in time: seconds since 1970 and the nanoseconds that follow them (also before 1970).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds since 1970-01-01T00:00:00Z, rounded towards the past.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// A time of whole seconds.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self { seconds, nanoseconds: 0 }
    }

    /// A time from seconds and nanoseconds.
    pub const fn new(seconds: i64, nanoseconds: u32) -> Self {
        Self { seconds, nanoseconds }
    }
}
