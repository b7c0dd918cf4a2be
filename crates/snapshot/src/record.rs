//! What is kept of snapshots and diffs in the database.
//!
//! | table | key | value, JSON |
//! |---|---|---|
//! | `snapshots` | the snapshot's name | kind, elements, parent |
//! | `diffs` | number, 8 bytes big-endian | size, inodes, whether it is bound to what it was made on or hides what lies below, and until it was synced the boot it was made in |
//! | `flat` | digest of a list of elements | the list, and the diff that stands for it |
//! | `snapshot-meta` | `next-diff` | the number of the next diff, 8 bytes big-endian |

use std::collections::{HashMap, HashSet};

use castor_metadb::{Batch, KeyValue};
use castor_oci::Digest;
use serde::{Deserialize, Serialize};

use crate::error::SnapshotError;
use crate::traits::{DiffId, Element, Info, SnapshotId};

pub(crate) const SNAPSHOTS: &str = "snapshots";
pub(crate) const DIFFS: &str = "diffs";
pub(crate) const FLAT: &str = "flat";
const META: &str = "snapshot-meta";
const NEXT: &[u8] = b"next-diff";

/// What is known of a diff.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Diff {
    /// Bytes on disk, once committed.
    pub size: u64,
    pub inodes: u64,
    /// It has entries that only mean something on `base`: files whose data, or directories whose content, is below, and
    /// directories that may be as they are there.
    #[serde(default)]
    pub bound: bool,
    /// It has directories that hide all that lies below them, which shall only be what is in `base`.
    #[serde(default)]
    pub opaque: bool,
    /// What it was made on, if it is bound, opaque or still active.
    #[serde(default)]
    pub base: Vec<Element>,
    /// The boot it was last written in, until it was synced: it is not to be trusted in another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsynced: Option<String>,
}

/// A diff that stands for a list of elements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Flat {
    /// The elements it stands for, lowest first.
    pub elements: Vec<Element>,
    /// What they lie on.
    pub base: Vec<Element>,
    pub diff: DiffId,
}

/// All of it, in memory; the database follows.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub snapshots: HashMap<SnapshotId, Info>,
    pub diffs: HashMap<DiffId, Diff>,
    pub flat: HashMap<Digest, Flat>,
    pub next: u64,
    /// Mounts that use a diff.
    pub pins: HashMap<DiffId, usize>,
}

/// Names a list of elements on a base.
pub(crate) fn list_digest(base: &[Element], elements: &[Element]) -> Digest {
    let text = serde_json::to_vec(&(base, elements)).unwrap_or_default();
    Digest::of(text)
}

fn db(error: castor_metadb::Error) -> SnapshotError {
    SnapshotError::State(error.to_string())
}

fn parse<T: serde::de::DeserializeOwned>(table: &str, value: &[u8]) -> Result<T, SnapshotError> {
    serde_json::from_slice(value).map_err(|e| SnapshotError::State(format!("table {table}: {e}")))
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // Structs of numbers, strings and lists always serialise.
    serde_json::to_vec(value).unwrap_or_default()
}

impl State {
    /// Reads it from the database.
    pub(crate) fn read(store: &dyn KeyValue) -> Result<Self, SnapshotError> {
        let mut state = Self::default();
        for (key, value) in store.scan_prefix(SNAPSHOTS, b"").map_err(db)? {
            let id = String::from_utf8(key).map_err(|e| SnapshotError::State(e.to_string()))?;
            state.snapshots.insert(SnapshotId::new(id), parse(SNAPSHOTS, &value)?);
        }
        for (key, value) in store.scan_prefix(DIFFS, b"").map_err(db)? {
            let number = key.try_into().map_err(|_| SnapshotError::State("table diffs: malformed key".into()))?;
            state.diffs.insert(DiffId(u64::from_be_bytes(number)), parse(DIFFS, &value)?);
        }
        for (_, value) in store.scan_prefix(FLAT, b"").map_err(db)? {
            let flat: Flat = parse(FLAT, &value)?;
            state.flat.insert(list_digest(&flat.base, &flat.elements), flat);
        }
        let next = store.get(META, NEXT).map_err(db)?.and_then(|value| value.try_into().ok());
        // Batches of two snapshots may be written in another order than their numbers were given.
        let used = state.diffs.keys().map(|id| id.0 + 1).max().unwrap_or(1);
        state.next = next.map_or(1, u64::from_be_bytes).max(used);
        Ok(state)
    }

