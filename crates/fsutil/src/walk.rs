//! Walking a directory on disk in the order of the protocol.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::{Stat, WalkError, mode};

/// An entry that a walk has come to. Its details are read only when asked for.
#[derive(Debug)]
pub struct Step {
    /// The path relative to the root of the walk.
    pub path: Bytes,
    /// Whether it is a directory.
    pub is_dir: bool,
    dir: Arc<OwnedFd>,
    name: CString,
}

/// A walk through a directory: parents before children, children in the order
/// of their names' bytes. Nothing is followed out of the root, which itself is
/// not visited. What disappears meanwhile is passed over.
#[derive(Debug)]
pub struct Walk {
    stack: Vec<Level>,
    /// The directory of the last step, if it was one and is not yet skipped.
    enter: Option<(Arc<OwnedFd>, CString, Bytes)>,
    /// The first name of every file that has several.
    links: HashMap<(u64, u64), Bytes>,
}

#[derive(Debug)]
struct Level {
    dir: Arc<OwnedFd>,
    path: Bytes,
    /// In reverse order.
    names: Vec<(CString, FileType)>,
}

const OPEN_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Walk {
    /// Starts a walk below `root`, which may be a link to a directory.
    pub fn new(root: &Path) -> Result<Self, WalkError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, root, flags, Mode::empty())
            .map_err(|source| WalkError::Root { path: root.display().to_string(), source: source.into() })?;
        Self::from_fd(dir)
    }

    /// Starts a walk below an open directory.
    pub fn from_fd(dir: OwnedFd) -> Result<Self, WalkError> {
        let names = list(&dir).map_err(|source| WalkError::entry("read directory", ".", source))?;
        let root = Level { dir: Arc::new(dir), path: Bytes::new(), names };
        Ok(Self { stack: vec![root], enter: None, links: HashMap::new() })
    }

    /// Does not go below the last step.
    pub fn skip(&mut self) {
        self.enter = None;
    }

    /// The next entry. A directory that cannot be read is told by an error when
    /// it would have to be entered; the walk can go on after it.
    pub fn step(&mut self) -> Option<Result<Step, WalkError>> {
        if let Some((parent, name, path)) = self.enter.take() {
            let opened = openat(&parent, name.as_c_str(), OPEN_DIR, Mode::empty())
                .and_then(|dir| list(&dir).map(|names| (dir, names)));
            match opened {
                Ok((dir, names)) => self.stack.push(Level { dir: Arc::new(dir), path, names }),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(source) => return Some(Err(WalkError::entry("read directory", path, source))),
            }
        }
        loop {
            let level = self.stack.last_mut()?;
            let Some((name, kind)) = level.names.pop() else {
                self.stack.pop();
                continue;
            };
            let path = match level.path.is_empty() {
                true => Bytes::copy_from_slice(name.to_bytes()),
                false => [level.path.as_ref(), b"/", name.to_bytes()].concat().into(),
            };
            let is_dir = match kind {
                FileType::Unknown => match statat(&level.dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
                    Err(Errno::NOENT) => continue,
                    Err(source) => return Some(Err(WalkError::entry("stat", path, source))),
                },
                kind => kind == FileType::Directory,
            };
            let dir = Arc::clone(&level.dir);
            if is_dir {
                self.enter = Some((Arc::clone(&dir), name.clone(), path.clone()));
            }
            return Some(Ok(Step { path, is_dir, dir, name }));
        }
    }

    /// The details of a step; `None` if it has disappeared.
    ///
    /// A name of a file whose details were given before is a hard link to that.
    pub fn stat(&mut self, step: &Step) -> Result<Option<Stat>, WalkError> {
        let raw = match statat(&step.dir, &step.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(raw) => raw,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(source) => return Err(WalkError::entry("stat", &step.path, source)),
        };
        let kind = FileType::from_raw_mode(raw.st_mode);
        let mut stat = Stat {
            path: step.path.clone(),
            mode: mode::from_unix(raw.st_mode) & !mode::SOCKET,
            uid: raw.st_uid,
            gid: raw.st_gid,
            mod_time: raw.st_mtime.wrapping_mul(1_000_000_000).wrapping_add(raw.st_mtime_nsec as i64),
            ..Stat::default()
        };
        if kind != FileType::Directory {
            stat.size = raw.st_size;
            if matches!(kind, FileType::BlockDevice | FileType::CharacterDevice) {
                stat.devmajor = i64::from(rustix::fs::major(raw.st_rdev));
                stat.devminor = i64::from(rustix::fs::minor(raw.st_rdev));
            }
            if raw.st_nlink > 1 {
                match self.links.entry((raw.st_dev, raw.st_ino)) {
                    std::collections::hash_map::Entry::Occupied(first) => {
                        stat.linkname.clone_from(first.get());
                        stat.size = 0;
                    }
                    std::collections::hash_map::Entry::Vacant(free) => {
                        free.insert(step.path.clone());
                    }
                }
            }
            if kind == FileType::Symlink {
                let target = match readlinkat(&step.dir, &step.name, Vec::new()) {
                    Ok(target) => target,
                    Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                    Err(source) => return Err(WalkError::entry("read link", &step.path, source)),
                };
                stat.linkname = target.into_bytes().into();
            }
        }
        for (key, value) in attributes(step).map_err(|source| WalkError::entry("read xattrs of", &step.path, source))? {
            stat.xattrs.insert(key, value);
        }
        Ok(Some(stat))
    }
}

