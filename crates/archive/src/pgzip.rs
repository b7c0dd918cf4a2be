//! gzip by several threads.
//!
//! The input is cut into blocks of one size; each is deflated on its own, primed with the end of the one before
//! so that little ratio is lost, and ends at a byte boundary. Together they are one ordinary member, and
//! its bytes depend on the blocks alone, not on who deflated them.

use std::io::{self, Write};
use std::sync::Arc;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

use crate::ordered::Ordered;

/// Size of a block.
const BLOCK: usize = 1 << 20;
/// How far back deflate looks.
const WINDOW: usize = 32 << 10;

/// A gzip member in the making.
pub(crate) struct ParallelGzip<W: Write> {
    out: W,
    level: u32,
    pool: Ordered<io::Result<(Vec<u8>, Crc)>>,
    block: Vec<u8>,
    /// The block before.
    previous: Arc<Vec<u8>>,
    crc: Crc,
}

impl<W: Write> ParallelGzip<W> {
    pub(crate) fn new(mut out: W, level: u32, threads: usize) -> io::Result<Self> {
        // As Go and flate2 have it: no name, no time, unknown system.
        let effort = match level {
            9 => 2,
            1 => 4,
            _ => 0,
        };
        out.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, effort, 255])?;
        Ok(Self {
            out,
            level,
            pool: Ordered::new(threads),
            block: Vec::new(),
            previous: Arc::default(),
            crc: Crc::new(),
        })
    }

    pub(crate) fn get_ref(&self) -> &W {
        &self.out
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.dispatch(true);
        while !self.pool.is_empty() {
            self.collect()?;
        }
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        self.out.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.out)
    }

    /// Gives the current block to a thread.
    fn dispatch(&mut self, last: bool) {
        let block = Arc::new(std::mem::take(&mut self.block));
        let previous = std::mem::replace(&mut self.previous, Arc::clone(&block));
        let level = self.level;
        self.pool.push(move || {
            let dictionary = &previous[previous.len().saturating_sub(WINDOW)..];
            let mut crc = Crc::new();
            crc.update(&block);
            Ok((deflate(&block, dictionary, level, last)?, crc))
        });
    }

    /// Writes the oldest block.
    fn collect(&mut self) -> io::Result<()> {
        let Some(result) = self.pool.pop() else { return Ok(()) };
        let (bytes, crc) = result.map_err(io::Error::other)??;
        self.crc.combine(&crc);
        self.out.write_all(&bytes)
    }
}

impl<W: Write> Write for ParallelGzip<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.block.len() == BLOCK {
            self.dispatch(false);
            while self.pool.is_full() {
                self.collect()?;
            }
        }
        if self.block.capacity() == 0 {
            self.block.reserve_exact(BLOCK);
        }
        let n = buf.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Deflates a block, raw; all but the last end with an empty stored block, which aligns them to a byte.
fn deflate(block: &[u8], dictionary: &[u8], level: u32, last: bool) -> io::Result<Vec<u8>> {
    let mut compress = Compress::new(Compression::new(level), false);
    if !dictionary.is_empty() && level > 0 {
        compress.set_dictionary(dictionary).map_err(io::Error::other)?;
    }
    let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut out = Vec::with_capacity(block.len() / 2 + 1024);
    loop {
        let consumed = compress.total_in() as usize;
        let before = out.len();
        out.reserve(64 << 10);
        let status = compress.compress_vec(&block[consumed..], &mut out, flush).map_err(io::Error::other)?;
        // A flush is complete when there was room left.
        let done = match status {
            Status::StreamEnd => true,
            Status::Ok | Status::BufError => {
                !last && compress.total_in() as usize == block.len() && out.len() < out.capacity()
            }
        };
        if done {
            return Ok(out);
        }
        if status == Status::BufError && out.len() == before {
            return Err(io::Error::other("deflate makes no progress"));
        }
    }
}
