//! What the client did, for metrics, and what it is doing, for the debug page.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Sums since the client was made, for one host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests sent, redirects and retries included, token servers' not.
    pub requests: u64,
    /// Of these, requests for a part of a blob.
    pub range_requests: u64,
    /// Requests that were sent again after a failure.
    pub retries: u64,
    /// Requests that ended in an error that was reported.
    pub failures: u64,
    /// Bytes of bodies received.
    pub bytes_received: u64,
    /// Bytes of bodies sent.
    pub bytes_sent: u64,
}

#[derive(Debug, Default)]
pub(crate) struct HostCounters {
    pub requests: AtomicU64,
    pub range_requests: AtomicU64,
    pub retries: AtomicU64,
    pub failures: AtomicU64,
    pub bytes_received: AtomicU64,
    pub bytes_sent: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl HostCounters {
    fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            requests: get(&self.requests),
            range_requests: get(&self.range_requests),
            retries: get(&self.retries),
            failures: get(&self.failures),
            bytes_received: get(&self.bytes_received),
            bytes_sent: get(&self.bytes_sent),
        }
    }
}

/// A request that has not ended.
#[derive(Debug, Clone)]
pub struct InFlight {
    /// Reference, or repository and digest.
    pub what: String,
    /// Method.
    pub method: String,
    /// Where it went, without the query.
    pub url: String,
    /// The range asked for.
    pub range: Option<std::ops::Range<u64>>,
    /// How long it has been going on.
    pub age: Duration,
}

#[derive(Debug)]
struct Entry {
    what: String,
    method: String,
    url: String,
    range: Option<std::ops::Range<u64>>,
    since: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Book {
    hosts: Mutex<BTreeMap<String, Arc<HostCounters>>>,
    entries: Mutex<HashMap<u64, Entry>>,
    next: AtomicU64,
}

/// Takes its request off the list when dropped.
#[derive(Debug)]
pub(crate) struct Listed {
    book: Arc<Book>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.book.entries.lock().remove(&self.id);
    }
}

impl Book {
    pub fn host(&self, host: &str) -> Arc<HostCounters> {
        let mut hosts = self.hosts.lock();
        match hosts.get(host) {
            Some(counters) => Arc::clone(counters),
            None => Arc::clone(hosts.entry(host.to_owned()).or_default()),
        }
    }

    pub fn counts(&self) -> BTreeMap<String, Counts> {
        self.hosts.lock().iter().map(|(host, counters)| (host.clone(), counters.counts())).collect()
    }

    pub fn list(
        self: &Arc<Self>,
        what: &str,
        method: &str,
        url: String,
        range: Option<std::ops::Range<u64>>,
    ) -> Listed {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Entry { what: what.into(), method: method.into(), url, range, since: Instant::now() };
        self.entries.lock().insert(id, entry);
        Listed { book: Arc::clone(self), id }
    }

    pub fn in_flight(&self) -> Vec<InFlight> {
        let entries = self.entries.lock();
        let mut list: Vec<_> = entries
            .values()
            .map(|entry| InFlight {
                what: entry.what.clone(),
                method: entry.method.clone(),
                url: entry.url.clone(),
                range: entry.range.clone(),
                age: entry.since.elapsed(),
            })
            .collect();
        list.sort_by_key(|request| std::cmp::Reverse(request.age));
        list
    }
}
