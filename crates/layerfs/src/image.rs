//! Image trees: the entries of a list of layers as one EROFS image of metadata alone, one device per layer.
//!
//! What stacking would do is done here, once: whiteouts and opaque directories are applied and gone, a directory that a
//! layer only implies keeps the attributes it has below, and one that is implied where a layer below has a symlink to a
//! directory leads there, as unpacking a tar onto it would have. A char device 0:0 is what overlayfs takes for a whiteout
//! and is treated as one.
//!
//! The image is derived: it is named by the list (and this module's [`VERSION`]) and may be deleted at any time.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use castor_archive::layer::{Whiteout, whiteout};
use castor_erofs::{Attributes, Body, DeviceSlot, Extent, Kind as NodeKind, NodeId, Tree as Image, write_image};
use castor_oci::Digest;

use crate::source::LayerId;
use crate::tree::{Inode, Kind, Tree};

/// Part of every image's name: raise it when the same list gives another image.
const VERSION: u32 = 2;

/// Symlinks followed for one implied directory.
const MAX_LINKS: u32 = 40;

/// Whether layers below the image exist that its whiteouts must reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Base {
    /// None: whiteouts are applied and dropped.
    Ground,
    /// It is stacked on something else: what is left of whiteouts and opaque marks is kept for overlayfs.
    Stacked,
}

/// The name of the image of `layers`.
pub(crate) fn name(layers: &[LayerId], base: Base) -> Digest {
    let mut text = format!("castor-image-tree/{VERSION} {base:?}\n");
    for layer in layers {
        text.push_str(&layer.to_string());
        text.push('\n');
    }
    Digest::of(text)
}

/// Writes the image of `layers` (lowest first) to `path`, by way of another name beside it. The number of each layer's
/// device is its place among the layers that have data, from 1.
pub(crate) fn build(layers: &[&Tree], digest: Digest, base: Base, path: &Path) -> Result<(), String> {
    let mut devices = Vec::new();
    let mut merge = Merge::new(base);
    for (number, tree) in layers.iter().enumerate() {
        let device = if tree.data_size() > 0 {
            devices.push(DeviceSlot { tag: format!("layer{number}").into_bytes(), size: tree.data_size() });
            u16::try_from(devices.len()).map_err(|_| "more than 65535 layers".to_owned())?
        } else {
            0
        };
        merge.apply(tree, device)?;
    }
    merge.mark()?;
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest.as_bytes()[..16]);
    // Version 8, variant 1: a UUID of the maker's own making.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let new = path.with_extension("new");
    let result = (|| {
        let file = File::create(&new).map_err(|e| e.to_string())?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        write_image(&merge.image, &devices, uuid, &mut out).map_err(|e| e.to_string())?;
        out.flush().map_err(|e| e.to_string())?;
        // An image that a crash cut short must not have the final name.
        out.get_ref().sync_data().map_err(|e| e.to_string())?;
        std::fs::rename(&new, path).map_err(|e| e.to_string())
    })();
    result.map_err(|e| {
        let _ = std::fs::remove_file(&new);
        format!("write {}: {e}", path.display())
    })
}

/// A tree in the making.
struct Merge {
    image: Image,
    base: Base,
    /// The directory that each directory is in.
    parents: HashMap<NodeId, NodeId>,
    /// Directories that hide all below them, in a stacked image.
    opaque: HashSet<NodeId>,
    /// Directories with whiteouts, in a stacked image.
    hiding: HashSet<NodeId>,
}

impl Merge {
    fn new(base: Base) -> Self {
        let image = Image::new(Attributes { mode: 0o755, ..Attributes::default() });
        Self { image, base, parents: HashMap::new(), opaque: HashSet::new(), hiding: HashSet::new() }
    }

    /// Puts a layer on top.
    fn apply(&mut self, tree: &Tree, device: u16) -> Result<(), String> {
        let opaque = self.hide(tree)?;
        self.add(tree, device)?;
        if self.base == Base::Stacked {
            let nodes: Vec<NodeId> = opaque.iter().filter_map(|directory| self.find(tree, *directory)).collect();
            self.opaque.extend(nodes);
        }
        Ok(())
    }

