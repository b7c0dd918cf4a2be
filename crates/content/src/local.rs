//! The local content store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use castor_metadb::KeyValue;
use castor_oci::{Descriptor, Digest};

use crate::{Blob, ContentStore, Error, Info, Ingest, Labels, Lease, Leases, Resource, Writer};

/// Blobs as files below a directory, their labels and the leases in a database. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Local {}

/// What a collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs removed.
    pub blobs: Vec<Digest>,
    /// Ingests removed.
    pub ingests: Vec<String>,
    /// Bytes freed.
    pub bytes: u64,
}

impl Local {
    /// Opens the store below `root`, making it if it is not there.
    pub async fn open(root: &Path, db: Arc<dyn KeyValue>) -> Result<Self, Error> {
        let _ = (root, db);
        todo!()
    }

    /// Removes all blobs and ingests that neither a lease nor `roots` hold, directly or through labels, and ends leases that
    /// are over.
    pub async fn collect(&self, roots: &[Resource]) -> Result<Collected, Error> {
        let _ = roots;
        todo!()
    }

    /// Names of the ingests that are here.
    pub async fn ingests(&self) -> Result<Vec<String>, Error> {
        todo!()
    }
}

#[async_trait]
impl ContentStore for Local {
    async fn info(&self, _digest: &Digest) -> Result<Option<Info>, Error> {
        todo!()
    }
    async fn open(&self, _digest: &Digest) -> Result<Blob, Error> {
        todo!()
    }
    async fn ingest(&self, _reference: &str, _expected: &Descriptor) -> Result<Ingest, Error> {
        todo!()
    }
    async fn writer(&self) -> Result<Writer, Error> {
        todo!()
    }
    async fn delete(&self, _digest: &Digest) -> Result<(), Error> {
        todo!()
    }
    async fn walk(&self) -> Result<Vec<Info>, Error> {
        todo!()
    }
    async fn set_labels(&self, _digest: &Digest, _labels: &Labels) -> Result<Info, Error> {
        todo!()
    }
}

#[async_trait]
impl Leases for Local {
    async fn create_lease(&self, _id: &str, _labels: Labels, _expires: Option<Duration>) -> Result<Lease, Error> {
        todo!()
    }
    async fn add_resource(&self, _lease: &str, _resource: &Resource) -> Result<(), Error> {
        todo!()
    }
    async fn remove_resource(&self, _lease: &str, _resource: &Resource) -> Result<(), Error> {
        todo!()
    }
    async fn resources(&self, _lease: &str) -> Result<Vec<Resource>, Error> {
        todo!()
    }
    async fn delete_lease(&self, _id: &str) -> Result<(), Error> {
        todo!()
    }
    async fn leases(&self) -> Result<Vec<Lease>, Error> {
        todo!()
    }
}
