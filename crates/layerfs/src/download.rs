//! Fetching a layer first: one pass from the registry through inflating, hashing and unpacking into an object.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use castor_archive::listing::Rules;
use castor_content::Commit;
use castor_progress::{Reporter, Tally};
use futures::StreamExt as _;
use tokio::sync::mpsc;

use crate::complete::ingest_name;
use crate::error::LayerError;
use crate::layer::{Core, Object};
use crate::origin::Origin;
use crate::presence;
use crate::source::{FetchError, RangeBody};
use crate::tree::{Plan, Tree, from_tar};
use crate::unpack::{Pieces, Unpacked, unpack, with_sources};

/// Pieces of the download that may wait to be unpacked.
const AHEAD: usize = 32;
/// Progress is shown in steps of this many bytes.
const STEP: u64 = 256 << 10;

/// Fetches, verifies and unpacks the layer of `core` and makes its object. `adopted` is the blob if it is on its way.
pub(crate) async fn download(
    core: &Arc<Core>,
    adopted: Option<RangeBody>,
    reporter: &Reporter,
) -> Result<(), LayerError> {
    let shared = core.shared.clone();
    let state = |e: castor_content::Error| LayerError::State(with_sources(&e));
    let here = shared.content.info(&core.id.blob).await.map_err(state)?.is_some();
    // What is here needs no connection, and a body that has begun must not wait in line behind those that have not.
    let _place = match here || adopted.is_some() {
        true => None,
        false => tokio::select! {
            () = core.scope.token().cancelled() => return Err(LayerError::Cancelled),
            place = shared.downloads.clone().acquire_owned() => Some(place.map_err(|_| LayerError::Cancelled)?),
        },
    };
    let here = here || (adopted.is_none() && completed(core, reporter).await?);
    let dir = shared.new_dir()?;
    let extracting =
        |size| Arc::new(Tally::start(reporter, format!("extracting {}", core.id.blob), "extracting", size));
    let outcome = async {
        let (unpacked, _extracting) = if here {
            let blob = shared.content.open(&core.id.blob).await.map_err(state)?;
            let extracting = extracting(blob.size());
            let input = Counted { input: blob.reader(0), tally: extracting.clone() };
            (unpack_in(core, &dir, input).await?, extracting)
        } else {
            // It is unpacked as it comes; what clients know as this is what is left to do.
            (stream(core, &dir, adopted, reporter).await?, extracting(0))
        };
        finish(core, &dir, unpacked).await
    }
    .await;
    if outcome.is_err() {
        let gone = dir.clone();
        castor_task::blocking(move || {
            let _ = std::fs::remove_dir_all(gone);
        })
        .await;
    }
    outcome
}

