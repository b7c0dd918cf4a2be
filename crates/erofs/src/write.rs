//! Writing an image.
//!
//! The regions of an image, in this order:
//!
//! | region | starts at |
//! |---|---|
//! | superblock | byte 1024 of block 0 |
//! | device table, 128 bytes a device | block 1 |
//! | shared extended attributes | `xattr_blkaddr` |
//! | inodes with what belongs to them: attributes, chunk indexes, inline tails | `meta_blkaddr` |
//! | blocks of directories (and of symlinks too long to be inline) | after the inodes |
//!
//! The root's number must fit 16 bits, so inodes come early and count from a block of their own, behind the
//! device table, which may be large. Everything is placed first and then written front to back.

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;

use crate::format::*;
use crate::tree::{Kind, Node, Tree};
use crate::{BLOCK_SIZE, xattr};

/// Most shared attributes that an inode can refer to.
const SHARED_MAX: usize = 255;
/// Inode numbers start here: 0 would give an object inode number 0 in user space.
const FIRST_POSITION: u64 = 2 * SLOT;

/// A data device of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSlot {
    /// A label, at most 64 bytes; nothing checks it.
    pub tag: Vec<u8>,
    /// Size of the device in bytes, at most 16 TiB; payloads must end before it.
    pub size: u64,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Size of the image in bytes.
    pub size: u64,
    /// Inodes in it.
    pub inodes: u64,
}

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// More than 65535 devices, or one that is too large.
    #[error("invalid device table: {0}")]
    Devices(String),
    /// A file lies outside its device.
    #[error("file of {size} bytes at {offset} of device {device} lies outside of the device")]
    OutsideDevice {
        /// Device number.
        device: u16,
        /// Offset on the device.
        offset: u64,
        /// Size of the file.
        size: u64,
    },
    /// More metadata than 32-bit block numbers can reach, or too many attributes on one node.
    #[error("tree too large for an image: {0}")]
    TooLarge(&'static str),
    /// The output failed.
    #[error("write image: {0}")]
    Io(#[from] io::Error),
}

/// Writes the image of what the root of `tree` reaches, in one pass from its first byte to its last.
///
/// Equal trees, devices and UUIDs give equal bytes, in whatever order the trees were built. Each image needs a
/// UUID of its own: overlayfs stops keeping inode numbers stable when two of its lowers share one.
pub fn write_image(
    tree: &Tree,
    devices: &[DeviceSlot],
    uuid: [u8; 16],
    out: &mut dyn Write,
) -> Result<Written, WriteError> {
    let plan = Plan::new(tree, devices)?;
    let mut out = Counted { out, position: 0 };
    plan.write(devices, uuid, &mut out)?;
    out.out.flush()?;
    Ok(Written { size: out.position, inodes: plan.order.len() as u64 })
}

/// The shared attributes and what follows an inode, for each set of the tree.
struct Attributes {
    shared: Vec<u8>,
    bodies: Vec<Vec<u8>>,
}

/// Where everything goes.
struct Plan<'a> {
    tree: &'a Tree,
    /// Reachable nodes in the order of their inodes.
    order: Vec<u32>,
    /// Per node: number of its inode (0: unreachable).
    nids: Vec<u32>,
    /// Per node: number of names.
    nlinks: Vec<u32>,
    /// Names of all directories, each directory's sorted and side by side.
    sorted: Vec<u32>,
    /// Per directory, in the order of `order`: its part of `sorted`.
    ranges: Vec<Range<u32>>,
    attributes: Attributes,
    /// First block of the data of nodes that have blocks, in the order of `order`, relative to the end of the
    /// inodes; with the layout chosen.
    bodies: Vec<Placed>,
    xattr_block: u64,
    meta_block: u64,
    /// First block after the inodes.
    spill_block: u64,
    blocks: u64,
}

/// Place of a directory's or symlink's data.
#[derive(Clone, Copy)]
struct Placed {
    layout: u16,
    first_block: u32,
    size: u64,
}

