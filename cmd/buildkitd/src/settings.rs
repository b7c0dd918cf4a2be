//! Flags over file over defaults: everything the daemon is told, in one value, with what deserves a warning.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use castor_build::HistoryLimits;
use castor_oci::Platform;
use castor_ops::bridge::FrontendPolicy;

use crate::collector::GcSettings;
use crate::config::{self, Config, Lazy};
use crate::flags::Flags;
use crate::network::Network;

/// What the daemon does, decided.
#[derive(Debug)]
pub struct Settings {
    /// The state directory.
    pub root: PathBuf,
    /// Addresses to listen on.
    pub addresses: Vec<String>,
    /// Address of metrics and dumps.
    pub debug_address: Option<String>,
    /// Logging.
    pub log: LogSettings,
    /// Certificates, when TCP listeners speak TLS.
    pub tls: Option<TlsSettings>,
    /// Owner of unix sockets.
    pub socket_owner: (u32, u32),
    /// Entitlements that builds may ask for.
    pub entitlements: Vec<String>,
    /// Which frontends may run.
    pub frontends: FrontendPolicy,
    /// Name servers for build steps.
    pub dns: config::Dns,
    /// Registries by host.
    pub registries: BTreeMap<String, config::Registry>,
    /// Transfers at once per registry.
    pub registry_concurrency: usize,
    /// The worker.
    pub worker: WorkerSettings,
    /// How many build records are kept, and for how long.
    pub history: HistoryLimits,
    /// Things the user should know: settings without effect, unknown keys.
    pub warnings: Vec<String>,
}

/// How to log.
#[derive(Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// As JSON lines.
    pub json: bool,
    /// Directives of the filter, such as `info`.
    pub level: String,
}

/// Files of a TLS server; clients are asked for certificates when there is a CA.
#[derive(Debug)]
pub struct TlsSettings {
    /// PEM file of the certificate chain.
    pub cert: PathBuf,
    /// PEM file of the key.
    pub key: PathBuf,
    /// PEM file of the CA of clients' certificates.
    pub ca: Option<PathBuf>,
}

/// The OCI worker's settings.
#[derive(Debug)]
pub struct WorkerSettings {
    /// Labels that clients see.
    pub labels: BTreeMap<String, String>,
    /// Platforms to build for, native first.
    pub platforms: Vec<Platform>,
    /// The name BuildKit knows the way of having layers by.
    pub snapshotter: Snapshotter,
    /// Whether lazy layers have to be.
    pub lazy: Lazy,
    /// Mounting mode in place of the probed one.
    pub layer_mode: Option<String>,
    /// What of `[worker.oci.stargzSnapshotter]` means something here.
    pub stargz: StargzSettings,
    /// Network of steps that ask for none in particular.
    pub network: Network,
    /// AppArmor profile of steps.
    pub apparmor_profile: Option<String>,
    /// The container runtime.
    pub binary: Option<String>,
    /// Steps at once.
    pub max_parallelism: Option<usize>,
    /// Parent cgroup of steps.
    pub cgroup_parent: Option<String>,
    /// Garbage collection; `None` when it is off.
    pub gc: Option<GcSettings>,
}

/// The options of BuildKit's stargz snapshotter that castor honours.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StargzSettings {
    /// `allow_no_verification`: a layer may ask to be used unverified.
    pub allow_no_verification: bool,
    /// `disable_verification`: all layers may be used unverified.
    pub disable_verification: bool,
    /// `noprefetch`: what a layer's maker put first is not fetched ahead.
    pub no_prefetch: bool,
    /// `no_background_fetch`: the rest of a layer is not fetched, however much of it was used.
    pub no_background_fetch: bool,
    /// `no_prometheus`: metrics tell of no single layer.
    pub no_prometheus: bool,
    /// `blob.fetching_timeout_sec`: the longest that a read of a lazy layer may wait.
    pub read_deadline: Option<Duration>,
    /// `blob.max_retries`: how often a request to a registry is sent again.
    pub max_retries: Option<u32>,
    /// `blob.min_wait_msec`: the first pause between two attempts.
    pub min_wait: Option<Duration>,
}

/// `--oci-worker-snapshotter`: castor has one store of layers; the name says whether images may be mounted lazily.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshotter {
    /// Layers are mounted before they are here.
    Stargz,
    /// Layers are fetched first.
    Eager(&'static str),
}

impl Snapshotter {
    /// The name as the user gave it, as the worker's label shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stargz => "stargz",
            Self::Eager(name) => name,
        }
    }
}

