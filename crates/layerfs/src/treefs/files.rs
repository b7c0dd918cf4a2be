//! An image tree as a FUSE file system: metadata from its image, data from the files of its layers.
//!
//! Nothing changes, so the kernel is told to keep everything: names (also those that do not exist), attributes, listings,
//! links, data. After the first look it asks no more.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use castor_archive::ReadAt;
use castor_erofs::read::{DirEntry, Inode, Nid, ReadError};
use castor_erofs::{BLOCK_SIZE, Image, Kind};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};

use super::server::Desk;
use crate::map::Map;
use crate::serve::{MAX_BACKGROUND, MAX_READ};

/// Names and attributes never change.
const FOREVER: Duration = Duration::from_secs(86_400 * 365);

/// A tree that is served.
pub(super) struct Tree {
    /// Names it between daemon and server.
    pub number: u64,
    pub image: Image<Map>,
    /// In the order of the image's devices.
    pub layers: Vec<Layer>,
    /// The longest that a read may wait.
    pub patience: Duration,
}

/// A layer of it.
pub(super) struct Layer {
    /// What the daemon calls it.
    pub number: u64,
    pub data: File,
    /// Whether all bytes are here, so that nobody needs to be asked.
    pub complete: AtomicBool,
}

/// A part of what is to be read: all from one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Layer, by its place in the tree, and range of its data. None: a hole, of zeros.
    pub place: Option<(usize, Range<u64>)>,
    pub length: usize,
}

impl Tree {
    fn pieces(&self, node: INodeNo, offset: u64, size: u32) -> Result<Vec<Piece>, ReadError> {
        pieces(&self.image, self.layers.len(), self.nid(node), offset, size)
    }

    /// The pieces that only the daemon knows to be here.
    pub(super) fn unsure(&self, pieces: &[Piece]) -> Vec<(u64, Range<u64>)> {
        let places = pieces.iter().filter_map(|piece| piece.place.as_ref());
        places
            .map(|(layer, range)| (&self.layers[*layer], range))
            .filter(|(layer, _)| !layer.complete.load(Ordering::Acquire))
            .map(|(layer, range)| (layer.number, range.clone()))
            .collect()
    }

    /// Answers a read from the layers' files: exactly the bytes, or EIO. The kernel would make up for missing ones with
    /// zeros. Returns what could not be read, and why.
    pub(super) fn answer(&self, pieces: &[Piece], reply: ReplyData) -> Option<(u64, Range<u64>, String)> {
        BUFFER.with_borrow_mut(|buffer| {
            let length = pieces.iter().map(|piece| piece.length).sum();
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let mut at = 0;
            for piece in pieces {
                let part = &mut buffer[at..at + piece.length];
                at += piece.length;
                let Some((layer, range)) = &piece.place else {
                    part.fill(0);
                    continue;
                };
                let layer = &self.layers[*layer];
                if let Err(error) = layer.data.read_exact_at(part, range.start) {
                    reply.error(Errno::EIO);
                    return Some((layer.number, range.clone(), format!("read data file: {error}")));
                }
            }
            reply.data(&buffer[..length]);
            None
        })
    }

    fn nid(&self, node: INodeNo) -> Nid {
        nid_of(&self.image, node)
    }

    /// The number of an inode for the kernel, which insists on 1 for the root.
    fn node(&self, nid: Nid) -> INodeNo {
        if nid == self.image.superblock().root { INodeNo::ROOT } else { INodeNo(nid.0) }
    }

    fn inode(&self, node: INodeNo) -> Result<Inode, ReadError> {
        self.image.inode(self.nid(node))
    }

