//! Trees written, read back and compared: with this crate's reader, and with the kernel.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use castor_erofs::read::{Inode, Nid};
use castor_erofs::{
    Attributes, Body, DeviceSlot, Extent, Image, Kind, NodeId, Timestamp, Tree, TreeError, WriteError, write_image,
};
use proptest::prelude::*;

const NO_XATTRS: [(&[u8], &[u8]); 0] = [];

/// What a path shows, in a form that compares.
#[derive(Debug, Clone, PartialEq)]
struct Shown {
    kind: Kind,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    nlink: Option<u32>,
    size: u64,
    rdev: (u32, u32),
    target: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    extent: Option<(u16, u64)>,
}

type Walk = BTreeMap<Vec<u8>, (Shown, u64)>;

fn attributes(mode: u16, uid: u32, gid: u32, seconds: i64, nanoseconds: u32) -> Attributes {
    Attributes { mode, uid, gid, mtime: Timestamp::new(seconds, nanoseconds) }
}

/// Walks a tree under construction; the second part of a value identifies the node.
fn walk_tree(tree: &Tree) -> Walk {
    let mut names: BTreeMap<NodeId, u32> = BTreeMap::new();
    let mut out = Walk::new();
    let mut stack = vec![(Vec::new(), tree.root())];
    while let Some((path, node)) = stack.pop() {
        let attributes = tree.attributes(node);
        let (mut size, mut rdev, mut target, mut extent) = (0, (0, 0), Vec::new(), None);
        match tree.body(node) {
            Body::File { size: bytes, extent: place } => {
                size = bytes;
                extent = match place {
                    Extent::Device { device, offset } => Some((device, offset)),
                    Extent::Hole => None,
                };
            }
            Body::Symlink(to) => (target, size) = (to.to_vec(), to.len() as u64),
            Body::CharDevice { major, minor } | Body::BlockDevice { major, minor } => rdev = (major, minor),
            Body::Directory | Body::Fifo | Body::Socket => {}
        }
        if tree.kind(node) == Kind::Directory {
            let mut nlink = 2;
            for (name, child) in tree.children(node) {
                nlink += u32::from(tree.kind(child) == Kind::Directory);
                stack.push((if path.is_empty() { name.to_vec() } else { [&path[..], b"/", name].concat() }, child));
            }
            names.insert(node, nlink);
        } else {
            *names.entry(node).or_default() += 1;
        }
        let shown = Shown {
            kind: tree.kind(node),
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: (attributes.mtime.seconds, attributes.mtime.nanoseconds),
            nlink: None,
            size,
            rdev,
            target,
            xattrs: tree.xattrs(node).map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
            extent,
        };
        out.insert(path, (shown, node.index() as u64));
    }
    let by_index: BTreeMap<u64, u32> = names.into_iter().map(|(node, n)| (node.index() as u64, n)).collect();
    for (shown, node) in out.values_mut() {
        shown.nlink = Some(by_index[node]);
    }
    out
}

/// Walks an image, checking that directories are sorted and look-ups find what they list.
fn walk_image(image: &Image<Vec<u8>>) -> Walk {
    let mut out = Walk::new();
    let mut stack = vec![(Vec::new(), image.superblock().root, image.superblock().root)];
    while let Some((path, nid, parent)) = stack.pop() {
        let inode = image.inode(nid).unwrap();
        if inode.kind == Kind::Directory {
            let mut dir = image.read_dir(&inode, 0).unwrap();
            let mut last: Vec<u8> = Vec::new();
            while let Some(entry) = dir.next() {
                let entry = entry.unwrap();
                assert!(last < entry.name, "{last:?} before {:?}", entry.name);
                last.clone_from(&entry.name);
                assert_eq!(image.lookup(&inode, &entry.name).unwrap().as_ref(), Some(&entry));
                let resumed = image.read_dir(&inode, dir.position()).unwrap().next().map(Result::unwrap);
                if let Some(resumed) = resumed {
                    assert!(resumed.name > entry.name);
                }
                match entry.name.as_slice() {
                    b"." => assert_eq!(entry.nid, nid),
                    b".." => assert_eq!(entry.nid, parent),
                    name => {
                        let child = if path.is_empty() { name.to_vec() } else { [&path[..], b"/", name].concat() };
                        assert_eq!(image.inode(entry.nid).unwrap().kind, entry.kind);
                        stack.push((child, entry.nid, nid));
                    }
                }
            }
            assert_eq!(image.lookup(&inode, b"no such name").unwrap(), None);
        }
        out.insert(path, (shown(image, &inode), nid.0));
    }
    out
}

