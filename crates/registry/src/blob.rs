//! Reading blobs.

use std::ops::Range;

use bytes::Bytes;
use castor_oci::Descriptor;
use futures::stream::BoxStream;

use crate::Error;

/// Which of a host's two lanes a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// Somebody waits for these bytes.
    OnDemand,
    /// Downloads and background fetches: few at once a host.
    #[default]
    Bulk,
}

/// Reads one blob of one repository; cheap to clone, clones share the signed URL and the counters.
#[derive(Debug, Clone)]
pub struct BlobReader {}

impl BlobReader {
    /// What is read.
    pub fn descriptor(&self) -> &Descriptor {
        todo!()
    }

    /// Asks for the bytes `range` with a single-range request. The answer may be the whole blob instead, see [`Body::is_full`].
    /// A cut or stalled answer is resumed behind its last byte.
    pub async fn range(&self, range: Range<u64>, priority: Priority) -> Result<Body, Error> {
        let _ = (range, priority);
        todo!()
    }

    /// The whole blob in order, resumed by ranges after cuts. Its bytes are *not* verified here.
    pub async fn full(&self, priority: Priority) -> Result<Body, Error> {
        let _ = priority;
        todo!()
    }

    /// The whole blob in memory, verified; refuses more than `limit` bytes.
    pub async fn bytes(&self, limit: u64) -> Result<Bytes, Error> {
        let _ = limit;
        todo!()
    }

    /// Says that bytes read last were wrong: the next request goes to another mirror, or anew through the registry.
    pub fn distrust(&self) {
        todo!()
    }

    /// Bytes received for this blob so far.
    pub fn bytes_fetched(&self) -> u64 {
        todo!()
    }

    /// Requests sent for this blob so far, redirects and retries included.
    pub fn requests(&self) -> u64 {
        todo!()
    }
}

/// The bytes of an answer.
#[derive(Debug)]
pub struct Body {}

impl Body {
    /// The bytes that will come: the range that was asked for, or the whole blob.
    pub fn range(&self) -> Range<u64> {
        todo!()
    }

    /// Whether a range was asked for and the registry sends the whole blob (status 200), from byte 0.
    pub fn is_full(&self) -> bool {
        todo!()
    }

    /// The next bytes; `None` once exactly [`range`](Self::range) was delivered.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        todo!()
    }

    /// The rest as a stream.
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes, Error>> {
        todo!()
    }

    /// The rest in memory.
    pub async fn collect(self) -> Result<Bytes, Error> {
        todo!()
    }
}
