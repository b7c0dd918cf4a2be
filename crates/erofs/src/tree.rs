//! The tree an image is made of.

use castor_archive::Timestamp;
use castor_archive::names::{NameTable, TableFull};
use castor_archive::xattrs::{XattrError, XattrSets};

use crate::BLOCK_SIZE;
use crate::xattr;

/// "No node", "no name" in the arena's links.
const NONE: u32 = u32::MAX;
/// Longest name of a directory entry.
const NAME_MAX: usize = 255;
/// Longest symlink target: the kernel needs a terminating NUL within one page.
const TARGET_MAX: usize = 4095;

/// A node (inode) of a [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    /// Position in the order of [`Tree::add`]; the root is 0.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The type of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device; 0:0 is an overlayfs whiteout.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// What every node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky (the low 12 bits; others are ignored).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
}

/// Where the bytes of a file lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// One run of bytes on a data device.
    Device {
        /// Number of the device, 1 for the first.
        device: u16,
        /// Byte offset in it, a multiple of [`BLOCK_SIZE`].
        offset: u64,
    },
    /// Nowhere: the file reads as zeros.
    Hole,
}

/// The type of a node and what is particular to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// A regular file of `size` bytes at `extent` (not looked at if the size is 0).
    File {
        /// Length in bytes.
        size: u64,
        /// Place of its bytes.
        extent: Extent,
    },
    /// A directory.
    Directory,
    /// A symbolic link with its target, 1 to 4095 bytes without NUL.
    Symlink(&'a [u8]),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Body<'_> {
    /// The overlayfs whiteout: a character device 0:0.
    pub const WHITEOUT: Body<'static> = Body::CharDevice { major: 0, minor: 0 };

    /// The type alone.
    pub const fn kind(&self) -> Kind {
        match self {
            Body::File { .. } => Kind::File,
            Body::Directory => Kind::Directory,
            Body::Symlink(_) => Kind::Symlink,
            Body::CharDevice { .. } => Kind::CharDevice,
            Body::BlockDevice { .. } => Kind::BlockDevice,
            Body::Fifo => Kind::Fifo,
            Body::Socket => Kind::Socket,
        }
    }
}

/// Why a node or a name cannot be part of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A name that no directory can hold.
    #[error("invalid file name {0:?}: want 1 to 255 bytes without '/' and NUL, neither '.' nor '..'")]
    Name(String),
    /// A symlink target that the kernel refuses.
    #[error("invalid symlink target of {0} bytes: want 1 to 4095 bytes without NUL")]
    Target(usize),
    /// The parent is not a directory.
    #[error("{0:?} added below something that is not a directory")]
    NotADirectory(String),
    /// A directory has one name only.
    #[error("directory linked a second time, as {0:?}")]
    DirectoryLinked(String),
    /// A payload that an image cannot name.
    #[error("invalid extent: device {device}, offset {offset}: want a device and a multiple of 4096 below 16 TiB")]
    Extent {
        /// Device number given.
        device: u16,
        /// Offset given.
        offset: u64,
    },
    /// A file larger than the kernel accepts.
    #[error("invalid file size {0}")]
    Size(u64),
    /// A device number out of range (12 bits of major, 20 bits of minor).
    #[error("invalid device number {major}:{minor}")]
    DeviceNumber {
        /// Major number given.
        major: u32,
        /// Minor number given.
        minor: u32,
    },
    /// A time stamp whose nanoseconds are a second or more.
    #[error("invalid time: {0} nanoseconds")]
    Time(u32),
    /// An extended attribute that EROFS cannot hold.
    #[error("invalid extended attribute {name:?}: {reason}")]
    Xattr {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The tree outgrew its 32-bit links.
    #[error("too many nodes or names")]
    Full,
}

impl From<TableFull> for TreeError {
    fn from(_: TableFull) -> Self {
        Self::Full
    }
}

/// One node; 64 bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    /// File: size. Symlink: length of the target. Device: number as the kernel encodes it.
    pub(crate) value: u64,
    /// File: offset on the device. Symlink: start of the target in `targets`.
    pub(crate) place: u64,
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Number of the xattr set; 0 is the empty one.
    pub(crate) xattrs: u32,
    /// Directory: newest entry of its list of children.
    pub(crate) last_child: u32,
    /// Directory: the directory it is in, `NONE` while it has no name.
    pub(crate) parent: u32,
    pub(crate) mode: u16,
    /// File: data device, 0 for a hole.
    pub(crate) device: u16,
    pub(crate) kind: Kind,
}

/// A name: which node it leads to and the previous name made in that directory.
#[derive(Debug, Clone, Copy)]
struct Link {
    node: u32,
    previous: u32,
}

/// A file tree under construction: a flat arena of nodes and one of names.
///
/// A node costs 64 bytes, a name about 28 bytes and its length; equal sets of extended attributes are kept
/// once. Names may be added, replaced and removed in any order, so that layers can be applied one above the
/// other; what the root does not reach is not written.
#[derive(Debug)]
pub struct Tree {
    pub(crate) nodes: Vec<Node>,
    names: NameTable,
    links: Vec<Link>,
    targets: Vec<u8>,
    xattrs: XattrSets,
}

