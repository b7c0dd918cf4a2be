//! The store in a redb file.
//!
//! One thread writes. Callers put batches into a queue and into an overlay that reads look at first; the thread takes
//! all that is queued, commits it as one durable transaction and clears it from the overlay. A batch that somebody waits
//! for is committed at once together with what is queued before it; others wait up to [`LINGER`] for company.

use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::{Condvar, Mutex};
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError, TableHandle};
use tokio::sync::oneshot;

use crate::batch::Change;
use crate::{Batch, Error, KeyValue, Pairs};

/// How long a batch that nobody waits for may stay in memory alone.
const LINGER: Duration = Duration::from_millis(80);
/// Queued bytes at which the writer does not linger.
const HEAVY: usize = 4 << 20;
/// Memory that redb may use for pages.
const CACHE: usize = 64 << 20;

/// The table that holds the format version; no caller's table may be called so.
const FORMAT_TABLE: &str = "castor.format";
const FORMAT_KEY: &[u8] = b"version";

type Definition<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;

/// A [`KeyValue`] in a file. Dropping it writes what is queued; after a crash the file holds a prefix of what was written.
#[derive(Debug)]
pub struct Db {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    path: String,
    database: Database,
    state: Mutex<State>,
    wake: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The newest values of one table's keys, each with the number of its batch; `None` is a deletion.
type Overlay = BTreeMap<Vec<u8>, (u64, Option<Vec<u8>>)>;

/// Every queued batch has a number. Invariant: the overlay holds exactly the last value of each key that a batch with a
/// number above `durable` changes.
#[derive(Default)]
struct State {
    queue: Vec<Batch>,
    overlay: HashMap<String, Overlay>,
    /// Number of the newest batch.
    newest: u64,
    /// Number of the newest batch that is on disk.
    durable: u64,
    waiters: Vec<(u64, oneshot::Sender<Result<(), Error>>)>,
    /// Bytes queued.
    weight: usize,
    /// When the oldest queued batch came.
    oldest: Option<Instant>,
    closing: bool,
    failed: Option<Error>,
}

/// The database while it is brought to a newer format: everything happens in one transaction with the new version.
pub struct Migration<'a> {
    transaction: &'a redb::WriteTransaction,
    path: &'a str,
}

impl std::fmt::Debug for Migration<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Migration").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Migration<'_> {
    /// The names of all tables.
    pub fn tables(&self) -> Result<Vec<String>, Error> {
        let tables = self.transaction.list_tables().map_err(|e| storage("migrate", self.path, e))?;
        Ok(tables.map(|t| t.name().to_owned()).filter(|name| name != FORMAT_TABLE).collect())
    }

    /// All pairs of `table`.
    pub fn scan(&self, table: &str) -> Result<Pairs, Error> {
        let fail = |e: redb::Error| storage("migrate", self.path, e);
        let table = self.transaction.open_table(Definition::new(table)).map_err(|e| fail(e.into()))?;
        pairs(table.iter().map_err(|e| fail(e.into()))?).map_err(|e| fail(e.into()))
    }

    /// Applies `batch`.
    pub fn apply(&self, batch: &Batch) -> Result<(), Error> {
        apply(self.transaction, &batch.changes).map_err(|e| storage("migrate", self.path, e))
    }

    /// Removes `table` with all that is in it.
    pub fn drop_table(&self, table: &str) -> Result<(), Error> {
        self.transaction.delete_table(Definition::new(table)).map_err(|e| storage("migrate", self.path, e))?;
        Ok(())
    }
}

impl Db {
    /// Opens the database at `path`, making it if it is not there. A file of another format than `format` is refused.
    pub fn open(path: impl AsRef<Path>, format: u32) -> Result<Self, Error> {
        let path = path.as_ref();
        Self::open_migrating(path, format, |found, _| {
            Err(Error::TooOld { path: path.display().to_string(), found, wanted: format })
        })
    }

    /// Like [`open`](Self::open), but a file of an older format is brought to `format` by `migrate`, which is told the
    /// format that was found. When it fails, the file stays as it was.
    pub fn open_migrating(
        path: impl AsRef<Path>,
        format: u32,
        migrate: impl FnOnce(u32, &Migration<'_>) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let name = path.as_ref().display().to_string();
        // What is built is nobody else's business.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(|e| storage("open", &name, redb::Error::Io(e)))?;
        let damaged = || Error::Storage { action: "open", path: name.clone(), cause: "the file is damaged".into() };
        let create = || Database::builder().set_cache_size(CACHE).create_with_backend(FileBackend::new(file)?);
        let database = panic_free(create).ok_or_else(damaged)?.map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => Error::Locked { path: name.clone() },
            other => storage("open", &name, other),
        })?;
        panic_free(|| check_format(&database, &name, format, migrate)).ok_or_else(damaged)??;
        let shared = Arc::new(Shared { path: name, database, state: Mutex::default(), wake: Condvar::new() });
        let writer = std::thread::Builder::new()
            .name("metadb".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run()
            })
            .map_err(|e| storage("start the writer of", &shared.path, redb::Error::Io(e)))?;
        Ok(Self { shared, writer: Mutex::new(Some(writer)) })
    }

    /// Writes what is queued and takes no more; reads still work. Blocks until all is on disk.
    pub fn close(&self) -> Result<(), Error> {
        self.shared.state.lock().closing = true;
        self.shared.wake.notify_all();
        if let Some(writer) = self.writer.lock().take()
            && writer.join().is_err()
        {
            return Err(self.shared.closed("the writer panicked"));
        }
        match &self.shared.state.lock().failed {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "close database");
        }
    }
}

