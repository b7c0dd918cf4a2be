//! What tests of mounting modes share: the process that serves trees, whole trees as values, ends of processes.
#![allow(dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use castor_layerfs::{Config, Mode, ServerProgram};
use castor_mount::{Detached, Lower, Overlay};
use castor_oci::Digest;

pub use crate::support::PATIENCE;

/// What turns this test program into the process that serves trees: its second filter, which matches no test.
const SERVE: &str = "serve-trees";

/// This program as the one that serves trees. It must have a test called `the_server_of_image_trees`, which calls
/// [`serve_if_asked`].
pub fn server() -> ServerProgram {
    ServerProgram {
        path: std::env::current_exe().unwrap(),
        name: "castor-test-trees".into(),
        arguments: ["--exact", "the_server_of_image_trees", SERVE].map(Into::into).into(),
    }
}

pub fn serve_if_asked() {
    if std::env::args().any(|argument| argument == SERVE) {
        castor_layerfs::serve_trees().unwrap();
    }
}

/// Settings for `mode`.
pub fn in_mode(mode: Mode) -> impl FnOnce(&mut Config) {
    move |config| {
        config.mode = Some(mode);
        config.server = Some(server());
    }
}

/// All that can be seen of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    pub links: u64,
    pub size: u64,
    pub mtime: (i64, i64),
    pub rdev: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a file its digest, of a link its target.
    pub content: Option<Vec<u8>>,
    /// The first name of the same inode.
    pub same_as: PathBuf,
}

/// All files below `root`, by name.
pub fn walk(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(name) = todo.pop() {
        let path = root.join(&name);
        let meta = std::fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            let names = std::fs::read_dir(&path).unwrap().map(|entry| {
                let entry = entry.unwrap();
                assert_eq!(entry.file_type().unwrap(), entry.metadata().unwrap().file_type(), "{:?}", entry.path());
                name.join(entry.file_name())
            });
            let mut names: Vec<PathBuf> = names.collect();
            names.sort();
            todo.extend(names.into_iter().rev());
        }
        let content = if meta.is_file() {
            Some(Digest::of(std::fs::read(&path).unwrap()).as_bytes().to_vec())
        } else if meta.is_symlink() {
            Some(std::fs::read_link(&path).unwrap().into_os_string().as_bytes().to_vec())
        } else {
            None
        };
        let same_as = inodes.entry(meta.ino()).or_insert_with(|| name.clone()).clone();
        let seen = Seen {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            // Of directories, file systems count differently.
            links: if meta.is_dir() { 0 } else { meta.nlink() },
            size: if meta.is_dir() { 0 } else { meta.size() },
            mtime: (meta.mtime(), meta.mtime_nsec()),
            rdev: meta.rdev(),
            xattrs: xattrs(&path),
            content,
            same_as,
        };
        found.insert(name, seen);
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path.as_c_str(), &mut names[..]).unwrap();
    names.truncate(length);
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let c = CString::new(name).unwrap();
            let length = rustix::fs::lgetxattr(path.as_c_str(), c.as_c_str(), &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

/// A read-only overlay on a mount, as steps see it.
pub fn overlay(mount: std::os::fd::BorrowedFd<'_>, empty: &Path) -> Detached {
    let lowers = vec![Lower::Mount(mount), Lower::Directory(empty)];
    Overlay { lowers, ..Overlay::default() }.mount().unwrap()
}

/// A path in a detached mount.
pub fn within(mount: &Detached, below: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{below}", mount.as_fd().as_raw_fd()))
}

/// Looks again and again whether something has come true that nobody tells of.
pub fn comes_true(what: &str, mut is_true: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_true() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        // Whoever looks without a pause takes the processor from what it waits for.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for the end of a process that is not our child.
pub fn ends(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return };
    let mut polled = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    let limit = rustix::fs::Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut polled, Some(&limit)).unwrap(), 1, "process {pid:?} does not end");
}

/// Kills a process.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// The loop devices over files below `root`.
pub fn loops(root: &Path) -> Vec<String> {
    let devices = std::fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path().join("loop/backing_file"));
    let backed = devices.filter_map(|file| std::fs::read_to_string(file).ok());
    // Over a file that is in no mount of ours the kernel tells only of its place in its own.
    backed.map(|path| path.trim().to_owned()).filter(|path| path.starts_with(root.to_str().unwrap())).collect()
}