impl<'a> Plan<'a> {
    fn new(tree: &'a Tree, devices: &[DeviceSlot]) -> Result<Self, WriteError> {
        check_devices(devices)?;
        let mut plan = Self {
            tree,
            order: Vec::new(),
            nids: vec![0; tree.nodes.len()],
            nlinks: vec![0; tree.nodes.len()],
            sorted: Vec::new(),
            ranges: Vec::new(),
            attributes: Attributes { shared: Vec::new(), bodies: Vec::new() },
            bodies: Vec::new(),
            xattr_block: 0,
            meta_block: 0,
            spill_block: 0,
            blocks: 0,
        };
        plan.walk();
        for node in &plan.order {
            check_extent(&tree.nodes[*node as usize], devices)?;
        }
        plan.attributes = plan.plan_attributes()?;
        let table = (devices.len() * DEVICE_SLOT_SIZE) as u64;
        plan.xattr_block = 1 + table.div_ceil(BLOCK_SIZE);
        plan.meta_block = plan.xattr_block + (plan.attributes.shared.len() as u64).div_ceil(BLOCK_SIZE);
        plan.place()?;
        Ok(plan)
    }

    /// Orders the nodes breadth first, siblings side by side and sorted, and counts names.
    fn walk(&mut self) {
        let mut seen = vec![false; self.tree.nodes.len()];
        let mut directories = vec![0u32];
        self.order.push(0);
        seen[0] = true;
        self.nlinks[0] = 2;
        let mut next = 0;
        while let Some(directory) = directories.get(next).copied() {
            next += 1;
            let start = self.sorted.len();
            self.sorted.extend(self.tree.slots(directory));
            self.sorted[start..].sort_unstable_by(|a, b| self.tree.name(*a).cmp(self.tree.name(*b)));
            self.ranges.push(start as u32..self.sorted.len() as u32);
            for slot in start..self.sorted.len() {
                let child = self.tree.linked(self.sorted[slot]);
                let is_directory = self.tree.nodes[child as usize].kind == Kind::Directory;
                if is_directory {
                    self.nlinks[directory as usize] += 1;
                    self.nlinks[child as usize] = 2;
                    directories.push(child);
                } else {
                    self.nlinks[child as usize] += 1;
                }
                if !std::mem::replace(&mut seen[child as usize], true) {
                    self.order.push(child);
                }
            }
        }
    }

    /// Stores once what two or more inodes have, and gives each set its form.
    fn plan_attributes(&self) -> Result<Attributes, WriteError> {
        let sets = self.tree.sets();
        let mut uses = vec![0u64; sets.len()];
        let mut used_sets = Vec::new();
        for node in &self.order {
            let set = self.tree.nodes[*node as usize].xattrs as usize;
            if uses[set] == 0 && set != 0 {
                used_sets.push(set);
            }
            uses[set] += 1;
        }
        let mut counts: HashMap<(&[u8], &[u8]), u64> = HashMap::new();
        for set in &used_sets {
            for pair in sets.get(*set as u32) {
                *counts.entry(pair).or_default() += uses[*set];
            }
        }
        let mut shared = Vec::new();
        let mut ids: HashMap<(&[u8], &[u8]), u32> = HashMap::new();
        let mut bodies = vec![Vec::new(); sets.len()];
        for set in used_sets {
            let (mut list, mut inline) = (Vec::new(), Vec::new());
            for pair in sets.get(set as u32) {
                if counts[&pair] < 2 || list.len() == SHARED_MAX {
                    inline.extend_from_slice(&xattr::encode_entry(pair.0, pair.1));
                    continue;
                }
                let next = u32::try_from(shared.len() / 4).map_err(|_| WriteError::TooLarge("shared attributes"))?;
                let id = *ids.entry(pair).or_insert_with(|| {
                    shared.extend_from_slice(&xattr::encode_entry(pair.0, pair.1));
                    next
                });
                list.push(id);
            }
            let mut body = vec![0; XATTR_HEADER_SIZE as usize];
            body[4] = list.len() as u8;
            body.extend(list.iter().flat_map(|id| id.to_le_bytes()));
            body.append(&mut inline);
            if xattr_count(&body) > usize::from(u16::MAX) {
                return Err(WriteError::TooLarge("extended attributes of one inode"));
            }
            bodies[set] = body;
        }
        Ok(Attributes { shared, bodies })
    }

