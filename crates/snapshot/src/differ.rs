//! The differ of castor's own worker.

use std::io::Write;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::SnapshotError;
use crate::local::LocalSnapshotter;
use crate::traits::{DiffStats, Differ, SnapshotId};

/// Compares snapshots of a [`LocalSnapshotter`].
pub struct LocalDiffer {
    snapshots: Arc<LocalSnapshotter>,
}

impl LocalDiffer {
    /// A differ over `snapshots`.
    pub fn new(snapshots: Arc<LocalSnapshotter>) -> Self {
        Self { snapshots }
    }
}

#[async_trait]
impl Differ for LocalDiffer {
    async fn diff(
        &self,
        lower: Option<&SnapshotId>,
        upper: &SnapshotId,
        out: Box<dyn Write + Send>,
    ) -> Result<(Box<dyn Write + Send>, DiffStats), SnapshotError> {
        let _ = (&self.snapshots, lower, upper, out);
        todo!()
    }
}
