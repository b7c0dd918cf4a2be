//! When records go by themselves.

use std::path::Path;
use std::time::Duration;

use crate::{Filter, StoreError};

/// A rule of what may go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcPolicy {
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

/// Size and free space of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskSpace {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that castor could take.
    pub free: u64,
}

impl DiskSpace {
    /// Of the disk that `path` is on.
    pub fn of(path: &Path) -> Result<Self, StoreError> {
        let _ = path;
        todo!()
    }
}

/// BuildKit's default rules for a disk.
pub fn default_policy(disk: DiskSpace) -> Vec<GcPolicy> {
    let _ = disk;
    todo!()
}
