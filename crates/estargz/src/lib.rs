//! Lazily pullable layers: gzip or zstd layers that carry a table of contents (TOC).
//!
//! Reading needs three steps, each of which takes bytes and does no IO of its own:
//!
//! 1. [`footer::parse`] the end of the blob (or [`annotation::toc_location`] of the descriptor): where the TOC is;
//! 2. [`toc::decode`] the compressed TOC to its bytes, check their digest, and [`Toc::parse`] them: the tree and
//!    where each chunk of each file is;
//! 3. [`chunk::decode`] a chunk from its place in the blob, verified.
//!
//! [`open()`] does the first two over a [`ReadAt`]. Understood are stargz (CRFS), eStargz with the TOC inside or
//! apart, and the flavours of zstd:chunked. [`Builder`] writes eStargz.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod annotation;
pub mod chunk;
pub mod footer;
mod member;
pub mod open;
pub mod toc;
mod write;

pub use annotation::TocDigests;
pub use castor_archive::ReadAt;
pub use chunk::ChunkError;
pub use footer::{Footer, FooterError, TocLocation};
pub use open::{Opened, open, tar_of};
pub use toc::{Chunk, FileData, Landmark, Toc, TocError};
pub use write::{BuildError, Builder, Built, Options, Prioritized, prioritize};

/// Name of the TOC's tar entry.
pub const TOC_NAME: &str = "stargz.index.json";
/// Name of the entry that ends what should be fetched first.
pub const PREFETCH_LANDMARK: &str = ".prefetch.landmark";
/// Name of the entry that says: nothing should be fetched first.
pub const NO_PREFETCH_LANDMARK: &str = ".no.prefetch.landmark";

/// The codec of a lazily pullable layer's members (gzip) or frames (zstd).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}
