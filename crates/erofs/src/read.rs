//! Reading an image.
//!
//! Nothing in an image is trusted: whatever it claims, reading it ends in an answer or in a [`ReadError`], and
//! memory is taken for what was read, never for what was claimed. Images of other writers are read too, as long
//! as they have 4 KiB blocks and no compression.

use std::cmp::Ordering;
use std::io;

use castor_archive::{ReadAt, Timestamp};

use crate::format::*;
use crate::tree::{Kind, decode_device};
use crate::{BLOCK_SIZE, write, xattr};

/// Longest symlink target, as the kernel has it.
const TARGET_MAX: u64 = 4096;

/// Number of an inode in an image: its place in units of 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nid(pub u64);

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not an EROFS image, or one with features unknown here.
    #[error("not a readable EROFS image: {0}")]
    Superblock(String),
    /// The image contradicts itself.
    #[error("corrupt EROFS image: inode {nid}: {what}")]
    Corrupt {
        /// The inode concerned.
        nid: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// An inode of one type was used as one of another.
    #[error("inode {nid} is not a {kind:?}")]
    Kind {
        /// The inode concerned.
        nid: u64,
        /// What it should be.
        kind: Kind,
    },
    /// The source failed.
    #[error("read EROFS image: {0}")]
    Io(#[from] io::Error),
}

/// A data device as the image names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its label, without trailing zeros.
    pub tag: Vec<u8>,
    /// Its size in bytes.
    pub size: u64,
}

/// What the superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The image's UUID.
    pub uuid: [u8; 16],
    /// Inodes in the image.
    pub inodes: u64,
    /// The root directory.
    pub root: Nid,
    /// The data devices; device n of an extent is `devices[n - 1]`.
    pub devices: Vec<Device>,
    /// Time of the image, which compact inodes have as theirs.
    time: Timestamp,
    meta_block: u32,
    xattr_block: u32,
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub nid: Nid,
    /// Its type.
    pub kind: Kind,
    /// Permission bits, the low 12.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Size in bytes.
    pub size: u64,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Major and minor number, of devices.
    pub rdev: (u32, u32),
    layout: u16,
    union: u32,
    /// Bytes of the attributes after the inode.
    xattr_size: u64,
    /// Position of what follows inode and attributes.
    tail: u64,
}

/// Name and value of an extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// The inode it leads to.
    pub nid: Nid,
    /// The type that the directory notes for it.
    pub kind: Kind,
}

/// Where a run of a file's bytes lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Offset in the file.
    pub file_offset: u64,
    /// Length of the run.
    pub length: u64,
    /// Device and offset in it; 0 is the image itself. `None` is a hole.
    pub place: Option<(u16, u64)>,
}

/// An image.
#[derive(Debug)]
pub struct Image<R> {
    source: R,
    superblock: Superblock,
}

