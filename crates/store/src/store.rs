//! The store.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use castor_content::{ContentStore, Leases, Resource};
use castor_layerfs::LayerEngine;
use castor_metadb::KeyValue;
use castor_oci::Digest;
use castor_progress::Timestamp;
use castor_snapshot::{Differ, SnapshotId, Snapshotter};
use castor_solver::{CacheStore as _, Cx};
use castor_task::Scope;
use parking_lot::Mutex;

use crate::mounting::Mountpoint;
use crate::record::{Body, Row};
use crate::refs::Handle;
use crate::rows::{Rec, Records};
use crate::{
    Filter, GcPolicy, ImageLayer, ImmutableRef, KeyCache, LayerUsage, MutableRef, Openers, PruneOptions, Pruned,
    RecordId, RecordInfo, RecordOptions, Results, Sharing, StoreError,
};

/// What a store is made of.
pub struct StoreConfig {
    /// The state directory; mounts are made in its `mounts`, which is emptied at start.
    pub root: PathBuf,
    /// The database.
    pub db: Arc<dyn KeyValue>,
    /// Layer objects.
    pub engine: Arc<LayerEngine>,
    /// Snapshots over them.
    pub snapshotter: Arc<dyn Snapshotter>,
    /// Compares snapshots.
    pub differ: Arc<dyn Differ>,
    /// Blobs.
    pub content: Arc<dyn ContentStore>,
    /// What keeps blobs.
    pub leases: Arc<dyn Leases>,
    /// How layers' blobs are read.
    pub openers: Arc<dyn Openers>,
    /// Where the store's own tasks run.
    pub scope: Scope,
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreConfig").field("root", &self.root).finish_non_exhaustive()
    }
}

/// The records of image layers, by what identifies the list up to them, and back.
#[derive(Debug, Default)]
struct Chains {
    records: HashMap<Digest, RecordId>,
    digests: HashMap<RecordId, Digest>,
}

impl Chains {
    fn insert(&mut self, digest: Digest, id: RecordId) {
        self.digests.insert(id.clone(), digest);
        self.records.insert(digest, id);
    }

    fn remove(&mut self, id: &str) {
        let Some(digest) = self.digests.remove(id) else { return };
        // Another may have taken its place meanwhile.
        if self.records.get(&digest).is_some_and(|other| other == id) {
            self.records.remove(&digest);
        }
    }
}

/// What all handles share.
pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) records: Arc<Records>,
    pub(crate) keys: Arc<KeyCache>,
    pub(crate) scratch: Mountpoint,
    chains: Mutex<Chains>,
    /// Shared cache mounts in use.
    pub(crate) shared_mounts: Mutex<HashMap<String, std::sync::Weak<Handle>>>,
    /// One at a time looks for a cache mount or makes it.
    pub(crate) cache_mounts: tokio::sync::Mutex<()>,
    /// Told when a handle is given back.
    pub(crate) released: tokio::sync::Notify,
    /// One image at a time is looked up or recorded, or two builds would record the same layers twice.
    images: tokio::sync::Mutex<()>,
    /// One prune at a time.
    pub(crate) pruning: tokio::sync::Mutex<()>,
    counter: AtomicU64,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("root", &self.config.root).field("records", &self.records).finish()
    }
}

