//! The log of reads of lazy layers that failed: a process that got EIO cannot say why, so the build asks here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::ReadError;
use crate::source::LayerId;

/// Failures that are remembered; older ones are of builds that have ended.
const REMEMBERED: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct ErrorLog {
    next: AtomicU64,
    log: Mutex<VecDeque<(LayerId, ReadError)>>,
}

impl ErrorLog {
    /// The number that the next failure will have.
    pub(crate) fn mark(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    pub(crate) fn push(&self, layer: LayerId, image: String, file: String, cause: &str) {
        let mut log = self.log.lock();
        let sequence = self.next.fetch_add(1, Ordering::AcqRel);
        if log.len() >= REMEMBERED {
            log.pop_front();
        }
        log.push_back((layer, ReadError { sequence, image, layer: layer.blob, file, cause: cause.to_owned() }));
    }

    pub(crate) fn of(&self, layer: LayerId, since: u64) -> Vec<ReadError> {
        let log = self.log.lock();
        log.iter().filter(|(id, error)| *id == layer && error.sequence >= since).map(|(_, e)| e.clone()).collect()
    }

    pub(crate) fn take(&self, layer: LayerId) -> Vec<ReadError> {
        let mut taken = Vec::new();
        self.log.lock().retain(|(id, error)| {
            if *id == layer {
                taken.push(error.clone());
            }
            *id != layer
        });
        taken
    }
}
