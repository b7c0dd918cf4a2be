//! Chunks: from compressed bytes to verified data.

use std::io::{self, BufReader, Read, Write};

use castor_oci::{Digest, Hasher};

use crate::Codec;
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
/// Unit of decompression.
const BUFFER: usize = 64 << 10;

/// Decompresses a chunk from the bytes at `chunk.offset` and verifies it, if it has a digest. `compressed` may
/// go on after the chunk, and may end before `chunk.end` if the chunk's bytes are all in it.
pub fn decode(codec: Codec, chunk: &Chunk, compressed: &[u8]) -> Result<Vec<u8>, ChunkError> {
    let mut data = Vec::with_capacity(capacity(chunk.size));
    decode_to(codec, chunk, compressed, &mut data)?;
    Ok(data)
}

/// The same as a stream, for chunks of any size. What was written to `out` must not be shown before this
/// returns: only then it is verified.
pub fn decode_to(codec: Codec, chunk: &Chunk, compressed: impl Read, out: &mut dyn Write) -> Result<(), ChunkError> {
    if chunk.zeros {
        io::copy(&mut io::repeat(0).take(chunk.size), out).map_err(ChunkError::Output)?;
        return Ok(());
    }
    Member::open(codec, compressed, chunk.offset)?.chunk(chunk, out)
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
    reader: Box<dyn Read + 'a>,
    offset: u64,
    /// Uncompressed bytes that were read.
    position: u64,
}

impl<'a> Member<'a> {
    fn open(codec: Codec, compressed: impl Read + 'a, offset: u64) -> Result<Self, ChunkError> {
        // One member or frame is all that belongs to the offset: going on into the next would read other bytes
        // than the TOC means.
        let reader: Box<dyn Read + 'a> = match codec {
            Codec::Gzip => Box::new(flate2::bufread::GzDecoder::new(BufReader::with_capacity(BUFFER, compressed))),
            Codec::Zstd => {
                let zstd = zstd::stream::read::Decoder::new(compressed).and_then(|mut zstd| {
                    zstd.window_log_max(ZSTD_WINDOW)?;
                    Ok(zstd.single_frame())
                });
                Box::new(zstd.map_err(|source| ChunkError::Codec { offset, source })?)
            }
        };
        Ok(Self { reader, offset, position: 0 })
    }

    fn decode(&mut self, chunk: &Chunk) -> Result<Vec<u8>, ChunkError> {
        let mut data = Vec::with_capacity(capacity(chunk.size));
        self.chunk(chunk, &mut data)?;
        Ok(data)
    }

    /// Skips to a chunk that lies ahead, decodes it to `out` and verifies it.
    fn chunk(&mut self, chunk: &Chunk, out: &mut dyn Write) -> Result<(), ChunkError> {
        let skip = chunk.inner_offset.saturating_sub(self.position);
        self.pass(skip, &mut |_| Ok(()))?;
        let mut hasher = Hasher::new();
        self.pass(chunk.size, &mut |bytes| {
            if chunk.digest.is_some() {
                hasher.update(bytes);
            }
            out.write_all(bytes)
        })?;
        let actual = hasher.finish();
        match chunk.digest {
            Some(expected) if expected != actual => Err(ChunkError::Digest { offset: chunk.offset, expected, actual }),
            _ => Ok(()),
        }
    }

    /// Reads exactly `count` bytes.
    fn pass(&mut self, count: u64, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), ChunkError> {
        let mut buffer = vec![0; BUFFER.min(usize::try_from(count).unwrap_or(BUFFER))];
        let mut left = count;
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = match self.reader.read(&mut buffer[..want]) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(ChunkError::Codec { offset: self.offset, source }),
            };
            if n == 0 {
                return Err(ChunkError::Short { offset: self.offset, missing: left });
            }
            each(&buffer[..n]).map_err(ChunkError::Output)?;
            left -= n as u64;
            self.position += n as u64;
        }
        Ok(())
    }
}

/// What to reserve for a size that a TOC claims: all of an ordinary chunk, but not of any claim.
fn capacity(size: u64) -> usize {
    size.min(4 << 20) as usize
}
