//! Bodies that count what was sent and can end badly.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

const LINGER: Duration = Duration::from_millis(30);

/// How the body ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Good,
    Cut,
    Stall,
}

/// A body of known bytes.
#[derive(Debug)]
pub(super) struct Body {
    rest: Bytes,
    /// What the head says the length is.
    claimed: u64,
    end: End,
    sent: Arc<AtomicU64>,
    /// Lets what was handed over reach the client before the connection is dropped.
    linger: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Body {
    pub fn new(bytes: Bytes, sent: &Arc<AtomicU64>) -> Self {
        Self { claimed: bytes.len() as u64, rest: bytes, end: End::Good, sent: Arc::clone(sent), linger: None }
    }

    /// The same, but after `at` bytes comes `end`.
    pub fn ending(mut self, at: u64, end: End) -> Self {
        let at = usize::try_from(at).unwrap_or(usize::MAX).min(self.rest.len());
        if at < self.rest.len() {
            self.rest.truncate(at);
            self.end = end;
        }
        self
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            return match this.end {
                End::Good => Poll::Ready(None),
                End::Cut => {
                    let linger = this.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
                    linger.as_mut().poll(context).map(|()| Some(Err(io::Error::other("cut"))))
                }
                // Woken by nobody: the connection ends with the client or the registry.
                End::Stall => Poll::Pending,
            };
        }
        let chunk = this.rest.split_to(this.rest.len().min(64 << 10));
        this.sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && matches!(self.end, End::Good)
    }

    fn size_hint(&self) -> SizeHint {
        match self.end {
            End::Good => SizeHint::with_exact(self.rest.len() as u64),
            End::Cut | End::Stall => SizeHint::with_exact(self.claimed),
        }
    }
}
