//! The snapshotter of castor's own worker.
//!
//! ```text
//! <root>/diffs/<number>/fs        a change: what an overlay's upper directory holds
//!                       work      overlayfs's scratch, while it is active
//!                       mnt       where it is mounted, while it is
//! <root>/mounts/<number>          mount points of comparisons
//! <root>/empty                    a directory that stays empty
//! ```
//!
//! What exists is what the database says ([`crate::record`]); a directory that it does not name is deleted at the start.
//! The commit point of every change is the database batch: directories are made before it and deleted after it.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use castor_layerfs::{LayerEngine, LayerId};
use castor_metadb::{Batch, KeyValue};
use castor_task::Scope;
use parking_lot::Mutex;

use crate::copy::DirSink;
use crate::differ::{Comparison, Scratch, single_change};
use crate::error::SnapshotError;
use crate::mounts::{ActiveDir, ActiveMounts, Mounts, Part};
use crate::record::{Diff, Flat, State, list_digest};
use crate::traits::{Bases, DiffId, Element, Info, Kind, SnapshotId, Snapshotter, Usage};
use crate::walk;

/// Above this many lowers, the lowest diffs are flattened into one.
const MAX_PARTS: usize = 400;
/// How many of them at once.
const FLATTEN: usize = 300;
/// How often what was written is synced.
const SYNC: Duration = Duration::from_secs(30);

/// Snapshots over image trees and diff directories.
pub struct LocalSnapshotter {
    root: PathBuf,
    db: Arc<dyn KeyValue>,
    engine: Arc<LayerEngine>,
    scope: Scope,
    state: Arc<Mutex<State>>,
    active: Arc<ActiveMounts>,
    boot: String,
    mounts: AtomicU64,
    /// One at a time flattens or unbinds: others find the result.
    rewriting: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for LocalSnapshotter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalSnapshotter").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Keeps diffs from being deleted.
#[derive(Debug)]
pub(crate) struct Pins {
    diffs: Vec<DiffId>,
    state: Arc<Mutex<State>>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        for id in &self.diffs {
            if let Some(count) = state.pins.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(id);
                }
            }
        }
    }
}

impl LocalSnapshotter {
    /// Opens the snapshots under `root`: deletes what a crash left half made, and what a crash of the machine may have
    /// damaged.
    pub async fn open(
        root: impl Into<PathBuf>,
        db: Arc<dyn KeyValue>,
        engine: Arc<LayerEngine>,
        scope: &Scope,
    ) -> Result<Arc<Self>, SnapshotError> {
        let root = root.into();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let mut state = State::read(&*db)?;
        let mut batch = Batch::new();
        for lost in state.drop_unsynced(&boot, &mut batch) {
            tracing::warn!(snapshot = %lost, "snapshot was not on disk when the machine stopped, and is dropped");
        }
        state.sweep(&mut batch);
        if !batch.is_empty() {
            db.write(batch).await.map_err(|e| SnapshotError::State(e.to_string()))?;
        }
        let known: HashSet<String> = state.diffs.keys().map(ToString::to_string).collect();
        let dir = root.clone();
        castor_task::blocking(move || tidy(&dir, &known)).await?;
        let this = Arc::new(Self {
            root,
            db,
            engine,
            scope: scope.child("snapshots"),
            state: Arc::new(Mutex::new(state)),
            active: Arc::default(),
            boot,
            mounts: AtomicU64::new(0),
            rewriting: tokio::sync::Mutex::new(()),
        });
        let (weak, token) = (Arc::downgrade(&this), this.scope.token().clone());
        this.scope.spawn_named("keep snapshots", async move {
            while tokio::time::timeout(SYNC, token.cancelled()).await.is_err() {
                let Some(this) = weak.upgrade() else { return };
                // What was removed while it was mounted is not any more.
                let swept = this.sweep(Batch::new()).await;
                if let Err(error) = swept.and(this.sync_idle().await) {
                    tracing::warn!(%error, "keep snapshots");
                }
            }
            // An orderly end leaves nothing that the next boot would have to doubt.
            if let Some(this) = weak.upgrade()
                && let Err(error) = this.sync().await
            {
                tracing::warn!(%error, "sync snapshots");
            }
        });
        Ok(this)
    }