    /// A new diff on `base`; its record and number go into `batch`.
    pub(crate) fn new_diff(&mut self, base: Vec<Element>, boot: &str, batch: &mut Batch) -> DiffId {
        let id = DiffId(self.next);
        self.next += 1;
        batch.put(META, NEXT, self.next.to_be_bytes());
        self.put_diff(id, Diff { base, unsynced: Some(boot.to_owned()), ..Diff::default() }, batch);
        id
    }

    pub(crate) fn put_diff(&mut self, id: DiffId, diff: Diff, batch: &mut Batch) {
        batch.put(DIFFS, id.0.to_be_bytes(), json(&diff));
        self.diffs.insert(id, diff);
    }

    pub(crate) fn put(&mut self, id: &SnapshotId, info: Info, batch: &mut Batch) {
        batch.put(SNAPSHOTS, id.as_str(), json(&info));
        self.snapshots.insert(id.clone(), info);
    }

    pub(crate) fn put_flat(&mut self, flat: Flat, batch: &mut Batch) {
        let digest = list_digest(&flat.base, &flat.elements);
        batch.put(FLAT, digest.as_bytes(), json(&flat));
        self.flat.insert(digest, flat);
    }

    pub(crate) fn delete(&mut self, id: &SnapshotId, batch: &mut Batch) -> Option<Info> {
        batch.delete(SNAPSHOTS, id.as_str());
        self.snapshots.remove(id)
    }

    /// Everything that some snapshot needs: its elements, and what diffs among them that need it were made on.
    pub(crate) fn referenced(&self) -> HashSet<Element> {
        let mut seen = HashSet::new();
        let mut todo: Vec<Element> = self.snapshots.values().flat_map(|info| info.elements.iter().copied()).collect();
        while let Some(element) = todo.pop() {
            if !seen.insert(element) {
                continue;
            }
            if let Element::Diff(id) = element
                && let Some(diff) = self.diffs.get(&id).filter(|diff| diff.bound || diff.opaque)
            {
                todo.extend(diff.base.iter().copied());
            }
        }
        // A flat diff lives as long as all that it stands for.
        let flats: Vec<Element> = self
            .flat
            .values()
            .filter(|flat| flat.elements.iter().chain(&flat.base).all(|element| seen.contains(element)))
            .map(|flat| Element::Diff(flat.diff))
            .collect();
        seen.extend(flats);
        seen
    }

    /// Forgets diffs that nothing needs and no mount uses; the caller deletes their directories once that is durable.
    pub(crate) fn sweep(&mut self, batch: &mut Batch) -> Vec<DiffId> {
        let needed = self.referenced();
        let flat: Vec<Digest> = self
            .flat
            .iter()
            .filter(|(_, flat)| !needed.contains(&Element::Diff(flat.diff)))
            .map(|(digest, _)| *digest)
            .collect();
        for digest in flat {
            batch.delete(FLAT, digest.as_bytes());
            self.flat.remove(&digest);
        }
        let gone: Vec<DiffId> = self
            .diffs
            .keys()
            .filter(|id| !needed.contains(&Element::Diff(**id)) && !self.pins.contains_key(id))
            .copied()
            .collect();
        for id in &gone {
            batch.delete(DIFFS, id.0.to_be_bytes());
            self.diffs.remove(id);
        }
        gone
    }

