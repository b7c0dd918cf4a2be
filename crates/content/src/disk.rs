//! The form on disk: where files lie, and how bytes become a blob.
//!
//! ```text
//! <root>/blobs/sha256/<first two hex digits>/<64 hex digits>   blobs
//! <root>/ingest/<SHA-256 of the reference>                     data of ingests, sparse
//! <root>/ingest/w-<number>                                     data of writers; removed when the store is opened
//! ```
//! In the database: `content.blob` digest → [`BlobRecord`], `content.ingest` reference → [`IngestRecord`].
//!
//! A blob exists from the moment its file does: the rename in [`Disk::publish`] is the commit point. What the database must
//! know about it (labels, the lease) is durable before; a record without a file means nothing and is removed at start.
//! Everything here blocks.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use castor_metadb::{Batch, KeyValue};
use castor_oci::{Digest, Hasher};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::ingest::IngestState;
use crate::lease::resource_key;
use crate::{Commit, Error, Info, Labels, Resource};

const BLOBS: &str = "content.blob";
const INGESTS: &str = "content.ingest";

#[derive(Debug, Default, Serialize, Deserialize)]
struct BlobRecord {
    size: u64,
    /// Nanoseconds since the epoch.
    created: i64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: Labels,
}

/// What is known of an ingest; its ranges are those of the last checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct IngestRecord {
    pub digest: Digest,
    pub size: u64,
    pub created: i64,
    /// Start and end of each range that is here.
    #[serde(default)]
    pub ranges: Vec<(u64, u64)>,
}

pub(crate) struct Disk {
    root: PathBuf,
    pub db: Arc<dyn KeyValue>,
    /// Read while content appears and is leased, written while the collector decides: nothing appears behind its back.
    pub gc: RwLock<()>,
    /// Ingests that somebody holds. Locked while one is opened, committed or discarded.
    pub open: Mutex<HashMap<String, Weak<IngestState>>>,
    /// Serialises changes of a blob's record.
    records: Mutex<()>,
    next: AtomicU64,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("root", &self.root).finish_non_exhaustive()
    }
}

pub(crate) fn now() -> i64 {
    nanoseconds(SystemTime::now())
}

fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl Disk {
    pub fn open(root: &Path, db: Arc<dyn KeyValue>) -> Result<Self, Error> {
        for dir in ["blobs/sha256", "ingest"] {
            let path = root.join(dir);
            create_dir(&path).map_err(Error::io("create", path.display()))?;
        }
        let disk = Self {
            root: root.to_owned(),
            db,
            gc: RwLock::default(),
            open: Mutex::default(),
            records: Mutex::default(),
            next: AtomicU64::new(0),
        };
        disk.tidy()?;
        Ok(disk)
    }

    /// Removes what a crash left: writers' files, data without a record, records without a file.
    fn tidy(&self) -> Result<(), Error> {
        let known: HashMap<_, _> =
            self.ingests()?.into_iter().map(|(name, _)| (self.ingest_path(&name), name)).collect();
        let dir = self.root.join("ingest");
        let mut present = Vec::new();
        for entry in fs::read_dir(&dir).map_err(Error::io("list", dir.display()))? {
            let path = entry.map_err(Error::io("list", dir.display()))?.path();
            if known.contains_key(&path) {
                present.push(path);
            } else {
                fs::remove_file(&path).map_err(Error::io("remove", path.display()))?;
            }
        }
        let mut batch = Batch::new();
        for (path, name) in &known {
            if !present.contains(path) {
                batch.delete(INGESTS, name);
            }
        }
        for (key, _) in self.db.scan_prefix(BLOBS, b"")? {
            let digest = std::str::from_utf8(&key).ok().and_then(|text| text.parse::<Digest>().ok());
            if !digest.is_some_and(|digest| self.blob_path(&digest).exists()) {
                batch.delete(BLOBS, key);
            }
        }
        if !batch.is_empty() {
            self.db.write_soon(batch);
        }
        Ok(())
    }

    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs/sha256").join(&hex[..2]).join(&hex)
    }

    pub fn ingest_path(&self, reference: &str) -> PathBuf {
        self.root.join("ingest").join(Digest::of(reference).hex())
    }

    /// A new file for a writer.
    pub fn writer_file(&self) -> Result<(PathBuf, File), Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("ingest").join(format!("w-{number}"));
        let file = private().create_new(true).open(&path);
        file.map_err(Error::io("create", path.display())).map(|file| (path, file))
    }

    pub fn info(&self, digest: &Digest) -> Result<Option<Info>, Error> {
        let metadata = match fs::metadata(self.blob_path(digest)) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("stat content", digest)(e)),
        };
        let record = self.blob_record(digest)?.unwrap_or_else(|| BlobRecord {
            created: metadata.modified().map_or(0, nanoseconds),
            ..BlobRecord::default()
        });
        let created = i128::from(record.created);
        Ok(Some(Info { digest: *digest, size: metadata.len(), labels: record.labels, created }))
    }

    fn blob_record(&self, digest: &Digest) -> Result<Option<BlobRecord>, Error> {
        match self.db.get(BLOBS, digest.to_string().as_bytes())? {
            Some(bytes) => Ok(Some(decode(&bytes, || format!("content {digest}"))?)),
            None => Ok(None),
        }
    }

    pub fn open_blob(&self, digest: &Digest) -> Result<(File, u64), Error> {
        let fail = Error::io("open content", digest);
        match File::open(self.blob_path(digest)) {
            Ok(file) => {
                let size = file.metadata().map_err(fail)?.len();
                Ok((file, size))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::NotFound(*digest)),
            Err(e) => Err(fail(e)),
        }
    }

    /// Makes the file at `path`, whose bytes were verified to be `digest` and synced, a blob. `also` is made durable with
    /// the blob's record, before.
    pub fn publish(&self, path: &Path, digest: Digest, size: u64, commit: &Commit, also: Batch) -> Result<Info, Error> {
        let _no_collector = self.gc.read();
        let record = {
            let _one = self.records.lock();
            let target = self.blob_path(&digest);
            let mut record = match self.blob_record(&digest)? {
                Some(record) if target.exists() => record,
                _ => BlobRecord { created: now(), ..BlobRecord::default() },
            };
            record.size = size;
            for (key, value) in &commit.labels {
                record.labels.entry(key.clone()).or_insert_with(|| value.clone());
            }
            let mut batch = Batch::new();
            batch.put(BLOBS, digest.to_string(), encode(&record));
            if let Some(lease) = &commit.lease {
                crate::lease::require(&*self.db, lease)?;
                batch.put(crate::lease::RESOURCES, resource_key(lease, &Resource::Blob(digest)), b"");
            }
            wait(self.db.write(batch))?;
            let parent = target.parent().unwrap_or(&self.root);
            create_dir(parent).map_err(Error::io("create", parent.display()))?;
            fs::rename(path, &target).map_err(Error::io("publish content", digest))?;
            sync_dir(parent).map_err(Error::io("sync", parent.display()))?;
            record
        };
        if !also.is_empty() {
            self.db.write_soon(also);
        }
        let created = i128::from(record.created);
        Ok(Info { digest, size, labels: record.labels, created })
    }

    pub fn set_labels(&self, digest: &Digest, labels: &Labels) -> Result<Info, Error> {
        let _one = self.records.lock();
        let mut info = self.info(digest)?.ok_or(Error::NotFound(*digest))?;
        for (key, value) in labels {
            if value.is_empty() {
                info.labels.remove(key);
            } else {
                info.labels.insert(key.clone(), value.clone());
            }
        }
        let created = i64::try_from(info.created).unwrap_or(i64::MAX);
        let record = BlobRecord { size: info.size, created, labels: info.labels.clone() };
        let mut batch = Batch::new();
        batch.put(BLOBS, digest.to_string(), encode(&record));
        wait(self.db.write(batch))?;
        Ok(info)
    }

    /// Removes the blob; returns its size.
    pub fn delete(&self, digest: &Digest) -> Result<u64, Error> {
        let _one = self.records.lock();
        let path = self.blob_path(digest);
        let size = fs::metadata(&path).map_or(0, |m| m.len());
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::NotFound(*digest)),
            Err(e) => return Err(Error::io("delete content", digest)(e)),
        }
        // The file first: a record without a file means nothing.
        let mut batch = Batch::new();
        batch.delete(BLOBS, digest.to_string());
        self.db.write_soon(batch);
        Ok(size)
    }

    pub fn walk(&self) -> Result<Vec<Info>, Error> {
        let top = self.root.join("blobs/sha256");
        let mut digests: Vec<Digest> = Vec::new();
        for dir in fs::read_dir(&top).map_err(Error::io("list", top.display()))? {
            let dir = dir.map_err(Error::io("list", top.display()))?.path();
            for entry in fs::read_dir(&dir).map_err(Error::io("list", dir.display()))? {
                let entry = entry.map_err(Error::io("list", dir.display()))?;
                let name = entry.file_name();
                if let Some(digest) = name.to_str().and_then(|hex| format!("sha256:{hex}").parse().ok()) {
                    digests.push(digest);
                }
            }
        }
        digests.sort_unstable();
        let mut infos = Vec::with_capacity(digests.len());
        for digest in digests {
            // One that is deleted meanwhile is left out.
            infos.extend(self.info(&digest)?);
        }
        Ok(infos)
    }

    pub fn ingests(&self) -> Result<Vec<(String, IngestRecord)>, Error> {
        let mut found = Vec::new();
        for (key, value) in self.db.scan_prefix(INGESTS, b"")? {
            let name = String::from_utf8_lossy(&key).into_owned();
            let record = decode(&value, || format!("ingest {name}"))?;
            found.push((name, record));
        }
        Ok(found)
    }

    pub fn ingest_record(&self, reference: &str) -> Result<Option<IngestRecord>, Error> {
        match self.db.get(INGESTS, reference.as_bytes())? {
            Some(bytes) => Ok(Some(decode(&bytes, || format!("ingest {reference}"))?)),
            None => Ok(None),
        }
    }

    pub fn record_ingest(batch: &mut Batch, reference: &str, record: &IngestRecord) {
        batch.put(INGESTS, reference, encode(record));
    }

    pub fn forget_ingest(batch: &mut Batch, reference: &str) {
        batch.delete(INGESTS, reference);
    }

    /// Bytes on disk of an ingest.
    pub fn ingest_space(&self, reference: &str) -> Result<u64, Error> {
        use std::os::unix::fs::MetadataExt;
        match fs::metadata(self.ingest_path(reference)) {
            Ok(meta) => Ok(meta.blocks() * 512),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(Error::io("stat ingest", reference)(e)),
        }
    }

    /// Removes the data of an ingest that nobody holds; returns the bytes that this freed.
    pub fn remove_ingest(&self, reference: &str) -> Result<u64, Error> {
        let mut batch = Batch::new();
        Self::forget_ingest(&mut batch, reference);
        self.db.write_soon(batch);
        remove(&self.ingest_path(reference))
    }
}

