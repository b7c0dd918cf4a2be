//! Compressed streams.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read, Write};

use flate2::write::GzEncoder;

use crate::pgzip::ParallelGzip;

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
    /// Zstandard; level 0 to 22, or the default (3, which 0 means too).
    Zstd {
        /// Level; `None` is the default.
        level: Option<i32>,
    },
}

impl Compression {
    /// Fails for a level that the codec does not have.
    pub fn check(self) -> Result<(), CodecError> {
        let (codec, level, range) = match self {
            Self::Gzip { level: Some(level) } if level > 9 => ("gzip", i64::from(level), "0 to 9"),
            Self::Zstd { level: Some(level) } if !(0..=22).contains(&level) => ("zstd", i64::from(level), "0 to 22"),
            _ => return Ok(()),
        };
        Err(CodecError::Level { codec, level, range })
    }
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

/// Bytes that [`detect`] wants to see.
const HEAD: usize = 6;
/// Most memory for the dictionary of an xz stream, in KiB; `xz -9` needs 64 MiB.
const XZ_MEMORY: u32 = 256 << 10;
/// log2 of the largest window of a zstd frame; `zstd -22` needs 27.
const ZSTD_WINDOW: u32 = 27;
pub(crate) const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// Tells a stream's codec from its first bytes (6 suffice); anything unknown is taken for uncompressed.
pub fn detect(head: &[u8]) -> Codec {
    match head {
        [0x1f, 0x8b, 0x08, ..] => Codec::Gzip,
        // A frame, or a skippable frame before the first.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Codec::Zstd,
        [b'B', b'Z', b'h', ..] => Codec::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Codec::Xz,
        _ => Codec::Uncompressed,
    }
}

/// Decompresses a stream of a codec told by its first bytes.
pub fn decompress<'a>(mut input: impl Read + Send + 'a) -> io::Result<(Codec, Box<dyn Read + Send + 'a>)> {
    let mut head = Vec::with_capacity(HEAD);
    input.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    let codec = detect(&head);
    let input: Chain<Cursor<Vec<u8>>, _> = Cursor::new(head).chain(input);
    Ok((codec, decoder(codec, BufReader::with_capacity(64 << 10, input))?))
}

/// Decompresses a stream of a known codec.
pub fn decoder<'a>(codec: Codec, input: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match codec {
        Codec::Uncompressed => Box::new(input),
        Codec::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
        Codec::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        Codec::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY)),
    })
}

/// A compressing writer. [`finish`](Self::finish) it: dropping it leaves the stream incomplete.
pub struct Encoder<W: Write> {
    inner: Inner<W>,
}

enum Inner<W: Write> {
    Plain(W),
    Gzip(GzEncoder<W>),
    ParallelGzip(ParallelGzip<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> std::fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.inner {
            Inner::Plain(_) => "Encoder(uncompressed)",
            Inner::Gzip(_) | Inner::ParallelGzip(_) => "Encoder(gzip)",
            Inner::Zstd(_) => "Encoder(zstd)",
        })
    }
}

impl<W: Write> Encoder<W> {
    /// Compresses into `out` on the calling thread.
    pub fn new(out: W, compression: Compression) -> Result<Self, CodecError> {
        compression.check()?;
        let inner = match compression {
            Compression::Uncompressed => Inner::Plain(out),
            Compression::Gzip { level } => {
                Inner::Gzip(GzEncoder::new(out, flate2::Compression::new(level.unwrap_or(GZIP_LEVEL))))
            }
            Compression::Zstd { level } => {
                Inner::Zstd(zstd::stream::write::Encoder::new(out, level.unwrap_or(ZSTD_LEVEL))?)
            }
        };
        Ok(Self { inner })
    }

    /// Compresses into `out` with up to `threads` threads. The bytes depend on the level only, not on the number of
    /// threads (but differ from those of [`new`](Self::new)).
    pub fn parallel(out: W, compression: Compression, threads: usize) -> Result<Self, CodecError> {
        let mut encoder = match compression {
            Compression::Gzip { level } => {
                compression.check()?;
                let gzip = ParallelGzip::new(out, level.unwrap_or(GZIP_LEVEL), threads)?;
                return Ok(Self { inner: Inner::ParallelGzip(gzip) });
            }
            _ => Self::new(out, compression)?,
        };
        if let Inner::Zstd(zstd) = &mut encoder.inner {
            zstd.multithread(u32::try_from(threads.max(1)).unwrap_or(u32::MAX))?;
        }
        Ok(encoder)
    }

    /// Ends the stream.
    pub fn finish(self) -> io::Result<W> {
        match self.inner {
            Inner::Plain(out) => Ok(out),
            Inner::Gzip(gzip) => gzip.finish(),
            Inner::ParallelGzip(gzip) => gzip.finish(),
            Inner::Zstd(zstd) => zstd.finish(),
        }
    }

