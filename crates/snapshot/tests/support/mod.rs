//! A snapshotter over fresh state, and image layers made in memory.
#![allow(dead_code, missing_docs)]

use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use castor_archive::Timestamp;
use castor_archive::tar::{Header, Kind, Writer};
use castor_content::ContentStore;
use castor_layerfs::{BlobOpener, Config, FetchError, LayerEngine, LayerId, LayerSource, Lazy, Priority, RangeBody};
use castor_metadb::{Db, KeyValue};
use castor_mount::Mounted;
use castor_oci::{ANNOTATION_TOC_DIGEST, Descriptor, Digest, media_type};
use castor_progress::Reporter;
use castor_snapshot::{DiffStats, Differ as _, LocalDiffer, LocalSnapshotter, SnapshotId, Snapshotter as _};
use castor_task::Scope;
use futures::StreamExt as _;

pub fn id(name: &str) -> SnapshotId {
    SnapshotId::new(name)
}

pub struct Bench {
    pub snapshots: Arc<LocalSnapshotter>,
    pub differ: LocalDiffer,
    pub engine: Arc<LayerEngine>,
    pub scope: Scope,
    pub root: PathBuf,
    db: Arc<dyn KeyValue>,
    points: AtomicU64,
    dir: Option<tempfile::TempDir>,
}

impl Bench {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::open(dir.path().to_owned(), Some(dir)).await
    }

    /// On state that outlives this value.
    pub async fn at(root: PathBuf) -> Self {
        Self::open(root, None).await
    }

    async fn open(root: PathBuf, dir: Option<tempfile::TempDir>) -> Self {
        let scope = Scope::root("test");
        let db: Arc<dyn KeyValue> = Arc::new(Db::open(root.join("db"), 1).unwrap());
        let content: Arc<dyn ContentStore> =
            Arc::new(castor_content::Local::open(&root.join("content"), db.clone()).await.unwrap());
        let engine = LayerEngine::open(Config::new(root.join("layers")), content, &scope).await.unwrap();
        let snapshots =
            LocalSnapshotter::open(root.join("snapshots"), db.clone(), engine.clone(), &scope).await.unwrap();
        std::fs::create_dir_all(root.join("at")).unwrap();
        let differ = LocalDiffer::new(snapshots.clone());
        Self { snapshots, differ, engine, scope, root, db, points: AtomicU64::new(0), dir }
    }

    pub async fn restart(mut self) -> Self {
        self.engine.shutdown().await;
        self.scope.close(std::time::Duration::from_secs(300)).await.unwrap();
        self.db.flush().await.unwrap();
        let (root, dir) = (self.root.clone(), self.dir.take());
        drop(self);
        Self::open(root, dir).await
    }

    pub async fn close(self) {
        self.engine.shutdown().await;
        self.scope.close(std::time::Duration::from_secs(300)).await.unwrap();
        let root = self.root.clone();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(root.to_str().unwrap()), "left mounted: {mounts}");
    }

    /// Mounts a snapshot at a place of its own.
    pub async fn mount(&self, name: &str) -> Mounted {
        let mounts = self.snapshots.mounts(&id(name)).await.unwrap();
        let at = self.root.join("at").join(self.points.fetch_add(1, Ordering::Relaxed).to_string());
        castor_task::reading(move || {
            std::fs::create_dir_all(&at).unwrap();
            mounts.mount_at(&at).unwrap()
        })
        .await
    }

    /// Does something to a new snapshot on `parent` and commits it.
    pub async fn step(&self, name: &str, parent: Option<&str>, work: impl FnOnce(&Path) + Send + 'static) {
        let active = id(&format!("{name}-active"));
        let parent = parent.map(id);
        self.snapshots.prepare(&active, parent.as_ref()).await.unwrap();
        let mounted = self.mount(active.as_str()).await;
        castor_task::reading(move || {
            work(mounted.path());
            mounted.unmount().unwrap();
        })
        .await;
        self.snapshots.commit(&id(name), &active).await.unwrap();
    }

    /// The files of a snapshot: names, and content of regular files.
    pub async fn files(&self, name: &str) -> Vec<(String, String)> {
        let mounted = self.mount(name).await;
        castor_task::reading(move || tree(mounted.path())).await
    }

    /// The layer of a change: digest, bytes.
    pub async fn layer_of(&self, lower: Option<&str>, upper: &str) -> Vec<u8> {
        let out = Shared::default();
        let lower = lower.map(id);
        let (_, stats) = self.differ.diff(lower.as_ref(), &id(upper), Box::new(out.clone())).await.unwrap();
        let bytes = std::mem::take(&mut *out.0.lock());
        let DiffStats { bytes: counted, .. } = stats;
        assert_eq!(counted, bytes.len() as u64);
        bytes
    }

    pub async fn image(&self, name: &str, sources: &[Arc<Source>], want: Lazy) -> Vec<LayerId> {
        let mut ids = Vec::new();
        for source in sources {
            let layer = self.engine.layer(source.layer(want), &Reporter::discard()).await.unwrap();
            layer.ready().await.unwrap();
            ids.push(layer.id());
        }
        let elements: Vec<_> = ids.iter().map(|layer| castor_snapshot::Element::Layer(*layer)).collect();
        self.snapshots.create(&id(name), &elements, &castor_snapshot::Bases::new()).await.unwrap();
        ids
    }
}

