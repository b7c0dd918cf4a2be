//! Mounts held by a descriptor, and mounts that are attached.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::attr;
use crate::child;
use crate::error::MountError;

/// A mount that is attached nowhere; it goes when it is dropped, unless an overlay uses it as a lower.
#[derive(Debug)]
pub struct Detached {
    /// `None` only while it is being dropped or attached.
    fd: Option<OwnedFd>,
}

impl Detached {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd: Some(fd) }
    }

    /// Attaches it at `target`.
    pub fn attach(mut self, target: &Path) -> Result<Mounted, MountError> {
        let failed =
            |source: rustix::io::Errno| MountError::new("attach mount at", target.display().to_string(), source);
        if let Some(fd) = &self.fd {
            move_mount(fd, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed)?;
        }
        // The descriptor is no longer the last reference: closing it waits for nothing.
        drop(self.fd.take());
        Ok(Mounted::at(target))
    }

    /// Makes it read-only.
    pub fn read_only(self) -> Result<Self, MountError> {
        attr::set_read_only(self.as_fd(), false)?;
        Ok(self)
    }
}

impl AsFd for Detached {
    #[expect(clippy::expect_used, reason = "the descriptor is only taken by methods that consume the value")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("a detached mount in use has its descriptor").as_fd()
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            child::close(fd);
        }
    }
}

/// An attached mount; unmounted when dropped.
pub struct Mounted {
    path: PathBuf,
    attached: bool,
    /// What the mount is made of, dropped after it is unmounted.
    hold: Vec<Arc<dyn Send + Sync>>,
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mounted").field("path", &self.path).field("attached", &self.attached).finish_non_exhaustive()
    }
}

impl Mounted {
    /// Takes responsibility for what is mounted at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), attached: true, hold: Vec::new() }
    }

    /// Keeps `what` until it is unmounted.
    #[must_use]
    pub fn holding(mut self, what: Arc<dyn Send + Sync>) -> Self {
        self.hold.push(what);
        self
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts it. Processes that still use it keep it alive until they end.
    pub fn unmount(mut self) -> Result<(), MountError> {
        self.detach()
    }

    fn detach(&mut self) -> Result<(), MountError> {
        if !std::mem::take(&mut self.attached) {
            return Ok(());
        }
        let failed = |source: std::io::Error| MountError::new("unmount", self.path.display().to_string(), source);
        let target = CString::new(self.path.as_os_str().as_bytes()).map_err(|e| failed(e.into()))?;
        child::unmount(&target, libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW).map_err(failed)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::warn!(%error, "unmount");
        }
    }
}

/// A bind mount of `source`; with `recursive` what is mounted below comes along. Not attached.
pub fn bind(source: &Path, recursive: bool, read_only: bool) -> Result<Detached, MountError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let fd = open_tree(CWD, source, flags)
        .map_err(|source_error| MountError::new("bind", source.display().to_string(), source_error))?;
    let mount = Detached::new(fd);
    if read_only {
        attr::set_read_only(mount.as_fd(), recursive)?;
    }
    Ok(mount)
}

/// Unmounts everything that is mounted below `dir`, last mounted first: what a process left that died outside of a mount
/// namespace of its own. Gives the places.
pub fn unmount_below(dir: &Path) -> Result<Vec<PathBuf>, MountError> {
    let failed = |source| MountError::new("read", "/proc/self/mountinfo", source);
    let table = std::fs::read("/proc/self/mountinfo").map_err(failed)?;
    let dir = dir.canonicalize().map_err(|source| MountError::new("resolve", dir.display().to_string(), source))?;
    let mut points: Vec<PathBuf> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(field))))
        .filter(|point| point.starts_with(&dir) && *point != dir)
        .collect();
    points.reverse();
    for point in &points {
        Mounted::at(point).unmount()?;
    }
    Ok(points)
}

/// The kernel writes blanks and backslashes of paths as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal =
            |digits: &[u8]| digits.iter().try_fold(0u8, |n, d| n.checked_mul(8)?.checked_add(d.checked_sub(b'0')?));
        match (first, tail.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                path.push(byte);
                rest = &tail[3..];
            }
            _ => {
                path.push(*first);
                rest = tail;
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn paths_of_the_mount_table_are_read() {
        assert_eq!(unescape(b"/a\\040b\\134c\\012"), b"/a b\\c\n");
        assert_eq!(unescape(b"/plain\\"), b"/plain\\");
    }
}
