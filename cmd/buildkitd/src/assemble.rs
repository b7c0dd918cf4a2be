//! The daemon's parts, put together from settings: each crate's configuration is made here and nowhere else.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use castor_blobs::Blobs;
use castor_build::{Daemon, History, Parts, Traces};
use castor_content::Local;
use castor_executor::{Dns, Runc, SandboxNetwork};
use castor_layerfs::{LayerEngine, Lazy, Verification};
use castor_metadb::{Db, KeyValue};
use castor_ops::bridge::WorkerInfo;
use castor_ops::{Passing, RegistryOpeners, Worker, WorkerConfig};
use castor_registry::Client;
use castor_session::Sessions;
use castor_snapshot::{LocalDiffer, LocalSnapshotter};
use castor_solver::{Solver, SolverOptions};
use castor_store::{DiskSpace, GcPolicy, Store, StoreConfig};
use castor_task::Scope;

use crate::collector::GcSettings;
use crate::config;
use crate::network::Network;
use crate::otlp::Collector;
use crate::settings::{Settings, Snapshotter, WorkerSettings};

/// Version of the state directory. Newer ones are refused by the database; older ones are migrated there.
const FORMAT: u32 = 1;
/// castor's directory in the state directory.
const STATE: &str = "castor";
/// The worker's identity, kept so that clients know it again.
const WORKER_ID: &str = "workerid";

/// The first argument of the process that serves image trees: it is for this daemon to say, not for people.
pub const SERVE_TREES: &str = "serve-image-trees";

/// What was put together.
pub struct Assembled {
    /// What builds.
    pub daemon: Arc<Daemon>,
    /// Layer objects, for what is shown of them and for an ordered end.
    pub engine: Arc<LayerEngine>,
    /// What runs steps, for an ordered end.
    pub executor: Arc<Runc>,
    /// The database, closed last.
    pub db: Arc<Db>,
}

/// Puts a daemon together from its state directory; no network is needed.
pub async fn daemon(settings: &Settings, scope: &Scope) -> Result<Assembled> {
    let state = settings.root.join(STATE);
    create(&state)?;
    let db = Arc::new(open_database(state.join("state.redb")).await?);
    let keys: Arc<dyn KeyValue> = db.clone();

    let content = Arc::new(Local::open(&state.join("content"), keys.clone()).await.context("open content store")?);
    let engine = LayerEngine::open(layer_config(&settings.worker, &state)?, content.clone(), scope)
        .await
        .context("open layer objects")?;
    let snapshots = LocalSnapshotter::open(state.join("snapshots"), keys.clone(), engine.clone(), scope)
        .await
        .context("open snapshots")?;

    let registry = Client::new(registry_config(settings)).context("read registry configuration")?;
    let sessions = Sessions::new(scope.child("sessions"));
    let store = Store::open(StoreConfig {
        root: state.clone(),
        db: keys.clone(),
        engine: engine.clone(),
        snapshotter: snapshots.clone(),
        differ: Arc::new(LocalDiffer::new(snapshots)),
        content: content.clone(),
        leases: content,
        openers: Arc::new(RegistryOpeners::new(registry.clone(), sessions.clone())),
        scope: scope.child("store"),
    })
    .await
    .context("open store")?;

    let executor = executor(settings, &state).await?;
    let passing = state.join("passing");
    let passing =
        castor_task::blocking(move || Passing::open(passing)).await.context("empty the directory of sockets")?;
    let solver =
        Solver::new(SolverOptions { scope: scope.child("solver"), keys: store.keys(), results: store.results() });
    let ops = Worker::new(WorkerConfig {
        store: store.clone(),
        executor: executor.clone(),
        registry: registry.clone(),
        sessions: sessions.clone(),
        db: keys,
        parallelism: settings.worker.max_parallelism,
        platforms: settings.worker.platforms.clone(),
        lazy: lazy(&settings.worker),
        frontends: settings.frontends.clone(),
        passing,
        scope: scope.child("ops"),
    });
    let history = History::new(db.clone(), store.content().clone(), store.leases().clone(), settings.history);
    history.recover().await.context("open build records")?;
    let collector = Collector::from_env()?.map(|collector| collector.start(scope)).transpose()?;
    let parts = Parts {
        blobs: Blobs::new(store.clone(), &scope.child("blobs")),
        store,
        registry,
        sessions,
        ops,
        history,
        traces: Traces::new(collector),
        worker: worker_info(settings, &state, &engine)?,
        allowed: settings.entitlements.iter().cloned().collect(),
        policies: policies(settings.worker.gc.as_ref(), &state)?,
    };
    let daemon = Daemon::new(parts, solver, scope.child("daemon"));
    Ok(Assembled { daemon, engine, executor, db })
}

fn create(directory: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("create {}", directory.display()))
}

async fn open_database(path: PathBuf) -> Result<Db> {
    let opening = path.clone();
    castor_task::blocking(move || Db::open(&opening, FORMAT))
        .await
        .with_context(|| format!("open database {}", path.display()))
}

