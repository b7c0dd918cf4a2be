//! EROFS and FUSE mounts, detached.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use crate::child;
use crate::detached::Detached;
use crate::error::MountError;
use crate::loops;

/// A file that holds data of an EROFS image.
#[derive(Debug)]
pub enum Device<'a> {
    /// An open file.
    File(BorrowedFd<'a>),
    /// The file of this name in a directory, which may be the root of a detached mount.
    In(BorrowedFd<'a>, &'a std::ffi::OsStr),
}

impl Device<'_> {
    fn fd(&self) -> RawFd {
        match self {
            Self::File(fd) | Self::In(fd, _) => fd.as_raw_fd(),
        }
    }

    fn path(&self) -> Vec<u8> {
        let mut path = format!("/proc/self/fd/{}", self.fd()).into_bytes();
        if let Self::In(_, name) = self {
            path.push(b'/');
            path.extend_from_slice(name.as_bytes());
        }
        path
    }
}

/// What the kernel reads the files of an EROFS image through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// The files themselves (Linux 6.12, on file systems that have their data in the page cache).
    Files,
    /// A loop device for each, which goes with the mount.
    Loops,
}

const STEPS: [&str; 6] =
    ["fork for", "open context of", "configure", "create", "mount", "make a loop device for a part of"];

/// Mounts the EROFS image in the file `image`, whose data lies on `devices`, in slot order. Blocks.
///
/// An image without devices must say so by `devices` being empty **and** `metadata_only` set: with no device given the
/// kernel would read data of an image that has slots from the image itself, without an error.
pub fn erofs(
    image: BorrowedFd<'_>,
    devices: &[Device<'_>],
    metadata_only: bool,
    backing: Backing,
) -> Result<Detached, MountError> {
    let what = || format!("erofs with {} devices", devices.len());
    if devices.is_empty() != metadata_only {
        let reason = std::io::Error::new(std::io::ErrorKind::InvalidInput, "every device slot needs its file");
        return Err(MountError::new("mount", what(), reason));
    }
    let invalid = |e: std::ffi::NulError| MountError::new("mount", what(), std::io::Error::from(e));
    let source = CString::new(format!("/proc/self/fd/{}", image.as_raw_fd())).map_err(invalid)?;
    let paths = devices.iter().map(|d| CString::new(d.path())).collect::<Result<Vec<_>, _>>().map_err(invalid)?;
    let keep: Vec<RawFd> = devices.iter().map(Device::fd).chain([image.as_raw_fd()]).collect();
    let result = child::run(&keep, || (), &mut |log| {
        let step = |step: u32| move |errno: Errno| (step, errno.raw_os_error());
        let context = fsopen(c"erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(step(1))?;
        let configured = (|| {
            fsconfig_set_flag(&context, c"ro").map_err(step(2))?;
            match backing {
                Backing::Files => fsconfig_set_string(&context, c"source", source.as_c_str()).map_err(step(2))?,
                Backing::Loops => on_loop(&context, c"source", image, false)?,
            }
            for (device, path) in devices.iter().zip(&paths) {
                match (backing, device) {
                    (Backing::Files, _) => {
                        fsconfig_set_string(&context, c"device", path.as_c_str()).map_err(step(2))?;
                    }
                    // Reading it as a file system does is enough, and its pages may be in memory already.
                    (Backing::Loops, Device::File(fd)) => on_loop(&context, c"device", *fd, false)?,
                    // Whoever serves it must get reads as they come: one that waits would hold up the others.
                    (Backing::Loops, Device::In(..)) => {
                        let file = rustix::fs::open(path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                            .map_err(step(5))?;
                        on_loop(&context, c"device", file.as_fd(), true)?;
                    }
                }
            }
            fsconfig_create(&context).map_err(step(3))
        })();
        if configured.is_err() {
            let _ = rustix::io::read(&context, &mut log[..]);
        }
        configured?;
        let mount =
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY).map_err(step(4))?;
        Ok(Some(child::into_raw(mount)))
    });
    match result {
        Ok(Some(fd)) => Ok(Detached::new(fd)),
        Ok(None) => Err(MountError::new("mount", what(), std::io::Error::other("no mount came back"))),
        Err(failure) => {
            let verb = STEPS[(failure.step as usize).min(STEPS.len() - 1)];
            Err(MountError::new(verb, what(), failure.error).with_detail(failure.detail))
        }
    }
}

/// In the child: gives the mount a loop device of `file`, which stays open as long as the child lives.
fn on_loop(context: &OwnedFd, key: &CStr, file: BorrowedFd<'_>, direct: bool) -> Result<(), (u32, i32)> {
    let device = loops::attach(file, direct).map_err(|errno| (5, errno.raw_os_error()))?;
    let number = child::into_raw(device).unsigned_abs();
    let mut path = [0; loops::PATH];
    fsconfig_set_string(context, key, loops::numbered(b"/proc/self/fd/", number, &mut path))
        .map_err(|errno| (2, errno.raw_os_error()))
}

/// A FUSE file system that is mounted, detached, and waits for its server.
#[derive(Debug)]
pub struct FuseMount {
    /// The device that the server reads requests from.
    pub device: OwnedFd,
    /// The mount.
    pub mount: Detached,
}

/// Mounts a FUSE file system that nobody can see, for files that are read by the kernel: only root may use it. `max_read`
/// bounds a single read.
pub fn fuse(name: &str, max_read: u32) -> Result<FuseMount, MountError> {
    let flags = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    mount_fuse(name, max_read, &[], flags)
}

/// Mounts a FUSE file system that nobody can see, for a tree that users see through an overlay: the kernel checks
/// permissions by mode and owner.
pub fn fuse_tree(name: &str, max_read: u32) -> Result<FuseMount, MountError> {
    mount_fuse(name, max_read, &["allow_other", "default_permissions"], MountAttrFlags::MOUNT_ATTR_RDONLY)
}

fn mount_fuse(
    name: &str,
    max_read: u32,
    options: &[&str],
    attributes: MountAttrFlags,
) -> Result<FuseMount, MountError> {
    let failed = |verb| move |source: Errno| MountError::new(verb, "fuse file system", source);
    let device = rustix::fs::open(c"/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open /dev/fuse for"))?;
    let context = fsopen(c"fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("open context of"))?;
    let set = |key: &str, value: String| {
        fsconfig_set_string(&context, key, value)
            .map_err(|e| MountError::new("configure", format!("fuse file system ({key})"), e))
    };
    set("source", name.to_owned())?;
    set("subtype", name.to_owned())?;
    set("fd", device.as_raw_fd().to_string())?;
    set("rootmode", "40000".to_owned())?;
    set("user_id", "0".to_owned())?;
    set("group_id", "0".to_owned())?;
    set("max_read", max_read.to_string())?;
    for option in ["ro"].iter().chain(options) {
        fsconfig_set_flag(&context, *option).map_err(failed("configure"))?;
    }
    fsconfig_create(&context).map_err(failed("create"))?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("mount"))?;
    Ok(FuseMount { device, mount: Detached::new(mount) })
}
