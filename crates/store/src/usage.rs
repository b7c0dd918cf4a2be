//! What the records take, and removing them.

use std::time::Duration;

use crate::Filter;

/// What to remove. Nothing that is in use is.
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// Only records that match any of these; all if there are none.
    pub filters: Vec<Filter>,
    /// Internal and frontend records too.
    pub all: bool,
    /// Only records that were not used for so long.
    pub keep_duration: Option<Duration>,
    /// Keep so many bytes in any case.
    pub reserved_space: u64,
    /// Keep at most so many bytes.
    pub max_used_space: u64,
    /// Keep so many bytes of the disk free.
    pub min_free_space: u64,
}

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Records.
    pub records: usize,
    /// Their bytes.
    pub bytes: u64,
}
