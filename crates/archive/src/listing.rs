//! The entries of one layer as one clean tree.
//!
//! A tar, or a table of contents, is a sequence of claims: names in several spellings, names given twice,
//! directories that only their children imply, hard links to what comes later. A [`Builder`] takes the claims
//! in order and settles them; the [`Listing`] it gives is what a file system can be made of. Tar streams and
//! tables of contents pass through the same code, so a layer looks the same whichever it was read from.
//!
//! Whiteouts stay what they are in a layer, regular files with names of a certain form: what they mean is
//! decided where layers are stacked ([`crate::layer::whiteout`]).

use std::cell::Cell;

use crate::Timestamp;
use crate::layer::{Whiteout, is_overlay_xattr, whiteout};
use crate::names::{NameTable, TableFull};
use crate::xattrs::{SetId, XattrSets};

/// Names that the root does not show where [`Rules::hide_toc`] holds.
pub const HIDDEN: [&[u8]; 3] = [b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"];

/// Longest component of a name.
const NAME_MAX: usize = 255;
/// Longest path, and longest symlink target.
const PATH_MAX: usize = 4095;
/// Most symlinks that one name may lead through.
const SYMLINKS_MAX: usize = 40;
/// Most components that symlinks add to the names of one layer: each link may add thousands to each name.
const FOLLOWED_MAX: usize = 20_000_000;
/// Largest file: 8 TiB.
const SIZE_MAX: u64 = 1 << 43;
/// Namespaces of extended attributes that file systems here can store; others are dropped, as when a tar is
/// unpacked.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// A name that was replaced, or whose hard link is not settled yet.
const DEAD: u32 = u32::MAX;
const PENDING: u32 = u32::MAX - 1;
const ROOT: u32 = 0;

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
    /// Start and length of a symlink's target.
    link: (u32, u32),
    xattrs: SetId,
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
    /// `..` in a name stays inside the root, and symlinks on the way to a name are followed inside the root, as when
    /// a tar is unpacked. Otherwise both are refused.
    pub follow: bool,
    /// Hide the table of contents and the landmarks of a lazily pullable layer.
    pub hide_toc: bool,
    /// Most names, implied directories included.
    pub max_names: u32,
}

