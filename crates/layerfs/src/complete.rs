//! Completing a layer: all bytes, the blob verified and in the content store, the tar stream verified.

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
        None => fetch_blob(core).await,
    }
}

/// Does it; one at a time for a layer.
pub(crate) async fn complete(core: &Arc<Core>) -> Result<(), LayerError> {
    let _one = core.completing.lock().await;
    if let Some(fetcher) = core.object.get().and_then(|object| object.fetcher.as_ref())
        && !fetcher.presence().all()
    {
        fetcher.all().await.map_err(|e| core.fetch_error(e))?;
    }
    blob_locked(core).await?;
    if core.origin.lock().verified.is_none() {
        verify(core).await?;
    }
    let this = core.clone();
    castor_task::blocking(move || this.checkpoint()).await.map_err(|e| LayerError::io("write", &core.dir, e))
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

/// Reads the blob's tar stream: its digest becomes the verified diff ID, and what it holds must be what the TOC said.
async fn verify(core: &Arc<Core>) -> Result<(), LayerError> {
    let content = |reason: String| LayerError::Content { layer: core.id.blob, reason };
    let blob = core.shared.content.open(&core.id.blob).await.map_err(|e| LayerError::State(with_sources(&e)))?;
    let this = core.clone();
    let unpacked = castor_task::blocking(move || {
        let rules = if this.id.toc.is_some() { Rules::TAR_WITH_TOC } else { Rules::TAR };
        let unpacked = unpack(blob.reader(0), None, rules)?;
        if this.id.toc.is_some()
            && let Some(object) = this.object.get()
            && let Some(difference) =
                compare::difference(&object.tree, &object.data, &unpacked.listing, &unpacked.contents)
                    .map_err(|e| format!("compare it with its TOC: {e}"))?
        {
            return Err(format!("its TOC and its tar stream differ: {difference}"));
        }
        Ok(unpacked.diff_id)
    })
    .await
    .map_err(content)?;
    let claimed = core.origin.lock().claimed;
    if let Some(expected) = claimed
        && expected != unpacked
    {
        return Err(LayerError::Mismatch { layer: core.id.blob, what: "diff ID", actual: unpacked, expected });
    }
    core.origin.lock().verified = Some(unpacked);
    let this = core.clone();
    castor_task::blocking(move || this.write_origin()).await.map_err(|e| LayerError::io("write", &core.dir, e))?;
    tracing::debug!(layer = %core.id, diff_id = %unpacked, requests = core.counters.requests.load(Ordering::Relaxed), "layer verified");
    Ok(())
}

impl Core {
    pub(crate) fn fetch_error(&self, source: FetchError) -> LayerError {
        LayerError::Fetch { layer: self.id.blob, image: self.origin.lock().image.clone(), source }
    }
}