    /// The layer engine below.
    pub fn engine(&self) -> &Arc<LayerEngine> {
        &self.engine
    }

    /// Syncs everything, so that a crash of the machine loses nothing of what is here now.
    pub async fn sync(&self) -> Result<(), SnapshotError> {
        self.sync_diffs(false).await
    }

    /// Syncs what is not being written to, such as cache mounts between two builds.
    async fn sync_idle(&self) -> Result<(), SnapshotError> {
        self.sync_diffs(true).await
    }

    async fn sync_diffs(&self, idle: bool) -> Result<(), SnapshotError> {
        let ids: Vec<DiffId> = {
            let state = self.state.lock();
            let unsynced = state.diffs.iter().filter(|(_, diff)| diff.unsynced.is_some());
            unsynced.map(|(id, _)| *id).filter(|id| !idle || !state.pins.contains_key(id)).collect()
        };
        if ids.is_empty() {
            return Ok(());
        }
        sync_root(&self.root).await?;
        self.write(synced(&self.state, &ids, idle)).await
    }

    pub(crate) fn elements(&self, id: &SnapshotId) -> Result<Vec<Element>, SnapshotError> {
        let state = self.state.lock();
        state.snapshots.get(id).map(|info| info.elements.clone()).ok_or_else(|| SnapshotError::NotFound(id.clone()))
    }

    fn diff_dir(&self, id: DiffId) -> PathBuf {
        self.root.join("diffs").join(id.to_string())
    }

    async fn write(&self, batch: Batch) -> Result<(), SnapshotError> {
        self.db.write(batch).await.map_err(|e| SnapshotError::State(e.to_string()))
    }

    /// Makes the directory of a new diff.
    async fn make_diff(&self, id: DiffId) -> Result<(), SnapshotError> {
        let dir = self.diff_dir(id);
        castor_task::blocking(move || {
            for dir in [dir.clone(), dir.join("fs")] {
                std::fs::create_dir(&dir).map_err(|e| SnapshotError::io("create", &dir, e))?;
            }
            Ok(())
        })
        .await
    }

    /// Deletes what nothing needs any more.
    async fn sweep(&self, mut batch: Batch) -> Result<(), SnapshotError> {
        let gone = self.state.lock().sweep(&mut batch);
        if batch.is_empty() {
            return Ok(());
        }
        self.write(batch).await?;
        let dirs: Vec<PathBuf> = gone.iter().map(|id| self.diff_dir(*id)).collect();
        if dirs.is_empty() {
            return Ok(());
        }
        // The record is gone; how long the files take is nobody's concern.
        self.scope.spawn_named("delete diffs", async move {
            castor_task::blocking(move || {
                for dir in dirs {
                    if let Err(error) = std::fs::remove_dir_all(&dir)
                        && error.kind() != std::io::ErrorKind::NotFound
                    {
                        tracing::warn!(path = %dir.display(), %error, "delete diff");
                    }
                }
            })
            .await;
        });
        Ok(())
    }

    /// Syncs a committed diff soon, without anybody waiting for it.
    fn sync_soon(&self, id: DiffId) {
        let (root, state, db) = (self.root.clone(), self.state.clone(), self.db.clone());
        self.scope.spawn_named(format!("sync diff {id}"), async move {
            match sync_root(&root).await {
                Ok(()) => db.write_soon(synced(&state, &[id], false)),
                Err(error) => tracing::warn!(diff = id.0, %error, "sync diff"),
            }
        });
    }

