//! One daemon per state directory.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How long a daemon that was just killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(3);

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
            // Whoever can open it can hold it, and keep the daemon from starting.
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        Self::lock(file, &path, PATIENCE)
    }

    fn lock(mut file: File, path: &Path, patience: Duration) -> Result<Self> {
        let begun = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self(lock)),
                Err((back, Errno::EWOULDBLOCK)) if begun.elapsed() < patience => file = back,
                Err((_, Errno::EWOULDBLOCK)) => {
                    bail!("could not lock {}, another instance running?", path.display())
                }
                Err((_, errno)) => return Err(errno).with_context(|| format!("lock {}", path.display())),
            }
            // Before any thread exists there is nothing else to do, and a lock cannot be waited for with a limit.
            #[expect(clippy::disallowed_methods, reason = "a lock that is waited for cannot be given up in time")]
            std::thread::sleep(Duration::from_millis(20));
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
