//! The records: all of them in memory, each change queued to the database.
//!
//! | table | key | value |
//! |---|---|---|
//! | `store.records` | record id | [`Row`] (JSON) |
//!
//! A record leaves the table, here and in the database, before what it names is deleted: a crash in between leaves
//! snapshots without a record, which are removed at the next start, and never a record without its snapshot.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use castor_layerfs::LayerId;
use castor_metadb::{Batch, KeyValue};
use castor_progress::Timestamp;
use parking_lot::Mutex;

use crate::StoreError;
use crate::contenthash::Hashes;
use crate::mounting::Mountpoint;
use crate::record::{Body, RecordId, Row};

const TABLE: &str = "store.records";

/// A record in memory.
#[derive(Debug)]
pub(crate) struct Rec {
    pub(crate) id: RecordId,
    pub(crate) row: Mutex<Row>,
    /// The name of its snapshot, once that is known to exist.
    pub(crate) snapshot: tokio::sync::Mutex<Option<castor_snapshot::SnapshotId>>,
    pub(crate) mountpoint: Mountpoint,
    pub(crate) hashes: Hashes,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    handles: usize,
    children: usize,
    removed: bool,
}

impl Rec {
    fn new(id: RecordId, row: Row) -> Arc<Self> {
        Arc::new(Self {
            id,
            row: Mutex::new(row),
            snapshot: tokio::sync::Mutex::default(),
            mountpoint: Mountpoint::default(),
            hashes: Hashes::default(),
            state: Mutex::default(),
        })
    }

    pub(crate) fn body(&self) -> Body {
        self.row.lock().body.clone()
    }

    pub(crate) fn parts(&self) -> Vec<RecordId> {
        self.row.lock().parts.clone()
    }

    pub(crate) fn handles(&self) -> usize {
        self.state.lock().handles
    }

    /// Whether neither a handle nor another record keeps it.
    pub(crate) fn is_free(&self) -> bool {
        let state = self.state.lock();
        state.handles == 0 && state.children == 0
    }
}

/// All records.
pub(crate) struct Records {
    db: Arc<dyn KeyValue>,
    /// Held while a record gets or loses a handle or a child: none is removed in between.
    map: Mutex<HashMap<RecordId, Arc<Rec>>>,
    /// The records that have each layer object.
    layers: Mutex<HashMap<LayerId, HashSet<RecordId>>>,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").field("count", &self.map.lock().len()).finish()
    }
}

impl Records {
    /// Reads all records and drops those that nobody retained, and what depends on what is missing. The ids of those that
    /// were dropped are returned too.
    pub(crate) fn open(db: Arc<dyn KeyValue>) -> Result<(Self, Vec<RecordId>), StoreError> {
        let mut rows = HashMap::<RecordId, Row>::new();
        for (key, value) in db.scan_prefix(TABLE, &[])? {
            let id = String::from_utf8_lossy(&key).into_owned();
            match serde_json::from_slice(&value) {
                Ok(row) => {
                    rows.insert(id, row);
                }
                Err(error) => tracing::warn!(record = %id, %error, "record cannot be read, dropped"),
            }
        }
        let kept = kept(&rows);
        let mut batch = Batch::new();
        let dropped: Vec<_> = rows.keys().filter(|id| !kept.contains(*id)).cloned().collect();
        for id in &dropped {
            batch.delete(TABLE, id);
        }
        if !batch.is_empty() {
            db.write_soon(batch);
        }
        let map: HashMap<_, _> = rows
            .into_iter()
            .filter(|(id, _)| kept.contains(id))
            .map(|(id, row)| (id.clone(), Rec::new(id, row)))
            .collect();
        for rec in map.values() {
            for parent in rec.depends_on() {
                if let Some(parent) = map.get(&parent) {
                    parent.state.lock().children += 1;
                }
            }
        }
        let mut layers: HashMap<LayerId, HashSet<RecordId>> = HashMap::new();
        for rec in map.values() {
            if let Some(layer) = rec.row.lock().layer {
                layers.entry(layer).or_default().insert(rec.id.clone());
            }
        }
        Ok((Self { db, map: Mutex::new(map), layers: Mutex::new(layers) }, dropped))
    }

