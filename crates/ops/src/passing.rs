//! Files and sockets that pass with the step they are for.
//!
//! They are removed with what uses them. What a killed daemon left is removed when the next one starts.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// The longest path of a socket, with the NUL after it.
const SOCKET_PATH: usize = 108;
/// How the names of directories outside of the daemon's own begin.
const ELSEWHERE: &str = "buildkit-castor-";

/// Where they are.
#[derive(Debug, Clone)]
pub struct Passing {
    dir: PathBuf,
}

impl Passing {
    /// Takes `dir`, which is made if need be, and removes what is in it. One daemon at a time may have it. Blocks.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        for entry in std::fs::read_dir(&dir)? {
            remove(&entry?.path())?;
        }
        Ok(Self { dir })
    }

    /// A directory in which a socket may have the name `name`. Blocks.
    pub(crate) fn directory(&self, name: &str) -> io::Result<PassingDirectory> {
        let id = crate::random_id();
        let mut path = self.dir.join(&id);
        let mut note = None;
        if path.join(name).as_os_str().len() >= SOCKET_PATH {
            // Too long: elsewhere then, and noted here before it is made.
            let elsewhere = std::env::temp_dir().join(format!("{ELSEWHERE}{id}"));
            std::os::unix::fs::symlink(&elsewhere, &path)?;
            note = Some(std::mem::replace(&mut path, elsewhere));
        }
        let directory = PassingDirectory { path, note };
        std::fs::DirBuilder::new().mode(0o700).create(&directory.path)?;
        Ok(directory)
    }

    /// A file with this content. Blocks.
    pub(crate) fn file(&self, content: &[u8]) -> io::Result<tempfile::NamedTempFile> {
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        io::Write::write_all(&mut file, content)?;
        Ok(file)
    }
}

/// A directory; removed on drop.
#[derive(Debug)]
pub(crate) struct PassingDirectory {
    path: PathBuf,
    /// Says where it is, if that is not in the daemon's own directory.
    note: Option<PathBuf>,
}

impl PassingDirectory {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PassingDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
        if let Some(note) = &self.note {
            let _ = std::fs::remove_file(note);
        }
    }
}

/// Removes what is at `path`, and what a note there names.
fn remove(path: &Path) -> io::Result<()> {
    let kind = std::fs::symlink_metadata(path)?.file_type();
    if kind.is_dir() {
        return std::fs::remove_dir_all(path);
    }
    if kind.is_symlink() {
        let noted = std::fs::read_link(path)?;
        let named = noted.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(ELSEWHERE.as_bytes()));
        // In a directory that all may write to, it may be somebody else's by now.
        let ours = |found: &std::fs::Metadata| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
        if named && std::fs::symlink_metadata(&noted).is_ok_and(|found| ours(&found)) {
            std::fs::remove_dir_all(&noted)?;
        }
    }
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn what_is_left_is_removed_at_the_next_start() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        let passing = Passing::open(dir.clone()).unwrap();
        let (socket, hosts) = (passing.directory("sock").unwrap(), passing.file(b"host key").unwrap());
        assert_eq!(std::fs::read(hosts.path()).unwrap(), b"host key");
        std::os::unix::net::UnixListener::bind(socket.path().join("sock")).unwrap();
        assert_eq!(entries(&dir), 2);
        drop((socket, hosts));
        assert_eq!(entries(&dir), 0);
        // As if killed.
        std::mem::forget((passing.directory("sock").unwrap(), passing.file(b"").unwrap()));
        assert_eq!(entries(&dir), 2);
        Passing::open(dir.clone()).unwrap();
        assert_eq!(entries(&dir), 0);
    }

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_gone_around() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("d".repeat(100));
        let passing = Passing::open(dir.clone()).unwrap();
        let directory = passing.directory("sock").unwrap();
        std::os::unix::net::UnixListener::bind(directory.path().join("sock")).unwrap();
        assert!(!directory.path().starts_with(&dir));
        let path = directory.path().to_owned();
        drop(directory);
        assert!(!path.exists() && entries(&dir) == 0);
        let left = passing.directory("sock").unwrap();
        let path = left.path().to_owned();
        std::mem::forget(left);
        // A note of something else is only a note.
        std::os::unix::fs::symlink(root.path(), dir.join("note")).unwrap();
        Passing::open(dir.clone()).unwrap();
        assert!(!path.exists() && entries(&dir) == 0 && root.path().exists());
    }
}
