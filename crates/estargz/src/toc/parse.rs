//! From the JSON of a TOC to its tree and chunks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use castor_archive::Timestamp;
use castor_archive::listing::{Builder, Claim, ClaimKind, Rules};
use castor_oci::Digest;

use super::json::{self, Entry, Text};
use super::{Chunk, FileData, Landmark, Toc, TocError};
use crate::{Codec, NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK};

/// Largest place in a file or member: 8 TiB, which is more than any file here may have.
const PLACE_MAX: u64 = 1 << 43;
/// Tag of inodes that are not files.
const NO_FILE: u32 = u32::MAX;

pub(super) fn parse(json: &[u8], codec: Codec, payload_end: u64) -> Result<Toc, TocError> {
    let mut parser = Parser {
        payload_end,
        builder: Builder::new(Rules::TOC),
        files: Vec::new(),
        chunks: Vec::new(),
        landmark: Landmark::None,
        open: None,
        xattrs: Vec::new(),
    };
    json::read_json(json, &mut |entry| parser.entry(&entry)).map_err(|error| match error {
        Ok(error) => error,
        Err(text) => TocError::Json(text),
    })?;
    parser.close()?;
    let Parser { builder, files, mut chunks, landmark, .. } = parser;
    set_ends(&mut chunks, payload_end);
    Ok(Toc { listing: builder.finish()?, files, chunks, landmark, digest: Digest::of(json), codec })
}

struct Parser {
    payload_end: u64,
    builder: Builder,
    files: Vec<FileData>,
    chunks: Vec<Chunk>,
    landmark: Landmark,
    /// The regular file whose chunks come now.
    open: Option<OpenFile>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A regular file that more chunks may follow.
struct OpenFile {
    name: String,
    size: u64,
    /// First of its chunks; a chunk of size 0 goes to the end of the file, which only the last may do.
    first: usize,
    digest: Option<Digest>,
    /// Where its last chunk ends, where the TOC tells.
    end: Option<u64>,
}

impl Parser {
    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), TocError> {
        if &*entry.kind == "chunk" {
            return self.chunk_entry(entry);
        }
        self.close()?;
        let fail = |what| Err(fail(&entry.name, what));
        let link = entry.link_name.as_bytes();
        let kind = match &*entry.kind {
            "reg" => ClaimKind::File(place(entry.size, &entry.name, "size out of range")?),
            "dir" => ClaimKind::Directory,
            "symlink" => ClaimKind::Symlink(link),
            "hardlink" => ClaimKind::Hardlink(link),
            "char" | "block" => {
                let number = |number: Option<i64>| u32::try_from(number.unwrap_or(0));
                let (Ok(major), Ok(minor)) = (number(entry.dev_major), number(entry.dev_minor)) else {
                    return fail("device number out of range");
                };
                if &*entry.kind == "char" {
                    ClaimKind::CharDevice(major, minor)
                } else {
                    ClaimKind::BlockDevice(major, minor)
                }
            }
            "fifo" => ClaimKind::Fifo,
            "" => return fail("no type"),
            _ => return fail("unknown type"),
        };
        let tag = match kind {
            ClaimKind::File(size) => self.open_file(entry, size)?,
            _ => NO_FILE,
        };
        let id = |id: Option<i64>| u32::try_from(id.unwrap_or(0)).map_err(|_| fail_owned(entry, "owner out of range"));
        self.read_xattrs(entry)?;
        let xattrs: Vec<(&[u8], &[u8])> = self.xattrs.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        self.builder.push(&Claim {
            path: entry.name.as_bytes(),
            kind,
            // Old writers left the file type in it.
            mode: entry.mode.unwrap_or(0) as u32 & 0o7777,
            uid: id(entry.uid)?,
            gid: id(entry.gid)?,
            mtime: parse_time(&entry.modtime).ok_or_else(|| fail_owned(entry, "malformed modtime"))?,
            xattrs: &xattrs,
            tag,
        })?;
        Ok(())
    }

    fn read_xattrs(&mut self, entry: &Entry<'_>) -> Result<(), TocError> {
        self.xattrs.clear();
        for (name, value) in entry.xattrs.iter().flatten() {
            let value = BASE64.decode(value.as_bytes()).map_err(|_| fail(&entry.name, "an attribute is not base64"))?;
            self.xattrs.push((name.as_bytes().to_vec(), value));
        }
        Ok(())
    }

    /// Starts a regular file; answers its place in `files`.
    fn open_file(&mut self, entry: &Entry<'_>, size: u64) -> Result<u32, TocError> {
        let name = clean(&entry.name);
        if name == PREFETCH_LANDMARK {
            let end = place(entry.offset, &entry.name, "offset out of range")?.min(self.payload_end);
            self.landmark = Landmark::Prefetch { end };
        } else if name == NO_PREFETCH_LANDMARK && self.landmark == Landmark::None {
            self.landmark = Landmark::NoPrefetch;
        }
        let tag = u32::try_from(self.files.len()).map_err(|_| fail(&entry.name, "too many files"))?;
        let file = OpenFile {
            name,
            size,
            first: self.chunks.len(),
            digest: digest(&entry.digest, &entry.name)?,
            end: match entry.end_offset {
                None | Some(0) => None,
                end => Some(place(end, &entry.name, "endOffset out of range")?),
            },
        };
        if size > 0 {
            self.push_chunk(entry)?;
        } else if entry.chunk_size.unwrap_or(0) != 0 {
            return Err(fail(&entry.name, "an empty file with a chunk"));
        }
        self.open = Some(file);
        Ok(tag)
    }

