//! `buildkitd.toml`: the file's keys as BuildKit reads them, and castor's own.
//!
//! Unknown keys are named in the log rather than refused, so that one file serves both daemons.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    pub debug: bool,
    pub root: Option<PathBuf>,
    #[serde(rename = "insecure-entitlements")]
    pub insecure_entitlements: Vec<String>,
    pub log: Log,
    pub grpc: Grpc,
    pub dns: Dns,
    pub history: History,
    pub worker: Workers,
    pub registry: BTreeMap<String, Registry>,
    pub frontend: BTreeMap<String, Frontend>,
    pub system: System,
    /// Things of BuildKit's that castor has not; whoever sets them is told.
    pub otel: Option<toml::Value>,
    pub cdi: Option<toml::Value>,
    pub trace: Option<toml::Value>,
    #[serde(rename = "proxyNetwork")]
    pub proxy_network: Option<toml::Value>,
    #[serde(rename = "provenanceEnvDir")]
    pub provenance_env_dir: Option<toml::Value>,
}

/// `[log]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Log {
    pub format: Option<String>,
    pub level: Option<String>,
}

/// `[grpc]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Grpc {
    pub address: Vec<String>,
    #[serde(rename = "debugAddress")]
    pub debug_address: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub tls: Tls,
}

/// `[grpc.tls]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Tls {
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub ca: Option<PathBuf>,
}

/// `[dns]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Dns {
    pub nameservers: Vec<String>,
    pub options: Vec<String>,
    #[serde(rename = "searchDomains")]
    pub search_domains: Vec<String>,
}

/// `[history]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct History {
    pub max_age: Option<GoDuration>,
    pub max_entries: Option<usize>,
}

/// `[worker.*]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Workers {
    pub oci: OciWorker,
    pub containerd: ContainerdWorker,
}

/// `[worker.containerd]`: only whether it is wanted, which castor must refuse by name.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerdWorker {
    pub enabled: Option<bool>,
}

/// `[worker.oci]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OciWorker {
    pub enabled: Option<bool>,
    pub labels: BTreeMap<String, String>,
    pub platforms: Vec<String>,
    pub snapshotter: Option<String>,
    pub rootless: bool,
    pub no_process_sandbox: bool,
    pub gc: Option<bool>,
    #[serde(rename = "gckeepstorage")]
    pub gc_keep_storage: Option<DiskSpace>,
    pub reserved_space: Option<DiskSpace>,
    pub max_used_space: Option<DiskSpace>,
    pub min_free_space: Option<DiskSpace>,
    pub network_mode: Option<String>,
    pub cni_config_path: Option<PathBuf>,
    pub cni_binary_path: Option<PathBuf>,
    pub cni_pool_size: Option<usize>,
    pub bridge_name: Option<String>,
    pub bridge_subnet: Option<String>,
    pub binary: Option<String>,
    pub proxy_snapshotter_path: Option<PathBuf>,
    pub default_cgroup_parent: Option<String>,
    #[serde(rename = "apparmor-profile")]
    pub apparmor_profile: Option<String>,
    pub selinux: bool,
    #[serde(rename = "max-parallelism")]
    pub max_parallelism: Option<usize>,
    pub gcpolicy: Vec<GcPolicy>,
    /// castor: whether layers that can be mounted lazily have to be.
    pub lazy: Option<Lazy>,
    /// castor: the mounting mode of layers, in place of the best that works.
    pub layer_mode: Option<String>,
    pub stargz_snapshotter: toml::Table,
}

/// `[worker.oci] lazy`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lazy {
    /// Mount lazily where possible, say so where not.
    Prefer,
    /// Fail the build where a layer cannot be mounted lazily.
    Require,
}

/// `[[worker.oci.gcpolicy]]`
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GcPolicy {
    pub all: bool,
    pub filters: Vec<String>,
    pub keep_duration: Option<GoDuration>,
    pub keep_bytes: Option<DiskSpace>,
    pub reserved_space: Option<DiskSpace>,
    pub max_used_space: Option<DiskSpace>,
    pub min_free_space: Option<DiskSpace>,
}

/// `[registry."host"]`
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct Registry {
    pub mirrors: Vec<String>,
    pub http: Option<bool>,
    pub insecure: Option<bool>,
    pub ca: Vec<PathBuf>,
    pub tlsconfigdir: Vec<PathBuf>,
    pub keypair: Vec<KeyPair>,
}

/// `[[registry."host".keypair]]`
#[derive(Debug, Default, Clone, Deserialize)]
pub struct KeyPair {
    pub key: PathBuf,
    pub cert: PathBuf,
}

/// `[frontend."dockerfile.v0"]`, `[frontend."gateway.v0"]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Frontend {
    pub enabled: Option<bool>,
    #[serde(rename = "allowedRepositories")]
    pub allowed_repositories: Vec<String>,
}

/// `[system]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct System {
    #[serde(rename = "maxRegistryConcurrency")]
    pub max_registry_concurrency: Option<usize>,
}

