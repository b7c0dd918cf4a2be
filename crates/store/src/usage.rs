//! What the records take.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use castor_content::Resource;
use castor_progress::Timestamp;
use castor_snapshot::SnapshotId;

use crate::record::Body;
use crate::rows::Rec;
use crate::store::Inner;
use crate::{Filter, RecordId, RecordInfo, StoreError};

/// A record as `du` shows it.
pub(crate) fn info(rec: &Rec, in_use: bool, size: u64) -> RecordInfo {
    let row = rec.row.lock();
    let mutable = row.body.is_active();
    RecordInfo {
        id: rec.id.clone(),
        mutable,
        in_use,
        size: if mutable && in_use { 0 } else { i64::try_from(size).unwrap_or(i64::MAX) },
        parents: row.body.parents(),
        created: row.created,
        last_used: row.last_used,
        usage_count: row.usage_count,
        description: row.description.clone(),
        record_type: row.record_type,
        shared: false,
    }
}

/// The records that a handle keeps: themselves, or something made of them.
pub(crate) fn in_use(records: &[Arc<Rec>]) -> HashSet<RecordId> {
    let by_id: HashMap<_, _> = records.iter().map(|rec| (rec.id.as_str(), rec)).collect();
    let mut used = HashSet::new();
    let mut pending: Vec<String> = records.iter().filter(|rec| rec.handles() > 0).map(|rec| rec.id.clone()).collect();
    while let Some(id) = pending.pop() {
        if let Some(rec) = by_id.get(id.as_str()).filter(|_| used.insert(id.clone())) {
            pending.extend(rec.depends_on());
        }
    }
    used
}

/// When each record, or something made of it, was last let go of.
pub(crate) fn last_uses(records: &[Arc<Rec>]) -> HashMap<RecordId, Timestamp> {
    let by_id: HashMap<_, _> = records.iter().map(|rec| (rec.id.as_str(), rec)).collect();
    let mut latest: Vec<(Timestamp, &Arc<Rec>)> =
        records.iter().filter_map(|rec| Some((rec.row.lock().last_used?, rec))).collect();
    latest.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
    let mut uses = HashMap::new();
    // The latest first: who first comes by a record brings the latest use of it.
    for (used, rec) in latest {
        let mut pending = vec![rec.id.clone()];
        while let Some(id) = pending.pop() {
            let Some(rec) = by_id.get(id.as_str()) else { continue };
            if let Entry::Vacant(entry) = uses.entry(id) {
                entry.insert(used);
                pending.extend(rec.depends_on());
            }
        }
    }
    uses
}

/// Computes sizes; bytes that several records have are counted with the first.
#[derive(Default)]
pub(crate) struct Sizes {
    layers: HashSet<castor_layerfs::LayerId>,
    blobs: HashSet<castor_oci::Digest>,
    partial: HashSet<castor_oci::Digest>,
}

impl Sizes {
    /// What goes with a record that has been removed: a layer that others have stays.
    pub(crate) async fn freed(inner: &Inner, gone: &Rec) -> u64 {
        let mut sizes = Self::default();
        let layer = gone.row.lock().layer;
        if let Some(layer) = layer.filter(|layer| !inner.records.of_layer(*layer).is_empty()) {
            sizes.layers.insert(layer);
            sizes.blobs.insert(layer.blob);
        }
        sizes.of(inner, gone).await
    }

    async fn of(&mut self, inner: &Inner, rec: &Rec) -> u64 {
        let (body, known, layer) = {
            let row = rec.row.lock();
            (row.body.clone(), row.size, row.layer)
        };
        let mut size = match (&body, known) {
            (Body::Change { .. }, Some(known)) => known,
            (Body::Change { .. } | Body::Active { .. }, _) => {
                let usage = inner.config.snapshotter.usage(&SnapshotId::new(rec.id.as_str())).await;
                let size = usage.map(|usage| usage.size).unwrap_or_else(|error| {
                    tracing::debug!(record = %rec.id, %error, "size not known");
                    0
                });
                if matches!(body, Body::Change { .. }) {
                    inner.records.change(rec, |row| row.size = Some(size));
                }
                size
            }
            _ => 0,
        };
        if let Some(layer) = layer.filter(|layer| self.layers.insert(*layer)) {
            let engine = inner.config.engine.clone();
            size += castor_task::blocking(move || engine.usage(layer)).await.unwrap_or(0);
            // What was fetched of the blob, until it is whole.
            if self.partial.insert(layer.blob) {
                size += inner.config.engine.partial(layer.blob).await.unwrap_or(0);
            }
        }
        let held = inner.config.leases.resources(&Inner::lease(&rec.id)).await.unwrap_or_default();
        for resource in held {
            if let Resource::Blob(digest) = resource
                && self.blobs.insert(digest)
                && let Ok(Some(blob)) = inner.config.content.info(&digest).await
            {
                size += blob.size;
            }
        }
        size
    }
}

pub(crate) async fn disk_usage(inner: &Arc<Inner>, filters: &[Filter]) -> Result<Vec<RecordInfo>, StoreError> {
    let mut records = inner.records.all();
    records.sort_by_key(|rec| (rec.row.lock().created, rec.id.clone()));
    let used = in_use(&records);
    let mut sizes = Sizes::default();
    let mut infos = Vec::new();
    for rec in &records {
        let size = sizes.of(inner, rec).await;
        infos.push(info(rec, used.contains(&rec.id), size));
    }
    infos.retain(|info| Filter::any(filters, info));
    Ok(infos)
}
