//! The engine: owner of all layer objects and image trees of a state directory.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use castor_content::{ContentStore, Resource};
use castor_oci::{Descriptor, Digest};
use castor_progress::Reporter;
use castor_task::Scope;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::complete::ingest_name;
use crate::error::LayerError;
use crate::errors::ErrorLog;
use crate::fetch::{Counters, Fetcher, Setup};
use crate::image::Base;
use crate::image_tree::{ImageTree, Trees};
use crate::layer::{Core, Layer, LayerState, Object};
use crate::mode::{self, Mode, Modes};
use crate::open::{Attempt, Fallback, Verification};
use crate::origin::Origin;
use crate::presence::{self, Presence, Stored};
use crate::serve::Served;
use crate::serving::Serving;
use crate::source::{BlobOpener, LayerId, LayerSource, Lazy};
use crate::tree::Tree;
use crate::treefs::ServerProgram;
use crate::unpack::with_sources;

/// Memory for members being inflated, of all layers, in KiB.
pub(crate) const MEMORY_KIB: u32 = 64 << 10;
/// Layers that stay open without a user.
const IDLE_LAYERS: usize = 256;
/// How long a shutdown waits for fetches to end, and for what is here to be noted on a disk that may be busy.
pub(crate) const GRACE: Duration = Duration::from_secs(30);

/// How an engine works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its directory.
    pub root: PathBuf,
    /// Use this mode instead of the best that the probe finds.
    pub mode: Option<Mode>,
    /// What serves trees in mode `fuse`, which cannot be had without.
    pub server: Option<ServerProgram>,
    /// Longest time that a read of a lazy layer may wait before it fails with EIO.
    pub read_deadline: Duration,
    /// Layers that are downloaded whole at the same time.
    pub parallel_layers: usize,
    /// Whether layers may be lazy that nothing verifies.
    pub verification: Verification,
    /// Whether what a layer's maker put first is fetched when it is mounted.
    pub prefetch: bool,
    /// Whether the rest of a layer is fetched once much of it is read: a third, or all of a directory tree.
    pub background: bool,
    /// A layer that has become complete is verified as a whole when nobody has read it for so long: until then readers need
    /// the processors more.
    pub quiet: Duration,
}

impl Config {
    /// Defaults under `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            mode: None,
            server: None,
            read_deadline: Duration::from_secs(60),
            parallel_layers: 4,
            verification: Verification::Required,
            prefetch: true,
            background: true,
            quiet: Duration::from_secs(2),
        }
    }
}

/// Owns the layer objects and image trees under one directory.
pub struct LayerEngine {
    pub(crate) shared: Arc<Shared>,
    trees: Trees,
}

impl std::fmt::Debug for LayerEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerEngine").field("root", &self.shared.config.root).finish_non_exhaustive()
    }
}

/// What the engine and its layers share.
pub(crate) struct Shared {
    pub config: Config,
    pub content: Arc<dyn ContentStore>,
    pub scope: Scope,
    pub memory: Arc<Semaphore>,
    pub downloads: Arc<Semaphore>,
    pub errors: ErrorLog,
    modes: Modes,
    pub serving: Serving,
    numbers: AtomicU64,
    pub live: Mutex<HashMap<LayerId, Live>>,
    /// The newest core of each layer that was opened, also where what works for it outlives the layer for a moment.
    pub cores: Mutex<HashMap<LayerId, Weak<Core>>>,
    /// One at a time opens or begins a layer of a blob.
    gates: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

/// A layer that is open.
pub(crate) enum Live {
    /// Stays open.
    Held(Arc<Layer>),
    /// A download: it ends when nobody wants it.
    Loose(Weak<Layer>),
}

impl LayerEngine {
    /// Opens the engine of `config.root`: deletes what a crash left half made, probes what can be mounted.
    pub async fn open(config: Config, content: Arc<dyn ContentStore>, scope: &Scope) -> Result<Arc<Self>, LayerError> {
        let scope = scope.child("layers");
        let (root, inner) = (config.root.clone(), scope.clone());
        let mode = config.mode;
        let runtime = tokio::runtime::Handle::current();
        let program = config.server.clone();
        let (modes, serving) = castor_task::blocking(move || {
            prepare(&root)?;
            let serving = Serving::new(program, inner, runtime);
            Ok::<_, LayerError>((mode::probe(&root, mode, &serving), serving))
        })
        .await?;
        for (mode, reason) in &modes.passed_over {
            tracing::info!(%mode, reason, "a mode of mounting layers does not work here");
        }
        match &modes.complete {
            Ok(mode) => tracing::info!(%mode, lazy = %modes.lazy_text(), "layers are mounted"),
            Err(reason) => tracing::warn!(reason, "layers cannot be mounted"),
        }
        let shared = Arc::new(Shared {
            memory: Arc::new(Semaphore::new(MEMORY_KIB as usize)),
            downloads: Arc::new(Semaphore::new(config.parallel_layers.max(1))),
            config,
            content,
            scope,
            errors: ErrorLog::default(),
            modes,
            serving,
            numbers: AtomicU64::new(1),
            live: Mutex::default(),
            cores: Mutex::default(),
            gates: Mutex::default(),
        });
        Ok(Arc::new(Self { trees: Trees::default(), shared }))
    }