impl Rules {
    /// For a tar that is read whole.
    pub const TAR: Self = Self { links_at_once: true, follow: true, hide_toc: false, max_names: 4_000_000 };
    /// For a tar with a table of contents in it.
    pub const TAR_WITH_TOC: Self = Self { hide_toc: true, ..Self::TAR };
    /// For a table of contents.
    pub const TOC: Self = Self { links_at_once: false, follow: false, hide_toc: true, max_names: 4_000_000 };
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
    /// A size or device number that no file system here can hold.
    #[error("entry {path:?}: {reason}")]
    Value {
        /// The entry.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
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

impl From<TableFull> for ListingError {
    fn from(_: TableFull) -> Self {
        Self::Limit(u32::MAX)
    }
}

/// Takes claims in order.
#[derive(Debug)]
pub struct Builder {
    rules: Rules,
    names: NameTable,
    /// Per name: its inode, `DEAD` or `PENDING`.
    states: Vec<u32>,
    inodes: Vec<Inode>,
    /// Targets of symlinks, and of hard links that are not settled.
    targets: Vec<u8>,
    xattrs: XattrSets,
    /// Hard links that are not settled: name, and start and length of the target in `targets`.
    pending: Vec<(u32, (u32, u32))>,
    /// Components that symlinks added so far.
    followed: Cell<usize>,
}

impl Builder {
    /// A builder that has seen nothing.
    pub fn new(rules: Rules) -> Self {
        let mut builder = Self {
            rules,
            names: NameTable::new(),
            states: vec![0],
            inodes: vec![Inode::implied()],
            targets: Vec::new(),
            xattrs: XattrSets::new(),
            pending: Vec::new(),
            followed: Cell::new(0),
        };
        // The root is entry 0, in itself. A table that is empty takes it.
        let _ = builder.names.insert(ROOT, b"");
        builder
    }

    /// Takes a claim; answers which inode it made or described. `None`: a hard link, or hidden.
    pub fn push(&mut self, claim: &Claim<'_>) -> Result<Option<InodeId>, ListingError> {
        let path = self.clean(claim.path)?;
        if let [name] = path.as_slice()
            && self.rules.hide_toc
            && HIDDEN.contains(name)
        {
            return Ok(None);
        }
        let Some((name, parents)) = path.split_last() else {
            if claim.kind != ClaimKind::Directory {
                return Err(ListingError::Root);
            }
            self.describe(ROOT, claim)?;
            return Ok(Some(InodeId(ROOT)));
        };
        if whiteout(name) == Whiteout::Malformed {
            return Err(ListingError::Name { path: lossy(claim.path), reason: "a whiteout of no possible name" });
        }
        let parent = self.directory(parents, claim.path)?;
        let found = self.names.find(parent, name);
        if let ClaimKind::Hardlink(target) = claim.kind {
            return self.hardlink(parent, name, found, claim.path, target).map(|()| None);
        }
        if let Some(slot) = found
            && claim.kind == ClaimKind::Directory
            && self.is_directory(slot)
        {
            let inode = self.states[slot as usize];
            self.describe(inode, claim)?;
            return Ok(Some(InodeId(inode)));
        }
        let inode = self.inodes.len() as u32;
        if inode >= PENDING {
            return Err(ListingError::Limit(self.rules.max_names));
        }
        self.inodes.push(Inode::implied());
        self.describe(inode, claim)?;
        self.put(parent, name, found, inode)?;
        Ok(Some(InodeId(inode)))
    }

    /// Settles what is open. Inodes that no name leads to any more are gone, and with them their numbers: only
    /// tags connect what `push` answered with the listing.
    pub fn finish(mut self) -> Result<Listing, ListingError> {
        self.settle_links()?;
        let mut listing = Listing {
            names: Vec::new(),
            text: Vec::new(),
            inodes: Vec::new(),
            targets: self.targets,
            xattrs: self.xattrs,
        };
        let mut new_names = vec![DEAD; self.states.len()];
        let mut new_inodes = vec![DEAD; self.inodes.len()];
        for slot in 0..self.states.len() {
            let (state, parent) = (self.states[slot], new_names[self.names.parent(slot as u32) as usize]);
            // What lies below a replaced directory is gone with it.
            if state == DEAD || (parent == DEAD && slot != 0) {
                continue;
            }
            new_names[slot] = listing.names.len() as u32;
            let inode = &mut new_inodes[state as usize];
            if *inode == DEAD {
                // Numbered below, in the order of the entries.
                *inode = 0;
            }
            let name = self.names.name(slot as u32);
            let start = listing.text.len() as u32;
            listing.text.extend_from_slice(name);
            let parent = if slot == 0 { ROOT } else { parent };
            listing.names.push(Name { parent, inode: state, start, len: name.len() as u16 });
        }
        // In place: they are the most of what a large listing takes.
        let mut count = 0;
        for (old, new) in new_inodes.iter_mut().enumerate().filter(|(_, new)| **new != DEAD) {
            *new = count;
            self.inodes[count as usize] = self.inodes[old];
            count += 1;
        }
        self.inodes.truncate(count as usize);
        listing.inodes = self.inodes;
        for name in &mut listing.names {
            name.inode = new_inodes[name.inode as usize];
        }
        Ok(listing)
    }

    /// The components of a name, cleaned; none for the root.
    fn clean<'p>(&self, path: &'p [u8]) -> Result<Vec<&'p [u8]>, ListingError> {
        let fail = |reason| Err(ListingError::Name { path: lossy(path), reason });
        if path.len() > 2 * PATH_MAX {
            return fail("longer than 4095 bytes");
        }
        let (mut components, mut length) = (Vec::new(), 0);
        for component in path.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." if self.rules.follow => drop(components.pop()),
                b".." => return fail("'..' in it"),
                _ if component.len() > NAME_MAX => return fail("a component is longer than 255 bytes"),
                _ if component.contains(&0) => return fail("NUL in it"),
                _ => components.push(component),
            }
            length += component.len() + 1;
        }
        if length > PATH_MAX + 1 {
            return fail("longer than 4095 bytes");
        }
        Ok(components)
    }

    /// The directory at `path`, made if it is not there.
    fn directory(&mut self, path: &[&[u8]], whole: &[u8]) -> Result<u32, ListingError> {
        let (mut current, mut links) = (ROOT, 0);
        // What symlinks put before the rest of `path`, the next component last.
        let mut detour: Vec<Vec<u8>> = Vec::new();
        let mut given = path.iter();
        loop {
            let owned = detour.pop();
            let Some(name) = owned.as_deref().or_else(|| given.next().copied()) else { return Ok(current) };
            if name == b".." {
                current = self.names.parent(current);
                continue;
            }
            let Some(slot) = self.names.find(current, name) else {
                let inode = self.inodes.len() as u32;
                self.inodes.push(Inode::implied());
                current = self.put(current, name, None, inode)?;
                continue;
            };
            if self.is_directory(slot) {
                current = slot;
            } else if !self.follow(slot, &mut current, &mut links, &mut detour) {
                return Err(ListingError::NotADirectory(lossy(whole)));
            }
        }
    }

    /// The name at `path`, whose parents may be reached through symlinks; nothing is made.
    fn find(&self, path: &[&[u8]]) -> Option<u32> {
        let (mut current, mut links) = (ROOT, 0);
        let mut rest: Vec<Vec<u8>> = path.iter().rev().map(|component| component.to_vec()).collect();
        while let Some(name) = rest.pop() {
            if name == b".." {
                current = self.names.parent(current);
                continue;
            }
            let slot = self.names.find(current, &name)?;
            if rest.is_empty() || self.is_directory(slot) {
                current = slot;
            } else if !self.follow(slot, &mut current, &mut links, &mut rest) {
                return None;
            }
        }
        Some(current)
    }

    /// Goes on at a symlink's target: from the root if it is absolute, its components before the `rest`. `false`
    /// if that is no symlink, or none to be followed.
    fn follow(&self, slot: u32, current: &mut u32, links: &mut usize, rest: &mut Vec<Vec<u8>>) -> bool {
        *links += 1;
        let Some(target) = self.symlink(slot).filter(|_| self.rules.follow && *links <= SYMLINKS_MAX) else {
            return false;
        };
        if target.first() == Some(&b'/') {
            *current = ROOT;
        }
        let components = target.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        let before = rest.len();
        rest.extend(components.rev().map(<[u8]>::to_vec));
        self.followed.set(self.followed.get() + rest.len() - before);
        self.followed.get() <= FOLLOWED_MAX
    }

    /// The target of the symlink that a name leads to.
    fn symlink(&self, slot: u32) -> Option<&[u8]> {
        let inode = self.inodes.get(self.states[slot as usize] as usize)?;
        (inode.kind == Kind::Symlink).then(|| slice(&self.targets, inode.link))
    }

    fn is_directory(&self, slot: u32) -> bool {
        self.inodes.get(self.states[slot as usize] as usize).is_some_and(|inode| inode.kind == Kind::Directory)
    }

    /// Makes a name lead to an inode (or be pending). Whatever had the name is gone, with all that is below.
    fn put(&mut self, parent: u32, name: &[u8], found: Option<u32>, state: u32) -> Result<u32, ListingError> {
        if self.states.len() >= self.rules.max_names as usize {
            return Err(ListingError::Limit(self.rules.max_names));
        }
        let slot = self.names.insert(parent, name)?;
        if let Some(old) = found {
            self.states[old as usize] = DEAD;
        }
        self.states.push(state);
        Ok(slot)
    }

    /// Gives an inode what a claim says of it.
    fn describe(&mut self, inode: u32, claim: &Claim<'_>) -> Result<(), ListingError> {
        let value = |reason| Err(ListingError::Value { path: lossy(claim.path), reason });
        let (mut size, mut rdev, mut link) = (0, (0, 0), (0, 0));
        let kind = match claim.kind {
            ClaimKind::File(bytes) => {
                size = bytes;
                Kind::File
            }
            // Hard links have no inode of their own.
            ClaimKind::Directory | ClaimKind::Hardlink(_) => Kind::Directory,
            ClaimKind::Symlink(target) => {
                if target.is_empty() || target.len() > PATH_MAX || target.contains(&0) {
                    return Err(ListingError::Target(lossy(claim.path)));
                }
                link = self.keep(target)?;
                Kind::Symlink
            }
            ClaimKind::CharDevice(major, minor) => {
                rdev = (major, minor);
                Kind::CharDevice
            }
            ClaimKind::BlockDevice(major, minor) => {
                rdev = (major, minor);
                Kind::BlockDevice
            }
            ClaimKind::Fifo => Kind::Fifo,
        };
        if size > SIZE_MAX {
            return value("the file is too large");
        }
        if rdev.0 > 0xfff || rdev.1 > 0xf_ffff {
            return value("device number out of range");
        }
        if claim.mtime.nanoseconds >= 1_000_000_000 {
            return value("time out of range");
        }
        let xattrs = self.intern(claim)?;
        self.inodes[inode as usize] = Inode {
            kind,
            mode: (claim.mode & 0o7777) as u16,
            implied: false,
            uid: claim.uid,
            gid: claim.gid,
            mtime: claim.mtime,
            size,
            rdev,
            tag: claim.tag,
            link,
            xattrs,
        };
        Ok(())
    }

    fn intern(&mut self, claim: &Claim<'_>) -> Result<SetId, ListingError> {
        let kept = claim.xattrs.iter().filter(|(name, _)| {
            let storable =
                NAMESPACES.iter().any(|namespace| name.len() > namespace.len() && name.starts_with(namespace));
            (storable || ACLS.contains(name)) && !is_overlay_xattr(name)
        });
        self.xattrs.intern(kept.copied()).map_err(|error| ListingError::Xattr {
            path: lossy(claim.path),
            name: error.name,
            reason: error.reason,
        })
    }

    fn hardlink(
        &mut self,
        parent: u32,
        name: &[u8],
        found: Option<u32>,
        path: &[u8],
        target: &[u8],
    ) -> Result<(), ListingError> {
        let components = self.clean(target)?;
        let mut state = PENDING;
        if self.rules.links_at_once
            && let Some(slot) = self.find(&components)
            && self.states[slot as usize] != PENDING
        {
            state = self.states[slot as usize];
            if self.is_directory(slot) {
                return Err(link_error(path, target, "a directory"));
            }
        }
        let kept = if state == PENDING { self.keep(target)? } else { (0, 0) };
        let slot = self.put(parent, name, found, state)?;
        if state == PENDING {
            self.pending.push((slot, kept));
        }
        Ok(())
    }

    /// Follows every pending link to its end. Chains may be as long as the layer, so no recursion.
    fn settle_links(&mut self) -> Result<(), ListingError> {
        let pending = std::mem::take(&mut self.pending);
        let targets: std::collections::HashMap<u32, (u32, u32)> = pending.iter().copied().collect();
        for (first, _) in pending {
            let mut chain = Vec::new();
            let mut slot = first;
            while self.states[slot as usize] == PENDING {
                let target = slice(&self.targets, targets[&slot]);
                let fail = |reason| Err(link_error(&self.path_of(slot), target, reason));
                if chain.len() > targets.len() {
                    return fail("it leads to itself");
                }
                let components = self.clean(target)?;
                let Some(next) = self.find(&components) else { return fail("there is no such entry") };
                chain.push(slot);
                if self.is_directory(next) {
                    return fail("it is a directory");
                }
                slot = next;
            }
            for link in chain {
                self.states[link as usize] = self.states[slot as usize];
            }
        }
        Ok(())
    }

    fn path_of(&self, mut slot: u32) -> Vec<u8> {
        let mut components = Vec::new();
        while slot != ROOT {
            components.push(self.names.name(slot));
            slot = self.names.parent(slot);
        }
        components.reverse();
        components.join(&b'/')
    }

    fn keep(&mut self, target: &[u8]) -> Result<(u32, u32), ListingError> {
        let start = u32::try_from(self.targets.len()).map_err(|_| TableFull)?;
        self.targets.extend_from_slice(target);
        Ok((start, target.len() as u32))
    }
}

