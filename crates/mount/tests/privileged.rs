//! Real mounts: these tests need root.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use castor_mount::{Backing, Lower, Mount, Overlay, Root, Upper, bind, set_attributes};
use rustix::fs::{Mode, OFlags};

/// A directory that goes with its test; it must then hold no mounts.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("castor-mount-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn make(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left: Vec<&str> = mounts.lines().filter(|line| line.contains(self.0.to_str().unwrap())).collect();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left mounted: {left:?}");
            fs::remove_dir_all(&self.0).unwrap();
        }
    }
}

fn is_mounted(path: &Path) -> bool {
    let here = fs::metadata(path).unwrap();
    let above = fs::metadata(path.parent().unwrap()).unwrap();
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&format!(" {} ", path.display()))
        || here.dev() != above.dev()
}

#[test]
fn privileged_overlay_is_attached_and_goes_with_its_guard() {
    let dir = Dir::new("overlay");
    let (low, high, upper, work, at) =
        (dir.make("low"), dir.make("high"), dir.make("upper"), dir.make("work"), dir.make("at"));
    fs::write(low.join("a"), "low").unwrap();
    fs::write(low.join("b"), "low").unwrap();
    fs::write(high.join("b"), "high").unwrap();
    let overlay = Overlay {
        lowers: vec![Lower::Directory(&high), Lower::Directory(&low)],
        upper: Some(Upper { dir: upper.clone(), work }),
        volatile: true,
        ..Overlay::default()
    };
    let mounted = overlay.mount().unwrap().attach(&at).unwrap();
    assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "low");
    assert_eq!(fs::read_to_string(at.join("b")).unwrap(), "high");
    // Only metadata is copied up.
    fs::set_permissions(at.join("a"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut value = [0u8; 8];
    assert!(rustix::fs::lgetxattr(upper.join("a"), "trusted.overlay.metacopy", &mut value).is_ok());
    assert!(is_mounted(&at));
    drop(mounted);
    assert!(!is_mounted(&at));
}

#[test]
fn privileged_detached_overlay_is_a_lower_of_another() {
    let dir = Dir::new("stacked");
    let (one, two, three, at) = (dir.make("one"), dir.make("two"), dir.make("three"), dir.make("at"));
    fs::write(one.join("deep"), "1").unwrap();
    let below = Overlay { lowers: vec![Lower::Directory(&two), Lower::Directory(&one)], ..Overlay::default() };
    let below = below.mount().unwrap();
    let above = Overlay { lowers: vec![Lower::Directory(&three), Lower::Mount(below.as_fd())], ..Overlay::default() };
    let mounted = above.mount().unwrap().attach(&at).unwrap();
    // The overlay keeps its lower.
    drop(below);
    assert_eq!(fs::read_to_string(at.join("deep")).unwrap(), "1");
    assert_eq!(fs::write(at.join("deep"), "2").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    mounted.unmount().unwrap();
}

#[test]
fn privileged_binds_are_read_only_if_asked() {
    let dir = Dir::new("bind");
    let (from, at) = (dir.make("from"), dir.make("at"));
    fs::write(from.join("f"), "x").unwrap();
    let writable = bind(&from, false, false).unwrap().attach(&at).unwrap();
    fs::write(at.join("f"), "y").unwrap();
    drop(writable);
    let mount = Mount::bind(from.to_str().unwrap(), true);
    let guards = castor_mount::apply(&[mount], &at).unwrap();
    assert_eq!(fs::read_to_string(at.join("f")).unwrap(), "y");
    assert_eq!(fs::write(at.join("f"), "z").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    drop(guards);
}

#[test]
fn privileged_erofs_refuses_to_mount_without_devices() {
    let dir = Dir::new("devices");
    let path = dir.0.join("image");
    fs::write(&path, vec![0; 8192]).unwrap();
    let image = fs::File::open(&path).unwrap();
    let error = castor_mount::erofs(image.as_fd(), &[], false, Backing::Files).unwrap_err();
    assert_eq!(error.source.kind(), std::io::ErrorKind::InvalidInput);
    // Garbage is refused by the kernel, and the step is named.
    let error = castor_mount::erofs(image.as_fd(), &[], true, Backing::Files).unwrap_err();
    assert!(error.to_string().starts_with("create erofs"), "{error}");
}

#[test]
fn privileged_namespace_hides_mounts() {
    let dir = Dir::new("namespace");
    let (from, at) = (dir.make("from"), dir.make("at"));
    fs::write(from.join("seen"), "").unwrap();
    let (inside, target) = (from.clone(), at.clone());
    // A thread of its own: the namespace is the thread's.
    std::thread::spawn(move || {
        castor_mount::enter_private_namespace().unwrap();
        let mounted = bind(&inside, false, false).unwrap().attach(&target).unwrap();
        assert!(target.join("seen").exists());
        std::mem::forget(mounted);
    })
    .join()
    .unwrap();
    assert!(!at.join("seen").exists());
}

#[test]
fn privileged_what_was_left_mounted_is_found() {
    let dir = Dir::new("left behind");
    let (from, at) = (dir.make("from"), dir.make("at"));
    fs::create_dir(from.join("inner")).unwrap();
    for target in [at.clone(), at.join("inner")] {
        std::mem::forget(bind(&from, false, false).unwrap().attach(&target).unwrap());
    }
    assert_eq!(castor_mount::unmount_below(&dir.0).unwrap(), [at.join("inner"), at]);
    assert!(castor_mount::unmount_below(&dir.0).unwrap().is_empty());
}

#[test]
fn privileged_attributes_are_copied() {
    let dir = Dir::new("attributes");
    let (from, to) = (dir.make("from"), dir.make("to"));
    fs::set_permissions(&from, fs::Permissions::from_mode(0o1751)).unwrap();
    std::os::unix::fs::chown(&from, Some(12), Some(34)).unwrap();
    rustix::fs::lsetxattr(&from, "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    rustix::fs::lsetxattr(&from, "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
    set_attributes(&from, &to).unwrap();
    let (a, b) = (fs::metadata(&from).unwrap(), fs::metadata(&to).unwrap());
    assert_eq!((a.mode(), a.uid(), a.gid(), a.mtime_nsec()), (b.mode(), b.uid(), b.gid(), b.mtime_nsec()));
    let mut value = [0u8; 8];
    assert_eq!(rustix::fs::lgetxattr(&to, "user.x", &mut value), Ok(1));
    assert!(rustix::fs::lgetxattr(&to, "trusted.overlay.opaque", &mut value).is_err());
}

#[test]
fn paths_stay_in_their_root() {
    let dir = Dir::new("root");
    let root_dir = dir.make("root");
    fs::create_dir_all(root_dir.join("etc")).unwrap();
    fs::write(root_dir.join("etc/passwd"), "inside").unwrap();
    fs::write(dir.0.join("secret"), "outside").unwrap();
    symlink("/etc/passwd", root_dir.join("absolute")).unwrap();
    symlink("../../../../../../secret", root_dir.join("up")).unwrap();
    symlink("loop", root_dir.join("loop")).unwrap();
    let root = Root::open(&root_dir).unwrap();
    let read = |path: &str| root.open_file(path).map(|mut file| std::io::read_to_string(&mut file).unwrap());
    assert_eq!(read("absolute").unwrap(), "inside");
    assert_eq!(read("/../../etc/passwd").unwrap(), "inside");
    assert!(read("up").is_err());
    assert!(read("loop").is_err());
    assert_eq!(root.resolve("absolute").unwrap(), root_dir.join("etc/passwd"));
    assert_eq!(root.resolve("/").unwrap(), root_dir);
    let mut made = 0;
    let mode = Mode::from_raw_mode(0o750);
    root.create_dir_all("etc/a/../b/c", mode, |_| {
        made += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(made, 3);
    assert!(root_dir.join("etc/b/c").is_dir());
    let (parent, name) = root.parent("/etc/new").unwrap();
    assert_eq!(name, "new");
    let file = rustix::fs::openat(&parent, &*name, OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o600));
    drop(file.unwrap());
    assert!(root_dir.join("etc/new").exists());
}
