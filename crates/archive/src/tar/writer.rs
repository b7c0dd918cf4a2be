//! A streaming writer.

use std::io::{self, Read, Write};

use super::BLOCK;
use super::header::Header;

/// Writes a tar entry by entry, with the bytes that Go's `archive/tar` would write.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    /// Data of the current entry that is still to come.
    missing: u64,
    /// Zeros after it.
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, missing: 0, padding: 0 }
    }

    /// Starts an entry; its `header.size` bytes of data are then written through `Write`. Fails if the entry
    /// before still lacks bytes.
    pub fn start(&mut self, header: &Header) -> io::Result<()> {
        let blocks = header.encode().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.end_entry()?;
        self.out.write_all(&blocks)?;
        self.missing = header.size;
        self.padding = (header.size.next_multiple_of(BLOCK as u64) - header.size) as usize;
        Ok(())
    }

    /// Writes a whole entry; `data` must give exactly `header.size` bytes.
    pub fn append(&mut self, header: &Header, data: &mut dyn Read) -> io::Result<()> {
        self.start(header)?;
        io::copy(data, self)?;
        self.end_entry()
    }

    /// Writes the two blocks that end the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_entry()?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    /// The writer below.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    fn end_entry(&mut self) -> io::Result<()> {
        if self.missing > 0 {
            let message = format!("tar entry lacks {} bytes of its data", self.missing);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        self.out.write_all(&[0; BLOCK][..self.padding])?;
        self.padding = 0;
        Ok(())
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.missing == 0 && !buf.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more data than the tar entry has"));
        }
        let want = usize::try_from(self.missing).unwrap_or(usize::MAX).min(buf.len());
        let n = self.out.write(&buf[..want])?;
        self.missing -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
