//! A directory as the root that paths are resolved in.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use castor_mount::Root;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::error::FileError;
use super::owner::Owner;

/// As many links as the reference implementation follows before it calls it a loop.
const MAX_LINKS: usize = 255;

/// A point in time, for access and modification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds after that.
    pub nanoseconds: i64,
}

impl Time {
    /// From nanoseconds since 1970; -1 means none.
    pub fn from_nanos(nanos: i64) -> Option<Self> {
        let second = 1_000_000_000;
        (nanos != -1).then(|| Self { seconds: nanos.div_euclid(second), nanoseconds: nanos.rem_euclid(second) })
    }

    pub(super) fn spec(self) -> Timespec {
        Timespec { tv_sec: self.seconds, tv_nsec: self.nanoseconds }
    }
}

/// A directory as the root that paths are resolved in.
#[derive(Debug)]
pub struct Tree {
    root: Root,
}

/// What is at a path that has no links in it.
pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(super) fn is_dir(stat: &Stat) -> bool {
    kind(stat) == FileType::Directory
}

impl Tree {
    /// Opens the directory `path`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        let path = path.into();
        match Root::open(&path) {
            Ok(root) => Ok(Self { root }),
            Err(error) => Err(FileError::io("open", "/")(error.source)),
        }
    }

    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    /// Where `path` leads, with all links followed; what does not exist is taken as it is written.
    pub fn lookup(&self, path: impl AsRef<Path>) -> Result<PathBuf, FileError> {
        let asked = path.as_ref();
        let mut done = PathBuf::from("/");
        let mut pending = components(&clean(asked));
        let mut links = 0;
        while let Some(part) = pending.pop_front() {
            if part == ".." {
                done.pop();
                continue;
            }
            done.push(&part);
            let fd = match self.open_path(&done) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(errno) => return Err(FileError::at("lstat", &done)(errno)),
            };
            let stat = rustix::fs::fstat(&fd).map_err(FileError::at("lstat", &done))?;
            if kind(&stat) != FileType::Symlink {
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(FileError::at("readlink", asked)(Errno::LOOP));
            }
            let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(FileError::at("readlink", &done))?;
            let target = Path::new(OsStr::from_bytes(target.as_bytes())).to_owned();
            done.pop();
            if target.is_absolute() {
                done = PathBuf::from("/");
            }
            for part in components(&target).into_iter().rev() {
                pending.push_front(part);
            }
        }
        Ok(done)
    }

    /// Where the directory of `path` leads, and the last component on it, not followed.
    pub(super) fn lookup_parent(&self, path: impl AsRef<Path>) -> Result<PathBuf, FileError> {
        let path = clean(path.as_ref());
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(self.lookup(parent)?.join(name)),
            _ => Ok(path),
        }
    }

    fn open_path(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.raw_open(path, OFlags::PATH | OFlags::NOFOLLOW)
    }

    fn raw_open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.root
            .open_at(path, flags, Mode::empty())
            .map_err(|error| error.source.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
    }

    /// What is at `path`, which [`lookup`](Self::lookup) gave; `None` if there is nothing.
    pub(super) fn stat(&self, path: &Path) -> Result<Option<Stat>, FileError> {
        let fd = match self.open_path(path) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(FileError::at("lstat", path)(errno)),
        };
        rustix::fs::fstat(&fd).map(Some).map_err(FileError::at("lstat", path))
    }

    /// Opens a regular file for reading; messages name it as it was asked for.
    pub(crate) fn open_regular(&self, path: &str) -> Result<std::fs::File, FileError> {
        let found = self.root.open_file(clean(Path::new(path)));
        found.map_err(|error| match error.source.raw_os_error() {
            Some(_) => FileError::io("open", path)(error.source),
            None => FileError::Other(format!("{path} is not a regular file")),
        })
    }

    /// What is at `path`, with its links followed, as it travels on the wire.
    pub(crate) fn details(&self, path: &str) -> Result<castor_fsutil::Stat, FileError> {
        let found = self.lookup(path)?;
        let Some(stat) = self.stat(&found)? else { return Err(FileError::at("lstat", path)(Errno::NOENT)) };
        let mut details = castor_fsutil::Stat {
            path: found.file_name().map_or_else(|| "/".into(), |name| name.as_bytes().to_vec().into()),
            mode: castor_fsutil::mode::from_unix(stat.st_mode),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mod_time: stat.st_mtime.wrapping_mul(1_000_000_000).wrapping_add(stat.st_mtime_nsec.cast_signed()),
            ..castor_fsutil::Stat::default()
        };
        match kind(&stat) {
            FileType::Directory => {}
            FileType::BlockDevice | FileType::CharacterDevice => {
                details.devmajor = i64::from(rustix::fs::major(stat.st_rdev));
                details.devminor = i64::from(rustix::fs::minor(stat.st_rdev));
            }
            _ => details.size = stat.st_size,
        }
        Ok(details)
    }

    /// Opens a directory for reading.
    pub(crate) fn open_dir(&self, path: &Path) -> Result<OwnedFd, FileError> {
        self.raw_open(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(FileError::at("open", path))
    }

    /// The directory of `path`, opened, and the last component; the root's is itself.
    pub(super) fn parent(&self, op: &'static str, path: &Path) -> Result<(OwnedFd, OsString), FileError> {
        let (parent, name) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => (parent, name.to_owned()),
            _ => (Path::new("/"), OsString::from(".")),
        };
        let fd = self.raw_open(parent, OFlags::PATH | OFlags::DIRECTORY).map_err(FileError::at(op, path))?;
        Ok((fd, name))
    }

    /// Makes `path` and its parents; those that are new get the attributes. Gives them, outermost first.
    pub(super) fn mkdir_all(
        &self,
        path: &Path,
        mode: u32,
        owner: Option<Owner>,
        time: Option<Time>,
    ) -> Result<Vec<PathBuf>, FileError> {
        let mut missing = Vec::new();
        for ancestor in path.ancestors() {
            match self.stat(ancestor).or_else(not_a_directory)? {
                Some(stat) if is_dir(&stat) => break,
                Some(_) => return Err(FileError::at("mkdir", ancestor)(Errno::NOTDIR)),
                None => missing.push(ancestor.to_owned()),
            }
        }
        missing.reverse();
        for dir in &missing {
            let (parent, name) = self.parent("mkdir", dir)?;
            make_dir(&parent, &name, mode).map_err(FileError::at("mkdir", dir))?;
            if let Some(owner) = owner {
                chown(&parent, &name, owner).map_err(FileError::at("lchown", dir))?;
            }
            if let Some(time) = time {
                set_time(&parent, &name, time.spec(), time.spec()).map_err(FileError::at("utime", dir))?;
            }
        }
        Ok(missing)
    }

    /// Removes `path` and what is below it; that there is nothing is fine.
    pub(super) fn remove_all(&self, path: &Path) -> Result<(), FileError> {
        let (parent, name) = match self.parent("unlinkat", path) {
            Ok(found) => found,
            Err(error) if error.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) => return Ok(()),
            Err(error) => return Err(error),
        };
        remove_entry(&parent, &name, path)
    }
}

