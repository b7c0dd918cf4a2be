//! What a client asks of the frontend.

use std::collections::BTreeMap;

use castor_llb::op::{HostIp, NetMode, Ulimit};
use castor_llb::{Definition, LinuxResources, ResolveMode};
use castor_oci::Platform;

use crate::gofmt::{csv, parse_bool, parse_int, parse_uint, quote};
use crate::lint::LintConfig;
use crate::{platform, quantity};

/// The frontend's options, read from its attributes.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Path of the Dockerfile.
    pub filename: String,
    /// The stage to build; empty is the last.
    pub target: String,
    /// Build arguments.
    pub build_args: BTreeMap<String, String>,
    /// Labels for the image.
    pub labels: BTreeMap<String, String>,
    /// Platforms to build for; empty is the build platform's own.
    pub platforms: Vec<Platform>,
    /// Whether the result is a map by platform.
    pub multi_platform: bool,
    /// Stages not to take from the cache: `None` none, empty all.
    pub no_cache: Option<Vec<String>>,
    /// More lines for `/etc/hosts`.
    pub extra_hosts: Vec<HostIp>,
    /// Host name of processes.
    pub hostname: String,
    /// Network of processes.
    pub network: NetMode,
    /// Parent of the control groups.
    pub cgroup_parent: String,
    /// Size of `/dev/shm`; 0 is the default.
    pub shm_size: i64,
    /// Resource limits of processes.
    pub ulimits: Vec<Ulimit>,
    /// CPU and memory limits of processes.
    pub linux_resources: Option<LinuxResources>,
    /// When to ask registries.
    pub resolve_mode: ResolveMode,
    /// Prefix of cache mounts' names.
    pub cache_namespace: String,
    /// What replaces the file's own `check` directive.
    pub lint: Option<LintConfig>,
    /// Caches to import.
    pub cache_imports: Vec<CacheImport>,
    /// Name of the local directory that is the main context.
    pub context_name: String,
    /// What the main context is, if not a local directory: a URL.
    pub context_url: String,
    /// What the URL leads to, if it is one of a web server: [`http_context`](crate::http_context) says how to find out.
    pub http_context: Option<HttpContext>,
    /// Name of the local directory with the Dockerfile.
    pub dockerfile_name: String,
    /// Whether the Dockerfile comes from that directory whatever the context is.
    pub force_local_dockerfile: bool,
    /// Part of the context to use.
    pub context_subdir: Option<String>,
    /// Keep `.git` of a git context.
    pub keep_git_dir: Option<bool>,
    /// Named contexts, by `name` or `name::platform`.
    pub contexts: BTreeMap<String, String>,
    /// What named contexts share transfers by.
    pub shared_keys: BTreeMap<String, String>,
    /// Metadata of inputs, JSON.
    pub input_metadata: BTreeMap<String, String>,
    /// Inputs that come as definitions.
    pub inputs: BTreeMap<String, Definition>,
    /// The session of the client.
    pub session: String,
    /// Sessions of local directories, where others.
    pub local_sessions: BTreeMap<String, String>,
    /// What external frontend this runs for, if any.
    pub cmdline: Option<String>,
    /// A subrequest instead of a build.
    pub request_id: Option<String>,
    /// Attributes of the bill of materials, if one is wanted.
    pub sbom: Option<Vec<(String, String)>>,
}

/// A cache to import.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
pub struct CacheImport {
    /// Its kind, such as `registry`.
    #[serde(rename = "Type", alias = "type", default)]
    pub kind: String,
    /// Where it is.
    #[serde(rename = "Attrs", alias = "attrs", default)]
    pub attrs: BTreeMap<String, String>,
}

/// What a web server has under the URL of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpContext {
    /// An archive with the files of the context.
    Archive,
    /// A Dockerfile, which is all there is.
    File,
}

/// Why options are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// BuildKit's words.
    #[error("{0}")]
    Invalid(String),
    /// Something that castor does not do yet.
    #[error("{0} is not supported by castor yet")]
    Unsupported(String),
    /// A capability that the frontend does not have.
    #[error("unsupported frontend capability {0}")]
    FrontendCap(String),
}

fn invalid(message: impl Into<String>) -> OptionsError {
    OptionsError::Invalid(message.into())
}

/// Checks the value of `frontend.caps`. `Ok(Some(…))` is an error too unless the build is forwarded to another
/// frontend.
pub fn frontend_caps(list: &str) -> Result<Option<OptionsError>, OptionsError> {
    const HAVE: [&str; 4] = [
        "moby.buildkit.frontend.inputs",
        "moby.buildkit.frontend.subrequests",
        "moby.buildkit.frontend.contexts",
        "moby.buildkit.frontend.gitquerystring",
    ];
    let mut missing = None;
    for cap in list.split(',').filter(|cap| !cap.is_empty()) {
        let (name, flag) = cap.split_once('+').unwrap_or((cap, ""));
        if HAVE.contains(&name) {
            continue;
        }
        let error = OptionsError::FrontendCap(name.to_owned());
        if flag != "forward" {
            return Err(error);
        }
        missing = Some(error);
    }
    Ok(missing)
}

