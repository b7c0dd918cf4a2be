//! The table of contents.

mod json;
mod parse;

use std::io::{self, Read};
use std::ops::Range;

use castor_archive::Listing;
use castor_archive::listing::{InodeId, Kind, ListingError};
use castor_archive::tar;
use castor_oci::Digest;

use crate::annotation::TocDigests;
use crate::footer::{MAX_TOC, TocLocation};
use crate::{Codec, TOC_NAME};

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

/// Decompresses a TOC and checks it by `expected`: the JSON bytes.
pub fn decode(location: &TocLocation, compressed: &[u8], expected: &TocDigests) -> Result<Vec<u8>, TocError> {
    if let Some(expected) = expected.compressed {
        check(expected, compressed)?;
    }
    let json = match location.codec {
        Codec::Gzip => untar(compressed)?,
        Codec::Zstd => unzstd(compressed, location.size.unwrap_or(MAX_TOC))?,
    };
    if let Some(size) = location.size
        && size != json.len() as u64
    {
        return Err(TocError::Encoding(format!("it is of {} bytes, not of {size} as told", json.len())));
    }
    if let Some(expected) = expected.uncompressed {
        check(expected, &json)?;
    }
    Ok(json)
}

/// The JSON bytes of a TOC that is a blob of its own (a gzipped tar), checked by `expected`.
pub fn decode_external(blob: &[u8], expected: &TocDigests) -> Result<Vec<u8>, TocError> {
    if let Some(expected) = expected.compressed {
        check(expected, blob)?;
    }
    let json = untar(blob)?;
    if let Some(expected) = expected.uncompressed {
        check(expected, &json)?;
    }
    Ok(json)
}

fn check(expected: Digest, bytes: &[u8]) -> Result<(), TocError> {
    match Digest::of(bytes) {
        actual if actual == expected => Ok(()),
        actual => Err(TocError::Digest { expected, actual }),
    }
}

/// The TOC in a gzipped tar whose first entry it is.
fn untar(compressed: &[u8]) -> Result<Vec<u8>, TocError> {
    let encoding = |error: &dyn std::fmt::Display| TocError::Encoding(error.to_string());
    let mut reader = tar::Reader::new(flate2::bufread::MultiGzDecoder::new(compressed));
    let header = reader.next().map_err(|error| encoding(&error))?;
    let Some(header) = header.filter(|header| header.path == TOC_NAME.as_bytes()) else {
        return Err(encoding(&format!("there is no {TOC_NAME}")));
    };
    if header.size > MAX_TOC {
        return Err(TocError::TooLarge(header.size));
    }
    let mut json = Vec::new();
    reader.read_to_end(&mut json).map_err(|error| encoding(&error))?;
    // To the end, for the checksums; a bomb would be no TOC.
    let rest = io::copy(&mut reader.into_inner().take(1 << 20), &mut io::sink()).map_err(|error| encoding(&error))?;
    if rest >= 1 << 20 {
        return Err(encoding(&"something follows it"));
    }
    Ok(json)
}

fn unzstd(compressed: &[u8], size: u64) -> Result<Vec<u8>, TocError> {
    if size > MAX_TOC {
        return Err(TocError::TooLarge(size));
    }
    let mut json = Vec::new();
    // One byte more than told, to see that there is more.
    zstd::stream::read::Decoder::with_buffer(compressed)
        .and_then(|decoder| decoder.take(size + 1).read_to_end(&mut json))
        .map_err(|error| TocError::Encoding(error.to_string()))?;
    Ok(json)
}

impl Toc {
    /// Parses the JSON of a TOC for a blob whose members or frames end at `payload_end`.
    pub fn parse(json: &[u8], codec: Codec, payload_end: u64) -> Result<Self, TocError> {
        if json.len() as u64 > MAX_TOC {
            return Err(TocError::TooLarge(json.len() as u64));
        }
        parse::parse(json, codec, payload_end)
    }

    /// The data of a regular file's inode.
    pub fn file(&self, inode: InodeId) -> Option<&FileData> {
        let inode = self.listing.inode(inode);
        self.files.get(inode.tag as usize).filter(|_| inode.kind == Kind::File)
    }

    /// The chunks of a file.
    pub fn chunks_of(&self, file: &FileData) -> &[Chunk] {
        &self.chunks[file.chunks.start as usize..file.chunks.end as usize]
    }

    /// Fails unless every chunk that can be read can be verified before it is shown.
    pub fn check_verifiable(&self) -> Result<(), TocError> {
        for name in self.listing.names() {
            let Some(file) = self.file(self.listing.inode_of(name)) else { continue };
            if self.chunks_of(file).iter().any(|chunk| chunk.digest.is_none() && !chunk.zeros) {
                let path = self.listing.path(name);
                return Err(TocError::Unverifiable(String::from_utf8_lossy(&path).into_owned()));
            }
        }
        Ok(())
    }
}