impl Shared {
    fn closed(&self, cause: impl ToString) -> Error {
        Error::Closed { path: self.path.clone(), cause: cause.to_string() }
    }

    /// Queues `batch` and gives it a number; with `wait`, also somebody who wants to hear when it is durable.
    fn enqueue(&self, batch: Batch, wait: bool) -> Result<Option<oneshot::Receiver<Result<(), Error>>>, Error> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if let Some(error) = &state.failed {
            return Err(self.closed(error));
        }
        if state.closing {
            return Err(self.closed("it was closed"));
        }
        if !batch.is_empty() {
            state.newest += 1;
            for change in &batch.changes {
                let table = match state.overlay.get_mut(&change.table) {
                    Some(table) => table,
                    None => state.overlay.entry(change.table.clone()).or_default(),
                };
                table.insert(change.key.clone(), (state.newest, change.value.clone()));
            }
            state.weight += batch.weight();
            state.queue.push(batch);
            state.oldest.get_or_insert_with(Instant::now);
        }
        let receiver = if wait && state.durable < state.newest {
            let (sender, receiver) = oneshot::channel();
            state.waiters.push((state.newest, sender));
            Some(receiver)
        } else {
            None
        };
        drop(guard);
        self.wake.notify_all();
        Ok(receiver)
    }

    async fn durable(&self, batch: Batch) -> Result<(), Error> {
        match self.enqueue(batch, true)? {
            Some(receiver) => receiver.await.unwrap_or_else(|_| Err(self.closed("the writer ended"))),
            None => Ok(()),
        }
    }

    /// The writer thread: until closed, or until the storage fails.
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if state.queue.is_empty() {
                if state.closing {
                    return;
                }
                self.wake.wait(&mut state);
                continue;
            }
            let due = state.oldest.map_or_else(Instant::now, |oldest| oldest + LINGER);
            let urgent = !state.waiters.is_empty() || state.closing || state.weight >= HEAVY;
            if !urgent && Instant::now() < due {
                self.wake.wait_until(&mut state, due);
                continue;
            }
            let batches = std::mem::take(&mut state.queue);
            let newest = state.newest;
            state.weight = 0;
            state.oldest = None;
            // Whoever waits must hear of a panic, too.
            let outcome = parking_lot::MutexGuard::unlocked(&mut state, || panic_free(|| self.commit(&batches)))
                .unwrap_or_else(|| Err(self.closed("the writer panicked")));
            match outcome {
                Ok(()) => state.settle(&batches, newest),
                Err(error) => {
                    // What is queued stays readable, but redb takes no writes after an I/O error, and writing on after
                    // a gap would break the order.
                    tracing::error!(%error, "write to the database");
                    for (_, waiter) in state.waiters.drain(..) {
                        let _ = waiter.send(Err(error.clone()));
                    }
                    state.failed = Some(error);
                    return;
                }
            }
        }
    }

    fn commit(&self, batches: &[Batch]) -> Result<(), Error> {
        let fail = |e: redb::Error| storage("write to", &self.path, e);
        let transaction = self.database.begin_write().map_err(|e| fail(e.into()))?;
        for batch in batches {
            apply(&transaction, &batch.changes).map_err(fail)?;
        }
        castor_task::crash_point("database batch");
        transaction.commit().map_err(|e| fail(e.into()))?;
        castor_task::crash_point("database batch done");
        Ok(())
    }
}

impl State {
    /// All batches up to `newest`, the last of which were `batches`, are on disk.
    fn settle(&mut self, batches: &[Batch], newest: u64) {
        self.durable = newest;
        for change in batches.iter().flat_map(|batch| &batch.changes) {
            if let Some(table) = self.overlay.get_mut(&change.table)
                && table.get(&change.key).is_some_and(|(number, _)| *number <= newest)
            {
                table.remove(&change.key);
            }
        }
        let (done, waiting) = std::mem::take(&mut self.waiters).into_iter().partition(|(number, _)| *number <= newest);
        self.waiters = waiting;
        let done: Vec<(u64, oneshot::Sender<_>)> = done;
        for (_, waiter) in done {
            let _ = waiter.send(Ok(()));
        }
    }
}

