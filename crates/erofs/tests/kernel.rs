//! The kernel as the judge: images are mounted, walked and compared with the tree they were made of.
//!
//! Needs root and a kernel whose EROFS takes regular files as devices (6.12).
#![allow(clippy::unwrap_used, missing_docs)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use castor_erofs::{Attributes, Body, DeviceSlot, Extent, NodeId, Timestamp, Tree, write_image};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

const NO_XATTRS: [(&[u8], &[u8]); 0] = [];

/// A mount that nothing sees, and that ends with its descriptor.
struct Detached(OwnedFd);

impl Detached {
    fn mount(image: &Path, devices: &[PathBuf]) -> Self {
        let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(&context, "source", image).unwrap();
        for device in devices {
            fsconfig_set_string(&context, "device", device).unwrap();
        }
        fsconfig_set_flag(&context, "ro").unwrap();
        fsconfig_create(&context).unwrap();
        Self(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap())
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/", self.0.as_raw_fd()))
    }
}

/// A tree, and the data of its files on devices, in a directory of its own.
struct Fixture {
    dir: tempfile::TempDir,
    tree: Tree,
    data: Vec<File>,
    ends: Vec<u64>,
}

impl Fixture {
    fn new(devices: usize) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let root = attributes(0o751, 12, 34, 1_500_000_000, 5);
        let data = (1..=devices).map(|n| {
            File::options().read(true).write(true).create_new(true).open(dir.path().join(format!("data{n}"))).unwrap()
        });
        Self { tree: Tree::new(root), data: data.collect(), ends: vec![0; devices], dir }
    }

    /// Puts `content` on a device.
    fn file(&mut self, device: u16, content: &[u8]) -> Body<'static> {
        let end = &mut self.ends[usize::from(device) - 1];
        let offset = *end;
        self.data[usize::from(device) - 1].write_all_at(content, offset).unwrap();
        *end += (content.len() as u64).next_multiple_of(4096);
        Body::File { size: content.len() as u64, extent: Extent::Device { device, offset } }
    }

    fn mount(&self) -> Detached {
        let slots: Vec<_> = self.ends.iter().map(|size| DeviceSlot { tag: Vec::new(), size: *size }).collect();
        for (file, size) in self.data.iter().zip(&self.ends) {
            file.set_len(*size).unwrap();
        }
        let image = self.dir.path().join("meta.erofs");
        write_image(&self.tree, &slots, [9; 16], &mut File::create(&image).unwrap()).unwrap();
        let devices: Vec<_> = (1..=self.data.len()).map(|n| self.dir.path().join(format!("data{n}"))).collect();
        Detached::mount(&image, &devices)
    }
}

fn attributes(mode: u16, uid: u32, gid: u32, seconds: i64, nanoseconds: u32) -> Attributes {
    Attributes { mode, uid, gid, mtime: Timestamp::new(seconds, nanoseconds) }
}

/// Compares a mounted directory, and all below, with a tree.
fn compare(fixture: &Fixture, mounted: &Path) -> usize {
    let mut compared = 0;
    let mut stack = vec![(mounted.to_owned(), fixture.tree.root())];
    let mut inodes = std::collections::BTreeMap::new();
    while let Some((path, node)) = stack.pop() {
        compared += 1;
        compare_node(fixture, &path, node);
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert_eq!(inodes.entry(node).or_insert(metadata.ino()), &metadata.ino(), "{}", path.display());
        if metadata.is_dir() {
            let mut listed: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            let mut wanted: Vec<_> =
                fixture.tree.children(node).map(|(name, _)| OsStr::from_bytes(name).to_owned()).collect();
            listed.sort();
            wanted.sort();
            assert_eq!(listed, wanted, "{}", path.display());
            stack.extend(fixture.tree.children(node).map(|(name, child)| (path.join(OsStr::from_bytes(name)), child)));
        }
    }
    compared
}

