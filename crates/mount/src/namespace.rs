//! The daemon's own mount namespace.
#![allow(unsafe_code)] // rustix marks unshare as unsafe

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;

use crate::error::MountError;

/// Moves the calling thread, and every thread it starts later, into a mount namespace of its own. What is mounted there
/// goes with its last process and is not seen outside; what is mounted outside later still appears.
///
/// Call it before the first thread is started.
pub fn enter_private_namespace() -> Result<(), MountError> {
    let failed = |verb| move |source: rustix::io::Errno| MountError::new(verb, "mount namespace", source);
    // SAFETY: only the mount namespace changes (and with it the sharing of root and working directory); no memory or
    // descriptor of other threads is affected.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(failed("enter private"))?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).map_err(failed("make private"))
}