fn layer_config(worker: &WorkerSettings, state: &Path) -> Result<castor_layerfs::Config> {
    let mut config = castor_layerfs::Config::new(state.join("layers"));
    if let Some(mode) = &worker.layer_mode
        && mode != "auto"
    {
        config.mode = Some(mode.parse().map_err(anyhow::Error::msg).context("[worker.oci] layerMode")?);
    }
    config.server = Some(castor_layerfs::ServerProgram {
        // This very program, also where its file was replaced meanwhile.
        path: "/proc/self/exe".into(),
        name: "buildkitd".into(),
        arguments: vec![SERVE_TREES.into()],
    });
    let stargz = &worker.stargz;
    config.verification = match (stargz.disable_verification, stargz.allow_no_verification) {
        (true, _) => Verification::Off,
        (false, true) => Verification::Waivable,
        (false, false) => Verification::Required,
    };
    config.prefetch = !stargz.no_prefetch;
    config.background = !stargz.no_background_fetch;
    config.read_deadline = stargz.read_deadline.unwrap_or(config.read_deadline);
    Ok(config)
}

fn lazy(worker: &WorkerSettings) -> Lazy {
    match (worker.snapshotter, worker.lazy) {
        (Snapshotter::Eager(_), _) => Lazy::Never,
        (Snapshotter::Stargz, config::Lazy::Prefer) => Lazy::Prefer,
        (Snapshotter::Stargz, config::Lazy::Require) => Lazy::Require,
    }
}

fn registry_config(settings: &Settings) -> castor_registry::Config {
    let host = |registry: &config::Registry| castor_registry::HostConfig {
        mirrors: registry.mirrors.clone(),
        http: registry.http,
        insecure: registry.insecure,
        ca: registry.ca.clone(),
        keypairs: registry
            .keypair
            .iter()
            .map(|pair| castor_registry::KeyPair { key: pair.key.clone(), cert: pair.cert.clone() })
            .collect(),
        tls_config_dirs: registry.tlsconfigdir.clone(),
    };
    let (stargz, default) = (&settings.worker.stargz, castor_registry::Config::default());
    castor_registry::Config {
        hosts: settings.registries.iter().map(|(name, registry)| (name.clone(), host(registry))).collect(),
        max_concurrency: settings.registry_concurrency,
        max_attempts: stargz.max_retries.map_or(default.max_attempts, |retries| retries.saturating_add(1)),
        backoff: stargz.min_wait.unwrap_or(default.backoff),
        ..default
    }
}

async fn executor(settings: &Settings, state: &Path) -> Result<Arc<Runc>> {
    let cni = match &settings.worker.network {
        Network::Cni(cni) => Some(cni.clone()),
        Network::Host { fallback } => {
            if *fallback {
                tracing::warn!("steps share the host's network: no other provider is configured");
            }
            None
        }
    };
    let config = castor_executor::Config {
        root: state.join("executor"),
        binary: settings.worker.binary.as_ref().map(PathBuf::from),
        sandbox_network: if cni.is_some() { SandboxNetwork::Cni } else { SandboxNetwork::Host },
        cni,
        dns: Dns {
            nameservers: settings.dns.nameservers.clone(),
            options: settings.dns.options.clone(),
            search_domains: settings.dns.search_domains.clone(),
        },
        cgroup_parent: settings.worker.cgroup_parent.clone().unwrap_or_default(),
        apparmor_profile: settings.worker.apparmor_profile.clone().unwrap_or_default(),
    };
    castor_task::blocking(castor_executor::prepare_cgroups).await;
    let runc = castor_task::blocking(move || Runc::new(config)).await.context("set up the container runtime")?;
    runc.recover().await.context("remove what a killed daemon left")?;
    Ok(Arc::new(runc))
}

fn worker_info(settings: &Settings, state: &Path, engine: &LayerEngine) -> Result<WorkerInfo> {
    const PREFIX: &str = "org.mobyproject.buildkit.worker.";
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut labels: BTreeMap<String, String> = [
        ("executor", "oci"),
        ("hostname", hostname.trim()),
        ("network", settings.worker.network.label()),
        ("oci.process-mode", "sandbox"),
        ("selinux.enabled", "false"),
        ("snapshotter", settings.worker.snapshotter.name()),
    ]
    .into_iter()
    .map(|(name, value)| (format!("{PREFIX}{name}"), value.to_owned()))
    .collect();
    let modes = engine.modes();
    labels.insert("castor.layers.complete".into(), modes.complete_text());
    labels.insert("castor.layers.lazy".into(), modes.lazy_text());
    labels.extend(settings.worker.labels.clone());
    Ok(WorkerInfo { id: worker_id(state)?, labels, platforms: settings.worker.platforms.clone() })
}

/// The worker's id, made the first time.
fn worker_id(state: &Path) -> Result<String> {
    let path = state.join(WORKER_ID);
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    }
    let id = castor_ops::random_id();
    std::fs::write(&path, &id).with_context(|| format!("write {}", path.display()))?;
    Ok(id)
}

/// The collector's rules: those of the configuration, or BuildKit's for this disk. None where it is off.
fn policies(settings: Option<&GcSettings>, state: &Path) -> Result<Vec<GcPolicy>> {
    let Some(settings) = settings else { return Ok(Vec::new()) };
    let disk = DiskSpace::of(state).context("measure the disk of the state directory")?;
    settings.policies(disk)
}
