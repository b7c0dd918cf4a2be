//! The solver's keys in the database.
//!
//! | table | key | value |
//! |---|---|---|
//! | `cache.keys` | key id | operation digest, output (JSON) |
//! | `cache.links` | origin id `\0` link `\0` target id | – |
//! | `cache.back` | target id `\0` origin id `\0` link | – |
//! | `cache.results` | key id `\0` result id | record (JSON) |
//! | `cache.holders` | result id `\0` key id | – |
//!
//! A link is written `digest@output#input` and, if there is one, `:` and the selector. Ids and digests contain no NUL.
//! `cache.back` and `cache.holders` are the other two read from the other end; all are written in one batch.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;

use async_trait::async_trait;
use castor_metadb::{Batch, KeyValue};
use castor_oci::Digest;
use castor_solver::{CacheError, CacheSource, CacheStore, CacheUpdate, KeyId, KeyInfo, Link, Record};
use castor_task::blocking;
use parking_lot::Mutex;

const KEYS: &str = "cache.keys";
const LINKS: &str = "cache.links";
const BACK: &str = "cache.back";
const RESULTS: &str = "cache.results";
const HOLDERS: &str = "cache.holders";
const NAME: &str = "local";

/// Whether a result exists.
pub(crate) type Exists = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The solver's local cache.
#[derive(Clone)]
pub struct KeyCache {
    db: Arc<dyn KeyValue>,
    exists: Exists,
    /// Held while keys are removed: what is read to decide must still be so when it is written.
    writing: Arc<Mutex<()>>,
}

impl fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyCache")
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn failed(source: impl Into<Failure>) -> CacheError {
    CacheError { cache: NAME.to_owned(), source: Arc::from(source.into()) }
}

fn write_link(link: &Link) -> String {
    match link.selector {
        None => format!("{}@{}#{}", link.digest, link.output, link.input),
        Some(selector) => format!("{}@{}#{}:{selector}", link.digest, link.output, link.input),
    }
}

fn read_link(text: &str) -> Option<Link> {
    let (digest, rest) = text.split_once('@')?;
    let (output, rest) = rest.split_once('#')?;
    let (input, selector) = match rest.split_once(':') {
        None => (rest, None),
        Some((input, selector)) => (input, Some(selector)),
    };
    Some(Link {
        digest: digest.parse().ok()?,
        output: output.parse().ok()?,
        input: input.parse().ok()?,
        selector: selector.map(Digest::from_str).transpose().ok()?,
    })
}

fn join(parts: &[&str]) -> String {
    parts.join("\0")
}

/// The parts of a key after `prefix`.
fn rest<'a>(key: &'a [u8], prefix: &str) -> Option<Vec<&'a str>> {
    Some(std::str::from_utf8(key.get(prefix.len()..)?).ok()?.split('\0').collect())
}

