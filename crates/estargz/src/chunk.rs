//! Chunks: from compressed bytes to verified data.

use std::io::{self, Read as _};

use castor_oci::{Digest, Hasher};

use crate::Codec;
use crate::member::GzipMember;
use crate::toc::Chunk;

/// Why a chunk cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// It does not decompress.
    #[error("cannot decompress the chunk at offset {offset} of the blob: {source}")]
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
    #[error("write chunk: {0}")]
    Output(#[source] io::Error),
}

/// log2 of the largest window of a frame: what `zstd -22` needs.
const ZSTD_WINDOW: u32 = 27;
/// Unit of what is passed over.
const BUFFER: u64 = 64 << 10;

/// Decompresses a chunk from the bytes at `chunk.offset` and verifies it, if it has a digest. `compressed` may
/// go on after the chunk, and may end before `chunk.end` if the chunk's bytes are all in it.
pub fn decode(codec: Codec, chunk: &Chunk, compressed: &[u8]) -> Result<Vec<u8>, ChunkError> {
    if chunk.zeros {
        // The size is only claimed.
        let too_large = || ChunkError::Output(io::ErrorKind::OutOfMemory.into());
        let size = usize::try_from(chunk.size).map_err(|_| too_large())?;
        let mut zeros = Vec::new();
        zeros.try_reserve_exact(size).map_err(|_| too_large())?;
        zeros.resize(size, 0);
        return Ok(zeros);
    }
    Member::open(codec, compressed, chunk.offset)?.decode(chunk)
}

/// Decompresses several chunks of one member or frame (all with the same `offset`, sorted by `inner_offset`) in
/// one pass; `each` gets the position in `chunks` and the verified data. A chunk that lies before the end of the one
/// before it is decoded on its own.
pub fn decode_group(
    codec: Codec,
    chunks: &[Chunk],
    compressed: &[u8],
    each: &mut dyn FnMut(usize, Vec<u8>) -> io::Result<()>,
) -> Result<(), ChunkError> {
    let mut member: Option<Member<'_>> = None;
    for (index, chunk) in chunks.iter().enumerate() {
        let data = match &mut member {
            _ if chunk.zeros => decode(codec, chunk, compressed)?,
            Some(open) if open.offset == chunk.offset && open.position <= chunk.inner_offset => open.decode(chunk)?,
            _ => member.insert(Member::open(codec, compressed, chunk.offset)?).decode(chunk)?,
        };
        each(index, data).map_err(ChunkError::Output)?;
    }
    Ok(())
}

/// A member or frame that is being decompressed.
struct Member<'a> {
    stream: Stream<'a>,
    offset: u64,
    /// Uncompressed bytes that were read.
    position: u64,
}

/// One member or frame is all that belongs to an offset: going on into the next would read other bytes than the TOC means.
enum Stream<'a> {
    Gzip(GzipMember<'a>),
    Zstd(Box<zstd::stream::read::Decoder<'a, &'a [u8]>>),
}

impl<'a> Member<'a> {
    fn open(codec: Codec, compressed: &'a [u8], offset: u64) -> Result<Self, ChunkError> {
        let stream = match codec {
            Codec::Gzip => GzipMember::open(compressed).map(Stream::Gzip),
            Codec::Zstd => zstd::stream::read::Decoder::with_buffer(compressed).and_then(|mut zstd| {
                zstd.window_log_max(ZSTD_WINDOW)?;
                Ok(Stream::Zstd(Box::new(zstd.single_frame())))
            }),
        };
        let stream = stream.map_err(|source| ChunkError::Codec { offset, source })?;
        Ok(Self { stream, offset, position: 0 })
    }

    /// Skips to a chunk that lies ahead, decodes and verifies it.
    fn decode(&mut self, chunk: &Chunk) -> Result<Vec<u8>, ChunkError> {
        let mut skip = chunk.inner_offset.saturating_sub(self.position);
        let mut passed = Vec::new();
        while skip > 0 {
            let piece = skip.min(BUFFER);
            passed.clear();
            self.read(piece, &mut passed)?;
            skip -= piece;
        }
        drop(passed);
        let mut data = Vec::with_capacity(capacity(chunk.size));
        self.read(chunk.size, &mut data)?;
        if let Some(expected) = chunk.digest {
            let mut hasher = Hasher::new();
            hasher.update(&data);
            let actual = hasher.finish();
            if actual != expected {
                return Err(ChunkError::Digest { offset: chunk.offset, expected, actual });
            }
        }
        Ok(data)
    }

    /// Appends exactly `count` bytes to `out`.
    fn read(&mut self, count: u64, out: &mut Vec<u8>) -> Result<(), ChunkError> {
        let before = out.len() as u64;
        let read = match &mut self.stream {
            Stream::Gzip(gzip) => gzip.read(count, out),
            Stream::Zstd(zstd) => zstd.take(count).read_to_end(out).map(|_| ()),
        };
        read.map_err(|source| ChunkError::Codec { offset: self.offset, source })?;
        let got = out.len() as u64 - before;
        self.position += got;
        match count - got {
            0 => Ok(()),
            missing => Err(ChunkError::Short { offset: self.offset, missing }),
        }
    }
}

/// What to reserve for a size that a TOC claims: all of an ordinary chunk, but not of any claim.
fn capacity(size: u64) -> usize {
    size.min(4 << 20) as usize
}