    fn pin(&self, elements: &[Element]) -> Arc<Pins> {
        let diffs: Vec<DiffId> =
            elements.iter().filter_map(|e| if let Element::Diff(id) = e { Some(*id) } else { None }).collect();
        let mut state = self.state.lock();
        for id in &diffs {
            *state.pins.entry(*id).or_default() += 1;
        }
        drop(state);
        Arc::new(Pins { diffs, state: self.state.clone() })
    }

    /// What mounting `elements` needs; the last of an active snapshot is `upper`.
    async fn parts(&self, elements: &[Element], upper: Option<DiffId>) -> Result<Mounts, SnapshotError> {
        let pins = self.pin(elements);
        let lowers = match upper {
            Some(_) => &elements[..elements.len().saturating_sub(1)],
            None => elements,
        };
        let lowers = last_of_each(lowers);
        let mut parts = Vec::new();
        let mut run: Vec<LayerId> = Vec::new();
        for element in &lowers {
            match element {
                Element::Layer(id) => run.push(*id),
                Element::Diff(id) => {
                    self.end_run(&mut run, &mut parts).await?;
                    parts.push(Part::Dir(self.diff_dir(*id).join("fs")));
                }
            }
        }
        self.end_run(&mut run, &mut parts).await?;
        Ok(Mounts {
            parts,
            upper: upper.map(|id| ActiveDir { id, dir: self.diff_dir(id) }),
            empty: self.root.join("empty"),
            pins,
            active: self.active.clone(),
        })
    }

    async fn end_run(&self, run: &mut Vec<LayerId>, parts: &mut Vec<Part>) -> Result<(), SnapshotError> {
        if run.is_empty() {
            return Ok(());
        }
        let tree = match parts.is_empty() {
            true => self.engine.image_tree(run).await?,
            false => self.engine.stacked_tree(run).await?,
        };
        parts.push(Part::Tree(tree));
        run.clear();
        Ok(())
    }

    async fn mounts_of(&self, elements: &[Element], upper: Option<DiffId>) -> Result<Mounts, SnapshotError> {
        let mut elements = elements.to_vec();
        let own = usize::from(upper.is_some());
        while elements.len() - own > MAX_PARTS
            && let Some(shorter) = Box::pin(self.flatten(&elements[..elements.len() - own])).await?
        {
            elements = shorter.into_iter().chain(elements[elements.len() - own..].iter().copied()).collect();
        }
        self.parts(&elements, upper).await
    }

    /// Replaces the lowest diffs of a long list by one; `None` if there are not enough in a row.
    async fn flatten(&self, elements: &[Element]) -> Result<Option<Vec<Element>>, SnapshotError> {
        let is_diff = |element: &Element| matches!(element, Element::Diff(_));
        let Some(start) = elements.iter().position(is_diff) else { return Ok(None) };
        let count = elements[start..].iter().take(FLATTEN).take_while(|element| is_diff(element)).count();
        if count < 2 {
            return Ok(None);
        }
        let (base, rest) = elements.split_at(start);
        let (chosen, rest) = rest.split_at(count);
        let flat = self.rewrite(base, chosen).await?;
        let shorter = base.iter().copied().chain([Element::Diff(flat)]).chain(rest.iter().copied());
        Ok(Some(shorter.collect()))
    }

    /// A diff that does on `base` what `chosen` do, and stands for itself.
    async fn rewrite(&self, base: &[Element], chosen: &[Element]) -> Result<DiffId, SnapshotError> {
        let _one = self.rewriting.lock().await;
        if let Some(flat) = self.state.lock().flat.get(&list_digest(base, chosen)) {
            return Ok(flat.diff);
        }
        let above: Vec<Element> = base.iter().chain(chosen).copied().collect();
        let comparison = self.comparison(base, &above).await?;
        let mut batch = Batch::new();
        let id = self.state.lock().new_diff(Vec::new(), &self.boot, &mut batch);
        // Pinned: nothing refers to it yet.
        let _pin = self.pin(&[Element::Diff(id)]);
        self.make_diff(id).await?;
        let fs = self.diff_dir(id).join("fs");
        let measure = castor_task::reading(move || {
            let mut sink = DirSink::new(fs.clone(), comparison.view().to_owned(), comparison.upper.clone());
            comparison.each(&mut |change| sink.take(change))?;
            sink.finish()?;
            walk::measure(&fs)
        })
        .await?;
        {
            let mut state = self.state.lock();
            let unsynced = Some(self.boot.clone());
            let diff = Diff { size: measure.size, inodes: measure.inodes, unsynced, ..Diff::default() };
            state.put_diff(id, diff, &mut batch);
            state.put_flat(Flat { elements: chosen.to_vec(), base: base.to_vec(), diff: id }, &mut batch);
        }
        self.write(batch).await?;
        Ok(id)
    }