    /// Takes away what the layer's whiteouts hide of those below it; returns its opaque directories, by name.
    fn hide(&mut self, tree: &Tree) -> Result<Vec<u32>, String> {
        let mut nodes: Vec<Option<NodeId>> = vec![None; tree.names() as usize];
        let mut opaque = Vec::new();
        for number in 0..tree.names() {
            let name = tree.name(number);
            if number == 0 {
                nodes[0] = Some(self.image.root());
                continue;
            }
            let parent = nodes.get(name.parent as usize).copied().flatten();
            let inode = tree.inode(name.inode);
            match whiteout(name.bytes) {
                Whiteout::Opaque => {
                    if let Some(parent) = parent {
                        self.image.clear(parent);
                    }
                    opaque.push(name.parent);
                }
                Whiteout::Name(hidden) => {
                    if let Some(parent) = parent {
                        self.image.unlink(parent, hidden);
                    }
                }
                Whiteout::No if inode.is_whiteout() => {
                    if let Some(parent) = parent {
                        self.image.unlink(parent, name.bytes);
                    }
                }
                Whiteout::No if inode.kind == Kind::Directory => {
                    nodes[number as usize] = parent.and_then(|parent| self.below(parent, name.bytes, inode.implied));
                }
                Whiteout::No | Whiteout::Metadata | Whiteout::Malformed => {}
            }
        }
        Ok(opaque)
    }

    /// Adds the layer's entries.
    fn add(&mut self, tree: &Tree, device: u16) -> Result<(), String> {
        let mut nodes: Vec<Option<NodeId>> = vec![None; tree.names() as usize];
        let mut linked: HashMap<u32, NodeId> = HashMap::new();
        for number in 0..tree.names() {
            let name = tree.name(number);
            let inode = tree.inode(name.inode);
            if number == 0 {
                nodes[0] = Some(self.image.root());
                if !inode.implied {
                    self.describe(tree, self.image.root(), &inode)?;
                }
                continue;
            }
            let Some(parent) = nodes.get(name.parent as usize).copied().flatten() else { continue };
            match whiteout(name.bytes) {
                Whiteout::No => {}
                Whiteout::Name(hidden) => {
                    self.leave_whiteout(parent, hidden)?;
                    continue;
                }
                Whiteout::Opaque | Whiteout::Metadata | Whiteout::Malformed => continue,
            }
            if inode.is_whiteout() {
                self.leave_whiteout(parent, name.bytes)?;
                continue;
            }
            if inode.kind == Kind::Directory {
                nodes[number as usize] = Some(self.directory(tree, parent, name.bytes, &inode)?);
                continue;
            }
            let node = match linked.get(&name.inode) {
                Some(node) => *node,
                None => {
                    let node =
                        self.leaf(tree, &inode, device).map_err(|e| format!("{}: {e}", tree.path_of(name.inode)))?;
                    if inode.links > 1 {
                        linked.insert(name.inode, node);
                    }
                    node
                }
            };
            self.image.link(parent, name.bytes, node).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// A directory of the layer: that of the layers below if there is one, else a new one.
    fn directory(&mut self, tree: &Tree, parent: NodeId, name: &[u8], inode: &Inode) -> Result<NodeId, String> {
        if let Some(node) = self.below(parent, name, inode.implied) {
            if !inode.implied {
                self.describe(tree, node, inode)?;
            }
            return Ok(node);
        }
        let xattrs = storable(tree.xattrs(inode.xattrs));
        let replaced = self.image.lookup(parent, name);
        let node =
            self.image.insert(parent, name, &attributes(inode), &Body::Directory, xattrs).map_err(|e| e.to_string())?;
        // What the directory takes the place of, be it a whiteout, hid what is below, and the directory goes on hiding it.
        if self.base == Base::Stacked && replaced.is_some() {
            self.opaque.insert(node);
        }
        self.parents.insert(node, parent);
        Ok(node)
    }

    /// The directory that an entry called `name` in `parent` continues.
    fn below(&self, parent: NodeId, name: &[u8], implied: bool) -> Option<NodeId> {
        let node = self.image.lookup(parent, name)?;
        match self.image.kind(node) {
            NodeKind::Directory => Some(node),
            NodeKind::Symlink if implied => self.follow(parent, node, &mut 0),
            _ => None,
        }
    }

    /// The directory that the symlink `link` in `directory` leads to.
    fn follow(&self, directory: NodeId, link: NodeId, links: &mut u32) -> Option<NodeId> {
        *links += 1;
        let Body::Symlink(target) = self.image.body(link) else { return None };
        if *links > MAX_LINKS {
            return None;
        }
        let mut at = if target.starts_with(b"/") { self.image.root() } else { directory };
        for part in target.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => at = self.parents.get(&at).copied().unwrap_or(self.image.root()),
                name => {
                    let node = self.image.lookup(at, name)?;
                    at = match self.image.kind(node) {
                        NodeKind::Directory => node,
                        NodeKind::Symlink => self.follow(at, node, links)?,
                        _ => return None,
                    };
                }
            }
        }
        Some(at)
    }

