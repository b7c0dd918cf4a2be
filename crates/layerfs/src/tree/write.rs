//! Writing a `tree`.

use std::collections::HashMap;
use std::io::{self, Write};

use castor_archive::Listing;
use castor_archive::listing::{InodeId, Kind, NameId};
use castor_estargz::toc::{Landmark, Toc};

use super::read::Chunk;
use super::{ALIGN, CHUNK, HEADER, INODE, MAGIC, NAME, SET, VERSION, VERSION_UNVERIFIED};

/// Longest chunk, decompressed: what a single read may make castor hold in memory.
const MAX_CHUNK: u64 = 256 << 20;
/// Most bytes that are decompressed, decompressed and skipped ones together, to get the chunks of one member.
const MAX_MEMBER: u64 = 2 * MAX_CHUNK;
/// Largest `data`: 16 TiB is what an image tree can name of one device.
const MAX_DATA: u64 = 8 << 40;

/// Why a tree cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The layer has something that an object cannot hold.
    #[error("{0}")]
    Layer(String),
    /// The file could not be written.
    #[error("write layer tree: {0}")]
    Io(#[from] io::Error),
}

/// Codec of a layer's chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    None,
    Gzip,
    Zstd,
}

/// Where the data of a regular file lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Offset in `data`.
    pub data: u64,
    /// First chunk and number of chunks.
    pub chunks: (u32, u32),
}

/// What a tree is written from.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub listing: &'a Listing,
    /// By the tag of a regular file's inode.
    pub places: Vec<Place>,
    pub chunks: Vec<Chunk>,
    pub codec: Codec,
    pub data_size: u64,
    pub blob_size: u64,
    pub payload_end: u64,
    pub landmark: u64,
}

/// Lays out the data of a layer that is read by its TOC: in TOC order, each file at an aligned place.
pub(crate) fn from_toc(toc: &Toc, blob_size: u64, payload_end: u64) -> Result<Plan<'_>, WriteError> {
    let mut owner = vec![None; toc.files.len()];
    for (number, inode) in toc.listing.inodes().iter().enumerate() {
        if inode.kind == Kind::File
            && let Some(slot) = owner.get_mut(inode.tag as usize)
        {
            *slot = Some((number as u32, inode.size));
        }
    }
    let mut places = vec![Place::default(); toc.files.len()];
    let mut chunks = Vec::with_capacity(toc.chunks.len());
    let mut at = 0u64;
    for ((file, owner), place) in toc.files.iter().zip(&owner).zip(&mut places) {
        let Some((inode, size)) = *owner else { continue };
        let first = chunks.len() as u32;
        for chunk in toc.chunks_of(file).iter().filter(|chunk| !chunk.zeros) {
            let digest = chunk.digest.or(file.digest.filter(|_| chunk.size == size));
            if chunk.size > MAX_CHUNK {
                return Err(WriteError::Layer(format!("the TOC has a chunk of {} bytes", chunk.size)));
            }
            let needed = chunk.inner_offset.saturating_add(chunk.size);
            chunks.push(Chunk {
                blob_start: chunk.offset,
                // What follows may be long: headers of entries without data, or anything. No more of it is read into memory
                // than an encoder could need for data that does not compress.
                blob_end: chunk.end.min(chunk.offset.saturating_add(longest(needed))),
                inner: chunk.inner_offset,
                data: at + chunk.file_offset,
                size: chunk.size,
                digest,
                inode,
            });
        }
        *place = Place { data: at, chunks: (first, chunks.len() as u32 - first) };
        at = advance(at, size)?;
    }
    check_members(&chunks)?;
    Ok(Plan {
        listing: &toc.listing,
        places,
        chunks,
        codec: match toc.codec {
            castor_estargz::Codec::Gzip => Codec::Gzip,
            castor_estargz::Codec::Zstd => Codec::Zstd,
        },
        data_size: at,
        blob_size,
        payload_end,
        landmark: match toc.landmark {
            Landmark::Prefetch { end } => end,
            Landmark::None | Landmark::NoPrefetch => 0,
        },
    })
}

/// The most that any encoder makes of `size` bytes, and a header.
fn longest(size: u64) -> u64 {
    let size = size.min(MAX_MEMBER);
    size + size / 4 + (1 << 20)
}

