//! The snapshotter of castor's own worker.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use castor_layerfs::LayerEngine;
use castor_metadb::KeyValue;

use crate::error::SnapshotError;
use crate::mounts::Mounts;
use crate::traits::{Element, Info, SnapshotId, Snapshotter, Usage};

/// Snapshots over image trees and diff directories.
pub struct LocalSnapshotter {}

impl LocalSnapshotter {
    /// Opens the snapshots under `root`, and deletes what a crash left half made.
    pub async fn open(
        root: impl Into<PathBuf>,
        db: Arc<dyn KeyValue>,
        engine: Arc<LayerEngine>,
    ) -> Result<Arc<Self>, SnapshotError> {
        let _ = (root.into(), db, engine);
        todo!()
    }

    /// The layer engine below.
    pub fn engine(&self) -> &Arc<LayerEngine> {
        todo!()
    }
}

#[async_trait]
impl Snapshotter for LocalSnapshotter {
    async fn create(&self, _id: &SnapshotId, _elements: &[Element]) -> Result<(), SnapshotError> {
        todo!()
    }
    async fn prepare(&self, _id: &SnapshotId, _parent: Option<&SnapshotId>) -> Result<(), SnapshotError> {
        todo!()
    }
    async fn view(&self, _id: &SnapshotId, _parent: &SnapshotId) -> Result<(), SnapshotError> {
        todo!()
    }
    async fn commit(&self, _id: &SnapshotId, _active: &SnapshotId) -> Result<(), SnapshotError> {
        todo!()
    }
    async fn merge(&self, _id: &SnapshotId, _parts: &[SnapshotId]) -> Result<(), SnapshotError> {
        todo!()
    }
    async fn slice(
        &self,
        _id: &SnapshotId,
        _lower: Option<&SnapshotId>,
        _upper: &SnapshotId,
    ) -> Result<bool, SnapshotError> {
        todo!()
    }
    async fn info(&self, _id: &SnapshotId) -> Result<Option<Info>, SnapshotError> {
        todo!()
    }
    async fn mounts(&self, _id: &SnapshotId) -> Result<Mounts, SnapshotError> {
        todo!()
    }
    async fn usage(&self, _id: &SnapshotId) -> Result<Usage, SnapshotError> {
        todo!()
    }
    async fn remove(&self, _id: &SnapshotId) -> Result<(), SnapshotError> {
        todo!()
    }
    async fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        todo!()
    }
}