    fn chunk_entry(&mut self, entry: &Entry<'_>) -> Result<(), TocError> {
        match &self.open {
            None => return Err(fail(&entry.name, "a chunk that follows no file")),
            Some(file) if !entry.name.is_empty() && clean(&entry.name) != file.name => {
                return Err(fail(&entry.name, "a chunk of another file than the one it follows"));
            }
            Some(file) if file.size == 0 => return Err(fail(&entry.name, "an empty file with a chunk")),
            Some(_) => {}
        }
        self.push_chunk(entry)
    }

    fn push_chunk(&mut self, entry: &Entry<'_>) -> Result<(), TocError> {
        let place = |number, what| place(number, &entry.name, what);
        let zeros = match &*entry.chunk_type {
            "" | "data" => false,
            "zeros" => true,
            _ => return Err(fail(&entry.name, "unknown type of chunk")),
        };
        let offset = place(entry.offset, "offset out of range")?;
        if !zeros && offset >= self.payload_end {
            return Err(fail(&entry.name, "offset past the end of the blob's data"));
        }
        self.chunks.push(Chunk {
            offset,
            end: 0,
            inner_offset: place(entry.inner_offset, "innerOffset out of range")?,
            file_offset: place(entry.chunk_offset, "chunkOffset out of range")?,
            size: place(entry.chunk_size, "chunkSize out of range")?,
            digest: digest(&entry.chunk_digest, &entry.name)?,
            zeros,
        });
        Ok(())
    }

    /// Ends the file whose chunks came: they must cover it from its start to its end, in order.
    fn close(&mut self) -> Result<(), TocError> {
        let Some(file) = self.open.take() else { return Ok(()) };
        let fail = |what| Err(fail(&file.name, what));
        let count = self.chunks.len() - file.first;
        let mut position = 0;
        for (index, chunk) in self.chunks[file.first..].iter_mut().enumerate() {
            if chunk.file_offset != position {
                return fail("its chunks leave a gap, overlap or are out of order");
            }
            if chunk.size == 0 {
                if index + 1 != count {
                    return fail("a chunk without size before the last");
                }
                chunk.size = file.size.saturating_sub(position);
            }
            // Sizes and sums are below 2^44: each is at most 2^43, and a sum past the file's size ends here.
            position += chunk.size;
            if chunk.size == 0 || position > file.size {
                return fail("its chunks go past its end");
            }
            if count == 1 && chunk.digest.is_none() {
                chunk.digest = file.digest;
            }
        }
        if position != file.size {
            return fail("its chunks do not reach its end");
        }
        if let (Some(end), Some(last)) = (file.end, self.chunks[file.first..].last_mut()) {
            if !last.zeros && end <= last.offset {
                return fail("endOffset before offset");
            }
            last.end = end.min(self.payload_end);
        }
        let (Ok(first), Ok(end)) = (u32::try_from(file.first), u32::try_from(self.chunks.len())) else {
            return fail("too many chunks");
        };
        self.files.push(FileData { chunks: first..end, digest: file.digest });
        Ok(())
    }
}

/// Each chunk's data ends, at the latest, where another member or frame starts.
fn set_ends(chunks: &mut [Chunk], payload_end: u64) {
    let mut starts: Vec<u64> = chunks.iter().filter(|chunk| !chunk.zeros).map(|chunk| chunk.offset).collect();
    starts.sort_unstable();
    starts.dedup();
    for chunk in chunks {
        let next = starts.partition_point(|start| *start <= chunk.offset);
        let next = starts.get(next).copied().unwrap_or(payload_end);
        chunk.end = match chunk.end {
            0 => next,
            told => told.min(next),
        };
    }
}

/// A number that is a place or a size; absent is 0.
fn place(number: Option<i64>, name: &str, what: &'static str) -> Result<u64, TocError> {
    let number = u64::try_from(number.unwrap_or(0)).ok().filter(|number| *number <= PLACE_MAX);
    number.ok_or_else(|| fail(name, what))
}

fn digest(text: &Text<'_>, name: &str) -> Result<Option<Digest>, TocError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| fail(name, "malformed digest"))
}

/// RFC 3339, perhaps with a fraction; nothing is the time 0.
fn parse_time(text: &str) -> Option<Timestamp> {
    if text.is_empty() {
        return Some(Timestamp::default());
    }
    let time: jiff::Timestamp = text.parse().ok()?;
    let (seconds, nanoseconds) = (time.as_second(), time.subsec_nanosecond());
    // jiff's fraction has the sign of the whole.
    Some(match u32::try_from(nanoseconds) {
        Ok(nanoseconds) => Timestamp::new(seconds, nanoseconds),
        Err(_) => Timestamp::new(seconds - 1, (nanoseconds + 1_000_000_000) as u32),
    })
}

/// A name without empty and `.` components, for comparing.
fn clean(name: &str) -> String {
    name.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

fn fail(name: &str, what: &'static str) -> TocError {
    TocError::Entry { path: name.chars().take(512).collect(), what }
}

fn fail_owned(entry: &Entry<'_>, what: &'static str) -> TocError {
    fail(&entry.name, what)
}