    /// The elements of `list` with every diff or layer that is bound to another base than it has there, or would hide more
    /// than it did on its own, replaced by a diff that stands for itself; with `anywhere`, also where it would so above
    /// other things.
    async fn unbound(&self, list: Vec<Element>, bases: &Bases, anywhere: bool) -> Result<Vec<Element>, SnapshotError> {
        let mut result: Vec<Element> = Vec::with_capacity(list.len());
        for element in list {
            let id = match element {
                Element::Diff(id) => id,
                Element::Layer(id) => {
                    let own = match bases.get(&id) {
                        Some(base) => self.layer_apart(id, base, &result, anywhere).await?,
                        None => None,
                    };
                    result.push(own.map_or(element, Element::Diff));
                    continue;
                }
            };
            let diff = self.state.lock().diffs.get(&id).cloned().unwrap_or_default();
            let elsewhere = diff.bound && diff.base != result;
            if elsewhere || diff.opaque && result.iter().any(|below| !diff.base.contains(below)) {
                let plain = self.rewrite(&diff.base, &[element]).await?;
                result.push(Element::Diff(plain));
            } else {
                result.push(element);
            }
        }
        Ok(result)
    }

    /// What stands for a layer above `below`, where it would not do what it does on `base`: BuildKit compares each layer of
    /// an image with those below it in the image before it is merged with others.
    async fn layer_apart(
        &self,
        layer: LayerId,
        base: &[LayerId],
        below: &[Element],
        anywhere: bool,
    ) -> Result<Option<DiffId>, SnapshotError> {
        let base: Vec<Element> = base.iter().copied().map(Element::Layer).collect();
        if base == below {
            return Ok(None);
        }
        let Some(object) = self.engine.existing(layer).await? else { return Ok(None) };
        object.ready().await?;
        let reliance = object.reliance();
        let hides_others = reliance.hides && (anywhere || !below.is_empty());
        if hides_others || reliance.implies && !below.ends_with(&base) {
            return Ok(Some(self.rewrite(&base, &[Element::Layer(layer)]).await?));
        }
        Ok(None)
    }

    /// Mounts two lists for comparison.
    pub(crate) async fn comparison(&self, below: &[Element], above: &[Element]) -> Result<Comparison, SnapshotError> {
        let (base, view) = (self.mounts_of(below, None).await?, self.mounts_of(above, None).await?);
        let upper = single_change(below, above).map(|id| self.diff_dir(id).join("fs"));
        let point = || {
            let number = self.mounts.fetch_add(1, Ordering::Relaxed);
            self.root.join("mounts").join(number.to_string())
        };
        let (first, second) = (point(), point());
        castor_task::blocking(move || {
            let mount = |mounts: &Mounts, path: PathBuf| {
                std::fs::create_dir(&path).map_err(|e| SnapshotError::io("create", &path, e))?;
                match mounts.mount_read_only_at(&path) {
                    Ok(mounted) => Ok(Scratch::new(path, mounted)),
                    Err(error) => {
                        let _ = std::fs::remove_dir(&path);
                        Err(error)
                    }
                }
            };
            Ok(Comparison { upper, base: mount(&base, first)?, view: mount(&view, second)? })
        })
        .await
    }

