//! Fetching the chunks of one lazy layer: which bytes are asked for, when, and what becomes of them.
//!
//! - The unit is the *member*: chunks that share a gzip member or zstd frame are fetched, inflated and verified together.
//! - Single flight: a member is asked for once, however many wait for it.
//! - What is wanted, what lies close to it and what is guessed to be wanted next go into one range request
//!   (`plan`); big spans are cut and run in parallel. How much may be guessed is bounded by what was really used
//!   (`ahead`), so a build that reads little fetches little.
//! - When a third of the layer was used, or somebody reads all of a directory tree (`scan`), the rest comes at full speed.
//! - Bytes become visible (a bit in [`Presence`]) only after they were verified and written. A member that does not
//!   verify is fetched once more; then its readers get the error.
//! - A source that answers a range with the whole blob is not asked again: that answer is read to its end.

mod ahead;
mod batch;
mod members;
mod openers;
mod run;
mod scan;
mod siblings;
mod start;

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use castor_content::Ingest;
use castor_oci::Digest;
use castor_task::Scope;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::presence::Presence;
use crate::source::FetchError;
use crate::tree::Tree;
use ahead::Ahead;
use members::{Flags, Members};
pub(crate) use openers::Openers;
use scan::Scans;
use siblings::Siblings;
use start::Start;

/// Requests are cut at this size and run in parallel.
const SPAN: u64 = 8 << 20;
/// Bytes of no use that are worth fetching to save a request.
const GAP: u64 = 8 << 10;
/// The same for what is guessed beside: small pieces all over a collection, each of which would be a request.
const GAP_BESIDE: u64 = 128 << 10;
/// Members below this are fetched along with others; a larger one is only guessed within its file.
const SMALL: u64 = 128 << 10;
/// The most that is fetched because a layer's maker said that it is wanted first.
const PREFETCH: u64 = 16 << 20;
/// Compressed bytes of members that are worked on as one: most members are so small that passing on each would take longer
/// than inflating it.
const BATCH: usize = 256 << 10;
/// Batches of bulk fetches that are worked on at the same time, of all layers: readers wait for a processor too.
static TURNS: LazyLock<Semaphore> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    Semaphore::new(cores.saturating_sub(1).max(1))
});
/// Spans of a bulk fetch at the same time, and how large they are: many, to use the line well; small, because who reads in the
/// blob's order is as far as the last of them.
const BULK: usize = 6;
const BULK_SPAN: u64 = 2 << 20;

/// What a fetcher works on and with.
pub(crate) struct Setup {
    pub layer: Digest,
    pub image: String,
    pub tree: Arc<Tree>,
    pub presence: Presence,
    pub data: Arc<File>,
    /// Where compressed bytes are kept.
    pub ingest: Option<Ingest>,
    pub openers: Arc<Openers>,
    pub scope: Scope,
    /// Memory for members being inflated, in KiB, shared by all layers.
    pub memory: Arc<Semaphore>,
    pub deadline: Duration,
    /// Whether the rest is fetched once much of the layer was used.
    pub background: bool,
}

/// Counters of a layer.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub fetched: AtomicU64,
    pub requests: AtomicU64,
    waiting_us: AtomicU64,
    /// When a reader last wanted something.
    read: Mutex<Option<Instant>>,
}

impl Counters {
    /// How long nobody has read.
    pub(crate) fn idle(&self) -> Option<Duration> {
        self.read.lock().map(|read| read.elapsed())
    }

    pub(crate) fn waiting(&self) -> Duration {
        Duration::from_micros(self.waiting_us.load(Ordering::Relaxed))
    }
}

/// Fetches the chunks of one layer. Cheap to clone; clones are the same fetcher.
#[derive(Clone)]
pub(crate) struct Fetcher {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("layer", &self.inner.layer).finish_non_exhaustive()
    }
}

struct Inner {
    layer: Digest,
    image: String,
    tree: Arc<Tree>,
    codec: castor_estargz::Codec,
    members: Members,
    presence: Presence,
    data: Arc<File>,
    ingest: Option<Ingest>,
    scope: Scope,
    memory: Arc<Semaphore>,
    /// For spans of bulk fetches: [`BULK`] of them.
    lines: Semaphore,
    deadline: Duration,
    counters: Arc<Counters>,
    openers: Arc<Openers>,
    /// Members that a reader has used.
    used: Flags,
    /// Members that were fetched on a guess.
    guessed: Flags,
    /// Looked for when a reader first misses something.
    start: OnceLock<Start>,
    state: Mutex<State>,
    /// Rung whenever chunks arrive, for whoever keeps the presence file.
    arrived: Arc<Notify>,
}