/// Removes a file, which may be gone; returns the bytes on disk that this freed.
pub(crate) fn remove(path: &Path) -> Result<u64, Error> {
    use std::os::unix::fs::MetadataExt;
    let freed = fs::metadata(path).map_or(0, |m| m.blocks() * 512);
    match fs::remove_file(path) {
        Ok(()) => Ok(freed),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(Error::io("remove", path.display())(e)),
    }
}

/// Private images are nobody else's business.
pub(crate) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn create_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Hashes all of `file`.
pub(crate) fn hash(file: &File) -> io::Result<(Digest, u64)> {
    use std::os::unix::fs::FileExt;
    let mut hasher = Hasher::new();
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        match file.read_at(&mut buf, at) {
            Ok(0) => return Ok((hasher.finish(), at)),
            Ok(n) => {
                hasher.update(&buf[..n]);
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Waits for the database on a blocking thread; its writer is a thread of its own and needs no runtime.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    futures::executor::block_on(future)
}

pub(crate) fn encode(record: &impl Serialize) -> Vec<u8> {
    // Strings, numbers, lists and maps with string keys: there is nothing in the records that JSON cannot say.
    serde_json::to_vec(record).unwrap_or_default()
}

pub(crate) fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8], what: impl FnOnce() -> String) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::Damaged { what: what(), detail: e.to_string() })
}

/// Runs `work` off the runtime's threads. Once begun it runs to its end even if the future is dropped.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    castor_task::blocking(work).await
}
