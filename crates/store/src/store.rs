//! The store.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use castor_content::{ContentStore, Leases};
use castor_layerfs::LayerEngine;
use castor_metadb::KeyValue;
use castor_snapshot::{Differ, Snapshotter};
use castor_solver::Cx;
use castor_task::Scope;

use crate::{
    Filter, GcPolicy, ImageLayer, ImmutableRef, KeyCache, MutableRef, Openers, PruneOptions, Pruned, RecordInfo,
    RecordOptions, Results, Sharing, StoreError,
};

/// What a store is made of.
pub struct StoreConfig {
    /// Where its mounts are made; emptied at start.
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

/// Keeps records. Clones are handles of the same store.
#[derive(Debug, Clone)]
pub struct Store {}

impl Store {
    /// Opens the store: reads all records, removes those that nobody retained. No network.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let _ = config;
        todo!()
    }

    /// The ref of nothing.
    pub fn scratch(&self) -> ImmutableRef {
        todo!()
    }

    /// The ref of the record `id`. No network. The id of scratch is empty.
    pub async fn get(&self, id: &str) -> Result<ImmutableRef, StoreError> {
        let _ = id;
        todo!()
    }

    /// The ref of an image's layers, lowest first. Fetches nothing. Layers that are known already keep their record.
    pub async fn from_image(
        &self,
        layers: Vec<ImageLayer>,
        options: RecordOptions,
    ) -> Result<ImmutableRef, StoreError> {
        let _ = (layers, options);
        todo!()
    }

    /// A new writable ref on top of `parent`, or of nothing. Makes the parent ready.
    pub async fn new_mutable(
        &self,
        cx: &Cx,
        parent: Option<&ImmutableRef>,
        options: RecordOptions,
    ) -> Result<MutableRef, StoreError> {
        let _ = (cx, parent, options);
        todo!()
    }

    /// The writable record that was kept under `key` ([`MutableRef::retain_as`]) and that nobody uses, if any.
    pub async fn retained(&self, key: &str) -> Option<MutableRef> {
        let _ = key;
        todo!()
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
        let _ = (cx, id, base, sharing, options);
        todo!()
    }

    /// The ref that stacks `parts`, lowest first. Fetches nothing.
    pub async fn merge(&self, parts: &[ImmutableRef], options: RecordOptions) -> Result<ImmutableRef, StoreError> {
        let _ = (parts, options);
        todo!()
    }

    /// The ref of what leads from `lower` to `upper`. Fetches nothing where `lower` is below `upper`.
    pub async fn diff(
        &self,
        lower: &ImmutableRef,
        upper: &ImmutableRef,
        options: RecordOptions,
    ) -> Result<ImmutableRef, StoreError> {
        let _ = (lower, upper, options);
        todo!()
    }

    /// The records that match any of `filters` (all if there are none), with their sizes.
    pub async fn disk_usage(&self, filters: &[Filter]) -> Result<Vec<RecordInfo>, StoreError> {
        let _ = filters;
        todo!()
    }

    /// Removes records that nobody uses; tells `report` each as it goes.
    pub async fn prune(
        &self,
        options: &PruneOptions,
        report: &(dyn Fn(RecordInfo) + Send + Sync),
    ) -> Result<Pruned, StoreError> {
        let _ = (options, report);
        todo!()
    }

    /// Removes what `policies` say is too old or too much.
    pub async fn gc(&self, policies: &[GcPolicy]) -> Result<Pruned, StoreError> {
        let _ = policies;
        todo!()
    }

    /// The solver's keys.
    pub fn keys(&self) -> Arc<KeyCache> {
        todo!()
    }

    /// The solver's results.
    pub fn results(&self) -> Arc<Results> {
        todo!()
    }

    /// The content store.
    pub fn content(&self) -> &Arc<dyn ContentStore> {
        todo!()
    }

    /// The leases.
    pub fn leases(&self) -> &Arc<dyn Leases> {
        todo!()
    }

    /// What compares snapshots.
    pub fn differ(&self) -> &Arc<dyn Differ> {
        todo!()
    }

    /// The layer objects.
    pub fn engine(&self) -> &Arc<LayerEngine> {
        todo!()
    }
}
