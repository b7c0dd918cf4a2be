//! EROFS and FUSE mounts, detached.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use crate::child;
use crate::detached::Detached;
use crate::error::MountError;

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

const STEPS: [&str; 5] = ["fork for", "open context of", "configure", "create", "mount"];

/// Mounts the EROFS image in the file `image`, whose data lies on `devices`, in slot order. Blocks.
///
/// An image without devices must say so by `devices` being empty **and** `metadata_only` set: with no device given the
/// kernel would read data of an image that has slots from the image itself, without an error.
pub fn erofs(image: BorrowedFd<'_>, devices: &[Device<'_>], metadata_only: bool) -> Result<Detached, MountError> {
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
        let step = |step: u32| move |errno: rustix::io::Errno| (step, errno.raw_os_error());
        let context = fsopen(c"erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(step(1))?;
        let configured = (|| {
            fsconfig_set_flag(&context, c"ro").map_err(step(2))?;
            fsconfig_set_string(&context, c"source", source.as_c_str()).map_err(step(2))?;
            for path in &paths {
                fsconfig_set_string(&context, c"device", path.as_c_str()).map_err(step(2))?;
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

/// A FUSE file system that is mounted, detached, and waits for its server.
#[derive(Debug)]
pub struct FuseMount {
    /// The device that the server reads requests from.
    pub device: OwnedFd,
    /// The mount.
    pub mount: Detached,
}

/// Mounts a FUSE file system that nobody can see; only root may use it. `max_read` bounds a single read.
pub fn fuse(name: &str, max_read: u32) -> Result<FuseMount, MountError> {
    let failed = |verb| move |source: rustix::io::Errno| MountError::new(verb, "fuse file system", source);
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
    fsconfig_set_flag(&context, "ro").map_err(failed("configure"))?;
    fsconfig_create(&context).map_err(failed("create"))?;
    let flags = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(failed("mount"))?;
    let mount = Detached::new(mount);
    let _ = mount.as_fd();
    Ok(FuseMount { device, mount })
}
