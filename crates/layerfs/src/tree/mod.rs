//! The file `tree` of a layer object: the layer's entries and, for a layer that is fetched by chunks, the chunk table.
//!
//! It is written once, when the object is made, and mapped afterwards. All numbers are little-endian.
//!
//! | header, 128 bytes | | |
//! |---|---|---|
//! | 0 | 8 | magic `CASTORTR` |
//! | 8 | u32 | version, 1; 2 if there are chunks without a digest |
//! | 12 | u32 | codec of the chunks: 0 none (there are no chunks), 1 gzip, 2 zstd |
//! | 16 | u64 | length of this file |
//! | 24 | u64 | length of `data` |
//! | 32 | u64 | length of the blob |
//! | 40 | u32 | inodes |
//! | 44 | u32 | names |
//! | 48 | u32 | chunks |
//! | 52 | u32 | sets of extended attributes |
//! | 56 | u64 | offset of the inodes |
//! | 64 | u64 | offset of the names |
//! | 72 | u64 | offset of the chunks |
//! | 80 | u64 | offset of the sets |
//! | 88 | u64 | offset of the heap |
//! | 96 | u64 | length of the heap |
//! | 104 | u64 | where the members of the blob end |
//! | 112 | u64 | end of what the layer wants fetched first, 0 for nothing |
//! | 120 | 8 | zero |
//!
//! | inode, 64 bytes | | |
//! |---|---|---|
//! | 0 | u8 | type: 1 file, 2 directory, 3 symlink, 4 character device, 5 block device, 6 fifo |
//! | 1 | u8 | bit 0: an implied directory |
//! | 2 | u16 | mode, low 12 bits |
//! | 4 | u32 | uid |
//! | 8 | u32 | gid |
//! | 12 | u32 | nanoseconds of the modification time |
//! | 16 | i64 | seconds of the modification time |
//! | 24 | u64 | file: length; symlink: length of the target; device: major << 32 + minor |
//! | 32 | u64 | file: offset in `data`; symlink: offset of the target in the heap |
//! | 40 | u32 | file: first chunk |
//! | 44 | u32 | file: number of chunks |
//! | 48 | u32 | number of the set of extended attributes; 0 is empty |
//! | 52 | u32 | names that lead here |
//! | 56 | 8 | zero |
//!
//! | name, 16 bytes | | |
//! |---|---|---|
//! | 0 | u32 | inode |
//! | 4 | u32 | the name of the directory it is in (a directory comes before what it contains; the root, 0, is in itself) |
//! | 8 | u32 | offset of the last component in the heap |
//! | 12 | u16 | its length |
//! | 14 | 2 | zero |
//!
//! | chunk, 80 bytes, ascending by offset in `data` | | |
//! |---|---|---|
//! | 0 | u64 | offset in the blob of the member or frame that holds it |
//! | 8 | u64 | offset in the blob that it ends before |
//! | 16 | u64 | bytes of the decompressed member before it |
//! | 24 | u64 | offset in `data` |
//! | 32 | u64 | length |
//! | 40 | 32 | SHA-256 |
//! | 72 | u32 | inode |
//! | 76 | u32 | bit 0: the digest is not known, and says nothing |
//!
//! | set of extended attributes, 8 bytes | | |
//! |---|---|---|
//! | 0 | u32 | offset in the heap |
//! | 4 | u32 | length there: per attribute u16 length of the name, u32 length of the value, name, value |

mod read;
mod write;

pub(crate) use read::{Inode, Kind, Tree};
pub(crate) use write::{Plan, advance, from_tar, from_toc};

pub(crate) const MAGIC: &[u8; 8] = b"CASTORTR";
pub(crate) const VERSION: u32 = 1;
/// The same with chunks that nothing can verify; an earlier castor must not take their digests for real ones.
pub(crate) const VERSION_UNVERIFIED: u32 = 2;
pub(crate) const HEADER: usize = 128;
pub(crate) const INODE: usize = 64;
pub(crate) const NAME: usize = 16;
pub(crate) const CHUNK: usize = 80;
pub(crate) const SET: usize = 8;
/// Payloads begin at multiples of this in `data`: the block size of the image trees.
pub(crate) const ALIGN: u64 = castor_erofs::BLOCK_SIZE;
