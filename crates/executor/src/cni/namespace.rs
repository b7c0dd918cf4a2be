//! Network namespaces, kept by a mount on a file.

#![allow(unsafe_code)] // A thread leaves its network namespace.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::UnmountFlags;
use rustix::thread::UnshareFlags;

/// Makes a namespace and mounts it on the file `path`, which is made too. Blocks.
pub(super) fn create(path: &Path) -> io::Result<()> {
    fs::File::create_new(path)?;
    let place = path.to_owned();
    // A thread of its own: the namespace is the thread's, and ends with it.
    let made = std::thread::Builder::new().name("network namespace".into()).spawn(move || {
        // SAFETY: only this thread leaves the network namespace; it shares no state that depends on one, and ends here.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &place)?;
        io::Result::Ok(())
    });
    let made = made.and_then(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked"))));
    if made.is_err() {
        // The error of making it is the one to tell.
        let _ = fs::remove_file(path);
    }
    made
}

/// Unmounts a namespace and removes its file; either may be gone. Blocks.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        // Not mounted, or not there.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The namespaces that are in `dir`.
pub(super) fn left_in(dir: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
