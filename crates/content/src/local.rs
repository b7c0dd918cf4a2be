//! The local content store.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use castor_metadb::{Batch, KeyValue};
use castor_oci::{Descriptor, Digest};

use crate::disk::{Disk, blocking, decode, encode, now, wait};
use crate::lease::{LEASES, LeaseRecord, RESOURCES, find, parse_resource_key, require, resource_key, resource_prefix};
use crate::{Blob, Commit, ContentStore, Error, Info, Ingest, LABEL_GC_REF, Labels, Lease, Leases, Resource, Writer};

/// Blobs as files below a directory, their labels and the leases in a database. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Local {
    disk: Arc<Disk>,
}

/// What a collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs removed.
    pub blobs: Vec<Digest>,
    /// Ingests removed.
    pub ingests: Vec<String>,
    /// Leases that were over.
    pub leases: Vec<String>,
    /// Bytes freed.
    pub bytes: u64,
}

/// What is known of an ingest that need not be open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestInfo {
    /// Its name.
    pub reference: String,
    /// The digest it is to have.
    pub digest: Digest,
    /// The size it is to have.
    pub size: u64,
    /// Bytes that were here at its last checkpoint.
    pub present: u64,
}

/// What the store takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of blobs.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Number of ingests.
    pub ingests: u64,
    /// Their bytes, as of their last checkpoints.
    pub ingest_bytes: u64,
}

impl Local {
    /// Opens the store below `root`, making it if it is not there.
    pub async fn open(root: &Path, db: Arc<dyn KeyValue>) -> Result<Self, Error> {
        let root = root.to_owned();
        let disk = blocking(move || Disk::open(&root, db)).await?;
        Ok(Self { disk: Arc::new(disk) })
    }

    /// Removes all blobs and ingests that neither a lease nor `roots` hold, directly or through labels, and ends leases that
    /// are over. Ingests that are open stay. What becomes a blob meanwhile waits for the end.
    pub async fn collect(&self, roots: &[Resource]) -> Result<Collected, Error> {
        let roots = roots.to_vec();
        self.run(move |disk| collect(disk, roots)).await
    }

    /// The ingests that are here.
    pub async fn ingests(&self) -> Result<Vec<IngestInfo>, Error> {
        self.run(|disk| {
            let ingests = disk.ingests()?;
            Ok(ingests
                .into_iter()
                .map(|(reference, record)| IngestInfo {
                    reference,
                    digest: record.digest,
                    size: record.size,
                    present: record.ranges.iter().map(|(start, end)| end.saturating_sub(*start)).sum(),
                })
                .collect())
        })
        .await
    }

