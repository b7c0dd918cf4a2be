//! tar, as Go's `archive/tar` writes it and as anybody else does.

mod header;
mod reader;
mod sparse;
mod writer;

pub use header::{Header, HeaderError, Kind, Record, XATTR_RECORD_PREFIX};
pub use reader::{Limits, Reader, TarError};
pub use writer::Writer;

/// Unit of a tar: headers are one block, data is padded to blocks.
pub const BLOCK: usize = 512;