    /// What this machine can mount.
    pub fn modes(&self) -> &Modes {
        &self.shared.modes
    }

    /// The process that serves trees in mode `fuse`, if one runs.
    pub fn tree_server(&self) -> Option<u32> {
        self.shared.serving.tree_server()
    }

    /// The layer that `source` describes: from disk if it is here; else a lazy object, or an eager download that has
    /// begun (see [`Layer::ready`]).
    pub async fn layer(&self, source: LayerSource, reporter: &Reporter) -> Result<Arc<Layer>, LayerError> {
        let shared = &self.shared;
        let gate = shared.gate(source.descriptor.digest);
        let _one = gate.lock().await;
        let blob = source.descriptor.digest;
        let descriptor = &source.descriptor;
        let names = [crate::open::toc_of(descriptor), shared.config.verification.unverified(descriptor)];
        for toc in names.into_iter().flatten() {
            let Some(layer) = shared.find(LayerId { blob, toc: Some(toc) }).await? else { continue };
            // Who wants no lazy layer takes one that is here and verified, and so does who could not mount another.
            let lazy = source.want != Lazy::Never && shared.modes.lazy.is_ok();
            let claim_holds =
                || layer.verified().is_some_and(|found| source.diff_id.is_none_or(|claimed| claimed == found));
            if lazy || (layer.is_complete() && (source.want != Lazy::Never || claim_holds())) {
                layer.core.used_by(&source).await;
                return Ok(layer);
            }
        }
        // With `require`, a layer that is here because it once fell back is no way around the reason.
        if source.want != Lazy::Require
            && let Some(layer) = shared.find(LayerId { blob, toc: None }).await?
        {
            layer.core.used_by(&source).await;
            return Ok(layer);
        }
        let fallback = match crate::open::attempt(shared, &source).await? {
            Attempt::Lazy(layer) => return Ok(layer),
            Attempt::Fallback(fallback) => fallback,
        };
        if source.want == Lazy::Require {
            return Err(LayerError::NotLazy { layer: blob, image: source.image, reason: fallback.reason });
        }
        if source.want == Lazy::Prefer {
            tracing::info!(layer = %blob, image = source.image, reason = fallback.reason, "layer is fetched first");
        }
        if fallback.warn {
            reporter.warn(format!("layer {blob} of {} is not lazy: {}", source.image, fallback.reason));
        }
        Ok(shared.download(source, fallback, reporter))
    }

    /// What distinguishes the layer as it may be mounted lazily here from another that claims the same diff ID: `None` if it
    /// only can be mounted once it was fetched and verified.
    pub fn lazy_identity(&self, descriptor: &Descriptor) -> Option<Digest> {
        crate::open::toc_of(descriptor).or_else(|| self.shared.config.verification.unverified(descriptor))
    }

    /// The layer `id` if its object is here; needs no network.
    pub async fn existing(&self, id: LayerId) -> Result<Option<Arc<Layer>>, LayerError> {
        let gate = self.shared.gate(id.blob);
        let _one = gate.lock().await;
        self.shared.find(id).await
    }

