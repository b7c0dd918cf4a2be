//! The collector's rules, from what the configuration says of them.

use anyhow::{Context, Result};
use castor_store::{DiskSpace, GcPolicy, Limits};

use crate::config;

/// What the collector may keep.
#[derive(Debug, Default)]
pub struct GcSettings {
    /// Policies of the configuration; the default ones apply where there are none.
    pub policies: Vec<config::GcPolicy>,
    /// Space that is never collected.
    pub reserved: Option<config::DiskSpace>,
    /// Space the cache may take.
    pub max_used: Option<config::DiskSpace>,
    /// Space to leave free on the disk.
    pub min_free: Option<config::DiskSpace>,
}

impl GcSettings {
    /// The settings of `file`, over which `--oci-worker-gc-keepstorage` wins as a whole.
    pub fn new(file: &config::OciWorker, flag: Option<&str>) -> Result<Self> {
        let mut gc = Self {
            policies: file.gcpolicy.clone(),
            reserved: file.reserved_space,
            max_used: file.max_used_space,
            min_free: file.min_free_space,
        };
        if let Some(text) = flag {
            let mut spaces = text.splitn(3, ',').filter(|part| !part.is_empty()).map(|part| {
                let megabytes: i64 = part.parse().with_context(|| {
                    format!("--oci-worker-gc-keepstorage {text:?}: want numbers of MB, Reserved[,Free[,Maximum]]")
                })?;
                anyhow::Ok(config::DiskSpace::Bytes(megabytes.saturating_mul(1_000_000)))
            });
            gc.reserved = spaces.next().transpose()?;
            gc.min_free = spaces.next().transpose()?;
            gc.max_used = spaces.next().transpose()?;
        }
        if gc.is_unset() {
            gc.reserved = file.gc_keep_storage;
        }
        Ok(gc)
    }

    fn is_unset(&self) -> bool {
        self.reserved.is_none() && self.max_used.is_none() && self.min_free.is_none()
    }

    /// The rules for a disk: those of the configuration, or BuildKit's, whose limits are the disk's where none is set.
    pub fn policies(&self, disk: DiskSpace) -> Result<Vec<GcPolicy>> {
        let bytes = |space: Option<config::DiskSpace>| match space {
            None => 0,
            Some(config::DiskSpace::Bytes(bytes)) => u64::try_from(bytes).unwrap_or_default(),
            Some(config::DiskSpace::Percent(0)) => 0,
            Some(config::DiskSpace::Percent(percent)) => disk.percent(u64::try_from(percent).unwrap_or_default()),
        };
        if self.policies.is_empty() {
            let limits = match self.is_unset() {
                true => Limits::of(disk),
                false => Limits {
                    reserved_space: bytes(self.reserved),
                    max_used_space: bytes(self.max_used),
                    min_free_space: bytes(self.min_free),
                },
            };
            return Ok(limits.policies());
        }
        self.policies
            .iter()
            .map(|policy| {
                let filters = policy.filters.iter().map(|text| {
                    text.parse().map_err(|error| anyhow::anyhow!("[[worker.oci.gcpolicy]] filter {text:?}: {error}"))
                });
                Ok(GcPolicy {
                    filters: filters.collect::<Result<_>>()?,
                    all: policy.all,
                    keep_duration: policy.keep_duration.map(|duration| duration.0).filter(|time| !time.is_zero()),
                    reserved_space: bytes(policy.reserved_space.or(policy.keep_bytes)),
                    max_used_space: bytes(policy.max_used_space),
                    min_free_space: bytes(policy.min_free_space),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GB: u64 = 1_000_000_000;
    const DISK: DiskSpace = DiskSpace { total: 50 << 30, free: 20 << 30 };

    fn policies(toml: &str, flag: Option<&str>) -> Vec<GcPolicy> {
        GcSettings::new(&toml::from_str(toml).unwrap(), flag).unwrap().policies(DISK).unwrap()
    }

    fn limits(policy: &GcPolicy) -> (u64, u64, u64) {
        (policy.reserved_space, policy.max_used_space, policy.min_free_space)
    }

    #[test]
    fn without_settings_the_disk_decides() {
        assert_eq!(policies("", None), castor_store::default_policy(DISK));
    }

    #[test]
    fn one_limit_stands_for_itself_and_leaves_the_first_rule_alone() {
        for (toml, flag, want) in [
            ("reservedSpace = \"5GB\"", None, (5 << 30, 0, 0)),
            ("gckeepstorage = 9000000000", None, (9 * GB, 0, 0)),
            ("gckeepstorage = 9000000000\nmaxUsedSpace = \"10%\"", None, (0, 6 * GB, 0)),
            ("maxUsedSpace = \"10%\"", Some("1000,2000"), (GB, 0, 2 * GB)),
            ("", Some("1000,2000,3000"), (GB, 3 * GB, 2 * GB)),
        ] {
            let policies = policies(toml, flag);
            assert_eq!(limits(&policies[0]), (0, 512_000_000, 0), "{toml} {flag:?}");
            for policy in &policies[1..] {
                assert_eq!(limits(policy), want, "{toml} {flag:?}");
            }
        }
    }

    #[test]
    fn own_rules_stand_in_place_of_the_default_ones() {
        let text = "reservedSpace = \"1GB\"
            [[gcpolicy]]
            filters = [\"type==source.local\", \"type==exec.cachemount\"]
            keepDuration = \"48h\"
            keepBytes = \"10%\"
            [[gcpolicy]]
            all = true
            keepDuration = 0
            keepBytes = 1
            reservedSpace = 2
            minFreeSpace = \"1kb\"";
        let policies = policies(text, None);
        assert_eq!(policies.len(), 2);
        assert_eq!(policies[0].keep_duration, Some(Duration::from_secs(48 * 3600)));
        assert_eq!((policies[0].filters.len(), limits(&policies[0])), (2, (6 * GB, 0, 0)));
        assert_eq!((policies[1].all, policies[1].keep_duration, limits(&policies[1])), (true, None, (2, 0, 1024)));
        let bad: config::OciWorker = toml::from_str("[[gcpolicy]]\nfilters = [\"==\"]").unwrap();
        let error = GcSettings::new(&bad, None).unwrap().policies(DISK).unwrap_err();
        assert!(error.to_string().contains("gcpolicy"), "{error}");
    }
}
