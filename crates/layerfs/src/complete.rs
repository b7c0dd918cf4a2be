//! Completing a layer: all bytes, the blob verified and in the content store, the tar stream verified.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use castor_archive::listing::Rules;
use castor_content::Commit;
use castor_oci::Digest;

use crate::compare;
use crate::error::LayerError;
use crate::layer::Core;
use crate::source::FetchError;
use crate::unpack::{unpack, with_sources};

/// Name of the ingest that a layer's compressed bytes are kept in.
pub(crate) fn ingest_name(blob: Digest) -> String {
    format!("layer-{}", blob.hex())
}

/// Makes sure that the blob is in the content store.
pub(crate) async fn blob(core: &Arc<Core>) -> Result<(), LayerError> {
    let _one = core.completing.lock().await;
    blob_locked(core).await
}

async fn blob_locked(core: &Arc<Core>) -> Result<(), LayerError> {
    let info = core.shared.content.info(&core.id.blob).await;
    match info.map_err(|e| LayerError::State(with_sources(&e)))? {
        Some(_) => Ok(()),
        None => {
            fetch_blob(core).await?;
            read_here(core).await
        }
    }
}

/// If the blob is here, chunks are made of it from now on and not fetched.
async fn read_here(core: &Arc<Core>) -> Result<(), LayerError> {
    if let Some(local) = core.shared.local_blob(core.id.blob).await? {
        core.openers.attach(local);
    }
    Ok(())
}

/// Does it; one at a time for a layer.
pub(crate) async fn complete(core: &Arc<Core>) -> Result<(), LayerError> {
    let _one = core.completing.lock().await;
    if let Some(Err(error @ LayerError::Content { .. })) = settled(core) {
        return Err(error);
    }
    if let Some(fetcher) = core.object.get().and_then(|object| object.fetcher.as_ref())
        && !fetcher.presence().all()
    {
        read_here(core).await?;
        fetcher.all().await.map_err(|e| core.fetch_error(e))?;
    }
    blob_locked(core).await?;
    let outcome = match settled(core) {
        Some(outcome) => outcome,
        None => verify(core).await,
    };
    let this = core.clone();
    castor_task::blocking(move || this.checkpoint()).await.map_err(|e| LayerError::io("write", &core.dir, e))?;
    outcome
}

/// What is known already of the layer as a whole.
fn settled(core: &Core) -> Option<Result<(), LayerError>> {
    let origin = core.origin.lock();
    if let Some(reason) = &origin.refuted {
        return Some(Err(LayerError::Content { layer: core.id.blob, reason: reason.clone() }));
    }
    let actual = origin.verified?;
    Some(match origin.claimed {
        Some(expected) if expected != actual => {
            Err(LayerError::Mismatch { layer: core.id.blob, what: "diff ID", actual, expected })
        }
        _ => Ok(()),
    })
}

/// Fetches what of the compressed bytes is not here, and makes them a blob.
async fn fetch_blob(core: &Arc<Core>) -> Result<(), LayerError> {
    let state = |e: castor_content::Error| LayerError::State(with_sources(&e));
    let descriptor = core.origin.lock().descriptor.clone();
    let content = &core.shared.content;
    let ingest = match core.object.get().and_then(|o| o.fetcher.as_ref()).and_then(|f| f.ingest().cloned()) {
        Some(ingest) => ingest,
        None => content.ingest(&ingest_name(core.id.blob), &descriptor).await.map_err(state)?,
    };
    let missing: Vec<Range<u64>> = close(ingest.missing(0..descriptor.size));
    for range in missing {
        let mut at = range.start;
        core.openers
            .read(range, core.shared.config.read_deadline, &core.counters, |piece| {
                let (ingest, offset) = (ingest.clone(), at);
                at += piece.len() as u64;
                async move { ingest.write(offset, piece).await.map_err(|e| FetchError::new(with_sources(&e))) }
            })
            .await
            .map_err(|e| core.fetch_error(e))?;
    }
    ingest
        .commit(Commit::default())
        .await
        .map_err(|error| LayerError::Content { layer: core.id.blob, reason: with_sources(&error) })?;
    Ok(())
}

/// Joins ranges that are close: one request more costs more than a few bytes again.
fn close(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start - last.end <= 64 << 10 => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

/// Reads the blob's tar stream: its digest becomes the verified diff ID, and what it holds must be what the TOC said. Either
/// outcome is kept: the bytes do not change.
async fn verify(core: &Arc<Core>) -> Result<(), LayerError> {
    let blob = core.shared.content.open(&core.id.blob).await.map_err(|e| LayerError::State(with_sources(&e)))?;
    let this = core.clone();
    let found = castor_task::blocking(move || {
        let rules = if this.id.toc.is_some() { Rules::TAR_WITH_TOC } else { Rules::TAR };
        let mut failure = None;
        let unpacked = match unpack(Noting { blob: blob.reader(0), failure: &mut failure }, None, rules) {
            Ok(unpacked) => unpacked,
            Err(reason) => return failure.map_or(Ok(Err(reason)), Err),
        };
        let difference = match this.object.get().filter(|_| this.id.toc.is_some()) {
            Some(object) => compare::difference(&object.tree, &object.data, &unpacked.listing, &unpacked.contents)?,
            None => None,
        };
        Ok(match difference {
            Some(difference) => Err(format!("its TOC and its tar stream differ: {difference}")),
            None => Ok(unpacked.diff_id),
        })
    })
    .await
    .map_err(|e: std::io::Error| LayerError::io("compare", core.dir.join("data"), e))?;
    {
        let mut origin = core.origin.lock();
        match found {
            Ok(diff_id) => origin.verified = Some(diff_id),
            Err(reason) => origin.refuted = Some(reason),
        }
    }
    let this = core.clone();
    castor_task::blocking(move || this.write_origin()).await.map_err(|e| LayerError::io("write", &core.dir, e))?;
    let requests = core.counters.requests.load(Ordering::Relaxed);
    tracing::debug!(layer = %core.id, requests, "all of the layer was read");
    settled(core).unwrap_or(Ok(()))
}

/// Reads a blob, and notes when that fails: then it is no fault of the layer.
struct Noting<'a, R> {
    blob: R,
    failure: &'a mut Option<std::io::Error>,
}

impl<R: Read> Read for Noting<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.blob.read(buf).map_err(|error| {
            let told = std::io::Error::new(error.kind(), error.to_string());
            *self.failure = Some(error);
            told
        })
    }
}

impl Core {
    pub(crate) fn fetch_error(&self, source: FetchError) -> LayerError {
        LayerError::Fetch { layer: self.id.blob, image: self.origin.lock().image.clone(), source }
    }
}
