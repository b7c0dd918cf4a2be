//! What the records take, and removing them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use castor_content::Resource;
use castor_progress::Timestamp;
use castor_snapshot::SnapshotId;

use crate::record::Body;
use crate::rows::Rec;
use crate::store::Inner;
use crate::{DiskSpace, Filter, GcPolicy, RecordInfo, RecordType, StoreError};

/// What to remove. Nothing that is in use is.
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// Only records that match any of these; all if there are none.
    pub filters: Vec<Filter>,
    /// Internal and frontend records too.
    pub all: bool,
    /// Only records that were not used for so long.
    pub keep_duration: Option<Duration>,
    /// Keep so many bytes in any case.
    pub reserved_space: u64,
    /// Keep at most so many bytes.
    pub max_used_space: u64,
    /// Keep so many bytes of the disk free.
    pub min_free_space: u64,
}

impl From<&GcPolicy> for PruneOptions {
    fn from(policy: &GcPolicy) -> Self {
        Self {
            filters: policy.filters.clone(),
            all: policy.all,
            keep_duration: policy.keep_duration,
            reserved_space: policy.reserved_space,
            max_used_space: policy.max_used_space,
            min_free_space: policy.min_free_space,
        }
    }
}

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Records.
    pub records: usize,
    /// Their bytes.
    pub bytes: u64,
}

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
fn in_use(records: &[Arc<Rec>]) -> HashSet<String> {
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

/// Computes sizes; bytes that several records have are counted with the first.
#[derive(Default)]
struct Sizes {
    layers: HashSet<castor_layerfs::LayerId>,
    blobs: HashSet<castor_oci::Digest>,
}

impl Sizes {
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
            size += inner.config.engine.usage(layer).unwrap_or(0);
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

/// How many bytes may stay; `None`: there is no limit, so everything that fits the rules goes.
fn keep_bytes(options: &PruneOptions, used: u64, disk: DiskSpace) -> Option<u64> {
    let PruneOptions { reserved_space, max_used_space, min_free_space, .. } = *options;
    if reserved_space == 0 && max_used_space == 0 && min_free_space == 0 {
        return None;
    }
    let mut keep = u64::MAX;
    if max_used_space > 0 {
        keep = max_used_space;
    }
    if min_free_space > 0 {
        keep = keep.min(used.saturating_sub(min_free_space.saturating_sub(disk.free)));
    }
    Some(keep.max(reserved_space))
}

/// Old and seldom used goes first: the ranks by both, each scaled to one, added.
fn order_of_removal(records: &mut [Arc<Rec>]) {
    let ranks = |key: &dyn Fn(&Rec) -> i128| -> HashMap<String, f64> {
        let mut values: Vec<_> = records.iter().map(|rec| key(rec)).collect();
        values.sort_unstable();
        values.dedup();
        let last = values.len().saturating_sub(1).max(1) as f64;
        let rank = |rec: &Arc<Rec>| values.binary_search(&key(rec)).unwrap_or(0) as f64 / last;
        records.iter().map(|rec| (rec.id.clone(), rank(rec))).collect()
    };
    let age = ranks(&|rec| rec.row.lock().last_used.map_or(i128::MIN, Timestamp::as_nanosecond));
    let uses = ranks(&|rec| i128::from(rec.row.lock().usage_count));
    let rank = |rec: &Arc<Rec>| age.get(&rec.id).unwrap_or(&0.0) + uses.get(&rec.id).unwrap_or(&0.0);
    records.sort_by(|a, b| rank(a).total_cmp(&rank(b)).then_with(|| a.id.cmp(&b.id)));
}

fn removable(inner: &Inner, options: &PruneOptions) -> Vec<Arc<Rec>> {
    let oldest_kept = options.keep_duration.map(|keep| Timestamp::now() - keep);
    let fits = |rec: &Arc<Rec>| {
        let info = info(rec, false, 0);
        let special = matches!(info.record_type, RecordType::Internal | RecordType::Frontend);
        let recent = match (oldest_kept, info.last_used) {
            (Some(limit), Some(used)) => used > limit,
            _ => false,
        };
        rec.is_free() && (options.all || !(special || info.shared)) && !recent && Filter::any(&options.filters, &info)
    };
    inner.records.all().into_iter().filter(fits).collect()
}

pub(crate) async fn prune(
    inner: &Arc<Inner>,
    options: &PruneOptions,
    report: &(dyn Fn(RecordInfo) + Send + Sync),
) -> Result<Pruned, StoreError> {
    let _one = inner.pruning.lock().await;
    let mut pruned = Pruned::default();
    let limited = options.reserved_space > 0 || options.max_used_space > 0 || options.min_free_space > 0;
    let (mut used, mut keep) = (0, None);
    if limited {
        used = disk_usage(inner, &[]).await?.iter().map(|info| info.size.max(0) as u64).sum();
        let root = inner.config.root.clone();
        let disk = castor_task::blocking(move || DiskSpace::of(&root)).await?;
        keep = keep_bytes(options, used, disk);
    }
    loop {
        if keep.is_some_and(|keep| used <= keep) {
            break;
        }
        let mut records = removable(inner, options);
        if keep.is_some() {
            order_of_removal(&mut records);
            records.truncate(1);
        }
        let before = pruned.records;
        for rec in records {
            // What it stood on goes with it if nothing else keeps that. None: it found a user meanwhile.
            for gone in inner.records.remove(&rec) {
                let size = Sizes::default().of(inner, &gone).await;
                let told = info(&gone, false, size);
                inner.delete(&gone).await;
                used = used.saturating_sub(size);
                pruned.records += 1;
                pruned.bytes += size;
                report(told);
            }
        }
        if pruned.records == before {
            break;
        }
    }
    if pruned.records > 0 {
        collect(inner).await;
    }
    Ok(pruned)
}

/// Removes the blobs that no record and no layer object holds any more.
async fn collect(inner: &Arc<Inner>) {
    let engine = inner.config.engine.clone();
    let roots = match castor_task::blocking(move || engine.content()).await {
        Ok(roots) => roots,
        Err(error) => {
            tracing::warn!(%error, "layer objects cannot be listed, content is not collected");
            return;
        }
    };
    match inner.config.content.collect(&roots).await {
        Ok(collected) => {
            tracing::debug!(blobs = collected.blobs.len(), bytes = collected.bytes, "content collected");
        }
        Err(error) => tracing::warn!(%error, "collect content"),
    }
}

pub(crate) async fn gc(inner: &Arc<Inner>, policies: &[GcPolicy]) -> Result<Pruned, StoreError> {
    let mut pruned = Pruned::default();
    for policy in policies {
        let some = prune(inner, &policy.into(), &|_| {}).await?;
        pruned.records += some.records;
        pruned.bytes += some.bytes;
    }
    // Records also go by themselves, with their last user.
    collect(inner).await;
    Ok(pruned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_bound_each_other_as_buildkits_do() {
        let options = |reserved_space, max_used_space, min_free_space| PruneOptions {
            reserved_space,
            max_used_space,
            min_free_space,
            ..PruneOptions::default()
        };
        let disk = DiskSpace { total: 1000, free: 100 };
        for (options, want) in [
            (options(0, 0, 0), None),
            (options(0, 300, 0), Some(300)),
            (options(400, 300, 0), Some(400)),
            (options(0, 0, 150), Some(450)),
            (options(0, 300, 150), Some(300)),
            (options(480, 490, 150), Some(480)),
            (options(0, 0, 50), Some(500)),
            (options(0, 0, 900), Some(0)),
            (options(10, 0, 0), Some(u64::MAX)),
        ] {
            assert_eq!(keep_bytes(&options, 500, disk), want, "{options:?}");
        }
    }
}
