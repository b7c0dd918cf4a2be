//! The entries of one layer as one clean tree.
//!
//! A tar, or a table of contents, is a sequence of claims: names in several spellings, names given twice,
//! directories that only their children imply, hard links to what comes later. A [`Builder`] takes the claims
//! in order and settles them; the [`Listing`] it gives is what a file system can be made of. Tar streams and
//! tables of contents pass through the same code, so a layer looks the same whichever it was read from.
//!
//! Whiteouts stay what they are in a layer, regular files with names of a certain form: what they mean is
//! decided where layers are stacked ([`crate::layer::whiteout`]).

use crate::Timestamp;

/// A name of a [`Listing`]; 0 is the root. A directory comes before what it contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameId(pub u32);

/// An inode of a [`Listing`]; 0 is the root's. In the order of the entries they came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(pub u32);

/// The type of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// What an inode is, in the form that a listing keeps (names, targets and attributes lie elsewhere).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Its type.
    pub kind: Kind,
    /// The low 12 bits of the mode.
    pub mode: u16,
    /// A directory that no entry described: 0755, root:root, no time. Where layers are stacked it inherits the
    /// attributes of the layer below.
    pub implied: bool,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Size of a regular file.
    pub size: u64,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    /// What the caller of [`Builder::push`] wanted to find again, e.g. which chunks hold the file.
    pub tag: u32,
    link: (u32, u32),
    xattrs: u32,
}

/// One claim of a tar or of a table of contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim<'a> {
    /// Name in any spelling.
    pub path: &'a [u8],
    /// Type; a hard link has [`ClaimKind::Hardlink`].
    pub kind: ClaimKind<'a>,
    /// Mode; bits above the low 12 are ignored.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Extended attributes; those that steer overlayfs are dropped.
    pub xattrs: &'a [(&'a [u8], &'a [u8])],
    /// Kept with the inode.
    pub tag: u32,
}

/// The type of a claim and what is particular to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimKind<'a> {
    /// A regular file of this size.
    File(u64),
    /// A directory.
    Directory,
    /// A symlink with its target.
    Symlink(&'a [u8]),
    /// Another name of the entry with this name.
    Hardlink(&'a [u8]),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// How doubtful claims are settled.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// A hard link leads to what has the name at that moment, as when a tar is unpacked, and to what comes
    /// later only if there is nothing yet. Otherwise to what has the name in the end, as tables of contents
    /// are read.
    pub links_at_once: bool,
    /// `..` in a name stays inside the root, as when a tar is unpacked. Otherwise it is refused.
    pub clamp_dotdot: bool,
    /// Hide the table of contents and the landmarks of a lazily pullable layer.
    pub hide_toc: bool,
    /// Most names, implied directories included.
    pub max_names: u32,
}

impl Rules {
    /// For a tar that is read whole.
    pub const TAR: Self = Self { links_at_once: true, clamp_dotdot: true, hide_toc: false, max_names: 8_000_000 };
    /// For a tar with a table of contents in it.
    pub const TAR_WITH_TOC: Self = Self { hide_toc: true, ..Self::TAR };
    /// For a table of contents.
    pub const TOC: Self = Self { links_at_once: false, clamp_dotdot: false, hide_toc: true, max_names: 8_000_000 };
}

/// Why claims make no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// A name that no file system can hold.
    #[error("invalid entry name {path:?}: {reason}")]
    Name {
        /// The name.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An entry below something that is no directory.
    #[error("entry {0:?} lies below something that is not a directory")]
    NotADirectory(String),
    /// The root is not a directory.
    #[error("the root is not a directory")]
    Root,
    /// A symlink target that the kernel refuses.
    #[error("invalid target of symlink {0:?}")]
    Target(String),
    /// A hard link to nothing, to a directory or to itself.
    #[error("hard link {path:?} to {target:?}: {reason}")]
    Hardlink {
        /// The link.
        path: String,
        /// Where it leads.
        target: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A malformed extended attribute.
    #[error("invalid extended attribute {name:?} of {path:?}: {reason}")]
    Xattr {
        /// The entry.
        path: String,
        /// The attribute.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A limit was passed.
    #[error("layer exceeds the limit of {0} names")]
    Limit(u32),
}

/// Takes claims in order.
#[derive(Debug)]
pub struct Builder {
    rules: Rules,
}

impl Builder {
    /// A builder that has seen nothing.
    pub fn new(rules: Rules) -> Self {
        Self { rules }
    }

    /// Takes a claim; answers which inode it made or described. `None`: a hard link, or hidden.
    pub fn push(&mut self, claim: &Claim<'_>) -> Result<Option<InodeId>, ListingError> {
        let _ = (claim, self.rules);
        todo!()
    }

    /// Settles what is open. Inodes that no name leads to any more are gone, and with them their numbers: only
    /// tags connect what `push` answered with the listing.
    pub fn finish(self) -> Result<Listing, ListingError> {
        todo!()
    }
}

/// The entries of one layer.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    inodes: Vec<Inode>,
}

impl Listing {
    /// All names, the root first, every directory before what it contains.
    pub fn names(&self) -> impl Iterator<Item = NameId> + use<> {
        (0..0).map(NameId)
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Never: there is a root.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// All inodes, the root's first.
    pub fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// The inode a name leads to.
    pub fn inode_of(&self, name: NameId) -> InodeId {
        let _ = name;
        todo!()
    }

    /// An inode.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    /// The directory a name is in (the root is in itself).
    pub fn parent(&self, name: NameId) -> NameId {
        let _ = name;
        todo!()
    }

    /// The last component (empty for the root).
    pub fn name(&self, name: NameId) -> &[u8] {
        let _ = name;
        todo!()
    }

    /// The whole path, without a leading slash.
    pub fn path(&self, name: NameId) -> Vec<u8> {
        let _ = name;
        todo!()
    }

    /// The target of a symlink, empty for others.
    pub fn target(&self, inode: InodeId) -> &[u8] {
        let _ = inode;
        todo!()
    }

    /// Names and values of the extended attributes, sorted by name.
    pub fn xattrs(&self, inode: InodeId) -> impl Iterator<Item = (&[u8], &[u8])> {
        let _ = inode;
        std::iter::empty()
    }

    /// The name at a clean path.
    pub fn find(&self, path: &[u8]) -> Option<NameId> {
        let _ = path;
        todo!()
    }
}