/// The sorted entries of a directory, last first.
fn list(dir: &OwnedFd) -> Result<Vec<(CString, FileType)>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if name != c"." && name != c".." {
            names.push((name.to_owned(), entry.file_type()));
        }
    }
    names.sort_unstable_by(|a, b| b.0.cmp(&a.0));
    Ok(names)
}

/// The path of `name` in an open directory. There is no call that reads the
/// attributes of a name in a directory without following it; through this path
/// the one for paths does.
pub(crate) fn path_through(dir: impl AsFd, name: &OsStr) -> CString {
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    // A name from a directory or a checked path has no NUL; an empty path is an
    // error at its use.
    CString::new(path).unwrap_or_default()
}

fn attributes(step: &Step) -> Result<Vec<(String, Bytes)>, Errno> {
    let path = path_through(&*step.dir, OsStr::from_bytes(step.name.as_bytes()));
    let mut size = rustix::fs::llistxattr(&path, &mut [0u8; 0][..]);
    let names = loop {
        let length = match size {
            Ok(0) | Err(Errno::NOTSUP | Errno::NOENT) => return Ok(Vec::new()),
            Ok(length) => length,
            Err(error) => return Err(error),
        };
        let mut buffer = vec![0u8; length];
        match rustix::fs::llistxattr(&path, &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                break buffer;
            }
            Err(Errno::RANGE) => size = rustix::fs::llistxattr(&path, &mut [0u8; 0][..]),
            Err(error) => return Err(error),
        }
    };
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(key) = std::str::from_utf8(name) else { continue };
        if key.starts_with("com.apple.") {
            continue;
        }
        // An attribute that cannot be read, such as one of a security module,
        // is not announced.
        if let Some(value) = attribute(&path, key) {
            found.push((key.to_owned(), value));
        }
    }
    Ok(found)
}

fn attribute(path: &CStr, key: &str) -> Option<Bytes> {
    loop {
        let length = rustix::fs::lgetxattr(path, key, &mut [0u8; 0][..]).ok()?;
        if length == 0 {
            return Some(Bytes::new());
        }
        let mut value = vec![0u8; length];
        match rustix::fs::lgetxattr(path, key, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                return Some(value.into());
            }
            Err(Errno::RANGE) => {}
            Err(_) => return None,
        }
    }
}
