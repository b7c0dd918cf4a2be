//! Changing a directory by paths that a peer names.
//!
//! Every path is resolved from the directory's descriptor, through no link and
//! to nothing outside, and every change is made to a name in the directory that
//! was found so. Nothing the peer says can reach another place.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, linkat, mkdirat, mknodat, openat, openat2, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::walk::path_through;
use crate::{Stat, TransferError, mode, path};

/// Renames by others make the kernel ask for another try.
const TRIES: usize = 128;

/// A directory that a tree is received into.
#[derive(Debug)]
pub(crate) struct Destination {
    root: OwnedFd,
    /// The directory that was changed last.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Makes the names of entries that are not in their place yet.
    temporary: u64,
}

/// The attribute that the kernel takes away from a file that is written to.
pub(crate) const CAPABILITY: &str = "security.capability";

/// What is left to do for an entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Nothing.
    Complete,
    /// The contents.
    WithoutContents,
}

const NO_FOLLOW: AtFlags = AtFlags::SYMLINK_NOFOLLOW;

impl Destination {
    pub(crate) fn open(dest: &Path) -> Result<Self, TransferError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, dest, flags, Mode::empty())
            .map_err(|error| TransferError::write("open directory", dest.as_os_str().as_bytes(), error))?;
        // Not the names that a crash may have left.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let temporary = now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(0));
        Ok(Self { root, parent: None, temporary })
    }

    /// A directory for a walk.
    pub(crate) fn walkable(&self) -> Result<OwnedFd, TransferError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&self.root, ".", flags, Mode::empty())
            .map_err(|error| TransferError::write("open directory", ".", error))
    }

    /// A second handle on the same directory.
    pub(crate) fn share(&self) -> Result<Self, TransferError> {
        let root = self.root.try_clone().map_err(|error| TransferError::write("open directory", ".", error))?;
        Ok(Self { root, parent: None, temporary: 0 })
    }

    fn resolve(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            match openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => tries += 1,
                result => return result,
            }
        }
    }

    /// The directory `dir`. It stays open for what follows in it.
    fn directory(&mut self, dir: &[u8]) -> Result<BorrowedFd<'_>, Errno> {
        if self.parent.as_ref().is_none_or(|(open, _)| open != dir) {
            let fd = self.resolve(dir, OFlags::PATH | OFlags::DIRECTORY)?;
            self.parent = Some((dir.to_owned(), fd));
        }
        match &self.parent {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Err(Errno::NOENT),
        }
    }

    /// Removes what is at `path`, with all below it.
    pub(crate) fn remove(&mut self, path: &[u8]) -> Result<(), TransferError> {
        let (dir, name) = path::split(path);
        let removed = self.directory(dir).map_err(io::Error::from).and_then(|parent| remove_all(parent, name));
        self.forget(path);
        removed.map_err(|error| TransferError::write("remove", path, error))
    }

    /// A directory that was removed or replaced is not the one that is open.
    fn forget(&mut self, path: &[u8]) {
        let gone = |open: &[u8]| open == path || path::is_below(open, path);
        if self.parent.as_ref().is_some_and(|(open, _)| gone(open)) {
            self.parent = None;
        }
    }

    /// Makes `stat.path` what `stat` says, but for a file's contents. What is
    /// there is replaced in one step, except that a directory stays.
    pub(crate) fn write(&mut self, stat: &Stat) -> Result<Written, TransferError> {
        let failed = |verb, error: io::Error| TransferError::write(verb, &stat.path, error);
        let (dir, name) = path::split(&stat.path);
        let (link_dir, link_name) = path::split(&stat.linkname);
        let is_link = mode::is_regular(stat.mode) && !stat.linkname.is_empty();
        let link_from = if is_link {
            let parent = self.resolve(link_dir, OFlags::PATH | OFlags::DIRECTORY);
            Some(parent.map_err(|error| failed("open the directory of the link's target of", error.into()))?)
        } else {
            None
        };
        self.temporary += 1;
        let temporary = format!(".tmp.{:x}", self.temporary);
        let parent = self.directory(dir).map_err(|error| failed("open the directory of", error.into()))?;
        let old = match statat(parent, name, NO_FOLLOW) {
            Ok(old) => Some(FileType::from_raw_mode(old.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(failed("look at", error.into())),
        };
        if mode::is_dir(stat.mode) && old == Some(FileType::Directory) {
            set_metadata(parent, name, stat).map_err(|error| failed("set metadata of", error))?;
            return Ok(Written::Complete);
        }
        let target = if old.is_some() { temporary.as_bytes() } else { name };
        let made = make(parent, target, stat, link_from.as_ref().map(|from| (from.as_fd(), link_name)));
        let written = made.map_err(|error| failed("create", error))?;
        // A hard link shares what the file it is one to has.
        if !is_link {
            set_metadata(parent, target, stat).map_err(|error| failed("set metadata of", error))?;
        }
        if let Some(old) = old {
            if (old == FileType::Directory) != mode::is_dir(stat.mode) {
                remove_all(parent, name).map_err(|error| failed("remove the old", error))?;
            }
            renameat(parent, target, parent, name).map_err(|error| failed("replace", error.into()))?;
            // Renaming one name of a file over another does nothing, and
            // leaves both.
            if is_link {
                let _ = unlinkat(parent, target, AtFlags::empty());
            }
            self.forget(&stat.path);
        }
        Ok(written)
    }

    /// Opens a file that was written without contents.
    pub(crate) fn open_contents(&self, path: &[u8]) -> Result<Contents, TransferError> {
        let failed = |error: io::Error| TransferError::write("open", path, error);
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        match self.resolve(path, flags) {
            Ok(file) => Ok(Contents { file: File::from(file), restore: None }),
            // Its owner may write to it only if the mode lets them, unless
            // they are root.
            Err(Errno::ACCESS) => {
                let (dir, name) = path::split(path);
                let parent =
                    self.resolve(dir, OFlags::PATH | OFlags::DIRECTORY).map_err(|error| failed(error.into()))?;
                let old = statat(&parent, name, NO_FOLLOW).map_err(|error| failed(error.into()))?;
                let permissions = Mode::from_raw_mode(old.st_mode & 0o7777);
                let readable =
                    openat(&parent, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
                match readable {
                    Ok(file) => fchmod(&file, permissions | Mode::WUSR),
                    Err(_) => chmodat(&parent, name, permissions | Mode::WUSR, AtFlags::empty()),
                }
                .map_err(|error| failed(error.into()))?;
                let file = self.resolve(path, flags).map_err(|error| failed(error.into()))?;
                Ok(Contents { file: File::from(file), restore: Some(permissions) })
            }
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Sets the time of an entry.
    pub(crate) fn set_time(&mut self, path: &[u8], time: i64) -> Result<(), TransferError> {
        let (dir, name) = path::split(path);
        self.directory(dir)
            .and_then(|parent| utimensat(parent, name, &times(time), NO_FOLLOW))
            .map_err(|error| TransferError::write("set time of", path, error))
    }

    /// Writes a file of this side's own at the top, replacing what is there.
    pub(crate) fn write_own(&mut self, name: &str, contents: &[u8]) -> Result<(), TransferError> {
        use std::io::Write as _;
        let failed = |error: io::Error| TransferError::write("write", name, error);
        let parent = self.directory(b"").map_err(|error| failed(error.into()))?;
        remove_all(parent, name.as_bytes()).map_err(failed)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(parent, name, flags, Mode::from_raw_mode(0o644)).map_err(|error| failed(error.into()))?;
        File::from(file).write_all(contents).map_err(failed)
    }
}

/// A file whose contents arrive.
#[derive(Debug)]
pub(crate) struct Contents {
    file: File,
    restore: Option<Mode>,
}

impl Contents {
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        use std::io::Write as _;
        self.file.write_all(bytes)
    }

    /// Writing has changed the time, and has taken capabilities and maybe the
    /// set-id bits.
    pub(crate) fn finish(self, stat_mode: u32, time: i64, capability: Option<&Bytes>) -> io::Result<()> {
        if let Some(value) = capability
            && let Err(error) = rustix::fs::fsetxattr(&self.file, CAPABILITY, value, XattrFlags::empty())
        {
            tracing::debug!(%error, "a file's capabilities are lost");
        }
        let special = mode::SETUID | mode::SETGID;
        if let Some(permissions) = self.restore {
            fchmod(&self.file, permissions)?;
        } else if stat_mode & special != 0 {
            fchmod(&self.file, Mode::from_raw_mode(mode::permissions(stat_mode)))?;
        }
        rustix::fs::futimens(&self.file, &times(time))?;
        Ok(())
    }
}

fn make(
    parent: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
    link_from: Option<(BorrowedFd<'_>, &[u8])>,
) -> io::Result<Written> {
    let permissions = Mode::from_raw_mode(mode::permissions(stat.mode));
    if mode::is_dir(stat.mode) {
        mkdirat(parent, name, permissions)?;
    } else if mode::is_symlink(stat.mode) {
        symlinkat(&stat.linkname[..], parent, name)?;
    } else if stat.mode & (mode::DEVICE | mode::NAMED_PIPE) != 0 {
        let kind = FileType::from_raw_mode(mode::to_unix(stat.mode));
        let number = |number: i64| u32::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let device = match kind {
            FileType::Fifo => 0,
            _ => rustix::fs::makedev(number(stat.devmajor)?, number(stat.devminor)?),
        };
        mknodat(parent, name, kind, permissions, device)?;
    } else if let Some((from, from_name)) = link_from {
        linkat(from, from_name, parent, name, AtFlags::empty())?;
    } else if mode::is_regular(stat.mode) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(parent, name, flags, permissions)?;
        return Ok(Written::WithoutContents);
    } else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("unknown kind of file, mode {:#x}", stat.mode),
        ));
    }
    Ok(Written::Complete)
}