/// Refuses members that are more work than any writer makes: a few bytes of blob may stand for any number of zeros to be
/// skipped, and chunks that overlap are decompressed again and again.
fn check_members(chunks: &[Chunk]) -> Result<(), WriteError> {
    let mut order: Vec<(u64, u64, u64)> = chunks.iter().map(|c| (c.blob_start, c.inner, c.size)).collect();
    if !order.is_sorted() {
        order.sort_unstable();
    }
    for member in order.chunk_by(|a, b| a.0 == b.0) {
        let (mut work, mut position) = (0u64, 0u64);
        for (start, inner, size) in member {
            let from = if *inner < position { 0 } else { position };
            position = inner.saturating_add(*size);
            work = work.saturating_add(position - from);
            if work > MAX_MEMBER {
                return Err(WriteError::Layer(format!(
                    "the TOC has {} chunks in what begins at offset {start} of the blob, which are too much to decompress",
                    member.len()
                )));
            }
        }
    }
    Ok(())
}

/// The place behind `size` bytes at `at`.
pub(crate) fn advance(at: u64, size: u64) -> Result<u64, WriteError> {
    at.checked_add(size)
        .and_then(|end| end.checked_next_multiple_of(ALIGN))
        .filter(|end| *end <= MAX_DATA)
        .ok_or_else(|| WriteError::Layer(format!("the layer holds more than {MAX_DATA} bytes")))
}

/// The plan of a layer whose data was written while its tar was read: `places` are offsets by tag.
pub(crate) fn from_tar<'a>(listing: &'a Listing, places: &[u64], data_size: u64, blob_size: u64) -> Plan<'a> {
    Plan {
        listing,
        places: places.iter().map(|data| Place { data: *data, chunks: (0, 0) }).collect(),
        chunks: Vec::new(),
        codec: Codec::None,
        data_size,
        blob_size,
        payload_end: blob_size,
        landmark: 0,
    }
}

/// The heap and the sets of extended attributes, as they grow.
#[derive(Default)]
struct Heap {
    bytes: Vec<u8>,
    sets: Vec<(u32, u32)>,
    known: HashMap<Vec<u8>, u32>,
}

impl Heap {
    fn put(&mut self, bytes: &[u8]) -> Result<u32, WriteError> {
        let at = self.bytes.len();
        if at + bytes.len() > u32::MAX as usize {
            return Err(WriteError::Layer("names and attributes of more than 4 GiB".into()));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(at as u32)
    }

    fn set<'a>(&mut self, xattrs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<u32, WriteError> {
        let mut encoded = Vec::new();
        for (name, value) in xattrs {
            let name_len = u16::try_from(name.len()).map_err(|e| WriteError::Layer(e.to_string()))?;
            let value_len = u32::try_from(value.len()).map_err(|e| WriteError::Layer(e.to_string()))?;
            encoded.extend_from_slice(&name_len.to_le_bytes());
            encoded.extend_from_slice(&value_len.to_le_bytes());
            encoded.extend_from_slice(name);
            encoded.extend_from_slice(value);
        }
        if encoded.is_empty() {
            return Ok(0);
        }
        if let Some(number) = self.known.get(&encoded) {
            return Ok(*number);
        }
        let at = self.put(&encoded)?;
        let number = self.sets.len() as u32;
        self.sets.push((at, encoded.len() as u32));
        self.known.insert(encoded, number);
        Ok(number)
    }
}

