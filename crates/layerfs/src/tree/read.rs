//! Reading a `tree`.

use std::path::Path;

use castor_archive::Timestamp;
use castor_archive::layer::{Whiteout, whiteout};
use castor_oci::Digest;

use super::{CHUNK, HEADER, INODE, MAGIC, NAME, SET, VERSION, VERSION_UNVERIFIED};
use crate::layer::Reliance;
use crate::map::Map;

/// A mapped `tree`. Numbers that point outside of it read as empty; [`Tree::open`] has checked those of whole tables.
#[derive(Debug)]
pub(crate) struct Tree {
    map: Map,
    header: Header,
}

#[derive(Debug, Clone, Copy)]
struct Header {
    codec: u32,
    data_size: u64,
    inodes: u32,
    names: u32,
    chunks: u32,
    sets: u32,
    inodes_at: usize,
    names_at: usize,
    chunks_at: usize,
    sets_at: usize,
    heap_at: usize,
    heap_len: usize,
    payload_end: u64,
    landmark: u64,
}

/// Type of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// An inode.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inode {
    pub kind: Kind,
    pub implied: bool,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// File: length. Symlink: length of the target. Device: major << 32 + minor.
    pub value: u64,
    /// File: offset in `data`. Symlink: offset of the target.
    pub place: u64,
    /// File: first chunk, and number of chunks.
    pub chunks: (u32, u32),
    pub xattrs: u32,
    pub links: u32,
}

impl Inode {
    /// Whether it is what overlayfs takes for a whiteout.
    pub(crate) fn is_whiteout(&self) -> bool {
        self.kind == Kind::CharDevice && self.value == 0
    }
}

/// A name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name<'a> {
    pub inode: u32,
    pub parent: u32,
    pub bytes: &'a [u8],
}

