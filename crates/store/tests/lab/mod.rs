//! A store with everything real below it, and images from a registry in this process.
#![allow(dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use castor_content::Local;
use castor_layerfs::{BlobOpener, Config, LayerEngine, Lazy, RegistryOpener};
use castor_metadb::{KeyValue, Memory};
use castor_progress::Reporter;
use castor_registry::{Access, Client, Repository};
use castor_snapshot::{LocalDiffer, LocalSnapshotter};
use castor_solver::Cx;
use castor_store::{ImageLayer, ImmutableRef, MutableRef, Openers, RecordInfo, RecordOptions, Store, StoreConfig};
use castor_task::{CancellationToken, Scope};
use castor_testkit::{Image, Registry};
use tempfile::TempDir;

struct Anonymous(Client);

impl Openers for Anonymous {
    fn opener(&self, layer: &ImageLayer, _: &Cx) -> Arc<dyn BlobOpener> {
        let origin = layer.origins.first().cloned().unwrap_or_default();
        let repository: Repository = origin.parse().unwrap();
        Arc::new(RegistryOpener::new(self.0.blob(&repository, &layer.descriptor, &Access::anonymous()), origin))
    }
}

pub struct Lab {
    pub store: Store,
    pub content: Local,
    engine: Arc<LayerEngine>,
    scope: Scope,
    db: Arc<dyn KeyValue>,
    dir: Arc<TempDir>,
}

impl Lab {
    pub async fn new() -> Self {
        Self::over(Arc::new(Memory::new()), Arc::new(tempfile::tempdir().unwrap())).await
    }

    async fn over(db: Arc<dyn KeyValue>, dir: Arc<TempDir>) -> Self {
        let root = dir.path();
        let scope = Scope::root("lab");
        let content = Local::open(&root.join("content"), db.clone()).await.unwrap();
        let shared = Arc::new(content.clone());
        let engine = LayerEngine::open(Config::new(root.join("layers")), shared.clone(), &scope).await.unwrap();
        let snapshots =
            LocalSnapshotter::open(root.join("snapshots"), db.clone(), engine.clone(), &scope).await.unwrap();
        let client = Client::new(castor_registry::Config {
            max_attempts: 1,
            backoff: Duration::from_millis(1),
            ..castor_registry::Config::default()
        });
        let store = Store::open(StoreConfig {
            root: root.join("store"),
            db: db.clone(),
            engine: engine.clone(),
            snapshotter: snapshots.clone(),
            differ: Arc::new(LocalDiffer::new(snapshots)),
            content: shared.clone(),
            leases: shared,
            openers: Arc::new(Anonymous(client.unwrap())),
            scope: scope.child("store"),
        });
        Self { store: store.await.unwrap(), content, engine, scope, db, dir }
    }

    pub fn cx(&self) -> Cx {
        Cx::standalone(CancellationToken::new(), Reporter::discard(), Vec::new())
    }

    /// The database below.
    pub fn db(&self) -> &Arc<dyn KeyValue> {
        &self.db
    }

    /// Ends it in order, and begins anew over what it left on disk.
    pub async fn restart(self) -> Self {
        let (db, dir) = (self.db.clone(), self.dir.clone());
        self.close().await;
        Self::over(db, dir).await
    }

    pub async fn close(self) {
        let root = self.dir.path().to_owned();
        drop(self.store);
        self.engine.shutdown().await;
        self.scope.close(Duration::from_secs(20)).await.unwrap();
        let mounted = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(root.to_str().unwrap());
        for _ in 0..2000 {
            if !mounted() {
                return;
            }
            tokio::task::yield_now().await;
            castor_task::blocking(std::thread::yield_now).await;
        }
        panic!("left mounted below {}", root.display());
    }

    /// An image as a client's build would get it.
    pub async fn image(&self, registry: &Registry, image: &Image, name: &str, want: Lazy) -> ImmutableRef {
        let reference = image.put(registry, name);
        let repository = format!("{}/{}", registry.host(), name.split(':').next().unwrap());
        let layers = image.layers.iter().enumerate().map(|(index, layer)| ImageLayer {
            descriptor: layer.descriptor.clone(),
            origins: vec![repository.clone()],
            image: reference.to_string(),
            diff_id: Some(layer.diff_id),
            want,
            created_by: format!("layer {index}"),
            created: None,
        });
        self.store.from_image(layers.collect(), RecordOptions::described("image")).await.unwrap()
    }

    /// A step on `parent` that writes files; an empty text removes one.
    pub async fn step(&self, parent: Option<&ImmutableRef>, name: &str, files: &[(&str, &str)]) -> ImmutableRef {
        let target = self.store.new_mutable(&self.cx(), parent, RecordOptions::described(name)).await.unwrap();
        self.write(&target, files).await;
        target.commit().await.unwrap()
    }

    pub async fn write(&self, target: &MutableRef, files: &[(&str, &str)]) {
        let mounting = target.mount(&self.cx()).await.unwrap();
        let files: Vec<_> = files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect();
        castor_task::reading(move || {
            for (path, text) in files {
                let path = mounting.path().join(path);
                if text.is_empty() {
                    std::fs::remove_file(path).unwrap();
                } else {
                    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                    std::fs::write(path, text).unwrap();
                }
            }
        })
        .await;
    }

    pub async fn files(&self, of: &ImmutableRef) -> BTreeMap<String, String> {
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
        let mounting = of.mount(&self.cx()).await.unwrap();
        castor_task::reading(move || {
            let mut out = BTreeMap::new();
            walk(mounting.path(), mounting.path(), &mut out);
            out
        })
        .await
    }

    pub async fn usage(&self) -> Vec<RecordInfo> {
        self.store.disk_usage(&[]).await.unwrap()
    }

    /// Waits until there are so many records: those that nobody keeps go in the background.
    pub async fn settled(&self, count: usize) -> Vec<RecordInfo> {
        tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                let records = self.usage().await;
                if records.len() == count {
                    return records;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("not {count} records"))
    }
}

pub fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}
