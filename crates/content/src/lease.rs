//! Leases: what keeps content from the collector.

use std::time::Duration;

use async_trait::async_trait;
use castor_oci::Digest;

use castor_metadb::KeyValue;
use serde::{Deserialize, Serialize};

use crate::disk::{decode, now};
use crate::{Error, Labels};

pub(crate) const LEASES: &str = "content.lease";
/// Keys are made by [`resource_key`]; values are empty.
pub(crate) const RESOURCES: &str = "content.lease.resource";

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

    /// What all leases hold, by the lease's name. Those that are over may be among them.
    async fn held(&self) -> Result<Vec<(String, Resource)>, Error>;
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    pub created: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl LeaseRecord {
    pub fn is_over(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= now())
    }

    pub fn into_lease(self, id: String) -> Lease {
        let (created, expires) = (i128::from(self.created), self.expires.map(i128::from));
        Lease { id, labels: self.labels, created, expires }
    }
}

/// The record of a lease that exists and is not over.
pub(crate) fn find(db: &dyn KeyValue, id: &str) -> Result<Option<LeaseRecord>, Error> {
    match db.get(LEASES, id.as_bytes())? {
        Some(bytes) => {
            let record: LeaseRecord = decode(&bytes, || format!("lease {id}"))?;
            Ok((!record.is_over()).then_some(record))
        }
        None => Ok(None),
    }
}

pub(crate) fn require(db: &dyn KeyValue, id: &str) -> Result<(), Error> {
    find(db, id)?.map(drop).ok_or_else(|| Error::NoLease(id.to_owned()))
}

/// `<lease> NUL`: what the keys of a lease's resources begin with.
pub(crate) fn resource_prefix(lease: &str) -> Vec<u8> {
    [lease.as_bytes(), b"\0"].concat()
}

/// `<lease> NUL b<digest>`, `<lease> NUL i<reference>`, `<lease> NUL o<kind> NUL <id>`.
pub(crate) fn resource_key(lease: &str, resource: &Resource) -> Vec<u8> {
    let mut key = resource_prefix(lease);
    match resource {
        Resource::Blob(digest) => key.extend(format!("b{digest}").bytes()),
        Resource::Ingest(reference) => key.extend(format!("i{reference}").bytes()),
        Resource::Other { kind, id } => key.extend(format!("o{kind}\0{id}").bytes()),
    }
    key
}

/// The lease and the resource that a key names.
pub(crate) fn parse_resource_key(key: &[u8]) -> Option<(&str, Resource)> {
    let (lease, rest) = std::str::from_utf8(key).ok()?.split_once('\0')?;
    let resource = match (rest.get(..1)?, rest.get(1..)?) {
        ("b", digest) => Resource::Blob(digest.parse().ok()?),
        ("i", reference) => Resource::Ingest(reference.to_owned()),
        ("o", other) => {
            let (kind, id) = other.split_once('\0')?;
            Resource::Other { kind: kind.to_owned(), id: id.to_owned() }
        }
        _ => return None,
    };
    Some((lease, resource))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_keys_round_trip() {
        for resource in [
            Resource::Blob(Digest::of("x")),
            Resource::Ingest("a\u{1f600}/b".into()),
            Resource::Other { kind: "snapshots/local".into(), id: String::new() },
        ] {
            let key = resource_key("lease", &resource);
            assert!(key.starts_with(&resource_prefix("lease")));
            assert_eq!(parse_resource_key(&key), Some(("lease", resource)));
        }
        assert_eq!(parse_resource_key(b"lease"), None);
        assert_eq!(parse_resource_key(b"lease\0x"), None);
    }
}