    /// The mounted tree of `layers`, lowest first, for the bottom of an overlay. Waits until each can be mounted.
    pub async fn image_tree(&self, layers: &[LayerId]) -> Result<Arc<ImageTree>, LayerError> {
        self.tree(layers, Base::Ground).await
    }

    /// The mounted tree of `layers` for a place above other lowers: it keeps whiteouts for what is below.
    pub async fn stacked_tree(&self, layers: &[LayerId]) -> Result<Arc<ImageTree>, LayerError> {
        self.tree(layers, Base::Stacked).await
    }

    async fn tree(&self, ids: &[LayerId], base: Base) -> Result<Arc<ImageTree>, LayerError> {
        let mut layers = Vec::with_capacity(ids.len());
        for id in ids {
            layers.push(self.existing(*id).await?.ok_or(LayerError::Unknown(*id))?);
        }
        for layer in &layers {
            layer.ready().await?;
        }
        self.trees.get(&self.shared, layers, base).await
    }

    /// The sequence number that the next read error will have.
    pub fn error_mark(&self) -> u64 {
        self.shared.errors.mark()
    }

    /// All layer objects on disk.
    pub fn list(&self) -> Result<Vec<LayerId>, LayerError> {
        let dir = self.shared.config.root.join("layers");
        let entries = std::fs::read_dir(&dir).map_err(|e| LayerError::io("list", &dir, e))?;
        Ok(entries
            .filter_map(Result::ok)
            .filter_map(|entry| LayerId::from_directory(entry.file_name().to_str()?))
            .collect())
    }

    /// What of the content store layer objects need: to be given to its collector as roots.
    pub fn content(&self) -> Result<Vec<Resource>, LayerError> {
        let blobs = self.list()?.into_iter().map(|id| id.blob);
        Ok(blobs.flat_map(|blob| [Resource::Blob(blob), Resource::Ingest(ingest_name(blob))]).collect())
    }

    /// Deletes a layer object. Mounts that use it go on until they are unmounted, with what is here.
    pub async fn remove(&self, id: LayerId) -> Result<(), LayerError> {
        let gate = self.shared.gate(id.blob);
        let _one = gate.lock().await;
        self.delete_object(id).await
    }

    /// Does it, for who has the gate.
    pub(crate) async fn delete_object(&self, id: LayerId) -> Result<(), LayerError> {
        let live = self.shared.live.lock().remove(&id);
        drop(live);
        self.shared.abandon(id).await;
        let dir = self.shared.layer_dir(id);
        castor_task::blocking(move || {
            let doomed = dir.with_extension("gone");
            // The name goes in one step; a crash in between leaves something that the next start deletes.
            match std::fs::rename(&dir, &doomed) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                other => other.map_err(|e| LayerError::io("remove", &dir, e))?,
            }
            std::fs::remove_dir_all(&doomed).map_err(|e| LayerError::io("remove", &doomed, e))
        })
        .await?;
        self.trees.forget(&self.shared).await;
        Ok(())
    }

    /// Bytes on disk of a layer object.
    pub fn usage(&self, id: LayerId) -> Result<u64, LayerError> {
        use std::os::unix::fs::MetadataExt as _;
        let dir = self.shared.layer_dir(id);
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(LayerError::io("list", &dir, error)),
        };
        Ok(entries.filter_map(Result::ok).filter_map(|e| e.metadata().ok()).map(|m| m.blocks() * 512).sum())
    }

    /// Stops all fetches, answers what is parked, writes presence to disk.
    pub async fn shutdown(&self) {
        self.shared.serving.layers.release_all();
        if let Err(error) = self.shared.scope.close(GRACE).await {
            tracing::warn!(%error, "shut down layers");
        }
        self.shared.live.lock().clear();
    }
}

impl Live {
    pub(crate) fn get(&self) -> Option<Arc<Layer>> {
        match self {
            Self::Held(layer) => Some(layer.clone()),
            Self::Loose(layer) => layer.upgrade(),
        }
    }

    /// Whether somebody beside the engine has the layer.
    pub(crate) fn is_used(&self) -> bool {
        match self {
            Self::Held(layer) => Arc::strong_count(layer) > 1,
            Self::Loose(layer) => layer.strong_count() > 0,
        }
    }
}

