//! Removing records, and what of their layers can be had again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use castor_progress::Timestamp;

use crate::rows::Rec;
use crate::store::Inner;
use crate::usage::{Sizes, disk_usage, info};
use crate::{DiskSpace, Filter, GcPolicy, RecordId, RecordInfo, RecordType, StoreError};

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
    /// Layers whose records stayed, of which something was dropped that can be had again.
    pub layers: usize,
    /// Bytes freed.
    pub bytes: u64,
}

/// How many bytes may stay; `None`: there is no limit, so everything that fits the rules goes. The same sums as
/// BuildKit's.
fn keep_bytes(options: &PruneOptions, used: u64, disk: DiskSpace) -> Option<u64> {
    let PruneOptions { reserved_space, max_used_space, min_free_space, .. } = *options;
    let mut keep = max_used_space;
    let excess = min_free_space.saturating_sub(disk.free);
    if excess > 0 {
        let left = used.saturating_sub(excess);
        keep = if keep == 0 { left } else { keep.min(left) };
    } else if min_free_space > 0 && keep == 0 {
        // The disk has enough, and nothing else is asked for.
        keep = used;
    }
    Some(keep.max(reserved_space)).filter(|keep| *keep > 0)
}

/// The order in which records go: old and seldom used ones first, by the sum of the two ranks, each scaled to one.
struct Order {
    ages: Vec<Timestamp>,
    uses: Vec<i64>,
    queue: BTreeMap<(u64, RecordId), Arc<Rec>>,
}

impl Order {
    fn of(records: Vec<Arc<Rec>>) -> Self {
        let (mut ages, mut uses) = (Vec::new(), Vec::new());
        for rec in &records {
            let row = rec.row.lock();
            ages.extend(row.last_used);
            uses.extend(Some(row.usage_count).filter(|count| *count != 0));
        }
        ages.sort_unstable();
        ages.dedup();
        uses.sort_unstable();
        uses.dedup();
        let mut order = Self { ages, uses, queue: BTreeMap::new() };
        records.into_iter().for_each(|rec| order.push(rec));
        order
    }

    /// Takes one in; ranks stay what they were when the order was made.
    fn push(&mut self, rec: Arc<Rec>) {
        const SCALE: f64 = (1u64 << 40) as f64;
        let (age, count) = {
            let row = rec.row.lock();
            (row.last_used, row.usage_count)
        };
        let share = |before: usize, of: usize| (before + 1) as f64 / (of + 1) as f64;
        let age = share(age.map_or(0, |age| self.ages.partition_point(|other| *other <= age)), self.ages.len());
        let count = match count {
            0 => 0,
            count => self.uses.partition_point(|other| *other <= count),
        };
        let rank = ((age + share(count, self.uses.len())) * SCALE) as u64;
        self.queue.insert((rank, rec.id.clone()), rec);
    }

    fn pop(&mut self) -> Option<Arc<Rec>> {
        self.queue.pop_first().map(|(_, rec)| rec)
    }
}

/// One run over the records.
pub(crate) struct Run<'a> {
    pub(crate) inner: &'a Arc<Inner>,
    pub(crate) options: &'a PruneOptions,
    pub(crate) report: &'a (dyn Fn(RecordInfo) + Send + Sync),
    pub(crate) pruned: Pruned,
    /// Bytes that all records take, as far as is known.
    pub(crate) used: u64,
    oldest_kept: Option<Timestamp>,
}

impl Run<'_> {
    /// Whether the rules are about the record, which was last used at `last_used`.
    pub(crate) fn is_meant(&self, rec: &Rec, last_used: Option<Timestamp>) -> bool {
        let info = info(rec, false, 0);
        let special = matches!(info.record_type, RecordType::Internal | RecordType::Frontend);
        let recent = match (self.oldest_kept, last_used) {
            (Some(limit), Some(used)) => used > limit,
            _ => false,
        };
        (self.options.all || !(special || info.shared)) && !recent && Filter::any(&self.options.filters, &info)
    }

    fn is_removable(&self, rec: &Rec) -> bool {
        let last_used = rec.row.lock().last_used;
        rec.is_free() && self.is_meant(rec, last_used)
    }

    fn removable(&self) -> Vec<Arc<Rec>> {
        let mut records = self.inner.records.all();
        records.retain(|rec| self.is_removable(rec));
        records
    }

    /// Removes a record, and what it stood on if nothing else keeps that. Returns the records that are free now and
    /// were not before; nothing happens to one that found a user meanwhile.
    async fn take(&mut self, rec: &Arc<Rec>) -> Vec<Arc<Rec>> {
        let mut freed = Vec::new();
        for gone in self.inner.records.remove(rec) {
            let size = Sizes::freed(self.inner, &gone).await;
            let told = info(&gone, false, size);
            self.inner.delete(&gone).await;
            self.used = self.used.saturating_sub(size);
            self.pruned.records += 1;
            self.pruned.bytes += size;
            (self.report)(told);
            let below = gone.depends_on().into_iter().filter_map(|id| self.inner.records.peek(&id));
            freed.extend(below.filter(|rec| rec.is_free()));
        }
        freed
    }

    /// Removes all that the rules are about.
    async fn everything(&mut self) {
        let mut records = self.removable();
        while let Some(rec) = records.pop() {
            let freed = self.take(&rec).await;
            records.extend(freed.into_iter().filter(|rec| self.is_removable(rec)));
        }
    }

    /// Removes what goes first until no more than `keep` bytes are left.
    async fn down_to(&mut self, keep: u64) -> Result<(), StoreError> {
        self.reclaim(keep).await?;
        while self.used > keep {
            let before = self.pruned.records;
            let mut order = Order::of(self.removable());
            while self.used > keep
                && let Some(rec) = order.pop()
            {
                for freed in self.take(&rec).await {
                    if self.is_removable(&freed) {
                        order.push(freed);
                    }
                }
            }
            if self.pruned.records == before {
                break;
            }
            // Bytes that several records shared have been counted as freed with each.
            self.used = total(self.inner).await?;
        }
        Ok(())
    }
}

