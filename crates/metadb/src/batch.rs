//! Batches of changes.

/// One change: `None` deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub table: String,
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// Changes that are applied together or not at all; the last one to a key wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub(crate) changes: Vec<Change>,
}

impl Batch {
    /// A batch without changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key` in `table` to `value`.
    pub fn put(&mut self, table: &str, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut Self {
        self.change(table, key.as_ref(), Some(value.as_ref().to_vec()))
    }

    /// Removes `key` from `table`, if it is there.
    pub fn delete(&mut self, table: &str, key: impl AsRef<[u8]>) -> &mut Self {
        self.change(table, key.as_ref(), None)
    }

    /// Adds the changes of `other` behind these.
    pub fn append(&mut self, other: Self) -> &mut Self {
        self.changes.extend(other.changes);
        self
    }

    /// Whether there is no change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Bytes held by keys and values.
    pub(crate) fn weight(&self) -> usize {
        self.changes.iter().map(|c| c.key.len() + c.value.as_ref().map_or(0, Vec::len)).sum()
    }

    fn change(&mut self, table: &str, key: &[u8], value: Option<Vec<u8>>) -> &mut Self {
        self.changes.push(Change { table: table.to_owned(), key: key.to_vec(), value });
        self
    }
}