impl Shared {
    pub(crate) fn modes(&self) -> &Modes {
        &self.modes
    }

    pub(crate) fn layer_dir(&self, id: LayerId) -> PathBuf {
        self.config.root.join("layers").join(id.directory())
    }

    /// A directory for an object in the making; it is renamed when it is whole.
    pub(crate) fn new_dir(&self) -> Result<PathBuf, LayerError> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let dir = self.config.root.join("layers").join(format!("new-{number}"));
        std::fs::create_dir(&dir).map_err(|e| LayerError::io("create", &dir, e))?;
        Ok(dir)
    }

    pub(crate) fn gate(&self, blob: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = self.gates.lock();
        gates.retain(|_, gate| gate.strong_count() > 0);
        if let Some(gate) = gates.get(&blob).and_then(Weak::upgrade) {
            return gate;
        }
        let gate = Arc::default();
        gates.insert(blob, Arc::downgrade(&gate));
        gate
    }

    /// A layer that is open, or on disk.
    async fn find(self: &Arc<Self>, id: LayerId) -> Result<Option<Arc<Layer>>, LayerError> {
        if let Some(layer) = self.live.lock().get(&id).and_then(Live::get) {
            let failed = layer.core.ready.borrow().as_ref().is_some_and(Result::is_err);
            if !failed {
                return Ok(Some(layer));
            }
        }
        self.load(id).await
    }

    /// Opens an object on disk. One that is damaged is deleted: it can be made anew.
    pub(crate) async fn load(self: &Arc<Self>, id: LayerId) -> Result<Option<Arc<Layer>>, LayerError> {
        self.settle(id).await;
        let dir = self.layer_dir(id);
        let path = dir.clone();
        let read = castor_task::blocking(move || {
            if !path.exists() {
                return Ok(None);
            }
            read_object(&path, id).map(Some)
        })
        .await;
        let files = match read {
            Ok(Some(files)) => files,
            Ok(None) => return Ok(None),
            Err(reason) => {
                tracing::warn!(layer = %id, reason, "layer object is damaged and will be made anew");
                let path = dir.clone();
                castor_task::blocking(move || std::fs::remove_dir_all(&path))
                    .await
                    .map_err(|e| LayerError::io("remove", &dir, e))?;
                return Ok(None);
            }
        };
        let origin = &files.origin;
        if origin.unverified && origin.verified.is_none() && !self.config.verification.waives(&origin.descriptor) {
            // It was made while the configuration allowed it.
            return Ok(None);
        }
        let core = self.core(id, files.origin);
        let complete = files.presence.is_none();
        core.complete.store(complete, Ordering::Release);
        let fetcher = match files.presence {
            Some(presence) => self.fetcher(&core, files.tree.clone(), files.data.clone(), presence).await?,
            None => None,
        };
        let object = Object { tree: files.tree, data: files.data, fetcher };
        Ok(Some(self.publish(core, object)))
    }

    /// A core without files yet.
    pub(crate) fn core(self: &Arc<Self>, id: LayerId, origin: Origin) -> Arc<Core> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let core = Arc::new(Core {
            id,
            number,
            dir: self.layer_dir(id),
            origin: Mutex::new(origin),
            counters: Arc::new(Counters::default()),
            openers: Arc::default(),
            scope: self.scope.child(format!("{}", id.blob)),
            ready: tokio::sync::watch::Sender::new(None),
            object: std::sync::OnceLock::new(),
            complete: AtomicBool::new(false),
            completing: tokio::sync::Mutex::new(()),
            arrived: Arc::default(),
            gone: AtomicBool::new(false),
            writing: Mutex::default(),
            shared: self.clone(),
        });
        let mut cores = self.cores.lock();
        cores.retain(|_, core| core.strong_count() > 0);
        cores.insert(id, Arc::downgrade(&core));
        core
    }

    /// Reads a blob that is in the content store.
    pub(crate) async fn local_blob(&self, blob: Digest) -> Result<Option<Arc<dyn BlobOpener>>, LayerError> {
        let state = |e: castor_content::Error| LayerError::State(with_sources(&e));
        if self.content.info(&blob).await.map_err(state)?.is_none() {
            return Ok(None);
        }
        let blob = self.content.open(&blob).await.map_err(state)?;
        Ok(Some(Arc::new(crate::opener::ContentOpener::new(blob))))
    }

    async fn fetcher(
        self: &Arc<Self>,
        core: &Arc<Core>,
        tree: Arc<Tree>,
        data: Arc<std::fs::File>,
        presence: Presence,
    ) -> Result<Option<Fetcher>, LayerError> {
        let state = |e: castor_content::Error| LayerError::State(with_sources(&e));
        let descriptor = core.origin.lock().descriptor.clone();
        let ingest = match self.local_blob(core.id.blob).await? {
            Some(local) => {
                core.openers.attach(local);
                None
            }
            None => Some(self.content.ingest(&ingest_name(core.id.blob), &descriptor).await.map_err(state)?),
        };
        let setup = Setup {
            layer: core.id.blob,
            image: core.origin.lock().image.clone(),
            tree,
            presence,
            data,
            ingest,
            openers: core.openers.clone(),
            scope: core.scope.clone(),
            memory: self.memory.clone(),
            deadline: self.config.read_deadline,
            background: self.config.background,
        };
        Ok(Fetcher::new(setup, core.counters.clone(), core.arrived.clone()))
    }

    /// Opens the object to its users: serves it, keeps its presence, holds it.
    pub(crate) fn publish(self: &Arc<Self>, core: Arc<Core>, object: Object) -> Arc<Layer> {
        if let Some(fetcher) = &object.fetcher {
            let (tree, weak) = (object.tree.clone(), Arc::downgrade(&core));
            let told = Box::new(move |range: std::ops::Range<u64>, outcome: Result<(), &str>| {
                let Some(core) = weak.upgrade() else { return };
                match outcome {
                    Ok(()) => core.shared.errors.heal(core.id, &range),
                    Err(cause) => {
                        let file = tree.file_at(&range);
                        let image = core.origin.lock().image.clone();
                        tracing::warn!(layer = %core.id.blob, image, file, cause, "read of a lazy layer failed");
                        core.shared.errors.push(core.id, range, image, file, cause);
                    }
                }
            });
            let served = Served::new(
                object.tree.data_size(),
                object.data.clone(),
                Some(fetcher.clone()),
                self.config.read_deadline,
                told,
            );
            self.serving.layers.add(core.number, served);
        }
        if object.fetcher.is_some() && !core.complete.load(Ordering::Acquire) {
            let keeper = core.clone();
            core.scope.spawn_named("keep presence", keeper.keep_presence());
        }
        let _ = core.object.set(object);
        core.ready.send_replace(Some(Ok(())));
        let layer = Arc::new(Layer { core });
        self.hold(&layer);
        layer
    }

    /// Keeps a layer open, and lets go of some that nobody uses if there are many.
    pub(crate) fn hold(&self, layer: &Arc<Layer>) {
        let mut closed = Vec::new();
        {
            let mut live = self.live.lock();
            live.insert(layer.id(), Live::Held(layer.clone()));
            if live.len() > IDLE_LAYERS {
                let idle: Vec<LayerId> = live
                    .iter()
                    .filter(|(_, entry)| match entry {
                        Live::Held(layer) => Arc::strong_count(layer) == 1 && layer.state() == LayerState::Complete,
                        Live::Loose(layer) => layer.strong_count() == 0,
                    })
                    .map(|(id, _)| *id)
                    .collect();
                closed.extend(idle.into_iter().filter_map(|id| live.remove(&id)));
            }
        }
        // Layers are dropped without the lock: that may take a while.
        drop(closed);
    }

    /// Begins an eager download.
    fn download(self: &Arc<Self>, source: LayerSource, fallback: Fallback, reporter: &Reporter) -> Arc<Layer> {
        let id = LayerId { blob: source.descriptor.digest, toc: None };
        let mut origin = Origin::new(source.descriptor, source.origins, source.image, source.diff_id);
        origin.eager = Some(fallback.reason);
        let core = self.core(id, origin);
        core.openers.attach(source.opener);
        let layer = Arc::new(Layer { core: core.clone() });
        self.live.lock().insert(id, Live::Loose(Arc::downgrade(&layer)));
        let (shared, reporter, weak) = (self.clone(), reporter.clone(), Arc::downgrade(&layer));
        let name = format!("download {} of {}", id.blob, core.origin.lock().image);
        let scope = core.scope.clone();
        scope.spawn_named(name, async move {
            let outcome = crate::download::download(&core, fallback.body, &reporter).await;
            if outcome.is_ok()
                && let Some(layer) = weak.upgrade()
            {
                shared.hold(&layer);
            }
            core.ready.send_replace(Some(outcome));
        });
        layer
    }
}

