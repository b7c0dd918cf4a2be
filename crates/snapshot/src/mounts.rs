//! What is needed to mount a snapshot.

use std::path::Path;
use std::sync::Arc;

use castor_layerfs::{ImageTree, Layer};
use castor_mount::{Mount, Mounted};

use crate::error::SnapshotError;

/// A snapshot ready to be mounted. It keeps what it is made of from being removed.
#[derive(Debug)]
pub struct Mounts {
    trees: Vec<Arc<ImageTree>>,
}

impl Mounts {
    /// Mounts it at the directory `target`. Blocks: not for a runtime thread.
    pub fn mount_at(&self, target: &Path) -> Result<Mounted, SnapshotError> {
        let _ = target;
        todo!()
    }

    /// Mounts it read-only at `target`, even if it is active. Blocks.
    pub fn mount_read_only_at(&self, target: &Path) -> Result<Mounted, SnapshotError> {
        let _ = target;
        todo!()
    }

    /// As mounts for a foreign mounter: image trees are attached under the snapshotter's directory first. Blocks.
    pub fn as_values(&self) -> Result<Vec<Mount>, SnapshotError> {
        todo!()
    }

    /// Whether it is writable.
    pub fn writable(&self) -> bool {
        todo!()
    }

    /// The layers in it, for progress and read errors.
    pub fn layers(&self) -> impl Iterator<Item = &Arc<Layer>> {
        self.trees.iter().flat_map(|tree| tree.layers())
    }
}
