//! Leases: what keeps content from the collector.

use std::time::Duration;

use async_trait::async_trait;
use castor_oci::Digest;

use crate::{Error, Labels};

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: String,
    /// Its labels.
    pub labels: Labels,
    /// When it was made, nanoseconds since the epoch.
    pub created: i128,
    /// When it ends by itself, nanoseconds since the epoch.
    pub expires: Option<i128>,
}

/// What a lease holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// A blob, and those that its labels refer to.
    Blob(Digest),
    /// An ingest, by its reference.
    Ingest(String),
    /// Something that another collector looks after: kind and name, such as `snapshots/local` and a key.
    Other {
        /// What it is.
        kind: String,
        /// Its name.
        id: String,
    },
}

/// Leases and what they hold. Holding something that is not here (yet) is allowed.
#[async_trait]
pub trait Leases: Send + Sync + 'static {
    /// Makes the lease `id`, which ends by itself after `expires`.
    async fn create_lease(&self, id: &str, labels: Labels, expires: Option<Duration>) -> Result<Lease, Error>;

    /// Makes the lease hold `resource`, durably when this returns.
    async fn add_resource(&self, lease: &str, resource: &Resource) -> Result<(), Error>;

    /// Makes the lease let go of `resource`.
    async fn remove_resource(&self, lease: &str, resource: &Resource) -> Result<(), Error>;

    /// What the lease holds.
    async fn resources(&self, lease: &str) -> Result<Vec<Resource>, Error>;

    /// Ends the lease; one that does not exist is no error.
    async fn delete_lease(&self, id: &str) -> Result<(), Error>;

    /// All leases.
    async fn leases(&self) -> Result<Vec<Lease>, Error>;
}