    fn exists(&self, id: &SnapshotId, elements: &[Element]) -> Result<bool, SnapshotError> {
        match self.state.lock().snapshots.get(id) {
            Some(info) if info.kind == Kind::Committed && info.elements == elements => Ok(true),
            Some(_) => Err(SnapshotError::Exists(id.clone())),
            None => Ok(false),
        }
    }

    async fn put_list(&self, id: &SnapshotId, elements: Vec<Element>) -> Result<(), SnapshotError> {
        if self.exists(id, &elements)? {
            return Ok(());
        }
        self.put(id, Info { kind: Kind::Committed, elements, parent: None }).await
    }

    async fn put(&self, id: &SnapshotId, info: Info) -> Result<(), SnapshotError> {
        let mut batch = Batch::new();
        self.state.lock().put(id, info, &mut batch);
        self.write(batch).await
    }
}

/// Notes that diffs are on disk; with `idle`, but those that came into use meanwhile.
fn synced(state: &Mutex<State>, ids: &[DiffId], idle: bool) -> Batch {
    let mut batch = Batch::new();
    let mut state = state.lock();
    for id in ids {
        if idle && state.pins.contains_key(id) {
            continue;
        }
        if let Some(diff) = state.diffs.get(id).cloned() {
            state.put_diff(*id, Diff { unsynced: None, ..diff }, &mut batch);
        }
    }
    batch
}

/// Of elements that occur more than once the last counts: it hides all that the earlier ones show.
fn last_of_each(elements: &[Element]) -> Vec<Element> {
    let mut seen = HashSet::new();
    let mut kept: Vec<Element> = elements.iter().rev().filter(|element| seen.insert(**element)).copied().collect();
    kept.reverse();
    kept
}

/// The bases of the layers that `elements` begin with, which are one image's.
fn bases_in(elements: &[Element]) -> Bases {
    let layers = elements.iter().map_while(|element| match element {
        Element::Layer(id) => Some(*id),
        Element::Diff(_) => None,
    });
    let layers: Vec<LayerId> = layers.collect();
    layers.iter().enumerate().map(|(count, id)| (*id, layers[..count].to_vec())).collect()
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Active => "active",
        Kind::Committed => "committed",
        Kind::View => "a view",
    }
}

/// Makes the directories and deletes what the database does not know. Blocks.
fn tidy(root: &Path, known: &HashSet<String>) -> Result<(), SnapshotError> {
    for name in ["diffs", "mounts", "empty"] {
        let dir = root.join(name);
        std::fs::create_dir_all(&dir).map_err(|e| SnapshotError::io("create", &dir, e))?;
        // Whatever the umask is: the root of a snapshot on nothing has the attributes of the empty directory.
        let mode = std::fs::Permissions::from_mode(if name == "empty" { 0o755 } else { 0o711 });
        std::fs::set_permissions(&dir, mode).map_err(|e| SnapshotError::io("set permissions of", &dir, e))?;
    }
    let list = |dir: &Path| {
        let entries = std::fs::read_dir(dir).map_err(|e| SnapshotError::io("list", dir, e))?;
        Ok::<_, SnapshotError>(entries.filter_map(Result::ok).map(|entry| entry.path()).collect::<Vec<_>>())
    };
    for point in castor_mount::unmount_below(root)? {
        tracing::warn!(path = %point.display(), "unmounted what an earlier process left");
    }
    for path in list(&root.join("mounts"))? {
        std::fs::remove_dir(&path).map_err(|e| SnapshotError::io("remove", &path, e))?;
    }
    for path in list(&root.join("diffs"))? {
        if path.file_name().and_then(|name| name.to_str()).is_none_or(|name| !known.contains(name)) {
            std::fs::remove_dir_all(&path).map_err(|e| SnapshotError::io("remove", &path, e))?;
        }
    }
    Ok(())
}

