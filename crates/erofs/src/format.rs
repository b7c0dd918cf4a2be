//! Numbers of the on-disk format.

pub(crate) const MAGIC: u32 = 0xe0f5_e1e2;
pub(crate) const SUPERBLOCK_OFFSET: u64 = 1024;
pub(crate) const SUPERBLOCK_SIZE: usize = 128;
/// log2 of the block size.
pub(crate) const BLOCK_BITS: u8 = 12;
pub(crate) const BLOCK: usize = 1 << BLOCK_BITS;
/// Inode numbers count units of 32 bytes.
pub(crate) const SLOT: u64 = 32;
pub(crate) const DEVICE_SLOT_SIZE: usize = 128;

pub(crate) const COMPAT_CHECKSUM: u32 = 1;
pub(crate) const COMPAT_MTIME: u32 = 2;
pub(crate) const INCOMPAT_CHUNKED: u32 = 4;
pub(crate) const INCOMPAT_DEVICES: u32 = 8;

/// Data layouts, bits 1 to 3 of an inode's format.
pub(crate) const LAYOUT_PLAIN: u16 = 0;
pub(crate) const LAYOUT_INLINE: u16 = 2;
pub(crate) const LAYOUT_CHUNKED: u16 = 4;

/// Chunk format: 8-byte indexes, with a device each.
pub(crate) const CHUNK_INDEXES: u16 = 0x20;
pub(crate) const CHUNK_BITS_MASK: u16 = 0x1f;
/// Block address of a hole.
pub(crate) const NULL_ADDRESS: u32 = u32::MAX;

pub(crate) const EXTENDED_INODE_SIZE: u64 = 64;
pub(crate) const COMPACT_INODE_SIZE: u64 = 32;
pub(crate) const XATTR_HEADER_SIZE: u64 = 12;
pub(crate) const DIRENT_SIZE: usize = 12;

pub(crate) const S_IFMT: u16 = 0o170_000;

/// (file type bits of the mode, file type of a directory entry)
pub(crate) const fn type_numbers(kind: crate::Kind) -> (u16, u8) {
    use crate::Kind;
    match kind {
        Kind::File => (0o100_000, 1),
        Kind::Directory => (0o040_000, 2),
        Kind::CharDevice => (0o020_000, 3),
        Kind::BlockDevice => (0o060_000, 4),
        Kind::Fifo => (0o010_000, 5),
        Kind::Socket => (0o140_000, 6),
        Kind::Symlink => (0o120_000, 7),
    }
}

pub(crate) const fn kind_of_mode(mode: u16) -> Option<crate::Kind> {
    use crate::Kind;
    Some(match mode & S_IFMT {
        0o100_000 => Kind::File,
        0o040_000 => Kind::Directory,
        0o020_000 => Kind::CharDevice,
        0o060_000 => Kind::BlockDevice,
        0o010_000 => Kind::Fifo,
        0o140_000 => Kind::Socket,
        0o120_000 => Kind::Symlink,
        _ => return None,
    })
}

pub(crate) const fn kind_of_dirent(file_type: u8) -> Option<crate::Kind> {
    use crate::Kind;
    Some(match file_type {
        1 => Kind::File,
        2 => Kind::Directory,
        3 => Kind::CharDevice,
        4 => Kind::BlockDevice,
        5 => Kind::Fifo,
        6 => Kind::Socket,
        7 => Kind::Symlink,
        _ => return None,
    })
}