async fn total(inner: &Arc<Inner>) -> Result<u64, StoreError> {
    Ok(disk_usage(inner, &[]).await?.iter().map(|info| info.size.max(0).cast_unsigned()).sum())
}

async fn run(
    inner: &Arc<Inner>,
    options: &PruneOptions,
    report: &(dyn Fn(RecordInfo) + Send + Sync),
) -> Result<Pruned, StoreError> {
    let oldest_kept = options.keep_duration.map(|keep| Timestamp::now() - keep);
    let mut run = Run { inner, options, report, pruned: Pruned::default(), used: 0, oldest_kept };
    let mut keep = None;
    if options.reserved_space > 0 || options.max_used_space > 0 || options.min_free_space > 0 {
        run.used = total(inner).await?;
        let root = inner.config.root.clone();
        let disk = castor_task::blocking(move || DiskSpace::of(&root)).await?;
        keep = keep_bytes(options, run.used, disk);
    }
    match keep {
        Some(keep) => run.down_to(keep).await?,
        None => run.everything().await,
    }
    Ok(run.pruned)
}

pub(crate) async fn prune(
    inner: &Arc<Inner>,
    options: &PruneOptions,
    report: &(dyn Fn(RecordInfo) + Send + Sync),
) -> Result<Pruned, StoreError> {
    let _one = inner.pruning.lock().await;
    let pruned = run(inner, options, report).await?;
    if pruned != Pruned::default() {
        collect(inner).await;
    }
    Ok(pruned)
}

pub(crate) async fn gc(inner: &Arc<Inner>, policies: &[GcPolicy]) -> Result<Pruned, StoreError> {
    let _one = inner.pruning.lock().await;
    let mut pruned = Pruned::default();
    for policy in policies {
        let some = run(inner, &policy.into(), &|_| {}).await?;
        pruned.records += some.records;
        pruned.layers += some.layers;
        pruned.bytes += some.bytes;
    }
    // Records also go by themselves, with their last user.
    collect(inner).await;
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

#[cfg(test)]
mod tests {
    use castor_metadb::Memory;

    use super::*;
    use crate::RecordOptions;
    use crate::record::Body;
    use crate::rows::Records;
    use crate::store::new_row;

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
            // More than there is to give: everything.
            (options(0, 0, 900), None),
            // Alone it is what older clients call the storage to keep.
            (options(10, 0, 0), Some(10)),
        ] {
            assert_eq!(keep_bytes(&options, 500, disk), want, "{options:?}");
        }
    }

    #[test]
    fn the_old_and_seldom_used_go_first() {
        let records = Records::open(Arc::new(Memory::new())).unwrap().0;
        let record = |name: &str, last_used: Option<i64>, usage_count| {
            let mut row = new_row(Body::Change { parent: None }, Vec::new(), RecordOptions::described(name));
            row.last_used = last_used.map(|at| Timestamp::from_second(at).unwrap());
            row.usage_count = usage_count;
            records.insert(row).unwrap()
        };
        let all = vec![
            record("new, often", Some(300), 9),
            record("old, often", Some(100), 9),
            record("new, once", Some(300), 1),
            record("never", None, 0),
            record("old, once", Some(100), 1),
        ];
        // As new as the newest there were: equal ranks go in any order.
        let later = record("freed meanwhile", Some(400), 1);
        let mut order = Order::of(all);
        let name = |rec: Arc<Rec>| rec.row.lock().description.clone();
        assert_eq!(order.pop().map(name).unwrap(), "never");
        order.push(later);
        let rest: Vec<String> = std::iter::from_fn(|| order.pop()).map(name).collect();
        assert_eq!((rest[0].as_str(), rest.last().unwrap().as_str()), ("old, once", "new, often"), "{rest:?}");
        assert_eq!(rest.len(), 5);
    }
}
