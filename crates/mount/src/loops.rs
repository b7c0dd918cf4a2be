//! Loop devices: files as block devices, for file systems that take nothing else.
//!
//! A device is made in the forked child that mounts what lies on it (module `child`), with autoclear: it goes with its
//! last opener, that is with the mount, whoever dies before. So everything here is system calls on prepared memory.
#![allow(unsafe_code)] // ioctls have no safe form here

use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::child;

// `<linux/loop.h>`.
const LOOP_CTL_GET_FREE: u32 = 0x4c82;
const LOOP_CONFIGURE: u32 = 0x4c0a;
const LOOP_GET_STATUS64: u32 = 0x4c05;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// The block size of EROFS images; all files that become devices are multiples of it.
const BLOCK: u32 = 4096;

/// Others take devices too; each try gets another one.
const TRIES: u32 = 64;

#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

impl LoopInfo {
    const fn new(flags: u32) -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// Makes a read-only loop device of `file` and returns it, open: it must stay so until something is mounted on it.
///
/// `direct` is a condition: reads must reach `file` as they come, many at a time, past any page cache.
pub(crate) fn attach(file: BorrowedFd<'_>, direct: bool) -> Result<OwnedFd, Errno> {
    let control = openat(CWD, c"/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut tries = 0;
    loop {
        let number = ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE, std::ptr::null_mut())?;
        let mut path = [0; PATH];
        let path = numbered(b"/dev/loop", number.unsigned_abs(), &mut path);
        let device = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | if direct { LO_FLAGS_DIRECT_IO } else { 0 };
        let mut config = LoopConfig {
            fd: file.as_raw_fd().unsigned_abs(),
            block_size: BLOCK,
            info: LoopInfo::new(flags),
            reserved: [0; 8],
        };
        match ioctl(device.as_raw_fd(), LOOP_CONFIGURE, (&raw mut config).cast()) {
            Ok(_) => {}
            // Somebody else was given the same one.
            Err(Errno::BUSY) if tries < TRIES => {
                tries += 1;
                continue;
            }
            Err(error) => return Err(error),
        }
        if direct {
            // What cannot be had is left out without a word.
            let mut info = LoopInfo::new(0);
            ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, (&raw mut info).cast())?;
            if info.flags & LO_FLAGS_DIRECT_IO == 0 {
                return Err(Errno::OPNOTSUPP);
            }
        }
        return Ok(device);
    }
}

fn ioctl(fd: RawFd, request: u32, argument: *mut libc::c_void) -> Result<i32, Errno> {
    // SAFETY: the argument is null or points at a struct of the request's type, which lives until the call returns.
    let result = unsafe { libc::ioctl(fd, request as _, argument) };
    if result < 0 { Err(Errno::from_raw_os_error(child::errno())) } else { Ok(result) }
}

/// Room for a path that ends in a number.
pub(crate) const PATH: usize = 32;

/// `prefix` (of at most 20 bytes) and `number`, without allocation.
pub(crate) fn numbered<'a>(prefix: &[u8], number: u32, buffer: &'a mut [u8; PATH]) -> &'a CStr {
    buffer[..prefix.len()].copy_from_slice(prefix);
    let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
    let mut rest = number;
    for at in (0..digits).rev() {
        buffer[prefix.len() + at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    buffer[prefix.len() + digits..].fill(0);
    CStr::from_bytes_until_nul(buffer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_end_in_their_number() {
        let mut buffer = [1; PATH];
        for (number, path) in [(0, c"/dev/loop0"), (10, c"/dev/loop10"), (u32::MAX, c"/dev/loop4294967295")] {
            assert_eq!(numbered(b"/dev/loop", number, &mut buffer), path);
        }
    }

    #[test]
    fn structs_are_as_long_as_the_kernels() {
        assert_eq!((size_of::<LoopInfo>(), size_of::<LoopConfig>()), (232, 304));
    }
}
