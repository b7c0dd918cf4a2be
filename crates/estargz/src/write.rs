//! Writing eStargz.
//!
//! The tar is kept as it is, byte for byte, and cut where gzip members must start: at the payload of every file that
//! is not empty, and every `chunk_size` bytes within it. So a member holds one chunk, then whatever the tar has
//! until the next payload: padding, headers, entries without data. The last member is the table of contents, as
//! one more tar entry, which is why the uncompressed blob is longer than the tar and has another digest.
//!
//! Members are independent, so several threads may compress them; what comes out depends on the tar and the
//! options alone.

mod entries;
mod prioritize;

use std::io::{self, BufReader, Read, Write};

use castor_archive::HashingWriter;
use castor_archive::ordered::Ordered;
use castor_archive::tar::{self, Header, Kind, TarError};
use castor_oci::{Digest, Hasher};
use flate2::write::GzEncoder;

use crate::{TOC_NAME, footer};
use entries::TocWriter;

pub use prioritize::{Prioritized, prioritize};

/// Size at which a member of headers alone is ended: a layer may have millions of them without any data between.
const HEADERS_MAX: usize = 16 << 20;

/// Default of [`Options::chunk_size`], as others have it.
pub const DEFAULT_CHUNK_SIZE: u64 = 4 << 20;

/// How an eStargz blob is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// gzip level 0 to 9; `None` is the default (6).
    pub level: Option<u32>,
    /// Uncompressed size at which files are cut into chunks; 0 for no limit.
    pub chunk_size: u64,
    /// Threads that compress; the bytes do not depend on it.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { level: None, chunk_size: DEFAULT_CHUNK_SIZE, threads: 1 }
    }
}

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob.
    pub size: u64,
    /// Digest of the uncompressed blob, TOC included.
    pub diff_id: Digest,
    /// Size of the uncompressed blob, TOC included.
    pub uncompressed_size: u64,
    /// Digest of the TOC.
    pub toc_digest: Digest,
}

/// Why a blob cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The tar cannot be read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The tar has an entry in the place of the TOC.
    #[error("cannot convert to eStargz: the layer has an entry called {0:?}")]
    Reserved(String),
    /// A level that gzip does not have.
    #[error("invalid eStargz compression level {0}: want 0 to 9")]
    Level(u32),
    /// Input or output failed.
    #[error("write eStargz layer: {0}")]
    Io(#[from] io::Error),
}

/// Makes eStargz blobs.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    options: Options,
}

impl Builder {
    /// A builder with these options.
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    /// Converts a tar to an eStargz blob. The tar is kept byte for byte: [`tar_of`](crate::tar_of) gives it back.
    pub fn build(&self, tar: impl Read, out: &mut dyn Write) -> Result<Built, BuildError> {
        let level = self.options.level.unwrap_or(6);
        if level > 9 {
            return Err(BuildError::Level(level));
        }
        let chunk_size = if self.options.chunk_size == 0 { u64::MAX } else { self.options.chunk_size };
        let mut reader = tar::Reader::new(Tap { inner: BufReader::with_capacity(64 << 10, tar), taken: Vec::new() });
        let mut members = Members {
            out: HashingWriter::new(out),
            pool: Ordered::new(self.options.threads),
            level,
            current: Vec::new(),
            chunk_end: 0,
            started: 0,
            offsets: Vec::new(),
            uncompressed: Hasher::new(),
            uncompressed_size: 0,
        };
        let mut toc = TocWriter::default();
        while let Some(header) = reader.next()? {
            check_name(&header.path)?;
            members.append_headers(&std::mem::take(&mut reader.get_mut().taken))?;
            toc.entry(&header);
            if header.kind == Kind::File {
                // The tar reader refuses sparse files: what they stand for is not what the tar has.
                append_file(&mut reader, &header, chunk_size, &mut members, &mut toc)?;
            }
        }
        // Whatever follows the end of the archive is kept too.
        let mut tap = reader.into_inner();
        members.append_headers(&tap.taken)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match tap.inner.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => members.append_headers(&buffer[..n])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        members.finish(toc)
    }
}