fn compare_node(fixture: &Fixture, path: &Path, node: NodeId) {
    let shown = path.display();
    let metadata = fs::symlink_metadata(path).unwrap();
    let want = fixture.tree.attributes(node);
    assert_eq!(metadata.mode() & 0o7777, u32::from(want.mode), "{shown}");
    assert_eq!((metadata.uid(), metadata.gid()), (want.uid, want.gid), "{shown}");
    assert_eq!(
        (metadata.mtime(), metadata.mtime_nsec()),
        (want.mtime.seconds, i64::from(want.mtime.nanoseconds)),
        "{shown}"
    );
    let file_type = metadata.mode() & 0o170_000;
    match fixture.tree.body(node) {
        Body::File { size, extent } => {
            assert_eq!((file_type, metadata.len()), (0o100_000, size), "{shown}");
            compare_data(fixture, path, size, extent);
        }
        Body::Directory => assert_eq!(file_type, 0o040_000, "{shown}"),
        Body::Symlink(target) => {
            assert_eq!(fs::read_link(path).unwrap().as_os_str().as_bytes(), target, "{shown}");
            assert_eq!(metadata.len(), target.len() as u64);
        }
        Body::CharDevice { major, minor } | Body::BlockDevice { major, minor } => {
            assert!(matches!(file_type, 0o020_000 | 0o060_000), "{shown}");
            let number = rustix::fs::makedev(major, minor);
            assert_eq!(metadata.rdev(), number, "{shown}");
        }
        Body::Fifo => assert_eq!(file_type, 0o010_000, "{shown}"),
        Body::Socket => assert_eq!(file_type, 0o140_000, "{shown}"),
    }
    let want: Vec<(Vec<u8>, Vec<u8>)> =
        fixture.tree.xattrs(node).map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    assert_eq!(xattrs(path), want, "{shown}");
}

/// Names and values, sorted.
fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let mut found: Vec<_> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect();
    found.sort();
    found
}

fn compare_data(fixture: &Fixture, path: &Path, size: u64, extent: Extent) {
    let mut file = File::open(path).unwrap();
    // Large files: their ends and their middle.
    let windows = if size > 1 << 22 { vec![0, size / 2, size - (1 << 16)] } else { vec![0] };
    for start in windows {
        let length = (size - start).min(1 << 22) as usize;
        let (mut have, mut want) = (vec![0; length], vec![0; length]);
        file.seek(SeekFrom::Start(start)).unwrap();
        file.read_exact(&mut have).unwrap();
        if let Extent::Device { device, offset } = extent
            && size > 0
        {
            fixture.data[usize::from(device) - 1].read_exact_at(&mut want, offset + start).unwrap();
        }
        assert!(have == want, "content of {}", path.display());
    }
}