impl KeyCache {
    /// A cache in `db`; `exists` says whether the result of an id still exists.
    pub(crate) fn new(db: Arc<dyn KeyValue>, exists: Exists) -> Self {
        Self { db, exists, writing: Arc::default() }
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, CacheError> {
        let this = self.clone();
        blocking(move || read(&this)).await.map_err(failed)
    }

    fn targets_of(&self, from: &KeyId, link: &Link) -> Result<Vec<KeyId>, Failure> {
        let prefix = join(&[from.as_str(), &write_link(link), ""]);
        let pairs = self.db.scan_prefix(LINKS, prefix.as_bytes())?;
        Ok(pairs.iter().filter_map(|(key, _)| Some(KeyId::new(*rest(key, &prefix)?.first()?))).collect())
    }

    fn records_of(&self, key: &KeyId) -> Result<Vec<Record>, Failure> {
        let prefix = join(&[key.as_str(), ""]);
        let pairs = self.db.scan_prefix(RESULTS, prefix.as_bytes())?;
        let mut records = Vec::new();
        for (_, value) in pairs {
            records.extend(serde_json::from_slice::<Record>(&value).ok().filter(|record| (self.exists)(&record.id)));
        }
        Ok(records)
    }

    fn backlinks_of(&self, key: &KeyId) -> Result<Vec<(KeyId, Link)>, Failure> {
        let prefix = join(&[key.as_str(), ""]);
        let pairs = self.db.scan_prefix(BACK, prefix.as_bytes())?;
        let parse = |key: &[u8]| {
            let parts = rest(key, &prefix)?;
            Some((KeyId::new(*parts.first()?), read_link(parts.get(1)?)?))
        };
        Ok(pairs.iter().filter_map(|(key, _)| parse(key)).collect())
    }

    fn batch(update: &CacheUpdate) -> Result<Batch, Failure> {
        let mut batch = Batch::new();
        for (id, info) in &update.keys {
            batch.put(KEYS, id.as_str(), serde_json::to_vec(info)?);
        }
        for (from, link, to) in &update.links {
            let link = write_link(link);
            batch.put(LINKS, join(&[from.as_str(), &link, to.as_str()]), []);
            batch.put(BACK, join(&[to.as_str(), from.as_str(), &link]), []);
        }
        for (key, record) in &update.results {
            batch.put(RESULTS, join(&[key.as_str(), &record.id]), serde_json::to_vec(record)?);
            batch.put(HOLDERS, join(&[&record.id, key.as_str()]), []);
        }
        Ok(batch)
    }

    /// Forgets the result, and then keys that lead nowhere any more, upwards.
    fn forget(&self, result: &str) -> Result<(), Failure> {
        let _writing = self.writing.lock();
        let prefix = join(&[result, ""]);
        let holders = self.db.scan_prefix(HOLDERS, prefix.as_bytes())?;
        let mut pending = Vec::new();
        let mut batch = Batch::new();
        for (key, _) in &holders {
            let Some(holder) = rest(key, &prefix).and_then(|parts| parts.first().map(|id| KeyId::new(*id))) else {
                continue;
            };
            batch.delete(HOLDERS, key);
            batch.delete(RESULTS, join(&[holder.as_str(), result]));
            pending.push(holder);
        }
        self.db.write_soon(batch);
        let mut seen = HashSet::new();
        while let Some(key) = pending.pop() {
            let prefix = join(&[key.as_str(), ""]);
            let leads = !self.db.scan_prefix(LINKS, prefix.as_bytes())?.is_empty();
            if leads || !self.db.scan_prefix(RESULTS, prefix.as_bytes())?.is_empty() || !seen.insert(key.clone()) {
                continue;
            }
            let mut batch = Batch::new();
            batch.delete(KEYS, key.as_str());
            for (from, link) in self.backlinks_of(&key)? {
                let link = write_link(&link);
                batch.delete(LINKS, join(&[from.as_str(), &link, key.as_str()]));
                batch.delete(BACK, join(&[key.as_str(), from.as_str(), &link]));
                pending.push(from);
            }
            self.db.write_soon(batch);
        }
        Ok(())
    }
}

#[async_trait]
impl CacheSource for KeyCache {
    fn name(&self) -> &str {
        NAME
    }

    async fn targets(&self, queries: &[(KeyId, Link)]) -> Result<Vec<Vec<KeyId>>, CacheError> {
        let queries = queries.to_vec();
        self.read(move |this| queries.iter().map(|(from, link)| this.targets_of(from, link)).collect()).await
    }

    async fn records(&self, keys: &[KeyId]) -> Result<Vec<Vec<Record>>, CacheError> {
        let keys = keys.to_vec();
        self.read(move |this| keys.iter().map(|key| this.records_of(key)).collect()).await
    }

    async fn info(&self, key: &KeyId) -> Result<Option<KeyInfo>, CacheError> {
        let key = key.clone();
        self.read(move |this| {
            let value = this.db.get(KEYS, key.as_str().as_bytes())?;
            Ok(value.and_then(|value| serde_json::from_slice(&value).ok()))
        })
        .await
    }

    async fn backlinks(&self, key: &KeyId) -> Result<Vec<(KeyId, Link)>, CacheError> {
        let key = key.clone();
        self.read(move |this| this.backlinks_of(&key)).await
    }
}

#[async_trait]
impl CacheStore for KeyCache {
    async fn update(&self, update: CacheUpdate) -> Result<(), CacheError> {
        let batch = Self::batch(&update).map_err(failed)?;
        // Losing the last of these in a crash costs a build step, not a result: the record itself is durable.
        self.db.write_soon(batch);
        Ok(())
    }