/// Cuts a file into chunks, each at the start of a member.
fn append_file<R: Read>(
    reader: &mut tar::Reader<Tap<R>>,
    header: &Header,
    chunk_size: u64,
    members: &mut Members<'_>,
    toc: &mut TocWriter,
) -> Result<(), BuildError> {
    let mut whole = Hasher::new();
    let mut position = 0;
    while position < header.size {
        let size = chunk_size.min(header.size - position);
        members.start()?;
        let mut hasher = Hasher::new();
        let mut left = size;
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            reader.read_exact(&mut buffer[..want])?;
            reader.get_mut().taken.clear();
            hasher.update(&buffer[..want]);
            whole.update(&buffer[..want]);
            members.append(&buffer[..want]);
            left -= want as u64;
        }
        members.chunk_end = members.current.len();
        // Only a whole chunk has its size in the TOC; what is less goes to the end of the file.
        toc.chunk(members.started - 1, position, if size == chunk_size { size } else { 0 }, hasher.finish());
        position += size;
    }
    toc.file_digest(whole.finish());
    Ok(())
}

/// The TOC and the landmarks of the layer that is made must not be confused with entries of the tar.
fn check_name(path: &[u8]) -> Result<(), BuildError> {
    let mut components = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    match (components.next(), components.next()) {
        (Some(name), None) if name == TOC_NAME.as_bytes() => Err(BuildError::Reserved(TOC_NAME.to_owned())),
        _ => Ok(()),
    }
}

/// Keeps what is read through it, until somebody takes it.
struct Tap<R> {
    inner: R,
    taken: Vec<u8>,
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.taken.extend_from_slice(&buf[..n]);
        Ok(n)
    }
}

/// The gzip members of a blob, compressed by a pool and written in order.
struct Members<'a> {
    out: HashingWriter<&'a mut dyn Write>,
    pool: Ordered<io::Result<Vec<u8>>>,
    level: u32,
    /// What the current member holds, uncompressed.
    current: Vec<u8>,
    /// Length of the chunk that the current member starts with.
    chunk_end: usize,
    /// Members that were started after the first.
    started: usize,
    /// Offsets in the blob of those, as far as they are known.
    offsets: Vec<u64>,
    uncompressed: Hasher,
    uncompressed_size: u64,
}

impl Members<'_> {
    fn append(&mut self, bytes: &[u8]) {
        self.uncompressed.update(bytes);
        self.uncompressed_size += bytes.len() as u64;
        self.current.extend_from_slice(bytes);
    }

    /// Appends what is no file's data. Members may start within it, for nobody reads it from the blob.
    fn append_headers(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.append(bytes);
        if self.current.len() > self.chunk_end + HEADERS_MAX {
            self.start()?;
        }
        Ok(())
    }

    /// Ends the current member and starts the next.
    fn start(&mut self) -> io::Result<()> {
        let data = std::mem::take(&mut self.current);
        self.chunk_end = 0;
        let level = self.level;
        self.pool.push(move || {
            let mut encoder = GzEncoder::new(Vec::with_capacity(data.len() / 2 + 64), flate2::Compression::new(level));
            encoder.write_all(&data)?;
            encoder.finish()
        });
        self.started += 1;
        while self.pool.is_full() {
            self.collect()?;
        }
        Ok(())
    }

    /// Writes the oldest member; where it ends the next one starts.
    fn collect(&mut self) -> io::Result<()> {
        if let Some(member) = self.pool.pop() {
            self.out.write_all(&member.map_err(io::Error::other)??)?;
            self.offsets.push(self.out.size());
        }
        Ok(())
    }

    /// Writes the TOC and the footer.
    fn finish(mut self, toc: TocWriter) -> Result<Built, BuildError> {
        self.start()?;
        while !self.pool.is_empty() {
            self.collect()?;
        }
        let json = toc.finish(&self.offsets);
        let toc_digest = Digest::of(&json);
        // A reader wants all but name and size to be zero, as there is no time or owner of a TOC.
        let header = Header { path: TOC_NAME.into(), size: json.len() as u64, ..Header::default() };
        let mut tar = tar::Writer::new(Vec::with_capacity(json.len() + 4096));
        tar.append(&header, &mut json.as_slice())?;
        let toc_offset = self.out.size();
        self.append(&tar.finish()?);
        self.start()?;
        while !self.pool.is_empty() {
            self.collect()?;
        }
        self.out.write_all(&footer::estargz(toc_offset))?;
        self.out.flush()?;
        let (_, digest, size) = self.out.finish();
        let uncompressed_size = self.uncompressed_size;
        Ok(Built { digest, size, diff_id: self.uncompressed.finish(), uncompressed_size, toc_digest })
    }
}