fn shown(image: &Image<Vec<u8>>, inode: &Inode) -> Shown {
    let extent = match inode.kind {
        Kind::File => image.map(inode, 0).unwrap().and_then(|mapping| {
            assert_eq!((mapping.file_offset, mapping.length), (0, inode.size));
            mapping.place
        }),
        _ => None,
    };
    Shown {
        kind: inode.kind,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        mtime: (inode.mtime.seconds, inode.mtime.nanoseconds),
        nlink: Some(inode.nlink),
        size: if inode.kind == Kind::Directory { 0 } else { inode.size },
        rdev: inode.rdev,
        target: if inode.kind == Kind::Symlink { image.read_link(inode).unwrap() } else { Vec::new() },
        xattrs: image.xattrs(inode).unwrap(),
        extent,
    }
}

/// Compares what both show, and that names share a node in one exactly where they do in the other.
fn assert_same(tree: &Walk, image: &Walk) {
    assert_eq!(tree.keys().collect::<Vec<_>>(), image.keys().collect::<Vec<_>>());
    let (mut there, mut back) = (BTreeMap::new(), BTreeMap::new());
    for (path, (want, node)) in tree {
        let (have, nid) = &image[path];
        assert_eq!(have, want, "{}", path.escape_ascii());
        assert_eq!(there.entry(*node).or_insert(*nid), nid);
        assert_eq!(back.entry(*nid).or_insert(*node), node);
    }
}

fn devices() -> Vec<DeviceSlot> {
    vec![DeviceSlot { tag: b"first".to_vec(), size: 1 << 20 }, DeviceSlot { tag: Vec::new(), size: 6 << 30 }]
}

fn image_of(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = write_image(tree, &devices(), [7; 16], &mut bytes).unwrap();
    assert_eq!(written.size, bytes.len() as u64);
    bytes
}

fn check(tree: &Tree) -> Image<Vec<u8>> {
    let image = Image::open(image_of(tree)).unwrap();
    assert_same(&walk_tree(tree), &walk_image(&image));
    image
}

