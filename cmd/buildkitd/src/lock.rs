//! One daemon per state directory.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Holds `<root>/buildkitd.lock`, the lock that BuildKit's daemon takes too, until dropped.
#[derive(Debug)]
pub struct RootLock(#[expect(dead_code, reason = "held for its lock")] Flock<File>);

impl RootLock {
    /// Creates `root` where it is missing and takes its lock.
    pub fn acquire(root: &Path) -> Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(root)
            .with_context(|| format!("create state directory {}", root.display()))?;
        let path = root.join("buildkitd.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, Errno::EWOULDBLOCK)) => bail!("could not lock {}, another instance running?", path.display()),
            Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_turned_away() {
        let root = tempfile::tempdir().unwrap();
        let first = RootLock::acquire(root.path()).unwrap();
        let error = RootLock::acquire(root.path()).unwrap_err().to_string();
        assert!(error.contains("another instance running"), "{error}");
        drop(first);
        RootLock::acquire(root.path()).unwrap();
    }
}
