//! EROFS images.

use castor_erofs::read::{Inode, Nid};
use castor_erofs::{Attributes, Body, DeviceSlot, Extent, Image, Kind, Timestamp, Tree, write_image};

use super::{Target, hash, kind_of_error, magnitude};
use crate::{Random, mutate};

pub(super) const TARGET: Target = Target { name: "erofs", seeds, mutate, run };

/// Where the superblock is, and in it the features that a reader may ignore: bit 0 is the checksum.
const FEATURES: usize = 1024 + 8;
/// What is visited of an image: directories may lead anywhere, and back.
const VISITS: usize = 300;

/// Images of this crate's writer, without the checksum, so that changes of the superblock are looked at.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for shape in 0..8 {
        let mut image = Vec::new();
        let devices = [DeviceSlot { tag: b"data".to_vec(), size: 1 << 30 }, DeviceSlot { tag: Vec::new(), size: 4096 }];
        let tree = tree(shape).unwrap_or_else(|error| panic!("make a tree: {error}"));
        if write_image(&tree, &devices, [7; 16], &mut image).is_ok() {
            seeds.push(image.clone());
            if let Some(features) = image.get_mut(FEATURES) {
                *features &= !1;
                seeds.push(image);
            }
        }
    }
    assert_eq!(seeds.len(), 16);
    seeds
}

/// A tree with all kinds of inodes, larger with each shape.
fn tree(shape: u16) -> Result<Tree, castor_erofs::TreeError> {
    let plain = Attributes { mode: 0o644, uid: 1, gid: 2, mtime: Timestamp::new(1_600_000_000, 5) };
    let mut tree = Tree::new(Attributes { mode: 0o755, ..plain });
    let root = tree.root();
    let none: [(&[u8], &[u8]); 0] = [];
    let extent = Extent::Device { device: 1, offset: 8192 };
    tree.insert(root, b"file", &plain, &Body::File { size: 5000, extent }, none)?;
    tree.insert(root, b"hole", &plain, &Body::File { size: 1 << 32, extent: Extent::Hole }, none)?;
    tree.insert(root, b"char", &plain, &Body::CharDevice { major: 511, minor: 1_048_575 }, none)?;
    tree.insert(root, b"fifo", &plain, &Body::Fifo, [("user.a", "value"), ("trusted.b", "other")])?;
    tree.insert(root, b"link", &plain, &Body::Symlink(&vec![b'x'; 60 + usize::from(shape) * 500]), none)?;
    let dir = tree.insert(root, b"dir", &plain, &Body::Directory, [("user.shared", "value")])?;
    let node = tree.insert(root, b"socket", &plain, &Body::Socket, [("user.shared", "value")])?;
    for number in 0..usize::from(shape) * 15 {
        tree.link(dir, format!("{number:0width$}", width = 1 + number % 200).as_bytes(), node)?;
    }
    Ok(tree)
}

fn mutate(random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let mut image = seed.to_vec();
    for _ in 0..=random.below(6) {
        // Records begin at multiples of 4; the superblock and the first inodes steer the most.
        let end = if random.once_in(2) { image.len().min(8192) } else { image.len() };
        let at = random.below(end.max(1025) - 1024) / 2 * 2 + 1024;
        mutate::number(random, &mut image, at);
    }
    if random.once_in(10) {
        mutate::bytes(random, &mut image, other);
    }
    image
}

fn run(input: &[u8]) -> u64 {
    let image = match Image::open(input.to_vec()) {
        Ok(image) => image,
        Err(error) => return kind_of_error(&error),
    };
    let mut errors = 0u64;
    let mut note = |error: castor_erofs::ReadError| errors ^= kind_of_error(&error);
    let (mut visits, mut todo) = (0, vec![image.superblock().root]);
    while let Some(nid) = todo.pop() {
        visits += 1;
        if visits > VISITS {
            break;
        }
        match image.inode(nid) {
            Ok(inode) => visit(&image, &inode, &mut todo, &mut note),
            Err(error) => note(error),
        }
    }
    hash((magnitude(visits), errors))
}

/// Reads all there is of an inode.
fn visit(image: &Image<Vec<u8>>, inode: &Inode, todo: &mut Vec<Nid>, note: &mut dyn FnMut(castor_erofs::ReadError)) {
    match image.xattrs(inode) {
        Ok(xattrs) => {
            for (name, value) in &xattrs {
                assert!(name.len() <= 300 && value.len() <= 65_536, "an attribute of no possible size");
            }
        }
        Err(error) => note(error),
    }
    match inode.kind {
        Kind::Directory => {
            let Ok(mut entries) = image.read_dir(inode, 0) else { panic!("a directory that is none") };
            let mut count = 0;
            for entry in entries.by_ref() {
                count += 1;
                match entry {
                    Ok(entry) => {
                        assert!(!entry.name.is_empty() && entry.name.len() <= 255, "a name of no possible length");
                        assert!(!entry.name.contains(&b'/') && !entry.name.contains(&0), "a name that is none");
                        if count < 12 {
                            let _ = image.lookup(inode, &entry.name);
                            todo.push(entry.nid);
                        }
                    }
                    Err(error) => note(error),
                }
                if count > VISITS {
                    break;
                }
            }
            let resumed = image.read_dir(inode, entries.position().wrapping_add(1));
            let _ = resumed.map(|mut entries| entries.next());
            let _ = image.lookup(inode, b"no such name");
        }
        Kind::Symlink => match image.read_link(inode) {
            Ok(target) => assert!(target.len() <= 4096, "a target of {} bytes", target.len()),
            Err(error) => note(error),
        },
        Kind::File => {
            let mut offset = 0;
            for _ in 0..20 {
                match image.map(inode, offset) {
                    Ok(Some(run)) => {
                        assert!(run.file_offset <= offset && run.length > 0, "a run that does not hold its place");
                        assert!(run.file_offset.checked_add(run.length).is_some_and(|end| end <= inode.size));
                        offset = run.file_offset + run.length;
                    }
                    Ok(None) => {
                        assert!(offset >= inode.size, "a file ends before its end");
                        break;
                    }
                    Err(error) => {
                        note(error);
                        break;
                    }
                }
            }
            assert!(matches!(image.map(inode, inode.size), Ok(None)));
        }
        _ => {}
    }
}