/// Every kind of node, and every size that lies at a limit of the format.
fn nasty() -> Tree {
    let mut tree = Tree::new(attributes(0o755, 1, 2, 3, 4));
    let plain = attributes(0o644, 0, 0, 1_600_000_000, 0);
    let root = tree.root();
    let mut offset = 0;
    for (name, size) in [("empty", 0u64), ("one", 1), ("page", 4096), ("page1", 4097), ("big", 700_000)] {
        let extent = Extent::Device { device: 1, offset };
        tree.insert(root, name.as_bytes(), &plain, &Body::File { size, extent }, NO_XATTRS).unwrap();
        offset += size.next_multiple_of(4096);
    }
    let huge = Body::File { size: 5 << 30, extent: Extent::Device { device: 2, offset: 4096 } };
    tree.insert(
        root,
        b"huge",
        &attributes(0o4755, 70_000, 1_234_567_890, -5, 999_999_999),
        &huge,
        [(b"security.capability", b"\x01\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")],
    )
    .unwrap();
    tree.insert(root, b"hole", &plain, &Body::File { size: 100_000, extent: Extent::Hole }, NO_XATTRS).unwrap();
    tree.insert(root, b"char", &plain, &Body::CharDevice { major: 511, minor: 1_048_575 }, NO_XATTRS).unwrap();
    tree.insert(root, b"block", &plain, &Body::BlockDevice { major: 259, minor: 70_000 }, NO_XATTRS).unwrap();
    tree.insert(root, b"whiteout", &attributes(0, 0, 0, 0, 0), &Body::WHITEOUT, NO_XATTRS).unwrap();
    tree.insert(root, b"fifo", &attributes(0o1777, u32::MAX - 1, 5, 1 << 33, 1), &Body::Fifo, NO_XATTRS).unwrap();
    tree.insert(root, b"socket", &plain, &Body::Socket, NO_XATTRS).unwrap();
    let links = tree.insert(root, b"links", &plain, &Body::Directory, [(b"user.d", b"v")]).unwrap();
    for length in [1usize, 59, 60, 61, 300, 3000, 4030, 4031, 4032, 4033, 4095] {
        let name = length.to_string();
        tree.insert(links, name.as_bytes(), &plain, &Body::Symlink(&vec![b'x'; length]), [(b"user.link", b"")])
            .unwrap();
    }
    let many = tree.insert(root, b"many", &plain, &Body::Directory, NO_XATTRS).unwrap();
    let first = tree.insert(many, b"00000", &plain, &Body::Fifo, NO_XATTRS).unwrap();
    for number in 1..5000 {
        tree.link(many, format!("{number:05}").as_bytes(), first).unwrap();
    }
    for name in [&b"!"[..], b"-", b"...", b".a", b"\xff\xfe", &[b'n'; 255], b"caf\xc3\xa9", b"new\nline"] {
        tree.insert(many, name, &plain, &Body::Directory, NO_XATTRS).unwrap();
    }
    // Directories whose size is around that of a block.
    for count in 13..17usize {
        let name = format!("blocks{count}");
        let dir = tree.insert(root, name.as_bytes(), &plain, &Body::Directory, NO_XATTRS).unwrap();
        for number in 0..count {
            tree.link(dir, format!("{number:0255}").as_bytes(), first).unwrap();
        }
    }
    let mut deep = root;
    for _ in 0..200 {
        deep = tree.insert(deep, b"deep", &plain, &Body::Directory, NO_XATTRS).unwrap();
    }
    let xattrs: Vec<_> = (0..40).map(|i| (format!("user.attr{i}"), vec![i; usize::from(i) * 70])).collect();
    for name in [&b"attributes"[..], b"attributes2"] {
        tree.insert(root, name, &plain, &Body::Fifo, xattrs.iter().map(|(name, value)| (name, value))).unwrap();
    }
    let acl: &[u8] =
        &[2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255];
    tree.insert(
        root,
        b"acl",
        &plain,
        &Body::Fifo,
        [(&b"system.posix_acl_access"[..], acl), (b"trusted.overlay.opaque", b"y"), (b"security.selinux", b"label")],
    )
    .unwrap();
    let crowd: Vec<_> = (0..300).map(|i| (format!("trusted.{i}"), b"crowd".to_vec())).collect();
    for name in [&b"crowd"[..], b"crowd2"] {
        tree.insert(root, name, &plain, &Body::Socket, crowd.iter().map(|(name, value)| (name, value))).unwrap();
    }
    tree
}

#[test]
fn keeps_every_kind_of_node() {
    let image = check(&nasty());
    assert_eq!(image.superblock().uuid, [7; 16]);
    assert_eq!(image.superblock().devices[0].tag, b"first");
    assert_eq!(image.superblock().devices[1].size, 6 << 30);
}

#[test]
fn keeps_an_empty_tree() {
    let image = check(&Tree::new(Attributes::default()));
    assert_eq!(image.superblock().inodes, 1);
    let mut bytes = Vec::new();
    write_image(&Tree::new(Attributes::default()), &[], [1; 16], &mut bytes).unwrap();
    assert!(Image::open(bytes).unwrap().superblock().devices.is_empty());
}