#[async_trait]
impl KeyValue for Db {
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let shared = &*self.shared;
        if let Some((_, value)) = shared.state.lock().overlay.get(table).and_then(|t| t.get(key)) {
            return Ok(value.clone());
        }
        // A key that left the overlay is in every snapshot taken from now on.
        let read = || -> Result<_, redb::Error> {
            let transaction = shared.database.begin_read()?;
            match transaction.open_table(Definition::new(table)) {
                Ok(table) => Ok(table.get(key)?.map(|value| value.value().to_vec())),
                Err(TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        read().map_err(|e| storage("read", &shared.path, e))
    }

    fn scan_prefix(&self, table: &str, prefix: &[u8]) -> Result<Pairs, Error> {
        let shared = &*self.shared;
        let fail = |e: redb::Error| storage("read", &shared.path, e);
        // Overlay and snapshot are taken together, so that the scan shows one moment.
        let (queued, transaction) = {
            let state = shared.state.lock();
            let queued: BTreeMap<Vec<u8>, Option<Vec<u8>>> = match state.overlay.get(table) {
                Some(table) => table
                    .range(prefix.to_vec()..)
                    .take_while(|(key, _)| key.starts_with(prefix))
                    .map(|(key, (_, value))| (key.clone(), value.clone()))
                    .collect(),
                None => BTreeMap::new(),
            };
            (queued, shared.database.begin_read().map_err(|e| fail(e.into()))?)
        };
        let read = || -> Result<Pairs, redb::Error> {
            match transaction.open_table(Definition::new(table)) {
                Ok(table) => {
                    let range = table.range(prefix..)?;
                    let within = range.take_while(|pair| match pair {
                        Ok((key, _)) => key.value().starts_with(prefix),
                        Err(_) => true,
                    });
                    Ok(pairs(within)?)
                }
                Err(TableError::TableDoesNotExist(_)) => Ok(Vec::new()),
                Err(error) => Err(error.into()),
            }
        };
        let stored = read().map_err(fail)?;
        if queued.is_empty() {
            return Ok(stored);
        }
        let mut merged: BTreeMap<_, _> = stored.into_iter().collect();
        for (key, value) in queued {
            match value {
                Some(value) => merged.insert(key, value),
                None => merged.remove(&key),
            };
        }
        Ok(merged.into_iter().collect())
    }

    async fn write(&self, batch: Batch) -> Result<(), Error> {
        self.shared.durable(batch).await
    }

    fn write_soon(&self, batch: Batch) {
        if let Err(error) = self.shared.enqueue(batch, false) {
            tracing::error!(%error, "queue a write");
        }
    }

    async fn flush(&self) -> Result<(), Error> {
        self.shared.durable(Batch::new()).await
    }
}

/// Runs `work`; `None` if it panics, as redb does on some kinds of damage to its file.
fn panic_free<T>(work: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok()
}

fn storage(action: &'static str, path: &str, cause: impl Into<redb::Error>) -> Error {
    Error::Storage { action, path: path.to_owned(), cause: cause.into().to_string() }
}

fn pairs<'a>(
    range: impl Iterator<
        Item = Result<(redb::AccessGuard<'a, &'static [u8]>, redb::AccessGuard<'a, &'static [u8]>), redb::StorageError>,
    >,
) -> Result<Pairs, redb::StorageError> {
    range.map(|pair| pair.map(|(key, value)| (key.value().to_vec(), value.value().to_vec()))).collect()
}

fn apply(transaction: &redb::WriteTransaction, changes: &[Change]) -> Result<(), redb::Error> {
    let mut rest = changes;
    while let Some(first) = rest.first() {
        let run = rest.iter().take_while(|change| change.table == first.table).count();
        let mut table = transaction.open_table(Definition::new(&first.table))?;
        for change in &rest[..run] {
            match &change.value {
                Some(value) => table.insert(change.key.as_slice(), value.as_slice())?,
                None => table.remove(change.key.as_slice())?,
            };
        }
        rest = &rest[run..];
    }
    Ok(())
}

fn check_format(
    database: &Database,
    path: &str,
    format: u32,
    migrate: impl FnOnce(u32, &Migration<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let fail = |e: redb::Error| storage("open", path, e);
    let transaction = database.begin_write().map_err(|e| fail(e.into()))?;
    let found = {
        let table = transaction.open_table(Definition::new(FORMAT_TABLE)).map_err(|e| fail(e.into()))?;
        let value = table.get(FORMAT_KEY).map_err(|e| fail(e.into()))?;
        match value.as_ref().map(|value| value.value().try_into().map(u32::from_le_bytes)) {
            None => None,
            Some(Ok(found)) => Some(found),
            Some(Err(_)) => {
                let cause = "its format version is damaged".to_owned();
                return Err(Error::Storage { action: "open", path: path.to_owned(), cause });
            }
        }
    };
    match found {
        Some(found) if found == format => return transaction.abort().map_err(|e| fail(e.into())),
        Some(found) if found > format => return Err(Error::TooNew { path: path.to_owned(), found, known: format }),
        Some(found) => migrate(found, &Migration { transaction: &transaction, path })?,
        None => {}
    }
    transaction
        .open_table(Definition::new(FORMAT_TABLE))
        .map_err(|e| fail(e.into()))?
        .insert(FORMAT_KEY, format.to_le_bytes().as_slice())
        .map_err(|e| fail(e.into()))?;
    transaction.commit().map_err(|e| fail(e.into()))
}