impl Settings {
    /// Decides; errors name the flag or key they come from.
    pub fn new(flags: Flags) -> Result<Self> {
        let path = flags.config.clone().unwrap_or_else(|| "/etc/buildkit/buildkitd.toml".into());
        let (config, unknown) = config::load(&path, flags.config.is_some())?;
        let mut warnings: Vec<String> =
            unknown.iter().map(|key| format!("unknown key {key} in {}", path.display())).collect();
        warnings.extend(flags.without_effect.given().iter().map(|flag| format!("--{flag} has no effect on castor")));
        if flags.containerd_worker() == Some(true) || config.worker.containerd.enabled == Some(true) {
            bail!("the containerd worker is not available yet: pass --containerd-worker=false");
        }
        match flags.oci_worker.as_deref() {
            None | Some("auto" | "true") if config.worker.oci.enabled != Some(false) => {}
            Some("false") | None | Some("auto" | "true") => bail!("no worker is left: the OCI worker is disabled"),
            Some(other) => bail!("--oci-worker={other}: want auto, true or false"),
        }
        let debug = flags.debug.unwrap_or(config.debug);
        let level = flags.log_level.clone().or_else(|| config.log.level.clone());
        let level = if debug { "debug".to_owned() } else { level.unwrap_or_else(|| "info".into()) };
        let layers_in_log =
            config.worker.oci.stargz_snapshotter.get("debug").and_then(toml::Value::as_bool) == Some(true);
        let json = match flags.log_format.as_deref().or(config.log.format.as_deref()) {
            None | Some("" | "text") => false,
            Some("json") => true,
            Some(other) => bail!("log format {other:?}: want text or json"),
        };
        let addresses = match (flags.addr.is_empty(), config.grpc.address.is_empty()) {
            (false, _) => flags.addr.clone(),
            (true, false) => config.grpc.address.clone(),
            (true, true) => vec!["unix:///run/buildkit/buildkitd.sock".to_owned()],
        };
        let mut frontends = FrontendPolicy::default();
        for (name, frontend) in &config.frontend {
            if !matches!(name.as_str(), "dockerfile.v0" | "gateway.v0") {
                warnings.push(format!("[frontend.{name:?}] has no effect: castor has no such frontend"));
            }
            if frontend.enabled == Some(false) {
                frontends.disabled.push(name.clone());
            }
            for repository in &frontend.allowed_repositories {
                let parsed: castor_oci::Reference = match repository.parse() {
                    Ok(parsed) => parsed,
                    Err(error) => bail!("[frontend.{name:?}] allowedRepositories {repository:?}: {error}"),
                };
                frontends.repositories.push(parsed.repository());
            }
        }
        for (key, value) in [
            ("otel", &config.otel),
            ("cdi", &config.cdi),
            ("trace", &config.trace),
            ("proxyNetwork", &config.proxy_network),
            ("provenanceEnvDir", &config.provenance_env_dir),
        ] {
            if value.is_some() {
                warnings.push(format!("{key} in {} has no effect on castor", path.display()));
            }
        }
        let group = flags.group.as_deref().map(group_id).transpose()?;
        let mut entitlements = flags.allow_insecure_entitlement.clone();
        entitlements.extend(config.insecure_entitlements.iter().cloned());
        for entitlement in &entitlements {
            if !matches!(entitlement.as_str(), "network.host" | "security.insecure" | "device") {
                bail!("unknown entitlement {entitlement:?}: want network.host, security.insecure or device");
            }
        }
        Ok(Self {
            root: flags.root.clone().or(config.root.clone()).unwrap_or_else(|| "/var/lib/buildkit".into()),
            addresses,
            debug_address: flags.debugaddr.clone().or(config.grpc.debug_address.clone()),
            log: LogSettings { json, level: level + if layers_in_log { ",castor_layerfs=debug" } else { "" } },
            tls: tls(&flags, &config)?,
            socket_owner: (config.grpc.uid.unwrap_or(0), group.or(config.grpc.gid).unwrap_or(0)),
            entitlements,
            frontends,
            registry_concurrency: config.system.max_registry_concurrency.unwrap_or(4).max(1),
            worker: worker(&flags, &config, &mut warnings)?,
            history: history(&config.history),
            dns: config.dns,
            registries: config.registry,
            warnings,
        })
    }
}

fn history(file: &config::History) -> HistoryLimits {
    let defaults = HistoryLimits::default();
    HistoryLimits {
        max_age: file.max_age.map_or(defaults.max_age, |age| age.0),
        max_entries: file.max_entries.unwrap_or(defaults.max_entries),
    }
}