impl Inner {
    /// A number that was not used before.
    pub(crate) fn number(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn mount_root(&self) -> PathBuf {
        self.config.root.join("mounts")
    }

    pub(crate) fn lease(id: &str) -> String {
        format!("record-{id}")
    }

    /// The name of the record's lease, which is there from now on.
    pub(crate) async fn leased(&self, id: &str) -> Result<String, StoreError> {
        let lease = Self::lease(id);
        let leases = &self.config.leases;
        if leases.resources(&lease).await.is_err() {
            match leases.create_lease(&lease, Default::default(), None).await {
                // Somebody else wanted it at the same time.
                Ok(_) | Err(castor_content::Error::LeaseExists(_)) => {}
                Err(error) => return Err(StoreError::Content(error.to_string())),
            }
        }
        Ok(lease)
    }

    /// Makes the record's lease hold `resource`.
    pub(crate) async fn hold(&self, id: &str, resource: &Resource) -> Result<(), StoreError> {
        let lease = self.leased(id).await?;
        let held = self.config.leases.add_resource(&lease, resource).await;
        held.map_err(|error| StoreError::Content(error.to_string()))
    }

    /// Removes a record that nothing keeps, and what goes with it, from the disk too.
    pub(crate) async fn remove(&self, rec: &Arc<Rec>) {
        for gone in self.records.remove(rec) {
            self.delete(&gone).await;
        }
    }

    /// Forgets what is kept in the database about a record that went.
    async fn forget(&self, rec: &Rec) {
        if let Err(error) = self.keys.release(&rec.id).await {
            tracing::warn!(record = %rec.id, %error, "release cache keys");
        }
        if let Err(error) = self.config.leases.delete_lease(&Self::lease(&rec.id)).await {
            tracing::warn!(record = %rec.id, %error, "delete lease");
        }
        crate::contenthash::forget(self.config.db.as_ref(), &rec.id);
    }

    /// Deletes what a record named, after the record.
    pub(crate) async fn delete(&self, rec: &Rec) {
        self.chains.lock().remove(&rec.id);
        rec.mountpoint.unmounted().await;
        let row = rec.row.lock().clone();
        self.forget(rec).await;
        let own = matches!(row.body, Body::Change { .. } | Body::Active { .. }).then(|| rec.id.clone());
        for snapshot in row.snapshots.into_iter().chain(own) {
            if let Err(error) = self.config.snapshotter.remove(&SnapshotId::new(snapshot)).await {
                tracing::warn!(record = %rec.id, %error, "remove snapshot");
            }
        }
        if let Some(layer) = row.layer.filter(|layer| self.records.of_layer(*layer).is_empty())
            && let Err(error) = self.config.engine.remove(layer).await
        {
            tracing::warn!(record = %rec.id, %layer, %error, "remove layer");
        }
    }

    /// A new record and the handle of it.
    pub(crate) fn insert(self: &Arc<Self>, row: Row) -> Result<Arc<Handle>, StoreError> {
        let rec = self.records.insert(row)?;
        Ok(Handle::new(self.clone(), rec))
    }

    pub(crate) fn acquire(self: &Arc<Self>, id: &str) -> Option<Arc<Handle>> {
        Some(Handle::new(self.clone(), self.records.acquire(id)?))
    }
}

pub(crate) fn new_row(body: Body, parts: Vec<RecordId>, options: RecordOptions) -> Row {
    Row {
        body,
        parts,
        description: options.description,
        record_type: options.record_type,
        created: options.created.unwrap_or_else(Timestamp::now),
        last_used: None,
        usage_count: 0,
        size: None,
        retain: options.retain,
        key: None,
        snapshots: Vec::new(),
        layer: None,
        labels: Default::default(),
    }
}

/// Identifies a list of image layers: blob and TOC digests, because a claimed diff ID proves nothing. The claim is part of
/// it as well, or the first image to name a blob could say what its layer is for all others.
fn chain(below: Option<Digest>, layer: &ImageLayer) -> Digest {
    let toc = layer.descriptor.annotations.get(castor_oci::ANNOTATION_TOC_DIGEST).map_or("", String::as_str);
    let below = below.map(|digest| digest.to_string()).unwrap_or_default();
    let claimed = layer.diff_id.map(|digest| digest.to_string()).unwrap_or_default();
    Digest::of(format!("{below} {} {toc} {claimed} {:?}", layer.descriptor.digest, layer.want))
}

/// Keeps records. Clones are handles of the same store.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

impl Store {
    /// Opens the store: reads all records, removes those that nobody retained. No network.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let db = config.db.clone();
        let (records, dropped) = castor_task::blocking(move || {
            let (records, dropped) = Records::open(db.clone())?;
            dropped.iter().for_each(|id| crate::contenthash::forget(db.as_ref(), id));
            Ok::<_, StoreError>((records, dropped))
        })
        .await?;
        if !dropped.is_empty() {
            tracing::info!(count = dropped.len(), "records that nobody retained were dropped");
        }
        let records = Arc::new(records);
        let (known, root) = (records.clone(), config.root.clone());
        let keys = KeyCache::new(config.db.clone(), Arc::new(move |id: &str| id.is_empty() || known.contains(id)));
        castor_task::blocking(move || {
            let mounts = root.join("mounts");
            // Mount points are empty directories once their mounts are gone, and those went with the last daemon.
            for entry in std::fs::read_dir(&mounts).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(entry.path());
            }
            std::fs::create_dir_all(&mounts).map_err(|error| StoreError::io("create", &mounts, error))
        })
        .await?;
        let mut chains = Chains::default();
        for rec in records.all() {
            if let Some(digest) = chain_of(&records, &rec) {
                chains.insert(digest, rec.id.clone());
            }
        }
        let inner = Arc::new(Inner {
            config,
            records,
            keys: Arc::new(keys),
            scratch: Mountpoint::default(),
            chains: Mutex::new(chains),
            shared_mounts: Mutex::default(),
            cache_mounts: tokio::sync::Mutex::default(),
            released: tokio::sync::Notify::new(),
            images: tokio::sync::Mutex::default(),
            pruning: tokio::sync::Mutex::default(),
            counter: AtomicU64::new(0),
        });
        let store = Self { inner };
        store.sweep().await?;
        Ok(store)
    }

    /// Removes snapshots, layer objects and leases that a crash left without their record.
    async fn sweep(&self) -> Result<(), StoreError> {
        let inner = &self.inner;
        let present: HashSet<_> = inner.config.snapshotter.list().await?.into_iter().collect();
        // The other way round should not happen; if it does, what is built again is better than what cannot be mounted.
        let lacking = |rec: &Arc<Rec>| {
            let own = matches!(rec.body(), Body::Change { .. } | Body::Active { .. });
            own && !present.contains(&SnapshotId::new(rec.id.as_str()))
        };
        let unusable = inner.records.all().iter().filter(|rec| lacking(rec)).map(|rec| rec.id.clone()).collect();
        for gone in inner.records.evict(unusable) {
            tracing::warn!(record = %gone.id, "record without its snapshot dropped");
            self.inner.forget(&gone).await;
        }
        let mut known = HashSet::new();
        for rec in inner.records.all() {
            known.extend(rec.row.lock().snapshots.iter().cloned());
            known.insert(rec.id.clone());
        }
        // What others stand on goes after them.
        let mut orphans: Vec<_> = present.into_iter().filter(|id| !known.contains(id.as_str())).collect();
        orphans.sort();
        while !orphans.is_empty() {
            let before = orphans.len();
            let mut left = Vec::new();
            for id in orphans {
                if inner.config.snapshotter.remove(&id).await.is_err() {
                    left.push(id);
                }
            }
            if left.len() == before {
                tracing::warn!(count = left.len(), "snapshots without a record cannot be removed");
                break;
            }
            orphans = left;
        }
        let layers: HashSet<_> = inner.records.all().iter().filter_map(|rec| rec.row.lock().layer).collect();
        for layer in inner.config.engine.list()?.into_iter().filter(|layer| !layers.contains(layer)) {
            if let Err(error) = inner.config.engine.remove(layer).await {
                tracing::warn!(%layer, %error, "remove layer");
            }
        }
        let leases = inner.config.leases.leases().await.map_err(|error| StoreError::Content(error.to_string()))?;
        for lease in leases {
            let Some(id) = lease.id.strip_prefix("record-") else { continue };
            if !inner.records.contains(id)
                && let Err(error) = inner.config.leases.delete_lease(&lease.id).await
            {
                tracing::warn!(lease = %lease.id, %error, "delete lease");
            }
        }
        Ok(())
    }

    /// The ref of nothing.
    pub fn scratch(&self) -> ImmutableRef {
        ImmutableRef::new(self.inner.clone(), None)
    }

    /// The ref of the record `id`. No network. The id of scratch is empty.
    pub async fn get(&self, id: &str) -> Result<ImmutableRef, StoreError> {
        if id.is_empty() {
            return Ok(self.scratch());
        }
        let handle = self.inner.acquire(id).ok_or_else(|| StoreError::NotFound(id.to_owned()))?;
        if handle.rec.body().is_active() {
            return Err(StoreError::Kind { id: id.to_owned(), wanted: "immutable" });
        }
        Ok(ImmutableRef::new(self.inner.clone(), Some(handle)))
    }

    /// The ref of an image's layers, lowest first. Fetches nothing. Layers that are known already keep their record.
    pub async fn from_image(
        &self,
        layers: Vec<ImageLayer>,
        options: RecordOptions,
    ) -> Result<ImmutableRef, StoreError> {
        let _one = self.inner.images.lock().await;
        let mut below: Option<Arc<Handle>> = None;
        let mut digest = None;
        for layer in layers {
            digest = Some(chain(digest, &layer));
            let handle = self.image_layer(below.as_ref(), digest, layer, &options).await?;
            below = Some(handle);
        }
        Ok(ImmutableRef::new(self.inner.clone(), below))
    }

    async fn image_layer(
        &self,
        below: Option<&Arc<Handle>>,
        chain: Option<Digest>,
        layer: ImageLayer,
        options: &RecordOptions,
    ) -> Result<Arc<Handle>, StoreError> {
        let inner = &self.inner;
        let known = chain.and_then(|chain| inner.chains.lock().records.get(&chain).cloned());
        if let Some(handle) = known.and_then(|id| inner.acquire(&id)) {
            self.learn(&handle.rec, &layer);
            return Ok(handle);
        }
        let blob = layer.descriptor.digest;
        let options = RecordOptions { created: layer.created.or(options.created), ..options.clone() };
        let parent = below.map(|handle| handle.rec.id.clone());
        let parts = below.map(|handle| handle.rec.parts()).unwrap_or_default();
        let handle = inner.insert(new_row(Body::Image { layer: Box::new(layer), parent }, parts, options))?;
        inner.records.change(&handle.rec, |row| row.parts.push(handle.rec.id.clone()));
        inner.hold(&handle.rec.id, &Resource::Blob(blob)).await?;
        if let Some(chain) = chain {
            inner.chains.lock().insert(chain, handle.rec.id.clone());
        }
        Ok(handle)
    }

    /// Takes note of more places that have a known layer.
    fn learn(&self, rec: &Rec, seen: &ImageLayer) {
        let news = |known: &ImageLayer| seen.origins.iter().any(|origin| !known.origins.contains(origin));
        let Body::Image { layer, .. } = rec.body() else { return };
        if !news(&layer) && layer.image == seen.image {
            return;
        }
        self.inner.records.change(rec, |row| {
            if let Body::Image { layer, .. } = &mut row.body {
                let fresh = seen.origins.iter().filter(|origin| !layer.origins.contains(origin)).cloned();
                // What was seen last is most likely to be there still.
                let mut origins: Vec<String> = fresh.collect();
                origins.append(&mut layer.origins);
                layer.origins = origins;
                layer.image.clone_from(&seen.image);
            }
        });
    }

    /// A new writable ref on top of `parent`, or of nothing. Makes the parent ready.
    pub async fn new_mutable(
        &self,
        cx: &Cx,
        parent: Option<&ImmutableRef>,
        options: RecordOptions,
    ) -> Result<MutableRef, StoreError> {
        let parent = parent.filter(|parent| !parent.is_scratch());
        let below = match parent {
            Some(parent) => parent.snapshot(cx).await?,
            None => None,
        };
        let body = Body::Active { parent: parent.map(|parent| parent.id().to_owned()) };
        let parts = parent.map(|parent| parent.part_ids()).unwrap_or_default();
        let handle = self.inner.insert(new_row(body, parts, options))?;
        let id = SnapshotId::new(handle.rec.id.as_str());
        self.inner.config.snapshotter.prepare(&id, below.as_ref()).await?;
        *handle.rec.snapshot.lock().await = Some(id);
        handle.rec.mountpoint.made();
        Ok(MutableRef::new(self.inner.clone(), handle))
    }

    /// The writable record that was kept under `key` ([`MutableRef::retain_as`]) and that nobody uses, if any.
    pub async fn retained(&self, key: &str) -> Option<MutableRef> {
        let fits = |rec: &Rec| {
            let row = rec.row.lock();
            row.body.is_active() && row.key.as_deref() == Some(key)
        };
        let rec = self.inner.records.acquire_free(fits)?;
        Some(MutableRef::new(self.inner.clone(), Handle::new(self.inner.clone(), rec)))
    }

    /// The cache mount `id` on top of `base`; another one for private sharing if it is in use, and a wait for its end
    /// for locked sharing. The same `options` describe a new one.
    pub async fn cache_mount(
        &self,
        cx: &Cx,
        id: &str,
        base: Option<&ImmutableRef>,
        sharing: Sharing,
        options: RecordOptions,
    ) -> Result<MutableRef, StoreError> {
        let base = base.filter(|base| !base.is_scratch());
        let key = match base {
            Some(base) => format!("cache-mount:{id}:{}", base.id()),
            None => format!("cache-mount:{id}"),
        };
        loop {
            let released = self.inner.released.notified();
            tokio::pin!(released);
            // Registered before we look, or a release in between would be missed.
            released.as_mut().enable();
            if let Some(found) = self.find_cache_mount(cx, &key, base, sharing, &options).await? {
                return Ok(found);
            }
            tokio::select! {
                () = released => {}
                () = cx.token().cancelled() => return Err(StoreError::Cancelled),
            }
        }
    }

    /// Forgets the cache mounts `ids`, on whatever base: who asks for one next gets an empty one. Those in use go when
    /// they are let go of.
    pub async fn forget_cache_mounts(&self, ids: &[String]) {
        let _one = self.inner.cache_mounts.lock().await;
        let is_one = |key: &str| {
            ids.iter().any(|id| {
                let rest = key.strip_prefix("cache-mount:").and_then(|key| key.strip_prefix(id.as_str()));
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
            })
        };
        self.inner.shared_mounts.lock().retain(|key, _| !is_one(key));
        for rec in self.inner.records.all() {
            let forget = rec.row.lock().key.as_deref().is_some_and(is_one);
            if !forget {
                continue;
            }
            self.inner.records.change(&rec, |row| {
                row.key = None;
                row.retain = false;
            });
            // A record goes with its last handle; of one that has none, this is the last.
            if let Some(free) = self.inner.records.acquire_free(|other| other.id == rec.id) {
                drop(Handle::new(self.inner.clone(), free));
            }
        }
    }

    async fn find_cache_mount(
        &self,
        cx: &Cx,
        key: &str,
        base: Option<&ImmutableRef>,
        sharing: Sharing,
        options: &RecordOptions,
    ) -> Result<Option<MutableRef>, StoreError> {
        let _one = self.inner.cache_mounts.lock().await;
        if sharing == Sharing::Shared {
            let shared = self.inner.shared_mounts.lock().get(key).and_then(std::sync::Weak::upgrade);
            if let Some(handle) = shared {
                return Ok(Some(MutableRef::new(self.inner.clone(), handle)));
            }
        }
        let found = match self.retained(key).await {
            Some(found) => found,
            None if sharing == Sharing::Locked && self.exists_with_key(key) => return Ok(None),
            None => {
                let made = self.new_mutable(cx, base, options.clone()).await?;
                made.retain_as(key).await?;
                made
            }
        };
        if sharing == Sharing::Shared {
            let mut shared = self.inner.shared_mounts.lock();
            shared.retain(|_, handle| handle.strong_count() > 0);
            shared.insert(key.to_owned(), found.downgrade());
        }
        Ok(Some(found))
    }

    fn exists_with_key(&self, key: &str) -> bool {
        self.inner.records.all().iter().any(|rec| rec.row.lock().key.as_deref() == Some(key))
    }

    /// The ref that stacks `parts`, lowest first. Fetches nothing.
    pub async fn merge(&self, parts: &[ImmutableRef], options: RecordOptions) -> Result<ImmutableRef, StoreError> {
        let parts: Vec<_> = parts.iter().filter(|part| !part.is_scratch()).collect();
        match parts.as_slice() {
            [] => return Ok(self.scratch()),
            [one] => return Ok((*one).clone()),
            _ => {}
        }
        for part in &parts {
            part.settle().await?;
        }
        let ids = parts.iter().map(|part| part.id().to_owned()).collect();
        let stacked = parts.iter().flat_map(|part| part.part_ids()).collect();
        let handle = self.inner.insert(new_row(Body::Merge { parts: ids }, stacked, options))?;
        Ok(ImmutableRef::new(self.inner.clone(), Some(handle)))
    }

    /// The ref of what leads from `lower` to `upper`. Fetches nothing where `lower` is below `upper`.
    pub async fn diff(
        &self,
        lower: &ImmutableRef,
        upper: &ImmutableRef,
        options: RecordOptions,
    ) -> Result<ImmutableRef, StoreError> {
        lower.settle().await?;
        upper.settle().await?;
        let (below, above) = (lower.part_ids(), upper.part_ids());
        if below == above {
            return Ok(self.scratch());
        }
        if below.is_empty() {
            return Ok(upper.clone());
        }
        let parts = above.strip_prefix(below.as_slice()).map(<[_]>::to_vec).unwrap_or_default();
        let whole = |of: &ImmutableRef| (!of.is_scratch()).then(|| of.id().to_owned());
        let body = Body::Slice { lower: whole(lower), upper: whole(upper) };
        let difference = parts.is_empty();
        let handle = self.inner.insert(new_row(body, parts, options))?;
        if difference {
            self.inner.records.change(&handle.rec, |row| row.parts = vec![handle.rec.id.clone()]);
        }
        Ok(ImmutableRef::new(self.inner.clone(), Some(handle)))
    }

    /// The records that match any of `filters` (all if there are none), with their sizes.
    pub async fn disk_usage(&self, filters: &[Filter]) -> Result<Vec<RecordInfo>, StoreError> {
        crate::usage::disk_usage(&self.inner, filters).await
    }

    /// Removes records that nobody uses; tells `report` each as it goes.
    pub async fn prune(
        &self,
        options: &PruneOptions,
        report: &(dyn Fn(RecordInfo) + Send + Sync),
    ) -> Result<Pruned, StoreError> {
        crate::prune::prune(&self.inner, options, report).await
    }

    /// Removes what `policies` say is too old or too much.
    pub async fn gc(&self, policies: &[GcPolicy]) -> Result<Pruned, StoreError> {
        crate::prune::gc(&self.inner, policies).await
    }

    /// The image layers that are here, with what is known of each and who has it.
    pub async fn layers(&self) -> Result<Vec<LayerUsage>, StoreError> {
        crate::layers::layers(&self.inner).await
    }

    /// Those of [`layers`](Self::layers) that are open. Nothing on disk is looked at, so what they take there is 0.
    pub fn open_layers(&self) -> Vec<LayerUsage> {
        crate::layers::open_layers(&self.inner)
    }

    /// The solver's keys.
    pub fn keys(&self) -> Arc<KeyCache> {
        self.inner.keys.clone()
    }

    /// The solver's results.
    pub fn results(&self) -> Arc<Results> {
        Arc::new(Results::new(self.clone()))
    }

    /// The content store.
    pub fn content(&self) -> &Arc<dyn ContentStore> {
        &self.inner.config.content
    }

    /// The leases.
    pub fn leases(&self) -> &Arc<dyn Leases> {
        &self.inner.config.leases
    }

    /// What compares snapshots.
    pub fn differ(&self) -> &Arc<dyn Differ> {
        &self.inner.config.differ
    }

    /// The layer objects.
    pub fn engine(&self) -> &Arc<LayerEngine> {
        &self.inner.config.engine
    }
}

/// What identifies the list of image layers up to `rec`, if it is one.
fn chain_of(records: &Records, rec: &Rec) -> Option<Digest> {
    let mut layers = Vec::new();
    let mut body = rec.body();
    loop {
        let Body::Image { layer, parent } = body else { return None };
        layers.push(layer);
        match parent {
            None => break,
            Some(parent) => body = records.peek(&parent)?.body(),
        }
    }
    layers.iter().rev().fold(None, |below, layer| Some(chain(below, layer)))
}
