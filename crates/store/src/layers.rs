//! The image layers as people look at them: what the engine knows of each, and which records have it.

use std::collections::HashMap;
use std::sync::Arc;

use castor_layerfs::{LayerReport, LayerState};
use castor_progress::Timestamp;

use crate::store::Inner;
use crate::usage::{in_use, last_uses};
use crate::{RecordId, StoreError};

/// A layer, and who has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerUsage {
    /// What is known of the layer.
    pub layer: LayerReport,
    /// The records that have it.
    pub records: Vec<RecordId>,
    /// Whether a build has it, or something made of it.
    pub in_use: bool,
    /// When it, or something made of it, was last let go of.
    pub last_used: Option<Timestamp>,
}

impl LayerUsage {
    /// The layer in one line, as `debug workers` shows it.
    pub fn summary(&self) -> String {
        let LayerReport { state, eager, fetched, requests, waiting, descriptor, .. } = &self.layer;
        let how = match (state, eager) {
            (LayerState::Lazy, _) => "lazy".to_owned(),
            (LayerState::Eager { reason }, _) => format!("eager: {reason}"),
            (LayerState::Complete, Some(reason)) => format!("complete, eager: {reason}"),
            (LayerState::Complete, None) => "complete, lazy".to_owned(),
        };
        let waited = waiting.as_secs_f64();
        format!("{how}; {fetched} of {} bytes fetched, {requests} requests, {waited:.1} s waited", descriptor.size)
    }
}

pub(crate) async fn layers(inner: &Arc<Inner>) -> Result<Vec<LayerUsage>, StoreError> {
    Ok(usages(inner, inner.config.engine.report().await?))
}

pub(crate) fn open_layers(inner: &Arc<Inner>) -> Vec<LayerUsage> {
    usages(inner, inner.config.engine.report_open())
}

/// Who has the layers that `reports` tells of.
fn usages(inner: &Arc<Inner>, reports: Vec<LayerReport>) -> Vec<LayerUsage> {
    let records = inner.records.all();
    let (used, last) = (in_use(&records), last_uses(&records));
    let mut holders: HashMap<_, Vec<RecordId>> = HashMap::new();
    for rec in &records {
        let layer = rec.row.lock().layer;
        if let Some(layer) = layer {
            holders.entry(layer).or_default().push(rec.id.clone());
        }
    }
    let usage = |layer: LayerReport| {
        let mut records = holders.remove(&layer.id).unwrap_or_default();
        records.sort();
        LayerUsage {
            in_use: layer.in_use || records.iter().any(|id| used.contains(id)),
            last_used: records.iter().filter_map(|id| last.get(id).copied()).max(),
            layer,
            records,
        }
    };
    reports.into_iter().map(usage).collect()
}