/// A missing directory and a file in its place are the same to whoever asks what is there.
fn not_a_directory(error: FileError) -> Result<Option<Stat>, FileError> {
    match error.io_error().and_then(std::io::Error::raw_os_error) {
        Some(code) if Errno::from_raw_os_error(code) == Errno::NOTDIR => Ok(None),
        _ => Err(error),
    }
}

/// The lexically cleaned path, absolute.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    out
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// Makes a directory that has these permissions whatever the umask is.
pub(super) fn make_dir(parent: &OwnedFd, name: &OsStr, mode: u32) -> Result<(), Errno> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode & 0o7777))?;
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if stat.st_mode & 0o777 != mode & 0o777 {
        let inherited = stat.st_mode & 0o7000;
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode & 0o7777 | inherited), AtFlags::empty())?;
    }
    Ok(())
}

pub(super) fn chown(parent: &OwnedFd, name: &OsStr, owner: Owner) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

pub(super) fn set_time(parent: &OwnedFd, name: &OsStr, access: Timespec, change: Timespec) -> Result<(), Errno> {
    let times = Timestamps { last_access: access, last_modification: change };
    rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// A path by which functions that know no directory descriptors reach `name` in `parent`.
pub(super) fn proc_path(parent: &OwnedFd, name: &OsStr) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name)
}

/// The names in a directory, sorted by their bytes.
pub(super) fn names(dir: &OwnedFd, path: &Path) -> Result<Vec<OsString>, FileError> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir).map_err(FileError::at("open", path))? {
        let entry = entry.map_err(FileError::at("readdirent", path))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Removes without recursion: a tree may be deeper than a stack.
fn remove_entry(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), FileError> {
    struct Level {
        dir: OwnedFd,
        name: OsString,
        names: Vec<OsString>,
    }
    let error = FileError::at("unlinkat", path);
    let unlink = |dir: &OwnedFd, name: &OsStr| match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => Ok(false),
        Err(errno) => Err(errno),
    };
    let open = |dir: &OwnedFd, name: &OsStr| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(dir, name, flags, Mode::empty())
    };
    let run = || -> Result<(), Errno> {
        if unlink(parent, name)? {
            return Ok(());
        }
        let list = |dir: &OwnedFd| names(dir, path).map_err(|_| Errno::IO);
        let dir = open(parent, name)?;
        let mut stack = vec![Level { names: list(&dir)?, dir, name: name.to_owned() }];
        while let Some(level) = stack.last_mut() {
            match level.names.pop() {
                Some(child) => {
                    if !unlink(&level.dir, &child)? {
                        let dir = open(&level.dir, &child)?;
                        let names = list(&dir)?;
                        stack.push(Level { dir, name: child, names });
                    }
                }
                None => {
                    let Some(done) = stack.pop() else { break };
                    let above = stack.last().map_or(parent, |level| &level.dir);
                    rustix::fs::unlinkat(above, &done.name, AtFlags::REMOVEDIR)?;
                }
            }
        }
        Ok(())
    };
    run().map_err(error)
}
