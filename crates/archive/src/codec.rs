//! Compressed streams.

use std::io::{self, BufRead, Read, Write};

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Not at all.
    Uncompressed,
    /// gzip, any number of members.
    Gzip,
    /// Zstandard, any number of frames.
    Zstd,
    /// bzip2; read only.
    Bzip2,
    /// xz; read only.
    Xz,
}

/// How to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    Uncompressed,
    /// gzip; level 0 to 9, or the default (6).
    Gzip {
        /// Level; `None` is the default.
        level: Option<u32>,
    },
    /// Zstandard; level 0 to 22, or the default (3).
    Zstd {
        /// Level; `None` is the default.
        level: Option<i32>,
    },
}

/// Why bytes cannot be decompressed or compressed.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A level that the codec does not have.
    #[error("invalid {codec} compression level {level}: want {range}")]
    Level {
        /// Name of the codec.
        codec: &'static str,
        /// The level asked for.
        level: i64,
        /// The levels there are.
        range: &'static str,
    },
    /// Input or output failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Tells a stream's codec from its first bytes (6 suffice); anything unknown is taken for uncompressed.
pub fn detect(head: &[u8]) -> Codec {
    let _ = head;
    todo!()
}

/// Decompresses a stream of a codec told by its first bytes.
pub fn decompress<'a>(input: impl Read + Send + 'a) -> io::Result<(Codec, Box<dyn Read + Send + 'a>)> {
    let _ = input;
    todo!()
}

/// Decompresses a stream of a known codec.
pub fn decoder<'a>(codec: Codec, input: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let _ = (codec, input);
    todo!()
}

/// A compressing writer. [`finish`](Self::finish) it: dropping it leaves the stream incomplete.
pub struct Encoder<W: Write> {
    out: W,
}

impl<W: Write> Encoder<W> {
    /// Compresses into `out` on the calling thread.
    pub fn new(out: W, compression: Compression) -> Result<Self, CodecError> {
        let _ = (&out, compression);
        todo!()
    }

    /// Compresses into `out` with up to `threads` threads; the bytes do not depend on their number.
    pub fn parallel(out: W, compression: Compression, threads: usize) -> Result<Self, CodecError> {
        let _ = (&out, compression, threads);
        todo!()
    }

    /// Ends the stream.
    pub fn finish(self) -> io::Result<W> {
        let _ = self.out;
        todo!()
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let _ = buf;
        todo!()
    }

    fn flush(&mut self) -> io::Result<()> {
        todo!()
    }
}