impl Plan<'_> {
    /// Writes the tree.
    pub(crate) fn write(&self, out: &mut impl Write) -> Result<(), WriteError> {
        let mut heap = Heap { sets: vec![(0, 0)], ..Heap::default() };
        let names = self.names(&mut heap)?;
        let inodes = self.inodes(&names, &mut heap)?;
        let (count, chunks) = (names.len() / NAME, self.chunks.len() * CHUNK);
        let inodes_at = HEADER;
        let names_at = inodes_at + inodes.len();
        let chunks_at = names_at + names.len();
        let sets_at = chunks_at + chunks;
        let heap_at = sets_at + heap.sets.len() * SET;
        let end = heap_at + heap.bytes.len();

        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(MAGIC);
        let verifiable = self.chunks.iter().all(|chunk| chunk.digest.is_some());
        let version = if verifiable { VERSION } else { VERSION_UNVERIFIED };
        header.extend_from_slice(&version.to_le_bytes());
        let codec = match self.codec {
            Codec::None => 0u32,
            Codec::Gzip => 1,
            Codec::Zstd => 2,
        };
        header.extend_from_slice(&codec.to_le_bytes());
        for number in [end as u64, self.data_size, self.blob_size] {
            header.extend_from_slice(&number.to_le_bytes());
        }
        for number in [inodes.len() / INODE, count, self.chunks.len(), heap.sets.len()] {
            let number = u32::try_from(number).map_err(|e| WriteError::Layer(e.to_string()))?;
            header.extend_from_slice(&number.to_le_bytes());
        }
        for number in [inodes_at, names_at, chunks_at, sets_at, heap_at, heap.bytes.len()] {
            header.extend_from_slice(&(number as u64).to_le_bytes());
        }
        header.extend_from_slice(&self.payload_end.to_le_bytes());
        header.extend_from_slice(&self.landmark.to_le_bytes());
        header.resize(HEADER, 0);

        out.write_all(&header)?;
        out.write_all(&inodes)?;
        out.write_all(&names)?;
        for chunk in &self.chunks {
            let mut record = [0u8; CHUNK];
            for (at, number) in
                [(0, chunk.blob_start), (8, chunk.blob_end), (16, chunk.inner), (24, chunk.data), (32, chunk.size)]
            {
                record[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
            match &chunk.digest {
                Some(digest) => record[40..72].copy_from_slice(digest.as_bytes()),
                None => record[76] = 1,
            }
            record[72..76].copy_from_slice(&chunk.inode.to_le_bytes());
            out.write_all(&record)?;
        }
        for (start, length) in &heap.sets {
            out.write_all(&start.to_le_bytes())?;
            out.write_all(&length.to_le_bytes())?;
        }
        out.write_all(&heap.bytes)?;
        Ok(())
    }

    fn names(&self, heap: &mut Heap) -> Result<Vec<u8>, WriteError> {
        let mut names = Vec::with_capacity(self.listing.len() * NAME);
        for id in self.listing.names() {
            let bytes = self.listing.name(id);
            let start = heap.put(bytes)?;
            let length = u16::try_from(bytes.len()).map_err(|e| WriteError::Layer(e.to_string()))?;
            let NameId(parent) = self.listing.parent(id);
            let InodeId(inode) = self.listing.inode_of(id);
            names.extend_from_slice(&inode.to_le_bytes());
            names.extend_from_slice(&parent.to_le_bytes());
            names.extend_from_slice(&start.to_le_bytes());
            names.extend_from_slice(&length.to_le_bytes());
            names.extend_from_slice(&[0; 2]);
        }
        Ok(names)
    }

    fn inodes(&self, names: &[u8], heap: &mut Heap) -> Result<Vec<u8>, WriteError> {
        let all = self.listing.inodes();
        let mut links = vec![0u32; all.len()];
        for record in names.chunks_exact(NAME) {
            let inode = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
            if let Some(count) = links.get_mut(inode as usize) {
                *count += 1;
            }
        }
        let mut inodes = Vec::with_capacity(all.len() * INODE);
        for (number, inode) in all.iter().enumerate() {
            let id = InodeId(number as u32);
            let mut record = [0u8; INODE];
            let (kind, value, place, chunks) = match inode.kind {
                Kind::File => {
                    let place = self.places.get(inode.tag as usize).copied().unwrap_or_default();
                    (1, inode.size, place.data, place.chunks)
                }
                Kind::Directory => (2, 0, 0, (0, 0)),
                Kind::Symlink => {
                    let target = self.listing.target(id);
                    (3, target.len() as u64, u64::from(heap.put(target)?), (0, 0))
                }
                Kind::CharDevice => (4, u64::from(inode.rdev.0) << 32 | u64::from(inode.rdev.1), 0, (0, 0)),
                Kind::BlockDevice => (5, u64::from(inode.rdev.0) << 32 | u64::from(inode.rdev.1), 0, (0, 0)),
                Kind::Fifo => (6, 0, 0, (0, 0)),
            };
            record[0] = kind;
            record[1] = u8::from(inode.implied);
            record[2..4].copy_from_slice(&inode.mode.to_le_bytes());
            record[4..8].copy_from_slice(&inode.uid.to_le_bytes());
            record[8..12].copy_from_slice(&inode.gid.to_le_bytes());
            record[12..16].copy_from_slice(&inode.mtime.nanoseconds.to_le_bytes());
            record[16..24].copy_from_slice(&inode.mtime.seconds.to_le_bytes());
            record[24..32].copy_from_slice(&value.to_le_bytes());
            record[32..40].copy_from_slice(&place.to_le_bytes());
            record[40..44].copy_from_slice(&chunks.0.to_le_bytes());
            record[44..48].copy_from_slice(&chunks.1.to_le_bytes());
            record[48..52].copy_from_slice(&heap.set(self.listing.xattrs(id))?.to_le_bytes());
            record[52..56].copy_from_slice(&links[number].to_le_bytes());
            inodes.extend_from_slice(&record);
        }
        Ok(inodes)
    }
}
