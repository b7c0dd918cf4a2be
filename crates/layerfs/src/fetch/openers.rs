//! The ways a layer's blob can be read, and the counters of what was read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::RwLock;

use super::Counters;
use crate::source::{BlobOpener, FetchError, Priority, RangeBody};

/// Openers that are remembered: old ones belong to sessions that are long gone.
const REMEMBERED: usize = 8;
/// Times that a download is resumed after it broke off.
const RESUMES: u32 = 5;

/// The ways of one layer, newest first.
#[derive(Default)]
pub(crate) struct Openers(RwLock<Vec<Arc<dyn BlobOpener>>>);

impl std::fmt::Debug for Openers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.read().iter().map(|opener| opener.describe())).finish()
    }
}

impl Openers {
    /// Adds one; it is tried first.
    pub(crate) fn attach(&self, opener: Arc<dyn BlobOpener>) {
        let mut openers = self.0.write();
        openers.retain(|known| !Arc::ptr_eq(known, &opener));
        openers.insert(0, opener);
        openers.truncate(REMEMBERED);
    }

    /// Says that bytes read last were wrong.
    pub(crate) fn distrust(&self) {
        for opener in self.0.read().iter() {
            opener.distrust();
        }
    }

    /// Asks them in turn. Says who answered.
    pub(crate) async fn range(
        &self,
        range: Range<u64>,
        priority: Priority,
        counters: &Counters,
    ) -> Result<(RangeBody, String), FetchError> {
        let openers = self.0.read().clone();
        let mut last =
            FetchError::new("no source is known: since the daemon started no build has named an image with this layer");
        for opener in openers {
            counters.requests.fetch_add(1, Ordering::Relaxed);
            match opener.range(range.clone(), priority).await {
                Ok(body) => return Ok((body, opener.describe())),
                Err(error) => {
                    tracing::debug!(?range, from = opener.describe(), %error, "range request failed");
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Reads `range`, resuming where an answer breaks off, and gives it piece by piece to `each`, in order. `idle` bounds
    /// the wait for each piece.
    pub(crate) async fn read<F, W>(
        &self,
        range: Range<u64>,
        idle: Duration,
        counters: &Counters,
        mut each: F,
    ) -> Result<(), FetchError>
    where
        F: FnMut(Bytes) -> W,
        W: Future<Output = Result<(), FetchError>>,
    {
        let mut at = range.start;
        let mut resumes = 0;
        loop {
            let outcome: Result<(), FetchError> = async {
                let (mut body, from) = self.range(at..range.end, Priority::Background, counters).await?;
                // A source without ranges begins anew.
                let mut skip = at.checked_sub(body.range.start).ok_or_else(|| FetchError::new("wrong range"))?;
                while at < range.end {
                    let piece = match tokio::time::timeout(idle, body.stream.next()).await {
                        Ok(Some(piece)) => piece?,
                        Ok(None) => return Err(cut(&from, at)),
                        Err(_) => return Err(FetchError::new(format!("{from} sent nothing for {idle:?}"))),
                    };
                    counters.fetched.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    let unwanted = skip.min(piece.len() as u64);
                    skip -= unwanted;
                    let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
                    let wanted = piece.slice(unwanted as usize..);
                    let wanted = wanted.slice(..wanted.len().min(left));
                    at += wanted.len() as u64;
                    if !wanted.is_empty() {
                        each(wanted).await?;
                    }
                }
                Ok(())
            }
            .await;
            match outcome {
                Err(error) if resumes < RESUMES && error.transient && at < range.end => {
                    resumes += 1;
                    tracing::debug!(at, %error, "resume download");
                }
                outcome => return outcome,
            }
        }
    }
}

fn cut(from: &str, at: u64) -> FetchError {
    FetchError::transient(format!("the answer of {from} ended at byte {at}"))
}