impl Tree {
    /// The file that a range of `data` belongs to.
    pub(crate) fn file_at(&self, range: &std::ops::Range<u64>) -> String {
        let chunk = self.chunk_at(range.start);
        if chunk >= self.chunks() { String::from("?") } else { self.path_of(self.chunk(chunk).inode) }
    }
}

/// What is read of an object.
pub(crate) struct Files {
    pub origin: Origin,
    pub tree: Arc<Tree>,
    pub data: Arc<std::fs::File>,
    /// None: complete.
    pub presence: Option<Presence>,
}

/// Reads an object's files; the error says what is wrong.
fn read_object(dir: &std::path::Path, id: LayerId) -> Result<Files, String> {
    let origin = Origin::read(&dir.join("origin"))?;
    if origin.descriptor.digest != id.blob {
        return Err("its origin is another layer's".into());
    }
    let tree = Tree::open(&dir.join("tree"))?;
    let path = dir.join("data");
    let data = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|e| format!("open {}: {e}", path.display()))?;
    let length = data.metadata().map_err(|e| e.to_string())?.len();
    if length != tree.data_size() {
        return Err(format!("{} is {length} bytes long, want {}", path.display(), tree.data_size()));
    }
    let stored = presence::read(&dir.join("presence"), u64::from(tree.chunks())).map_err(|e| e.to_string())?;
    let presence = match stored {
        Stored::Complete => None,
        Stored::Chunks(_) if tree.codec().is_none() => return Err("its data is not complete".into()),
        Stored::Chunks(presence) => Some(presence),
    };
    Ok(Files { origin, tree: Arc::new(tree), data: Arc::new(data), presence })
}