    /// Takes a handle of a record.
    pub(crate) fn acquire(&self, id: &str) -> Option<Arc<Rec>> {
        let map = self.map.lock();
        let rec = map.get(id)?;
        rec.state.lock().handles += 1;
        Some(rec.clone())
    }

    /// Takes a handle of the first record that fits and has none.
    pub(crate) fn acquire_free(&self, fits: impl Fn(&Rec) -> bool) -> Option<Arc<Rec>> {
        let map = self.map.lock();
        let mut free: Vec<_> = map.values().filter(|rec| rec.is_free() && fits(rec)).collect();
        free.sort_by_key(|rec| std::cmp::Reverse(rec.row.lock().last_used));
        let rec = free.first()?;
        rec.state.lock().handles += 1;
        Some(Arc::clone(rec))
    }

    /// A new record, with one handle.
    pub(crate) fn insert(&self, row: Row) -> Result<Arc<Rec>, StoreError> {
        let id = new_id();
        let rec = Rec::new(id.clone(), row);
        let mut map = self.map.lock();
        for parent in rec.depends_on() {
            let parent = map.get(&parent).ok_or(StoreError::NotFound(parent))?;
            parent.state.lock().children += 1;
        }
        rec.state.lock().handles = 1;
        map.insert(id, rec.clone());
        drop(map);
        self.persist(&rec);
        Ok(rec)
    }

    /// Changes a record. What it depends on stays as it is.
    pub(crate) fn change<T>(&self, rec: &Rec, change: impl FnOnce(&mut Row) -> T) -> T {
        let value = change(&mut rec.row.lock());
        self.persist(rec);
        value
    }

    /// Says which layer object a record has.
    pub(crate) fn set_layer(&self, rec: &Rec, layer: LayerId) {
        {
            // Under the row's lock, as a record that goes takes itself out of the index.
            let mut row = rec.row.lock();
            if row.layer == Some(layer) || rec.state.lock().removed {
                return;
            }
            let mut layers = self.layers.lock();
            layers.entry(layer).or_default().insert(rec.id.clone());
            if let Some(before) = row.layer.replace(layer) {
                leave(&mut layers, before, &rec.id);
            }
        }
        self.persist(rec);
    }

    /// The records that have a layer object.
    pub(crate) fn of_layer(&self, layer: LayerId) -> Vec<Arc<Rec>> {
        let ids: Vec<RecordId> = self.layers.lock().get(&layer).into_iter().flatten().cloned().collect();
        ids.iter().filter_map(|id| self.peek(id)).collect()
    }

    /// Gives a handle back. True if nothing keeps the record any more and it should be removed.
    pub(crate) fn release(&self, rec: &Rec) -> bool {
        let _map = self.map.lock();
        let (last, free) = {
            let mut state = rec.state.lock();
            state.handles -= 1;
            (state.handles == 0, state.handles == 0 && state.children == 0)
        };
        if last {
            let mut row = rec.row.lock();
            row.last_used = Some(Timestamp::now());
            row.usage_count += 1;
        }
        let remove = free && !rec.row.lock().retain;
        if last && !remove {
            self.persist(rec);
        }
        remove
    }

    /// Removes a record that nothing keeps. Those below that nobody retained and that nothing else keeps go with it; all
    /// that went is returned, the uppermost first.
    pub(crate) fn remove(&self, rec: &Arc<Rec>) -> Vec<Arc<Rec>> {
        let mut map = self.map.lock();
        let mut removed = Vec::new();
        let mut batch = Batch::new();
        let mut pending = vec![rec.clone()];
        while let Some(rec) = pending.pop() {
            if !rec.is_free() || std::mem::replace(&mut rec.state.lock().removed, true) {
                continue;
            }
            map.remove(&rec.id);
            // Whoever is writing it down has queued that before this is queued; later ones see that it is removed.
            if let Some(layer) = rec.row.lock().layer {
                leave(&mut self.layers.lock(), layer, &rec.id);
            }
            batch.delete(TABLE, &rec.id);
            for below in rec.depends_on() {
                let Some(below) = map.get(&below) else { continue };
                below.state.lock().children -= 1;
                if !below.row.lock().retain {
                    pending.push(below.clone());
                }
            }
            removed.push(rec);
        }
        drop(map);
        if !batch.is_empty() {
            self.db.write_soon(batch);
        }
        removed
    }

