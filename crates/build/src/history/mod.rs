//! The record of builds that ended, kept on disk: what was asked, how it ended, and as blobs of the content store its log,
//! its provenance, its error and its trace.
//!
//! A record is a row of the database, in the wire's form; its blobs are held by a lease of its own. The row is written
//! last: a record that is there is whole. What a crash leaves without its other half is removed at the next start.

mod filter;
mod record;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use castor_content::{Commit, ContentStore, Leases, Resource};
use castor_metadb::{Batch, KeyValue};
use castor_oci::Digest;
use castor_progress::Timestamp;
use castor_proto::control::{BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, Descriptor};
use castor_task::CancellationToken;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{RwLock, broadcast};

pub use filter::{HistoryFilter, HistoryFilterError, select};
pub use record::LogReader;
pub(crate) use record::{Ended, Results, begun};

/// Where records are kept.
const TABLE: &str = "build.history";
/// What the lease of a record is called, with its build's name behind it.
const LEASE: &str = "history-";
/// The label of blobs that are the history's own, and not content of images.
pub const HISTORY_LABEL: &str = "castor/history";
/// Events that wait for a listener.
const WAITING: usize = 256;

/// What is kept for how long: a record goes when it is beyond both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Younger ones stay.
    pub max_age: Duration,
    /// So many stay in any case.
    pub max_entries: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(48 * 3600), max_entries: 50 }
    }
}