impl Options {
    /// Reads attributes. `session` is the client's, `inputs` are definitions that came along.
    pub fn from_attrs(
        attrs: &BTreeMap<String, String>,
        session: &str,
        inputs: BTreeMap<String, Definition>,
    ) -> Result<Self, OptionsError> {
        let text = |key: &str| attrs.get(key).cloned().unwrap_or_default();
        let prefixed = |prefix: &str| -> BTreeMap<String, String> {
            let strip = |(key, value): (&String, &String)| {
                key.strip_prefix(prefix).map(|name| (name.to_owned(), value.clone()))
            };
            attrs.iter().filter_map(strip).collect()
        };
        if !text("override-copy-image").is_empty() {
            return Err(invalid("support for \"override-copy-image\" was removed in BuildKit 0.11"));
        }
        if parse_bool(&text("build-arg:BUILDKIT_DISABLE_FILEOP")) == Some(true) {
            return Err(invalid("support for \"BUILDKIT_DISABLE_FILEOP\" build-arg was removed in BuildKit 0.11"));
        }
        let platforms = parse_platforms(&text("platform"))?;
        let resolve_mode = text("image-resolve-mode");
        let resolve_mode = ResolveMode::parse(&resolve_mode)
            .ok_or_else(|| invalid(format!("invalid image-resolve-mode: {resolve_mode}")))?;
        let within = |what: &str, error: String| invalid(format!("failed to parse {what}: {error}"));
        let extra_hosts = parse_hosts(&text("add-hosts")).map_err(|error| within("additional hosts", error))?;
        let shm_size = match text("shm-size") {
            size if size.is_empty() => 0,
            size => parse_int(&size, 64).map_err(|error| within("shm size", error))?,
        };
        let ulimits = parse_list(&text("ulimit"), quantity::ulimit).map_err(|error| within("ulimit", error))?;
        let linux_resources = parse_resources(attrs).map_err(|error| within("resource limits", error))?;
        let network = parse_network(&text("force-network-mode"))?;
        let no_cache = attrs.get("no-cache").map(|stages| match stages.as_str() {
            "" => Vec::new(),
            stages => stages.split(',').map(str::to_owned).collect(),
        });
        let wanted = match text("build-arg:BUILDKIT_MULTI_PLATFORM") {
            wanted if wanted.is_empty() => text("multi-platform"),
            wanted => wanted,
        };
        let multi_platform = parse_multi_platform(&wanted, platforms.len())?;
        let cache_imports = parse_cache_imports(&text("cache-imports"), &text("cache-from"))?;
        let sbom = read_attestations(attrs)?;
        let hostname = match text("build-arg:BUILDKIT_SANDBOX_HOSTNAME") {
            hostname if hostname.is_empty() => text("hostname"),
            hostname => hostname,
        };
        let lint =
            match attrs.get("build-arg:BUILDKIT_DOCKERFILE_CHECK") {
                None => None,
                Some(check) => Some(LintConfig::parse(check).map_err(|error| {
                    invalid(format!("failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK: {error}"))
                })?),
            };
        let context_key = attrs.get("contextkey").cloned().unwrap_or_else(|| "context".into());
        Ok(Self {
            filename: attrs.get("filename").cloned().unwrap_or_else(|| "Dockerfile".into()),
            target: text("target"),
            build_args: prefixed("build-arg:"),
            labels: prefixed("label:"),
            platforms,
            multi_platform,
            no_cache,
            extra_hosts,
            hostname,
            network,
            cgroup_parent: text("cgroup-parent"),
            shm_size,
            ulimits,
            linux_resources,
            resolve_mode,
            cache_namespace: text("build-arg:BUILDKIT_CACHE_MOUNT_NS"),
            lint,
            cache_imports,
            context_name: "context".into(),
            context_url: text(&context_key),
            http_context: None,
            dockerfile_name: attrs.get("dockerfilekey").cloned().unwrap_or_else(|| "dockerfile".into()),
            force_local_dockerfile: attrs.contains_key("dockerfilekey"),
            context_subdir: attrs.get("contextsubdir").cloned(),
            keep_git_dir: parse_bool(&text("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR")),
            contexts: prefixed("context:"),
            shared_keys: prefixed("sharedkey:localdir:"),
            input_metadata: prefixed("input-metadata:"),
            inputs,
            session: session.to_owned(),
            local_sessions: prefixed("local-sessionid:"),
            cmdline: attrs.get("cmdline").cloned(),
            request_id: attrs.get("requestid").cloned(),
            sbom,
        })
    }

