//! How the allocator treats freed memory.
#![allow(unsafe_code)] // The allocator's parameters are set through the C library.

/// Above this an allocation is a mapping of its own, and what is free at the end of a heap goes back.
#[cfg(target_env = "gnu")]
const THRESHOLD: nix::libc::c_int = 128 << 10;

/// Makes large buffers go back to the kernel when they are freed. By default the C library learns from the first large
/// buffer that is freed to keep all later ones (up to 32 MiB each, in a heap for every thread): a daemon that once read a
/// big layer would stay big for good.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no other thread exists yet, and both parameters take any number of bytes. Setting one ends the learning.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, THRESHOLD);
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, THRESHOLD);
    }
}