/// Why the history could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// There is no such record.
    #[error("failed to retrieve ref {0}: file does not exist")]
    NotFound(String),
    /// The database failed.
    #[error("build history: {0}")]
    Database(#[from] castor_metadb::Error),
    /// The content store failed.
    #[error("build history: {0}")]
    Content(#[from] castor_content::Error),
    /// A row is damaged.
    #[error("failed to unmarshal build record {0}: {1}")]
    Damaged(String, prost::DecodeError),
}

/// The records of a daemon. Clones are handles of the same history.
#[derive(Clone)]
pub struct History(Arc<Inner>);

struct Inner {
    db: Arc<dyn KeyValue>,
    content: Arc<dyn ContentStore>,
    leases: Arc<dyn Leases>,
    limits: HistoryLimits,
    listeners: Mutex<Listeners>,
    /// Shared by those who add blobs and records, exclusive for those who remove them.
    busy: RwLock<()>,
    events: broadcast::Sender<BuildHistoryEvent>,
    /// Records that wait for what is still to come of their builds.
    open: Mutex<HashMap<String, Open>>,
}

#[derive(Clone)]
struct Open {
    /// Somebody wants it finished now.
    wanted: CancellationToken,
    done: CancellationToken,
    /// Tells it from another one of the same name.
    same: Arc<()>,
}

#[derive(Default)]
struct Listeners {
    /// How many listen to one record.
    of: HashMap<String, usize>,
    /// Records that go when their last listener leaves; hidden until then.
    doomed: HashSet<String>,
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

impl History {
    /// The history that `db` and `content` keep.
    pub fn new(
        db: Arc<dyn KeyValue>,
        content: Arc<dyn ContentStore>,
        leases: Arc<dyn Leases>,
        limits: HistoryLimits,
    ) -> Self {
        let events = broadcast::channel(WAITING).0;
        let (listeners, busy) = (Mutex::default(), RwLock::new(()));
        let open = Mutex::default();
        Self(Arc::new(Inner { db, content, leases, limits, listeners, busy, events, open }))
    }

    /// Removes what a crash left: blobs without their record, and records without their blobs.
    pub async fn recover(&self) -> Result<(), HistoryError> {
        let _alone = self.0.busy.write().await;
        let records: BTreeSet<String> = self.rows()?.into_iter().map(|record| record.r#ref).collect();
        let mut leases = BTreeSet::new();
        for lease in self.0.leases.leases().await? {
            let Some(id) = lease.id.strip_prefix(LEASE) else { continue };
            if records.contains(id) {
                leases.insert(id.to_owned());
            } else {
                self.release(id, &BTreeSet::new()).await?;
            }
        }
        for id in records.difference(&leases) {
            tracing::warn!(build = id, "a build record without its blobs is removed");
            self.forget(id).await?;
        }
        Ok(())
    }

    /// Every record that is not on its way out.
    pub fn records(&self) -> Result<Vec<BuildHistoryRecord>, HistoryError> {
        let mut records = self.rows()?;
        let listeners = self.0.listeners.lock();
        records.retain(|record| !listeners.doomed.contains(&record.r#ref));
        Ok(records)
    }

    fn rows(&self) -> Result<Vec<BuildHistoryRecord>, HistoryError> {
        let rows = self.0.db.scan_prefix(TABLE, b"")?;
        rows.into_iter().map(|(key, value)| decoded(&String::from_utf8_lossy(&key), &value)).collect()
    }

    /// The record of the build `id`.
    pub fn record(&self, id: &str) -> Result<Option<BuildHistoryRecord>, HistoryError> {
        if id.is_empty() || self.0.listeners.lock().doomed.contains(id) {
            return Ok(None);
        }
        let row = self.0.db.get(TABLE, id.as_bytes())?;
        row.map(|row| decoded(id, &row)).transpose()
    }

    /// Keeps the record of the build `id` open for what is still to come, until the value is dropped.
    pub(crate) fn keep_open(&self, id: &str) -> StillOpen {
        let open = Open { wanted: CancellationToken::new(), done: CancellationToken::new(), same: Arc::default() };
        self.0.open.lock().insert(id.to_owned(), open.clone());
        StillOpen { history: self.clone(), id: id.to_owned(), open }
    }

    /// Has the record of the build `id` finished now, and waits until it is.
    pub async fn finalize(&self, id: &str) {
        let open = self.0.open.lock().get(id).cloned();
        if let Some(open) = open {
            open.wanted.cancel();
            open.done.cancelled().await;
        }
    }

    /// What happens from now on. A listener that falls far behind misses events.
    pub fn events(&self) -> broadcast::Receiver<BuildHistoryEvent> {
        self.0.events.subscribe()
    }

    /// Tells listeners of an event.
    pub(crate) fn tell(&self, kind: BuildHistoryEventType, record: BuildHistoryRecord) {
        // Nobody listening is no error.
        let _ = self.0.events.send(BuildHistoryEvent { r#type: kind.into(), record: Some(record) });
    }

    /// Keeps the record of the build `id` from being removed until the guard is [dropped](Listening); nothing if it is on
    /// its way out already.
    pub fn listen(&self, id: &str) -> Option<Listening> {
        let mut listeners = self.0.listeners.lock();
        if listeners.doomed.contains(id) {
            return None;
        }
        *listeners.of.entry(id.to_owned()).or_default() += 1;
        Some(Listening { history: self.clone(), id: id.to_owned() })
    }

    /// Pins or unpins a record.
    pub async fn pin(&self, id: &str, pinned: bool) -> Result<(), HistoryError> {
        self.update(id, |record| record.pinned = pinned).await
    }

    /// Changes a record and tells listeners.
    pub(crate) async fn update(
        &self,
        id: &str,
        change: impl FnOnce(&mut BuildHistoryRecord) + Send,
    ) -> Result<(), HistoryError> {
        // Exclusive: of two who change a record neither may be lost.
        let _alone = self.0.busy.write().await;
        let mut record = self.record(id)?.ok_or_else(|| HistoryError::NotFound(id.to_owned()))?;
        change(&mut record);
        record.generation += 1;
        self.put(&record).await?;
        self.tell(BuildHistoryEventType::Complete, record);
        Ok(())
    }

    /// Writes a record whose blobs are there.
    async fn put(&self, record: &BuildHistoryRecord) -> Result<(), HistoryError> {
        let mut batch = Batch::new();
        batch.put(TABLE, record.r#ref.as_bytes(), record.encode_to_vec());
        Ok(self.0.db.write(batch).await?)
    }

    /// Removes a record and its blobs: now, or when its last listener leaves. One that is not there is an error.
    pub async fn delete(&self, id: &str) -> Result<(), HistoryError> {
        if self.record(id)?.is_none() {
            return Err(HistoryError::NotFound(id.to_owned()));
        }
        {
            let mut listeners = self.0.listeners.lock();
            if listeners.of.contains_key(id) {
                listeners.doomed.insert(id.to_owned());
                return Ok(());
            }
        }
        self.remove(id).await
    }

    async fn remove(&self, id: &str) -> Result<(), HistoryError> {
        let _alone = self.0.busy.write().await;
        self.tell(
            BuildHistoryEventType::Deleted,
            BuildHistoryRecord { r#ref: id.to_owned(), ..BuildHistoryRecord::default() },
        );
        self.forget(id).await
    }

    /// Removes a record, then its blobs.
    async fn forget(&self, id: &str) -> Result<(), HistoryError> {
        let mut batch = Batch::new();
        batch.delete(TABLE, id.as_bytes());
        self.0.db.write(batch).await?;
        self.0.listeners.lock().doomed.remove(id);
        let shared = self.rows()?.iter().flat_map(record::blobs).map(|blob| blob.digest.clone()).collect();
        self.release(id, &shared).await
    }

    /// Ends a record's lease, and removes the blobs that were the history's own and are not `shared` with other records.
    async fn release(&self, id: &str, shared: &BTreeSet<String>) -> Result<(), HistoryError> {
        let lease = lease(id);
        let held = match self.0.leases.resources(&lease).await {
            Ok(held) => held,
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        self.0.leases.delete_lease(&lease).await?;
        for resource in held {
            let Resource::Blob(digest) = resource else { continue };
            let own = match self.0.content.info(&digest).await? {
                Some(info) => info.labels.contains_key(HISTORY_LABEL),
                None => false,
            };
            if own && !shared.contains(&digest.to_string()) {
                match self.0.content.delete(&digest).await {
                    Err(error) if !error.is_not_found() => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Removes the records that are beyond the limits.
    pub async fn collect(&self, now: Timestamp) -> Result<usize, HistoryError> {
        let mut records: Vec<_> = self.records()?.into_iter().filter(|record| !record.pinned).collect();
        records.sort_by_key(|record| std::cmp::Reverse(completed(record)));
        let oldest = now.as_second().saturating_sub_unsigned(self.0.limits.max_age.as_secs());
        let mut removed = 0;
        for id in self.abandoned() {
            self.remove(&id).await?;
        }
        for record in records.iter().skip(self.0.limits.max_entries).filter(|record| completed(record).0 < oldest) {
            self.delete(&record.r#ref).await?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Makes a blob of the history of `bytes`, held for the record of the build `id`.
    async fn blob(&self, id: &str, media_type: &str, bytes: bytes::Bytes) -> Result<Descriptor, HistoryError> {
        let mut writer = self.0.content.writer().await?;
        writer.append(bytes).await?;
        self.commit(id, media_type, writer).await
    }

    async fn commit(
        &self,
        id: &str,
        media_type: &str,
        writer: castor_content::Writer,
    ) -> Result<Descriptor, HistoryError> {
        let labels = [(HISTORY_LABEL.to_owned(), "true".to_owned())].into();
        let info = writer.commit(None, Commit { labels, lease: Some(lease(id)) }).await?;
        Ok(Descriptor {
            media_type: media_type.to_owned(),
            digest: info.digest.to_string(),
            size: i64::try_from(info.size).unwrap_or(i64::MAX),
            ..Descriptor::default()
        })
    }

    /// The lease for the blobs of a record; one that an earlier build of that name left is taken over.
    async fn leased(&self, id: &str) -> Result<(), HistoryError> {
        match self.0.leases.create_lease(&lease(id), Default::default(), None).await {
            Ok(_) | Err(castor_content::Error::LeaseExists(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps a blob that is in the store already for a record as well; whether it is there.
    async fn hold(&self, id: &str, digest: &Digest) -> Result<bool, HistoryError> {
        let commit = Commit { labels: Default::default(), lease: Some(lease(id)) };
        Ok(self.0.content.hold(digest, &commit).await?.is_some())
    }

    /// The blob of a descriptor, opened.
    pub async fn open(&self, descriptor: &Descriptor) -> Result<castor_content::Blob, HistoryError> {
        let digest = descriptor.digest.parse().map_err(|_| HistoryError::NotFound(descriptor.digest.clone()))?;
        Ok(self.0.content.open(&digest).await?)
    }
}

/// A record that something is still to come for.
pub(crate) struct StillOpen {
    history: History,
    id: String,
    open: Open,
}

impl StillOpen {
    /// Returns when somebody wants the record finished.
    pub(crate) async fn wanted(&self) {
        self.open.wanted.cancelled().await;
    }
}

impl Drop for StillOpen {
    fn drop(&mut self) {
        let mut open = self.history.0.open.lock();
        // A later build of the same name has one of its own.
        if open.get(&self.id).is_some_and(|current| Arc::ptr_eq(&current.same, &self.open.same)) {
            open.remove(&self.id);
        }
        self.open.done.cancel();
    }
}

/// Keeps a record while somebody listens to it.
#[derive(Debug)]
pub struct Listening {
    history: History,
    id: String,
}

impl Listening {
    /// Leaves; the last one to leave a record that was deleted meanwhile removes it.
    pub async fn leave(self) -> Result<(), HistoryError> {
        let (history, id) = (self.history.clone(), self.id.clone());
        drop(self);
        if history.abandoned().contains(&id) { history.remove(&id).await } else { Ok(()) }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut listeners = self.history.0.listeners.lock();
        match listeners.of.get_mut(&self.id) {
            Some(count) if *count > 1 => *count -= 1,
            // A deleted record stays hidden until the collector comes by.
            _ => drop(listeners.of.remove(&self.id)),
        }
    }
}

impl History {
    /// Deleted records that nobody listens to any more.
    fn abandoned(&self) -> Vec<String> {
        let listeners = self.0.listeners.lock();
        listeners.doomed.iter().filter(|id| !listeners.of.contains_key(*id)).cloned().collect()
    }
}

fn lease(id: &str) -> String {
    format!("{LEASE}{id}")
}

fn decoded(id: &str, row: &[u8]) -> Result<BuildHistoryRecord, HistoryError> {
    BuildHistoryRecord::decode(row).map_err(|error| HistoryError::Damaged(id.to_owned(), error))
}

fn completed(record: &BuildHistoryRecord) -> (i64, i32) {
    record.completed_at.as_ref().map_or((0, 0), |time| (time.seconds, time.nanos))
}

#[cfg(test)]
mod tests;