    /// Gives each inode its place, and each directory its blocks.
    fn place(&mut self) -> Result<(), WriteError> {
        let (mut position, mut spilled) = (FIRST_POSITION, 0u64);
        let mut directory = 0;
        for index in 0..self.order.len() {
            let id = self.order[index] as usize;
            let node = self.tree.nodes[id];
            let head = EXTENDED_INODE_SIZE + self.attributes.bodies[node.xattrs as usize].len() as u64;
            let end = match node.kind {
                Kind::File if node.value > 0 => {
                    let end = head.next_multiple_of(8) + 8;
                    position + end
                }
                Kind::Directory | Kind::Symlink => {
                    let size = if node.kind == Kind::Symlink {
                        node.value
                    } else {
                        directory += 1;
                        self.directory_size(directory - 1)
                    };
                    let mut tail = size % BLOCK_SIZE;
                    let mut layout = LAYOUT_INLINE;
                    // An inline tail must lie within one block; if it cannot, it gets a block of its own.
                    if tail == 0 || head + tail > BLOCK_SIZE {
                        (layout, tail) = (LAYOUT_PLAIN, 0);
                    } else if position / BLOCK_SIZE != (position + head + tail - 1) / BLOCK_SIZE {
                        position = position.next_multiple_of(BLOCK_SIZE);
                    }
                    let blocks = if layout == LAYOUT_INLINE { size / BLOCK_SIZE } else { size.div_ceil(BLOCK_SIZE) };
                    let first_block = u32::try_from(spilled).map_err(|_| WriteError::TooLarge("directory blocks"))?;
                    self.bodies.push(Placed { layout, first_block, size });
                    spilled += blocks;
                    position + head + tail
                }
                _ => position + head,
            };
            self.nids[id] = u32::try_from(position / SLOT).map_err(|_| WriteError::TooLarge("inodes"))?;
            position = end.next_multiple_of(SLOT);
        }
        self.spill_block = self.meta_block + position.div_ceil(BLOCK_SIZE);
        self.blocks = self.spill_block + spilled;
        if self.blocks >= u64::from(u32::MAX) {
            return Err(WriteError::TooLarge("blocks"));
        }
        Ok(())
    }

    /// The entries of a directory (by its position among directories), `.` and `..` at their place.
    fn entries(&self, directory: usize, id: u32) -> Vec<(&'a [u8], u32)> {
        let range = &self.ranges[directory];
        let slots = &self.sorted[range.start as usize..range.end as usize];
        let mut entries: Vec<(&[u8], u32)> = Vec::with_capacity(slots.len() + 2);
        entries.extend(slots.iter().map(|slot| (self.tree.name(*slot), self.tree.linked(*slot))));
        let parent = self.tree.nodes[id as usize].parent;
        for (name, node) in [(&b"."[..], id), (b"..", parent)] {
            let at = entries.partition_point(|entry| entry.0 < name);
            entries.insert(at, (name, node));
        }
        entries
    }

    fn directory_size(&self, directory: usize) -> u64 {
        // Only the names' lengths matter here, so the ids may be anything.
        let entries = self.entries(directory, 0);
        let blocks = split_blocks(&entries);
        let last = blocks.last().map_or(0, |range| entries[range.clone()].iter().map(dirent_size).sum());
        (blocks.len().saturating_sub(1) * BLOCK + last) as u64
    }

    fn write(&self, devices: &[DeviceSlot], uuid: [u8; 16], out: &mut Counted<'_>) -> Result<(), WriteError> {
        out.put(&self.superblock(devices, uuid))?;
        for device in devices {
            let mut slot = [0; DEVICE_SLOT_SIZE];
            slot[..device.tag.len()].copy_from_slice(&device.tag);
            slot[64..68].copy_from_slice(&(device.size.div_ceil(BLOCK_SIZE) as u32).to_le_bytes());
            out.put(&slot)?;
        }
        out.pad_to(self.xattr_block * BLOCK_SIZE)?;
        out.put(&self.attributes.shared)?;
        self.write_inodes(out)?;
        out.pad_to(self.spill_block * BLOCK_SIZE)?;
        self.write_spilled(out)?;
        out.pad_to(self.blocks * BLOCK_SIZE)?;
        Ok(())
    }