    fn leaf(&mut self, tree: &Tree, inode: &Inode, device: u16) -> Result<NodeId, String> {
        let (major, minor) = ((inode.value >> 32) as u32, inode.value as u32);
        let body = match inode.kind {
            Kind::File if inode.value == 0 || device == 0 => Body::File { size: inode.value, extent: Extent::Hole },
            Kind::File => Body::File { size: inode.value, extent: Extent::Device { device, offset: inode.place } },
            Kind::Symlink => Body::Symlink(tree.target(inode)),
            Kind::CharDevice => Body::CharDevice { major, minor },
            Kind::BlockDevice => Body::BlockDevice { major, minor },
            Kind::Fifo => Body::Fifo,
            Kind::Directory => Body::Directory,
        };
        let xattrs = storable(tree.xattrs(inode.xattrs));
        self.image.add(&attributes(inode), &body, xattrs).map_err(|e| e.to_string())
    }

    fn describe(&mut self, tree: &Tree, node: NodeId, inode: &Inode) -> Result<(), String> {
        let xattrs = storable(tree.xattrs(inode.xattrs));
        self.image.set_attributes(node, &attributes(inode), xattrs).map_err(|e| e.to_string())
    }

    /// In a stacked image: keeps a whiteout for overlayfs, unless the layer has something of that name as well.
    fn leave_whiteout(&mut self, parent: NodeId, hidden: &[u8]) -> Result<(), String> {
        if self.base == Base::Ground || self.image.lookup(parent, hidden).is_some() {
            return Ok(());
        }
        self.hiding.insert(parent);
        let none: [(&[u8], &[u8]); 0] = [];
        self.image.insert(parent, hidden, &Attributes::default(), &Body::WHITEOUT, none).map_err(|e| e.to_string())?;
        Ok(())
    }

    /// In a stacked image: marks directories for overlayfs, once no layer can change their attributes any more.
    fn mark(&mut self) -> Result<(), String> {
        // A directory that may have come from below is one in which whiteouts are looked for: in others they are listed.
        let marks = [(&self.opaque, b"opaque".as_slice(), b"y".as_slice()), (&self.hiding, b"origin", b"")];
        for (nodes, what, value) in marks {
            let key = [b"trusted.overlay.", what].concat();
            for node in nodes {
                let attributes = self.image.attributes(*node);
                let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> =
                    self.image.xattrs(*node).map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
                xattrs.retain(|(name, _)| *name != key);
                xattrs.push((key.clone(), value.to_vec()));
                self.image.set_attributes(*node, &attributes, xattrs).map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }

    /// The node of a directory of the layer just added.
    fn find(&self, tree: &Tree, name: u32) -> Option<NodeId> {
        if name == 0 {
            return Some(self.image.root());
        }
        let entry = tree.name(name);
        if entry.parent >= name {
            return None;
        }
        let parent = self.find(tree, entry.parent)?;
        self.below(parent, entry.bytes, true)
    }
}

fn attributes(inode: &Inode) -> Attributes {
    Attributes { mode: inode.mode, uid: inode.uid, gid: inode.gid, mtime: inode.mtime }
}

/// The attributes of namespaces that a file system knows; unpacking onto a disk would have refused the others.
fn storable<'a>(mut xattrs: Vec<(&'a [u8], &'a [u8])>) -> Vec<(&'a [u8], &'a [u8])> {
    xattrs.retain(|(name, _)| {
        [&b"user."[..], b"trusted.", b"security."].iter().any(|p| name.starts_with(p) && name.len() > p.len())
            || *name == b"system.posix_acl_access"
            || *name == b"system.posix_acl_default"
    });
    xattrs
}

#[cfg(test)]
mod tests;
