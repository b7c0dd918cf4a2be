//! The engine: owner of all layer objects and image trees of a state directory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use castor_mount::Detached;
use castor_progress::Reporter;

use crate::error::LayerError;
use crate::layer::Layer;
use crate::mode::{Mode, Modes};
use crate::source::{LayerId, LayerSource};

/// How an engine works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its directory.
    pub root: PathBuf,
    /// Use this mode instead of the best that the probe finds.
    pub mode: Option<Mode>,
    /// Longest time that a read of a lazy layer may wait before it fails with EIO.
    pub read_deadline: Duration,
    /// Layers that are downloaded whole at the same time.
    pub parallel_layers: usize,
}

impl Config {
    /// Defaults under `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), mode: None, read_deadline: Duration::from_secs(60), parallel_layers: 4 }
    }
}

/// Owns the layer objects and image trees under one directory.
#[derive(Debug)]
pub struct LayerEngine {}

/// The mounted tree of a list of layers: an overlay lower. Nothing of it is visible in any mount namespace.
#[derive(Debug)]
pub struct ImageTree {}

impl ImageTree {
    /// The detached mount.
    pub fn mount(&self) -> &Detached {
        todo!()
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[Arc<Layer>] {
        todo!()
    }
}

impl LayerEngine {
    /// What this machine can mount.
    pub fn modes(&self) -> &Modes {
        todo!()
    }

    /// The layer that `source` describes: from disk if it is here; else a lazy object, or an eager download that has
    /// begun (see [`Layer::ready`]).
    pub async fn layer(&self, source: LayerSource, reporter: &Reporter) -> Result<Arc<Layer>, LayerError> {
        let _ = (source, reporter);
        todo!()
    }

    /// The layer `id` if its object is here; needs no network.
    pub async fn existing(&self, id: LayerId) -> Result<Option<Arc<Layer>>, LayerError> {
        let _ = id;
        todo!()
    }

    /// The mounted tree of `layers`, lowest first. Waits until each can be mounted.
    pub async fn image_tree(&self, layers: &[LayerId]) -> Result<Arc<ImageTree>, LayerError> {
        let _ = layers;
        todo!()
    }

    /// The sequence number that the next read error will have.
    pub fn error_mark(&self) -> u64 {
        todo!()
    }

    /// All layer objects on disk.
    pub fn list(&self) -> Result<Vec<LayerId>, LayerError> {
        todo!()
    }

    /// Deletes a layer object that nothing uses.
    pub async fn remove(&self, id: LayerId) -> Result<(), LayerError> {
        let _ = id;
        todo!()
    }

    /// Bytes on disk of a layer object.
    pub fn usage(&self, id: LayerId) -> Result<u64, LayerError> {
        let _ = id;
        todo!()
    }

    /// Stops all fetches, answers what is parked, writes presence to disk.
    pub async fn shutdown(&self) {
        todo!()
    }
}
