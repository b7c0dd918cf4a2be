//! The actions that work on one tree.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use castor_llb::op::{Mkdir, Mkfile, Rm, Symlink};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::copy::wildcard_matches;
use super::error::FileError;
use super::owner::Owner;
use super::tree::{Time, Tree, chown, make_dir, proc_path, set_time};

/// Makes a directory.
pub fn mkdir(tree: &Tree, action: &Mkdir, owner: Option<Owner>) -> Result<(), FileError> {
    let path = tree.lookup(&action.path)?;
    let mode = permissions(action.mode);
    let time = Time::from_nanos(action.timestamp);
    if action.make_parents {
        tree.mkdir_all(&path, mode, owner, time)?;
        return Ok(());
    }
    let (parent, name) = tree.parent("mkdir", &path)?;
    match make_dir(&parent, &name, mode) {
        Ok(()) => finish(tree, &path, owner, time),
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(FileError::at("mkdir", &path)(errno)),
    }
}

/// Writes a file. One that is there keeps its mode.
pub fn mkfile(tree: &Tree, action: &Mkfile, owner: Option<Owner>) -> Result<(), FileError> {
    let path = tree.lookup(&action.path)?;
    let (parent, name) = tree.parent("open", &path)?;
    let mode = Mode::from_raw_mode(permissions(action.mode));
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = match rustix::fs::openat(&parent, &name, flags | OFlags::CREATE | OFlags::EXCL, mode) {
        Ok(fd) => {
            rustix::fs::fchmod(&fd, mode).map_err(FileError::at("chmod", &path))?;
            fd
        }
        Err(Errno::EXIST) => {
            rustix::fs::openat(&parent, &name, flags | OFlags::TRUNC, mode).map_err(FileError::at("open", &path))?
        }
        Err(errno) => return Err(FileError::at("open", &path)(errno)),
    };
    let mut file = std::fs::File::from(fd);
    std::io::Write::write_all(&mut file, &action.data).map_err(FileError::io("write", &path))?;
    finish(tree, &path, owner, Time::from_nanos(action.timestamp))
}

/// Makes a symbolic link.
pub fn symlink(tree: &Tree, action: &Symlink, owner: Option<Owner>) -> Result<(), FileError> {
    let path = tree.lookup(&action.newpath)?;
    let (parent, name) = tree.parent("symlink", &path)?;
    rustix::fs::symlinkat(action.oldpath.as_str(), &parent, &name).map_err(|errno| {
        let both = PathBuf::from(format!("{} {}", action.oldpath, path.display()));
        FileError::at("symlink", both)(errno)
    })?;
    finish(tree, &path, owner, Time::from_nanos(action.timestamp))
}

/// Removes a path, or what a pattern matches.
pub fn rm(tree: &Tree, action: &Rm) -> Result<(), FileError> {
    if !action.allow_wildcard {
        return remove(tree, Path::new(&action.path), action.allow_not_found);
    }
    for path in wildcard_matches(tree, &action.path, false)? {
        remove(tree, &path, action.allow_not_found)?;
    }
    Ok(())
}

fn remove(tree: &Tree, path: &Path, allow_not_found: bool) -> Result<(), FileError> {
    let path = tree.lookup_parent(path)?;
    if path.file_name().is_none() {
        return Err(FileError::Other("rmPath: invalid empty path".to_owned()));
    }
    if !allow_not_found && tree.stat(&path)?.is_none() {
        return Err(FileError::at("stat", &path)(Errno::NOENT));
    }
    tree.remove_all(&path)
}

fn permissions(mode: i32) -> u32 {
    mode.cast_unsigned() & 0o777
}

fn finish(tree: &Tree, path: &Path, owner: Option<Owner>, time: Option<Time>) -> Result<(), FileError> {
    let (parent, name) = tree.parent("open", path)?;
    if let Some(owner) = owner {
        chown(&parent, &name, owner).map_err(FileError::at("lchown", path))?;
    }
    if let Some(time) = time {
        set_time(&parent, &name, time.spec(), time.spec()).map_err(FileError::at("utime", path))?;
    }
    Ok(())
}

/// Copies extended attributes. Failures are not told: not every file system takes every attribute.
pub(super) fn copy_xattrs(
    from: (&std::os::fd::OwnedFd, &OsStr),
    to: (&std::os::fd::OwnedFd, &OsStr),
) -> Result<(), Errno> {
    let (from, to) = (proc_path(from.0, from.1), proc_path(to.0, to.1));
    let size = match rustix::fs::llistxattr(&from, &mut [0u8; 0][..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(size) => size,
        Err(errno) => return Err(errno),
    };
    let mut list = vec![0u8; size];
    let size = rustix::fs::llistxattr(&from, &mut list[..])?;
    list.truncate(size);
    for name in list.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let copied = rustix::fs::lgetxattr(&from, name, &mut [0u8; 0][..]).and_then(|size| {
            let mut value = vec![0u8; size];
            let size = rustix::fs::lgetxattr(&from, name, &mut value[..])?;
            rustix::fs::lsetxattr(&to, name, &value[..size], rustix::fs::XattrFlags::empty())
        });
        if let Err(errno) = copied {
            tracing::debug!(name = %String::from_utf8_lossy(name), %errno, "copy extended attribute");
        }
    }
    Ok(())
}
