//! What a store stands on, all of it real: content, layers, snapshots and a registry's client, in a directory of its own.
//! The tests of `ops` stand on it too.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use castor_content::Local;
use castor_layerfs::{Config, LayerEngine};
use castor_metadb::{KeyValue, Memory};
use castor_progress::Reporter;
use castor_registry::Client;
use castor_snapshot::{LocalDiffer, LocalSnapshotter};
use castor_solver::Cx;
use castor_store::{ImmutableRef, Openers, Store, StoreConfig};
use castor_task::{CancellationToken, Scope};
use tempfile::TempDir;

/// How long something that must happen is waited for, on a machine with other things to do.
pub const PATIENCE: Duration = Duration::from_secs(300);

pub struct Ground {
    pub db: Arc<dyn KeyValue>,
    pub dir: Arc<TempDir>,
    pub content: Arc<Local>,
    pub engine: Arc<LayerEngine>,
    pub snapshots: Arc<LocalSnapshotter>,
    pub scope: Scope,
}

impl Ground {
    pub async fn new() -> Self {
        Self::over(Arc::new(Memory::new()), Arc::new(tempfile::tempdir().unwrap())).await
    }

    /// On what another one left.
    pub async fn over(db: Arc<dyn KeyValue>, dir: Arc<TempDir>) -> Self {
        let root = dir.path();
        let scope = Scope::root("lab");
        let content = Arc::new(Local::open(&root.join("content"), db.clone()).await.unwrap());
        let engine = LayerEngine::open(Config::new(root.join("layers")), content.clone(), &scope).await.unwrap();
        let snapshots =
            LocalSnapshotter::open(root.join("snapshots"), db.clone(), engine.clone(), &scope).await.unwrap();
        Self { db, dir, content, engine, snapshots, scope }
    }

    /// A client that asks once.
    pub fn registry() -> Client {
        let config = castor_registry::Config { max_attempts: 1, ..castor_registry::Config::default() };
        Client::new(config).unwrap()
    }

    pub async fn store(&self, openers: Arc<dyn Openers>) -> Store {
        let config = StoreConfig {
            root: self.dir.path().join("store"),
            db: self.db.clone(),
            engine: self.engine.clone(),
            snapshotter: self.snapshots.clone(),
            differ: Arc::new(LocalDiffer::new(self.snapshots.clone())),
            content: self.content.clone(),
            leases: self.content.clone(),
            openers,
            scope: self.scope.child("store"),
        };
        Store::open(config).await.unwrap()
    }

    /// Ends it once its users have gone, and waits until nothing is mounted any more.
    pub async fn close(self) {
        let root = self.dir.path().to_owned();
        self.engine.shutdown().await;
        self.scope.close(PATIENCE).await.unwrap();
        let mounted = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(root.to_str().unwrap());
        // Unmounting ends after the last user has gone.
        let end = Instant::now() + PATIENCE;
        while mounted() {
            assert!(Instant::now() < end, "left mounted below {}", root.display());
            castor_task::blocking(std::thread::yield_now).await;
        }
    }
}

pub fn cx() -> Cx {
    Cx::standalone(CancellationToken::new(), Reporter::discard(), Vec::new())
}

/// The files of a result and their texts.
pub async fn files(of: &ImmutableRef) -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, out: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, out);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                out.insert(name, String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned());
            }
        }
    }
    let mounting = of.mount(&cx()).await.unwrap();
    castor_task::reading(move || {
        let mut out = BTreeMap::new();
        walk(mounting.path(), mounting.path(), &mut out);
        out
    })
    .await
}