    fn attributes(&self, inode: &Inode) -> FileAttr {
        let time = time(inode.mtime.seconds, inode.mtime.nanoseconds);
        let (major, minor) = inode.rdev;
        FileAttr {
            ino: self.node(inode.nid),
            size: inode.size,
            blocks: inode.size.div_ceil(BLOCK_SIZE) * (BLOCK_SIZE / 512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: kind(inode.kind),
            perm: inode.mode,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            // As the kernel packs it.
            rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
            blksize: BLOCK_SIZE as u32,
            flags: 0,
        }
    }

    /// Calls `add` with the entries of a directory from position `from` on, and the position behind each, until it is full.
    fn list(
        &self,
        node: INodeNo,
        from: u64,
        mut add: impl FnMut(&DirEntry, u64) -> Result<bool, ReadError>,
    ) -> Result<(), ReadError> {
        let directory = self.inode(node)?;
        let mut entries = self.image.read_dir(&directory, from)?;
        while let Some(entry) = entries.next() {
            if add(&entry?, entries.position())? {
                break;
            }
        }
        Ok(())
    }
}

/// Where bytes `offset` to `offset + size` of a file of a tree of `layers` layers are, as far as the file goes.
pub(super) fn pieces(
    image: &Image<Map>,
    layers: usize,
    node: Nid,
    offset: u64,
    size: u32,
) -> Result<Vec<Piece>, ReadError> {
    let file = image.inode(node)?;
    let end = offset.saturating_add(u64::from(size)).min(file.size);
    let (mut pieces, mut at) = (Vec::new(), offset);
    while at < end {
        let corrupt = |what| ReadError::Corrupt { nid: file.nid.0, what };
        let run = image.map(&file, at)?.ok_or_else(|| corrupt("no place for a part of it"))?;
        let until = run.file_offset.saturating_add(run.length).min(end);
        if until <= at || at < run.file_offset {
            return Err(corrupt("a run of bytes that leads nowhere"));
        }
        let place = match run.place {
            None => None,
            Some((0, _)) => return Err(corrupt("data in the image itself")),
            Some((device, start)) => {
                let layer = usize::from(device) - 1;
                let start = start.checked_add(at - run.file_offset).ok_or_else(|| corrupt("data out of range"))?;
                let end = start.checked_add(until - at).ok_or_else(|| corrupt("data out of range"))?;
                if layer >= layers {
                    return Err(corrupt("data on a device that was not given"));
                }
                Some((layer, start..end))
            }
        };
        // No larger than what was asked for.
        pieces.push(Piece { place, length: (until - at) as usize });
        at = until;
    }
    Ok(pieces)
}

/// The inode that the kernel means by a number: it insists on 1 for the root.
pub(super) fn nid_of(image: &Image<Map>, node: INodeNo) -> Nid {
    if node == INodeNo::ROOT { image.superblock().root } else { Nid(node.0) }
}

/// The path of a directory, as far as it can be found.
pub(super) fn path_of(image: &Image<Map>, directory: Nid) -> Option<String> {
    let (root, mut names, mut at) = (image.superblock().root, Vec::new(), directory);
    while at != root {
        // No path is deeper; an image that contradicts itself may go round and round.
        if names.len() > 2048 {
            return None;
        }
        let above = image.lookup(&image.inode(at).ok()?, b"..").ok()??.nid;
        let entries = image.read_dir(&image.inode(above).ok()?, 0).ok()?;
        let entry = entries
            .filter_map(Result::ok)
            .find(|entry| entry.nid == at && entry.name != b"." && entry.name != b"..")?;
        names.push(String::from_utf8_lossy(&entry.name).into_owned());
        at = above;
    }
    Some(names.iter().rev().map(|name| format!("/{name}")).collect())
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    time.and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into()))).unwrap_or(UNIX_EPOCH)
}

fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// The file system of one tree.
pub(super) struct Files {
    pub tree: Arc<Tree>,
    pub desk: Arc<Desk>,
}