impl Tree {
    /// A tree of a root directory alone.
    pub fn new(root: Attributes) -> Self {
        let mut tree = Self {
            nodes: Vec::new(),
            names: NameTable::new(),
            links: Vec::new(),
            targets: Vec::new(),
            xattrs: XattrSets::new(),
        };
        let mut node = Node::blank(Kind::Directory);
        node.set_attributes(&root);
        node.parent = 0;
        tree.nodes.push(node);
        tree
    }

    /// The root directory.
    pub const fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// How many nodes were added, the root included, unreachable ones too.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: there is a root.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Adds a node that has no name yet. `xattrs` are full names (`user.x`, `security.capability`) and values;
    /// names of namespaces that EROFS cannot store are an error.
    pub fn add<N: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        attributes: &Attributes,
        body: &Body<'_>,
        xattrs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<NodeId, TreeError> {
        let mut node = Node::blank(body.kind());
        check_time(attributes)?;
        node.set_attributes(attributes);
        match *body {
            Body::File { size, extent } => {
                // i_size is signed in the kernel; chunk bits end at 43.
                if size > 1 << 43 {
                    return Err(TreeError::Size(size));
                }
                node.value = size;
                if let Extent::Device { device, offset } = extent
                    && size > 0
                {
                    let end = offset.checked_add(size).map(|end| end.div_ceil(BLOCK_SIZE));
                    let fits = end.is_some_and(|end| end < u64::from(u32::MAX));
                    if device == 0 || offset % BLOCK_SIZE != 0 || !fits {
                        return Err(TreeError::Extent { device, offset });
                    }
                    (node.device, node.place) = (device, offset);
                }
            }
            Body::Symlink(target) => {
                if target.is_empty() || target.len() > TARGET_MAX || target.contains(&0) {
                    return Err(TreeError::Target(target.len()));
                }
                (node.value, node.place) = (target.len() as u64, self.targets.len() as u64);
            }
            Body::CharDevice { major, minor } | Body::BlockDevice { major, minor } => {
                node.value = u64::from(encode_device(major, minor)?);
            }
            Body::Directory | Body::Fifo | Body::Socket => {}
        }
        node.xattrs = self.intern(xattrs)?;
        let id = u32::try_from(self.nodes.len()).ok().filter(|id| *id != NONE).ok_or(TreeError::Full)?;
        if let Body::Symlink(target) = body {
            self.targets.extend_from_slice(target);
        }
        self.nodes.push(node);
        Ok(NodeId(id))
    }

    /// Gives `child` the name `name` in `parent`; what had it before is unlinked and returned. Several names of
    /// one node are hard links; a directory has one name.
    pub fn link(&mut self, parent: NodeId, name: &[u8], child: NodeId) -> Result<Option<NodeId>, TreeError> {
        if name.is_empty()
            || name.len() > NAME_MAX
            || name == b"."
            || name == b".."
            || name.contains(&0)
            || name.contains(&b'/')
        {
            return Err(TreeError::Name(lossy(name)));
        }
        if self.node(parent).kind != Kind::Directory {
            return Err(TreeError::NotADirectory(lossy(name)));
        }
        let is_directory = self.node(child).kind == Kind::Directory;
        let found = self.names.find(parent.0, name);
        if is_directory && self.node(child).parent != NONE {
            return match found {
                Some(slot) if self.links[slot as usize].node == child.0 => Ok(None),
                _ => Err(TreeError::DirectoryLinked(lossy(name))),
            };
        }
        let replaced = match found {
            Some(slot) => self.detach(slot, child.0),
            None => {
                let slot = self.names.insert(parent.0, name)?;
                let directory = &mut self.nodes[parent.index()];
                self.links.push(Link { node: child.0, previous: directory.last_child });
                directory.last_child = slot;
                None
            }
        };
        if is_directory {
            self.nodes[child.index()].parent = parent.0;
        }
        Ok(replaced)
    }

    /// [`add`](Self::add) and [`link`](Self::link) in one.
    pub fn insert<N: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: &Attributes,
        body: &Body<'_>,
        xattrs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<NodeId, TreeError> {
        let node = self.add(attributes, body, xattrs)?;
        self.link(parent, name, node)?;
        Ok(node)
    }

