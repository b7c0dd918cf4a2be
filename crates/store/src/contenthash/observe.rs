//! Hashing what is received while it is received.

use std::fmt;
use std::sync::Arc;

use castor_fsutil::{Change, ContentHash, Observer, Stat, mode};
use castor_oci::{Digest, Hasher};

use super::Hashes;
use super::header::Header;
use super::tree::{Entry, key_of};
use crate::rows::Rec;

/// Hashes what is received into a writable ref as it comes.
pub struct HashObserver {
    rec: Arc<Rec>,
}

impl fmt::Debug for HashObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HashObserver").field(&self.rec.id).finish()
    }
}

impl HashObserver {
    pub(super) fn new(rec: Arc<Rec>) -> Self {
        Self { rec }
    }

    fn hashes(&self) -> &Hashes {
        &self.rec.hashes
    }
}

struct Incoming(Hasher);

impl ContentHash for Incoming {
    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self: Box<Self>) -> Digest {
        self.0.finish()
    }
}

impl Observer for HashObserver {
    fn hash(&self, stat: &Stat) -> Box<dyn ContentHash> {
        Box::new(Incoming(Header::of_stat(stat).hasher()))
    }

    fn changed(&self, change: Change<'_>) -> Result<(), String> {
        let mut state = self.hashes().lock();
        match change {
            Change::Removed { path } => state.tree.remove(&key_of(path)),
            Change::Written { stat, digest } => {
                let key = key_of(&stat.path);
                if mode::is_dir(stat.mode) {
                    // One that was something else before has nothing in it; one that was a directory keeps its entries.
                    let listed = !matches!(state.tree.get(&key), Some(Entry::Directory { listed: false, .. }));
                    state.tree.insert(key, Entry::Directory { header: digest, listed });
                    return Ok(());
                }
                // Whatever was below is gone.
                state.tree.remove(&key);
                if mode::is_symlink(stat.mode) {
                    let target = stat.linkname.to_vec();
                    state.tree.insert(key, Entry::Link { digest, target });
                } else if mode::is_regular(stat.mode) && !stat.linkname.is_empty() {
                    // A hard link has the digest of what it leads to, which may come after it.
                    state.tree.insert(key.clone(), Entry::File { digest: None });
                    state.hard_links.push((key, key_of(&stat.linkname)));
                } else {
                    state.tree.insert(key, Entry::File { digest: Some(digest) });
                }
            }
        }
        Ok(())
    }
}