    /// Block 0.
    fn superblock(&self, devices: &[DeviceSlot], uuid: [u8; 16]) -> Vec<u8> {
        let mut incompat = INCOMPAT_CHUNKED;
        if !devices.is_empty() {
            incompat |= INCOMPAT_DEVICES;
        }
        let mut fields = Vec::with_capacity(SUPERBLOCK_SIZE);
        fields.extend_from_slice(&MAGIC.to_le_bytes());
        fields.extend_from_slice(&[0; 4]); // checksum, below
        fields.extend_from_slice(&(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        fields.extend_from_slice(&[BLOCK_BITS, 0]);
        fields.extend_from_slice(&(self.nids[0] as u16).to_le_bytes());
        fields.extend_from_slice(&(self.order.len() as u64).to_le_bytes());
        fields.extend_from_slice(&[0; 12]); // build time: none, for equal trees give equal images
        fields.extend_from_slice(&(self.blocks as u32).to_le_bytes());
        fields.extend_from_slice(&(self.meta_block as u32).to_le_bytes());
        fields.extend_from_slice(&(self.xattr_block as u32).to_le_bytes());
        fields.extend_from_slice(&uuid);
        fields.extend_from_slice(&[0; 16]); // volume name
        fields.extend_from_slice(&incompat.to_le_bytes());
        fields.extend_from_slice(&[0; 2]);
        fields.extend_from_slice(&(devices.len() as u16).to_le_bytes());
        // The device table, in units of its slots.
        fields.extend_from_slice(&((BLOCK / DEVICE_SLOT_SIZE) as u16).to_le_bytes());
        let mut block = vec![0; BLOCK];
        let start = SUPERBLOCK_OFFSET as usize;
        block[start..start + fields.len()].copy_from_slice(&fields);
        let checksum = checksum(&block[start..]);
        block[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    fn write_inodes(&self, out: &mut Counted<'_>) -> Result<(), WriteError> {
        let base = self.meta_block * BLOCK_SIZE;
        let (mut directory, mut placed) = (0, self.bodies.iter());
        for id in &self.order {
            let node = &self.tree.nodes[*id as usize];
            out.pad_to(base + u64::from(self.nids[*id as usize]) * SLOT)?;
            let attributes = &self.attributes.bodies[node.xattrs as usize];
            let body = match node.kind {
                Kind::Directory | Kind::Symlink => placed.next().copied(),
                _ => None,
            };
            out.put(&self.inode(*id, node, attributes, body))?;
            out.put(attributes)?;
            match (node.kind, body) {
                (Kind::File, _) if node.value > 0 => {
                    out.pad_to(out.position.next_multiple_of(8))?;
                    out.put(&chunk_index(node))?;
                }
                (Kind::Symlink, Some(Placed { layout: LAYOUT_INLINE, .. })) => out.put(self.tree.target(node))?,
                (Kind::Directory, Some(body)) => {
                    if body.layout == LAYOUT_INLINE {
                        let entries = self.entries(directory, *id);
                        if let Some(last) = split_blocks(&entries).pop() {
                            out.put(&self.directory_block(&entries[last]))?;
                        }
                    }
                    directory += 1;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Blocks of directories and symlinks, in the order of their inodes.
    fn write_spilled(&self, out: &mut Counted<'_>) -> Result<(), WriteError> {
        let (mut directory, mut placed) = (0, self.bodies.iter());
        for id in &self.order {
            let node = &self.tree.nodes[*id as usize];
            if !matches!(node.kind, Kind::Directory | Kind::Symlink) {
                continue;
            }
            let Some(body) = placed.next() else { continue };
            let start = (self.spill_block + u64::from(body.first_block)) * BLOCK_SIZE;
            if node.kind == Kind::Symlink {
                if body.layout == LAYOUT_PLAIN {
                    out.pad_to(start)?;
                    out.put(self.tree.target(node))?;
                }
                continue;
            }
            let entries = self.entries(directory, *id);
            directory += 1;
            let mut blocks = split_blocks(&entries);
            if body.layout == LAYOUT_INLINE {
                blocks.pop();
            }
            for (number, block) in blocks.into_iter().enumerate() {
                out.pad_to(start + number as u64 * BLOCK_SIZE)?;
                out.put(&self.directory_block(&entries[block]))?;
            }
        }
        Ok(())
    }

    fn inode(
        &self,
        id: u32,
        node: &Node,
        attributes: &[u8],
        body: Option<Placed>,
    ) -> [u8; EXTENDED_INODE_SIZE as usize] {
        let (layout, union, size) = match (node.kind, body) {
            (Kind::File, _) if node.value > 0 => (LAYOUT_CHUNKED, u32::from(chunk_format(node.value)), node.value),
            (Kind::CharDevice | Kind::BlockDevice, _) => (LAYOUT_PLAIN, node.value as u32, 0),
            (_, Some(body)) => (body.layout, self.spill_block as u32 + body.first_block, body.size),
            _ => (LAYOUT_PLAIN, 0, 0),
        };
        let mut inode = [0; EXTENDED_INODE_SIZE as usize];
        let mut put = |at: usize, bytes: &[u8]| inode[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(1 | layout << 1).to_le_bytes());
        put(2, &(xattr_count(attributes) as u16).to_le_bytes());
        put(4, &(type_numbers(node.kind).0 | node.mode).to_le_bytes());
        put(8, &size.to_le_bytes());
        put(16, &union.to_le_bytes());
        put(20, &self.nids[id as usize].to_le_bytes());
        put(24, &node.uid.to_le_bytes());
        put(28, &node.gid.to_le_bytes());
        put(32, &node.seconds.to_le_bytes());
        put(40, &node.nanoseconds.to_le_bytes());
        put(44, &self.nlinks[id as usize].to_le_bytes());
        inode
    }

    /// All entries, then all names; where the first name starts tells how many entries there are.
    fn directory_block(&self, entries: &[(&[u8], u32)]) -> Vec<u8> {
        let mut block = Vec::with_capacity(BLOCK);
        let mut name_offset = DIRENT_SIZE * entries.len();
        for (name, node) in entries {
            block.extend_from_slice(&u64::from(self.nids[*node as usize]).to_le_bytes());
            block.extend_from_slice(&(name_offset as u16).to_le_bytes());
            block.extend_from_slice(&[type_numbers(self.tree.nodes[*node as usize].kind).1, 0]);
            name_offset += name.len();
        }
        for (name, _) in entries {
            block.extend_from_slice(name);
        }
        block
    }
}

fn check_devices(devices: &[DeviceSlot]) -> Result<(), WriteError> {
    if devices.len() > usize::from(u16::MAX) {
        return Err(WriteError::Devices(format!("{} devices, at most 65535 are possible", devices.len())));
    }
    for (index, device) in devices.iter().enumerate() {
        if device.tag.len() > 64 || device.size.div_ceil(BLOCK_SIZE) >= u64::from(u32::MAX) {
            return Err(WriteError::Devices(format!("device {} is too large or its tag too long", index + 1)));
        }
    }
    Ok(())
}

fn check_extent(node: &Node, devices: &[DeviceSlot]) -> Result<(), WriteError> {
    if node.kind != Kind::File || node.device == 0 {
        return Ok(());
    }
    let size = devices.get(usize::from(node.device) - 1).map_or(0, |device| device.size);
    // The tree has checked that the sum does not overflow.
    if node.place + node.value > size {
        let (device, offset, size) = (node.device, node.place, node.value);
        return Err(WriteError::OutsideDevice { device, offset, size });
    }
    Ok(())
}

/// The count field of an inode: 4-byte units after the header, plus one for it; 0 for no attributes.
fn xattr_count(body: &[u8]) -> usize {
    if body.is_empty() { 0 } else { 1 + (body.len() - XATTR_HEADER_SIZE as usize) / 4 }
}

/// One index covers the whole file: payloads are contiguous, and chunks may be as large as that.
fn chunk_format(size: u64) -> u16 {
    let bits = 64 - (size - 1).leading_zeros().min(63);
    CHUNK_INDEXES | (bits.max(u32::from(BLOCK_BITS)) - u32::from(BLOCK_BITS)) as u16
}

fn chunk_index(node: &Node) -> [u8; 8] {
    let address = if node.device == 0 { NULL_ADDRESS } else { (node.place / BLOCK_SIZE) as u32 };
    let mut index = [0; 8];
    index[2..4].copy_from_slice(&node.device.to_le_bytes());
    index[4..].copy_from_slice(&address.to_le_bytes());
    index
}

fn dirent_size(entry: &(&[u8], u32)) -> usize {
    DIRENT_SIZE + entry.0.len()
}

/// Cuts sorted entries into what fits a block each.
fn split_blocks(entries: &[(&[u8], u32)]) -> Vec<Range<usize>> {
    let mut blocks = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (index, entry) in entries.iter().enumerate() {
        if used + dirent_size(entry) > BLOCK {
            blocks.push(start..index);
            (start, used) = (index, 0);
        }
        used += dirent_size(entry);
    }
    blocks.push(start..entries.len());
    blocks
}

/// CRC-32C as EROFS takes it, without the final inversion.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    !crc32c::crc32c(bytes)
}

/// An output that knows how far it is.
struct Counted<'a> {
    out: &'a mut dyn Write,
    position: u64,
}

impl Counted<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        debug_assert!(position >= self.position, "regions overlap");
        while self.position < position {
            let zeros = [0; BLOCK];
            let n = (position - self.position).min(BLOCK as u64) as usize;
            self.put(&zeros[..n])?;
        }
        Ok(())
    }
}
