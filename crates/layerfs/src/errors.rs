//! The log of reads of lazy layers that failed: a process that got EIO cannot say why, so the build asks here.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::error::ReadError;
use crate::source::LayerId;

/// Failures that are remembered; older ones are of builds that have ended.
const REMEMBERED: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct ErrorLog {
    next: AtomicU64,
    count: AtomicUsize,
    log: Mutex<VecDeque<Failure>>,
}

#[derive(Debug)]
struct Failure {
    layer: LayerId,
    /// What could not be read of the layer's data.
    range: Range<u64>,
    error: ReadError,
    /// Whoever has read it since has read it in another mount.
    lasting: bool,
}

impl ErrorLog {
    /// The number that the next failure will have.
    pub(crate) fn mark(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    pub(crate) fn push(&self, layer: LayerId, range: Range<u64>, image: String, file: String, cause: &str) {
        self.add(layer, range, image, file, cause, false);
    }

    /// The same for what does not heal: its mount is never read again, but others of the layer are.
    pub(crate) fn push_lasting(&self, layer: LayerId, image: String, file: String, cause: &str) {
        self.add(layer, 0..0, image, file, cause, true);
    }

    fn add(&self, layer: LayerId, range: Range<u64>, image: String, file: String, cause: &str, lasting: bool) {
        let mut log = self.log.lock();
        // The kernel asks again page by page where a larger read failed: that is one failure, the latest.
        let again = |f: &Failure| f.layer == layer && f.error.file == file && f.error.cause == cause;
        if let Some(place) = log.iter().rposition(again) {
            log.remove(place);
        }
        if log.len() >= REMEMBERED {
            log.pop_front();
        }
        let sequence = self.next.fetch_add(1, Ordering::AcqRel);
        let error = ReadError { sequence, image, layer: layer.blob, file, cause: cause.to_owned() };
        log.push_back(Failure { layer, range, error, lasting });
        self.count.store(log.len(), Ordering::Release);
    }

    /// Forgets failures in `range`, which was read now: the kernel has tried again what it read ahead in vain, and the
    /// process has its bytes.
    pub(crate) fn heal(&self, layer: LayerId, range: &Range<u64>) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut log = self.log.lock();
        log.retain(|f| f.lasting || f.layer != layer || f.range.end <= range.start || range.end <= f.range.start);
        self.count.store(log.len(), Ordering::Release);
    }

    pub(crate) fn of(&self, layer: LayerId, since: u64) -> Vec<ReadError> {
        let log = self.log.lock();
        let mine = log.iter().filter(|f| f.layer == layer && f.error.sequence >= since);
        mine.map(|f| f.error.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use castor_oci::Digest;

    use super::*;

    #[test]
    fn failures_are_told_once_until_they_heal() {
        let log = ErrorLog::default();
        let layer = LayerId { blob: Digest::of("a"), toc: None };
        let push = |range, file: &str| log.push(layer, range, "image".into(), file.into(), "cause");
        push(0..1 << 20, "/f");
        push(0..4096, "/f");
        let mark = log.mark();
        assert_eq!(log.of(layer, 0).len(), 1);
        assert!(log.of(layer, mark).is_empty());
        push(4096..8192, "/g");
        log.heal(layer, &(8192..12288));
        assert_eq!(log.of(layer, 0).len(), 2);
        log.heal(layer, &(0..8));
        assert_eq!(log.of(layer, mark)[0].file, "/g");
        log.push_lasting(layer, "image".into(), "/lost".into(), "cause");
        log.heal(layer, &(0..8192));
        assert_eq!(log.of(layer, mark)[0].file, "/lost");
    }
}
