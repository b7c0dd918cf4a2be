//! A streaming writer.

use std::io::{self, Read, Write};

use super::header::Header;

/// Writes a tar entry by entry, with the bytes that Go's `archive/tar` would write.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Starts an entry; its `header.size` bytes of data are then written through `Write`. Fails if the entry
    /// before still lacks bytes.
    pub fn start(&mut self, header: &Header) -> io::Result<()> {
        let _ = header;
        todo!()
    }

    /// Writes a whole entry; `data` must give exactly `header.size` bytes.
    pub fn append(&mut self, header: &Header, data: &mut dyn Read) -> io::Result<()> {
        let _ = (header, data);
        todo!()
    }

    /// Writes the blocks that end the archive.
    pub fn finish(self) -> io::Result<W> {
        Ok(self.out)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.out.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
