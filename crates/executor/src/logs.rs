//! The output of a step as its progress, within limits: a step that prints without end must not fill clients' screens.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use castor_progress::Reporter;
use tokio::io::AsyncWrite;

use crate::process::Output;

/// The end of a clipped stream, which is shown when the step has ended.
const TAIL: usize = 256 << 10;

/// How much a step may print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes in all.
    pub size: Option<u64>,
    /// Bytes in a second.
    pub speed: Option<u64>,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { size: Some(2 << 20), speed: Some(200 << 10) }
    }
}

impl LogLimits {
    /// The limits that `BUILDKIT_STEP_LOG_MAX_SIZE` and `BUILDKIT_STEP_LOG_MAX_SPEED` set; -1 is none.
    pub fn from_env() -> Self {
        let limit = |name: &str, default| match std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok()) {
            Some(-1) => None,
            Some(limit) => Some(limit.max(0) as u64),
            None => default,
        };
        let defaults = Self::default();
        Self {
            size: limit("BUILDKIT_STEP_LOG_MAX_SIZE", defaults.size),
            speed: limit("BUILDKIT_STEP_LOG_MAX_SPEED", defaults.speed),
        }
    }
}

/// An output whose bytes become log events of a vertex; stream 1 is standard output, 2 standard error.
pub fn log_output(reporter: Reporter, stream: i64, limits: LogLimits) -> Output {
    Box::new(LogOutput {
        reporter,
        stream,
        clip: Clip { limits, created: Instant::now(), seen: 0, clipping: false, tail: None },
    })
}

struct LogOutput {
    reporter: Reporter,
    stream: i64,
    clip: Clip,
}

impl AsyncWrite for LogOutput {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let seconds = self.clip.created.elapsed().as_secs() + 1;
        let shown = self.clip.take(bytes, seconds);
        if !shown.is_empty() {
            self.reporter.log(self.stream, shown);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tail) = self.clip.tail.take().filter(|tail| !tail.is_empty()) {
            let start = tail.len().saturating_sub(TAIL);
            self.reporter.log(self.stream, Bytes::from(tail).slice(start..));
        }
        Poll::Ready(Ok(()))
    }
}

struct Clip {
    limits: LogLimits,
    created: Instant,
    seen: u64,
    clipping: bool,
    /// The last bytes since clipping began.
    tail: Option<Vec<u8>>,
}

impl Clip {
    /// What of `bytes` is shown, in the given second (from 1) of the step.
    fn take(&mut self, bytes: &[u8], second: u64) -> Bytes {
        let before = self.seen;
        self.seen += bytes.len() as u64;
        let by_speed = self.limits.speed.map(|speed| speed.saturating_mul(second));
        let (limit, speed) = match (by_speed, self.limits.size) {
            (Some(speed), Some(size)) if speed > size => (Some(size), false),
            (Some(speed), _) => (Some(speed), true),
            (None, size) => (size, false),
        };
        let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(before));
        let length = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if length < bytes.len() || self.tail.is_some() {
            self.keep(bytes);
        }
        let mut shown = bytes[..length].to_vec();
        let clipped = length < bytes.len();
        if clipped && !self.clipping {
            let limit = if speed {
                format!("{}/s", binary_size(self.limits.speed.unwrap_or_default()))
            } else {
                binary_size(self.limits.size.unwrap_or_default())
            };
            shown.extend_from_slice(format!("\n[output clipped, log limit {limit} reached]\n").as_bytes());
        }
        self.clipping = clipped;
        Bytes::from(shown)
    }

    fn keep(&mut self, bytes: &[u8]) {
        let tail = self.tail.get_or_insert_with(Vec::new);
        tail.extend_from_slice(bytes);
        // Cut rarely: each cut moves all that stays.
        if tail.len() > 2 * TAIL {
            tail.drain(..tail.len() - TAIL);
        }
    }
}

/// `2MiB`, `200KiB`, `1.5MiB`.
fn binary_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = format!("{value:.2}");
    format!("{}{}", text.trim_end_matches('0').trim_end_matches('.'), units[unit])
}

/// The two outputs of a step.
pub fn step_outputs(reporter: &Reporter) -> (Output, Output) {
    let limits = LogLimits::from_env();
    (log_output(reporter.clone(), 1, limits), log_output(reporter.clone(), 2, limits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_progress::{Event, Sink};
    use parking_lot::Mutex;
    use std::sync::Arc;
    use tokio::io::AsyncWriteExt as _;

    #[derive(Default)]
    struct Record(Mutex<Vec<u8>>);

    impl Sink for Record {
        fn send(&self, event: Event) {
            let Event::Log(log) = event else { return };
            self.0.lock().extend_from_slice(&log.data);
        }
    }

    fn clip(size: Option<u64>, speed: Option<u64>) -> Clip {
        Clip { limits: LogLimits { size, speed }, created: Instant::now(), seen: 0, clipping: false, tail: None }
    }

    #[test]
    fn clipped_by_speed_and_size() {
        let mut clip = clip(Some(12), Some(5));
        assert_eq!(clip.take(b"abc", 1), "abc");
        assert_eq!(clip.take(b"defg", 1), "de\n[output clipped, log limit 5B/s reached]\n");
        assert_eq!(clip.take(b"hi", 1), "");
        assert_eq!(clip.take(b"jklm", 3), "jkl");
        assert_eq!(clip.tail.as_deref(), Some(&b"defghijklm"[..]));
    }

    #[tokio::test]
    async fn the_tail_comes_at_the_end() {
        let sink = Arc::new(Record::default());
        let reporter = Reporter::new(castor_oci::Digest::of("v"), sink.clone());
        let mut output = log_output(reporter, 1, LogLimits { size: Some(4), speed: None });
        output.write_all(b"123456").await.unwrap();
        output.write_all(b"78").await.unwrap();
        output.shutdown().await.unwrap();
        assert_eq!(&sink.0.lock()[..], b"1234\n[output clipped, log limit 4B reached]\n12345678");
    }

    #[test]
    fn sizes() {
        assert_eq!(binary_size(2 << 20), "2MiB");
        assert_eq!(binary_size(200 << 10), "200KiB");
        assert_eq!(binary_size(1536), "1.5KiB");
    }
}
