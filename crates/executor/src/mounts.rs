//! Sources of mounts, made ready for the runtime: it takes paths, so whatever else a source is becomes a mount of the
//! daemon's, in the bundle, for as long as the process runs.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::error::ExecError;
use crate::process::{ExecMount, MountSource, Secret};
use crate::rooted::Root;
use crate::spec::ReadyMount;

/// Mounts of one process; dropping it takes down what was mounted for them.
#[derive(Debug, Default)]
pub struct Mounts {
    /// In the order of their destinations.
    pub ready: Vec<ReadyMount>,
    /// Where something is mounted.
    points: Vec<PathBuf>,
}

impl Mounts {
    /// Makes the sources of `mounts` ready; `dir` is an empty directory of the bundle.
    pub fn prepare(mounts: &[ExecMount], dir: &Path) -> Result<Self, ExecError> {
        let mut prepared = Self::default();
        for (index, mount) in sorted(mounts).into_iter().enumerate() {
            let destination = absolute(&mount.destination);
            let source = prepared
                .source(mount, &dir.join(index.to_string()))
                .map_err(|err| ExecError::setup(format!("failed to mount {}", destination.display()), err))?;
            prepared.ready.push(ready(mount, destination, source));
        }
        Ok(prepared)
    }

    fn source(&mut self, mount: &ExecMount, point: &Path) -> io::Result<PathBuf> {
        let selector = Path::new(&mount.selector);
        let selects = absolute(&mount.selector) != Path::new("/");
        match &mount.source {
            MountSource::Tmpfs { .. } => Ok("tmpfs".into()),
            MountSource::Path(path) if !selects => Ok(path.clone()),
            MountSource::Path(path) => {
                self.bind_below(&Root::open(path)?, selector, point)?;
                Ok(point.to_path_buf())
            }
            MountSource::Fd(fd) if selects => {
                self.bind_below(&Root::from_fd(fd.as_fd())?, selector, point)?;
                Ok(point.to_path_buf())
            }
            MountSource::Fd(fd) => {
                self.bind(fd.as_fd(), point)?;
                Ok(point.to_path_buf())
            }
            MountSource::Secret(secret) => self.secret(secret, point),
        }
    }

    fn bind_below(&mut self, root: &Root, selector: &Path, point: &Path) -> io::Result<()> {
        let fd = root
            .open_path(selector)
            .map_err(|err| io::Error::new(err.kind(), format!("{}: {err}", selector.display())))?;
        self.bind(fd.as_fd(), point)
    }

    /// Mounts what `fd` refers to at `point`.
    fn bind(&mut self, fd: BorrowedFd<'_>, point: &Path) -> io::Result<()> {
        let stat = rustix::fs::fstat(fd)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            private_dir(point)?;
        } else {
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(point)?;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        self.points.push(point.to_path_buf());
        match rustix::mount::open_tree(fd, "", flags) {
            Ok(tree) => attach(tree.as_fd(), point)?,
            // Older kernels do not copy a detached mount, but can attach it.
            Err(Errno::INVAL) => attach(fd, point)?,
            Err(err) => return Err(err.into()),
        }
        Ok(())
    }

    /// Writes the secret to a file system in memory of its own.
    fn secret(&mut self, secret: &Secret, point: &Path) -> io::Result<PathBuf> {
        private_dir(point)?;
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        // Never to be swapped to a disk, where the kernel knows how.
        let mounted = rustix::mount::mount("tmpfs", point, "tmpfs", flags, Some(c"mode=0700,noswap"))
            .or_else(|_| rustix::mount::mount("tmpfs", point, "tmpfs", flags, Some(c"mode=0700")));
        mounted?;
        self.points.push(point.to_path_buf());
        let path = point.join("secret");
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(&secret.data)?;
        fchown(&file, Some(secret.uid), Some(secret.gid))?;
        file.set_permissions(fs::Permissions::from_mode(secret.mode & 0o7777))?;
        Ok(path)
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for point in self.points.drain(..).rev() {
            match rustix::mount::unmount(&point, UnmountFlags::DETACH) {
                // Not mounted after all.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(err) => tracing::warn!(path = %point.display(), %err, "unmount"),
            }
            // Only what is empty goes: never the content of something that is still mounted.
            if fs::remove_dir(&point).is_err() {
                remove_empty_file(&point);
            }
        }
    }
}

/// Removes a regular file that is empty.
pub fn remove_empty_file(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0) {
        // It is a mount point of ours; one that stays is found by the next start.
        let _ = fs::remove_file(path);
    }
}

/// The daemon runs without a umask, so modes are said.
fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}

fn attach(tree: BorrowedFd<'_>, point: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(tree, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Parents before what is mounted below them.
pub fn sorted(mounts: &[ExecMount]) -> Vec<&ExecMount> {
    let mut sorted: Vec<_> = mounts.iter().collect();
    sorted.sort_by(|a, b| a.destination.cmp(&b.destination));
    sorted
}

fn ready(mount: &ExecMount, destination: PathBuf, source: PathBuf) -> ReadyMount {
    let access = if mount.readonly { "ro" } else { "rw" };
    let (kind, mut options) = match &mount.source {
        MountSource::Tmpfs { size } => {
            let mut options = vec!["nosuid".to_owned()];
            if *size > 0 {
                options.push(format!("size={size}"));
            }
            ("tmpfs", options)
        }
        MountSource::Secret(_) => ("bind", ["rbind", "nodev", "nosuid", "noexec"].map(str::to_owned).into()),
        MountSource::Path(_) | MountSource::Fd(_) => ("bind", vec!["rbind".to_owned()]),
    };
    options.push(if matches!(mount.source, MountSource::Secret(_)) { "ro" } else { access }.to_owned());
    ReadyMount { destination, kind, source, options }
}

/// The path from `/`, without `.`, `..` and doubled slashes.
pub fn absolute(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_cleaned() {
        assert_eq!(absolute("a/./b//c/.."), Path::new("/a/b"));
        assert_eq!(absolute("/../x"), Path::new("/x"));
        assert_eq!(absolute(""), Path::new("/"));
    }

    #[test]
    fn options() {
        let mount =
            |source, readonly| ExecMount { source, selector: String::new(), destination: "/x".into(), readonly };
        let tmpfs = ready(&mount(MountSource::Tmpfs { size: 5 }, false), "/x".into(), "tmpfs".into());
        assert_eq!(tmpfs.options, ["nosuid", "size=5", "rw"]);
        let bind = ready(&mount(MountSource::Path("/s".into()), true), "/x".into(), "/s".into());
        assert_eq!((bind.kind, bind.options), ("bind", vec!["rbind".to_owned(), "ro".to_owned()]));
    }
}