    /// The node called `name` in `parent`.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let slot = self.names.find(parent.0, name)?;
        let node = self.links[slot as usize].node;
        (node != NONE).then_some(NodeId(node))
    }

    /// Takes a name away, and with it, if it was a directory's, all that is below; returns what had the name.
    pub fn unlink(&mut self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let slot = self.names.find(parent.0, name)?;
        self.detach(slot, NONE)
    }

    /// Takes all names out of a directory.
    pub fn clear(&mut self, directory: NodeId) {
        let mut slot = self.node(directory).last_child;
        while slot != NONE {
            self.detach(slot, NONE);
            slot = self.links[slot as usize].previous;
        }
    }

    /// Names and nodes of a directory, newest name first.
    pub fn children(&self, directory: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        self.slots(directory.0).map(|slot| (self.names.name(slot), NodeId(self.links[slot as usize].node)))
    }

    /// The type of a node.
    pub fn kind(&self, node: NodeId) -> Kind {
        self.node(node).kind
    }

    /// The attributes of a node.
    pub fn attributes(&self, node: NodeId) -> Attributes {
        let node = self.node(node);
        Attributes {
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: Timestamp::new(node.seconds, node.nanoseconds),
        }
    }

    /// The type of a node and what belongs to it.
    pub fn body(&self, id: NodeId) -> Body<'_> {
        let node = self.node(id);
        let (major, minor) = decode_device(node.value as u32);
        match node.kind {
            Kind::File => {
                let extent = match node.device {
                    0 => Extent::Hole,
                    device => Extent::Device { device, offset: node.place },
                };
                Body::File { size: node.value, extent }
            }
            Kind::Directory => Body::Directory,
            Kind::Symlink => Body::Symlink(self.target(node)),
            Kind::CharDevice => Body::CharDevice { major, minor },
            Kind::BlockDevice => Body::BlockDevice { major, minor },
            Kind::Fifo => Body::Fifo,
            Kind::Socket => Body::Socket,
        }
    }

    /// The extended attributes of a node, sorted by name.
    pub fn xattrs(&self, node: NodeId) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.xattrs.get(self.node(node).xattrs)
    }

    /// Replaces attributes and extended attributes of a node.
    pub fn set_attributes<N: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        node: NodeId,
        attributes: &Attributes,
        xattrs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<(), TreeError> {
        check_time(attributes)?;
        let set = self.intern(xattrs)?;
        let node = &mut self.nodes[node.index()];
        node.set_attributes(attributes);
        node.xattrs = set;
        Ok(())
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    pub(crate) fn target(&self, node: &Node) -> &[u8] {
        &self.targets[node.place as usize..][..node.value as usize]
    }

    pub(crate) fn name(&self, slot: u32) -> &[u8] {
        self.names.name(slot)
    }

    /// The node behind a living name.
    pub(crate) fn linked(&self, slot: u32) -> u32 {
        self.links[slot as usize].node
    }

    /// The sets of extended attributes, by number.
    pub(crate) fn sets(&self) -> &XattrSets {
        &self.xattrs
    }

    /// The living names of a directory, newest first.
    pub(crate) fn slots(&self, directory: u32) -> impl Iterator<Item = u32> {
        let wrap = |slot: u32| (slot != NONE).then_some(slot);
        std::iter::successors(wrap(self.nodes[directory as usize].last_child), move |slot| {
            wrap(self.links[*slot as usize].previous)
        })
        .filter(|slot| self.links[*slot as usize].node != NONE)
    }

    /// Makes a name lead to `node` instead; returns what it led to.
    fn detach(&mut self, slot: u32, node: u32) -> Option<NodeId> {
        let old = std::mem::replace(&mut self.links[slot as usize].node, node);
        if old == NONE {
            return None;
        }
        if self.nodes[old as usize].kind == Kind::Directory {
            self.nodes[old as usize].parent = NONE;
        }
        Some(NodeId(old))
    }

    fn intern<N: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        xattrs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<u32, TreeError> {
        let pairs: Vec<(N, V)> = xattrs.into_iter().collect();
        for (name, _) in &pairs {
            let name = name.as_ref();
            let reason = match xattr::split_name(name) {
                None => "EROFS stores user., trusted., security. and POSIX ACLs only",
                Some((index, b"")) if !xattr::is_whole(index) => "nothing follows the namespace",
                Some(_) => continue,
            };
            return Err(TreeError::Xattr { name: lossy(name), reason });
        }
        Ok(self.xattrs.intern(pairs)?)
    }
}

impl From<XattrError> for TreeError {
    fn from(error: XattrError) -> Self {
        Self::Xattr { name: error.name, reason: error.reason }
    }
}

impl Node {
    const fn blank(kind: Kind) -> Self {
        Self {
            value: 0,
            place: 0,
            seconds: 0,
            nanoseconds: 0,
            uid: 0,
            gid: 0,
            xattrs: 0,
            last_child: NONE,
            parent: NONE,
            mode: 0,
            device: 0,
            kind,
        }
    }

    fn set_attributes(&mut self, attributes: &Attributes) {
        self.mode = attributes.mode & 0o7777;
        (self.uid, self.gid) = (attributes.uid, attributes.gid);
        (self.seconds, self.nanoseconds) = (attributes.mtime.seconds, attributes.mtime.nanoseconds);
    }
}

fn check_time(attributes: &Attributes) -> Result<(), TreeError> {
    match attributes.mtime.nanoseconds {
        0..1_000_000_000 => Ok(()),
        wrong => Err(TreeError::Time(wrong)),
    }
}

/// The kernel's 32-bit form of a device number.
fn encode_device(major: u32, minor: u32) -> Result<u32, TreeError> {
    if major > 0xfff || minor > 0xf_ffff {
        return Err(TreeError::DeviceNumber { major, minor });
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

pub(crate) const fn decode_device(number: u32) -> (u32, u32) {
    ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}

pub(crate) fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
