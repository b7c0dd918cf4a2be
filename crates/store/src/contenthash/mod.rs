//! Digests of content, equal to BuildKit's.

use castor_fsutil::{Change, ContentHash, Observer, Stat};

/// What of a path counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChecksumOptions {
    /// The last link of the path is followed.
    pub follow_links: bool,
    /// The path is a pattern.
    pub wildcard: bool,
    /// Only what matches any of these counts.
    pub include_patterns: Vec<String>,
    /// What matches any of these does not count.
    pub exclude_patterns: Vec<String>,
    /// Paths that must match something.
    pub required_paths: Vec<String>,
}

/// Hashes what is received into a writable ref as it comes.
#[derive(Debug)]
pub struct HashObserver {}

impl Observer for HashObserver {
    fn hash(&self, stat: &Stat) -> Box<dyn ContentHash> {
        let _ = stat;
        todo!()
    }

    fn changed(&self, change: Change<'_>) -> Result<(), String> {
        let _ = change;
        todo!()
    }
}