    /// The writer below.
    pub fn get_ref(&self) -> &W {
        match &self.inner {
            Inner::Plain(out) => out,
            Inner::Gzip(gzip) => gzip.get_ref(),
            Inner::ParallelGzip(gzip) => gzip.get_ref(),
            Inner::Zstd(zstd) => zstd.get_ref(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Plain(out) => out.write(buf),
            Inner::Gzip(gzip) => gzip.write(buf),
            Inner::ParallelGzip(gzip) => gzip.write(buf),
            Inner::Zstd(zstd) => zstd.write(buf),
        }
    }

    /// Passes on what the codec can give without ending a block; flushing does not change the stream.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"castor builds dams; castor builds images\n";

    /// Data that compresses and data that does not.
    fn data(size: usize) -> Vec<u8> {
        let mut state = 1u32;
        (0..size)
            .map(|i| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if i / 5000 % 2 == 0 { (state >> 24) as u8 } else { TEXT[i % TEXT.len()] }
            })
            .collect()
    }

    fn read(bytes: &[u8]) -> (Codec, io::Result<Vec<u8>>) {
        let (codec, mut reader) = decompress(bytes).unwrap();
        let mut out = Vec::new();
        (codec, reader.read_to_end(&mut out).map(|_| out))
    }

    fn all() -> Vec<(Compression, Codec)> {
        let mut all = vec![(Compression::Uncompressed, Codec::Uncompressed)];
        all.extend([None, Some(0), Some(1), Some(9)].map(|level| (Compression::Gzip { level }, Codec::Gzip)));
        all.extend([None, Some(0), Some(1), Some(19)].map(|level| (Compression::Zstd { level }, Codec::Zstd)));
        all
    }

    #[test]
    fn what_is_compressed_comes_back() {
        for size in [0, 1, 100, 1 << 20, (5 << 20) / 2 + 7] {
            let data = data(size);
            for (compression, codec) in all() {
                let mut single = Encoder::new(Vec::new(), compression).unwrap();
                single.write_all(&data).unwrap();
                let mut previous = None;
                for threads in [1, 3] {
                    let mut parallel = Encoder::parallel(Vec::new(), compression, threads).unwrap();
                    for part in data.chunks(70_001) {
                        parallel.write_all(part).unwrap();
                    }
                    let bytes = parallel.finish().unwrap();
                    let (found, read) = read(&bytes);
                    assert!(read.unwrap() == data, "{compression:?} {size}");
                    assert!(size == 0 || found == codec);
                    assert!(previous.is_none_or(|previous| previous == bytes), "{compression:?}: threads show");
                    previous = Some(bytes);
                }
                assert!(read(&single.finish().unwrap()).1.unwrap() == data);
            }
        }
    }

    #[test]
    fn levels_are_checked() {
        let level = |compression| Encoder::new(io::sink(), compression).map(drop).unwrap_err().to_string();
        let gzip = level(Compression::Gzip { level: Some(10) });
        assert_eq!(gzip, "invalid gzip compression level 10: want 0 to 9");
        let zstd = level(Compression::Zstd { level: Some(-1) });
        assert_eq!(zstd, "invalid zstd compression level -1: want 0 to 22");
        assert!(Encoder::parallel(io::sink(), Compression::Gzip { level: Some(10) }, 2).is_err());
    }

    #[test]
    fn reads_members_and_frames_one_after_the_other() {
        for (compression, codec) in all().into_iter().skip(1) {
            let mut two = Vec::new();
            for part in [&TEXT[..10], &TEXT[10..]] {
                let mut encoder = Encoder::new(two, compression).unwrap();
                encoder.write_all(part).unwrap();
                two = encoder.finish().unwrap();
            }
            assert_eq!((read(&two).0, read(&two).1.unwrap().as_slice()), (codec, TEXT));
        }
        let mut skippable = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        skippable.extend(zstd::encode_all(TEXT, 1).unwrap());
        assert_eq!((read(&skippable).0, read(&skippable).1.unwrap().as_slice()), (Codec::Zstd, TEXT));
    }

    /// `printf 'castor\n' | bzip2` and `| xz`.
    #[test]
    fn reads_bzip2_and_xz() {
        let bzip2 = include_bytes!("../testdata/castor.bz2");
        let xz = include_bytes!("../testdata/castor.xz");
        assert_eq!((read(bzip2).0, read(bzip2).1.unwrap().as_slice()), (Codec::Bzip2, &b"castor\n"[..]));
        assert_eq!((read(xz).0, read(xz).1.unwrap().as_slice()), (Codec::Xz, &b"castor\n"[..]));
        for whole in [&bzip2[..], xz] {
            for end in HEAD..whole.len() {
                assert!(read(&whole[..end]).1.is_err());
            }
        }
    }

    #[test]
    fn damage_is_an_error() {
        let data = data(100_000);
        for (compression, _) in all().into_iter().skip(1) {
            let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
            encoder.write_all(&data).unwrap();
            let good = encoder.finish().unwrap();
            assert!(read(&good[..good.len() / 2]).1.is_err());
            let mut bad = good;
            let at = bad.len() / 2;
            bad[at] ^= 1;
            // zstd has no checksum of its own here, but damage must not go unnoticed as a panic either.
            let result = read(&bad).1;
            assert!(matches!(compression, Compression::Zstd { .. }) || result.is_err());
        }
    }
}