    /// The session that serves a local directory.
    pub fn session_of(&self, local: &str) -> &str {
        self.local_sessions.get(local).unwrap_or(&self.session)
    }

    /// Whether a stage is not to be taken from the cache.
    pub fn is_no_cache(&self, stage: &str) -> bool {
        match &self.no_cache {
            None => false,
            Some(stages) if stages.is_empty() => true,
            Some(stages) => stages.iter().any(|name| name.to_lowercase() == stage.to_lowercase()),
        }
    }
}

fn parse_platforms(list: &str) -> Result<Vec<Platform>, OptionsError> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    list.split(',')
        .map(|text| match platform::parse(text) {
            Ok(platform) => Ok(platform::normalize(&platform)),
            Err(error) => Err(invalid(format!("failed to parse target platform {text}: {error}"))),
        })
        .collect()
}

fn parse_list<T>(list: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    csv(list)?.iter().map(|field| parse(field)).collect()
}

fn parse_hosts(list: &str) -> Result<Vec<HostIp>, String> {
    parse_list(list, |field| {
        let lower = field.to_lowercase();
        let (host, ip) = lower.split_once('=').ok_or_else(|| format!("invalid key-value pair {field}"))?;
        let parsed: std::net::IpAddr = ip.parse().map_err(|_| format!("failed to parse IP {ip}"))?;
        // Go writes IPv4 in IPv6 as IPv4.
        Ok(HostIp { host: host.to_owned(), ip: parsed.to_canonical().to_string() })
    })
}

fn parse_network(mode: &str) -> Result<NetMode, OptionsError> {
    match mode {
        "" | "sandbox" => Ok(NetMode::Unset),
        "none" => Ok(NetMode::None),
        "host" => Ok(NetMode::Host),
        mode => Err(invalid(format!("invalid netmode {mode}"))),
    }
}

fn parse_multi_platform(wanted: &str, platforms: usize) -> Result<bool, OptionsError> {
    if wanted.is_empty() {
        return Ok(platforms > 1);
    }
    let wanted =
        parse_bool(wanted).ok_or_else(|| invalid(format!("invalid boolean value for multi-platform: {wanted}")))?;
    if !wanted && platforms > 1 {
        return Err(invalid("conflicting config: returning multiple target platforms is not allowed"));
    }
    Ok(wanted)
}

fn parse_cache_imports(list: &str, references: &str) -> Result<Vec<CacheImport>, OptionsError> {
    let mut imports = Vec::new();
    if !list.is_empty() {
        let entries: Vec<CacheImport> = serde_json::from_str(list)
            .map_err(|error| invalid(format!("failed to unmarshal cache-imports ({}): {error}", quote(list))))?;
        imports.extend(entries);
    }
    if !references.is_empty() {
        imports.extend(references.split(',').map(|reference| CacheImport {
            kind: "registry".to_owned(),
            attrs: BTreeMap::from([("ref".to_owned(), reference.to_owned())]),
        }));
    }
    Ok(imports)
}

/// What is wanted of a scanner, if anything. Provenance is the daemon's business.
fn read_attestations(attrs: &BTreeMap<String, String>) -> Result<Option<Vec<(String, String)>>, OptionsError> {
    let mut sbom = None;
    for (key, value) in attrs {
        let Some(kind) = key.strip_prefix("attest:").or_else(|| key.strip_prefix("build-arg:BUILDKIT_ATTEST_")) else {
            continue;
        };
        match kind.to_lowercase().as_str() {
            "provenance" => {}
            "sbom" if value.is_empty() => sbom = Some(Vec::new()),
            "sbom" => {
                let fields = csv(value).map_err(|error| invalid(format!("failed to parse sbom: {error}")))?;
                let split = |field: &String| {
                    let (key, value) = field.split_once('=').unwrap_or((field, ""));
                    (key.to_owned(), value.to_owned())
                };
                sbom = Some(fields.iter().map(split).collect());
            }
            kind => return Err(invalid(format!("unknown attestation type {}", quote(kind)))),
        }
    }
    Ok(sbom)
}

