//! Paths inside a root that nothing below can lead out of.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// A path inside a root that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {path} in {root}: {source}", path = path.display(), root = root.display())]
pub struct RootError {
    /// What was tried.
    pub verb: &'static str,
    /// The path, as asked for.
    pub path: PathBuf,
    /// The root.
    pub root: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

/// A directory that paths are resolved in as by a process that has it as its root: absolute links and `..` stay inside.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    dir: OwnedFd,
}

/// Renames in the tree make the kernel ask for another try; under constant renames it must end.
const TRIES: usize = 128;

impl Root {
    /// Opens the directory `path`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, RootError> {
        let path = path.into();
        match openat(CWD, &path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(dir) => Ok(Self { path, dir }),
            Err(source) => Err(RootError { verb: "open root", path: "/".into(), root: path, source: source.into() }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens `path` inside the root, following links; `O_CLOEXEC` is added.
    pub fn open_at(&self, path: impl AsRef<Path>, flags: OFlags, mode: Mode) -> Result<OwnedFd, RootError> {
        self.open_in(path.as_ref(), flags, mode).map_err(|source| self.error("open", path.as_ref(), source))
    }

    /// Opens the file `path` for reading. Refuses what is not a regular file, without waiting for a fifo's writer.
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<File, RootError> {
        let path = path.as_ref();
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())?;
        let file = File::from(fd);
        let kind = file.metadata().map_err(|source| RootError { verb: "stat", source, ..self.blank(path) })?;
        if !kind.is_file() {
            return Err(RootError { source: io::Error::other("not a regular file"), ..self.blank(path) });
        }
        Ok(file)
    }

    /// The real path of `path`: that of the file it leads to, inside the root's directory.
    ///
    /// It is true at this moment; whoever can rename inside the root can make it false. Use [`open_at`](Self::open_at)
    /// where the tree may change.
    pub fn resolve(&self, path: impl AsRef<Path>) -> Result<PathBuf, RootError> {
        let fd = self.open_at(path.as_ref(), OFlags::PATH, Mode::empty())?;
        self.path_of(fd.as_fd()).map_err(|source| RootError { source, ..self.blank(path.as_ref()) })
    }

    /// The directory that `path` would be in, opened, and its last component. The path must have one that is a name.
    pub fn parent(&self, path: impl AsRef<Path>) -> Result<(OwnedFd, std::ffi::OsString), RootError> {
        let path = path.as_ref();
        let Some(Component::Normal(name)) = path.components().next_back() else {
            return Err(self.error("open parent of", path, Errno::INVAL));
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        let dir = self.open_at(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok((dir, name.to_owned()))
    }

    /// Makes the directory `path` and its parents, following links as they are; calls `made` with each that is new.
    pub fn create_dir_all(
        &self,
        path: impl AsRef<Path>,
        mode: Mode,
        mut made: impl FnMut(BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<OwnedFd, RootError> {
        let path = path.as_ref();
        let mut so_far = PathBuf::from("/");
        let directory = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut dir = self.open_at(&so_far, directory, Mode::empty())?;
        for component in path.components() {
            match component {
                Component::Normal(name) => {
                    so_far.push(name);
                    dir = match self.open_in(&so_far, directory, Mode::empty()) {
                        Ok(next) => next,
                        Err(Errno::NOENT) => {
                            match rustix::fs::mkdirat(&dir, name, mode) {
                                Ok(()) | Err(Errno::EXIST) => {}
                                Err(source) => return Err(self.error("create directory", &so_far, source)),
                            }
                            let next = self.open_at(&so_far, directory, Mode::empty())?;
                            made(next.as_fd()).map_err(|source| RootError {
                                verb: "set attributes of",
                                source,
                                ..self.blank(&so_far)
                            })?;
                            next
                        }
                        Err(source) => return Err(self.error("open", &so_far, source)),
                    };
                }
                Component::ParentDir => {
                    so_far.push("..");
                    dir = self.open_at(&so_far, directory, Mode::empty())?;
                }
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        Ok(dir)
    }

    fn open_in(&self, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            match openat2(&self.dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
                Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => tries += 1,
                result => return result,
            }
        }
    }

    fn path_of(&self, fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
        let real = |fd: BorrowedFd<'_>| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let (root, inside) = (real(self.dir.as_fd())?, real(fd)?);
        match inside.strip_prefix(&root) {
            // `join("")` would add a slash to the root itself.
            Ok(below) if below.as_os_str().is_empty() => Ok(self.path.clone()),
            Ok(below) => Ok(self.path.join(below)),
            Err(_) => Err(io::Error::other("the path left its root while it was resolved")),
        }
    }

    fn blank(&self, path: &Path) -> RootError {
        RootError { verb: "open", path: path.to_owned(), root: self.path.clone(), source: io::Error::other("") }
    }

    fn error(&self, verb: &'static str, path: &Path, source: Errno) -> RootError {
        RootError { verb, path: path.to_owned(), root: self.path.clone(), source: source.into() }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}
