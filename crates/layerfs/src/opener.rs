//! A blob of a registry, or of the content store, as a [`BlobOpener`].

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use castor_content::Blob;
use castor_registry::{BlobReader, Priority as Lane};
use futures::StreamExt as _;

use crate::source::{BlobOpener, FetchError, Priority, RangeBody};
use crate::unpack::with_sources;

/// Reads a blob from a registry.
#[derive(Debug, Clone)]
pub struct RegistryOpener {
    reader: BlobReader,
    name: String,
}

impl RegistryOpener {
    /// Reads by `reader`; `name` is how messages call the place, for example the repository.
    pub fn new(reader: BlobReader, name: impl Into<String>) -> Self {
        Self { reader, name: name.into() }
    }
}

fn error(error: &castor_registry::Error) -> FetchError {
    FetchError { message: with_sources(error).into(), transient: false }
}

#[async_trait]
impl BlobOpener for RegistryOpener {
    async fn range(&self, range: Range<u64>, priority: Priority) -> Result<RangeBody, FetchError> {
        let lane = match priority {
            Priority::Demand | Priority::Ahead => Lane::OnDemand,
            Priority::Background => Lane::Bulk,
        };
        let whole = range == (0..self.reader.descriptor().size);
        let answer = if whole { self.reader.full(lane).await } else { self.reader.range(range, lane).await };
        let body = answer.map_err(|e| error(&e))?;
        let (range, full) = (body.range(), body.is_full());
        let stream = body.into_stream().map(|piece| piece.map_err(|e| error(&e))).boxed();
        Ok(RangeBody { range, full, stream })
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn distrust(&self) {
        self.reader.distrust();
    }
}

/// Reads a blob that is in the content store.
#[derive(Debug)]
pub(crate) struct ContentOpener(Blob);

impl ContentOpener {
    pub(crate) fn new(blob: Blob) -> Self {
        Self(blob)
    }
}

#[async_trait]
impl BlobOpener for ContentOpener {
    async fn range(&self, range: Range<u64>, _: Priority) -> Result<RangeBody, FetchError> {
        let left = range.end.saturating_sub(range.start);
        let stream = self.0.stream(range.start).scan(left, |left, piece| {
            let piece = piece.map_err(|e| FetchError::new(e.to_string())).map(|piece: Bytes| {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                *left -= length as u64;
                piece.slice(..length)
            });
            let done = matches!(&piece, Ok(piece) if piece.is_empty());
            futures::future::ready((!done).then_some(piece))
        });
        Ok(RangeBody { range, full: false, stream: stream.boxed() })
    }

    fn describe(&self) -> String {
        "the content store".into()
    }
}