/// Sets all of an entry's details. The owner comes before the permissions,
/// since changing it takes set-id bits away; attributes after it, since it
/// takes capabilities away as well.
fn set_metadata(parent: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> io::Result<()> {
    chownat(parent, name, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)), NO_FOLLOW)?;
    if !stat.xattrs.is_empty() {
        let path = path_through(parent, OsStr::from_bytes(name));
        for (key, value) in &stat.xattrs {
            // Attributes are as good as the file system lets them be: another
            // one may have namespaces that this one has not.
            if let Err(error) = rustix::fs::lsetxattr(&path, key.as_str(), value, XattrFlags::empty()) {
                tracing::debug!(path = %path::display(&stat.path), key, %error, "an extended attribute is lost");
            }
        }
    }
    if !mode::is_symlink(stat.mode) {
        let permissions = Mode::from_raw_mode(mode::permissions(stat.mode) as RawMode);
        // The name is this side's own or was seen to be a directory; opening it
        // makes sure that no link took its place.
        if mode::is_dir(stat.mode) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(parent, name, flags, Mode::empty()) {
                Ok(dir) => fchmod(&dir, permissions)?,
                Err(Errno::ACCESS) => chmodat(parent, name, permissions, AtFlags::empty())?,
                Err(error) => return Err(error.into()),
            }
        } else {
            chmodat(parent, name, permissions, AtFlags::empty())?;
        }
    }
    utimensat(parent, name, &times(stat.mod_time), NO_FOLLOW)?;
    Ok(())
}

fn remove_all(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            // The library's way goes by descriptors and follows no link.
            let path = path_through(parent, OsStr::from_bytes(name));
            std::fs::remove_dir_all(Path::new(OsStr::from_bytes(path.to_bytes())))
        }
        Err(error) => Err(error.into()),
    }
}

fn times(nanoseconds: i64) -> Timestamps {
    let time =
        Timespec { tv_sec: nanoseconds.div_euclid(1_000_000_000), tv_nsec: nanoseconds.rem_euclid(1_000_000_000) };
    Timestamps { last_access: time, last_modification: time }
}
