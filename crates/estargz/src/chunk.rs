//! Chunks: from compressed bytes to verified data.

use std::io::{self, Read, Write};

use castor_oci::Digest;

use crate::Codec;
use crate::toc::Chunk;

/// Why a chunk cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// It does not decompress.
    #[error("cannot decompress the chunk at offset {offset} of the blob")]
    Codec {
        /// Offset of its member or frame.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// Its member or frame ends before it does.
    #[error("chunk at offset {offset} of the blob is short: {missing} bytes are missing")]
    Short {
        /// Offset of its member or frame.
        offset: u64,
        /// Bytes that are missing.
        missing: u64,
    },
    /// Its bytes are not those that the TOC names.
    #[error("chunk at offset {offset} of the blob has digest {actual}, the TOC says {expected}")]
    Digest {
        /// Offset of its member or frame.
        offset: u64,
        /// Said by the TOC.
        expected: Digest,
        /// That of the bytes.
        actual: Digest,
    },
    /// The output failed.
    #[error("write chunk")]
    Output(#[source] io::Error),
}

/// Decompresses a chunk from the bytes at `chunk.offset` and verifies it, if it has a digest. `compressed` may
/// go on after the chunk, and may end before `chunk.end` if the chunk's bytes are all in it.
pub fn decode(codec: Codec, chunk: &Chunk, compressed: &[u8]) -> Result<Vec<u8>, ChunkError> {
    let _ = (codec, chunk, compressed);
    todo!()
}

/// The same as a stream, for chunks of any size. What was written to `out` must not be shown before this
/// returns: only then it is verified.
pub fn decode_to(codec: Codec, chunk: &Chunk, compressed: impl Read, out: &mut dyn Write) -> Result<(), ChunkError> {
    let _ = (codec, chunk, compressed, out);
    todo!()
}

/// Decompresses several chunks of one member or frame (all with the same `offset`, sorted by `inner_offset`) in
/// one pass; `each` gets the position in `chunks` and the verified data.
pub fn decode_group(
    codec: Codec,
    chunks: &[Chunk],
    compressed: &[u8],
    each: &mut dyn FnMut(usize, Vec<u8>) -> io::Result<()>,
) -> Result<(), ChunkError> {
    let _ = (codec, chunks, compressed, each);
    todo!()
}
