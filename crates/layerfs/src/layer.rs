//! One layer: an object on disk and, while bytes are missing, what fetches them.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use castor_oci::{Descriptor, Digest};
use castor_task::Scope;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::engine::Shared;
use crate::error::{LayerError, ReadError};
use crate::fetch::{Counters, Fetcher, Openers};
use crate::origin::Origin;
use crate::presence;
use crate::source::{BlobOpener, LayerId};
use crate::tree::Tree;

/// How a layer came, or comes, to be here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerState {
    /// Mounted before its bytes are here.
    Lazy,
    /// Being fetched first, because of `reason`.
    Eager {
        /// Why it is not lazy.
        reason: String,
    },
    /// All its bytes are here.
    Complete,
}

/// What of a layer means something only on the layers that it was made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reliance {
    /// It hides things, which are meant to be those layers'.
    pub hides: bool,
    /// It has entries in directories of which it does not say how they are.
    pub implies: bool,
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Lazy or eager, and why.
    pub state: LayerState,
    /// Compressed bytes fetched since this daemon started.
    pub fetched: u64,
    /// Compressed size of the layer.
    pub size: u64,
    /// Requests made.
    pub requests: u64,
    /// Time that readers have waited for it, summed.
    pub waiting: Duration,
    /// Chunks here, of all; `(0, 0)` for a layer that is not fetched by chunks.
    pub chunks: (u64, u64),
}

/// A layer in use. A download that nobody waits for any more ends with the last handle; the object stays on disk.
#[derive(Debug)]
pub struct Layer {
    pub(crate) core: Arc<Core>,
}

/// What a layer and the tasks that work for it share.
pub(crate) struct Core {
    pub id: LayerId,
    /// Names it among the files that are served.
    pub number: u64,
    pub dir: PathBuf,
    pub origin: Mutex<Origin>,
    pub counters: Arc<Counters>,
    pub openers: Arc<Openers>,
    pub scope: Scope,
    pub ready: watch::Sender<Option<Result<(), LayerError>>>,
    pub object: OnceLock<Object>,
    /// All of `data` is here and synced, and `presence` says so.
    pub complete: AtomicBool,
    /// Held while the layer is completed, and while its presence is written.
    pub completing: tokio::sync::Mutex<()>,
    pub arrived: Arc<Notify>,
    /// The files lie under their name no more, and are written to no more.
    pub gone: AtomicBool,
    /// Held while the files are written to.
    pub writing: Mutex<()>,
    pub shared: Arc<Shared>,
}

/// The files of an object, open.
#[derive(Debug)]
pub(crate) struct Object {
    pub tree: Arc<Tree>,
    pub data: Arc<File>,
    pub fetcher: Option<Fetcher>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("id", &self.id).field("number", &self.number).finish_non_exhaustive()
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        self.core.scope.cancel();
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.shared.serving.layers.remove(self.number);
    }
}

impl Layer {
    /// What names it.
    pub fn id(&self) -> LayerId {
        self.core.id
    }

    /// Its descriptor, with annotations, as the image named it.
    pub fn descriptor(&self) -> Descriptor {
        self.core.origin.lock().descriptor.clone()
    }

    /// The repositories that are known to have the blob, and can be asked to mount it across.
    pub fn origins(&self) -> Vec<String> {
        self.core.origin.lock().repositories.clone()
    }

    /// The image it was first used for.
    pub fn image(&self) -> String {
        self.core.origin.lock().image.clone()
    }

    /// How it is here.
    pub fn state(&self) -> LayerState {
        let core = &self.core;
        if core.complete.load(Ordering::Acquire) {
            return LayerState::Complete;
        }
        match core.object.get().and_then(|object| object.fetcher.as_ref()) {
            Some(fetcher) if fetcher.presence().all() => LayerState::Complete,
            Some(fetcher) => match fetcher.adopted() {
                Some(reason) => LayerState::Eager { reason },
                None => LayerState::Lazy,
            },
            None => LayerState::Eager { reason: core.origin.lock().eager.clone().unwrap_or_default() },
        }
    }

    /// Why it was fetched before it was mounted; `None` for a layer that was lazy.
    pub fn eager_reason(&self) -> Option<String> {
        let adopted = self.core.object.get().and_then(|o| o.fetcher.as_ref()).and_then(Fetcher::adopted);
        adopted.or_else(|| self.core.origin.lock().eager.clone())
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let core = &self.core;
        let fetcher = core.object.get().and_then(|object| object.fetcher.as_ref());
        Progress {
            state: self.state(),
            fetched: core.counters.fetched.load(Ordering::Relaxed),
            size: core.origin.lock().descriptor.size,
            requests: core.counters.requests.load(Ordering::Relaxed),
            waiting: core.counters.waiting(),
            chunks: fetcher.map_or((0, 0), |fetcher| fetcher.presence().count()),
        }
    }

    /// How far what it does depends on the layers that it was made on. Says nothing before it is [`ready`](Self::ready).
    pub fn reliance(&self) -> Reliance {
        self.core.object.get().map(|object| object.tree.reliance()).unwrap_or_default()
    }

    /// Waits until it can be mounted: for a lazy layer at once, for an eager one when all bytes are here and verified.
    pub async fn ready(&self) -> Result<(), LayerError> {
        let mut ready = self.core.ready.subscribe();
        let outcome = ready.wait_for(Option::is_some).await;
        outcome.ok().and_then(|outcome| outcome.clone()).unwrap_or(Err(LayerError::Cancelled))
    }

