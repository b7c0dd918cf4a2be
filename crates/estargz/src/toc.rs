//! The table of contents.

use std::ops::Range;

use castor_archive::Listing;
use castor_archive::listing::{InodeId, ListingError};
use castor_oci::Digest;

use crate::Codec;
use crate::annotation::TocDigest;
use crate::footer::TocLocation;

/// A piece of a file's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Offset in the blob of the gzip member or zstd frame that holds it.
    pub offset: u64,
    /// Offset in the blob that it ends before, at the latest: fetch up to here.
    pub end: u64,
    /// Uncompressed bytes between `offset` and the chunk's first.
    pub inner_offset: u64,
    /// Offset in the file.
    pub file_offset: u64,
    /// Uncompressed length, not 0.
    pub size: u64,
    /// What it is verified by. `None`: nothing but the digest of the whole file.
    pub digest: Option<Digest>,
    /// The chunk is all zeros and not to be fetched.
    pub zeros: bool,
}

/// The data of a regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileData {
    /// Its chunks, without gap or overlap: positions in [`Toc::chunks`]. Empty for an empty file.
    pub chunks: Range<u32>,
    /// Digest of the whole file.
    pub digest: Option<Digest>,
}

/// What a layer wants to be fetched first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landmark {
    /// It does not say.
    None,
    /// Nothing.
    NoPrefetch,
    /// All that lies before this offset of the blob.
    Prefetch {
        /// The offset.
        end: u64,
    },
}

/// A table of contents.
#[derive(Debug, Clone)]
pub struct Toc {
    /// The tree. The tag of a regular file's inode is its position in `files`; other tags mean nothing.
    pub listing: Listing,
    /// Data of regular files, in the order of the TOC.
    pub files: Vec<FileData>,
    /// All chunks, in the order of the TOC (which is that of the blob in all but odd layers).
    pub chunks: Vec<Chunk>,
    /// What should be fetched first.
    pub landmark: Landmark,
    /// Digest of the bytes that were parsed.
    pub digest: Digest,
    /// Codec of the chunks.
    pub codec: Codec,
}

/// Why a TOC is not usable.
#[derive(Debug, thiserror::Error)]
pub enum TocError {
    /// Its bytes do not decompress, or to something else than a TOC.
    #[error("cannot decode the TOC: {0}")]
    Encoding(String),
    /// It has another digest than the annotation says.
    #[error("TOC has digest {actual}, the descriptor says {expected}")]
    Digest {
        /// Said by the descriptor.
        expected: Digest,
        /// That of the bytes.
        actual: Digest,
    },
    /// It is larger than allowed.
    #[error("TOC of {0} bytes exceeds the limit of 150 MiB")]
    TooLarge(u64),
    /// It is no TOC, or a version unknown here.
    #[error("malformed TOC: {0}")]
    Json(String),
    /// An entry contradicts itself or its file.
    #[error("malformed TOC entry {path:?}: {what}")]
    Entry {
        /// Its name.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Its entries make no tree.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// Data that nothing can verify.
    #[error("TOC entry {0:?} has chunks without digest: not verifiable lazily")]
    Unverifiable(String),
}

/// Decompresses a TOC, and checks it by `expected`: the JSON bytes.
pub fn decode(location: &TocLocation, compressed: &[u8], expected: Option<&TocDigest>) -> Result<Vec<u8>, TocError> {
    let _ = (location, compressed, expected);
    todo!()
}

/// The JSON bytes of a TOC that is a blob of its own (a gzipped tar), checked by `expected`.
pub fn decode_external(blob: &[u8], expected: Option<&TocDigest>) -> Result<Vec<u8>, TocError> {
    let _ = (blob, expected);
    todo!()
}

impl Toc {
    /// Parses the JSON of a TOC for a blob whose members or frames end at `payload_end`.
    pub fn parse(json: &[u8], codec: Codec, payload_end: u64) -> Result<Self, TocError> {
        let _ = (json, codec, payload_end);
        todo!()
    }

    /// The data of a regular file's inode.
    pub fn file(&self, inode: InodeId) -> Option<&FileData> {
        let _ = inode;
        todo!()
    }

    /// The chunks of a file.
    pub fn chunks_of(&self, file: &FileData) -> &[Chunk] {
        &self.chunks[file.chunks.start as usize..file.chunks.end as usize]
    }

    /// Fails unless every chunk can be verified before it is shown.
    pub fn check_verifiable(&self) -> Result<(), TocError> {
        todo!()
    }
}