/// Whether the blob is here after all: what was fetched of it for a lazy layer is not fetched again, only the rest.
async fn completed(core: &Arc<Core>, reporter: &Reporter) -> Result<bool, LayerError> {
    let state = |e: castor_content::Error| LayerError::State(with_sources(&e));
    let (content, name) = (&core.shared.content, ingest_name(core.id.blob));
    if content.ingest_space(&name).await.map_err(state)? == 0 {
        return Ok(false);
    }
    let descriptor = core.origin.lock().descriptor.clone();
    let present = content.ingest(&name, &descriptor).await.map_err(state)?.present().cast_signed();
    if present == 0 {
        return Ok(false);
    }
    let size = descriptor.size.cast_signed();
    let mut task = reporter.start(descriptor.digest.to_string(), "", size);
    task.update(present);
    let made = tokio::select! {
        () = core.scope.token().cancelled() => return Err(LayerError::Cancelled),
        made = crate::complete::blob(core) => made,
    };
    match made {
        Ok(()) => {
            task.set("", size, size);
            Ok(true)
        }
        // What was kept was wrong, and is gone.
        Err(LayerError::Content { reason, .. }) => {
            tracing::warn!(layer = %core.id.blob, reason, "what was kept of a layer is fetched again");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Reads the blob from the registry; a copy goes to the content store, and both verify it.
async fn stream(
    core: &Arc<Core>,
    dir: &Path,
    adopted: Option<RangeBody>,
    reporter: &Reporter,
) -> Result<Unpacked, LayerError> {
    let shared = core.shared.clone();
    let state = |e: castor_content::Error| LayerError::State(with_sources(&e));
    let descriptor = core.origin.lock().descriptor.clone();
    let mut task = reporter.start(descriptor.digest.to_string(), "", descriptor.size.cast_signed());
    let mut writer = shared.content.writer().await.map_err(state)?;
    let (send, pieces) = Pieces::channel(AHEAD);
    let unpacking = tokio::spawn({
        let (core, dir) = (core.clone(), dir.to_owned());
        async move { unpack_in(&core, &dir, pieces).await }
    });
    let mut shown = 0;
    let fetching = async {
        let mut at = 0;
        let mut sink = Sink { writer: &mut writer, send: &send };
        if let Some(mut body) = adopted {
            while let Ok(Some(Ok(piece))) = tokio::time::timeout(shared.config.read_deadline, body.stream.next()).await
            {
                core.counters.fetched.fetch_add(piece.len() as u64, Ordering::Relaxed);
                at += piece.len() as u64;
                sink.take(piece).await?;
                show(&mut task, &mut shown, at);
            }
        }
        if at < descriptor.size {
            // The closure gives its futures no borrow of the sink, so the pieces come through a queue of one.
            let (queue, mut queued) = mpsc::channel::<Bytes>(1);
            let (idle, start) = (shared.config.read_deadline, at);
            let reading = async {
                let queue = queue;
                core.openers
                    .read(start..descriptor.size, idle, &core.counters, |piece| {
                        let queue = queue.clone();
                        async move { queue.send(piece).await.map_err(|_| FetchError::new("cancelled")) }
                    })
                    .await
            };
            let keeping = async {
                while let Some(piece) = queued.recv().await {
                    at += piece.len() as u64;
                    sink.take(piece).await?;
                    show(&mut task, &mut shown, at);
                }
                Ok(())
            };
            tokio::try_join!(reading, keeping)?;
        }
        Ok(())
    };
    // Only the waiting for bytes is cut short: what was begun on disk is ended, or undone by the caller.
    let fetched: Result<(), FetchError> = tokio::select! {
        () = core.scope.token().cancelled() => Err(FetchError::new(CANCELLED)),
        fetched = fetching => fetched,
    };
    if fetched.is_ok() {
        let _ = send.send(None).await;
    }
    drop(send);
    let unpacked = unpacking.await.map_err(|e| LayerError::State(e.to_string()))?;
    if let Err(error) = fetched {
        // A stream that cannot be unpacked ends the fetch; then that is the cause.
        return match unpacked {
            Err(cause @ LayerError::Content { .. }) if &*error.message == UNPACKER_GONE => Err(cause),
            _ if &*error.message == CANCELLED => Err(LayerError::Cancelled),
            _ => Err(core.fetch_error(error)),
        };
    }
    // The digest of the blob decides before what it holds: wrong bytes rarely unpack.
    let expected = Some((descriptor.digest, descriptor.size));
    if let Err(error) = writer.commit(expected, Commit::default()).await {
        return Err(LayerError::Content { layer: descriptor.digest, reason: with_sources(&error) });
    }
    task.set("", descriptor.size.cast_signed(), descriptor.size.cast_signed());
    unpacked
}

const UNPACKER_GONE: &str = "the layer cannot be unpacked";
const CANCELLED: &str = "cancelled";

/// Bytes of a blob that are counted as they are unpacked.
struct Counted<R> {
    input: R,
    tally: Arc<Tally>,
}

impl<R: std::io::Read> std::io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.tally.add(count as i64);
        Ok(count)
    }
}

/// Where downloaded pieces go.
struct Sink<'a> {
    writer: &'a mut castor_content::Writer,
    send: &'a mpsc::Sender<Option<Bytes>>,
}

impl Sink<'_> {
    async fn take(&mut self, piece: Bytes) -> Result<(), FetchError> {
        self.writer.append(piece.clone()).await.map_err(|e| FetchError::new(with_sources(&e)))?;
        self.send.send(Some(piece)).await.map_err(|_| FetchError::new(UNPACKER_GONE))
    }
}

fn show(task: &mut castor_progress::Task, shown: &mut u64, at: u64) {
    if at >= *shown + STEP {
        *shown = at;
        task.update(at.cast_signed());
    }
}

