//! What there is to see of each layer: of those that are open from memory, of the others from their files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use castor_oci::{Descriptor, Digest};

use crate::complete::ingest_name;
use crate::engine::{LayerEngine, Live};
use crate::error::LayerError;
use crate::layer::{Layer, LayerState, Progress};
use crate::origin::Origin;
use crate::presence;
use crate::source::LayerId;
use crate::unpack::with_sources;

/// What is known of a layer, whether it is open or only on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerReport {
    /// What names it.
    pub id: LayerId,
    /// Its descriptor, as the image named it.
    pub descriptor: Descriptor,
    /// The image it was first used for.
    pub image: String,
    /// The repositories that are known to have the blob, best first.
    pub origins: Vec<String>,
    /// How it is here.
    pub state: LayerState,
    /// Why it was fetched before it was mounted; none for a lazy one.
    pub eager: Option<String>,
    /// Whether it is open in this daemon.
    pub open: bool,
    /// Whether something has it mounted or works with it.
    pub in_use: bool,
    /// Compressed bytes fetched since this daemon opened it.
    pub fetched: u64,
    /// Requests made since then.
    pub requests: u64,
    /// Time that readers have waited for it since then, summed.
    pub waiting: Duration,
    /// Chunks here, of all; `(0, 0)` for a layer that is not fetched by chunks.
    pub chunks: (u64, u64),
    /// The diff ID that an image claimed.
    pub claimed: Option<Digest>,
    /// The diff ID of the tar stream, once all of it was read and agreed with the TOC.
    pub verified: Option<Digest>,
    /// Why it never will be verified.
    pub refuted: Option<String>,
    /// Bytes on disk of the object.
    pub disk: u64,
    /// Bytes on disk that are kept of its compressed form: the blob, or what there is of it.
    pub compressed: u64,
}

impl LayerReport {
    fn of_open(layer: &Layer, in_use: bool) -> Self {
        let Progress { state, fetched, size: _, requests, waiting, chunks } = layer.progress();
        let eager = layer.eager_reason();
        let origin = layer.core.origin.lock().clone();
        Self {
            open: true,
            in_use,
            state,
            eager,
            fetched,
            requests,
            waiting,
            chunks,
            ..Self::of_origin(layer.id(), origin)
        }
    }

    fn of_origin(id: LayerId, origin: Origin) -> Self {
        Self {
            id,
            descriptor: origin.descriptor,
            image: origin.image,
            origins: origin.repositories,
            state: LayerState::Complete,
            eager: origin.eager,
            open: false,
            in_use: false,
            fetched: 0,
            requests: 0,
            waiting: Duration::ZERO,
            chunks: (0, 0),
            claimed: origin.claimed,
            verified: origin.verified,
            refuted: origin.refuted,
            disk: 0,
            compressed: 0,
        }
    }

    /// Reads it from the object's files; `None` if there is nothing that can be read. Blocks.
    fn of_files(id: LayerId, dir: &std::path::Path) -> Option<Self> {
        let origin = Origin::read(&dir.join("origin")).ok()?;
        let chunks = presence::counts(&dir.join("presence"));
        let state = if chunks.0 < chunks.1 { LayerState::Lazy } else { LayerState::Complete };
        Some(Self { state, chunks, ..Self::of_origin(id, origin) })
    }
}

impl LayerEngine {
    /// The layers that are open, by what names them, and whether they are in use.
    fn live_layers(&self) -> BTreeMap<LayerId, (Arc<Layer>, bool)> {
        let live = self.shared.live.lock();
        let layers = live.iter().filter_map(|(id, entry): (_, &Live)| {
            let in_use = entry.is_used();
            Some((*id, (entry.get()?, in_use)))
        });
        layers.collect()
    }

    /// The layers that are open, from memory alone: what they take on disk is not measured.
    pub fn report_open(&self) -> Vec<LayerReport> {
        self.live_layers().values().map(|(layer, in_use)| LayerReport::of_open(layer, *in_use)).collect()
    }

    /// All layers that are open or on disk, by what names them.
    pub async fn report(&self) -> Result<Vec<LayerReport>, LayerError> {
        let open = self.live_layers();
        let ids: BTreeSet<LayerId> = self.list()?.into_iter().chain(open.keys().copied()).collect();
        let dirs: Vec<(LayerId, PathBuf)> = ids.iter().map(|id| (*id, self.shared.layer_dir(*id))).collect();
        let mut reports: Vec<LayerReport> = castor_task::blocking(move || {
            let report = |(id, dir): (LayerId, PathBuf)| match open.get(&id) {
                Some((layer, in_use)) => Some(LayerReport::of_open(layer, *in_use)),
                None => LayerReport::of_files(id, &dir),
            };
            dirs.into_iter().filter_map(report).collect()
        })
        .await;
        let state = |error: castor_content::Error| LayerError::State(with_sources(&error));
        for report in &mut reports {
            report.disk = self.usage(report.id)?;
            let blob = self.shared.content.info(&report.id.blob).await.map_err(state)?;
            report.compressed = match blob {
                Some(blob) => blob.size,
                None => self.shared.content.ingest_space(&ingest_name(report.id.blob)).await.map_err(state)?,
            };
        }
        Ok(reports)
    }
}
