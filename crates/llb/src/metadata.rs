//! What is known of an op beside its bytes.

use std::collections::BTreeMap;

use castor_proto::pb;

/// Metadata of an op. It is no part of the op's digest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpMetadata {
    /// Do not look the result up in the cache.
    pub ignore_cache: bool,
    /// Free text by key; `llb.customname` is the vertex's name.
    pub description: BTreeMap<String, String>,
    /// Whether to export the result with the cache; `None` leaves it to the build.
    pub export_cache: Option<bool>,
    /// Capabilities that the op needs.
    pub caps: BTreeMap<String, bool>,
    /// The group that the vertex is shown in.
    pub progress_group: Option<ProgressGroup>,
    /// Limits of the process.
    pub linux_resources: Option<LinuxResources>,
}

/// Vertices that are shown as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgressGroup {
    /// Names the group.
    pub id: String,
    /// What users read.
    pub name: String,
    /// Shown only if a member that is not weak is.
    pub weak: bool,
}

/// Memory and CPU limits; zero and empty mean none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinuxResources {
    /// Memory in bytes.
    pub memory: i64,
    /// Memory and swap in bytes.
    pub memory_swap: i64,
    /// Relative CPU weight.
    pub cpu_shares: u64,
    /// CFS period in microseconds.
    pub cpu_period: u64,
    /// CFS quota in microseconds.
    pub cpu_quota: i64,
    /// CPUs, such as `0-3`.
    pub cpuset_cpus: String,
    /// Memory nodes, such as `0,1`.
    pub cpuset_mems: String,
}

impl OpMetadata {
    /// From the wire.
    pub fn from_pb(wire: pb::OpMetadata) -> Self {
        Self {
            ignore_cache: wire.ignore_cache,
            description: wire.description,
            export_cache: wire.export_cache.map(|export| export.value),
            caps: wire.caps,
            progress_group: wire.progress_group.map(|group| ProgressGroup {
                id: group.id,
                name: group.name,
                weak: group.weak,
            }),
            linux_resources: wire.linux_resources.map(|limits| LinuxResources {
                memory: limits.memory,
                memory_swap: limits.memory_swap,
                cpu_shares: limits.cpu_shares,
                cpu_period: limits.cpu_period,
                cpu_quota: limits.cpu_quota,
                cpuset_cpus: limits.cpuset_cpus,
                cpuset_mems: limits.cpuset_mems,
            }),
        }
    }

    /// To the wire.
    pub fn to_pb(&self) -> pb::OpMetadata {
        pb::OpMetadata {
            ignore_cache: self.ignore_cache,
            description: self.description.clone(),
            export_cache: self.export_cache.map(|value| pb::ExportCache { value }),
            caps: self.caps.clone(),
            progress_group: self.progress_group.as_ref().map(|group| pb::ProgressGroup {
                id: group.id.clone(),
                name: group.name.clone(),
                weak: group.weak,
            }),
            linux_resources: self.linux_resources.as_ref().map(|limits| pb::LinuxResources {
                memory: limits.memory,
                memory_swap: limits.memory_swap,
                cpu_shares: limits.cpu_shares,
                cpu_period: limits.cpu_period,
                cpu_quota: limits.cpu_quota,
                cpuset_cpus: limits.cpuset_cpus.clone(),
                cpuset_mems: limits.cpuset_mems.clone(),
            }),
        }
    }

    /// Adds what `other` says of the same op; where both speak, `other` wins.
    pub fn merge(&mut self, other: &Self) {
        self.ignore_cache |= other.ignore_cache;
        self.description.extend(other.description.iter().map(|(k, v)| (k.clone(), v.clone())));
        if other.export_cache.is_some() {
            self.export_cache = other.export_cache;
        }
        self.caps.extend(other.caps.keys().map(|cap| (cap.clone(), true)));
        if other.progress_group.is_some() {
            self.progress_group.clone_from(&other.progress_group);
        }
        if other.linux_resources.is_some() {
            self.linux_resources.clone_from(&other.linux_resources);
        }
    }

    /// The name that the client gave the vertex.
    pub fn custom_name(&self) -> Option<&str> {
        self.description.get("llb.customname").map(String::as_str)
    }
}