    /// Removes records that cannot be used, whoever retained them, and all that depends on them; at the start, when there
    /// are no handles. All that went is returned, the uppermost first.
    pub(crate) fn evict(&self, unusable: HashSet<RecordId>) -> Vec<Arc<Rec>> {
        let mut doomed = unusable;
        let all = self.all();
        loop {
            let before = doomed.len();
            for rec in &all {
                if rec.depends_on().iter().any(|id| doomed.contains(id)) {
                    doomed.insert(rec.id.clone());
                }
            }
            if doomed.len() == before {
                break;
            }
        }
        let mut left: Vec<_> = all.into_iter().filter(|rec| doomed.contains(&rec.id)).collect();
        let mut gone = Vec::new();
        // Children first: a record with children does not go.
        while !left.is_empty() {
            let before = gone.len();
            for rec in &left {
                gone.extend(self.remove(rec));
            }
            if gone.len() == before {
                break;
            }
            left.retain(|rec| self.contains(&rec.id));
        }
        gone
    }

    pub(crate) fn contains(&self, id: &str) -> bool {
        self.map.lock().contains_key(id)
    }

    pub(crate) fn peek(&self, id: &str) -> Option<Arc<Rec>> {
        self.map.lock().get(id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Rec>> {
        self.map.lock().values().cloned().collect()
    }

    fn persist(&self, rec: &Rec) {
        // Locked across the queueing, so that of two changes the later is written later.
        let row = rec.row.lock();
        if rec.state.lock().removed {
            return;
        }
        match serde_json::to_vec(&*row) {
            Ok(value) => {
                let mut batch = Batch::new();
                batch.put(TABLE, &rec.id, value);
                self.db.write_soon(batch);
            }
            Err(error) => tracing::error!(record = %rec.id, %error, "record cannot be written"),
        }
    }
}

/// Takes a record out of the index of layers.
fn leave(layers: &mut HashMap<LayerId, HashSet<RecordId>>, layer: LayerId, id: &RecordId) {
    if let Some(ids) = layers.get_mut(&layer) {
        ids.remove(id);
        if ids.is_empty() {
            layers.remove(&layer);
        }
    }
}

impl Rec {
    /// The records that must exist as long as this one.
    pub(crate) fn depends_on(&self) -> Vec<RecordId> {
        let row = self.row.lock();
        depends_on(&self.id, &row)
    }
}

fn depends_on(id: &str, row: &Row) -> Vec<RecordId> {
    let mut ids = row.body.parents();
    // A slice is made of parts that its parents need not all name; a merge's are its parents' own.
    ids.extend(row.parts.iter().cloned());
    ids.retain(|other| other != id);
    ids.sort();
    ids.dedup();
    ids
}

/// The ids of rows to keep: retained ones and all that those depend on, if that is complete.
fn kept(rows: &HashMap<RecordId, Row>) -> HashSet<RecordId> {
    // First, what is complete: nothing it depends on is missing.
    let mut broken: HashSet<RecordId> = HashSet::new();
    loop {
        let before = broken.len();
        for (id, row) in rows {
            let missing = |other: &RecordId| !rows.contains_key(other) || broken.contains(other);
            if depends_on(id, row).iter().any(missing) {
                broken.insert(id.clone());
            }
        }
        if broken.len() == before {
            break;
        }
    }
    let mut kept = HashSet::new();
    let mut pending: Vec<_> = rows.iter().filter(|(_, row)| row.retain).map(|(id, _)| id.clone()).collect();
    while let Some(id) = pending.pop() {
        if broken.contains(&id) || !kept.insert(id.clone()) {
            continue;
        }
        pending.extend(rows.get(&id).into_iter().flat_map(|row| depends_on(&id, row)));
    }
    kept
}

/// 25 characters of 0-9 and a-z, like BuildKit's.
fn new_id() -> RecordId {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    (0..25).map(|_| char::from(DIGITS[usize::from(rand::random::<u8>()) % DIGITS.len()])).collect()
}

#[cfg(test)]
mod tests {
    use castor_metadb::Memory;

    use super::*;
    use crate::record::RecordType;

    fn row(parent: Option<&Arc<Rec>>, retain: bool) -> Row {
        Row {
            body: Body::Change { parent: parent.map(|rec| rec.id.clone()) },
            parts: Vec::new(),
            description: String::new(),
            record_type: RecordType::Regular,
            created: Timestamp::now(),
            last_used: None,
            usage_count: 0,
            size: None,
            retain,
            key: None,
            snapshots: Vec::new(),
            layer: None,
            labels: Default::default(),
        }
    }

    #[test]
    fn a_record_goes_with_its_last_handle_unless_retained_or_built_on() {
        let records = Records::open(Arc::new(Memory::new())).unwrap().0;
        let base = records.insert(row(None, false)).unwrap();
        let child = records.insert(row(Some(&base), true)).unwrap();
        assert!(!records.release(&base), "the child keeps it");
        assert!(!records.release(&child), "it is retained");
        assert_eq!(child.row.lock().usage_count, 1);
        let removed = records.remove(&child);
        assert_eq!(removed.iter().map(|rec| &rec.id).collect::<Vec<_>>(), [&child.id, &base.id]);
        assert!(records.all().is_empty());
    }

    #[test]
    fn a_record_with_a_handle_is_not_removed() {
        let records = Records::open(Arc::new(Memory::new())).unwrap().0;
        let base = records.insert(row(None, true)).unwrap();
        assert!(records.remove(&base).is_empty());
        assert!(records.contains(&base.id));
    }

    #[test]
    fn what_was_retained_is_there_after_a_restart_with_all_it_needs() {
        let db = Arc::new(Memory::new());
        let records = Records::open(db.clone()).unwrap().0;
        let base = records.insert(row(None, false)).unwrap();
        let child = records.insert(row(Some(&base), true)).unwrap();
        let loose = records.insert(row(Some(&base), false)).unwrap();
        drop(records);
        let records = Records::open(db).unwrap().0;
        assert!(records.contains(&base.id) && records.contains(&child.id) && !records.contains(&loose.id));
        assert!(!records.acquire(&base.id).unwrap().is_free());
    }

    #[test]
    fn the_records_of_a_layer_are_known_without_a_search() {
        let db = Arc::new(Memory::new());
        let records = Records::open(db.clone()).unwrap().0;
        let layer = |text: &str| LayerId { blob: castor_oci::Digest::of(text), toc: None };
        let (one, other) = (records.insert(row(None, true)).unwrap(), records.insert(row(None, true)).unwrap());
        for rec in [&one, &other] {
            records.set_layer(rec, layer("a"));
        }
        assert_eq!(records.of_layer(layer("a")).len(), 2);
        records.set_layer(&other, layer("b"));
        let ids = |text| records.of_layer(layer(text)).iter().map(|rec| rec.id.clone()).collect::<Vec<_>>();
        assert_eq!((ids("a"), ids("b")), (vec![one.id.clone()], vec![other.id.clone()]));
        records.release(&one);
        records.remove(&one);
        assert!(ids("a").is_empty());
        let again = Records::open(db).unwrap().0;
        assert_eq!(again.of_layer(layer("b")).len(), 1);
    }

    #[test]
    fn ids_look_like_buildkits() {
        let id = new_id();
        assert_eq!(id.len(), 25);
        assert_ne!(id, new_id());
    }
}