/// A span of time: Go's text form (`48h`, `1h30m`) or a whole number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoDuration(pub Duration);

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Seconds(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Seconds(seconds) => Ok(Self(Duration::from_secs(seconds))),
            Form::Text(text) => parse_duration(&text).map(Self).map_err(D::Error::custom),
        }
    }
}

/// Parses Go's form of a duration, or a bare number of seconds.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let bad = || anyhow::anyhow!("invalid duration {text:?}: want a form such as 48h, 1h30m or 90s");
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |i| digits + i);
        let unit = match &rest[digits..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(bad()),
        };
        total += number * unit;
        rest = &rest[unit_end..];
    }
    Duration::try_from_secs_f64(total).map_err(|_| bad())
}

/// An amount of disk: bytes, or a share of the disk that holds the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskSpace {
    /// A number of bytes.
    Bytes(i64),
    /// A percentage of the whole disk.
    Percent(i64),
}

impl<'de> Deserialize<'de> for DiskSpace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Bytes(i64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Bytes(bytes) => Ok(Self::Bytes(bytes)),
            Form::Text(text) => parse_disk_space(&text).map_err(D::Error::custom),
        }
    }
}

/// Parses `512`, `10GB` (binary multiples, as Docker reads them) or `30%`.
pub fn parse_disk_space(text: &str) -> Result<DiskSpace> {
    let bad =
        || anyhow::anyhow!("invalid disk space {text:?}: want bytes, a size such as 10GB, or a share such as 30%");
    if text.is_empty() {
        return Ok(DiskSpace::Bytes(0));
    }
    if let Some(percent) = text.strip_suffix('%') {
        return Ok(DiskSpace::Percent(percent.parse().map_err(|_| bad())?));
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().map_err(|_| bad())?;
    let unit = text[digits..].trim().to_ascii_lowercase();
    let power = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(bad()),
    };
    Ok(DiskSpace::Bytes((number * 1024f64.powi(power)) as i64))
}

/// Reads the file at `path`; a missing file is an empty one when `path` was not asked for by name. Also returns the
/// keys that nothing reads, as `a.b.c`.
pub fn load(path: &Path, required: bool) -> Result<(Config, Vec<String>)> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return Ok(Default::default()),
        Err(error) => return Err(error).with_context(|| format!("read configuration {}", path.display())),
    };
    parse(&text).with_context(|| format!("read configuration {}", path.display()))
}

fn parse(text: &str) -> Result<(Config, Vec<String>)> {
    let mut ignored = Vec::new();
    let deserializer = toml::de::Deserializer::parse(text)?;
    let config = serde_ignored::deserialize(deserializer, |path| ignored.push(path.to_string()))?;
    Ok((config, ignored))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_buildkits_keys_and_names_the_unknown() {
        let (config, ignored) = parse(
            r#"
            debug = true
            nonsense = 1
            [worker.oci]
            snapshotter = "stargz"
            reservedSpace = "30%"
            lazy = "require"
            [[worker.oci.gcpolicy]]
            keepDuration = "48h"
            maxUsedSpace = "10GB"
            filters = ["type==source.local"]
            [worker.oci.stargzSnapshotter]
            noprefetch = true
            [registry."docker.io"]
            mirrors = ["mirror.example/hub"]
            "#,
        )
        .unwrap();
        assert!(config.debug);
        assert_eq!(config.worker.oci.reserved_space, Some(DiskSpace::Percent(30)));
        assert_eq!(config.worker.oci.lazy, Some(Lazy::Require));
        let policy = &config.worker.oci.gcpolicy[0];
        assert_eq!(policy.keep_duration, Some(GoDuration(Duration::from_secs(48 * 3600))));
        assert_eq!(policy.max_used_space, Some(DiskSpace::Bytes(10 << 30)));
        assert_eq!(config.registry["docker.io"].mirrors, ["mirror.example/hub"]);
        assert_eq!(ignored, ["nonsense"]);
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(parse_duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(parse_duration("90").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1500));
        // As good as none.
        assert_eq!(parse_duration("").unwrap(), Duration::ZERO);
        for bad in ["h", "1x", "1h3"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_dockers() {
        for (text, want) in [
            ("512", DiskSpace::Bytes(512)),
            ("", DiskSpace::Bytes(0)),
            ("1.5k", DiskSpace::Bytes(1536)),
            ("2 MiB", DiskSpace::Bytes(2 << 20)),
            ("7b", DiskSpace::Bytes(7)),
            ("30%", DiskSpace::Percent(30)),
        ] {
            assert_eq!(parse_disk_space(text).unwrap(), want, "{text}");
        }
        for bad in ["x", "-1", "1gi", "1bb", "1kbb", "%", "1e3q"] {
            assert!(parse_disk_space(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_asked_for() {
        let path = Path::new("/nonexistent/buildkitd.toml");
        assert!(load(path, false).is_ok());
        assert!(load(path, true).unwrap_err().to_string().contains("/nonexistent/buildkitd.toml"));
    }
}
