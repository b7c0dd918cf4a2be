//! The client.

use std::fmt;
use std::io;
use std::str::FromStr;

use async_trait::async_trait;
use bytes::Bytes;
use castor_oci::{Descriptor, Digest, Index, Manifest, Platform, Reference};
use futures::stream::BoxStream;

use crate::{Access, BlobReader, Config, Error};

/// A repository: host and path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    host: String,
    path: String,
}

impl Repository {
    /// The host as users write it (`docker.io`), with its port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path without the host.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl From<&Reference> for Repository {
    fn from(reference: &Reference) -> Self {
        Self { host: reference.host().to_owned(), path: reference.path().to_owned() }
    }
}

impl FromStr for Repository {
    type Err = castor_oci::ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::from(&text.parse::<Reference>()?))
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

/// Where the bytes of a blob to be pushed come from; opened anew for each attempt.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// The blob's bytes from the first.
    async fn open(&self) -> io::Result<BoxStream<'static, io::Result<Bytes>>>;

    /// Called with the bytes sent so far in this attempt.
    fn progress(&self, sent: u64) {
        let _ = sent;
    }
}

#[async_trait]
impl BlobSource for Bytes {
    async fn open(&self) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let bytes = self.clone();
        Ok(Box::pin(futures::stream::once(async move { Ok(bytes) })))
    }
}

/// How a blob came to be in the target repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// It was mounted from another repository of the host.
    Mounted,
    /// It was uploaded.
    Uploaded,
}

/// An image of one platform, as resolved: nothing of its layers was read.
#[derive(Debug, Clone)]
pub struct Image {
    /// What the reference names: an index or a manifest.
    pub root: Descriptor,
    /// The bytes of `root` if it is an index.
    pub index: Option<Bytes>,
    /// The platform's manifest.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub manifest_bytes: Bytes,
    /// Its content.
    pub manifest: Manifest,
}

/// A client of all registries; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {}

impl Client {
    /// A client with this configuration; reads the certificate files that it names.
    pub fn new(config: Config) -> Result<Self, Error> {
        let _ = config;
        todo!()
    }

    /// What `reference` names: HEAD, or GET where a registry's HEAD says too little.
    pub async fn resolve(&self, reference: &Reference, access: &Access) -> Result<Descriptor, Error> {
        let _ = (reference, access);
        todo!()
    }

    /// The manifest or index `descriptor`, its digest verified.
    pub async fn manifest(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        access: &Access,
    ) -> Result<Bytes, Error> {
        let _ = (reference, descriptor, access);
        todo!()
    }

    /// Resolves `reference` and reads index and manifest of the image for `platform`.
    pub async fn image(&self, reference: &Reference, platform: &Platform, access: &Access) -> Result<Image, Error> {
        let _ = (reference, platform, access);
        todo!()
    }

    /// A reader of the blob `descriptor` of `repository`; sends nothing yet.
    pub fn blob(&self, repository: &Repository, descriptor: &Descriptor, access: &Access) -> BlobReader {
        let _ = (repository, descriptor, access);
        todo!()
    }

    /// Whether `repository` has the blob (HEAD; for pushes only).
    pub async fn has_blob(&self, repository: &Repository, digest: &Digest, access: &Access) -> Result<bool, Error> {
        let _ = (repository, digest, access);
        todo!()
    }

    /// Asks the host of `repository` to take the blob from its repository `from`. `false`: it wants an upload.
    pub async fn mount_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: &Repository,
        access: &Access,
    ) -> Result<bool, Error> {
        let _ = (repository, digest, from, access);
        todo!()
    }

    /// Brings the blob into `repository`: nothing if it is there, else mounted from one of `mount_from` (repositories of
    /// other hosts are skipped), else uploaded from `source`, which is opened only then.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        mount_from: &[Repository],
        source: &dyn BlobSource,
        access: &Access,
    ) -> Result<Pushed, Error> {
        let _ = (repository, descriptor, mount_from, source, access);
        todo!()
    }

    /// Puts a manifest or index under the tag of `reference`, or under its digest if it has no tag.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: Bytes,
        access: &Access,
    ) -> Result<Digest, Error> {
        let _ = (reference, media_type, bytes, access);
        todo!()
    }
}

/// The manifest of `index` that suits `platform` best; attestations are never chosen.
pub fn choose_platform<'a>(index: &'a Index, platform: &Platform) -> Option<&'a Descriptor> {
    let _ = (index, platform);
    todo!()
}