/// Syncs the file system that `root` is on.
async fn sync_root(root: &Path) -> Result<(), SnapshotError> {
    let root = root.to_owned();
    castor_task::blocking(move || {
        let dir = std::fs::File::open(&root).map_err(|e| SnapshotError::io("open", &root, e))?;
        rustix::fs::syncfs(&dir).map_err(|e| SnapshotError::io("sync", &root, e.into()))
    })
    .await
}

#[async_trait]
impl Snapshotter for LocalSnapshotter {
    async fn create(&self, id: &SnapshotId, elements: &[Element], bases: &Bases) -> Result<(), SnapshotError> {
        let _pins = self.pin(elements);
        let elements = self.unbound(last_of_each(elements), bases, false).await?;
        self.put_list(id, elements).await
    }

    async fn prepare(&self, id: &SnapshotId, parent: Option<&SnapshotId>) -> Result<(), SnapshotError> {
        let mut elements = parent.map(|parent| self.elements(parent)).transpose()?.unwrap_or_default();
        let mut batch = Batch::new();
        let diff = {
            let mut state = self.state.lock();
            if state.snapshots.contains_key(id) {
                return Err(SnapshotError::Exists(id.clone()));
            }
            let diff = state.new_diff(elements.clone(), &self.boot, &mut batch);
            elements.push(Element::Diff(diff));
            state.put(id, Info { kind: Kind::Active, elements, parent: parent.cloned() }, &mut batch);
            diff
        };
        // The directory first: a record without one would be of no use, a directory without a record is deleted.
        if let Err(error) = self.make_diff(diff).await {
            self.state.lock().delete(id, &mut Batch::new());
            return Err(error);
        }
        self.db.write_soon(batch);
        Ok(())
    }

    async fn view(&self, id: &SnapshotId, parent: &SnapshotId) -> Result<(), SnapshotError> {
        let elements = self.elements(parent)?;
        if self.state.lock().snapshots.contains_key(id) {
            return Err(SnapshotError::Exists(id.clone()));
        }
        self.put(id, Info { kind: Kind::View, elements, parent: Some(parent.clone()) }).await
    }

    async fn commit(&self, id: &SnapshotId, active: &SnapshotId) -> Result<(), SnapshotError> {
        let elements = {
            let state = self.state.lock();
            let info = state.snapshots.get(active).ok_or_else(|| SnapshotError::NotFound(active.clone()))?;
            if info.kind != Kind::Active {
                let (actual, wanted) = (kind_name(info.kind), kind_name(Kind::Active));
                return Err(SnapshotError::Kind { id: active.clone(), actual, wanted });
            }
            if id != active && state.snapshots.contains_key(id) {
                return Err(SnapshotError::Exists(id.clone()));
            }
            info.elements.clone()
        };
        let Some(Element::Diff(diff)) = elements.last().copied() else {
            return Err(SnapshotError::State(format!("active snapshot {active} has no change of its own")));
        };
        let dir = self.diff_dir(diff);
        let below = elements[..elements.len() - 1].to_vec();
        let on_nothing = below.is_empty();
        let measure = castor_task::blocking(move || {
            let fs = dir.join("fs");
            let measure = if on_nothing { walk::measure_on_nothing(&fs)? } else { walk::measure(&fs)? };
            let _ = std::fs::remove_dir_all(dir.join("work"));
            Ok::<_, SnapshotError>(measure)
        })
        .await?;
        let mut batch = Batch::new();
        {
            let mut state = self.state.lock();
            let record = Diff {
                size: measure.size,
                inodes: measure.inodes,
                bound: measure.bound,
                opaque: measure.opaque,
                base: if measure.bound || measure.opaque { below } else { Vec::new() },
                unsynced: Some(self.boot.clone()),
            };
            state.put_diff(diff, record, &mut batch);
            let parent = state.delete(active, &mut batch).and_then(|info| info.parent);
            state.put(id, Info { kind: Kind::Committed, elements, parent }, &mut batch);
        }
        castor_task::crash_point("snapshot commit");
        // The commit point.
        self.write(batch).await?;
        castor_task::crash_point("snapshot commit done");
        self.sync_soon(diff);
        Ok(())
    }

