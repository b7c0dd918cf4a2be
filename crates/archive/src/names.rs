//! A compact table of (directory, name) pairs.

use std::hash::{BuildHasher, Hasher as _, RandomState};

/// Position of an entry of a [`NameTable`].
pub type Slot = u32;

/// Empty cell of the index.
const VACANT: u32 = u32::MAX;

/// The table cannot grow further: 4 GiB of names or 2^32 - 2 entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many names: the table is limited to 4 GiB of them")]
pub struct TableFull;

#[derive(Debug, Clone, Copy)]
struct Entry {
    parent: Slot,
    start: u32,
    len: u16,
}

/// Names below directories, each found by (directory, name) in constant time.
///
/// An entry costs 12 bytes, its name, and 4 to 8 bytes of index. Entries are never removed; owners mark
/// them as they like. The hash is seeded per table, so that nobody can choose names that collide.
#[derive(Debug, Default)]
pub struct NameTable {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// Open addressing with linear probing; a power of two, at most 3/4 full.
    index: Vec<u32>,
    seed: RandomState,
    /// Entries that the index reaches (repointed ones are not).
    indexed: usize,
}

impl NameTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many entries were made.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no entry was made.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The name of an entry.
    ///
    /// # Panics
    /// If `slot` is not of this table.
    pub fn name(&self, slot: Slot) -> &[u8] {
        let entry = self.entries[slot as usize];
        &self.bytes[entry.start as usize..][..usize::from(entry.len)]
    }

    /// The directory that the entry was made in.
    ///
    /// # Panics
    /// If `slot` is not of this table.
    pub fn parent(&self, slot: Slot) -> Slot {
        self.entries[slot as usize].parent
    }

    /// The latest entry called `name` in `parent`.
    pub fn find(&self, parent: Slot, name: &[u8]) -> Option<Slot> {
        if self.index.is_empty() {
            return None;
        }
        let found = self.index[self.cell(parent, name)];
        (found != VACANT).then_some(found)
    }

    /// Makes an entry; [`find`](Self::find) answers with it from now on, even if there was one before.
    pub fn insert(&mut self, parent: Slot, name: &[u8]) -> Result<Slot, TableFull> {
        let slot = u32::try_from(self.entries.len()).map_err(|_| TableFull)?;
        let start = u32::try_from(self.bytes.len()).map_err(|_| TableFull)?;
        let len = u16::try_from(name.len()).map_err(|_| TableFull)?;
        if slot == VACANT {
            return Err(TableFull);
        }
        if (self.indexed + 1) * 4 > self.index.len() * 3 {
            self.grow();
        }
        let cell = self.cell(parent, name);
        if self.index[cell] == VACANT {
            self.indexed += 1;
        }
        self.index[cell] = slot;
        self.bytes.extend_from_slice(name);
        self.entries.push(Entry { parent, start, len });
        Ok(slot)
    }

    /// The cell that holds (parent, name), or the vacant one where it belongs.
    fn cell(&self, parent: Slot, name: &[u8]) -> usize {
        let mask = self.index.len() - 1;
        let mut cell = self.hash(parent, name) & mask;
        loop {
            let slot = self.index[cell];
            if slot == VACANT || (self.parent(slot) == parent && self.name(slot) == name) {
                return cell;
            }
            cell = (cell + 1) & mask;
        }
    }

    fn hash(&self, parent: Slot, name: &[u8]) -> usize {
        let mut hasher = self.seed.build_hasher();
        hasher.write_u32(parent);
        hasher.write(name);
        hasher.finish() as usize
    }

    fn grow(&mut self) {
        let size = (self.index.len() * 2).max(16);
        let old = std::mem::replace(&mut self.index, vec![VACANT; size]);
        for slot in old.into_iter().filter(|slot| *slot != VACANT) {
            let cell = self.cell(self.parent(slot), self.name(slot));
            self.index[cell] = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_latest_of_a_name() {
        let mut table = NameTable::new();
        assert_eq!(table.find(0, b"a"), None);
        let slots: Vec<_> = (0..1000u32).map(|i| table.insert(i % 7, i.to_string().as_bytes()).unwrap()).collect();
        for (i, slot) in (0..1000u32).zip(&slots) {
            assert_eq!(table.find(i % 7, i.to_string().as_bytes()), Some(*slot));
            assert_eq!(table.find(8, i.to_string().as_bytes()), None);
        }
        let again = table.insert(0, b"0").unwrap();
        assert_eq!(table.find(0, b"0"), Some(again));
        assert_eq!((table.name(again), table.parent(again), table.len()), (&b"0"[..], 0, 1001));
    }
}
