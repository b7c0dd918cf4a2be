//! Read-only mappings of castor's own immutable files.
#![allow(unsafe_code)] // mmap has no safe form: see the invariant at `Map`

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::path::Path;

use castor_archive::ReadAt;

/// A whole file, mapped.
///
/// Invariant: files that are mapped lie in castor's state directory, are complete before they get their name, and are
/// never written to or cut afterwards, only deleted. So the bytes do not change and every page of them exists.
#[derive(Debug)]
pub(crate) struct Map {
    start: *const u8,
    length: usize,
}

// SAFETY: the mapping is read-only and lives until it is dropped; reading it from several threads is no conflict.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Maps the file at `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::of(&File::open(path)?)
    }

    /// Maps all of `file`.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if length == 0 {
            return Ok(Self { start: std::ptr::NonNull::dangling().as_ptr(), length });
        }
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else is touched.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast_const().cast(), length })
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping covers `length` bytes until it is dropped, and they do not change (see `Map`).
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl ReadAt for Map {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.length as u64)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: unmaps exactly what `of` mapped; no reference outlives `self`.
            unsafe { libc::munmap(self.start.cast_mut().cast(), self.length) };
        }
    }
}
