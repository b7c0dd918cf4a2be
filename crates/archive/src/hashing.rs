//! Digest and size of what flows through a reader or a writer.

use std::io::{self, Read, Write};

use castor_oci::{Digest, Hasher};

/// A reader that digests and counts what is read through it.
#[derive(Debug)]
pub struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    size: u64,
}

impl<R: Read> HashingReader<R> {
    /// Reads through to `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: Hasher::new(), size: 0 }
    }

    /// Bytes read so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Digest and size of what was read.
    pub fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.size)
    }

    /// Reads the rest, then gives digest and size of all.
    pub fn drain(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self.finish())
    }

    /// The reader below.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        self.size += n as u64;
        Ok(n)
    }
}

/// A writer that digests and counts what is written through it.
#[derive(Debug)]
pub struct HashingWriter<W> {
    inner: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Writes through to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::new(), size: 0 }
    }

    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The writer below, digest and size of what was written.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.hasher.finish(), self.size)
    }

    /// The writer below.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_what_flows() {
        let mut reader = HashingReader::new(&b"castor"[..]);
        let mut first = [0; 3];
        reader.read_exact(&mut first).unwrap();
        assert_eq!(reader.size(), 3);
        assert_eq!(reader.drain().unwrap(), (Digest::of("castor"), 6));
        let mut writer = HashingWriter::new(Vec::new());
        writer.write_all(b"castor").unwrap();
        assert_eq!(writer.finish(), (b"castor".to_vec(), Digest::of("castor"), 6));
    }
}