impl Inode {
    const fn implied() -> Self {
        Self {
            kind: Kind::Directory,
            mode: 0o755,
            implied: true,
            uid: 0,
            gid: 0,
            mtime: Timestamp::from_seconds(0),
            size: 0,
            rdev: (0, 0),
            tag: 0,
            link: (0, 0),
            xattrs: 0,
        }
    }
}

/// A name of a listing; 16 bytes.
#[derive(Debug, Clone, Copy)]
struct Name {
    parent: u32,
    inode: u32,
    start: u32,
    len: u16,
}

/// The entries of one layer.
#[derive(Debug, Clone)]
pub struct Listing {
    names: Vec<Name>,
    text: Vec<u8>,
    inodes: Vec<Inode>,
    targets: Vec<u8>,
    xattrs: XattrSets,
}

impl Listing {
    /// All names, the root first, every directory before what it contains.
    pub fn names(&self) -> impl Iterator<Item = NameId> + use<> {
        (0..self.names.len() as u32).map(NameId)
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Never: there is a root.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// All inodes, the root's first.
    pub fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// The inode a name leads to.
    pub fn inode_of(&self, name: NameId) -> InodeId {
        InodeId(self.names[name.0 as usize].inode)
    }

    /// An inode.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    /// The directory a name is in (the root is in itself).
    pub fn parent(&self, name: NameId) -> NameId {
        NameId(self.names[name.0 as usize].parent)
    }

    /// The last component (empty for the root).
    pub fn name(&self, name: NameId) -> &[u8] {
        let name = self.names[name.0 as usize];
        &self.text[name.start as usize..][..usize::from(name.len)]
    }

    /// The whole path, without a leading slash.
    pub fn path(&self, name: NameId) -> Vec<u8> {
        let mut components = Vec::new();
        let mut current = name;
        while current.0 != ROOT {
            components.push(self.name(current));
            current = self.parent(current);
        }
        components.reverse();
        components.join(&b'/')
    }

    /// The target of a symlink, empty for others.
    pub fn target(&self, inode: InodeId) -> &[u8] {
        slice(&self.targets, self.inode(inode).link)
    }

    /// Names and values of the extended attributes, sorted by name.
    pub fn xattrs(&self, inode: InodeId) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.xattrs.get(self.inode(inode).xattrs)
    }
}

fn slice(bytes: &[u8], (start, len): (u32, u32)) -> &[u8] {
    &bytes[start as usize..][..len as usize]
}

fn link_error(path: &[u8], target: &[u8], reason: &'static str) -> ListingError {
    ListingError::Hardlink { path: lossy(path), target: lossy(target), reason }
}

/// For messages; names of hostile layers may be long.
fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(&path[..path.len().min(512)]).into_owned()
}

#[cfg(test)]
mod tests;