impl<R: ReadAt> Image<R> {
    /// Reads and checks the superblock and the device table.
    pub fn open(source: R) -> Result<Self, ReadError> {
        let refuse = |what: &str| ReadError::Superblock(what.to_owned());
        let mut block = vec![0; BLOCK - SUPERBLOCK_OFFSET as usize];
        source.read_exact_at(&mut block, SUPERBLOCK_OFFSET).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => refuse("shorter than a superblock"),
            _ => error.into(),
        })?;
        if u32_at(&block, 0) != MAGIC {
            return Err(refuse("wrong magic"));
        }
        if block[12] != BLOCK_BITS {
            return Err(refuse("blocks are not of 4096 bytes"));
        }
        if u32_at(&block, 8) & COMPAT_CHECKSUM != 0 {
            let told = u32_at(&block, 4);
            block[4..8].fill(0);
            if write::checksum(&block) != told {
                return Err(refuse("wrong checksum of the superblock"));
            }
        }
        let incompat = u32_at(&block, 80);
        if incompat & !(INCOMPAT_CHUNKED | INCOMPAT_DEVICES) != 0 {
            return Err(ReadError::Superblock(format!("unknown features {incompat:#x}")));
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[48..64]);
        let mut superblock = Superblock {
            uuid,
            inodes: u64_at(&block, 16),
            root: Nid(u64::from(u16_at(&block, 14))),
            devices: Vec::new(),
            time: Timestamp::new(u64_at(&block, 24) as i64, u32_at(&block, 32).min(999_999_999)),
            meta_block: u32_at(&block, 40),
            xattr_block: u32_at(&block, 44),
        };
        if incompat & INCOMPAT_DEVICES != 0 {
            let start = u64::from(u16_at(&block, 88)) * DEVICE_SLOT_SIZE as u64;
            for number in 0..u64::from(u16_at(&block, 86)) {
                let mut slot = [0; DEVICE_SLOT_SIZE];
                source
                    .read_exact_at(&mut slot, start + number * DEVICE_SLOT_SIZE as u64)
                    .map_err(|_| refuse("device table cut off"))?;
                let end = slot[..64].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                let size = u64::from(u32_at(&slot, 64)) * BLOCK_SIZE;
                superblock.devices.push(Device { tag: slot[..end].to_vec(), size });
            }
        }
        Ok(Self { source, superblock })
    }

    /// What the superblock says.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The root directory.
    pub fn root(&self) -> Result<Inode, ReadError> {
        self.inode(self.superblock.root)
    }

    /// Reads an inode.
    pub fn inode(&self, nid: Nid) -> Result<Inode, ReadError> {
        let corrupt = |what| ReadError::Corrupt { nid: nid.0, what };
        let position = nid
            .0
            .checked_mul(SLOT)
            .and_then(|offset| offset.checked_add(u64::from(self.superblock.meta_block) * BLOCK_SIZE))
            .filter(|position| *position < 1 << 60)
            .ok_or_else(|| corrupt("number out of range"))?;
        let mut raw = [0; EXTENDED_INODE_SIZE as usize];
        self.read(nid, &mut raw[..COMPACT_INODE_SIZE as usize], position)?;
        let format = u16_at(&raw, 0);
        let extended = format & 1 == 1;
        if extended {
            self.read(nid, &mut raw, position)?;
        }
        let mode = u16_at(&raw, 4);
        let kind = kind_of_mode(mode).ok_or_else(|| corrupt("unknown file type"))?;
        let layout = format >> 1 & 7;
        if !matches!(layout, LAYOUT_PLAIN | LAYOUT_INLINE | LAYOUT_CHUNKED) || format >> 4 != 0 {
            return Err(corrupt("unknown data layout"));
        }
        let xattr_size = match u16_at(&raw, 2) {
            0 => 0,
            count => XATTR_HEADER_SIZE + 4 * u64::from(count - 1),
        };
        let union = u32_at(&raw, 16);
        let head = if extended { EXTENDED_INODE_SIZE } else { COMPACT_INODE_SIZE };
        let mut inode = Inode {
            nid,
            kind,
            mode: mode & 0o7777,
            uid: u32::from(u16_at(&raw, 24)),
            gid: u32::from(u16_at(&raw, 26)),
            nlink: u32::from(u16_at(&raw, 6)),
            size: u64::from(u32_at(&raw, 8)),
            mtime: self.superblock.time,
            rdev: (0, 0),
            layout,
            union,
            xattr_size,
            tail: position + head + xattr_size,
        };
        if extended {
            (inode.uid, inode.gid) = (u32_at(&raw, 24), u32_at(&raw, 28));
            (inode.nlink, inode.size) = (u32_at(&raw, 44), u64_at(&raw, 8));
            inode.mtime = Timestamp::new(u64_at(&raw, 32) as i64, u32_at(&raw, 40));
        }
        if inode.size > i64::MAX as u64 || inode.mtime.nanoseconds > 999_999_999 {
            return Err(corrupt("size or time out of range"));
        }
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            inode.rdev = decode_device(union);
        }
        Ok(inode)
    }

    /// Finds a name in a directory.
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<DirEntry>, ReadError> {
        self.check_kind(directory, Kind::Directory)?;
        // The last block whose first name is not past the one that is sought.
        let (mut low, mut high) = (0, directory.size.div_ceil(BLOCK_SIZE));
        let mut candidate = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let entries = self.directory_block(directory, middle)?;
            match entries.first().map_or(Ordering::Greater, |first| first.name.as_slice().cmp(name)) {
                Ordering::Greater => high = middle,
                _ => {
                    candidate = Some(entries);
                    low = middle + 1;
                }
            }
        }
        let found = candidate.and_then(|entries| entries.into_iter().find(|entry| entry.name == name));
        Ok(found)
    }

    /// The entries of a directory in the order of the image, `.` and `..` included, from position `from` on (0,
    /// then what [`ReadDir::position`] says).
    pub fn read_dir(&self, directory: &Inode, from: u64) -> Result<ReadDir<'_, R>, ReadError> {
        self.check_kind(directory, Kind::Directory)?;
        let (block, index) = (from / BLOCK_SIZE, (from % BLOCK_SIZE) as usize);
        Ok(ReadDir { image: self, directory: directory.clone(), block, index, entries: None })
    }

    /// The target of a symlink.
    pub fn read_link(&self, symlink: &Inode) -> Result<Vec<u8>, ReadError> {
        self.check_kind(symlink, Kind::Symlink)?;
        if symlink.size > TARGET_MAX {
            return Err(ReadError::Corrupt { nid: symlink.nid.0, what: "symlink target too long" });
        }
        let mut target = vec![0; symlink.size as usize];
        self.read_data(symlink, &mut target, 0)?;
        Ok(target)
    }

    /// Names and values of all extended attributes, sorted by name. Those of namespaces unknown here are left out.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, ReadError> {
        let corrupt = |what| ReadError::Corrupt { nid: inode.nid.0, what };
        if inode.xattr_size == 0 {
            return Ok(Vec::new());
        }
        // At most 256 KiB: the count has 16 bits.
        let mut area = vec![0; inode.xattr_size as usize];
        self.read(inode.nid, &mut area, inode.tail - inode.xattr_size)?;
        let shared = usize::from(area[4]);
        let ids = area
            .get(XATTR_HEADER_SIZE as usize..XATTR_HEADER_SIZE as usize + 4 * shared)
            .ok_or_else(|| corrupt("shared attributes cut off"))?;
        let mut found = Vec::new();
        for id in ids.chunks_exact(4) {
            let at = u64::from(self.superblock.xattr_block) * BLOCK_SIZE + 4 * u64::from(u32_at(id, 0));
            let mut head = [0; 4];
            self.read(inode.nid, &mut head, at)?;
            let mut entry = vec![0; usize::from(head[0]) + usize::from(u16_at(&head, 2))];
            self.read(inode.nid, &mut entry, at + 4)?;
            found.extend(xattr_pair(head, &entry));
        }
        let mut rest = &area[XATTR_HEADER_SIZE as usize + 4 * shared..];
        while let Some((head, after)) = rest.split_first_chunk::<4>() {
            let size = usize::from(head[0]) + usize::from(u16_at(head, 2));
            let entry = after.get(..size).ok_or_else(|| corrupt("attribute cut off"))?;
            found.extend(xattr_pair(*head, entry));
            rest = after.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
        found.sort();
        Ok(found)
    }

    /// The value of one extended attribute.
    pub fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        Ok(self.xattrs(inode)?.into_iter().find(|pair| pair.0 == name).map(|pair| pair.1))
    }

    /// The run of bytes around `offset` of a regular file; `None` at or past its end.
    pub fn map(&self, file: &Inode, offset: u64) -> Result<Option<Mapping>, ReadError> {
        self.check_kind(file, Kind::File)?;
        if offset >= file.size {
            return Ok(None);
        }
        let corrupt = |what| ReadError::Corrupt { nid: file.nid.0, what };
        if file.layout != LAYOUT_CHUNKED {
            let tail_start = file.size - file.size % BLOCK_SIZE;
            if file.layout == LAYOUT_INLINE && offset >= tail_start {
                let length = file.size - tail_start;
                return Ok(Some(Mapping { file_offset: tail_start, length, place: Some((0, file.tail)) }));
            }
            let length = if file.layout == LAYOUT_INLINE { tail_start } else { file.size };
            let place = Some((0, u64::from(file.union) * BLOCK_SIZE));
            return Ok(Some(Mapping { file_offset: 0, length, place }));
        }
        let format = file.union as u16;
        let bits = u32::from(BLOCK_BITS) + u32::from(format & CHUNK_BITS_MASK);
        let number = offset >> bits;
        let indexed = format & CHUNK_INDEXES != 0;
        let unit = if indexed { 8 } else { 4 };
        let at = number
            .checked_mul(unit)
            .and_then(|offset| offset.checked_add(file.tail.next_multiple_of(unit)))
            .ok_or_else(|| corrupt("chunk index out of range"))?;
        let mut raw = [0; 8];
        self.read(file.nid, &mut raw[..unit as usize], at)?;
        let (device, address) = if indexed { (u16_at(&raw, 2), u32_at(&raw, 4)) } else { (0, u32_at(&raw, 0)) };
        if usize::from(device) > self.superblock.devices.len() {
            return Err(corrupt("data on a device that does not exist"));
        }
        let file_offset = number << bits;
        Ok(Some(Mapping {
            file_offset,
            length: (1 << bits).min(file.size - file_offset),
            place: (address != NULL_ADDRESS).then_some((device, u64::from(address) * BLOCK_SIZE)),
        }))
    }

    fn check_kind(&self, inode: &Inode, kind: Kind) -> Result<(), ReadError> {
        if inode.kind != kind {
            return Err(ReadError::Kind { nid: inode.nid.0, kind });
        }
        Ok(())
    }

    /// Reads at a place of the image that an inode led to.
    fn read(&self, nid: Nid, buf: &mut [u8], position: u64) -> Result<(), ReadError> {
        self.source.read_exact_at(buf, position).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::Corrupt { nid: nid.0, what: "points past the end of the image" },
            _ => error.into(),
        })
    }

    /// Reads data of a directory or symlink; `buf` must not cross from the blocks into the inline tail.
    fn read_data(&self, inode: &Inode, buf: &mut [u8], offset: u64) -> Result<(), ReadError> {
        let tail_start = inode.size - inode.size % BLOCK_SIZE;
        let base = match inode.layout {
            LAYOUT_INLINE if offset >= tail_start => inode.tail + (offset - tail_start),
            LAYOUT_INLINE | LAYOUT_PLAIN => (u64::from(inode.union) * BLOCK_SIZE)
                .checked_add(offset)
                .ok_or(ReadError::Corrupt { nid: inode.nid.0, what: "data out of range" })?,
            _ => return Err(ReadError::Corrupt { nid: inode.nid.0, what: "directory or symlink in chunks" }),
        };
        self.read(inode.nid, buf, base)
    }

    /// The entries in one block of a directory.
    fn directory_block(&self, directory: &Inode, block: u64) -> Result<Vec<DirEntry>, ReadError> {
        let corrupt = |what| ReadError::Corrupt { nid: directory.nid.0, what };
        let offset = block * BLOCK_SIZE;
        let length = (directory.size - offset).min(BLOCK_SIZE) as usize;
        let mut buffer = [0; BLOCK];
        let raw = &mut buffer[..length];
        self.read_data(directory, raw, offset)?;
        if length < DIRENT_SIZE {
            return Err(corrupt("directory block too small"));
        }
        let heads = usize::from(u16_at(raw, 8));
        if heads < DIRENT_SIZE || heads % DIRENT_SIZE != 0 || heads > length {
            return Err(corrupt("malformed directory block"));
        }
        let count = heads / DIRENT_SIZE;
        let mut entries = Vec::with_capacity(count);
        for index in 0..count {
            let head = &raw[index * DIRENT_SIZE..][..DIRENT_SIZE];
            let start = usize::from(u16_at(head, 8));
            let end = match index + 1 {
                next if next < count => usize::from(u16_at(raw, next * DIRENT_SIZE + 8)),
                _ => length,
            };
            let name = raw.get(start..end).ok_or_else(|| corrupt("malformed directory entry"))?;
            // Only the last name of a block may be shorter than its room.
            let used = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            if start < heads || used == 0 || used > 255 || (used < name.len() && index + 1 < count) {
                return Err(corrupt("malformed name"));
            }
            if name[..used].contains(&b'/') {
                return Err(corrupt("name with a slash"));
            }
            let kind = kind_of_dirent(head[10]).ok_or_else(|| corrupt("unknown type of a directory entry"))?;
            entries.push(DirEntry { name: name[..used].to_vec(), nid: Nid(u64_at(head, 0)), kind });
        }
        Ok(entries)
    }
}

