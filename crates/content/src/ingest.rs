//! Ingests: blobs in the making, filled by ranges in any order.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use castor_metadb::Batch;
use castor_oci::{Descriptor, Digest};
use parking_lot::{Mutex, RwLock};
use rustix::fs::FallocateFlags;

use crate::disk::{Disk, IngestRecord, blocking, hash, now, private, remove, wait};
use crate::{Commit, Error, Info, RangeSet};

/// A blob in the making: a sparse file and the set of ranges that are in it. Survives a restart with what was there at the
/// last [`checkpoint`](Self::checkpoint). Clones are the same ingest.
#[derive(Debug, Clone)]
pub struct Ingest {
    state: Arc<IngestState>,
}

#[derive(Debug)]
pub(crate) struct IngestState {
    disk: Arc<Disk>,
    reference: String,
    digest: Digest,
    size: u64,
    created: i64,
    path: PathBuf,
    file: File,
    /// Shared by those who read and write bytes, exclusive for those who change what the file is.
    busy: RwLock<()>,
    here: Mutex<Here>,
}

#[derive(Debug)]
struct Here {
    ranges: RangeSet,
    /// What became of it, once it is no ingest any more.
    ended: Option<&'static str>,
}

impl Ingest {
    /// Opens or begins the ingest `reference`.
    pub(crate) fn open(disk: &Arc<Disk>, reference: &str, expected: &Descriptor) -> Result<Self, Error> {
        let _no_collector = disk.gc.read();
        let mut open = disk.open.lock();
        let other = |found| Error::OtherContent { reference: reference.to_owned(), found, wanted: expected.digest };
        if let Some(state) = open.get(reference).and_then(std::sync::Weak::upgrade)
            && state.here.lock().ended.is_none()
        {
            if state.digest != expected.digest || state.size != expected.size {
                return Err(other(state.digest));
            }
            return Ok(Self { state });
        }
        let path = disk.ingest_path(reference);
        let record = disk.ingest_record(reference)?;
        if let Some(record) = &record
            && (record.digest != expected.digest || record.size != expected.size)
        {
            return Err(other(record.digest));
        }
        let fail = Error::io("open ingest", reference);
        let file = private().create(true).truncate(false).open(&path).map_err(fail)?;
        let length = file.metadata().map_err(Error::io("open ingest", reference))?.len();
        // A file of another length is not the one the record is about.
        let record = record.filter(|_| length == expected.size);
        let ranges = match &record {
            Some(record) => record.ranges.iter().map(|(start, end)| *start..(*end).min(expected.size)).collect(),
            None => {
                file.set_len(0)
                    .and_then(|()| file.set_len(expected.size))
                    .map_err(Error::io("size ingest", reference))?;
                RangeSet::new()
            }
        };
        let state = Arc::new(IngestState {
            disk: Arc::clone(disk),
            reference: reference.to_owned(),
            digest: expected.digest,
            size: expected.size,
            created: record.map_or_else(now, |record| record.created),
            path,
            file,
            busy: RwLock::default(),
            here: Mutex::new(Here { ranges, ended: None }),
        });
        let mut batch = Batch::new();
        state.record(&mut batch, &state.here.lock().ranges);
        disk.db.write_soon(batch);
        open.retain(|_, state| state.strong_count() > 0);
        open.insert(reference.to_owned(), Arc::downgrade(&state));
        Ok(Self { state })
    }

    /// Its name.
    pub fn reference(&self) -> &str {
        &self.state.reference
    }

    /// The digest it is to have.
    pub fn digest(&self) -> Digest {
        self.state.digest
    }

    /// The size it is to have.
    pub fn size(&self) -> u64 {
        self.state.size
    }