/// Makes the directories and deletes what a crash left. Image trees are all deleted: they are built in milliseconds, and
/// of those that an earlier process built most are not wanted again.
fn prepare(root: &std::path::Path) -> Result<(), LayerError> {
    let trees = root.join("trees");
    match std::fs::remove_dir_all(&trees) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(LayerError::io("remove", &trees, error));
        }
        _ => {}
    }
    for name in ["layers", "trees"] {
        let dir = root.join(name);
        std::fs::create_dir_all(&dir).map_err(|e| LayerError::io("create", &dir, e))?;
    }
    let dir = root.join("layers");
    for entry in std::fs::read_dir(&dir).map_err(|e| LayerError::io("list", &dir, e))?.filter_map(Result::ok) {
        let name = entry.file_name();
        if name.to_str().is_none_or(|name| LayerId::from_directory(name).is_none()) {
            let path = entry.path();
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(|e| LayerError::io("remove", path, e))?;
        }
    }
    Ok(())
}

impl Core {
    /// Another image uses the layer: its opener and repositories are remembered.
    pub(crate) async fn used_by(self: &Arc<Self>, source: &LayerSource) {
        self.openers.attach(source.opener.clone() as Arc<dyn BlobOpener>);
        let changed = {
            let mut origin = self.origin.lock();
            if self.id.toc.is_some() && origin.claimed != source.diff_id {
                // Images disagree, and one of them is wrong, which is no fault of the layer: whoever uses it compares what
                // the tar stream has with the claim of their own image.
                origin.claimed = None;
            }
            let new: Vec<String> =
                source.origins.iter().filter(|name| !origin.repositories.contains(name)).cloned().collect();
            let changed = !new.is_empty();
            origin.repositories.extend(new);
            changed
        };
        if changed && self.object.get().is_some() {
            let core = self.clone();
            if let Err(error) = castor_task::blocking(move || core.write_origin()).await {
                tracing::warn!(layer = %self.id, %error, "write origin of layer");
            }
        }
    }
}
