//! When records go by themselves.

use std::path::Path;
use std::time::Duration;

use crate::{Filter, StoreError};

const GB: u64 = 1_000_000_000;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

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
        let stat = rustix::fs::statvfs(path).map_err(|error| StoreError::io("stat disk of", path, error.into()))?;
        Ok(Self { total: stat.f_blocks * stat.f_frsize, free: stat.f_bavail * stat.f_frsize })
    }

    /// A share of the disk, rounded as BuildKit rounds it.
    pub fn percent(self, percent: u64) -> u64 {
        let bytes = u128::from(self.total) * u128::from(percent) / 100;
        u64::try_from(bytes >> 30).unwrap_or(u64::MAX / GB - 1).saturating_add(1).saturating_mul(GB)
    }
}

/// How much of a disk the cache may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Keep so many bytes in any case.
    pub reserved_space: u64,
    /// Keep at most so many bytes.
    pub max_used_space: u64,
    /// Keep so many bytes of the disk free.
    pub min_free_space: u64,
}

impl Limits {
    /// BuildKit's defaults for a disk.
    pub fn of(disk: DiskSpace) -> Self {
        Self {
            reserved_space: disk.percent(10).min(10 * GB),
            max_used_space: disk.percent(80).min(100 * GB),
            min_free_space: disk.percent(20),
        }
    }

    /// BuildKit's default rules within these limits: what is easily made again first, what is old next, and internal
    /// records last.
    pub fn policies(self) -> Vec<GcPolicy> {
        let Self { reserved_space, max_used_space, min_free_space } = self;
        let limited = GcPolicy { reserved_space, max_used_space, min_free_space, ..GcPolicy::default() };
        let cheap = ["type==source.local", "type==exec.cachemount", "type==source.git.checkout"];
        vec![
            GcPolicy {
                filters: cheap.iter().filter_map(|text| text.parse().ok()).collect(),
                keep_duration: Some(2 * DAY),
                max_used_space: 512_000_000,
                ..GcPolicy::default()
            },
            GcPolicy { keep_duration: Some(60 * DAY), ..limited.clone() },
            limited.clone(),
            GcPolicy { all: true, ..limited },
        ]
    }
}

/// BuildKit's default rules for a disk.
pub fn default_policy(disk: DiskSpace) -> Vec<GcPolicy> {
    Limits::of(disk).policies()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_buildkits() {
        let disk = DiskSpace { total: 50 << 30, free: 20 << 30 };
        let policies = default_policy(disk);
        assert_eq!(policies.len(), 4);
        assert_eq!(policies[0].filters.len(), 3);
        assert_eq!((policies[0].keep_duration, policies[0].max_used_space), (Some(2 * DAY), 512_000_000));
        let rest = &policies[1];
        assert_eq!((rest.reserved_space, rest.max_used_space, rest.min_free_space), (6 * GB, 41 * GB, 11 * GB));
        assert!(policies[3].all && !policies[2].all);
        let large = Limits::of(DiskSpace { total: 1 << 43, free: 0 });
        assert_eq!((large.reserved_space, large.max_used_space), (10 * GB, 100 * GB));
    }

    #[test]
    fn a_disk_has_a_size() {
        let disk = DiskSpace::of(Path::new("/")).unwrap();
        assert!(disk.total >= disk.free && disk.total > 0);
    }
}
