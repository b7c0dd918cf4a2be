//! Reading an image.

use std::io;

use castor_archive::{ReadAt, Timestamp};

use crate::tree::Kind;

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
    /// The source failed.
    #[error("read EROFS image")]
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
    /// log2 of the block size.
    pub(crate) block_bits: u8,
    pub(crate) blocks: u64,
    pub(crate) meta_block: u32,
    pub(crate) xattr_block: u32,
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
    pub(crate) layout: u16,
    pub(crate) union: u32,
    /// Bytes of the attributes after the inode.
    pub(crate) xattr_size: u64,
    /// Position of what follows inode and attributes.
    pub(crate) tail: u64,
}

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
        let _ = source;
        todo!()
    }

    /// What the superblock says.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Reads an inode.
    pub fn inode(&self, nid: Nid) -> Result<Inode, ReadError> {
        let _ = (&self.source, nid);
        todo!()
    }

    /// Finds a name in a directory.
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<DirEntry>, ReadError> {
        let _ = (directory, name);
        todo!()
    }

    /// The entries of a directory in the order of the image, `.` and `..` included, from position `from` on (0,
    /// then what [`ReadDir::position`] says).
    pub fn read_dir(&self, directory: &Inode, from: u64) -> Result<ReadDir<'_, R>, ReadError> {
        let _ = (directory, from);
        todo!()
    }

    /// The target of a symlink.
    pub fn read_link(&self, symlink: &Inode) -> Result<Vec<u8>, ReadError> {
        let _ = symlink;
        todo!()
    }

    /// Names and values of all extended attributes.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<(Vec<u8>, Vec<u8>)>, ReadError> {
        let _ = inode;
        todo!()
    }

    /// The run of bytes around `offset` of a regular file; `None` at or past its end.
    pub fn map(&self, file: &Inode, offset: u64) -> Result<Option<Mapping>, ReadError> {
        let _ = (file, offset);
        todo!()
    }
}

/// The entries of a directory, one after the other.
#[derive(Debug)]
pub struct ReadDir<'a, R> {
    image: &'a Image<R>,
}

impl<R: ReadAt> ReadDir<'_, R> {
    /// Where to go on after the last entry that was returned.
    pub fn position(&self) -> u64 {
        let _ = self.image;
        todo!()
    }
}

impl<R: ReadAt> Iterator for ReadDir<'_, R> {
    type Item = Result<DirEntry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        todo!()
    }
}