    /// Writes `bytes` at `offset` and marks them present. Blocks on the file.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let state = &*self.state;
        let end = offset.saturating_add(bytes.len() as u64);
        if end > state.size {
            return Err(state.range_error(offset..end, "outside of it"));
        }
        let _shared = state.busy.read();
        state.check()?;
        state.file.write_all_at(bytes, offset).map_err(Error::io("write ingest", &state.reference))?;
        state.here.lock().ranges.insert(offset..end);
        Ok(())
    }

    /// [`write_at`](Self::write_at) off the runtime's threads.
    pub async fn write(&self, offset: u64, bytes: Bytes) -> Result<(), Error> {
        let ingest = self.clone();
        blocking(move || ingest.write_at(offset, &bytes)).await
    }

    /// Fills `buf` from `offset`; all of it must be present. Blocks on the file.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let state = &*self.state;
        let range = offset..offset.saturating_add(buf.len() as u64);
        let _shared = state.busy.read();
        state.check()?;
        if !state.here.lock().ranges.contains(range.clone()) {
            return Err(state.range_error(range, "not here"));
        }
        state.file.read_exact_at(buf, offset).map_err(Error::io("read ingest", &state.reference))
    }

    /// The parts of `range` that are not here.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.state.here.lock().ranges.missing(range.start..range.end.min(self.state.size))
    }

    /// Bytes that are here.
    pub fn present(&self) -> u64 {
        self.state.here.lock().ranges.len()
    }

    /// The ranges that are here.
    pub fn ranges(&self) -> RangeSet {
        self.state.here.lock().ranges.clone()
    }

    /// Makes what is here now survive a crash: syncs the file, then records the ranges. Blocks on the file.
    pub fn checkpoint(&self) -> Result<(), Error> {
        let state = &*self.state;
        let _shared = state.busy.read();
        state.check()?;
        // Only what was written before the sync is recorded after it.
        let ranges = state.here.lock().ranges.clone();
        state.file.sync_data().map_err(Error::io("sync ingest", &state.reference))?;
        let mut batch = Batch::new();
        state.record(&mut batch, &ranges);
        state.disk.db.write_soon(batch);
        Ok(())
    }

    /// Gives the space of `range` back; its bytes are missing afterwards. Blocks on the file.
    pub fn punch(&self, range: Range<u64>) -> Result<(), Error> {
        let state = &*self.state;
        let range = range.start..range.end.min(state.size);
        if range.start >= range.end {
            return Ok(());
        }
        let _alone = state.busy.write();
        state.check()?;
        let ranges = {
            let mut here = state.here.lock();
            here.ranges.remove(range.clone());
            here.ranges.clone()
        };
        // The record first: after a crash in between, bytes are there that nobody counts on, never the reverse.
        state.record_durably(&ranges)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&state.file, flags, range.start, range.end - range.start) {
            // Where holes cannot be made, the space stays taken until the ingest ends.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(Error::io("punch ingest", &state.reference)(errno.into())),
        }
    }

    /// Verifies size and digest and makes it a blob. When the digest is wrong, all its bytes are dropped: the ingest is
    /// empty and can be filled anew.
    pub async fn commit(&self, commit: Commit) -> Result<Info, Error> {
        let state = Arc::clone(&self.state);
        blocking(move || state.commit(&commit)).await
    }

    /// Drops it and its bytes.
    pub async fn discard(&self) -> Result<(), Error> {
        let state = Arc::clone(&self.state);
        blocking(move || state.discard().map(drop)).await
    }

    /// Drops the ingest `reference`, open or not. Returns the bytes on disk that this freed. Blocks.
    pub(crate) fn discard_named(disk: &Arc<Disk>, reference: &str) -> Result<u64, Error> {
        loop {
            let state = {
                let open = disk.open.lock();
                match open.get(reference).and_then(std::sync::Weak::upgrade) {
                    Some(state) if state.here.lock().ended.is_none() => state,
                    // Nobody opens it while the lock is held.
                    _ => return disk.remove_ingest(reference),
                }
            };
            match state.discard() {
                // It became a blob meanwhile, or was discarded by another.
                Err(Error::Ended { .. }) => {}
                outcome => return outcome,
            }
        }
    }
}

impl IngestState {
    fn discard(&self) -> Result<u64, Error> {
        // Locks are always taken in this order: an ingest's `busy`, then the store's `gc`, `open`, `records`.
        let _alone = self.busy.write();
        let mut open = self.disk.open.lock();
        self.check()?;
        self.here.lock().ended = Some("discarded");
        open.remove(&self.reference);
        self.disk.remove_ingest(&self.reference)
    }

    fn check(&self) -> Result<(), Error> {
        match self.here.lock().ended {
            Some(state) => Err(Error::Ended { reference: self.reference.clone(), state }),
            None => Ok(()),
        }
    }

    fn range_error(&self, range: Range<u64>, why: &'static str) -> Error {
        Error::Range { reference: self.reference.clone(), start: range.start, end: range.end, why }
    }

    fn record(&self, batch: &mut Batch, ranges: &RangeSet) {
        let record = IngestRecord {
            digest: self.digest,
            size: self.size,
            created: self.created,
            ranges: ranges.iter().map(|range| (range.start, range.end)).collect(),
        };
        Disk::record_ingest(batch, &self.reference, &record);
    }

    fn record_durably(&self, ranges: &RangeSet) -> Result<(), Error> {
        let mut batch = Batch::new();
        self.record(&mut batch, ranges);
        Ok(wait(self.disk.db.write(batch))?)
    }

    fn commit(&self, commit: &Commit) -> Result<Info, Error> {
        let _alone = self.busy.write();
        self.check()?;
        let missing: u64 = self.here.lock().ranges.missing(0..self.size).iter().map(|r| r.end - r.start).sum();
        if missing > 0 {
            let (reference, digest) = (self.reference.clone(), self.digest);
            return Err(Error::Incomplete { reference, digest, missing, size: self.size });
        }
        let (found, size) = hash(&self.file).map_err(Error::io("read ingest", &self.reference))?;
        if found != self.digest || size != self.size {
            self.here.lock().ranges = RangeSet::new();
            self.record_durably(&RangeSet::new())?;
            self.file
                .set_len(0)
                .and_then(|()| self.file.set_len(self.size))
                .map_err(Error::io("empty ingest", &self.reference))?;
            let (reference, wanted) = (self.reference.clone(), self.digest);
            return Err(Error::DigestMismatch { reference, found, wanted });
        }
        self.file.sync_all().map_err(Error::io("sync ingest", &self.reference))?;
        castor_task::crash_point("blob commit");
        let mut forget = Batch::new();
        Disk::forget_ingest(&mut forget, &self.reference);
        let info = self.disk.publish(&self.path, self.digest, self.size, commit, forget)?;
        self.here.lock().ended = Some("committed");
        Ok(info)
    }
}

/// Data that became no blob, for [`crate::Writer`]: removed unless it was published.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub path: PathBuf,
    pub published: bool,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!(%error, "remove the file of a writer");
        }
    }
}
