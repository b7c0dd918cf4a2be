//! Paths resolved inside a root file system: symbolic links cannot lead out of it.
//!
//! Everything is opened with `RESOLVE_IN_ROOT`. Where a path need not exist ([`Root::resolve`]) its links are followed
//! here, one lookup inside the root per component, so that no step can leave the root either.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

/// As many links as the kernel would follow, and more.
const MAX_LINKS: usize = 255;

/// The root of a file system.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens the directory `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// The root of what `fd` refers to.
    pub fn from_fd(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { fd: fd.try_clone_to_owned()? })
    }

    /// Opens `path` inside the root, following links; with `O_PATH`, so that it may be of any kind.
    pub fn open_path(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_with(path, OFlags::PATH)
    }

    /// Opens the regular file `path` for reading, following links.
    pub fn open_file(&self, path: &Path) -> io::Result<File> {
        // A FIFO must not block us.
        let fd = self.open_with(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(File::from(fd))
    }

    fn open_with(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        self.open_resolving(path, flags, ResolveFlags::empty())
    }

    fn open_resolving(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
        let path = relative(path);
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // A rename elsewhere in the tree makes the kernel give up with EAGAIN; it asks to be called again.
        for _ in 0..64 {
            match rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
        Err(io::Error::from(Errno::AGAIN))
    }

    /// Where `path` leads, links followed; its last components need not exist. Relative to the root.
    pub fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let mut pending: Vec<OsString> = components(path);
        let mut resolved = PathBuf::new();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                resolved.pop();
                continue;
            }
            let next = resolved.join(&name);
            let Some(target) = self.link(&next)? else {
                resolved = next;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(io::Error::from(Errno::LOOP));
            }
            if target.is_absolute() {
                resolved.clear();
            }
            pending.extend(components(&target));
        }
        Ok(resolved)
    }

    /// The target of the link `path`, which has no links above it; nothing if it is no link or does not exist.
    fn link(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let fd = match self.open_resolving(path, flags, ResolveFlags::empty()) {
            Ok(fd) => fd,
            Err(err) if missing(&err) => return Ok(None),
            Err(err) => return Err(err),
        };
        if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Symlink {
            return Ok(None);
        }
        let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
        Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes()))))
    }

    /// The state of `path`, which is resolved: no link in it is followed.
    pub fn stat(&self, path: &Path) -> io::Result<rustix::fs::Stat> {
        let fd = self.open_resolving(path, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::empty())?;
        Ok(rustix::fs::fstat(&fd)?)
    }

    /// Opens the directory that holds `path`, which is resolved, and says under which name.
    pub fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or_else(|| io::Error::from(Errno::INVAL))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let fd = self.open_resolving(parent, OFlags::RDONLY | OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS)?;
        Ok((fd, name))
    }

    /// Makes the directory `path` and what is missing above it, owned by `uid` and `gid`.
    pub fn create_dirs(&self, path: &Path, mode: u32, uid: u32, gid: u32) -> io::Result<()> {
        let resolved = self.resolve(path)?;
        let mut dir = self.open_resolving(Path::new(""), OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::empty())?;
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        for component in resolved.components() {
            let Component::Normal(name) = component else { continue };
            let made = match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(mode)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(err) => return Err(err.into()),
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let path_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = rustix::fs::openat(&dir, name, if made { flags } else { path_flags }, Mode::empty())?;
            if made {
                rustix::fs::chownat(&next, "", owner.0, owner.1, AtFlags::EMPTY_PATH)?;
                rustix::fs::fchmod(&next, Mode::from_raw_mode(mode))?;
            }
            dir = next;
        }
        Ok(())
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The path does not exist, for whatever reason.
pub fn missing(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}

fn relative(path: &Path) -> &Path {
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// The names in `path`, last first.
fn components(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_os_string()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/b/file"), "x").unwrap();
        symlink("/a", at("abs")).unwrap();
        symlink("../../../../a/b", at("a/up")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("/nowhere/else", at("dangling")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let resolve = |path: &str| root.resolve(Path::new(path)).unwrap();
        assert_eq!(resolve("/abs/b/file"), Path::new("a/b/file"));
        assert_eq!(resolve("/a/up/file"), Path::new("a/b/file"));
        assert_eq!(resolve("/../../a/./new/x"), Path::new("a/new/x"));
        assert_eq!(resolve("/dangling/x"), Path::new("nowhere/else/x"));
        assert_eq!(resolve("/"), Path::new(""));
        assert!(root.resolve(Path::new("/loop/x")).is_err());
        assert!(root.open_file(Path::new("/abs/b/file")).is_ok());
        assert!(root.open_file(Path::new("/a/b")).is_err());
        assert!(root.open_file(Path::new("/../../../../../../etc/hostname")).is_err());
    }

    #[test]
    fn missing_directories_are_made() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/real", dir.path().join("link")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.create_dirs(
            Path::new("/link/x/y"),
            0o755,
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        )
        .unwrap();
        assert!(dir.path().join("real/x/y").is_dir());
    }
}