/// The answer for whoever used an image that contradicts itself, or an inode as what it is not.
fn errno(error: &ReadError) -> Errno {
    match error {
        ReadError::Kind { kind: Kind::Directory, .. } => Errno::ENOTDIR,
        ReadError::Kind { .. } => Errno::EINVAL,
        _ => Errno::EIO,
    }
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config
            .add_capabilities(InitFlags::FUSE_ASYNC_READ)
            .map_err(|_| io::Error::other("the kernel's FUSE has no asynchronous reads"))?;
        // What makes it quicker, or the attributes more exact, where the kernel has it.
        for wish in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_MAX_PAGES,
            // The keeper has requests repeated.
            InitFlags::FUSE_HAS_RESEND,
        ] {
            let _ = config.add_capabilities(wish);
        }
        config.set_max_background(MAX_BACKGROUND).map_err(|n| io::Error::other(format!("max_background: {n}")))?;
        config.set_max_write(MAX_READ).map_err(|n| io::Error::other(format!("max_write: {n}")))?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let tree = &self.tree;
        let found = tree.inode(parent).and_then(|directory| tree.image.lookup(&directory, name.as_bytes()));
        match found.and_then(|entry| entry.map(|entry| tree.image.inode(entry.nid)).transpose()) {
            Ok(Some(inode)) => reply.entry(&FOREVER, &tree.attributes(&inode), Generation(0)),
            Ok(None) => match tree.inode(INodeNo::ROOT) {
                // Number 0 says that there is no such name, and that this may be remembered.
                Ok(root) => {
                    let nothing = FileAttr { ino: INodeNo(0), ..tree.attributes(&root) };
                    reply.entry(&FOREVER, &nothing, Generation(0));
                }
                Err(error) => reply.error(errno(&error)),
            },
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.inode(node) {
            Ok(inode) => reply.attr(&FOREVER, &self.tree.attributes(&inode)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        match self.tree.inode(node).and_then(|inode| self.tree.image.read_link(&inode)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Files need not be opened: the kernel asks this once, and keeps what it has read of a file.
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // As for files; listings are kept then.
        reply.error(Errno::ENOSYS);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let pieces = match self.tree.pieces(node, offset, size) {
            Ok(pieces) => pieces,
            Err(error) => return reply.error(errno(&error)),
        };
        let unsure = self.tree.unsure(&pieces);
        if unsure.is_empty() {
            if let Some((layer, range, cause)) = self.tree.answer(&pieces, reply) {
                self.desk.failed(layer, range, cause);
            }
        } else {
            self.desk.park(self.tree.clone(), pieces, unsure, request.pid(), reply);
        }
    }

    fn readdir(&self, _: &Request, node: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let outcome = self.tree.list(node, offset, |entry, next| {
            Ok(reply.add(self.tree.node(entry.nid), next, kind(entry.kind), OsStr::from_bytes(&entry.name)))
        });
        match outcome {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdirplus(&self, _: &Request, node: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let outcome = self.tree.list(node, offset, |entry, next| {
            let attributes = self.tree.attributes(&self.tree.image.inode(entry.nid)?);
            let name = OsStr::from_bytes(&entry.name);
            Ok(reply.add(attributes.ino, next, name, &FOREVER, &attributes, Generation(0)))
        });
        match outcome {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getxattr(&self, _: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.tree.inode(node).and_then(|inode| self.tree.image.xattr(&inode, name.as_bytes())) {
            Ok(Some(value)) => value_or_size(&value, size, reply),
            Ok(None) => reply.error(Errno::NO_XATTR),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn listxattr(&self, _: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        match self.tree.inode(node).and_then(|inode| self.tree.image.xattrs(&inode)) {
            Ok(xattrs) => {
                let names: Vec<u8> = xattrs.into_iter().flat_map(|(name, _)| name.into_iter().chain([0])).collect();
                value_or_size(&names, size, reply);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let data = self.tree.image.superblock().devices.iter().map(|device| device.size / BLOCK_SIZE).sum();
        reply.statfs(data, 0, 0, self.tree.image.superblock().inodes, 0, BLOCK_SIZE as u32, 255, BLOCK_SIZE as u32);
    }
}

fn value_or_size(value: &[u8], room: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(length) if room == 0 => reply.size(length),
        Ok(length) if length <= room => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