#[derive(Default)]
struct State {
    flights: std::collections::HashMap<u32, Arc<Flight>>,
    ahead: Ahead,
    siblings: Siblings,
    scans: Scans,
    /// The whole blob is on its way, and why.
    adopted: Option<String>,
    bulk: bool,
}

/// A member on its way.
#[derive(Default)]
struct Flight {
    outcome: OnceLock<Result<(), FetchError>>,
    landed: Notify,
}

impl Flight {
    async fn wait(&self) -> Result<(), FetchError> {
        loop {
            let landed = self.landed.notified();
            tokio::pin!(landed);
            // Registered before the look, or a landing in between would be missed.
            landed.as_mut().enable();
            if let Some(outcome) = self.outcome.get() {
                return outcome.clone();
            }
            landed.await;
        }
    }

    fn land(&self, outcome: Result<(), FetchError>) {
        let _ = self.outcome.set(outcome);
        self.landed.notify_waiters();
    }
}

impl Fetcher {
    /// A fetcher for what `setup` describes; `None` if the layer has no chunks that could be missing.
    pub(crate) fn new(setup: Setup, counters: Arc<Counters>, arrived: Arc<Notify>) -> Option<Self> {
        let codec = setup.tree.codec()?;
        let members = Members::of(&setup.tree);
        let count = members.len();
        let inner = Inner {
            layer: setup.layer,
            image: setup.image,
            codec,
            members,
            presence: setup.presence,
            data: setup.data,
            ingest: setup.ingest,
            scope: setup.scope,
            memory: setup.memory,
            lines: Semaphore::new(BULK),
            deadline: setup.deadline,
            counters,
            openers: setup.openers,
            used: Flags::new(count),
            guessed: Flags::new(count),
            start: OnceLock::new(),
            state: Mutex::new(State {
                ahead: Ahead::new(setup.tree.payload_end()),
                // As if it were under way already.
                bulk: !setup.background,
                ..State::default()
            }),
            arrived,
            tree: setup.tree,
        };
        Some(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn presence(&self) -> &Presence {
        &self.inner.presence
    }

    pub(crate) fn data(&self) -> &Arc<File> {
        &self.inner.data
    }

    pub(crate) fn ingest(&self) -> Option<&Ingest> {
        self.inner.ingest.as_ref()
    }

    /// Why the whole blob is being read after all.
    pub(crate) fn adopted(&self) -> Option<String> {
        self.inner.state.lock().adopted.clone()
    }

    /// The chunks that overlap `range` of `data`.
    fn chunks(&self, range: &Range<u64>) -> Range<u32> {
        let tree = &self.inner.tree;
        let first = tree.chunk_at(range.start);
        let mut end = first;
        while end < tree.chunks() && tree.chunk(end).data < range.end {
            end += 1;
        }
        first..end
    }

    /// Whether all of `range` of `data` is here. Notes that a reader uses it if so.
    pub(crate) fn here(&self, range: &Range<u64>) -> bool {
        let inner = &self.inner;
        *inner.counters.read.lock() = Some(Instant::now());
        let chunks = self.chunks(range);
        if !chunks.clone().all(|chunk| inner.presence.contains(chunk)) {
            return false;
        }
        for chunk in chunks {
            let member = inner.members.of_chunk(chunk);
            if inner.used.insert(member) && inner.guessed.contains(member) {
                inner.hit(member);
            }
        }
        true
    }

    /// Waits until all of `range` of `data` is here. Does not end before it is known; bound it by a time of your own.
    pub(crate) async fn need(&self, range: Range<u64>) -> Result<(), FetchError> {
        let begun = Instant::now();
        let chunks = self.chunks(&range);
        let result = self.inner.need(chunks).await;
        self.inner.counters.waiting_us.fetch_add(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
        result
    }

    /// Begins to fetch what the layer's maker said is wanted first.
    pub(crate) fn prefetch(&self) {
        self.inner.prefetch();
    }

    /// Fetches all that is missing.
    pub(crate) async fn all(&self) -> Result<(), FetchError> {
        self.inner.all().await
    }

    /// Takes bytes of the blob that came by other means: `bytes` from `offset` on. Members that lie in them wholly are
    /// verified and kept.
    pub(crate) async fn offer(&self, offset: u64, bytes: &[u8]) {
        self.inner.offer(offset, bytes).await;
    }
}

#[cfg(test)]
pub(crate) mod tests;
