//! From a registry into the store.

use castor_registry::{BlobReader, Priority};

use crate::{Commit, ContentStore, Error, Info, Ingest};

/// Why a blob did not come into the store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] castor_registry::Error),
    /// The store did not take it.
    #[error(transparent)]
    Content(#[from] Error),
}

/// Brings the blob of `reader` into `store`, all of it, verified; goes on where an earlier attempt stopped. A blob that is
/// here is only labelled and leased. `progress` hears how many bytes are here.
///
/// Bytes that turn out wrong are fetched once more, from another mirror if there is one.
pub async fn fetch(
    store: &dyn ContentStore,
    reader: &BlobReader,
    priority: Priority,
    commit: Commit,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Info, FetchError> {
    let descriptor = reader.descriptor();
    if let Some(info) = store.hold(&descriptor.digest, &commit).await? {
        progress(info.size);
        return Ok(info);
    }
    let ingest = store.ingest(&format!("fetch-{}", descriptor.digest), descriptor).await?;
    let mut once_more = true;
    loop {
        fill(&ingest, reader, priority, progress).await?;
        match ingest.commit(commit.clone()).await {
            Err(Error::DigestMismatch { .. }) if once_more => {
                tracing::warn!(digest = %descriptor.digest, host = ?reader.last_host(), "wrong bytes, fetching once more");
                once_more = false;
                reader.distrust();
            }
            outcome => return Ok(outcome?),
        }
    }
}

/// Fetches what is missing, front to back. Checkpoints now and then, and when it fails.
async fn fill(
    ingest: &Ingest,
    reader: &BlobReader,
    priority: Priority,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<(), FetchError> {
    const CHECKPOINT: u64 = 64 << 20;
    let mut unsaved = 0;
    while let Some(gap) = ingest.missing(0..ingest.size()).into_iter().next() {
        let whole = gap == (0..ingest.size());
        let mut body = if whole { reader.full(priority).await? } else { reader.range(gap, priority).await? };
        let mut at = body.range().start;
        loop {
            match body.chunk().await {
                Ok(Some(bytes)) => {
                    let length = bytes.len() as u64;
                    ingest.write(at, bytes).await?;
                    at += length;
                    unsaved += length;
                    progress(ingest.present());
                }
                Ok(None) => break,
                Err(error) => {
                    save(ingest).await?;
                    return Err(error.into());
                }
            }
            if unsaved >= CHECKPOINT {
                unsaved = 0;
                save(ingest).await?;
            }
        }
    }
    Ok(())
}

async fn save(ingest: &Ingest) -> Result<(), Error> {
    let ingest = ingest.clone();
    crate::disk::blocking(move || ingest.checkpoint()).await
}
