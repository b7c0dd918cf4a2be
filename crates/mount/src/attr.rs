//! Attributes of mounts and of directories.
#![allow(unsafe_code)] // mount_setattr has no safe form in the crates at hand

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::error::MountError;

/// `MOUNT_ATTR_RDONLY` of `<linux/mount.h>`.
const MOUNT_ATTR_RDONLY: u64 = 1;

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

pub(crate) fn set_read_only(mount: BorrowedFd<'_>, recursive: bool) -> Result<(), MountError> {
    let attr = MountAttr { attr_set: MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the kernel reads the struct, whose size it is told, and an empty C string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 {
        return Err(MountError::new("make read-only", "mount", io::Error::last_os_error()));
    }
    Ok(())
}

/// Copies owner, mode, modification time and extended attributes (but overlayfs's own) of directory `from` to `to`.
///
/// A new upper directory needs it: the attributes of an overlay's root are those of its uppermost layer.
pub fn set_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let meta = std::fs::symlink_metadata(from)?;
    std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid()))?;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    for name in xattr_names(from)? {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let name = CString::new(name)?;
        let value = xattr_value(from, &name)?;
        rustix::fs::lsetxattr(to, name.as_c_str(), &value, rustix::fs::XattrFlags::empty())?;
    }
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: meta.atime(), tv_nsec: meta.atime_nsec() },
        last_modification: rustix::fs::Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() },
    };
    rustix::fs::utimensat(rustix::fs::CWD, to, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn xattr_names(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut buffer = vec![0u8; 64 << 10];
    let path = CString::new(path.as_os_str().as_bytes())?;
    let length = match rustix::fs::llistxattr(path.as_c_str(), &mut buffer[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    Ok(buffer[..length].split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect())
}

fn xattr_value(path: &Path, name: &std::ffi::CStr) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; 64 << 10];
    let length = rustix::fs::lgetxattr(path, name, &mut buffer[..])?;
    buffer.truncate(length);
    Ok(buffer)
}