#[test]
fn names_come_and_go() {
    let mut tree = Tree::new(Attributes::default());
    let (root, plain) = (tree.root(), attributes(0o700, 0, 0, 0, 0));
    let dir = tree.insert(root, b"d", &plain, &Body::Directory, NO_XATTRS).unwrap();
    let file = tree.insert(dir, b"f", &plain, &Body::Fifo, NO_XATTRS).unwrap();
    assert_eq!(tree.lookup(dir, b"f"), Some(file));
    assert_eq!(tree.link(root, b"alias", dir), Err(TreeError::DirectoryLinked("alias".into())));
    assert_eq!(tree.unlink(root, b"d"), Some(dir));
    assert_eq!(tree.lookup(root, b"d"), None);
    assert_eq!(tree.link(root, b"moved", dir), Ok(None));
    assert_eq!(tree.link(root, b"f", file), Ok(None));
    assert_eq!(tree.link(root, b"moved", file), Ok(Some(dir)));
    check(&tree);
    tree.unlink(root, b"moved");
    assert_eq!(tree.link(root, b"moved", dir), Ok(None));
    tree.clear(dir);
    assert_eq!(tree.children(dir).count(), 0);
    tree.insert(dir, b"f", &plain, &Body::Directory, NO_XATTRS).unwrap();
    let image = check(&tree);
    assert_eq!(walk_image(&image).len(), 4);
    assert!(matches!(tree.link(file, b"x", file), Err(TreeError::NotADirectory(_))));
}

#[test]
fn order_of_building_does_not_matter() {
    let build = |numbers: &[u32]| {
        let mut tree = Tree::new(Attributes::default());
        let root = tree.root();
        for number in numbers {
            let xattrs = [(format!("user.{}", number % 7), "v"), ("user.all".to_owned(), "w")];
            let at = attributes(0o600, *number, 0, 0, 0);
            tree.insert(root, number.to_string().as_bytes(), &at, &Body::Fifo, xattrs).unwrap();
        }
        image_of(&tree)
    };
    let forward: Vec<u32> = (0..500).collect();
    let backward: Vec<u32> = (0..500).rev().collect();
    assert!(build(&forward) == build(&backward));
}

#[test]
fn refuses_what_no_image_can_hold() {
    let mut tree = Tree::new(Attributes::default());
    let (root, plain) = (tree.root(), Attributes::default());
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
        assert!(matches!(tree.insert(root, name, &plain, &Body::Fifo, NO_XATTRS), Err(TreeError::Name(_))));
    }
    for target in [&b""[..], b"a\0b", &[b'x'; 4096]] {
        assert!(matches!(tree.add(&plain, &Body::Symlink(target), NO_XATTRS), Err(TreeError::Target(_))));
    }
    for (device, offset) in [(0, 0), (1, 1), (1, 1 << 44), (1, u64::MAX - 4095)] {
        let body = Body::File { size: 9000, extent: Extent::Device { device, offset } };
        assert!(matches!(tree.add(&plain, &body, NO_XATTRS), Err(TreeError::Extent { .. })), "{offset}");
    }
    let body = Body::File { size: u64::MAX, extent: Extent::Hole };
    assert!(matches!(tree.add(&plain, &body, NO_XATTRS), Err(TreeError::Size(_))));
    let body = Body::CharDevice { major: 4096, minor: 0 };
    assert!(matches!(tree.add(&plain, &body, NO_XATTRS), Err(TreeError::DeviceNumber { .. })));
    let late = attributes(0, 0, 0, 0, 1_000_000_000);
    assert!(matches!(tree.add(&late, &Body::Fifo, NO_XATTRS), Err(TreeError::Time(_))));
    for (name, value) in [("x", 0), ("system.other", 0), ("user.", 0), ("user.x", 65536), ("user.\0", 0)] {
        let result = tree.add(&plain, &Body::Fifo, [(name, vec![0; value])]);
        assert!(matches!(result, Err(TreeError::Xattr { .. })), "{name}");
    }
    assert!(tree.add(&plain, &Body::Fifo, [("user.x", "1"), ("user.x", "2")]).is_err());
    let outside = Body::File { size: 2 << 20, extent: Extent::Device { device: 1, offset: 0 } };
    tree.insert(root, b"outside", &plain, &outside, NO_XATTRS).unwrap();
    let result = write_image(&tree, &devices(), [0; 16], &mut Vec::new());
    assert!(matches!(result, Err(WriteError::OutsideDevice { device: 1, .. })));
}

