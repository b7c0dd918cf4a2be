//! From a layer's compressed tar stream to the entries and data of an object, in one pass and bounded memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write as _};

use bytes::Bytes;
use castor_archive::listing::{Builder, Claim, ClaimKind, Rules};
use castor_archive::tar::{self, Kind};
use castor_archive::{HashingReader, Listing, decompress};
use castor_oci::Digest;
use tokio::sync::mpsc;

use crate::tree::advance;

/// Longest file that a layer may hold.
const MAX_FILE: u64 = 4 << 40;

/// What a stream held.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub listing: Listing,
    /// By tag: where each file's data lies.
    pub places: Vec<u64>,
    /// By tag: the digest of each file's content, where it was not written.
    pub contents: Vec<Digest>,
    pub data_size: u64,
    pub diff_id: Digest,
}

/// Reads the compressed tar stream `input` to its end; file data goes to `data`, or is hashed if there is none. Blocks.
pub(crate) fn unpack(input: impl Read + Send, data: Option<&File>, rules: Rules) -> Result<Unpacked, String> {
    let (_, stream) = decompress(input).map_err(|e| e.to_string())?;
    let mut reader = tar::Reader::new(BufReader::with_capacity(256 << 10, HashingReader::new(stream)));
    let mut builder = Builder::new(rules);
    let mut out = data.map(|file| Sink { out: BufWriter::with_capacity(1 << 20, file), at: 0 });
    let (mut places, mut contents) = (Vec::new(), Vec::new());
    let mut at = 0u64;
    while let Some(header) = reader.next().map_err(|e| with_sources(&e))? {
        let narrow = |id: u64, what: &str| {
            u32::try_from(id).map_err(|_| format!("{}: {what} {id} is too large", header.path.escape_ascii()))
        };
        let tag = u32::try_from(places.len()).map_err(|_| "too many files".to_owned())?;
        let kind = match header.kind {
            Kind::File => ClaimKind::File(header.size),
            Kind::Directory => ClaimKind::Directory,
            Kind::Symlink => ClaimKind::Symlink(&header.link),
            Kind::Hardlink => ClaimKind::Hardlink(&header.link),
            Kind::CharDevice => ClaimKind::CharDevice(header.dev_major, header.dev_minor),
            Kind::BlockDevice => ClaimKind::BlockDevice(header.dev_major, header.dev_minor),
            Kind::Fifo => ClaimKind::Fifo,
        };
        let xattrs: Vec<(&[u8], &[u8])> = header.xattrs().collect();
        builder
            .push(&Claim {
                path: &header.path,
                kind,
                mode: header.mode,
                uid: narrow(header.uid, "uid")?,
                gid: narrow(header.gid, "gid")?,
                mtime: header.mtime,
                xattrs: &xattrs,
                tag,
            })
            .map_err(|e| e.to_string())?;
        if header.kind != Kind::File {
            continue;
        }
        if header.size > MAX_FILE {
            return Err(format!("{}: {} bytes are too many", header.path.escape_ascii(), header.size));
        }
        places.push(at);
        let unpacked = match &mut out {
            Some(out) => out.copy(&mut reader, at, header.size),
            None => hash(&mut reader, header.size).map(|digest| contents.push(digest)),
        };
        unpacked.map_err(|e| format!("unpack {}: {e}", header.path.escape_ascii()))?;
        at = advance(at, header.size).map_err(|e| e.to_string())?;
    }
    if let Some(out) = out {
        let file = out.out.into_inner().map_err(|e| e.to_string())?;
        file.set_len(at).map_err(|e| e.to_string())?;
    }
    let listing = builder.finish().map_err(|e| e.to_string())?;
    // Whatever follows the end of the archive is part of the stream's digest.
    let mut rest = reader.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(|e| e.to_string())?;
    let (diff_id, _) = rest.into_inner().finish();
    Ok(Unpacked { listing, places, contents, data_size: at, diff_id })
}

/// The digest of the next `size` bytes.
fn hash(input: &mut impl Read, size: u64) -> io::Result<Digest> {
    let mut input = HashingReader::new(input.take(size));
    if io::copy(&mut input, &mut io::sink())? != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(input.finish().0)
}

/// Writes payloads at their places; what lies between them stays a hole.
struct Sink<'a> {
    out: BufWriter<&'a File>,
    at: u64,
}

impl Sink<'_> {
    fn copy(&mut self, input: &mut impl Read, at: u64, size: u64) -> io::Result<()> {
        if at != self.at {
            // Padding is shorter than a block: written, because a seek would empty the buffer.
            match at.checked_sub(self.at) {
                Some(gap) if gap < 4096 => self.out.write_all(&[0; 4096][..gap as usize])?,
                _ => drop(self.out.seek(SeekFrom::Start(at))?),
            }
        }
        let copied = io::copy(&mut input.take(size), &mut self.out)?;
        if copied != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at = at + size;
        Ok(())
    }
}

/// The reading end of a channel of pieces. A sender that goes away without having said that it is done is an error, not
/// an end.
pub(crate) struct Pieces {
    pieces: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    ended: bool,
}

impl Pieces {
    /// A channel of at most `ahead` pieces.
    pub(crate) fn channel(ahead: usize) -> (mpsc::Sender<Option<Bytes>>, Self) {
        let (send, pieces) = mpsc::channel(ahead);
        (send, Self { pieces, current: Bytes::new(), ended: false })
    }
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let have = self.fill_buf()?;
        let length = have.len().min(buf.len());
        buf[..length].copy_from_slice(&have[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.current = piece,
                Some(None) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the download broke off")),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.current.split_to(amount);
    }
}

pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
