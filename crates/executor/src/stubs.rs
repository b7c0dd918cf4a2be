//! Mount points that the runtime makes in the root file system because they are missing there. They are no part of what
//! the process did, and are removed when it has ended; the times of their parents are put back.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Timespec, Timestamps};
use rustix::io::Errno;

use crate::rooted::{Root, missing};

/// The mount points that were missing before the process ran.
#[derive(Debug, Default)]
pub struct Stubs {
    /// Resolved, in the order of the mounts. A stub that holds another one's place stays: BuildKit's layers have it too.
    paths: Vec<PathBuf>,
}

impl Stubs {
    /// Finds out which of `destinations` are missing in `root`; with `recursive`, which of their parents too.
    pub fn before<'a>(root: &Root, destinations: impl IntoIterator<Item = &'a Path>, recursive: bool) -> Self {
        let mut seen = BTreeSet::new();
        let mut paths = Vec::new();
        for destination in destinations {
            let Ok(resolved) = root.resolve(destination) else { continue };
            for path in resolved.ancestors().filter(|path| !path.as_os_str().is_empty()) {
                match root.stat(path) {
                    Err(err) if missing(&err) => {}
                    _ => break,
                }
                if seen.insert(path.to_path_buf()) {
                    paths.push(path.to_path_buf());
                }
                if !recursive {
                    break;
                }
            }
        }
        Self { paths }
    }

    /// Removes what is there now and empty.
    pub fn remove(&self, root: &Root) {
        for path in &self.paths {
            match remove(root, path) {
                Ok(()) => {}
                Err(err) if missing(&err) || err.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {}
                Err(err) => tracing::warn!(path = %path.display(), %err, "remove a mount point"),
            }
        }
    }
}

fn remove(root: &Root, path: &Path) -> io::Result<()> {
    // The process may have put a link somewhere above: then this is not the place we looked at before.
    let (parent, name) = root.parent(path)?;
    let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let flags = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => AtFlags::REMOVEDIR,
        _ if stat.st_size == 0 => AtFlags::empty(),
        _ => return Ok(()),
    };
    let before = rustix::fs::fstat(&parent)?;
    match rustix::fs::unlinkat(&parent, name, flags) {
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY | Errno::ROFS) => return Ok(()),
        other => other?,
    }
    let time = |sec: i64, nsec: i64| Timespec { tv_sec: sec, tv_nsec: nsec as _ };
    let times = Timestamps {
        last_access: time(before.st_atime as i64, before.st_atime_nsec as i64),
        last_modification: time(before.st_mtime as i64, before.st_mtime_nsec as i64),
    };
    rustix::fs::futimens(&parent, &times)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_what_was_missing_and_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("etc")).unwrap();
        fs::create_dir_all(at("here")).unwrap();
        symlink("/etc", at("link")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let old = Timespec { tv_sec: 1_000_000, tv_nsec: 42 };
        let stamp = Timestamps { last_access: old, last_modification: old };
        let places = ["/etc/hosts", "/here", "/cache/a/b", "/link/full", "/gone"].map(Path::new);
        let stubs = Stubs::before(&root, places, false);

        fs::write(at("etc/hosts"), "").unwrap();
        fs::create_dir_all(at("cache/a/b")).unwrap();
        fs::write(at("etc/full"), "content").unwrap();
        rustix::fs::futimens(fs::File::open(at("etc")).unwrap(), &stamp).unwrap();
        stubs.remove(&root);

        assert!(!at("etc/hosts").exists() && !at("cache/a/b").exists());
        assert!(at("cache/a").exists() && at("here").exists() && at("etc/full").exists());
        let stat = rustix::fs::stat(at("etc")).unwrap();
        assert_eq!((stat.st_mtime, stat.st_mtime_nsec as i64), (1_000_000, 42));
    }

    #[test]
    fn parents_too_if_asked() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let stubs = Stubs::before(&root, [Path::new("/x/y/z")], true);
        fs::create_dir_all(dir.path().join("x/y/z")).unwrap();
        stubs.remove(&root);
        assert!(!dir.path().join("x").exists());
    }

    #[test]
    fn a_link_put_above_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let stubs = Stubs::before(&root, [Path::new("/d/empty")], false);
        fs::remove_dir(dir.path().join("d")).unwrap();
        symlink(outside.path(), dir.path().join("d")).unwrap();
        fs::write(outside.path().join("empty"), "").unwrap();
        stubs.remove(&root);
        assert!(outside.path().join("empty").exists());
    }
}