    /// Fetches what is missing, verifies blob digest and diff ID, and commits the blob to the content store.
    pub async fn complete(&self) -> Result<(), LayerError> {
        self.ready().await?;
        let core = self.core.clone();
        // A task of the layer: readers wait for what it has begun, so it does not end with whoever waits for all of it.
        let work = self.core.scope.spawn_named("complete the layer", async move {
            tokio::select! {
                () = core.scope.token().cancelled() => Err(LayerError::Cancelled),
                completed = crate::complete::complete(&core) => completed,
            }
        });
        work.await.unwrap_or_else(|error| Err(LayerError::State(error.to_string())))
    }

    /// Puts the blob into the content store, verified by its digest: for whoever passes it on. Fetches what is missing of
    /// the compressed bytes and inflates nothing.
    pub async fn fetch_blob(&self) -> Result<(), LayerError> {
        self.ready().await?;
        crate::complete::blob(&self.core).await
    }

    /// Whether all its data is here, so that mounting it needs neither network nor server.
    pub fn is_complete(&self) -> bool {
        let core = &self.core;
        core.complete.load(Ordering::Acquire)
            || core.object.get().is_some_and(|o| o.fetcher.as_ref().is_none_or(|f| f.presence().all()))
    }

    /// The diff ID, if the tar stream was verified.
    pub fn verified(&self) -> Option<Digest> {
        self.core.origin.lock().verified
    }

    /// The diff ID that an image claimed.
    pub fn claimed(&self) -> Option<Digest> {
        self.core.origin.lock().claimed
    }

    /// Adds a way to read the blob: another client's credentials, or the first one after a restart.
    pub fn attach(&self, opener: Arc<dyn BlobOpener>) {
        self.core.openers.attach(opener);
    }

    /// Failed reads with a sequence number of at least `since`.
    pub fn errors(&self, since: u64) -> Vec<ReadError> {
        self.core.shared.errors.of(self.core.id, since)
    }
}

impl Core {
    /// Notes that somebody did not get `range` of the data, or else `file`, from a mount that is never read again.
    pub(crate) fn lose(&self, range: Option<Range<u64>>, file: &str, cause: &str) {
        let found = range.and_then(|range| Some(self.object.get()?.tree.file_at(&range)));
        let (image, file) = (self.origin.lock().image.clone(), found.unwrap_or_else(|| file.to_owned()));
        tracing::debug!(layer = %self.id.blob, image, file, cause, "read of a layer failed");
        self.shared.errors.push_lasting(self.id, image, file, cause);
    }

    /// Says that the files are no longer this layer's. Blocks while they are being written.
    pub(crate) fn leave_files(&self) {
        self.gone.store(true, Ordering::Release);
        drop(self.writing.lock());
    }

    /// Whether the files are no longer this layer's.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Writes what is here to disk. Blocks.
    pub(crate) fn checkpoint(&self) -> std::io::Result<()> {
        let _writing = self.writing.lock();
        if self.is_gone() {
            return Ok(());
        }
        let Some(object) = self.object.get() else { return Ok(()) };
        let Some(fetcher) = &object.fetcher else { return Ok(()) };
        if self.complete.load(Ordering::Acquire) {
            return Ok(());
        }
        // The map is taken before the sync: what arrives in between is not in it.
        let map = fetcher.presence().snapshot();
        let complete = fetcher.presence().all();
        fetcher.data().sync_data()?;
        if let Some(ingest) = fetcher.ingest()
            && let Err(error) = ingest.checkpoint()
        {
            tracing::debug!(layer = %self.id, %error, "checkpoint compressed bytes");
        }
        presence::write(&self.dir.join("presence"), u64::from(object.tree.chunks()), complete, &map)?;
        if complete {
            self.complete.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Replaces the origin file. Blocks.
    pub(crate) fn write_origin(&self) -> std::io::Result<()> {
        let _writing = self.writing.lock();
        if self.is_gone() {
            return Ok(());
        }
        let origin = self.origin.lock().clone();
        origin.write(&self.dir.join("origin"))
    }

    /// Waits until nobody has read the layer for a while.
    async fn quiet(&self) {
        let quiet = self.shared.config.quiet;
        while let Some(left) =
            self.counters.idle().and_then(|idle| quiet.checked_sub(idle)).filter(|left| !left.is_zero())
        {
            tokio::time::sleep(left).await;
        }
    }

    /// Keeps the presence file up to date until the layer is left, then once more.
    pub(crate) async fn keep_presence(self: Arc<Self>) {
        loop {
            let ended = tokio::select! {
                () = self.scope.token().cancelled() => true,
                () = self.arrived.notified() => {
                    // Chunks come in bursts, and a sync is dear.
                    tokio::time::timeout(CHECKPOINT, self.scope.token().cancelled()).await.is_ok()
                }
            };
            let core = self.clone();
            let guard = self.completing.lock().await;
            let outcome = castor_task::blocking(move || core.checkpoint()).await;
            drop(guard);
            if let Err(error) = outcome {
                tracing::warn!(layer = %self.id, %error, "write presence of layer");
            }
            if self.complete.load(Ordering::Acquire) && !ended {
                // All chunks are here: what is left of the blob is little, and makes the layer a verified one.
                let completed = async {
                    self.quiet().await;
                    crate::complete::complete(&self).await
                };
                let completed = tokio::select! {
                    () = self.scope.token().cancelled() => return,
                    completed = completed => completed,
                };
                if let Err(error) = completed {
                    tracing::warn!(layer = %self.id, %error, "verify a layer that is complete");
                }
                return;
            }
            if ended {
                return;
            }
        }
    }
}

/// How long after chunks arrived they are recorded as present.
const CHECKPOINT: Duration = Duration::from_secs(1);
