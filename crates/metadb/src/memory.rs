//! The store without a file.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::{Batch, Error, KeyValue, Pairs};

type Table = BTreeMap<Vec<u8>, Vec<u8>>;

/// A [`KeyValue`] that keeps everything in memory and forgets it when dropped; for tests.
#[derive(Debug, Default)]
pub struct Memory {
    tables: Mutex<HashMap<String, Table>>,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl KeyValue for Memory {
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.tables.lock().get(table).and_then(|t| t.get(key)).cloned())
    }

    fn scan_prefix(&self, table: &str, prefix: &[u8]) -> Result<Pairs, Error> {
        let tables = self.tables.lock();
        let Some(table) = tables.get(table) else { return Ok(Vec::new()) };
        let pairs = table.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(pairs.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    async fn write(&self, batch: Batch) -> Result<(), Error> {
        self.write_soon(batch);
        Ok(())
    }

    fn write_soon(&self, batch: Batch) {
        let mut tables = self.tables.lock();
        for change in batch.changes {
            let table = tables.entry(change.table).or_default();
            match change.value {
                Some(value) => table.insert(change.key, value),
                None => table.remove(&change.key),
            };
        }
    }

    async fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}