/// The entries of a directory, one after the other. Ends after the first error.
#[derive(Debug)]
pub struct ReadDir<'a, R> {
    image: &'a Image<R>,
    directory: Inode,
    block: u64,
    /// The next entry of the block.
    index: usize,
    /// The block's entries, once read.
    entries: Option<Vec<DirEntry>>,
}

impl<R: ReadAt> ReadDir<'_, R> {
    /// Where to go on after the last entry that was returned; never 0 after an entry.
    pub fn position(&self) -> u64 {
        self.block.saturating_mul(BLOCK_SIZE).saturating_add(self.index as u64)
    }
}

impl<R: ReadAt> Iterator for ReadDir<'_, R> {
    type Item = Result<DirEntry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.block >= self.directory.size.div_ceil(BLOCK_SIZE) {
                return None;
            }
            let entries = match &mut self.entries {
                Some(entries) => entries,
                None => match self.image.directory_block(&self.directory, self.block) {
                    Ok(entries) => self.entries.insert(entries),
                    Err(error) => {
                        self.block = u64::MAX;
                        return Some(Err(error));
                    }
                },
            };
            if let Some(entry) = entries.get_mut(self.index) {
                self.index += 1;
                let name = std::mem::take(&mut entry.name);
                return Some(Ok(DirEntry { name, ..*entry }));
            }
            (self.block, self.index, self.entries) = (self.block + 1, 0, None);
        }
    }
}

/// Full name and value of an attribute, unless its namespace is unknown.
fn xattr_pair(head: [u8; 4], entry: &[u8]) -> Option<Xattr> {
    let (rest, value) = entry.split_at_checked(usize::from(head[0]))?;
    Some((xattr::join_name(head[1], rest)?, value.to_vec()))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