    async fn alias(&self, from: &KeyId, to: &KeyId) -> Result<(), CacheError> {
        let (from, to) = (from.clone(), to.clone());
        self.read(move |this| {
            let _writing = this.writing.lock();
            let mut update = CacheUpdate::default();
            let prefix = join(&[from.as_str(), ""]);
            for (key, _) in this.db.scan_prefix(LINKS, prefix.as_bytes())? {
                let link = rest(&key, &prefix)
                    .and_then(|parts| Some((read_link(parts.first()?)?, KeyId::new(*parts.get(1)?))));
                update.links.extend(link.map(|(link, target)| (to.clone(), link, target)));
            }
            update.results = this.records_of(&from)?.into_iter().map(|record| (to.clone(), record)).collect();
            this.db.write_soon(Self::batch(&update)?);
            Ok(())
        })
        .await
    }

    async fn release(&self, id: &str) -> Result<(), CacheError> {
        let id = id.to_owned();
        self.read(move |this| this.forget(&id)).await
    }
}

#[cfg(test)]
mod tests {
    use castor_metadb::Memory;
    use castor_progress::Timestamp;

    use super::*;

    fn cache() -> KeyCache {
        KeyCache::new(Arc::new(Memory::new()), Arc::new(|_| true))
    }

    fn link(input: usize, selector: Option<Digest>) -> Link {
        Link { digest: Digest::of("op"), output: 0, input, selector }
    }

    #[test]
    fn links_round_trip() {
        for link in [link(3, None), link(0, Some(Digest::of("s"))), Link { output: -1, ..link(0, None) }] {
            assert_eq!(read_link(&write_link(&link)), Some(link));
        }
    }

    #[tokio::test]
    async fn links_lead_where_they_were_put_and_releasing_a_result_prunes_upwards() {
        let cache = cache();
        let root = KeyId::root(Digest::of("root"), 0);
        let (a, b) = (KeyId::new("a"), KeyId::new("b"));
        let info = KeyInfo { digest: Digest::of("op"), output: 0 };
        let record = Record { id: "r".into(), created: Timestamp::UNIX_EPOCH };
        let update = CacheUpdate {
            keys: vec![(root.clone(), info), (a.clone(), info), (b.clone(), info)],
            links: vec![(root.clone(), link(0, None), a.clone()), (a.clone(), link(1, None), b.clone())],
            results: vec![(b.clone(), record.clone())],
        };
        cache.update(update).await.unwrap();
        let queries = [(root.clone(), link(0, None)), (root.clone(), link(0, Some(Digest::of("s"))))];
        assert_eq!(cache.targets(&queries).await.unwrap(), [vec![a.clone()], vec![]]);
        assert_eq!(cache.backlinks(&b).await.unwrap(), [(a.clone(), link(1, None))]);
        assert_eq!(cache.records(&[a.clone(), b.clone()]).await.unwrap(), [vec![], vec![record]]);
        cache.release("r").await.unwrap();
        assert_eq!(cache.targets(&queries[..1]).await.unwrap(), [vec![]]);
        assert_eq!(cache.info(&root).await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_alias_leads_where_the_other_does() {
        let cache = cache();
        let (private, public, target) = (KeyId::new("p"), KeyId::new("c"), KeyId::new("t"));
        let record = Record { id: "r".into(), created: Timestamp::UNIX_EPOCH };
        let update = CacheUpdate {
            links: vec![(private.clone(), link(0, None), target.clone())],
            results: vec![(private.clone(), record.clone())],
            ..CacheUpdate::default()
        };
        cache.update(update).await.unwrap();
        cache.alias(&private, &public).await.unwrap();
        assert_eq!(cache.targets(&[(public.clone(), link(0, None))]).await.unwrap(), [vec![target]]);
        assert_eq!(cache.records(&[public]).await.unwrap(), [vec![record]]);
    }
}