fn tls(flags: &Flags, config: &Config) -> Result<Option<TlsSettings>> {
    let file = &config.grpc.tls;
    let cert = flags.tlscert.clone().or(file.cert.clone());
    let key = flags.tlskey.clone().or(file.key.clone());
    let ca = flags.tlscacert.clone().or(file.ca.clone());
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(TlsSettings { cert, key, ca })),
        (None, None) if ca.is_none() => Ok(None),
        (None, _) => bail!("TLS needs a certificate: --tlscert"),
        (_, None) => bail!("TLS needs a key: --tlskey"),
    }
}

fn worker(flags: &Flags, config: &Config, warnings: &mut Vec<String>) -> Result<WorkerSettings> {
    let file = &config.worker.oci;
    let mut labels = file.labels.clone();
    for label in &flags.oci_worker_labels {
        let (key, value) =
            label.split_once('=').with_context(|| format!("--oci-worker-labels {label:?}: want KEY=VALUE"))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    let platforms = if flags.oci_worker_platform.is_empty() { &file.platforms } else { &flags.oci_worker_platform };
    let mut platforms = platforms
        .iter()
        .flat_map(|list| list.split(','))
        .map(|text| text.parse().with_context(|| format!("worker platform {text:?}")))
        .collect::<Result<Vec<Platform>>>()?;
    if platforms.is_empty() {
        let host = Platform::host();
        let others = castor_executor::emulation::ARCHITECTURES.into_iter().filter(|other| *other != host.architecture);
        let emulated = others.filter(|architecture| castor_executor::emulation::can_run(architecture).is_ok());
        let emulated: Vec<Platform> = emulated.map(|architecture| Platform::new("linux", architecture, "")).collect();
        let levels = castor_executor::emulation::levels();
        let levels: Vec<Platform> =
            levels.into_iter().map(|level| Platform::new(&host.os, &host.architecture, level)).collect();
        platforms.push(host);
        platforms.extend(levels);
        platforms.extend(emulated);
    }
    let snapshotter = match flags.oci_worker_snapshotter.as_deref().or(file.snapshotter.as_deref()) {
        Some("stargz") => Snapshotter::Stargz,
        None | Some("" | "auto" | "overlayfs") => Snapshotter::Eager("overlayfs"),
        Some("native") => Snapshotter::Eager("native"),
        Some(other) => bail!("snapshotter {other:?} is not available: want stargz, overlayfs, native or auto"),
    };
    for (set, key) in [
        (file.proxy_snapshotter_path.is_some(), "proxySnapshotterPath"),
        (file.selinux, "selinux"),
        (file.rootless, "rootless"),
        (file.no_process_sandbox, "noProcessSandbox"),
    ] {
        if set {
            warnings.push(format!("[worker.oci] {key} has no effect on castor"));
        }
    }
    Ok(WorkerSettings {
        labels,
        platforms,
        snapshotter,
        lazy: file.lazy.unwrap_or(Lazy::Prefer),
        layer_mode: file.layer_mode.clone(),
        stargz: stargz(&file.stargz_snapshotter, warnings)?,
        network: Network::new(flags, file)?,
        apparmor_profile: flags.oci_worker_apparmor_profile.clone().or(file.apparmor_profile.clone()),
        binary: flags.oci_worker_binary.clone().or(file.binary.clone()),
        max_parallelism: flags.oci_max_parallelism.or(file.max_parallelism).filter(|&steps| steps > 0),
        cgroup_parent: file.default_cgroup_parent.clone(),
        gc: gc(flags, file)?,
    })
}

/// Takes out of `[worker.oci.stargzSnapshotter]` what means something here; the rest is named.
fn stargz(table: &toml::Table, warnings: &mut Vec<String>) -> Result<StargzSettings> {
    let mut settings = StargzSettings::default();
    let mut without_effect = Vec::new();
    for (key, value) in table {
        let flag =
            || value.as_bool().with_context(|| format!("[worker.oci.stargzSnapshotter] {key}: want true or false"));
        match key.as_str() {
            "allow_no_verification" => settings.allow_no_verification = flag()?,
            "disable_verification" => settings.disable_verification = flag()?,
            "noprefetch" => settings.no_prefetch = flag()?,
            "no_background_fetch" => settings.no_background_fetch = flag()?,
            "no_prometheus" => settings.no_prometheus = flag()?,
            // Read where the log is set up.
            "debug" => {
                flag()?;
            }
            "blob" => {
                for (key, value) in value.as_table().context("[worker.oci.stargzSnapshotter] blob: want a table")? {
                    let number = || {
                        let number = value.as_integer().and_then(|number| u32::try_from(number).ok());
                        let wanted =
                            || format!("[worker.oci.stargzSnapshotter.blob] {key}: want a number, not negative");
                        number.with_context(wanted)
                    };
                    match key.as_str() {
                        "fetching_timeout_sec" => {
                            let seconds = u64::from(number()?);
                            settings.read_deadline = (seconds > 0).then(|| Duration::from_secs(seconds));
                        }
                        "max_retries" => settings.max_retries = Some(number()?),
                        "min_wait_msec" => settings.min_wait = Some(Duration::from_millis(number()?.into())),
                        _ => without_effect.push(format!("blob.{key}")),
                    }
                }
            }
            _ => without_effect.push(key.clone()),
        }
    }
    if !without_effect.is_empty() {
        let keys = without_effect.join(", ");
        warnings.push(format!("[worker.oci.stargzSnapshotter] has keys of no effect on castor: {keys}"));
    }
    Ok(settings)
}

fn gc(flags: &Flags, file: &config::OciWorker) -> Result<Option<GcSettings>> {
    if !flags.oci_worker_gc.or(file.gc).unwrap_or(true) {
        return Ok(None);
    }
    GcSettings::new(file, flags.oci_worker_gc_keepstorage.as_deref()).map(Some)
}

fn group_id(name: &str) -> Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let group = nix::unistd::Group::from_name(name).with_context(|| format!("look up group {name:?}"))?;
    Ok(group.with_context(|| format!("--group {name:?}: no such group"))?.gid.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_stargz_snapshotter_are_honoured_or_named() {
        let table: toml::Table = r#"
            allow_no_verification = true
            noprefetch = true
            no_background_fetch = true
            debug = true
            max_concurrency = 4
            [blob]
            fetching_timeout_sec = 7
            max_retries = 2
            min_wait_msec = 30
            chunk_size = 50000
            [fuse]
            passthrough = true
            "#
        .parse()
        .unwrap();
        let mut warnings = Vec::new();
        let settings = stargz(&table, &mut warnings).unwrap();
        let expected = StargzSettings {
            allow_no_verification: true,
            no_prefetch: true,
            no_background_fetch: true,
            read_deadline: Some(Duration::from_secs(7)),
            max_retries: Some(2),
            min_wait: Some(Duration::from_millis(30)),
            ..StargzSettings::default()
        };
        assert_eq!(settings, expected);
        let named =
            "[worker.oci.stargzSnapshotter] has keys of no effect on castor: blob.chunk_size, fuse, max_concurrency";
        assert_eq!(warnings, [named]);
        for wrong in ["disable_verification = 1", "blob = 3", "[blob]\nfetching_timeout_sec = -1", "debug = \"x\""] {
            let error = stargz(&wrong.parse().unwrap(), &mut Vec::new()).unwrap_err();
            assert!(error.to_string().starts_with("[worker.oci.stargzSnapshotter"), "{error}");
        }
        // Zero is BuildKit's way to say: as it is by default.
        let zero = "[blob]\nfetching_timeout_sec = 0".parse().unwrap();
        assert_eq!(stargz(&zero, &mut Vec::new()).unwrap(), StargzSettings::default());
    }
    use clap::Parser;

    fn settings(arguments: &[&str]) -> Result<Settings> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        let arguments = ["buildkitd", "--config", &path].into_iter().chain(arguments.iter().copied());
        Settings::new(Flags::try_parse_from(arguments).unwrap())
    }

    #[test]
    fn defaults_are_buildkits() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.addresses, ["unix:///run/buildkit/buildkitd.sock"]);
        assert_eq!(settings.root, PathBuf::from("/var/lib/buildkit"));
        assert_eq!(settings.worker.snapshotter, Snapshotter::Eager("overlayfs"));
        assert!(settings.worker.gc.is_some());
        assert!(settings.warnings.is_empty());
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        for (arguments, word) in [
            (&["--oci-worker-snapshotter=zfs"][..], "zfs"),
            (&["--containerd-worker=true"], "containerd"),
            (&["--oci-worker=false"], "no worker"),
            (&["--log-format=xml"], "xml"),
            (&["--tlscert=/x"], "--tlskey"),
            (&["--oci-worker-labels=a"], "KEY=VALUE"),
            (&["--oci-worker-platform=plan9/"], "plan9/"),
            (&["--allow-insecure-entitlement=all"], "all"),
            (&["--oci-worker-gc-keepstorage=a"], "keepstorage"),
            (&["--oci-worker-net=vpn"], "vpn"),
        ] {
            let error = format!("{:#}", settings(arguments).unwrap_err());
            assert!(error.contains(word), "{arguments:?}: {error}");
        }
    }
}