async fn unpack_in(
    core: &Arc<Core>,
    dir: &Path,
    input: impl std::io::Read + Send + 'static,
) -> Result<Unpacked, LayerError> {
    let layer = core.id.blob;
    let path = dir.join("data");
    let rules = match core.origin.lock().descriptor.toc_digest() {
        Some(_) => Rules::TAR_WITH_TOC,
        None => Rules::TAR,
    };
    // It waits for the network, so it must not take a place of those who work.
    castor_task::reading(move || {
        let data = File::create_new(&path).map_err(|e| LayerError::io("create", &path, e))?;
        unpack(input, Some(&data), rules).map_err(|reason| LayerError::Content { layer, reason })
    })
    .await
}

/// Verifies the diff ID, makes the object and opens it.
async fn finish(core: &Arc<Core>, dir: &Path, unpacked: Unpacked) -> Result<(), LayerError> {
    let claimed = core.origin.lock().claimed;
    if let Some(expected) = claimed
        && expected != unpacked.diff_id
    {
        let actual = unpacked.diff_id;
        return Err(LayerError::Mismatch { layer: core.id.blob, what: "diff ID", actual, expected });
    }
    core.origin.lock().verified = Some(unpacked.diff_id);
    let origin = core.origin.lock().clone();
    let (new, dir): (PathBuf, PathBuf) = (dir.to_owned(), core.dir.clone());
    let id = core.id;
    let object = castor_task::blocking(move || {
        let plan = from_tar(&unpacked.listing, &unpacked.places, unpacked.data_size, origin.descriptor.size);
        let path = new.join("data");
        let data = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| LayerError::io("open", &path, e))?;
        write_object(&new, &plan, &origin, Some(&data))?;
        commit_object(&new, &dir)?;
        let tree = Tree::open(&dir.join("tree")).map_err(|reason| LayerError::Object { layer: id, reason })?;
        Ok::<_, LayerError>(Object { tree: Arc::new(tree), data: Arc::new(data), fetcher: None })
    })
    .await?;
    core.complete.store(true, Ordering::Release);
    let _ = core.object.set(object);
    Ok(())
}

/// Writes the files of an object into the new directory `dir`. With `complete`, the data file is there and all of it is
/// right; else it is made, empty. Blocks.
pub(crate) fn write_object(
    dir: &Path,
    plan: &Plan<'_>,
    origin: &Origin,
    complete: Option<&File>,
) -> Result<(), LayerError> {
    let path = dir.join("tree");
    let failed = |e: std::io::Error| LayerError::io("write", &path, e);
    let mut tree = BufWriter::with_capacity(1 << 20, File::create_new(&path).map_err(failed)?);
    plan.write(&mut tree)
        .map_err(|error| LayerError::Content { layer: origin.descriptor.digest, reason: error.to_string() })?;
    tree.flush().map_err(failed)?;
    tree.get_ref().sync_data().map_err(failed)?;
    let data = dir.join("data");
    let failed = |e: std::io::Error| LayerError::io("write", &data, e);
    let created;
    let file = match complete {
        Some(file) => file,
        None => {
            created = File::create_new(&data).map_err(failed)?;
            created.set_len(plan.data_size).map_err(failed)?;
            &created
        }
    };
    file.sync_data().map_err(failed)?;
    let presence_path = dir.join("presence");
    let chunks = plan.chunks.len() as u64;
    let empty = presence::Presence::empty(chunks);
    presence::write(&presence_path, chunks, complete.is_some() || chunks == 0, &empty.snapshot())
        .map_err(|e| LayerError::io("write", &presence_path, e))?;
    let origin_path = dir.join("origin");
    origin.write(&origin_path).map_err(|e| LayerError::io("write", &origin_path, e))
}

/// Gives a whole object its name: the commit point. Blocks.
pub(crate) fn commit_object(new: &Path, dir: &Path) -> Result<(), LayerError> {
    let failed = |e: std::io::Error| LayerError::io("create", dir, e);
    File::open(new).and_then(|d| d.sync_all()).map_err(failed)?;
    if dir.exists() {
        std::fs::remove_dir_all(dir).map_err(failed)?;
    }
    castor_task::crash_point("layer commit");
    std::fs::rename(new, dir).map_err(failed)?;
    let parent = dir.parent().unwrap_or(dir);
    File::open(parent).and_then(|d| d.sync_all()).map_err(failed)
}