/// A chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub blob_start: u64,
    pub blob_end: u64,
    pub inner: u64,
    pub data: u64,
    pub size: u64,
    /// What its bytes are verified by; none in a layer that is used unverified.
    pub digest: Option<Digest>,
    pub inode: u32,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Tree {
    /// Maps the tree at `path`; the error says what is wrong with it.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let map = Map::open(path).map_err(|e| format!("map {}: {e}", path.display()))?;
        let header = Header::parse(&map).map_err(|what| format!("{}: {what}", path.display()))?;
        Ok(Self { map, header })
    }

    pub(crate) fn codec(&self) -> Option<castor_estargz::Codec> {
        match self.header.codec {
            1 => Some(castor_estargz::Codec::Gzip),
            2 => Some(castor_estargz::Codec::Zstd),
            _ => None,
        }
    }

    pub(crate) fn data_size(&self) -> u64 {
        self.header.data_size
    }

    pub(crate) fn payload_end(&self) -> u64 {
        self.header.payload_end
    }

    /// Where what the layer wants fetched first ends in the blob.
    pub(crate) fn landmark(&self) -> u64 {
        self.header.landmark
    }

    pub(crate) fn inodes(&self) -> u32 {
        self.header.inodes
    }

    /// What of it means something only on other layers.
    pub(crate) fn reliance(&self) -> Reliance {
        let mut found = Reliance::default();
        for number in 1..self.names() {
            let name = self.name(number);
            let inode = self.inode(name.inode);
            found.hides |= matches!(whiteout(name.bytes), Whiteout::Opaque | Whiteout::Name(_)) || inode.is_whiteout();
            found.implies |= inode.implied;
        }
        found
    }

    pub(crate) fn names(&self) -> u32 {
        self.header.names
    }

    pub(crate) fn chunks(&self) -> u32 {
        self.header.chunks
    }

    pub(crate) fn inode(&self, number: u32) -> Inode {
        let at = self.header.inodes_at + number as usize * INODE;
        let record = self.map.get(at..at + INODE).filter(|_| number < self.header.inodes).unwrap_or_default();
        let kind = match record.first() {
            Some(1) => Kind::File,
            Some(3) => Kind::Symlink,
            Some(4) => Kind::CharDevice,
            Some(5) => Kind::BlockDevice,
            Some(6) => Kind::Fifo,
            _ => Kind::Directory,
        };
        Inode {
            kind,
            implied: record.get(1).is_some_and(|flags| flags & 1 != 0),
            mode: u16_at(record, 2),
            uid: u32_at(record, 4),
            gid: u32_at(record, 8),
            mtime: Timestamp::new(u64_at(record, 16).cast_signed(), u32_at(record, 12)),
            value: u64_at(record, 24),
            place: u64_at(record, 32),
            chunks: (u32_at(record, 40), u32_at(record, 44)),
            xattrs: u32_at(record, 48),
            links: u32_at(record, 52),
        }
    }

    pub(crate) fn name(&self, number: u32) -> Name<'_> {
        let at = self.header.names_at + number as usize * NAME;
        let record = self.map.get(at..at + NAME).filter(|_| number < self.header.names).unwrap_or_default();
        let (start, length) = (u32_at(record, 8) as usize, usize::from(u16_at(record, 12)));
        Name { inode: u32_at(record, 0), parent: u32_at(record, 4), bytes: self.heap(start, length) }
    }

    pub(crate) fn chunk(&self, number: u32) -> Chunk {
        let at = self.header.chunks_at + number as usize * CHUNK;
        let record = self.map.get(at..at + CHUNK).filter(|_| number < self.header.chunks).unwrap_or_default();
        let digest: [u8; 32] = record.get(40..72).and_then(|b| b.try_into().ok()).unwrap_or_default();
        Chunk {
            blob_start: u64_at(record, 0),
            blob_end: u64_at(record, 8),
            inner: u64_at(record, 16),
            data: u64_at(record, 24),
            size: u64_at(record, 32),
            digest: (u32_at(record, 76) & 1 == 0).then(|| Digest::from_bytes(digest)),
            inode: u32_at(record, 72),
        }
    }

    pub(crate) fn target(&self, inode: &Inode) -> &[u8] {
        if inode.kind != Kind::Symlink {
            return &[];
        }
        self.heap(inode.place as usize, inode.value as usize)
    }

    /// The extended attributes of a set.
    pub(crate) fn xattrs(&self, set: u32) -> Vec<(&[u8], &[u8])> {
        let at = self.header.sets_at + set as usize * SET;
        if set >= self.header.sets {
            return Vec::new();
        }
        let mut rest = self.heap(u32_at(&self.map, at) as usize, u32_at(&self.map, at + 4) as usize);
        let mut xattrs = Vec::new();
        while rest.len() >= 6 {
            let (name, value) = (usize::from(u16_at(rest, 0)), u32_at(rest, 2) as usize);
            let (Some(n), Some(v)) = (rest.get(6..6 + name), rest.get(6 + name..6 + name + value)) else { break };
            xattrs.push((n, v));
            rest = &rest[6 + name + value..];
        }
        xattrs
    }

    /// The first chunk that ends behind `offset` of `data`, or the number of chunks.
    pub(crate) fn chunk_at(&self, offset: u64) -> u32 {
        let (mut low, mut high) = (0, self.header.chunks);
        while low < high {
            let middle = low + (high - low) / 2;
            let chunk = self.chunk(middle);
            if chunk.data + chunk.size <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The path of a name that leads to `inode`.
    pub(crate) fn path_of(&self, inode: u32) -> String {
        let Some(mut name) = (0..self.names()).find(|n| self.name(*n).inode == inode) else { return String::new() };
        let mut parts = Vec::new();
        // A directory's name has a smaller number than what it contains, so this ends.
        while name != 0 {
            let entry = self.name(name);
            parts.push(String::from_utf8_lossy(entry.bytes).into_owned());
            if entry.parent >= name {
                break;
            }
            name = entry.parent;
        }
        parts.reverse();
        format!("/{}", parts.join("/"))
    }

    fn heap(&self, start: usize, length: usize) -> &[u8] {
        let end = start.saturating_add(length);
        if end > self.header.heap_len {
            return &[];
        }
        self.map.get(self.header.heap_at + start..self.header.heap_at + end).unwrap_or_default()
    }
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < HEADER || &bytes[..8] != MAGIC {
            return Err("not a layer tree".into());
        }
        let version = u32_at(bytes, 8);
        if version != VERSION && version != VERSION_UNVERIFIED {
            return Err(format!("version {version}, this castor knows {VERSION} and {VERSION_UNVERIFIED}"));
        }
        if u64_at(bytes, 16) != bytes.len() as u64 {
            return Err(format!("{} bytes long, want {}", bytes.len(), u64_at(bytes, 16)));
        }
        let table = |count: u32, at: usize, record: usize| {
            let start = usize::try_from(u64_at(bytes, at)).ok();
            let end = start.and_then(|s| s.checked_add((count as usize).checked_mul(record)?));
            match (start, end) {
                (Some(start), Some(end)) if end <= bytes.len() => Ok(start),
                _ => Err("a table reaches beyond its end".to_owned()),
            }
        };
        let (inodes, names, chunks, sets) =
            (u32_at(bytes, 40), u32_at(bytes, 44), u32_at(bytes, 48), u32_at(bytes, 52));
        if inodes == 0 || names == 0 {
            return Err("no root".into());
        }
        let heap_len = usize::try_from(u64_at(bytes, 96)).map_err(|e| e.to_string())?;
        let heap_at = table(1, 88, heap_len)?;
        Ok(Self {
            codec: u32_at(bytes, 12),
            data_size: u64_at(bytes, 24),
            inodes,
            names,
            chunks,
            sets,
            inodes_at: table(inodes, 56, INODE)?,
            names_at: table(names, 64, NAME)?,
            chunks_at: table(chunks, 72, CHUNK)?,
            sets_at: table(sets, 80, SET)?,
            heap_at,
            heap_len,
            payload_end: u64_at(bytes, 104),
            landmark: u64_at(bytes, 112),
        })
    }
}
