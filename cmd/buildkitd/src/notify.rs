//! Telling the service manager how the daemon is doing.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where the manager listens; not set where there is none.
const SOCKET: &str = "NOTIFY_SOCKET";

/// It answers.
pub const READY: &str = "READY=1";
/// It ends.
pub const STOPPING: &str = "STOPPING=1";

/// Tells the service manager, if there is one. That it does not hear is no reason not to work.
pub fn tell(state: &str) {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    if let Err(error) = send(socket.as_bytes(), state) {
        tracing::warn!(%error, ?socket, "tell the service manager {state}");
    }
}

fn send(socket: &[u8], state: &str) -> std::io::Result<()> {
    let address = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_hears_by_path_and_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str().as_bytes(), READY).unwrap();
        let name = format!("castor-test-{}", std::process::id());
        let named = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(format!("@{name}").as_bytes(), STOPPING).unwrap();
        let mut buffer = [0; 64];
        let heard = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..heard], READY.as_bytes());
        let heard = named.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..heard], STOPPING.as_bytes());
        assert!(send(b"/nonexistent/socket", READY).is_err());
    }
}