    /// What the store takes.
    pub async fn usage(&self) -> Result<Usage, Error> {
        let ingests = self.ingests().await?;
        let blobs = self.walk().await?;
        Ok(Usage {
            blobs: blobs.len() as u64,
            blob_bytes: blobs.iter().map(|blob| blob.size).sum(),
            ingests: ingests.len() as u64,
            ingest_bytes: ingests.iter().map(|ingest| ingest.present).sum(),
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Disk>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let disk = Arc::clone(&self.disk);
        blocking(move || work(&disk)).await
    }
}

#[async_trait]
impl ContentStore for Local {
    async fn info(&self, digest: &Digest) -> Result<Option<Info>, Error> {
        let digest = *digest;
        self.run(move |disk| disk.info(&digest)).await
    }

    async fn hold(&self, digest: &Digest, commit: &Commit) -> Result<Option<Info>, Error> {
        let (digest, commit) = (*digest, commit.clone());
        self.run(move |disk| {
            let _no_collector = disk.gc.read();
            let Some(mut info) = disk.info(&digest)? else { return Ok(None) };
            let mut new = commit.labels;
            new.retain(|key, _| !info.labels.contains_key(key));
            if !new.is_empty() {
                info = disk.set_labels(&digest, &new)?;
            }
            if let Some(lease) = commit.lease {
                require(&*disk.db, &lease)?;
                let mut batch = Batch::new();
                batch.put(RESOURCES, resource_key(&lease, &Resource::Blob(digest)), b"");
                wait(disk.db.write(batch))?;
            }
            Ok(Some(info))
        })
        .await
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, Error> {
        let digest = *digest;
        self.run(move |disk| {
            let (file, size) = disk.open_blob(&digest)?;
            Ok(Blob::new(digest, size, file))
        })
        .await
    }

    async fn ingest(&self, reference: &str, expected: &Descriptor) -> Result<Ingest, Error> {
        let (reference, expected) = (reference.to_owned(), expected.clone());
        self.run(move |disk| Ingest::open(disk, &reference, &expected)).await
    }

    async fn ingest_space(&self, reference: &str) -> Result<u64, Error> {
        let reference = reference.to_owned();
        self.run(move |disk| disk.ingest_space(&reference)).await
    }

    async fn discard(&self, reference: &str) -> Result<u64, Error> {
        let reference = reference.to_owned();
        self.run(move |disk| Ingest::discard_named(disk, &reference)).await
    }

    async fn writer(&self) -> Result<Writer, Error> {
        self.run(Writer::new).await
    }

    async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        let digest = *digest;
        self.run(move |disk| disk.delete(&digest).map(drop)).await
    }

    async fn walk(&self) -> Result<Vec<Info>, Error> {
        self.run(|disk| disk.walk()).await
    }

    async fn collect(&self, roots: &[Resource]) -> Result<Collected, Error> {
        Self::collect(self, roots).await
    }

    async fn set_labels(&self, digest: &Digest, labels: &Labels) -> Result<Info, Error> {
        let (digest, labels) = (*digest, labels.clone());
        self.run(move |disk| disk.set_labels(&digest, &labels)).await
    }
}

#[async_trait]
impl Leases for Local {
    async fn create_lease(&self, id: &str, labels: Labels, expires: Option<Duration>) -> Result<Lease, Error> {
        let id = id.to_owned();
        self.run(move |disk| {
            if id.is_empty() || id.contains('\0') {
                return Err(Error::NoLease(id));
            }
            // Written: of two who make the same lease, one must fail.
            let _alone = disk.gc.write();
            if find(&*disk.db, &id)?.is_some() {
                return Err(Error::LeaseExists(id));
            }
            let created = now();
            let expires =
                expires.map(|after| created.saturating_add(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX)));
            let record = LeaseRecord { created, expires, labels };
            let mut batch = Batch::new();
            // What an earlier lease of that name, which is over, held is not held by this one.
            for (key, _) in disk.db.scan_prefix(RESOURCES, &resource_prefix(&id))? {
                batch.delete(RESOURCES, key);
            }
            batch.put(LEASES, &id, encode(&record));
            wait(disk.db.write(batch))?;
            Ok(record.into_lease(id))
        })
        .await
    }

    async fn add_resource(&self, lease: &str, resource: &Resource) -> Result<(), Error> {
        let (lease, resource) = (lease.to_owned(), resource.clone());
        self.run(move |disk| {
            let _no_collector = disk.gc.read();
            require(&*disk.db, &lease)?;
            let mut batch = Batch::new();
            batch.put(RESOURCES, resource_key(&lease, &resource), b"");
            Ok(wait(disk.db.write(batch))?)
        })
        .await
    }

    async fn remove_resource(&self, lease: &str, resource: &Resource) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.delete(RESOURCES, resource_key(lease, resource));
        self.disk.db.write_soon(batch);
        Ok(())
    }

    async fn resources(&self, lease: &str) -> Result<Vec<Resource>, Error> {
        let lease = lease.to_owned();
        self.run(move |disk| {
            require(&*disk.db, &lease)?;
            let keys = disk.db.scan_prefix(RESOURCES, &resource_prefix(&lease))?;
            Ok(keys.iter().filter_map(|(key, _)| Some(parse_resource_key(key)?.1)).collect())
        })
        .await
    }

    async fn delete_lease(&self, id: &str) -> Result<(), Error> {
        let id = id.to_owned();
        self.run(move |disk| {
            let _no_collector = disk.gc.read();
            let mut batch = Batch::new();
            end_lease(disk, &id, &mut batch)?;
            Ok(wait(disk.db.write(batch))?)
        })
        .await
    }