#[derive(Clone, Default)]
pub struct Shared(Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Shared {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// All that is below a directory, sorted.
pub fn tree(root: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let what = if meta.is_dir() {
                todo.push(path);
                "/".to_owned()
            } else if meta.is_file() {
                String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
            } else if meta.is_symlink() {
                format!("-> {}", std::fs::read_link(&path).unwrap().display())
            } else {
                "special".to_owned()
            };
            found.push((name, what));
        }
    }
    found.sort();
    found
}

/// A layer and how often it was asked for.
pub struct Source {
    bytes: Vec<u8>,
    descriptor: Descriptor,
    diff_id: Digest,
    pub sent: AtomicU64,
}

impl Source {
    /// A gzip or eStargz layer of these files.
    pub fn new(files: &[(&str, &[u8])], lazy: bool) -> Arc<Self> {
        let mut writer = Writer::new(Vec::new());
        for (path, data) in files {
            let kind = if path.ends_with('/') { Kind::Directory } else { Kind::File };
            let header = Header {
                path: (*path).into(),
                kind,
                mode: if kind == Kind::File { 0o644 } else { 0o755 },
                size: data.len() as u64,
                mtime: Timestamp::from_seconds(1_600_000_000),
                ..Header::default()
            };
            writer.append(&header, &mut &**data).unwrap();
        }
        let tar = writer.finish().unwrap();
        let mut bytes = Vec::new();
        let (descriptor, diff_id) = if lazy {
            let built = castor_estargz::Builder::default().build(tar.as_slice(), &mut bytes).unwrap();
            let mut descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, built.digest, built.size);
            descriptor.annotations.insert(ANNOTATION_TOC_DIGEST.into(), built.toc_digest.to_string());
            (descriptor, built.diff_id)
        } else {
            let compression = castor_archive::Compression::Gzip { level: Some(1) };
            let mut encoder = castor_archive::Encoder::new(&mut bytes, compression).unwrap();
            encoder.write_all(&tar).unwrap();
            encoder.finish().unwrap();
            (Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(&bytes), bytes.len() as u64), Digest::of(&tar))
        };
        Arc::new(Self { bytes, descriptor, diff_id, sent: AtomicU64::new(0) })
    }

    pub fn layer(self: &Arc<Self>, want: Lazy) -> LayerSource {
        LayerSource {
            descriptor: self.descriptor.clone(),
            origins: vec!["registry.test/image".into()],
            image: "registry.test/image:1".into(),
            opener: self.clone(),
            diff_id: Some(self.diff_id),
            want,
        }
    }
}

#[async_trait]
impl BlobOpener for Source {
    async fn range(&self, range: Range<u64>, _: Priority) -> Result<RangeBody, FetchError> {
        let bytes = Bytes::copy_from_slice(&self.bytes[range.start as usize..range.end as usize]);
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(RangeBody { range, full: false, stream: futures::stream::iter([Ok(bytes)]).boxed() })
    }

    fn describe(&self) -> String {
        "registry.test".into()
    }
}
