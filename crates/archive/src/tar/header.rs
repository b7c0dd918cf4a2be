//! A header: what an entry says of itself, and its bytes as Go writes them.

use crate::Timestamp;

/// Prefix of the PAX records that carry extended attributes.
pub const XATTR_RECORD_PREFIX: &str = "SCHILY.xattr.";

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Kind {
    /// A regular file.
    #[default]
    File,
    /// Another name of an earlier entry.
    Hardlink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory; written names end in `/`.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A PAX record: key and value.
pub type Record = (Vec<u8>, Vec<u8>);

/// What an entry says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// Name as stored (`a/`, `./a` and `/a` are possible when read).
    pub path: Vec<u8>,
    /// Type.
    pub kind: Kind,
    /// Permission bits (the low 12, when written by the tools of this project).
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Bytes of data that follow; 0 for all but files.
    pub size: u64,
    /// Time of last modification. A fraction is written as a PAX record.
    pub mtime: Timestamp,
    /// Target of a hard link or symlink.
    pub link: Vec<u8>,
    /// Name of the owner.
    pub uname: Vec<u8>,
    /// Name of the group.
    pub gname: Vec<u8>,
    /// Major device number.
    pub dev_major: u32,
    /// Minor device number.
    pub dev_minor: u32,
    /// PAX records of its own beside those that the fields above need, e.g. extended attributes
    /// (`SCHILY.xattr.NAME`); unsorted, no key twice.
    pub records: Vec<Record>,
}

/// Why a header cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// No format can hold this value.
    #[error("cannot write tar header of {path:?}: {what}")]
    Unwritable {
        /// The entry's name.
        path: String,
        /// What does not fit.
        what: &'static str,
    },
}

impl Header {
    /// The header's blocks: a PAX header with its records if the entry needs one, then the header itself.
    pub fn encode(&self) -> Result<Vec<u8>, HeaderError> {
        todo!()
    }

    /// Names (without the record prefix) and values of the extended attributes.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.records
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(XATTR_RECORD_PREFIX.as_bytes())?, value.as_slice())))
    }

    /// Adds an extended attribute.
    pub fn push_xattr(&mut self, name: &[u8], value: &[u8]) {
        self.records.push(([XATTR_RECORD_PREFIX.as_bytes(), name].concat(), value.to_vec()));
    }
}