    async fn merge(&self, id: &SnapshotId, parts: &[SnapshotId]) -> Result<(), SnapshotError> {
        let (mut elements, mut bases) = (Vec::new(), Bases::new());
        for part in parts {
            let part = self.elements(part)?;
            bases.extend(bases_in(&part));
            elements.extend(part);
        }
        self.create(id, &elements, &bases).await
    }

    async fn slice(
        &self,
        id: &SnapshotId,
        lower: Option<&SnapshotId>,
        upper: &SnapshotId,
    ) -> Result<bool, SnapshotError> {
        let below = lower.map(|lower| self.elements(lower)).transpose()?.unwrap_or_default();
        let above = self.elements(upper)?;
        let Some(rest) = above.strip_prefix(below.as_slice()) else { return Ok(false) };
        let _pins = self.pin(&above);
        let elements = self.unbound(last_of_each(rest), &bases_in(&above), true).await?;
        self.put_list(id, elements).await?;
        Ok(true)
    }

    async fn info(&self, id: &SnapshotId) -> Result<Option<Info>, SnapshotError> {
        Ok(self.state.lock().snapshots.get(id).cloned())
    }

    async fn mounts(&self, id: &SnapshotId) -> Result<Mounts, SnapshotError> {
        let info = self.info(id).await?.ok_or_else(|| SnapshotError::NotFound(id.clone()))?;
        let upper = match (info.kind, info.elements.last()) {
            (Kind::Active, Some(Element::Diff(diff))) => Some(*diff),
            _ => None,
        };
        // Pinned before its record is changed: whoever syncs leaves out what is pinned.
        let _pins = self.pin(&info.elements);
        if let Some(diff) = upper {
            // It may be written to: what an earlier sync said holds no longer.
            let mut batch = Batch::new();
            let mut state = self.state.lock();
            if let Some(record) = state.diffs.get(&diff).filter(|record| record.unsynced.is_none()).cloned() {
                state.put_diff(diff, Diff { unsynced: Some(self.boot.clone()), ..record }, &mut batch);
                drop(state);
                self.db.write_soon(batch);
            }
        }
        self.mounts_of(&info.elements, upper).await
    }

    async fn usage(&self, id: &SnapshotId) -> Result<Usage, SnapshotError> {
        let info = self.info(id).await?.ok_or_else(|| SnapshotError::NotFound(id.clone()))?;
        match (info.kind, info.elements.last()) {
            (Kind::View, _) | (_, None) => Ok(Usage::default()),
            (_, Some(Element::Layer(layer))) => {
                let (engine, layer) = (self.engine.clone(), *layer);
                let size = castor_task::blocking(move || engine.usage(layer)).await?;
                Ok(Usage { size, inodes: 0 })
            }
            (Kind::Committed, Some(Element::Diff(diff))) => {
                let record = self.state.lock().diffs.get(diff).cloned().unwrap_or_default();
                Ok(Usage { size: record.size, inodes: record.inodes })
            }
            (Kind::Active, Some(Element::Diff(diff))) => {
                let fs = self.diff_dir(*diff).join("fs");
                let measure = castor_task::blocking(move || walk::measure(&fs)).await?;
                Ok(Usage { size: measure.size, inodes: measure.inodes })
            }
        }
    }

    async fn remove(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let mut batch = Batch::new();
        if self.state.lock().delete(id, &mut batch).is_none() {
            return Err(SnapshotError::NotFound(id.clone()));
        }
        self.sweep(batch).await
    }

    async fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        let mut names: Vec<SnapshotId> = self.state.lock().snapshots.keys().cloned().collect();
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_elements_the_last_counts() {
        let diff = |n| Element::Diff(DiffId(n));
        assert_eq!(last_of_each(&[diff(1), diff(2), diff(1), diff(3), diff(2)]), [diff(1), diff(3), diff(2)]);
    }
}
