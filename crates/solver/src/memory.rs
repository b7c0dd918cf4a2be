//! A cache in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::{CacheError, CacheSource, CacheStore, CacheUpdate, KeyId, KeyInfo, Link, Record};

/// A cache in memory: for tests, and for imported records.
#[derive(Debug, Default)]
pub struct MemoryCache {
    name: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    keys: HashMap<KeyId, KeyInfo>,
    links: HashMap<(KeyId, Link), BTreeSet<KeyId>>,
    back: HashMap<KeyId, BTreeSet<(KeyId, Link)>>,
    results: HashMap<KeyId, BTreeMap<String, Record>>,
    holders: HashMap<String, HashSet<KeyId>>,
}

impl MemoryCache {
    /// An empty cache.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), state: Mutex::default() }
    }

    /// All links: from, how, to.
    pub fn links(&self) -> Vec<(KeyId, Link, KeyId)> {
        let state = self.state.lock();
        let mut links: Vec<_> = state
            .links
            .iter()
            .flat_map(|((from, link), targets)| targets.iter().map(|to| (from.clone(), *link, to.clone())))
            .collect();
        links.sort();
        links
    }
}

impl State {
    fn apply(&mut self, update: CacheUpdate) {
        self.keys.extend(update.keys);
        for (from, link, to) in update.links {
            self.back.entry(to.clone()).or_default().insert((from.clone(), link));
            self.links.entry((from, link)).or_default().insert(to);
        }
        for (key, record) in update.results {
            self.holders.entry(record.id.clone()).or_default().insert(key.clone());
            self.results.entry(key).or_default().insert(record.id.clone(), record);
        }
    }

    /// Removes keys that lead to nothing and have no result, from `key` upwards.
    fn prune(&mut self, key: KeyId) {
        let mut pending = vec![key];
        while let Some(key) = pending.pop() {
            let leads = self.links.keys().any(|(from, _)| *from == key);
            if leads || self.results.get(&key).is_some_and(|results| !results.is_empty()) {
                continue;
            }
            self.keys.remove(&key);
            self.results.remove(&key);
            for (from, link) in self.back.remove(&key).unwrap_or_default() {
                if let Some(targets) = self.links.get_mut(&(from.clone(), link)) {
                    targets.remove(&key);
                    if targets.is_empty() {
                        self.links.remove(&(from.clone(), link));
                    }
                }
                pending.push(from);
            }
        }
    }
}

#[async_trait]
impl CacheSource for MemoryCache {
    fn name(&self) -> &str {
        &self.name
    }

    async fn targets(&self, queries: &[(KeyId, Link)]) -> Result<Vec<Vec<KeyId>>, CacheError> {
        let state = self.state.lock();
        Ok(queries.iter().map(|query| state.links.get(query).into_iter().flatten().cloned().collect()).collect())
    }

    async fn records(&self, keys: &[KeyId]) -> Result<Vec<Vec<Record>>, CacheError> {
        let state = self.state.lock();
        let records = |key| state.results.get(key).map(|records| records.values().cloned().collect());
        Ok(keys.iter().map(|key| records(key).unwrap_or_default()).collect())
    }

    async fn info(&self, key: &KeyId) -> Result<Option<KeyInfo>, CacheError> {
        Ok(self.state.lock().keys.get(key).copied())
    }

    async fn backlinks(&self, key: &KeyId) -> Result<Vec<(KeyId, Link)>, CacheError> {
        Ok(self.state.lock().back.get(key).into_iter().flatten().cloned().collect())
    }
}

#[async_trait]
impl CacheStore for MemoryCache {
    async fn update(&self, update: CacheUpdate) -> Result<(), CacheError> {
        self.state.lock().apply(update);
        Ok(())
    }

    async fn alias(&self, from: &KeyId, to: &KeyId) -> Result<(), CacheError> {
        let mut state = self.state.lock();
        let mut update = CacheUpdate::default();
        for ((_, link), targets) in state.links.iter().filter(|((origin, _), _)| origin == from) {
            update.links.extend(targets.iter().map(|target| (to.clone(), *link, target.clone())));
        }
        let results = state.results.get(from).into_iter().flat_map(BTreeMap::values);
        update.results = results.map(|record| (to.clone(), record.clone())).collect();
        state.apply(update);
        Ok(())
    }

    async fn release(&self, id: &str) -> Result<(), CacheError> {
        let mut state = self.state.lock();
        for key in state.holders.remove(id).unwrap_or_default() {
            if let Some(results) = state.results.get_mut(&key) {
                results.remove(id);
            }
            state.prune(key);
        }
        Ok(())
    }
}