    /// Drops what was written in an earlier boot and never synced: after a crash of the machine its files may be anything.
    pub(crate) fn drop_unsynced(&mut self, boot: &str, batch: &mut Batch) -> Vec<SnapshotId> {
        let lost: HashSet<Element> = self
            .diffs
            .iter()
            .filter(|(_, diff)| diff.unsynced.as_deref().is_some_and(|written| written != boot))
            .map(|(id, _)| Element::Diff(*id))
            .collect();
        let names: Vec<SnapshotId> = self
            .snapshots
            .iter()
            .filter(|(_, info)| info.elements.iter().any(|element| lost.contains(element)))
            .map(|(id, _)| id.clone())
            .collect();
        for name in &names {
            self.delete(name, batch);
        }
        let flat: Vec<Digest> = self
            .flat
            .iter()
            .filter(|(_, flat)| lost.contains(&Element::Diff(flat.diff)))
            .map(|(digest, _)| *digest)
            .collect();
        for digest in flat {
            batch.delete(FLAT, digest.as_bytes());
            self.flat.remove(&digest);
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use castor_layerfs::LayerId;
    use castor_metadb::Memory;

    use super::*;
    use crate::traits::Kind;

    fn committed(elements: &[Element]) -> Info {
        Info { kind: Kind::Committed, elements: elements.to_vec(), parent: None }
    }

    fn id(name: &str) -> SnapshotId {
        SnapshotId::new(name)
    }

    #[tokio::test]
    async fn what_is_written_is_read_back() {
        let db = Memory::new();
        let mut state = State::read(&db).unwrap();
        let mut batch = Batch::new();
        let layer = Element::Layer(LayerId { blob: Digest::of("b"), toc: Some(Digest::of("t")) });
        let diff = state.new_diff(vec![layer], "boot", &mut batch);
        state.put(&id("a"), committed(&[layer, Element::Diff(diff)]), &mut batch);
        state.put_flat(Flat { elements: vec![Element::Diff(diff)], base: vec![layer], diff }, &mut batch);
        db.write(batch).await.unwrap();
        let back = State::read(&db).unwrap();
        assert_eq!(back.snapshots, state.snapshots);
        assert_eq!((&back.diffs, &back.flat, back.next), (&state.diffs, &state.flat, 2));
    }

    #[test]
    fn diffs_live_as_long_as_somebody_needs_them() {
        let mut state = State::default();
        let mut batch = Batch::new();
        let [below, bound, loose] = [(); 3].map(|()| state.new_diff(Vec::new(), "boot", &mut batch));
        let base = vec![Element::Diff(below)];
        state.put_diff(bound, Diff { bound: true, base, ..Diff::default() }, &mut batch);
        state.put(&id("slice"), committed(&[Element::Diff(bound)]), &mut batch);
        // What a bound diff was made on is needed for its content, though no snapshot lists it.
        assert_eq!(state.sweep(&mut batch), [loose]);
        state.pins.insert(bound, 1);
        state.delete(&id("slice"), &mut batch);
        assert_eq!(state.sweep(&mut batch), [below]);
        state.pins.clear();
        assert_eq!(state.sweep(&mut batch), [bound]);
        assert!(state.diffs.is_empty());
    }

    #[test]
    fn what_was_not_synced_does_not_outlive_the_boot() {
        let mut state = State::default();
        let mut batch = Batch::new();
        let [synced, lost] = [(); 2].map(|()| state.new_diff(Vec::new(), "first", &mut batch));
        state.put_diff(synced, Diff::default(), &mut batch);
        state.put(&id("kept"), committed(&[Element::Diff(synced)]), &mut batch);
        state.put(&id("lost"), committed(&[Element::Diff(synced), Element::Diff(lost)]), &mut batch);
        assert!(state.drop_unsynced("first", &mut batch).is_empty());
        assert_eq!(state.drop_unsynced("second", &mut batch), [id("lost")]);
        assert_eq!(state.sweep(&mut batch), [lost]);
        assert_eq!(state.snapshots.keys().collect::<Vec<_>>(), [&id("kept")]);
    }
}
