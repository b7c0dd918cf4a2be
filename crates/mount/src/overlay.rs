//! Overlays, assembled from descriptors.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::detached::Detached;
use crate::error::MountError;

/// The most lowers that the kernel takes.
pub const MAX_LOWERS: usize = 500;

/// A read-only layer of an overlay.
#[derive(Debug)]
pub enum Lower<'a> {
    /// A mount that may be attached nowhere.
    Mount(BorrowedFd<'a>),
    /// A directory.
    Directory(&'a Path),
}

/// The writable layer of an overlay.
#[derive(Debug, Clone)]
pub struct Upper {
    /// Where changes go.
    pub dir: PathBuf,
    /// Overlayfs's own scratch directory, on the same file system.
    pub work: PathBuf,
}

/// How inode numbers of the layers are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Xino {
    /// One device number for all files, high bits of inode numbers used.
    #[default]
    Auto,
    /// As the layers have them; for programs with 32-bit inode numbers.
    Off,
}

/// An overlay.
///
/// It always has `metacopy=on,redirect_dir=on` and never `userxattr`: a chain in which one mount was made so must be
/// mounted so everywhere, or metadata-only copies read as zeros.
#[derive(Debug, Default)]
pub struct Overlay<'a> {
    /// Uppermost first. Without an upper there must be two at least.
    pub lowers: Vec<Lower<'a>>,
    /// None: read-only.
    pub upper: Option<Upper>,
    /// Do not sync; whoever keeps the upper syncs it. It cannot be mounted writable again.
    pub volatile: bool,
    /// Inode numbers.
    pub xino: Xino,
}

impl Overlay<'_> {
    /// Mounts it, detached.
    pub fn mount(&self) -> Result<Detached, MountError> {
        let what = || match &self.upper {
            Some(upper) => format!("overlay of {} lowers under {}", self.lowers.len(), upper.dir.display()),
            None => format!("overlay of {} lowers", self.lowers.len()),
        };
        let failed = |verb| move |source: Errno| MountError::new(verb, what(), source);
        if self.lowers.len() > MAX_LOWERS {
            return Err(failed("mount")(Errno::INVAL));
        }
        let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("open context of"))?;
        let set = |key, value: &str| fsconfig_set_string(&context, key, value).map_err(failed("configure"));
        set("source", "overlay")?;
        set("metacopy", "on")?;
        set("redirect_dir", "on")?;
        set("xino", if self.xino == Xino::Auto { "auto" } else { "off" })?;
        for lower in &self.lowers {
            match lower {
                Lower::Mount(fd) => set_layer(context.as_fd(), "lowerdir+", *fd).map_err(failed("add lower to"))?,
                Lower::Directory(path) => {
                    let fd = open_dir(path)?;
                    set_layer(context.as_fd(), "lowerdir+", fd.as_fd()).map_err(failed("add lower to"))?;
                }
            }
        }
        if let Some(upper) = &self.upper {
            set_layer(context.as_fd(), "upperdir", open_dir(&upper.dir)?.as_fd()).map_err(failed("set upper of"))?;
            set_layer(context.as_fd(), "workdir", open_dir(&upper.work)?.as_fd()).map_err(failed("set work of"))?;
            if self.volatile {
                fsconfig_set_flag(&context, "volatile").map_err(failed("configure"))?;
            }
        }
        if let Err(source) = fsconfig_create(&context) {
            let mut log = [0u8; 256];
            let length = rustix::io::read(&context, &mut log[..]).unwrap_or(0);
            let detail = String::from_utf8_lossy(&log[..length]).trim().to_owned();
            return Err(failed("create")(source).with_detail(detail));
        }
        let mut flags = MountAttrFlags::empty();
        if self.upper.is_none() {
            flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        let fd = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(failed("mount"))?;
        Ok(Detached::new(fd))
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, MountError> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| MountError::new("open layer", path.display().to_string(), source))
}

/// Descriptors first; kernels before 6.13 take only paths here, and a path through `/proc` names a descriptor as well.
fn set_layer(context: BorrowedFd<'_>, key: &str, layer: BorrowedFd<'_>) -> Result<(), Errno> {
    match fsconfig_set_fd(context, key, layer) {
        Err(Errno::INVAL) => fsconfig_set_string(context, key, format!("/proc/self/fd/{}", layer.as_raw_fd())),
        result => result,
    }
}