fn parse_resources(attrs: &BTreeMap<String, String>) -> Result<Option<LinuxResources>, String> {
    let signed = |key: &str, legal: &dyn Fn(i64) -> bool, want: &str| match attrs.get(key) {
        Some(text) if !text.is_empty() => {
            let value = parse_int(text, 64).map_err(|error| format!("invalid {key} value: {text}: {error}"))?;
            if legal(value) { Ok(value) } else { Err(format!("invalid {key} value: {text}: must be {want}")) }
        }
        _ => Ok(0),
    };
    let unsigned = |key: &str| match attrs.get(key) {
        Some(text) if !text.is_empty() => {
            match parse_uint(text).map_err(|error| format!("invalid {key} value: {text}: {error}"))? {
                0 => Err(format!("invalid {key} value: {text}: must be > 0")),
                value => Ok(value),
            }
        }
        _ => Ok(0),
    };
    let set = |key: &str| match attrs.get(key) {
        Some(text) if !text.is_empty() => {
            check_cpu_set(text).map_err(|error| format!("invalid {key} value: {text}: {error}"))?;
            Ok::<String, String>(text.clone())
        }
        _ => Ok(String::new()),
    };
    let limits = LinuxResources {
        memory: signed("memory", &|value| value > 0, "> 0")?,
        memory_swap: signed("memswap", &|value| value == -1 || value > 0, "-1 (unlimited) or > 0")?,
        cpu_shares: unsigned("cpushares")?,
        cpu_period: unsigned("cpuperiod")?,
        cpu_quota: signed("cpuquota", &|value| value > 0, "> 0")?,
        cpuset_cpus: set("cpusetcpus")?,
        cpuset_mems: set("cpusetmems")?,
    };
    Ok((limits != LinuxResources::default()).then_some(limits))
}

/// Checks a list such as `0-3,5`.
fn check_cpu_set(text: &str) -> Result<(), String> {
    const MAX: i64 = 8192;
    let number = |text: &str| text.trim().parse::<i64>().ok().filter(|number| *number >= 0);
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.split_once('-') {
            None => match number(part) {
                None => return Err(format!("invalid cpuset element {}", quote(part))),
                Some(n) if n > MAX => {
                    return Err(format!("cpuset element {} exceeds maximum {MAX}", quote(part)));
                }
                Some(_) => {}
            },
            Some((low, high)) => match (number(low), number(high)) {
                (Some(low), Some(high)) if low <= high && high <= MAX => {}
                (Some(low), Some(high)) if low <= high => {
                    return Err(format!("cpuset range {} exceeds maximum {MAX}", quote(part)));
                }
                _ => return Err(format!("invalid cpuset range {}", quote(part))),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[(&str, &str)]) -> Result<Options, OptionsError> {
        let attrs = list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Options::from_attrs(&attrs, "session", BTreeMap::new())
    }

    #[test]
    fn refuses_with_buildkits_words() {
        for (key, value, want) in [
            ("add-hosts", "zzz", "failed to parse additional hosts: invalid key-value pair zzz"),
            ("force-network-mode", "zzz", "invalid netmode zzz"),
            (
                "platform",
                "wat/is/this/x",
                "failed to parse target platform wat/is/this/x: \"wat/is/this/x\": cannot parse platform specifier: \
                 invalid argument",
            ),
            ("shm-size", "-5x", "failed to parse shm size: strconv.ParseInt: parsing \"-5x\": invalid syntax"),
            ("memory", "0", "failed to parse resource limits: invalid memory value: 0: must be > 0"),
            ("attest:vibes", "", "unknown attestation type \"vibes\""),
            (
                "attest:sbom",
                "\"x",
                "failed to parse sbom: parse error on line 1, column 2: extraneous or missing \" in quoted-field",
            ),
        ] {
            assert_eq!(options(&[(key, value)]).unwrap_err().to_string(), want);
        }
        assert!(options(&[("platform", "linux/amd64,linux/arm64"), ("multi-platform", "false")]).is_err());
    }

    #[test]
    fn reads_what_clients_send() {
        let read = options(&[
            ("build-arg:A", "1"),
            ("label:b", "2"),
            ("no-cache", ""),
            ("add-hosts", "H=127.0.0.1,x=::1"),
            ("ulimit", "nofile=1:2"),
            ("context:x", "docker-image://y"),
            ("cache-from", "a,b"),
            ("attest:sbom", "generator=x,\"STAGES=a,b\""),
        ])
        .unwrap();
        assert_eq!(read.sbom, Some(vec![("generator".into(), "x".into()), ("STAGES".into(), "a,b".into())]));
        assert_eq!(read.build_args["A"], "1");
        assert_eq!(read.extra_hosts[1].ip, "::1");
        assert!(read.is_no_cache("any"));
        assert_eq!(read.cache_imports.len(), 2);
        assert_eq!(read.contexts["x"], "docker-image://y");
        let some = options(&[("no-cache", "a,B")]).unwrap();
        assert!(some.is_no_cache("b") && !some.is_no_cache("c"));
    }

    #[test]
    fn unknown_frontend_capabilities_are_errors_unless_forwarded() {
        assert!(frontend_caps("moby.buildkit.frontend.contexts+forward").unwrap().is_none());
        assert!(frontend_caps("x").is_err());
        assert!(frontend_caps("x+forward").unwrap().is_some());
    }
}
