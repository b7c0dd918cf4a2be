//! The bridge of castor's own: it goes with the daemon that brought it about.

#![allow(unsafe_code)] // Interfaces are asked for and removed by calls that take C structures.

use std::ffi::CString;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// Removes a bridge; the kernel's headers have it, libc does not.
const REMOVE_BRIDGE: libc::Ioctl = 0x89a1;

/// A bridge that no one had before this daemon.
#[derive(Debug)]
pub(super) struct OwnBridge {
    name: String,
    /// Says so, also to the daemon after one that was killed.
    note: PathBuf,
}

impl OwnBridge {
    /// Takes note that the bridge `name` is the daemon's own; `None` if it was there before.
    pub(super) fn claim(name: &str, note: PathBuf) -> io::Result<Option<Self>> {
        let noted = std::fs::read_to_string(&note).is_ok_and(|noted| noted == name);
        if !noted && exists(name)? {
            return Ok(None);
        }
        std::fs::write(&note, name)?;
        Ok(Some(Self { name: name.to_owned(), note }))
    }

    /// Removes it, unless it has others' interfaces. Blocks.
    pub(super) fn remove(&self) -> io::Result<()> {
        let ports = Path::new("/sys/class/net").join(&self.name).join("brif");
        let empty = std::fs::read_dir(ports).map_or(true, |mut ports| ports.next().is_none());
        if empty && exists(&self.name)? {
            remove(&self.name)?;
        }
        std::fs::remove_file(&self.note)
    }
}

fn c_name(name: &str) -> io::Result<CString> {
    match CString::new(name) {
        Ok(name) if name.as_bytes().len() < libc::IFNAMSIZ => Ok(name),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name of an interface"))),
    }
}

fn exists(name: &str) -> io::Result<bool> {
    let name = c_name(name)?;
    // SAFETY: the name ends with a NUL and is only read.
    Ok(unsafe { libc::if_nametoindex(name.as_ptr()) } != 0)
}

fn remove(name: &str) -> io::Result<()> {
    let name = c_name(name)?;
    let socket = UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| UdpSocket::bind(("0.0.0.0", 0)))?;
    // SAFETY: all zeros are a request without flags: to be down, as a bridge must be to go.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *place = byte.cast_signed();
    }
    let done = |result| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: the request is of the type that this call reads, and its name ends with a NUL.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &raw mut request) })?;
    // SAFETY: this call reads a name that ends with a NUL.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), REMOVE_BRIDGE, name.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a bridge; the kernel's headers have it, libc does not.
    const ADD_BRIDGE: libc::Ioctl = 0x89a0;

    fn add(name: &str) {
        let (name, socket) = (c_name(name).unwrap(), UdpSocket::bind(("0.0.0.0", 0)).unwrap());
        // SAFETY: this call reads a name that ends with a NUL.
        assert_eq!(unsafe { libc::ioctl(socket.as_raw_fd(), ADD_BRIDGE, name.as_ptr()) }, 0);
    }

    #[test]
    fn privileged_a_bridge_goes_with_the_daemon_that_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("bridge");
        // In a network of its own, which ends with the thread.
        let alone = std::thread::spawn(move || {
            // SAFETY: only this thread leaves the network namespace; it shares no state that depends on one, and ends.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET).unwrap() };
            let claim = |name: &str| OwnBridge::claim(name, note.clone()).unwrap();
            let own = claim("castor-t0").unwrap();
            add("castor-t0");
            own.remove().unwrap();
            assert!(!exists("castor-t0").unwrap() && !note.exists());
            // One that was there is nobody's to remove.
            add("castor-t0");
            assert!(claim("castor-t0").is_none());
            remove("castor-t0").unwrap();
            // After a kill the next daemon finds its predecessor's.
            claim("castor-t0").unwrap();
            add("castor-t0");
            claim("castor-t0").unwrap().remove().unwrap();
            assert!(!exists("castor-t0").unwrap());
            // It may be gone, or never have been made.
            claim("castor-t0").unwrap().remove().unwrap();
            let error = OwnBridge::claim("a name that is too long", note.clone()).unwrap_err();
            assert!(error.to_string().contains("too long"), "{error}");
        });
        alone.join().unwrap();
    }
}