/// Reads all that an image claims to have, within bounds; errors are fine, panics are not.
fn exhaust(bytes: Vec<u8>) {
    let Ok(image) = Image::open(bytes) else { return };
    let (mut stack, mut steps) = (vec![image.superblock().root], 0);
    while let Some(nid) = stack.pop() {
        let Ok(inode) = image.inode(nid) else { continue };
        let _ = (image.xattrs(&inode), image.read_link(&inode), image.lookup(&inode, b"x"));
        let _ =
            (image.map(&inode, 0), image.map(&inode, inode.size / 2), image.map(&inode, inode.size.saturating_sub(1)));
        for entry in image.read_dir(&inode, 0).into_iter().flatten().flatten() {
            steps += 1;
            if steps > 2000 {
                return;
            }
            if entry.name != b"." && entry.name != b".." {
                stack.push(entry.nid);
            }
        }
    }
}

/// A tree of what proptest came up with: each step adds a node below one of the directories before it.
fn any_tree() -> impl Strategy<Value = Tree> {
    let name = prop::collection::vec(1u8.., 1..20).prop_map(|mut name| {
        name.iter_mut().for_each(|byte| *byte = if *byte == b'/' { b'.' } else { *byte });
        if name == b"." || name == b".." { b"dots".to_vec() } else { name }
    });
    let xattrs = prop::collection::btree_map("user\\.[a-d]{1,3}", prop::collection::vec(any::<u8>(), 0..40), 0..4);
    let step = (any::<prop::sample::Index>(), name, 0u8..9, any::<(u16, u32, u32, i64)>(), 0u32..1_000_000_000, xattrs);
    prop::collection::vec(step, 0..80).prop_map(|steps| {
        let mut tree = Tree::new(attributes(0o755, 0, 0, 0, 0));
        let (mut directories, mut nodes) = (vec![tree.root()], Vec::new());
        for (parent, name, kind, (mode, uid, gid, seconds), nanoseconds, xattrs) in steps {
            let parent = directories[parent.index(directories.len())];
            let at = attributes(mode & 0o7777, uid, gid, seconds, nanoseconds);
            let extent = Extent::Device { device: 2, offset: u64::from(uid & 0xff) * 4096 };
            let body = match kind {
                0 | 1 => Body::Directory,
                2 => Body::Symlink(&name),
                3 => Body::CharDevice { major: gid & 0xfff, minor: uid & 0xf_ffff },
                4 => Body::Fifo,
                5 if !nodes.is_empty() => {
                    let node = nodes[uid as usize % nodes.len()];
                    tree.link(parent, &name, node).unwrap();
                    continue;
                }
                6 => {
                    tree.unlink(parent, &name);
                    continue;
                }
                7 => Body::File { size: u64::from(gid), extent: Extent::Hole },
                _ => Body::File { size: u64::from(gid >> 2), extent },
            };
            let node = tree.insert(parent, &name, &at, &body, xattrs).unwrap();
            if kind < 2 { directories.push(node) } else { nodes.push(node) }
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn keeps_any_tree(tree in any_tree()) {
        check(&tree);
    }

    #[test]
    fn survives_corruption(tree in any_tree(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..30), cut in any::<prop::sample::Index>()) {
        let good = image_of(&tree);
        let mut bytes = good.clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // The checksum would catch damage to the superblock, which is not the point here.
        bytes[1032] &= !1;
        exhaust(bytes);
        exhaust(good[..cut.index(good.len())].to_vec());
    }
}

#[test]
fn a_damaged_superblock_is_refused() {
    let good = image_of(&Tree::new(Attributes::default()));
    for at in 1024..1152 {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        // Without the flag there is no checksum to compare.
        if at != 1032 {
            assert!(Image::open(bytes).is_err(), "byte {at}");
        }
    }
    assert!(Image::open(Vec::new()).is_err());
    let image = Image::open(good).unwrap();
    assert!(image.inode(Nid(u64::MAX)).is_err());
    assert!(image.inode(Nid(u64::MAX / 32)).is_err());
}