#[test]
fn privileged_the_kernel_shows_the_tree() {
    let mut fixture = Fixture::new(3);
    let root = fixture.tree.root();
    let plain = attributes(0o644, 0, 0, 1_600_000_000, 0);
    for (number, size) in [0usize, 1, 4095, 4096, 4097, 100_000, 1 << 20].into_iter().enumerate() {
        let content: Vec<u8> = (0..size).map(|i| (i * 31 + number + i / 4096) as u8).collect();
        let body = fixture.file(1 + (number % 2) as u16, &content);
        let at =
            attributes(0o4755 - number as u16, 70_000 + number as u32, 1_234_567_890, -5 + number as i64, 999_999_999);
        fixture.tree.insert(root, format!("file{size}").as_bytes(), &at, &body, NO_XATTRS).unwrap();
    }
    // Five GiB, nearly all of it a hole of the data file.
    let offset = fixture.ends[2];
    fixture.data[2].write_all_at(b"the end", offset + (5 << 30) - 7).unwrap();
    fixture.ends[2] = offset + (5 << 30);
    let huge = Body::File { size: 5 << 30, extent: Extent::Device { device: 3, offset } };
    fixture.tree.insert(root, b"huge", &plain, &huge, NO_XATTRS).unwrap();
    let tree = &mut fixture.tree;
    tree.insert(root, b"hole", &plain, &Body::File { size: 123_456, extent: Extent::Hole }, NO_XATTRS).unwrap();
    let dir =
        tree.insert(root, b"kinds", &plain, &Body::Directory, [("user.d", "v"), ("trusted.shared", "s")]).unwrap();
    tree.insert(dir, b"char", &plain, &Body::CharDevice { major: 511, minor: 1_048_575 }, NO_XATTRS).unwrap();
    tree.insert(dir, b"block", &plain, &Body::BlockDevice { major: 259, minor: 70_000 }, NO_XATTRS).unwrap();
    tree.insert(dir, b"whiteout", &attributes(0, 0, 0, 0, 0), &Body::WHITEOUT, NO_XATTRS).unwrap();
    tree.insert(dir, b"fifo", &attributes(0o1777, 4_294_967_293, 5, 1 << 33, 1), &Body::Fifo, NO_XATTRS).unwrap();
    tree.insert(dir, b"socket", &plain, &Body::Socket, [("trusted.shared", "s")]).unwrap();
    for length in [1usize, 60, 300, 3000, 4031, 4032, 4033, 4095] {
        let body = vec![b'x'; length];
        tree.insert(dir, length.to_string().as_bytes(), &plain, &Body::Symlink(&body), NO_XATTRS).unwrap();
    }
    let many = tree.insert(root, b"many", &plain, &Body::Directory, NO_XATTRS).unwrap();
    let first = tree.insert(many, b"0", &plain, &Body::Fifo, NO_XATTRS).unwrap();
    for number in 1..10_000 {
        tree.link(many, number.to_string().as_bytes(), first).unwrap();
    }
    for name in [&b"!"[..], b"-", b"...", b"\xff\xfe", &[b'n'; 255], b"new\nline"] {
        tree.insert(many, name, &plain, &Body::Directory, NO_XATTRS).unwrap();
    }
    for count in 13..17usize {
        let dir = tree.insert(root, format!("blocks{count}").as_bytes(), &plain, &Body::Directory, NO_XATTRS).unwrap();
        for number in 0..count {
            tree.link(dir, format!("{number:0255}").as_bytes(), first).unwrap();
        }
    }
    let mut deep = root;
    for _ in 0..150 {
        deep = tree.insert(deep, b"deep", &plain, &Body::Directory, NO_XATTRS).unwrap();
    }
    let forty: Vec<_> = (0..40u8).map(|i| (format!("user.attr{i:02}"), vec![i; usize::from(i) * 70])).collect();
    tree.insert(root, b"forty", &plain, &Body::Directory, forty.iter().map(|(n, v)| (n, v))).unwrap();
    tree.insert(root, b"forty2", &plain, &Body::Directory, forty.iter().map(|(n, v)| (n, v))).unwrap();
    let capability = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let body = fixture.file(1, b"capable");
    fixture
        .tree
        .insert(root, b"caps", &plain, &body, [(&b"security.capability"[..], &capability[..]), (b"trusted.t", b"")])
        .unwrap();

    let mount = fixture.mount();
    let nlink = |path: &str| fs::symlink_metadata(mount.path().join(path)).unwrap().nlink();
    assert_eq!(nlink("many/0"), 10_000 + 13 + 14 + 15 + 16);
    assert_eq!(nlink("many"), 2 + 6);
    assert!(fs::symlink_metadata(mount.path().join("many/none")).is_err());
    let compared = compare(&fixture, &mount.path());
    assert!(compared > 10_000, "{compared}");
}

#[test]
fn privileged_a_thousand_devices() {
    let mut fixture = Fixture::new(1000);
    let (root, plain) = (fixture.tree.root(), attributes(0o600, 0, 0, 0, 0));
    for device in 1..=1000u16 {
        let body = fixture.file(device, format!("on device {device}").as_bytes());
        fixture.tree.insert(root, device.to_string().as_bytes(), &plain, &body, NO_XATTRS).unwrap();
    }
    let mount = fixture.mount();
    assert_eq!(compare(&fixture, &mount.path()), 1001);
}