    async fn leases(&self) -> Result<Vec<Lease>, Error> {
        self.run(|disk| {
            let mut leases = Vec::new();
            for (key, value) in disk.db.scan_prefix(LEASES, b"")? {
                let id = String::from_utf8_lossy(&key).into_owned();
                let record: LeaseRecord = decode(&value, || format!("lease {id}"))?;
                if !record.is_over() {
                    leases.push(record.into_lease(id));
                }
            }
            Ok(leases)
        })
        .await
    }

    async fn held(&self) -> Result<Vec<(String, Resource)>, Error> {
        self.run(|disk| {
            let keys = disk.db.scan_prefix(RESOURCES, b"")?;
            let parsed = keys.iter().filter_map(|(key, _)| parse_resource_key(key));
            Ok(parsed.map(|(lease, resource)| (lease.to_owned(), resource)).collect())
        })
        .await
    }
}

fn end_lease(disk: &Disk, id: &str, batch: &mut Batch) -> Result<(), Error> {
    batch.delete(LEASES, id);
    for (key, _) in disk.db.scan_prefix(RESOURCES, &resource_prefix(id))? {
        batch.delete(RESOURCES, key);
    }
    Ok(())
}

/// Marks what leases and `roots` hold, then removes the rest.
fn collect(disk: &Disk, roots: Vec<Resource>) -> Result<Collected, Error> {
    let _alone = disk.gc.write();
    let mut collected = Collected::default();
    let mut batch = Batch::new();
    let mut alive = HashSet::new();
    for (key, value) in disk.db.scan_prefix(LEASES, b"")? {
        let id = String::from_utf8_lossy(&key).into_owned();
        let record: LeaseRecord = decode(&value, || format!("lease {id}"))?;
        if record.is_over() {
            end_lease(disk, &id, &mut batch)?;
            collected.leases.push(id);
        } else {
            alive.insert(id);
        }
    }
    let mut held: BTreeSet<Resource> = roots.into_iter().collect();
    for (key, _) in disk.db.scan_prefix(RESOURCES, b"")? {
        match parse_resource_key(&key) {
            Some((lease, resource)) if alive.contains(lease) => drop(held.insert(resource)),
            // Left by a lease that is gone.
            Some(_) => drop(batch.delete(RESOURCES, key)),
            // Nobody knows what it says: to keep it is the safe side.
            None => {}
        }
    }
    let marked = mark(disk, &held)?;
    for info in disk.walk()? {
        if !marked.contains(&info.digest) {
            collected.bytes += disk.delete(&info.digest)?;
            collected.blobs.push(info.digest);
        }
    }
    let open = disk.open.lock();
    for (reference, _) in disk.ingests()? {
        let is_open = open.get(&reference).is_some_and(|state| state.strong_count() > 0);
        if !is_open && !held.contains(&Resource::Ingest(reference.clone())) {
            collected.bytes += disk.remove_ingest(&reference)?;
            collected.ingests.push(reference);
        }
    }
    drop(open);
    if !batch.is_empty() {
        wait(disk.db.write(batch))?;
    }
    Ok(collected)
}

/// The blobs that are held, and those that their labels refer to, and so on.
fn mark(disk: &Disk, held: &BTreeSet<Resource>) -> Result<HashSet<Digest>, Error> {
    let mut queue: Vec<Digest> = held
        .iter()
        .filter_map(|resource| match resource {
            Resource::Blob(digest) => Some(*digest),
            _ => None,
        })
        .collect();
    let mut marked: HashSet<Digest> = queue.iter().copied().collect();
    while let Some(digest) = queue.pop() {
        let Some(info) = disk.info(&digest)? else { continue };
        let refers =
            info.labels.iter().filter(|(key, _)| is_reference(key)).filter_map(|(_, value)| value.parse().ok());
        queue.extend(refers.filter(|digest: &Digest| marked.insert(*digest)));
    }
    Ok(marked)
}

/// `containerd.io/gc.ref.content`, alone or with a `.` or `/` and more behind.
fn is_reference(key: &str) -> bool {
    key.strip_prefix(LABEL_GC_REF).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
}
